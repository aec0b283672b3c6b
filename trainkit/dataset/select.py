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
MAX_NAME_BYTES = 180  # file systems hold 255; the digest, the side and the trainer's cache add to it


@dataclass(frozen=True, slots=True)
class Variant:
    """A named view of a data set: `Variant("reward_model_clip", ("clip__deepseek_chat.jsonl",), num_rows=4)`."""

    name: str
    files: tuple[str, ...]
    num_rows: int
    side: str = TRAIN


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
        parts: the files of the data set.
        base: the first part of every name, "reward_model"; with `single` the whole name.
        single: only one variant that holds everything.
        with_tasks: whether each task gets a variant; its rows are then in files of their own.
    """
    groups: dict[tuple[int, str], list[Part]] = defaultdict(list)
    for part in sorted(parts, key=part_order):
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
        chosen = [part for part in parts if part.key.side == side]
        if rows := sum(part.num_rows for part in chosen):
            views.append(Variant(full_name, tuple(part.file_name for part in chosen), rows, side))
    return views


def part_order(part: Part) -> tuple[object, ...]:
    key = part.key
    return (TYPE_ORDER.get(key.kind, 3), key.kind, key.judge, key.task or "")


def group_order(group: tuple[int, str]) -> tuple[object, ...]:
    level, value = group
    return (level, TYPE_ORDER.get(value, 3) if level == 1 else 0, value)
