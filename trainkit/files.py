"""Writing without leaving halves behind, and the locks and paths that go with it.

Every data file of trainkit is written beside its place, flushed to the disk and renamed, so that a reader sees the old
file or the new one and never a part, whenever the process is killed.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainkit.errors import InputError, TrainkitError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable (a no-op where folders cannot be opened)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """Return a fresh hidden name next to `path`, on the same file system, for writing before a rename."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process left on its way to a file of `folder`, whose lock the caller holds."""
    for path in folder.glob(".*.????????.tmp"):
        path.unlink(missing_ok=True)


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to the disk and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` as UTF-8, all or nothing."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with readable non-ASCII text, all or nothing."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def load_json(path: Path) -> Any:
    """Return the JSON value in `path`.

    Raises:
        InputError: the file is missing, not UTF-8, or not JSON; the message names file, line and column.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` against other trainkit processes.

    Raises:
        TrainkitError: another process holds it for longer than ten seconds.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".trainkit.lock", timeout=10):
            yield
    except Timeout:
        raise TrainkitError(
            f"{folder}: another trainkit process is writing here", "wait for it, or choose another folder"
        ) from None
