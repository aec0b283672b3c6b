"""How a sample is shared among the iterations, and what is said of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.dataset.quotas import SamplingPlan, plan_quotas
from trainkit.errors import UsageProblem

PLENTY = 10**6
COUNTS = st.dictionaries(st.integers(0, 50), st.integers(0, 300), max_size=8)
POWERS = st.one_of(st.integers(0, 4).map(float), st.floats(0, 1000))


@pytest.mark.parametrize(
    ("counts", "total", "power", "quotas"),
    [
        ([PLENTY] * 4, 1800, 2.0, [60, 240, 540, 960]),
        ([PLENTY] * 4, 1000, 2.0, [33, 133, 300, 534]),
        ([PLENTY] * 4, 1000, 1.0, [100, 200, 300, 400]),
        ([PLENTY] * 4, 1000, 0.0, [250] * 4),
        ([PLENTY] * 4, 6, 0.0, [1, 1, 2, 2]),
        ([PLENTY] * 2, 1000, 0.5, [414, 586]),
        ([PLENTY] * 4, 1000, 1000.0, [0, 0, 0, 1000]),
        ([PLENTY] * 4, 1, 2.0, [0, 0, 0, 1]),
        ([PLENTY], 7, 2.0, [7]),
        # what the newest lacks goes to the others as 1 : 4 : 9, also when that fills another one
        ([PLENTY, PLENTY, PLENTY, 400], 1800, 2.0, [100, 400, 900, 400]),
        ([PLENTY, PLENTY, 500, 400], 1800, 2.0, [180, 720, 500, 400]),
        ([PLENTY, 5, 5, 5], 1800, 1000.0, [1785, 5, 5, 5]),
        # an iteration without eligible steps keeps its place among the weights
        ([PLENTY, 0, PLENTY], 1000, 2.0, [100, 0, 900]),
        ([5, 6, 7], 100, 2.0, [5, 6, 7]),
        ([5, 6, 7], 18, 2.0, [5, 6, 7]),
        ([0, 0], 10, 2.0, [0, 0]),
        ([], 10, 2.0, []),
    ],
)
def test_quotas(counts: list[int], total: int, power: float, quotas: list[int]) -> None:
    # numbers as rollouts have them: not from 0, not without gaps, not in order
    numbers = [7, 11, 12, 40][: len(counts)]
    given_counts = dict(reversed(list(zip(numbers, counts, strict=True))))
    planned = plan_quotas(given_counts, total, power)
    assert list(planned.quotas.items()) == list(zip(numbers, quotas, strict=True))


def test_weights_and_shortages() -> None:
    planned = plan_quotas({1: PLENTY, 2: 1000, 3: PLENTY, 4: 400}, 1800, 2)
    assert {key: round(weight, 4) for key, weight in planned.weights.items()} == {
        1: 0.0333, 2: 0.1333, 3: 0.3, 4: 0.5333,
    }  # fmt: skip
    assert planned.shortages == {4: 560}
    assert plan_quotas({1: 10, 2: 10}, 30, 0).shortages == {1: 5, 2: 5}


def water_level(counts: list[int], weights: list[float], total: int) -> float:
    """The level to which min(count, level x weight) adds up to `total`, by bisection."""
    low, high = 0.0, max(count / weight for count, weight in zip(counts, weights, strict=True)) + 1
    for _ in range(200):
        middle = (low + high) / 2
        held = sum(min(count, middle * weight) for count, weight in zip(counts, weights, strict=True))
        low, high = (middle, high) if held < total else (low, middle)
    return high


@settings(deadline=None)
@given(COUNTS, st.integers(1, 2000), st.floats(0, 6))
def test_quotas_are_the_level_of_the_water(counts: dict[int, int], total: int, power: float) -> None:
    quotas = plan_quotas(counts, total, power).quotas
    assert list(quotas) == sorted(counts)
    assert sum(quotas.values()) == min(total, sum(counts.values()))
    weights = [rank**power for rank in range(1, len(counts) + 1)]
    held = [counts[key] for key in quotas]
    if sum(held) <= total:
        assert quotas == counts
        return
    level = water_level(held, weights, total)
    exact = [min(count, level * weight) for count, weight in zip(held, weights, strict=True)]
    rounding = [quota - part for quota, part in zip(quotas.values(), exact, strict=True)]
    assert all(abs(error) < 1 + 1e-6 for error in rounding)
    # the largest remainders are those that were rounded up, so that the errors differ by less than one
    assert max(rounding) - min(rounding) < 1 + 1e-6


@settings(deadline=None)
@given(COUNTS, st.integers(1, 2000), POWERS)
def test_quotas_for_any_power(counts: dict[int, int], total: int, power: float) -> None:
    planned = plan_quotas(counts, total, power)
    assert sum(planned.quotas.values()) == min(total, sum(counts.values()))
    assert all(0 <= planned.quotas[key] <= count for key, count in counts.items())
    assert sum(planned.weights.values()) == pytest.approx(1.0 if counts else 0.0)
    assert list(planned.weights.values()) == sorted(planned.weights.values())


@pytest.mark.parametrize("power", [-1.0, -1e-9, float("nan"), float("inf"), 1001.0])
def test_a_power_that_is_none(power: float) -> None:
    with pytest.raises(UsageProblem, match=f"recency_bias_power={power}: not a number from 0 to 1000"):
        plan_quotas({1: 10}, 5, power)


@pytest.mark.parametrize("total", [0, -5])
def test_a_total_that_is_none(total: int) -> None:
    with pytest.raises(UsageProblem, match=f"positive_samples_to_train={total}: too few"):
        plan_quotas({1: 10}, total, 2)


def plan(**changes: Any) -> SamplingPlan:
    quotas = plan_quotas({7: 5000, 8: 100}, 1000, 2)
    fields = {
        "wanted": 1000, "power": 2.0, "seed": 3, "cap_per_task": None, "counts": quotas.counts,
        "weights": quotas.weights, "quotas": quotas.quotas, "taken": quotas.quotas, "shortages": quotas.shortages,
    }  # fmt: skip
    return SamplingPlan(**{**fields, **changes})


def test_where_the_sample_is_not_what_was_asked_for() -> None:
    assert plan().shortfalls() == ["iteration 8 is 700 short of its part, which the others give"]
    capped = plan(taken={7: 800, 8: 90}, cap_per_task=4, shortages={})
    assert capped.shortfalls() == ["110 left out by the cap of 4 steps per task"]
    assert plan(wanted=9000, shortages={}).shortfalls() == [
        "9000 were asked for, and there are 1000: every step is wanted"
    ]
    assert plan(shortages={}).shortfalls() == []


def test_the_plan_as_json() -> None:
    assert json.loads(json.dumps(plan().to_json())) == {
        "wanted": 1000,
        "taken": 1000,
        "power": 2.0,
        "seed": 3,
        "cap_per_task": None,
        "iterations": [
            {"iteration": 7, "weight": 0.2, "count": 5000, "quota": 900, "taken": 900, "shortage": 0},
            {"iteration": 8, "weight": 0.8, "count": 100, "quota": 100, "taken": 100, "shortage": 700},
        ],
    }
