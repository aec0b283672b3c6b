"""Rows on their way into a data set's files, those with images first.

Arrow types a column by the first rows of a file, and makes of `"images": []` a list of nothing. So the rows of a side
go into two files, and the one without images is put behind the other at the end.
"""

from __future__ import annotations

from collections import Counter
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import xxhash

from trainkit.dataset.select import EVAL, TRAIN, Variant
from trainkit.dataset.write import append_file, side_file

if TYPE_CHECKING:
    from pathlib import Path

NO_IMAGES = b'"images":[],'  # only ever a key: a quote within a text is escaped


class Lane(NamedTuple):
    """The rows of a side with images, or those without."""

    side: str
    with_images: bool

    @property
    def file_name(self) -> str:
        """The file that holds them; rows with images are there from the start where all rows of the side will be."""
        return side_file(self.side) if self.with_images else f"{self.side}-text.jsonl"


LANES = tuple(Lane(side, with_images) for side in (TRAIN, EVAL) for with_images in (True, False))


class Mark(NamedTuple):
    """What there was at some moment."""

    num_rows: Counter[Lane]
    num_bytes: Counter[Lane]
    digest: xxhash.xxh3_64


class Stage:
    """Collects rows in the files of a folder; without a folder it only counts. To be closed before `settle`.

    Attributes:
        num_rows: how many rows each lane has.
        digest: of all rows in the order in which they came.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.files: dict[Lane, IO[bytes]] = {}
        self.num_rows: Counter[Lane] = Counter()
        self.num_bytes: Counter[Lane] = Counter()
        self.digest = xxhash.xxh3_64()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()

    def add(self, side: str, row: bytes) -> None:
        """Take a row: a line of JSON as `trajectories.to_example` writes it."""
        lane = Lane(side, NO_IMAGES not in row)
        self.num_rows[lane] += 1
        self.num_bytes[lane] += len(row)
        self.digest.update(row)
        if self.folder is not None:
            if lane not in self.files:
                self.files[lane] = (self.folder / lane.file_name).open("wb")
            self.files[lane].write(row)

    def mark(self) -> Mark:
        """Return a place to which `cut` can go back."""
        return Mark(self.num_rows.copy(), self.num_bytes.copy(), self.digest.copy())

    def cut(self, mark: Mark) -> None:
        """Take back the rows that came since `mark`."""
        self.num_rows, self.num_bytes, self.digest = mark
        for lane, file in self.files.items():
            file.seek(self.num_bytes[lane])
            file.truncate()

    def rows_of(self, side: str) -> int:
        """Return how many rows a side has."""
        return self.num_rows[Lane(side, True)] + self.num_rows[Lane(side, False)]

    def fold_eval(self) -> None:
        """Make the rows of the eval side those of the train side, which has none."""
        for with_images in (True, False):
            old, new = Lane(EVAL, with_images), Lane(TRAIN, with_images)
            self.num_rows[new] = self.num_rows.pop(old, 0)
            self.num_bytes[new] = self.num_bytes.pop(old, 0)
            if self.folder is not None and old in self.files:
                (self.folder / old.file_name).replace(self.folder / new.file_name)

    def settle(self) -> dict[str, Any]:
        """Make one file of the two of each side; return what the manifest says of the files, by name."""
        if self.folder is not None:
            for lane in LANES:
                path = self.folder / lane.file_name
                if not self.num_rows[lane]:
                    path.unlink(missing_ok=True)  # what was taken back leaves an empty one
                elif not lane.with_images:
                    append_file(path, self.folder / side_file(lane.side))
        return {side_file(side): self.describe(side) for side in (TRAIN, EVAL) if self.rows_of(side)}

    def describe(self, side: str) -> dict[str, int]:
        """Return the rows, the bytes and the rows with images of a side's file."""
        lanes = Lane(side, True), Lane(side, False)
        num_bytes = sum(self.num_bytes[lane] for lane in lanes)
        return {"rows": self.rows_of(side), "bytes": num_bytes, "rows_with_images": self.num_rows[lanes[0]]}

    def variants(self, name: str) -> list[Variant]:
        """Return the data set as a variant for each side that has rows."""
        names = {TRAIN: name, EVAL: f"{name}_{EVAL}"}
        return [Variant(names[side], ((0, self.rows_of(side)),), side) for side in names if self.rows_of(side)]
