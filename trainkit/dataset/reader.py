"""The rows of a registry entry in the trainer's order, cut into blocks that can be read in parallel.

LLaMA-Factory reads a folder in the order of os.listdir, takes the ranges of `split` in the order in which they are
written, and then the first `max_samples` rows. Blank lines are not rows. A block holds the place of its first row, so
that each one is read on its own; memory holds one block.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import sys
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from trainkit.arrays import read_array
from trainkit.dataset.elements import NotAnArray, cut_elements, read_elements
from trainkit.dataset.registry import REGISTRY
from trainkit.dataset.splits import parse_split, resolve
from trainkit.datatypes import Problem
from trainkit.errors import InputError
from trainkit.lines import BLOCK_BYTES, BOM, READ_BUFFER, starts_array

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from trainkit.dataset.entry import Entry

Kind = Literal["lines", "elements", "array", "csv", "parquet"]
Ranges = tuple[tuple[int, int], ...]
Row = tuple[str, int, int, bytes | dict[str, Any]]

# What the trainer takes each ending for (llamafactory/extras/constants.py, FILEEXT2TYPE); it knows no other.
FILE_TYPES = {"arrow": "arrow", "csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet", "txt": "text"}


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of one file: `Block(0, "lines", 0, 4194812, 4194812, first_line=1, first_row=0, num_rows=760, ...)`.

    `start` and `stop` are bytes for lines and for elements of an array, numbers of row groups for parquet, and 0 for
    what is read whole: csv, and an array that is not valid. `size` is in bytes as stored. `first_row` counts over all
    files of the entry; `ranges` are the rows [start, stop) of the block that the entry takes.
    """

    file: int
    kind: Kind
    start: int
    stop: int
    size: int
    first_line: int
    first_row: int
    num_rows: int
    ranges: Ranges = ()


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Where the rows of an entry are: `num_rows` of the `total_rows` in its files are taken, some more than once."""

    files: tuple[Path, ...]
    blocks: tuple[Block, ...]
    num_rows: int
    total_rows: int
    problems: tuple[Problem, ...] = ()


def plan_rows(dataset_dir: Path, entry: Entry, max_samples: int | None = None) -> RowPlan:
    """Return where the rows are that the trainer takes of an entry; each file is read once to number them.

    Raises:
        InputError: a file that is missing, unreadable, of a type that the trainer does not know, or damaged.
    """
    where = f"{REGISTRY} {entry.name}"
    if entry.source != "file":
        return RowPlan(
            (), (), 0, 0, (Problem(where, f"{entry.path}: is not a file here and was not looked at", level="note"),)
        )
    files = tuple(list_files(dataset_dir / entry.path))
    kind = file_type(files[0])
    if kind in ("arrow", "text") or (kind == "parquet" and not has_pyarrow()):
        note = Problem(where, f"{entry.path}: rows of type {kind} were not looked at", level="note")
        return RowPlan(files, (), 0, 0, (note,))
    blocks = number_rows(files)
    total = blocks[-1].first_row + blocks[-1].num_rows if blocks else 0
    ranges, problems = wanted_ranges(entry, total, where)
    if entry.num_samples is None and max_samples is not None:
        ranges = first_rows(ranges, max_samples)
    chosen = tuple(take_ranges(blocks, ranges))
    return RowPlan(files, chosen, sum(stop - start for start, stop in ranges), total, tuple(problems))


def list_files(path: Path) -> list[Path]:
    """Return the files of an entry in the order in which the trainer reads them: that of os.listdir, unsorted."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    # Path.iterdir promises no order; the trainer's own call is the one to make
    files = [path / name for name in os.listdir(path)]  # noqa: PTH208
    if not files:
        raise InputError(f"{path}: the folder is empty")
    return files


def file_type(path: Path) -> str:
    kind = FILE_TYPES.get(path.suffix[1:])
    if kind is None or path.is_dir():
        raise InputError(f"{path}: not a type that the trainer reads", f"it reads {', '.join(FILE_TYPES)}")
    return kind


def has_pyarrow() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def wanted_ranges(entry: Entry, total: int, where: str) -> tuple[list[tuple[int, int]], list[Problem]]:
    """Return the row ranges that `split` names, in its order, and what is to be said about them."""
    problems = []
    try:
        pieces = parse_split(entry.split)
        ranges = [resolve(piece, total) for piece in pieces]
    except ValueError as error:
        return [], [Problem(where, f"split: {error}", "the trainer stops on it")]
    beyond = [piece.text for piece in pieces if not piece.percent and max(piece.start or 0, piece.stop or 0) > total]
    if beyond:
        message = f"split: {beyond[0]} goes beyond the {total} rows there are"
        more = f", and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        problems.append(Problem(where, message + more, "the trainer takes what is there", level="warning"))
    if not any(start < stop for start, stop in ranges):
        problems.append(
            Problem(where, f"takes none of the {total} rows of {entry.path}", "the trainer stops without rows")
        )
    if entry.num_samples is not None:
        message = f"num_samples: the trainer draws {entry.num_samples} rows at random; all are looked at"
        problems.append(Problem(where, message, level="note"))
    return ranges, problems


