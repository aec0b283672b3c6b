"""Converts blocks of records into rows per part, and keeps the book of where they go.

A block becomes one text for each part (side, type, judge and, while there are few, task). The ledger places
the texts one after the other in the order of the input, so the files are the same bytes for any number of workers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xxhash

from trainkit.datatypes import Part, PartKey, Reject
from trainkit.errors import Rejected
from trainkit.lines import read_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trainkit.datatypes import Example
    from trainkit.lines import Block, Source

    Place = tuple[str, int]  # file name, byte offset


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is done with each record.

    Attributes:
        to_example: one JSON record -> Example, or None when a filter leaves it out; raises Rejected.
        side_of: split group -> "train" or "eval".
        max_tasks: keep tasks in files of their own while there are at most so many; 0 never does.
        seen: metadata key -> values met so far, for the keys that are filtered on; filled by `to_example`.
    """

    to_example: Callable[[bytes], Example | None]
    side_of: Callable[[bytes], str]
    max_tasks: int
    seen: dict[str, set[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Batch:
    """A converted block: the rows of each part as one text, and what was left out; lines count from its start."""

    source: int
    num_lines: int
    texts: dict[PartKey, bytes]
    rows: dict[PartKey, int]
    rejects: list[tuple[int, str, str, bytes]]
    filtered: int


@dataclass(frozen=True, slots=True)
class Report:
    """What the parent needs to know of a batch to place it: sizes, counts and digests, without the rows."""

    source: int
    num_lines: int
    sizes: dict[PartKey, tuple[int, int, int]]  # bytes, rows, digest
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
    texts = {PartKey(*lane): b"".join(rows) for lane, rows in lanes.items()}
    counts = {PartKey(*lane): len(rows) for lane, rows in lanes.items()}
    return Batch(source, number, texts, counts, rejects, filtered)


def convert_block(source: Source, block: Block, recipe: Recipe) -> Batch:
    """Convert the lines of a block of a plain file."""
    return convert_records(enumerate(read_block(source, block), 1), recipe, block.source)


def report_of(batch: Batch, recipe: Recipe) -> Report:
    sizes = {key: (len(text), batch.rows[key], xxhash.xxh3_64_intdigest(text)) for key, text in batch.texts.items()}
    return Report(batch.source, batch.num_lines, sizes, batch.rejects, batch.filtered, recipe.seen)


class Ledger:
    """The parent's book: which file each part has, how far it is filled, and what was counted.

    Args:
        name_part: gives each new part its file name.
        max_tasks: tasks are kept apart while there are at most so many.
        on_reject: told of each row that was left out, in the order of the input.
    """

    def __init__(
        self, name_part: Callable[[PartKey], str], max_tasks: int, on_reject: Callable[[Reject], None]
    ) -> None:
        self.name_part = name_part
        self.max_tasks = max_tasks
        self.on_reject = on_reject
        self.tasks_apart = max_tasks > 0
        self.tasks: set[str | None] = {""}
        self.files: dict[PartKey, list[int]] = {}  # bytes, rows
        self.names: dict[PartKey, str] = {}
        self.digest = xxhash.xxh3_64()
        self.lines: Counter[int] = Counter()
        self.reasons: Counter[str] = Counter()
        self.num_filtered = 0
        self.seen: dict[str, set[str]] = defaultdict(set)

    def place(self, report: Report, source: Source) -> dict[PartKey, Place]:
        """Return where each part of a batch goes; call in the order of the input."""
        self.note(report, source)
        if self.tasks_apart:
            self.tasks.update(key.task for key in report.sizes)
            self.tasks_apart = None not in self.tasks and len(self.tasks) <= self.max_tasks + 1
        places = {}
        for key, (num_bytes, num_rows, digest) in report.sizes.items():
            part = key if self.tasks_apart else key._replace(task=None)
            if part not in self.files:
                self.files[part] = [0, 0]
                self.names[part] = self.name_part(part)
            entry = self.files[part]
            places[key] = (self.names[part], entry[0])
            entry[0] += num_bytes
            entry[1] += num_rows
            self.digest.update(f"{self.names[part]}:{digest:x};".encode())
        return places

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
        """Return the files written so far."""
        return [Part(self.names[key], key, num_rows, num_bytes) for key, (num_bytes, num_rows) in self.files.items()]
