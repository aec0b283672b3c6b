"""Whether the answers of a data set hold think blocks, from a look at its first rows."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

from trainkit.dataset.entry import entry_of
from trainkit.dataset.formats import ANSWERS, CONVERTERS
from trainkit.dataset.reader import cut_file, file_type, list_files, read_rows
from trainkit.dataset.registry import load_registry
from trainkit.dataset.rows import load_row
from trainkit.errors import InputError, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from trainkit.dataset.entry import Entry

NUM_ROWS = 200
BLOCK = re.compile(r"<think>.*?</think>", re.DOTALL)


def has_thoughts(dataset_dir: Path, names: Iterable[str]) -> bool | None:
    """Return whether an answer in the first rows of the data sets' first files holds a whole think block.

    None means that no answer could be looked at; what is wrong with the data is for others to say.
    """
    try:
        entries = load_registry(dataset_dir)
        sets = [entry_of(name, entries[name]) for name in names if name in entries]
        found = [bool(BLOCK.search(answer)) for entry in sets for answer in first_answers(dataset_dir, entry)]
    except InputError:
        return None
    return any(found) if found else None


def first_answers(dataset_dir: Path, entry: Entry) -> Iterator[str]:
    """Yield the answers in the first rows of a data set; rows that the trainer would not take are passed over."""
    if entry.source != "file" or entry.formatting not in CONVERTERS:
        return
    path = min(list_files(dataset_dir / entry.path))
    if file_type(path) in ("arrow", "text"):
        return
    for block in islice(cut_file(path, 0), 1):
        for _, row in islice(read_rows(path, block), NUM_ROWS):
            try:
                aligned = CONVERTERS[entry.formatting](load_row(row) if isinstance(row, bytes) else row, entry)
            except Rejected:
                continue
            for role, content, _ in (*aligned.prompt, *aligned.response):
                if role in ANSWERS and isinstance(content, str):
                    yield content
