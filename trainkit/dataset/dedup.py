"""Rows that say the same as one before them: exactly, or nearly.

Two rows are the same when their roles and texts, their system text, tools, media and answers are, whatever their
metadata: Unicode in its composed form, white space as single spaces. The first one stays.

Near duplicates are found with MinHash and locality-sensitive hashing, as datasketch has them: the texts of two rows
share at least a given part of their runs of five words (Jaccard similarity, estimated from 128 hashes: a standard error
of 0.035 at 0.8). Asked for 0.8, it finds about half of the rows right at 0.8, 94 in 100 at 0.85 and 99 in 100 at 0.9.
Text without spaces between its words (Chinese, Japanese) counts each character as one. A row with fewer than five words
is never a near duplicate.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from typing import TYPE_CHECKING, Any

import msgspec
import xxhash

from trainkit.errors import EnvironmentProblem, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

encode_json = msgspec.json.Encoder(order="sorted").encode
WORDS_IN_RUN = 5
HASHES = 128
NO_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{NO_SPACES}]|[^\W{NO_SPACES}]+")
LISTED = ("images", "videos", "audios")
TURNS = ("chosen", "rejected")


def texts_of(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts of a training row in a fixed order, normalised, each behind its role or column."""
    for turn in row["conversations"]:
        yield turn["from"]
        yield normal(turn["value"])
    for name in TURNS:
        if name in row:
            yield f"{name} {row[name]['from']}"
            yield normal(row[name]["value"])
    for name in ("system", "tools"):
        yield name
        yield normal(row.get(name) or "")
    for name in LISTED:
        yield from (f"{name} {path}" for path in row.get(name) or ())
    if "kto_tag" in row:
        yield f"kto_tag {row['kto_tag']}"


def normal(text: str) -> str:
    """Return a text in composed Unicode with single spaces; `"a \\n b "` is `"a b"`."""
    text = " ".join(text.split())
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class ExactRepeats:
    """Remembers rows by a 128-bit hash, so that at any number of rows no two are taken for one by chance.

    Memory is about 100 bytes a row.
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def is_repeat(self, row: Mapping[str, Any]) -> bool:
        """Whether the row was there before; it is remembered."""
        number = xxhash.xxh3_128_intdigest(encode_json(list(texts_of(row))))
        if number in self.seen:
            return True
        self.seen.add(number)
        return False


class NearRepeats:
    """Remembers what rows say by their MinHash; a row that is left out is not remembered.

    Which rows stay depends on their order: each is compared with the ones that stayed before it. Memory is about 4.3 kB
    a row that stays.

    Args:
        threshold: the least similarity, 0.5 to 1, at which a row is a near duplicate.

    Raises:
        UsageProblem: a threshold out of that range.
        EnvironmentProblem: datasketch is not installed.
    """

    def __init__(self, threshold: float) -> None:
        if not 0.5 <= threshold <= 1:
            raise UsageProblem(f"a similarity of {threshold:g}: must be 0.5 to 1", "0.8 is usual")
        self.threshold = threshold
        try:
            datasketch = importlib.import_module("datasketch")
        except ImportError:
            raise EnvironmentProblem("near duplicates need datasketch", "pip install datasketch") from None
        self.lean = datasketch.LeanMinHash
        self.blank = datasketch.MinHash(HASHES, hashfunc=xxhash.xxh32_intdigest)
        self.index = datasketch.MinHashLSH(threshold, HASHES, weights=(0.1, 0.9))
        self.signatures: list[Any] = []

    def find_repeat(self, row: Mapping[str, Any]) -> int | None:
        """Return the number, among the rows that stayed, of the one that this row nearly repeats.

        None means that there is none: the row is remembered, and its number is the next.
        """
        runs = runs_of(row)
        signature = self.blank.copy()
        if runs:
            signature.update_batch(runs)
            similar = ((signature.jaccard(self.signatures[number]), -number) for number in self.index.query(signature))
            best, number = max(similar, default=(0.0, 0))
            if best >= self.threshold:
                return -number
            self.index.insert(len(self.signatures), signature, check_duplication=False)
        self.signatures.append(self.lean(signature) if runs else None)
        return None


def runs_of(row: Mapping[str, Any]) -> list[bytes]:
    """Return the different runs of five words in what a row says, in order."""
    text = "\n".join(turn["value"] for turn in [*row["conversations"], *(row[name] for name in TURNS if name in row)])
    words = WORD.findall(unicodedata.normalize("NFC", text).lower())
    count = len(words) - WORDS_IN_RUN + 1
    return list(dict.fromkeys(" ".join(words[start : start + WORDS_IN_RUN]).encode() for start in range(count)))
