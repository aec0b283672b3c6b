"""Whether the columns that an entry names are in the rows at all, and in those that decide on the trainer's table.

A column that only some rows lack is null in those. Without any row that has it there is no such column, and the
converter stops with KeyError. The `datasets` library takes the columns of a JSONL file and their types from its first
10 MB, whatever rows `split` names, and stops when a later row brings a new column, or an image into a column that was
empty until then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from trainkit.dataset.mediarows import IMAGES_FIRST, UNKNOWN, check_media_rows, has_value, media_columns
from trainkit.dataset.reader import file_type, read_block
from trainkit.dataset.registry import REGISTRY
from trainkit.datatypes import Problem
from trainkit.lines import BOM, READ_BUFFER, starts_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from trainkit.dataset.entry import Entry
    from trainkit.dataset.mediarows import Writing
    from trainkit.dataset.reader import RowPlan

FIRST_BYTES = 10 << 20  # chunksize of JsonConfig in datasets 4.0.0 (packaged_modules/json/json.py)
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
decode_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
decode_json = msgspec.json.Decoder().decode


def needed_columns(entry: Entry) -> tuple[str, ...]:
    """Return the columns that the converter asks for by name (data/converter.py).

    In the openai format system and tools are not among them: it takes them only if they are there.
    """
    names = [entry.images, entry.videos, entry.audios, entry.kto_tag]
    if entry.ranking:
        names += [entry.chosen, entry.rejected]
    if entry.formatting == "alpaca":
        names += [entry.prompt, entry.query, entry.history]
        names += [] if entry.ranking or entry.kto_tag else [entry.response]
    else:
        names.append(entry.messages)
    if entry.formatting != "openai":
        names += [entry.system, entry.tools]
    return tuple(dict.fromkeys(name for name in names if name))


def check_columns(plan: RowPlan, entry: Entry, writing: Writing = UNKNOWN) -> list[Problem]:
    """Check that each column that the trainer needs is in the rows that decide on it, and that images come in time.

    `writing` is how the trainer writes its tables, as far as it is known.
    """
    needed = needed_columns(entry)
    media = set(media_columns(entry).values())
    typed = media if plan.blocks and is_lines(plan.files[0]) else set[str]()  # an array is typed as a whole
    seen, filled = set[str](), set[str]()
    for row in first_rows(plan):
        values = values_of(row)
        seen |= values.keys()
        filled |= {name for name in typed - filled if name in values and has_value(value_of(values[name]))}
        if seen.issuperset(needed) and filled == typed:
            break
    if not seen:
        return []
    missing = [name for name in needed if name not in seen]
    late = find_late(plan, missing, sorted(typed & seen - filled))
    problems = [late_problem(name, name in missing, late[name], plan, media) for name in needed if name in late]
    problems += [missing_problem(name, seen, entry) for name in missing if name not in late]
    return problems or check_media_rows(plan, entry, writing)


def missing_problem(name: str, seen: Iterable[str], entry: Entry) -> Problem:
    hint = f"there are {', '.join(sorted(seen))}: correct columns, or add it to the first row, null at least"
    return Problem(f"{REGISTRY} {entry.name}", f"no row has the column {name}: the trainer stops with KeyError", hint)


def late_problem(name: str, missing: bool, place: tuple[Path, int], plan: RowPlan, media: Iterable[str]) -> Problem:
    """Return what is wrong with the first row that does not fit."""
    what, error = ("is not", "DatasetGenerationCastError") if missing else ("is empty", "DatasetGenerationError")
    said = f"{name} {what} in the first 10 MB of {plan.files[0].name}, which decide on its type: the trainer stops here"
    hint = IMAGES_FIRST if name in media else "put a row that has it first"
    path, line = place
    return Problem(f"{path}:{line}", f"{said} with {error}", hint)


def first_rows(plan: RowPlan) -> Iterator[bytes | dict[str, Any]]:
    """Yield the rows that decide on the columns."""
    if plan.blocks and is_lines(plan.files[0]):
        for start, _, row in read_lines(plan.files[0]):
            if start > FIRST_BYTES:
                return
            yield row
        return
    for block in plan.blocks:
        if block.file != plan.blocks[0].file:
            break
        yield from (row for *_, row in read_block(plan, block))


def find_late(plan: RowPlan, missing: list[str], empty: list[str]) -> dict[str, tuple[Path, int]]:
    """Return the file and line of the first row that has a missing column, or something in an empty one."""
    late: dict[str, tuple[Path, int]] = {}
    if not missing and not empty:
        return late
    decode = decoder_of(missing + empty)
    for path, line, row in later_rows(plan):
        try:
            values = decode(row)
        except UNREADABLE:
            continue
        for number, name in enumerate(missing + empty):
            value = getattr(values, f"column_{number}")
            if value is not msgspec.UNSET and name not in late and (name in missing or has_value(value)):
                late[name] = (path, line)
        if len(late) == len(missing) + len(empty):
            break
    return late


def later_rows(plan: RowPlan) -> Iterator[tuple[Path, int, bytes]]:
    """Yield the rows of JSONL that come after those that decide: file, line, row."""
    for number, path in enumerate(plan.files):
        if is_lines(path):
            yield from ((path, line, row) for start, line, row in read_lines(path) if number or start > FIRST_BYTES)


def is_lines(path: Path) -> bool:
    """Whether a file is JSONL, and no JSON array."""
    if file_type(path) != "json":
        return False
    with path.open("rb") as file:
        return not starts_array(file.read(4096))


def read_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield the rows of a JSONL file: where each starts in bytes, its line, the row."""
    start = 0
    with path.open("rb", buffering=READ_BUFFER) as file:
        for line, row in enumerate(file, 1):
            if not row.isspace():
                yield start, line, row if start else row.removeprefix(BOM)
            start += len(row)


def decoder_of(names: list[str]) -> Callable[[bytes], Any]:
    """Return a decoder for some columns: `column_0`, `column_1`, ..., UNSET where a row lacks it."""
    fields: list[Any] = [(f"column_{number}", Any, msgspec.UNSET) for number in range(len(names))]
    rename = {f"column_{number}": name for number, name in enumerate(names)}
    return msgspec.json.Decoder(msgspec.defstruct("Columns", fields, rename=rename, gc=False)).decode


def values_of(row: bytes | dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a row; a row that is no object has none, and is reported as such elsewhere."""
    if not isinstance(row, bytes):
        return row
    try:
        return decode_keys(row)
    except UNREADABLE:
        return {}


def value_of(value: Any) -> Any:
    return decode_json(value) if isinstance(value, msgspec.Raw) else value
