"""A data set folder: its rows and its manifest; published all at once.

    data/
      dataset_info.json                 the registry: each variant by name
      rejected.jsonl                    rows that were left out, with file, line and reason
      reward_model-5f0c2d1e/            one conversion; the name ends in a digest of the content
        manifest.json                   counts, split, metadata form
        train.jsonl  eval.jsonl         each row once

A new conversion is a new folder; it takes the place of the old at the moment when the registry is renamed.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import secrets
import shutil
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import xxhash

from trainkit.dataset.registry import (
    COLUMNS,
    IMAGES,
    MANIFEST,
    REGISTRY,
    check_free,
    entry_for,
    load_registry,
    replace_entries,
)
from trainkit.dataset.select import EVAL, TRAIN, merge_ranges
from trainkit.datatypes import Part
from trainkit.files import sync_folder, temporary_beside, write_json_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from trainkit.dataset.select import Variant
    from trainkit.datatypes import PartKey, Reject

STAGING = ".trainkit-staging"
REJECTED = "rejected.jsonl"
FLUSH_SECONDS = 0.2


@contextmanager
def staging_folder(dataset_dir: Path, *, dry_run: bool) -> Iterator[Path | None]:
    """Yield an empty folder to write into, None for a dry run; it is removed on the way out.

    The caller holds the lock of `dataset_dir`, so other folders of that kind are what a killed process left, and so are
    the files on their way to the registry and to the rejected rows. The name is new each time: a worker that outlives
    its killed parent by a moment must not write into this folder.
    """
    if dry_run:
        yield None
        return
    folder = dataset_dir / f"{STAGING}-{secrets.token_hex(4)}"
    for left in dataset_dir.glob(f"{STAGING}-*"):
        shutil.rmtree(left, ignore_errors=True)
    for name in (REGISTRY, REJECTED):
        for path in dataset_dir.glob(f".{name}.*.tmp"):
            path.unlink()
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def flushing(folder: Path | None) -> Iterator[None]:
    """Bring the files of the folder to the disk from time to time, so that little is left to wait for at the end."""
    if folder is None:
        yield
        return
    done = threading.Event()
    failures: list[OSError] = []

    def flush() -> None:
        try:
            while not done.wait(FLUSH_SECONDS):
                flush_folder(folder)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]  # the system tells of a page that could not be written once only: not at the last flush


def side_file(side: str) -> str:
    """Return the name of the file that holds the rows of a side."""
    return f"{side}.jsonl"


def publish(
    staging: Path,
    dataset_dir: Path,
    base: str,
    variants: list[Variant],
    manifest: dict[str, Any],
    digest: str,
    columns: Mapping[str, str] = COLUMNS | IMAGES,
) -> Path:
    """Make the staged parts the data set `base`; return its folder.

    `columns` are what the trainer reads of a row, by its own names, the images where there are some.

    Until the registry is renamed the old data set is whole and current, afterwards the new one is.

    Raises:
        InputError: the registry has an entry of the same name that is somebody else's.
    """
    names = [variant.name for variant in variants]
    check_free(load_registry(dataset_dir), base, names, dataset_dir)
    write_json_atomic(staging / MANIFEST, manifest)
    flush_folder(staging)
    try:
        folder = settle_folder(staging, dataset_dir, base, digest)
        sync_folder(dataset_dir)
        replace_entries(dataset_dir, base, entries_for(folder.name, variants, manifest, columns))
    finally:
        remove_others(dataset_dir, base)
    return folder


def settle_folder(staging: Path, dataset_dir: Path, base: str, digest: str) -> Path:
    """Rename the staged folder to a name that its content gives; an equal folder that is there already is kept."""
    content = xxhash.xxh3_64(digest.encode())
    content.update((staging / MANIFEST).read_bytes())
    while True:
        folder = dataset_dir / f"{base}-{content.hexdigest()[:8]}"
        if not folder.exists():
            staging.rename(folder)
            return folder
        if same_content(staging, folder):
            return folder
        content.update(b"edited")  # somebody changed that folder: it stays until the registry has moved on


def same_content(one: Path, other: Path) -> bool:
    """Whether two flat folders hold the same files."""
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        return False
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)


def flush_folder(folder: Path) -> None:
    """Bring every file of the folder to the disk."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)


