"""Whether the data sets that a configuration names can be trained on: registered, readable, not empty, not shifted."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from trainkit.dataset.registry import REGISTRY, find_file, find_files, find_manifest, load_registry
from trainkit.datatypes import Problem
from trainkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

AGAIN = "run trainkit convert again"


def check_datasets(dataset_dir: Path, names: Iterable[str], key: str) -> list[Problem]:
    """Check that each named data set is registered, readable and not empty."""
    path = dataset_dir / REGISTRY
    if not path.exists():
        hint = "convert your data first: trainkit convert finetune.jsonl"
        return [Problem(key, f"{path}: no such file", hint)]
    try:
        entries = load_registry(dataset_dir)
    except InputError as error:
        return [Problem(key, error.message, error.hint)]
    return [problem for name in names for problem in check_dataset(dataset_dir, entries, name, key)]


def check_dataset(dataset_dir: Path, entries: Mapping[str, Any], name: str, key: str) -> list[Problem]:
    where = f"{key} {name}"
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=3, cutoff=0.5) or list(entries)[:10]
        return [Problem(where, f"not in {dataset_dir / REGISTRY}", f"there are: {', '.join(close) or 'none'}")]
    if find_file(dataset_dir, name) is None:
        return check_remote(entries[name], dataset_dir, where)
    files = find_files(dataset_dir, name)
    if problems := [problem for file in files for problem in check_file(file, where)]:
        return problems
    if not any(file.stat().st_size for file in files):
        return [Problem(where, "has no rows", "check the filters of trainkit convert")]
    try:
        manifest = find_manifest(dataset_dir, name)
    except InputError as error:
        return [Problem(where, error.message, AGAIN)]
    return check_edited(files[0], entries[name], manifest, where)


def check_edited(file: Path, entry: Any, manifest: Mapping[str, Any] | None, where: str) -> list[Problem]:
    """Check that the ranges of an entry still hold: they do not when lines were added to the file or taken out."""
    written = (manifest or {}).get("files", {}).get(file.name)
    if written is None or file.stat().st_size == written["bytes"]:
        return []
    rows = count_rows(file)
    if rows == written["rows"] or "split" not in entry:
        return [Problem(where, f"{file} was edited since the conversion: {rows} rows", level="note")]
    message = (
        f"{file} has {rows} rows, and {written['rows']} when it was written: the entry's ranges do not hold any more"
    )
    return [Problem(where, message, f"{AGAIN}, or train on the variant that holds all rows")]


def count_rows(file: Path) -> int:
    """Return the number of rows as the trainer counts them: no blank line, and the last one with or without its end."""
    with file.open("rb") as lines:
        return sum(not line.isspace() for line in lines)


def check_remote(entry: Any, dataset_dir: Path, where: str) -> list[Problem]:
    if isinstance(entry, dict) and any(key in entry for key in ("hf_hub_url", "ms_hub_url", "om_hub_url")):
        return [Problem(where, "comes from a hub and was not looked at", level="note")]
    folder = entry.get("script_url") if isinstance(entry, dict) else None
    if isinstance(folder, str) and not (dataset_dir / folder).is_dir():
        return [Problem(where, f"{dataset_dir / folder}: no such folder", "check script_url")]
    if isinstance(folder, str):
        return [Problem(where, "is a folder that trainkit did not write and was not looked at", level="note")]
    return [Problem(where, "names neither file_name, script_url nor a hub", "see the README, section Data")]


def check_file(path: Path, where: str) -> list[Problem]:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return [Problem(where, f"{path}: cannot be read: {error.strerror}", AGAIN)]
    return []
