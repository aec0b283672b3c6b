from __future__ import annotations

import random
from collections import defaultdict
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.errors import InputError
from trainkit.plan.padding import (
    Lengths,
    packed_tokens,
    packing_efficiency,
    padded,
    padded_tokens,
)

MIXED = Lengths.of([100] * 60 + [700] * 30 + [3000] * 10)
some_lengths = st.lists(st.integers(1, 5000), min_size=1, max_size=60)


def test_lengths_are_counted() -> None:
    lengths = Lengths.of([7, 3, 7, 9])
    assert lengths == Lengths(((3, 1), (7, 2), (9, 1)))
    assert (lengths.num_rows, lengths.num_tokens, lengths.longest) == (4, 26, 9)
    with pytest.raises(InputError, match="no row"):
        Lengths.of([])


@pytest.mark.parametrize(
    ("cutoff_len", "counts"),
    [
        (10, ((3, 1), (7, 2), (9, 1))),
        (9, ((3, 1), (7, 2), (9, 1))),
        (8, ((3, 1), (7, 2), (8, 1))),
        (7, ((3, 1), (7, 3))),
        (2, ((2, 4),)),
    ],
)
def test_longer_rows_are_cut(cutoff_len: int, counts: tuple[tuple[int, int], ...]) -> None:
    assert Lengths.of([7, 3, 7, 9]).cut(cutoff_len) == Lengths(counts)


@pytest.mark.parametrize(("tokens", "to"), [(1, 8), (8, 8), (9, 16), (4095, 4096), (4096, 4096), (4097, 4104)])
def test_a_batch_is_padded_to_a_multiple_of_8(tokens: int, to: int) -> None:
    assert padded(tokens) == to


def test_a_packed_row_holds_one_token_more_than_cutoff_len() -> None:
    assert (packed_tokens(4096), packed_tokens(4095)) == (4104, 4096)


@pytest.mark.parametrize(
    ("tokens", "never"), [([512, 512], True), ([510, 510], False), ([512, 504], False), ([8], True)]
)
def test_only_equal_rows_of_a_multiple_of_8_go_without_padding(tokens: list[int], never: bool) -> None:
    assert Lengths.of(tokens).never_padded is never


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_the_expected_padding_is_that_of_random_batches(rows: int) -> None:
    draw = random.Random(rows)
    every = [tokens for tokens, count in MIXED.counts for _ in range(count)]
    drawn = mean(padded(max(draw.choices(every, k=rows))) for _ in range(20_000))
    assert padded_tokens(MIXED, rows) == pytest.approx(drawn, rel=0.02)


@given(some_lengths, st.integers(1, 32))
def test_larger_batches_are_padded_further_and_never_beyond_the_longest_row(tokens: list[int], rows: int) -> None:
    lengths = Lengths.of(tokens)
    assert padded_tokens(lengths, rows) <= padded_tokens(lengths, rows + 1) + 1e-6 <= padded(lengths.longest) + 1e-5


def packed_by_the_trainer(lengths: list[int], cutoff_len: int) -> int:
    """Count the packs of a first-fit over lengths sorted downwards, an independent way to the same greedy result."""
    left: dict[int, int] = defaultdict(int)
    for length in lengths:
        left[length] += 1
    packs = 0
    while any(left.values()):
        room, packs = cutoff_len, packs + 1
        for length in sorted(left, reverse=True):
            while left[length] and length <= room:
                left[length] -= 1
                room -= length
    return packs


@given(some_lengths, st.integers(64, 4096))
def test_packing_is_counted_as_the_trainer_packs(tokens: list[int], cutoff_len: int) -> None:
    kept = [length for length in tokens if length <= cutoff_len]
    packs = packed_by_the_trainer(kept, cutoff_len)
    expected = sum(kept) / (packs * packed_tokens(cutoff_len)) if packs else 0.0
    assert packing_efficiency(Lengths.of(tokens), cutoff_len) == pytest.approx(expected)


def test_many_rows_are_packed_by_a_sample_of_them() -> None:
    thousand, many = (Lengths(tuple((tokens, rows * by) for tokens, rows in MIXED.counts)) for by in (10, 1000))
    assert packing_efficiency(many, 4096) == packing_efficiency(thousand, 4096)
    assert packing_efficiency(many, 4096) > 0.97


def test_nothing_is_packed_when_every_example_is_too_long() -> None:
    assert packing_efficiency(Lengths.of([500, 600]), 400) == 0
