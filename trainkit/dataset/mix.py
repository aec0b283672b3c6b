"""Several sources made into one stream, in shares that are given as weights.

Each row is drawn: of all sources with the chance of its weight, independent of the draws before. So the shares of the
rows come close to the weights, as far as no source is at its end; the rows of one source keep their order, and none
comes twice. What happens at an end is the caller's choice:

    first    the stream stops when a source is drawn that has no row left: the shares hold for the whole stream
    all      that source leaves, the others keep their weights: every row comes out once, and the shares hold up to the
             first end

Memory holds one row of each source, or what its reader holds.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from trainkit.errors import UsageProblem
from trainkit.lines import read_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from trainkit.lines import Source

Until = Literal["first", "all"]
Row = TypeVar("Row")


class Share(NamedTuple):
    """A source and its weight: `Share(Path("a.jsonl"), 0.7)`; weights need not add up to 1."""

    path: Path
    weight: float


def parse_mix(words: Iterable[str], option: str = "--mix") -> list[Share]:
    """Return the sources that words such as `a.jsonl:0.7` name; what stands behind the last colon is the weight.

    Raises:
        UsageProblem: a word without a path or a weight, or a weight that is not above 0.
    """
    return [parse_share(word, option) for word in words]


def parse_share(word: str, option: str) -> Share:
    path, _, weight = word.rpartition(":")
    example = f"for example {option} a.jsonl:0.7 {option} b.jsonl:0.3"
    if not path:
        raise UsageProblem(f"{option} {word}: has no weight behind a colon", example)
    try:
        number = float(weight)
    except ValueError:
        raise UsageProblem(f"{option} {word}: {weight or 'nothing'} is not a number", example) from None
    if not 0 < number < math.inf:
        raise UsageProblem(f"{option} {word}: the weight must be above 0", example)
    return Share(Path(path), number)


def mix(
    sources: Sequence[Iterable[Row]], weights: Sequence[float], seed: int, until: Until
) -> Iterator[tuple[int, Row]]:
    """Yield rows of all sources with the number of their source; the same for the same rows, weights and seed."""
    draw = random.Random(seed).random
    left = [
        (number, iter(source), weight) for number, (source, weight) in enumerate(zip(sources, weights, strict=True))
    ]
    while left:
        bounds = list(accumulate(weight for _, _, weight in left))
        ended = yield from draw_rows(left, bounds, draw)
        if until == "first":
            return
        left.pop(ended)


def draw_rows(
    left: list[tuple[int, Iterator[Row], float]], bounds: list[float], draw: Callable[[], float]
) -> Generator[tuple[int, Row], None, int]:
    """Yield drawn rows until the source that is drawn has none; return its place."""
    while True:
        place = min(bisect_right(bounds, draw() * bounds[-1]), len(left) - 1)  # the product may round up to the bound
        number, rows, _ = left[place]
        try:
            row = next(rows)
        except StopIteration:
            return place
        yield number, row


def read_rows(source: Source) -> Iterator[tuple[int, bytes]]:
    """Yield the records of a source with their line numbers, blank lines left out; memory holds about 4 MiB.

    Raises:
        InputError: a damaged archive, or an array that is not closed.
    """
    for chunk in read_chunks(source):
        for line, record in chunk.records:
            if record and not record.isspace():
                yield line, record
