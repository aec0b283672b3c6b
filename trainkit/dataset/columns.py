"""Whether the columns that an entry names are in the rows at all.

The trainer makes a table of the rows, so a column that only some rows lack is null in those. Without any row that has
it there is no such column, and the converter stops with KeyError. The `datasets` library takes the columns of a JSONL
file from its first 10 MB and stops when a later row brings a new one, so nothing behind them can help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from trainkit.dataset.reader import read_block
from trainkit.dataset.registry import REGISTRY
from trainkit.datatypes import Problem

if TYPE_CHECKING:
    from trainkit.dataset.entry import Entry
    from trainkit.dataset.reader import RowPlan

FIRST_BYTES = 10 << 20  # chunksize of JsonConfig in datasets 4.0.0 (packaged_modules/json/json.py)
decode_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


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


def check_columns(plan: RowPlan, entry: Entry) -> list[Problem]:
    """Check that each column that the trainer needs is in some row of those that decide on the columns."""
    missing = set(needed_columns(entry))
    seen: set[str] = set()
    for block in plan.blocks:
        if block.file != plan.blocks[0].file or (block.kind == "lines" and block.start >= FIRST_BYTES):
            break
        for _, _, _, row in read_block(plan, block):
            seen |= keys_of(row)
            if not missing - seen:
                return []
    if not seen:
        return []
    where = f"{REGISTRY} {entry.name}"
    hint = f"there are {', '.join(sorted(seen))}: correct columns, or add it to the first row, null at least"
    return [
        Problem(where, f"no row has the column {name}: the trainer stops with KeyError", hint)
        for name in needed_columns(entry)
        if name in missing - seen
    ]


def keys_of(row: bytes | dict[str, object]) -> set[str]:
    """Return the columns of a row; a row that is no object has none, and is reported as such elsewhere."""
    if not isinstance(row, bytes):
        return set(row)
    try:
        return set(decode_keys(row))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return set()
