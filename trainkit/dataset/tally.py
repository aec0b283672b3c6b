"""What a look at the rows of a data set counts; tallies of parts add up to the tally of the whole."""

from __future__ import annotations

import itertools
import math
from array import array
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_EXAMPLES = 3
SCORE_BINS = 10


@dataclass(frozen=True, slots=True)
class Place:
    """A row, and what was seen there: `Place("data/rm-5f0c2d1e/train.jsonl", 17, "turn 2 (gpt) is empty")`."""

    file: str
    line: int
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" ({self.detail})" if self.detail else "")


def list_places(places: Iterable[Place], base: Path | None = None) -> str:
    """Return places in few words, paths from `base`: `data/a.jsonl:4 (3 turns), :9 (1 turn), data/b.jsonl:2`."""
    words, file = [], ""
    for place in places:
        path = Path(place.file)
        shown = str(path.relative_to(base)) if base and path.is_relative_to(base) else place.file
        start = f"{shown}:" if place.file != file else ":"
        words.append(f"{start}{place.line}" + (f" ({place.detail})" if place.detail else ""))
        file = place.file
    return ", ".join(words)


@dataclass(slots=True)
class Scores:
    """The numbers of one score field in the verdicts of one evaluation type."""

    count: int = 0
    total: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf
    bins: Counter[int] = field(default_factory=Counter)

    def add(self, number: float) -> None:
        """Count a score; the bins are tenths from 0 to 1, what lies outside is in the outermost."""
        self.count += 1
        self.total += number
        self.lowest = min(self.lowest, number)
        self.highest = max(self.highest, number)
        self.bins[min(SCORE_BINS - 1, max(0, math.floor(number * SCORE_BINS)))] += 1

    def update(self, other: Scores) -> None:
        """Add the counts of another part."""
        self.count += other.count
        self.total += other.total
        self.lowest = min(self.lowest, other.lowest)
        self.highest = max(self.highest, other.highest)
        self.bins.update(other.bins)


@dataclass(slots=True)
class Tally:
    """The counts over some rows of a data set.

    Attributes:
        rows: rows that the entry selects.
        text_bytes: bytes of those rows in the file.
        counts: name -> number of rows (`cut`, `answer_cut`, ...) or of tokens (`trained_tokens`, ...).
        lengths: tokens of a row before any cut -> number of rows.
        kept: tokens of a row as trained -> number of rows.
        needed: cutoff_len that a row would need that the trainer stops at for its images -> number of rows.
        places: what was found -> its first places, such as `skipped: odd number of turns`.
        found: what was found -> number of rows.
        thoughts: what the template's rule on think blocks did -> number of rows.
        scores: (evaluation type, score field) -> its numbers.
        prompts, twins: a hash of each trained row's prompt, and of the row as the trainer sees it, in row order.
        row_numbers: the row of each of those hashes.
        packs: sequences that packing makes.
        doubt: why the fast tokenizer could not be relied on, if it could not.
    """

    rows: int = 0
    text_bytes: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    kept: Counter[int] = field(default_factory=Counter)
    needed: Counter[int] = field(default_factory=Counter)
    places: dict[str, list[Place]] = field(default_factory=dict)
    found: Counter[str] = field(default_factory=Counter)
    thoughts: Counter[str] = field(default_factory=Counter)
    scores: dict[tuple[str, str], Scores] = field(default_factory=dict)
    prompts: array[int] = field(default_factory=lambda: array("Q"))
    twins: array[int] = field(default_factory=lambda: array("Q"))
    row_numbers: array[int] = field(default_factory=lambda: array("Q"))
    packs: int = 0
    doubt: str = ""

    def note(self, what: str, place: Place) -> None:
        """Count a finding, and keep its place while it is one of the first."""
        self.found[what] += 1
        places = self.places.setdefault(what, [])
        if len(places) < MOST_EXAMPLES:
            places.append(place)

    def score(self, kind: str, name: str, number: float) -> None:
        """Count one score of a verdict."""
        self.scores.setdefault((kind, name), Scores()).add(number)

    def update(self, other: Tally) -> None:
        """Add the tally of the rows that follow."""
        for part in fields(self):
            mine, theirs = getattr(self, part.name), getattr(other, part.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            elif isinstance(mine, array):
                mine.extend(theirs)
            elif isinstance(mine, (int, str)):
                setattr(self, part.name, mine + theirs if isinstance(mine, int) else mine or theirs)
        for what, places in other.places.items():
            kept = self.places.setdefault(what, [])
            kept.extend(places[: MOST_EXAMPLES - len(kept)])
        for key, scores in other.scores.items():
            self.scores.setdefault(key, Scores()).update(scores)


def quantile(histogram: Counter[int], share: float) -> int:
    """Return the smallest value that at least `share` of the counts do not exceed; 0 for an empty histogram.

    `quantile(Counter({10: 95, 99: 5}), 0.95)` is 10.
    """
    needed, reached = share * histogram.total(), 0
    for value in sorted(histogram):
        reached += histogram[value]
        if reached >= needed:
            return value
    return 0


def summary(histogram: Counter[int]) -> dict[str, Any]:
    """Return min, median, p95, p99, max and mean of a histogram."""
    total = histogram.total()
    if not total:
        return {}
    return {
        "min": min(histogram),
        "median": quantile(histogram, 0.5),
        "p95": quantile(histogram, 0.95),
        "p99": quantile(histogram, 0.99),
        "max": max(histogram),
        "mean": round(sum(value * count for value, count in histogram.items()) / total, 1),
    }


def bins_of(histogram: Counter[int], edges: Iterable[int]) -> list[tuple[int, int, int]]:
    """Return (low, high, count) for the values low < value <= high between each two edges, in their order."""
    bounds = sorted(set(edges))
    pairs = list(itertools.pairwise(bounds))
    counts = dict.fromkeys(pairs, 0)
    index = 0
    for value in sorted(histogram):
        while index < len(pairs) - 1 and value > pairs[index][1]:
            index += 1
        counts[pairs[index]] += histogram[value]
    return [(low, high, count) for (low, high), count in counts.items()]
