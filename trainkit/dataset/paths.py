"""Whether what an entry of `dataset_info.json` points to is there and of a kind that the trainer reads."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Protocol

from trainkit.dataset.entry import SOURCES
from trainkit.dataset.reader import FILE_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trainkit.datatypes import Level, Problem

MOST_NAMED = 5


class Report(Protocol):
    """Makes a problem at the place of an entry."""

    def __call__(self, message: str, hint: str = "", level: Level = "error") -> Problem: ...


def check_source(values: dict[str, Any], problem: Report, dataset_dir: Path) -> Iterator[Problem]:
    """Yield what is wrong with where the rows of an entry are said to be."""
    keys = [key for key in SOURCES if key in values]
    if not keys:
        hint = f"it needs file_name, or one of {', '.join(key for key in SOURCES if key != 'file_name')}"
        yield problem("names no file: the trainer stops with KeyError: 'file_name'", hint)
        return
    key = keys[0]
    if len(keys) > 1:
        yield problem(f"{', '.join(keys[1:])}: not read, as {key} comes first", "keep one of them", "warning")
    if not isinstance(values[key], str):
        yield problem(f"{key} is not a string: the trainer stops on it")
    elif key == "file_name":
        yield from check_path(dataset_dir / values[key], problem)
        if unread := [name for name in ("subset", "folder") if name in values]:
            yield problem(f"{' and '.join(unread)}: not read for files", "name the files by file_name", "warning")
    elif key == "script_url":
        yield from check_script(dataset_dir / values[key], problem)
    else:
        yield problem(f"{key}: {values[key]} was not looked at", level="note")


def check_path(path: Path, problem: Report) -> Iterator[Problem]:
    """Yield what is wrong with a file, or with a folder whose files are all read."""
    if path.is_file():
        if path.suffix[1:] not in FILE_TYPES:
            yield problem(f"{path}: not a type that the trainer reads", f"it reads {', '.join(FILE_TYPES)}")
    elif path.is_dir():
        yield from check_folder(path, problem)
    else:
        yield problem(f"{path}: no such file or folder", nearest(path))


def nearest(path: Path) -> str:
    """Return a hint that names what is in the same folder under the closest name."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    close = difflib.get_close_matches(path.name, sorted(other.name for other in path.parent.iterdir()), n=1)
    return f"did you mean {close[0]}?" if close else ""


def check_folder(path: Path, problem: Report) -> Iterator[Problem]:
    entries = sorted(path.iterdir())
    if not entries:
        yield problem(f"{path}: the folder is empty: the trainer stops on it")
    if folders := [entry.name for entry in entries if entry.is_dir()]:
        yield problem(
            f"{path}: has folders in it: {listed(folders)}", "the trainer takes them for files; move them out"
        )
    files = [entry for entry in entries if not entry.is_dir()]
    if unknown := [entry.name for entry in files if entry.suffix[1:] not in FILE_TYPES]:
        hint = f"the trainer reads every file in it; it knows {', '.join(FILE_TYPES)}"
        yield problem(f"{path}: not a type that the trainer reads: {listed(unknown)}", hint)
    kinds = sorted({FILE_TYPES[entry.suffix[1:]] for entry in files if entry.suffix[1:] in FILE_TYPES})
    if len(kinds) > 1:
        yield problem(
            f"{path}: has files of {len(kinds)} types: {', '.join(kinds)}", "the trainer takes one type at a time"
        )


def check_script(path: Path, problem: Report) -> Iterator[Problem]:
    if not path.exists():
        yield problem(f"{path}: no such folder", nearest(path))
    elif path.suffix == ".py" or (path / f"{path.name}.py").is_file():
        yield problem(f"{path}: a loading script, which datasets 4 does not run any more", "save its rows as a file")
    else:
        yield problem(f"{path}: a folder of its own form, was not looked at", level="note")


def listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
