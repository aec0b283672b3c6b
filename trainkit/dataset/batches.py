"""Converts blocks of records into rows per side, and keeps the book of where they go.

A block becomes one text for each side, its rows sorted by type, judge and, while there are few, task. The ledger places
the texts one after the other in the order of the input, so the files are the same bytes for any number of workers.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xxhash

from trainkit.dataset.select import lane_order
from trainkit.datatypes import Part, PartKey, Reject
from trainkit.errors import Rejected
from trainkit.lines import read_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trainkit.datatypes import Example
    from trainkit.lines import Block, Source

# The digest of a block only helps to name a folder (a name that is taken by other content is not used), so it need
# not read every byte: its two ends and its size do.
SAMPLE = 1 << 14


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is done with each record.

    Attributes:
        to_example: one JSON record -> Example, or None when a filter leaves it out; raises Rejected.
        side_of: split group -> "train" or "eval".
        max_tasks: sort by task too while there are at most so many; 0 never does.
        seen: metadata key -> values met so far, for the keys that are filtered on; filled by `to_example`.
    """

    to_example: Callable[[bytes], Example | None]
    side_of: Callable[[bytes], str]
    max_tasks: int
    seen: dict[str, set[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Batch:
    """A converted block: the rows of each side as one text, and what was left out; lines count from its start.

    `runs` says how many rows of which key follow each other in the texts: `[(PartKey("train", "clip", ...), 4), ...]`.
    """

    source: int
    num_lines: int
    texts: dict[str, bytes]
    runs: list[tuple[PartKey, int]]
    rejects: list[tuple[int, str, str, bytes]]
    filtered: int


@dataclass(frozen=True, slots=True)
class Report:
    """What the parent needs to know of a batch to place it: sizes, counts and digests, without the rows."""

    source: int
    num_lines: int
    sizes: dict[str, tuple[int, int]]  # side -> bytes, digest
    runs: list[tuple[PartKey, int]]
    rejects: list[tuple[int, str, str, bytes]]
    filtered: int
    seen: dict[str, set[str]]


def convert_records(records: Iterable[tuple[int, bytes]], recipe: Recipe, source: int) -> Batch:
    """Convert (line number, JSON record) pairs into a batch; blank lines are skipped."""
    to_example, side_of, max_tasks = recipe.to_example, recipe.side_of, recipe.max_tasks
    lanes: defaultdict[tuple[str, str, str, str | None], list[bytes]] = defaultdict(list)
    tasks = {""}  # no task is not one more
    rejects = []
    apart = max_tasks > 0
    number = filtered = 0
    for number, record in records:
        try:
            example = to_example(record)
        except Rejected as reason:
            if record.strip():
                rejects.append((number, reason.reason, reason.detail, record))
            continue
        if example is None:
            filtered += 1
            continue
        kind, judge, task, group, row = example
        if apart and task not in tasks:
            tasks.add(task)
            apart = len(tasks) <= max_tasks + 1
        lanes[side_of(group), kind, judge, task if apart else None].append(row)
    order = sorted(lanes, key=lane_order)
    texts = {
        side: b"".join(row for lane in order if lane[0] == side for row in lanes[lane])
        for side in dict.fromkeys(lane[0] for lane in order)
    }
    runs = [(PartKey(*lane), len(lanes[lane])) for lane in order]
    return Batch(source, number, texts, runs, rejects, filtered)


def convert_block(source: Source, block: Block, recipe: Recipe) -> Batch:
    """Convert the lines of a block of a plain file."""
    return convert_records(enumerate(read_block(source, block), 1), recipe, block.source)


def digest_of(text: bytes) -> int:
    return xxhash.xxh3_64_intdigest(text[:SAMPLE] + text[-SAMPLE:], len(text))


def report_of(batch: Batch, recipe: Recipe) -> Report:
    sizes = {side: (len(text), digest_of(text)) for side, text in batch.texts.items()}
    return Report(batch.source, batch.num_lines, sizes, batch.runs, batch.rejects, batch.filtered, recipe.seen)


class Ledger:
    """The parent's book: how far each side's file is filled, which rows are whose, and what was counted.

    Args:
        max_tasks: tasks are told apart while there are at most so many.
        on_reject: told of each row that was left out, in the order of the input.
    """

    def __init__(self, max_tasks: int, on_reject: Callable[[Reject], None]) -> None:
        self.max_tasks = max_tasks
        self.on_reject = on_reject
        self.tasks_apart = max_tasks > 0
        self.tasks: set[str | None] = {""}
        self.num_bytes: Counter[str] = Counter()
        self.num_rows: Counter[str] = Counter()
        self.bounds: defaultdict[PartKey, array[int]] = defaultdict(lambda: array("Q"))  # start, stop, start, stop, ...
        self.digest = xxhash.xxh3_64()
        self.lines: Counter[int] = Counter()
        self.reasons: Counter[str] = Counter()
        self.num_filtered = 0
        self.seen: dict[str, set[str]] = defaultdict(set)

    def place(self, report: Report, source: Source) -> dict[str, int]:
        """Return where in each side's file the text of a batch goes, in bytes; call in the order of the input."""
        self.note(report, source)
        if self.tasks_apart:
            self.tasks.update(key.task for key, _ in report.runs)
            self.tasks_apart = None not in self.tasks and len(self.tasks) <= self.max_tasks + 1
        for key, count in report.runs:
            self.add_rows(key if self.tasks_apart else key._replace(task=None), count)
        places = {}
        for side, (num_bytes, digest) in report.sizes.items():
            places[side] = self.num_bytes[side]
            self.num_bytes[side] += num_bytes
            self.digest.update(f"{side}:{digest:x};".encode())
        return places

    def add_rows(self, key: PartKey, count: int) -> None:
        bounds, start = self.bounds[key], self.num_rows[key.side]
        if bounds and bounds[-1] == start:
            bounds[-1] = start + count
        else:
            bounds.extend((start, start + count))
        self.num_rows[key.side] = start + count

    def note(self, report: Report, source: Source) -> None:
        base = 0 if source.whole else self.lines[report.source]
        for number, reason, detail, row in report.rejects:
            self.reasons[reason] += 1
            self.on_reject(Reject(source.name, base + number, reason, detail, row))
        self.lines[report.source] = base + report.num_lines
        self.num_filtered += report.filtered
        for key, values in report.seen.items():
            self.seen[key] |= values

    def parts(self) -> list[Part]:
        """Return which rows of the files have which key."""
        return [Part(key, tuple(zip(bounds[::2], bounds[1::2], strict=True))) for key, bounds in self.bounds.items()]
