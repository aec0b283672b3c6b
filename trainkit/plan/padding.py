"""From the rows' lengths to what a batch of them costs: how far it is padded, and how full a packed one is.

A row counts with its tokens after truncation. The trainer's collator pads a batch to its longest row and that to a
multiple of 8; packing fills rows of cutoff_len tokens with whole examples.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from trainkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

PAD_TO = 8
GROUPS = 8
PACKED_AT_ONCE = 1000  # preprocessing_batch_size: the trainer packs the rows of one such batch among themselves


@dataclass(frozen=True)
class Lengths:
    """How many rows have how many tokens, shortest first: `Lengths(((120, 40), (900, 2)))` is 42 rows."""

    counts: tuple[tuple[int, int], ...]

    def __hash__(self) -> int:
        """Hash a few figures in the place of every length: the same lengths are looked up often."""
        return hash((self.num_rows, self.num_tokens))

    @classmethod
    def of(cls, tokens: Iterable[int]) -> Lengths:
        """Count the lengths of rows.

        Raises:
            InputError: there is no row.
        """
        counted = Counter(tokens)
        if not counted:
            raise InputError("no row to take lengths from")
        return cls(tuple(sorted(counted.items())))

    def cut(self, cutoff_len: int) -> Lengths:
        """Return the lengths after truncation to `cutoff_len` tokens."""
        kept = [(tokens, rows) for tokens, rows in self.counts if tokens < cutoff_len]
        rest = self.num_rows - sum(rows for _, rows in kept)
        return Lengths((*kept, (cutoff_len, rest))) if rest else self

    @cached_property
    def num_rows(self) -> int:
        """How many rows there are."""
        return sum(rows for _, rows in self.counts)

    @cached_property
    def num_tokens(self) -> int:
        """All tokens together."""
        return sum(tokens * rows for tokens, rows in self.counts)

    @property
    def longest(self) -> int:
        """The tokens of the longest row."""
        return self.counts[-1][0]

    @property
    def never_padded(self) -> bool:
        """Whether every batch is free of padding: all rows are equally long, by a multiple of 8."""
        return len(self.counts) == 1 and self.longest % PAD_TO == 0


def padded(tokens: float) -> int:
    """Return tokens as the collator pads them: up to the next multiple of 8."""
    return -int(-tokens // PAD_TO) * PAD_TO


def batch_lengths(lengths: Lengths, rows: int) -> list[tuple[float, float]]:
    """Return (share, padded length) of batches of `rows` rows drawn at random, shortest first, in up to 8 groups.

    The longest of b draws is at most l with probability F(l)^b, F being the share of rows of at most l tokens.
    """
    groups: list[tuple[float, float]] = []
    share, weighted, below, seen = 0.0, 0.0, 0.0, 0
    for tokens, count in lengths.counts:
        seen += count
        at_most = (seen / lengths.num_rows) ** rows
        share, weighted, below = share + at_most - below, weighted + padded(tokens) * (at_most - below), at_most
        if share >= 1 / GROUPS or seen == lengths.num_rows:
            groups.append((share, weighted / share))
            share, weighted = 0.0, 0.0
    return groups


def padded_tokens(lengths: Lengths, rows: int) -> float:
    """Return the expected padded length of a batch of `rows` rows drawn at random."""
    return sum(share * tokens for share, tokens in batch_lengths(lengths, rows))


def packing_efficiency(lengths: Lengths, cutoff_len: int) -> float:
    """Return the share of packed rows' tokens that belong to an example; 0 when every example is too long to pack.

    Packs 1,000 rows spread evenly over the lengths as the trainer does: into each row the longest example that still
    fits, and again, leaving out examples of more than `cutoff_len` tokens.
    """
    waiting = [tokens for tokens in _sample(lengths) if tokens <= cutoff_len]
    tokens, packs = sum(waiting), 0
    while waiting:
        room = cutoff_len
        while (index := bisect.bisect_right(waiting, room)) > 0:
            room -= waiting.pop(index - 1)
        packs += 1
    return tokens / (packs * packed_tokens(cutoff_len)) if packs else 0.0


def packed_tokens(cutoff_len: int) -> int:
    """Return the padded length of a packed row: the trainer makes it cutoff_len + 1, the collator a multiple of 8."""
    return padded(cutoff_len + 1)


def _sample(lengths: Lengths) -> list[int]:
    """Return up to 1,000 lengths, shortest first, that stand for all."""
    size = min(lengths.num_rows, PACKED_AT_ONCE)
    wanted = [(2 * place + 1) * lengths.num_rows / (2 * size) for place in range(size)]
    found: list[int] = []
    seen = 0
    for tokens, rows in lengths.counts:
        seen += rows
        while len(found) < size and wanted[len(found)] < seen:
            found.append(tokens)
    return found