def entries_for(
    folder: str, variants: list[Variant], manifest: dict[str, Any], columns: Mapping[str, str]
) -> dict[str, Any]:
    """Return the registry entries of the variants; one that holds all rows of its side needs no ranges."""
    entries = {}
    for variant in variants:
        file = side_file(variant.side)
        written = manifest["files"][file]
        ranges = () if variant.num_rows == written["rows"] else variant.ranges
        images = written.get("rows_with_images", 0) > 0
        entries[variant.name] = entry_for(f"{folder}/{file}", ranges, images=images, columns=columns)
    return entries


def remove_others(dataset_dir: Path, base: str) -> None:
    """Remove the folders of conversions of `base` that the registry does not name."""
    named = (entry.get("file_name") for entry in load_registry(dataset_dir).values() if isinstance(entry, dict))
    kept = {str(name).partition("/")[0] for name in named}
    pattern = re.compile(rf"{re.escape(base)}-[0-9a-f]{{8}}")
    for path in dataset_dir.iterdir():
        if path.name not in kept and pattern.fullmatch(path.name) and path.is_dir():
            shutil.rmtree(path)


class RejectFile:
    """Collects the rows that are left out; nothing is made until there is one.

    `{"file": "finetune.jsonl", "line": 17, "reason": "empty turn", "detail": "turn 2 (gpt) is empty", "row": "{...}"}`
    """

    def __init__(self, dataset_dir: Path | None) -> None:
        self.path = dataset_dir / REJECTED if dataset_dir else None
        self.temporary = temporary_beside(self.path) if self.path else None
        self.file: IO[str] | None = None

    def add(self, reject: Reject) -> None:
        """Write one row."""
        if self.temporary is None:
            return
        if self.file is None:
            self.temporary.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.temporary.open("w", encoding="utf-8", errors="backslashreplace")
        row = {
            "file": reject.file,
            "line": reject.line,
            "reason": reject.reason,
            "detail": reject.detail,
            "row": reject.row.decode("utf-8", "backslashreplace").rstrip("\r\n"),
        }
        self.file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def mark(self) -> int:
        """Return a place to which `cut` can go back."""
        return self.file.tell() if self.file is not None else 0

    def cut(self, mark: int) -> None:
        """Take back the rows that were written since `mark`."""
        if self.file is not None:
            self.file.seek(mark)
            self.file.truncate()

    def publish(self) -> Path | None:
        """Put the file in its place and return it; without a rejected row, remove the one of an earlier conversion."""
        if self.path is None or self.temporary is None:
            return None
        if self.file is None or self.file.tell() == 0:
            self.path.unlink(missing_ok=True)
            return None
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.temporary.replace(self.path)
        return self.path

    def discard(self) -> None:
        """Remove what was collected, unless it was published."""
        if self.file is not None and self.temporary is not None:
            self.file.close()
            self.temporary.unlink(missing_ok=True)


def fold_eval(parts: list[Part], num_rows: int, folder: Path | None) -> list[Part]:
    """Return the parts with the eval side put behind the train side, for a split that came to nothing.

    `num_rows` is how many rows the train side has.
    """
    if folder is not None and (folder / side_file(EVAL)).exists():
        append_file(folder / side_file(EVAL), folder / side_file(TRAIN))
    folded: dict[PartKey, tuple[tuple[int, int], ...]] = {}
    for part in parts:
        shift = num_rows if part.key.side == EVAL else 0
        key = part.key._replace(side=TRAIN)
        shifted = tuple((start + shift, stop + shift) for start, stop in part.ranges)
        folded[key] = merge_ranges((*folded.get(key, ()), *shifted))
    return [Part(key, ranges) for key, ranges in folded.items()]


def append_file(source: Path, target: Path) -> None:
    if not target.exists():
        source.rename(target)
        return
    with source.open("rb") as reader, target.open("ab") as writer:
        shutil.copyfileobj(reader, writer)
    source.unlink()
