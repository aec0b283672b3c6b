"""Looks at data that are kept: found again by the content of the files and by everything that shapes a look."""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import msgspec
import xxhash

from trainkit.dataset.tally import Place, Scores, Tally
from trainkit.files import write_bytes_atomic
from trainkit.workflow.prepare import cache_folder

if TYPE_CHECKING:
    from pathlib import Path

    from trainkit.dataset.look import Lens
    from trainkit.dataset.reader import RowPlan

READ_BYTES = 1 << 20
MOST_KEPT = 40


def look_key(plan: RowPlan, lens: Lens, version: str) -> str:
    """Return a digest of the files' content, the rows chosen, and everything that shapes a look."""
    digest = xxhash.xxh3_128()
    shape = (version, plan, lens.entry, str(lens.media_dir), lens.media, lens.flags, lens.packing)
    digest.update(repr(shape).encode())
    if lens.form is not None:
        digest.update(msgspec.json.encode(lens.form))
    for file in plan.files:
        digest.update(file_digest(file))
    return digest.hexdigest()


def file_digest(file: Path) -> bytes:
    """Return the digest of a file's content."""
    digest = xxhash.xxh3_128()
    with file.open("rb", buffering=0) as content:
        while chunk := content.read(READ_BYTES):
            digest.update(chunk)
    return digest.digest()


def find_tally(key: str) -> Tally | None:
    """Return what a look with this key found, None when there was none or it cannot be read."""
    try:
        return tally_from(msgspec.msgpack.decode((folder() / f"{key}.msgpack").read_bytes(), strict=False))
    except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
        return None  # a damaged file is looked at anew and overwritten


def keep_tally(key: str, tally: Tally) -> None:
    """Keep a tally, and let go of the oldest beyond `MOST_KEPT`."""
    with contextlib.suppress(OSError):  # what cannot be kept is looked at again
        write_bytes_atomic(folder() / f"{key}.msgpack", msgspec.msgpack.encode(plain(tally)))
        kept = sorted(folder().glob("*.msgpack"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-MOST_KEPT]:
            path.unlink(missing_ok=True)


def folder() -> Path:
    return cache_folder() / "looks"


def plain(tally: Tally) -> dict[str, Any]:
    """Return a tally as values that MessagePack knows."""
    values: dict[str, Any] = {}
    for part in fields(tally):
        value = getattr(tally, part.name)
        values[part.name] = value.tobytes() if isinstance(value, array) else value
    values["scores"] = [[*key, scores] for key, scores in tally.scores.items()]
    return values


def tally_from(values: dict[str, Any]) -> Tally:
    """Return the tally that `plain` took apart."""
    tally = Tally()
    for part in fields(tally):
        value, empty = values[part.name], getattr(tally, part.name)
        if isinstance(empty, array):
            empty.frombytes(value)
        elif isinstance(empty, Counter):
            empty.update(value)
        elif isinstance(empty, (int, str)):
            setattr(tally, part.name, value)
    tally.places = {what: [Place(**place) for place in places] for what, places in values["places"].items()}
    tally.scores = {(kind, name): scores_from(scores) for kind, name, scores in values["scores"]}
    return tally


def scores_from(values: dict[str, Any]) -> Scores:
    return Scores(**(values | {"bins": Counter(values["bins"])}))