def first_rows(ranges: Iterable[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    kept = []
    for start, stop in ranges:
        kept.append((start, min(stop, start + count)))
        count -= kept[-1][1] - start
    return kept


def take_ranges(blocks: list[Block], ranges: Iterable[tuple[int, int]]) -> Iterator[Block]:
    """Yield the blocks with the rows that are wanted of them, in the order of the ranges."""
    firsts = [block.first_row for block in blocks]
    current, taken = -1, list[tuple[int, int]]()
    for start, stop in ranges:
        index = bisect_right(firsts, start) - 1
        while start < stop:
            end = min(stop, firsts[index] + blocks[index].num_rows)
            if index != current or start < taken[-1][1]:
                if taken:
                    yield replace(blocks[current], ranges=tuple(taken))
                current, taken = index, []
            taken.append((start, end))
            start, index = end, index + 1
    if taken:
        yield replace(blocks[current], ranges=tuple(taken))


def number_rows(files: Iterable[Path]) -> list[Block]:
    """Return all blocks of the files that hold rows, numbered."""
    blocks = [block for index, path in enumerate(files) for block in cut_file(path, index) if block.num_rows]
    firsts = accumulate((block.num_rows for block in blocks), initial=0)
    return [replace(block, first_row=first) for block, first in zip(blocks, firsts, strict=False)]


def cut_file(path: Path, index: int) -> Iterator[Block]:
    kind = file_type(path)
    try:
        if kind == "parquet":
            yield from cut_parquet(path, index)
        elif kind == "csv":
            yield Block(index, "csv", 0, 0, path.stat().st_size, 1, 0, sum(1 for _ in read_csv(path)))
        else:
            yield from cut_json(path, index)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def cut_json(path: Path, index: int) -> Iterator[Block]:
    with path.open("rb", buffering=READ_BUFFER) as file:
        if starts_array(file.read(4096)):
            yield from cut_array(path, index)
            return
        file.seek(0)
        start, line = 0, 1
        while data := file.read(BLOCK_BYTES):
            data += file.readline()
            lines = data.split(b"\n")  # faster than counting the line ends
            num_rows = len(lines) - lines.count(b"") - sum(map(bytes.isspace, lines))
            yield Block(index, "lines", start, start + len(data), len(data), line, 0, num_rows)
            start, line = start + len(data), line + len(lines) - 1


def cut_array(path: Path, index: int) -> Iterator[Block]:
    with path.open("rb", buffering=READ_BUFFER) as file:
        try:
            pieces = list(cut_elements(file))
        except NotAnArray:
            yield Block(index, "array", 0, 0, path.stat().st_size, 1, 0, sum(1 for _ in read_whole_array(path)))
            return
    for piece in pieces:
        yield Block(index, "elements", piece.start, piece.stop, piece.stop - piece.start, piece.line, 0, piece.num_rows)


def cut_parquet(path: Path, index: int) -> Iterator[Block]:
    metadata = open_parquet(path).metadata
    first = 1
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group)
        yield Block(index, "parquet", group, group + 1, rows.total_byte_size, first, 0, rows.num_rows)
        first += rows.num_rows


def open_parquet(path: Path) -> Any:
    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path}: is not parquet: {error}") from None


def read_block(plan: RowPlan, block: Block) -> Iterator[Row]:
    """Yield the wanted rows of a block: file, line (for parquet the row of the file, from 1), number of the row, row.

    A row is the bytes of a JSON value, not yet checked, or the mapping of a table's row.

    Raises:
        InputError: the file has changed since it was planned, or is damaged.
    """
    path = plan.files[block.file]
    name = str(path)
    ranges = iter(block.ranges)
    start, stop = next(ranges)
    for number, (line, row) in enumerate(read_rows(path, block), block.first_row):
        if number >= stop:
            start, stop = next(ranges, (sys.maxsize, sys.maxsize))
        if start <= number:
            yield name, line, number, row
        elif start == sys.maxsize:
            return


def read_rows(path: Path, block: Block) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
    if block.kind == "lines":
        return read_lines(read_bytes(path, block), block.first_line)
    if block.kind == "elements":
        return read_elements(read_bytes(path, block), block.first_line)
    if block.kind == "array":
        return read_whole_array(path)
    return read_csv(path) if block.kind == "csv" else read_parquet(path, block)


def read_bytes(path: Path, block: Block) -> bytes:
    with path.open("rb") as file:
        file.seek(block.start)
        data = file.read(block.stop - block.start)
    return data.removeprefix(BOM) if block.start == 0 else data


def read_lines(data: bytes, first_line: int) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(data.split(b"\n"), first_line):
        if line and not line.isspace():
            yield number, line


def read_whole_array(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb", buffering=READ_BUFFER) as file:
        yield from read_array(file, str(path))


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a table; an empty field is None, as the trainer reads it."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        try:
            for row in table:
                yield table.line_num, {key: value or None for key, value in row.items() if key is not None}
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}:{table.line_num + 1}: cannot be read: {error}") from None


def read_parquet(path: Path, block: Block) -> Iterator[tuple[int, dict[str, Any]]]:
    number = block.first_line
    for batch in open_parquet(path).iter_batches(batch_size=1000, row_groups=[block.start]):
        for row in batch.to_pylist():
            yield number, row
            number += 1
