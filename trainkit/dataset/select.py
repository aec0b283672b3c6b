"""Which rows belong together: the train and eval sides, the variants of a data set, and their names."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trainkit.datatypes import Part

TRAIN, EVAL = "train", "eval"
TYPE_ORDER = {"clip": 0, "category": 1, "final": 2}
MAX_NAME_BYTES = 180  # file systems hold 255, and a run's folder is named after its data set


@dataclass(frozen=True, slots=True)
class Variant:
    """A named view of the rows of one side: `Variant("reward_model_clip", ((0, 4), (9, 12)), "train")`."""

    name: str
    ranges: tuple[tuple[int, int], ...]
    side: str = TRAIN

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return sum(stop - start for start, stop in self.ranges)


def make_split(ratio: float, seed: int) -> Callable[[bytes], str]:
    """Return the function that says on which side a group is: "eval" for about `ratio` of all groups.

    The side depends on the group and the seed alone, so a row keeps it in every variant and when data is added.
    """
    if ratio <= 0:
        return lambda group: TRAIN  # noqa: ARG005 -- one side only
    threshold = int(ratio * 2**64)
    unsigned_seed = seed % 2**64

    def side_of(group: bytes) -> str:
        return EVAL if xxhash.xxh3_64_intdigest(group, unsigned_seed) < threshold else TRAIN

    return side_of


def clean_name(value: str) -> str:
    """Return `value` as a part of a name: letters (of any script), digits and single underscores."""
    return re.sub(r"\W+|_{2,}", "_", value).strip("_") or "unnamed"


class Names:
    """Gives each value a clean name that no other value has, whatever the case of its letters."""

    def __init__(self) -> None:
        self.taken: dict[str, str] = {}

    def give(self, wanted: str, value: str) -> str:
        """Return `wanted`, cut to what a file system holds; with a digest of `value` when another has that name."""
        short = wanted.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
        digest = hashlib.blake2b(value.encode(), digest_size=16).hexdigest()
        for name in (short, f"{short}_{digest[:6]}", f"{short}_{digest}"):
            # The eval entry of one variant must not be the name of another.
            keys = {name.casefold(), f"{name}_{EVAL}".casefold()}
            if all(self.taken.get(key, value) == value for key in keys):
                self.taken.update(dict.fromkeys(keys, value))
                return name
        raise AssertionError(f"no free name for {value!r}")


def make_variants(parts: Iterable[Part], base: str, *, single: bool, with_tasks: bool) -> list[Variant]:
    """Return the variants that `parts` give, in a fixed order: full, one per type, per judge, per task.

    Args:
        parts: the rows of the data set by side, type, judge and task.
        base: the first part of every name, "reward_model"; with `single` the whole name.
        single: only one variant that holds everything.
        with_tasks: whether each task gets a variant.
    """
    groups: dict[tuple[int, str], list[Part]] = defaultdict(list)
    for part in parts:
        groups[0, "full"].append(part)
        if single:
            continue
        for level, value in enumerate((part.key.kind, part.key.judge, part.key.task if with_tasks else None), 1):
            if value:
                groups[level, value].append(part)
    names = Names()
    variants = []
    for level, value in sorted(groups, key=group_order):
        name = base if single else names.give(f"{base}_{clean_name(value)}", f"{level}:{value}")
        variants += view_sides(name, groups[level, value])
    return variants


def view_sides(name: str, parts: list[Part]) -> list[Variant]:
    """Return the train view and the eval view of a variant, each only when it has rows."""
    views = []
    for side, full_name in ((TRAIN, name), (EVAL, f"{name}_{EVAL}")):
        ranges = merge_ranges(pair for part in parts if part.key.side == side for pair in part.ranges)
        if ranges:
            views.append(Variant(full_name, ranges, side))
    return views


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return disjoint ranges in rising order, those that touch made one.

    >>> merge_ranges([(4, 6), (0, 2), (2, 3)])
    ((0, 3), (4, 6))
    """
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def lane_order(key: tuple[str, str, str, str | None]) -> tuple[object, ...]:
    """Sort key for the rows of a block: side, type, judge, task, so that a variant is few ranges."""
    side, kind, judge, task = key
    return (side, TYPE_ORDER.get(kind, 3), kind, judge, task or "")


def group_order(group: tuple[int, str]) -> tuple[object, ...]:
    level, value = group
    return (level, TYPE_ORDER.get(value, 3) if level == 1 else 0, value)
