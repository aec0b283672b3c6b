"""Whether the rows with images come early enough for the tables that the trainer writes.

The trainer's converter, and then its tokenizing, write a table in parts of 1000 rows, each worker one of its own for
its share of the rows. The first part decides on the types: where none of its rows has an image the column is null, and
the first row that has one ends the training (`Couldn't cast array of type list<item: string> to null`). A share
without any image is no problem. Modelled on datasets 4.0.0 (arrow_writer.py, Dataset.map and shard).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from trainkit.dataset.reader import read_block
from trainkit.dataset.registry import REGISTRY
from trainkit.datatypes import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from trainkit.dataset.entry import Entry
    from trainkit.dataset.reader import Row, RowPlan

PART_ROWS = 1000  # DEFAULT_MAX_BATCH_SIZE of datasets (config.py)
KINDS = ("images", "videos", "audios")
IMAGES_FIRST = "put the rows with images first (trainkit convert --kind trajectories does)"
LIKELY = 0.01  # a chance of failing that is worth a warning


@dataclass(frozen=True, slots=True)
class Writing:
    """How the trainer writes its tables.

    Attributes:
        workers: preprocessing_num_workers; None when it is not known, or the rows are streamed.
        part_rows: preprocessing_batch_size, the rows that are tokenized and written at once.
        shuffled: val_size has the rows shuffled before they are tokenized.
    """

    workers: int | None = None
    part_rows: int = PART_ROWS
    shuffled: bool = False


UNKNOWN = Writing()
Flags = dict[str, bytearray]


def check_media_rows(plan: RowPlan, entry: Entry, writing: Writing) -> list[Problem]:
    """Check that images come early enough in each share of a data set; sets without a column for them are not read."""
    if not plan.blocks or not media_columns(entry):
        return []
    flags = media_flags(plan, entry)
    where, part_rows = f"{REGISTRY} {entry.name}", min(PART_ROWS, writing.part_rows)
    if entry.num_samples is not None:
        return chance_problems(flags, part_rows, writing.workers, f"{where} num_samples")
    late = first_late(flags, part_rows, writing.workers)
    return [late_problem(kind, [(plan, entry)], row, writing) for kind, row in late.items()]


def check_merged(sets: Sequence[tuple[RowPlan, Entry]], writing: Writing, where: str) -> list[Problem]:
    """Check data sets that are tokenized as one, one after the other or shuffled (mix_strategy: concat).

    A set that `check_media_rows` finds fault with is left to that. `where` names the key: `val_size`, `dataset`.
    """
    if not any(media_columns(entry) for _, entry in sets):
        return []
    merged: Flags = {kind: bytearray() for kind in KINDS}
    for plan, entry in sets:
        flags = media_flags(plan, entry)
        if first_late(flags, min(PART_ROWS, writing.part_rows), writing.workers):
            return []
        for kind in KINDS:
            merged[kind] += flags.get(kind, bytes(plan.num_rows))
    if writing.shuffled:
        return chance_problems(merged, writing.part_rows, writing.workers, where)
    late = first_late(merged, writing.part_rows, writing.workers)
    return [late_problem(kind, sets, row, writing) for kind, row in late.items()]


def media_columns(entry: Entry) -> dict[str, str]:
    return {kind: name for kind in KINDS if (name := getattr(entry, kind))}


def media_flags(plan: RowPlan, entry: Entry) -> Flags:
    """Return for each kind of media whether the rows have some, a byte each, in the trainer's order."""
    columns = media_columns(entry)
    if not columns:
        return {}
    flags = {kind: bytearray(plan.num_rows) for kind in columns}
    decode = media_decoder(columns)
    for number, (*_, row) in enumerate(rows_of(plan)):
        values = decode(row) if isinstance(row, bytes) else {kind: row.get(name) for kind, name in columns.items()}
        for kind in columns:
            flags[kind][number] = has_value(values.get(kind))
    return flags


def media_decoder(columns: Mapping[str, str]) -> Callable[[bytes], dict[str, Any]]:
    """Return a decoder of the media of a row; one that cannot be read has none and is reported elsewhere."""
    fields: list[Any] = [(kind, Any, None) for kind in columns]
    decode = msgspec.json.Decoder(msgspec.defstruct("Media", fields, rename=dict(columns), gc=False)).decode

    def media(row: bytes) -> dict[str, Any]:
        try:
            return msgspec.structs.asdict(decode(row))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}

    return media


def rows_of(plan: RowPlan) -> Iterator[Row]:
    for block in plan.blocks:
        yield from read_block(plan, block)


def has_value(value: Any) -> bool:
    """Whether a value gives its column a type: null, [] and [null] do not."""
    return any(map(has_value, value)) if isinstance(value, list) else value is not None


def shares(num_rows: int, workers: int) -> Iterator[tuple[int, int]]:
    """Yield the rows [start, stop) of each worker, as `Dataset.shard` with `contiguous=True` cuts them."""
    workers = min(workers, num_rows)
    for index in range(workers):
        size, more = divmod(num_rows, workers)
        start = size * index + min(index, more)
        yield start, start + size + (index < more)


def first_late(flags: Flags, part_rows: int, workers: int | None) -> dict[str, int]:
    """Return for each kind the first row with media that comes in a share after a first part without any."""
    late = {}
    for kind, marks in flags.items():
        for start, stop in shares(len(marks), workers or 1):
            row = marks.find(1, start, stop)
            if row >= start + part_rows:
                late[kind] = row
                break
    return late


def late_problem(kind: str, sets: Sequence[tuple[RowPlan, Entry]], row: int, writing: Writing) -> Problem:
    """Return what is to be said of the row at which the trainer stops, counted over all sets."""
    index = 0
    while row >= sets[index][0].num_rows:
        row -= sets[index][0].num_rows
        index += 1
    file, line, *_ = next(islice(rows_of(sets[index][0]), row, None))
    whose = "of its worker " if (writing.workers or 1) > 1 else ""
    stops = "the trainer stops here" if writing.workers else "with one worker the trainer stops here"
    said = f"the first {kind} after {min(PART_ROWS, writing.part_rows):,} rows {whose}or more without any: {stops}"
    hint = "name a data set first that begins with images" if index else IMAGES_FIRST
    return Problem(f"{file}:{line}", said, hint, "error" if writing.workers else "warning")


def chance_problems(flags: Flags, part_rows: int, workers: int | None, where: str) -> list[Problem]:
    """Return a warning when rows in random order may well begin with a part without media."""
    problems = []
    for kind, marks in flags.items():
        rows, count = len(marks), marks.count(1)
        if not count or rows <= part_rows * (workers or 1):
            continue
        chance = min(1.0, (workers or 1) * (1 - count / rows) ** part_rows)
        if chance >= LIKELY:
            said = (
                f"shuffles the rows, and {count:,} of {rows:,} have {kind}: with a chance of {100 * chance:.0f} % the "
            )
            said += f"trainer stops, as {part_rows:,} rows without any come first"
            problems.append(Problem(where, said, "leave it out, or take more rows with images", "warning"))
    return problems
