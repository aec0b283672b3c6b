"""What a look counts: parts add up, figures are those of the whole."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.dataset.tally import MOST_EXAMPLES, Place, Scores, Tally, bins_of, list_places, quantile, summary

lengths = st.lists(st.integers(1, 9000), min_size=1, max_size=200)


def tally_of(rows: list[tuple[int, str, float]], start: int = 0) -> Tally:
    tally = Tally()
    for number, (tokens, kind, score) in enumerate(rows, start):
        tally.rows += 1
        tally.lengths[tokens] += 1
        tally.counts["trained_tokens"] += tokens
        tally.prompts.append(tokens * 7)
        tally.row_numbers.append(number)
        tally.score(kind, "score", score)
        if tokens % 3 == 0:
            tally.note("cut", Place("a.jsonl", number + 1, f"{tokens} tokens"))
    return tally


rows = st.lists(
    st.tuples(st.integers(1, 50), st.sampled_from(["clip", "final"]), st.floats(0, 1, width=16)), max_size=30
)


@given(rows, rows)
def test_parts_add_up_to_the_whole(first: list[tuple[int, str, float]], second: list[tuple[int, str, float]]) -> None:
    added = tally_of(first)
    added.update(tally_of(second, len(first)))
    assert added == tally_of([*first, *second])


def test_only_the_first_places_are_kept_and_all_are_counted() -> None:
    tally = tally_of([(3, "clip", 0.5)] * 10)
    assert tally.found["cut"] == 10
    assert [str(place) for place in tally.places["cut"]] == [
        f"a.jsonl:{n} (3 tokens)" for n in range(1, MOST_EXAMPLES + 1)
    ]
    assert str(Place("a.jsonl", 4)) == "a.jsonl:4"


def test_places_are_listed_in_few_words() -> None:
    places = [Place("/w/data/a.jsonl", 4, "3 turns"), Place("/w/data/a.jsonl", 9), Place("/x/b.jsonl", 2)]
    assert list_places(places, Path("/w")) == "data/a.jsonl:4 (3 turns), :9, /x/b.jsonl:2"
    assert list_places(places[:1]) == "/w/data/a.jsonl:4 (3 turns)"
    assert list_places([]) == ""


def test_a_doubt_stays() -> None:
    tally = Tally()
    tally.update(Tally(doubt="text 3 differs"))
    tally.update(Tally(doubt="another"))
    assert tally.doubt == "text 3 differs"


@given(lengths)
def test_quantiles_are_values_that_the_rows_have(values: list[int]) -> None:
    histogram = Counter(values)
    ordered = sorted(values)
    assert quantile(histogram, 0.5) == statistics.median_low(ordered)
    for share in (0.01, 0.95, 0.99, 1.0):
        assert quantile(histogram, share) == ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def test_a_summary_of_nothing_is_empty() -> None:
    assert summary(Counter()) == {}
    assert quantile(Counter(), 0.5) == 0
    assert summary(Counter([1, 2, 2, 9])) == {"min": 1, "median": 2, "p95": 9, "p99": 9, "max": 9, "mean": 3.5}


@given(lengths, st.lists(st.integers(1, 9000), max_size=8))
def test_bins_hold_every_row_once(values: list[int], edges: list[int]) -> None:
    bins = bins_of(Counter(values), [0, *edges, 9000])
    assert sum(count for *_, count in bins) == len(values)
    assert all(count == sum(low < value <= high for value in values) for low, high, count in bins)


@pytest.mark.parametrize(("score", "tenth"), [(0.0, 0), (0.05, 0), (0.1, 1), (0.95, 9), (1.0, 9), (7.5, 9), (-3, 0)])
def test_scores_fall_into_tenths(score: float, tenth: int) -> None:
    scores = Scores()
    scores.add(score)
    assert scores.bins == Counter([tenth])
    assert (scores.lowest, scores.highest) == (score, score)
