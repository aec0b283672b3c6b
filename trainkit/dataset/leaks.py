"""The same prompt on both sides of a split, and rows that are there twice: found by 64-bit hashes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Iterator

    from trainkit.datatypes import Conversation

# Sets of this many numbers are held at a time; a larger data set is gone through in several rounds.
ROUND = 2_000_000
FEW = 3
PREFIX = re.compile(r"(?:\[[A-Z_]+: [^\]]*\] )+")


def prompt_hash(conversation: Conversation) -> int:
    """Return the hash of all that comes before the last answer, without the metadata words before the prompt.

    The words are left out because two judges of one step ask the same question.
    """
    turns = conversation.turns
    first = PREFIX.sub("", turns[0].content, count=1) if turns else ""
    rest = [part for turn in turns[1:-1] for part in turn]
    return digest([conversation.system, first, *rest])


def twin_hash(conversation: Conversation) -> int:
    """Return the hash of all that the trainer sees of a row."""
    parts = [part for turn in conversation.turns for part in turn]
    return digest([conversation.system, conversation.tools, *parts])


def digest(parts: Iterable[str]) -> int:
    return xxhash.xxh3_64_intdigest("\0".join(parts).encode("utf-8", "surrogatepass"))


def count_shared(one: array[int], other: array[int]) -> tuple[int, list[int]]:
    """Return how many of `other`'s entries are also in `one`, and the positions of the first few in `other`."""
    count = 0
    first: list[int] = []
    for low, high in rounds(len(one)):
        held = {number for number in one if low <= number < high}
        shared = [position for position, number in enumerate(other) if number in held]
        count += len(shared)
        first = sorted(first + shared[:FEW])[:FEW]
    return count, first


def count_repeats(numbers: array[int]) -> tuple[int, list[tuple[int, int]]]:
    """Return how many entries have been there before, and (position, position of the first) of the first few."""
    count = 0
    pairs: list[tuple[int, int]] = []
    for low, high in rounds(len(numbers)):
        seen: dict[int, int] = {}
        for position, number in enumerate(numbers):
            if not low <= number < high:
                continue
            if (before := seen.setdefault(number, position)) != position:
                count += 1
                if len(pairs) < FEW or position < pairs[-1][0]:
                    pairs = sorted([*pairs, (position, before)])[:FEW]
    return count, pairs


def rounds(size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges [low, high) of 64-bit numbers that hold about `ROUND` of `size` evenly spread ones each."""
    number = size // ROUND + 1
    step = -(-(1 << 64) // number)
    for low in range(0, 1 << 64, step):
        yield low, low + step
