"""The inputs of `trainkit convert`: JSONL, JSON arrays, what is compressed or piped in, and Parquet.

An input is opened once, its first rows are looked at to see what it holds, and the same rows come again when it is
read: a pipe cannot be opened twice.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from trainkit.errors import EnvironmentProblem, InputError, Rejected
from trainkit.lines import Chunk, open_sources, plan_blocks, read_block, read_chunks
from trainkit.sources.conversations import form_of, load_row, recognise
from trainkit.sources.pairs import LABELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from trainkit.lines import Block, Source

    Unit = Block | Chunk

EVALUATIONS, CONVERSATIONS, PAIRS, LABELLED = "evaluations", "conversations", "pairs", "labels"
HEAD_ROWS = 100
PARQUET_MARK = b"PAR1"
PARQUET_ROWS = 1000
WHY = {
    PAIRS: "rows with chosen and rejected",
    LABELLED: "rows with a kto_tag, or with a label that is true or false",
    EVALUATIONS: "conversations whose metadata has an evaluation_type",
}

encode_json = msgspec.json.Encoder(enc_hook=str).encode


@dataclass(frozen=True, slots=True)
class Input:
    """One input: its first rows, and all of it in units of about 4 MiB that can be read once."""

    source: Source
    head: list[bytes]
    units: Iterator[Unit]


class Kind(NamedTuple):
    """What an input holds, and why it was taken for that: `Kind("pairs", "rows with chosen and rejected")`."""

    name: str
    why: str


def open_inputs(paths: Iterable[Path]) -> list[Input]:
    """Return the inputs; `-` is standard input.

    Raises:
        InputError: a file that cannot be read, or that has no row.
        EnvironmentProblem: Parquet without pyarrow.
    """
    return [open_input(source) for source in open_sources(paths)]


def open_input(source: Source) -> Input:
    units: Iterator[Unit]
    if source.whole or is_parquet(source):
        chunks = read_chunks(source) if source.whole else read_parquet(source)
        first = next(chunks, None)
        rows = [record for _, record in first.records] if first else []
        units = chain([first] if first else [], chunks)
    else:
        blocks = plan_blocks([source])
        rows, units = read_block(source, blocks[0]), iter(blocks)
    head = [row for row in rows if row and not row.isspace()][:HEAD_ROWS]
    if not head:
        raise InputError(f"{source.name}: there is no row in it", "nothing was published")
    return Input(source, head, units)


def is_parquet(source: Source) -> bool:
    """Whether a source is a Parquet file, by its first bytes."""
    if source.path is None:
        return False
    with source.path.open("rb") as file:
        return file.read(len(PARQUET_MARK)) == PARQUET_MARK


def read_parquet(source: Source) -> Iterator[Chunk]:
    """Yield the rows of a Parquet file as JSON, numbered from 1.

    A null in a struct is left out: a column of structs has every field in every row, also those that a row never had,
    such as the arguments of other tools.

    Raises:
        EnvironmentProblem: pyarrow is not installed.
        InputError: the file is damaged.
    """
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        hint = "pip install pyarrow; the trainer brings it along, so its environment has it"
        raise EnvironmentProblem(f"{source.name}: reading Parquet needs pyarrow", hint) from None
    done = 0
    try:
        with parquet.ParquetFile(source.path) as file:
            total = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                rows = [encode_json(without_nulls(row)) for row in batch.to_pylist()]
                records = list(enumerate(rows, done + 1))
                done += len(rows)
                yield Chunk(records, (source.size or 0) * done // total)
    except (ValueError, NotImplementedError, OSError) as error:
        raise InputError(f"{source.name}: cannot be read as Parquet: {error}", "write it again") from None


def without_nulls(value: Any) -> Any:
    """Return a value without the fields of its objects that are null."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def find_kind(inputs: Sequence[Input]) -> Kind:
    """Return what all the inputs hold, by their first rows.

    Raises:
        InputError: an input that holds none of it or several kinds, or inputs that hold different ones.
    """
    kinds = {one.source.name: kind_of_rows(one) for one in inputs}
    names = dict.fromkeys(kind.name for kind in kinds.values())
    if len(names) > 1:
        found = "; ".join(f"{name}: {kind.name}" for name, kind in kinds.items())
        raise InputError(f"the inputs are of several kinds: {found}", "convert each kind by itself")
    return Kind(next(iter(names)), "; ".join(dict.fromkeys(kind.why for kind in kinds.values())))


def kind_of_rows(one: Input) -> Kind:
    first: dict[str, int] = {}
    for number, row in enumerate(one.head, 1):
        if name := kind_of(row):
            first.setdefault(name, number)
    if len(first) > 1:
        found = "; ".join(f"row {number}: {name}" for name, number in first.items())
        raise InputError(f"{one.source.name}: the rows are of several kinds: {found}", "name one with --kind")
    name = next(iter(first), CONVERSATIONS)
    return Kind(name, WHY[name] if name in WHY else recognise(one.head).why)


def kind_of(line: bytes) -> str:
    """Return the kind of one row, nothing when it is none; pairs and labels may have a conversation too."""
    try:
        row = load_row(line)
    except Rejected:
        return ""
    if row.get("chosen") and row.get("rejected"):
        return PAIRS
    if row.get("kto_tag") is not None or any(type(row.get(name)) is bool for name in LABELS):
        return LABELLED
    if not form_of(line):
        return ""
    metadata = row.get("metadata")
    is_evaluation = isinstance(metadata, dict) and metadata.get("evaluation_type") is not None
    return EVALUATIONS if is_evaluation else CONVERSATIONS
