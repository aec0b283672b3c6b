"""The draw of steps without replacement, the cap per task, and the split by trajectory."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.dataset import replay
from trainkit.dataset.quotas import Quotas, plan_quotas
from trainkit.dataset.replay import StepTable, draw, race, sample, split_by_trajectory
from trainkit.datatypes import StepPlace
from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Upper 0.1 % points of the chi-square distribution, and for 100 degrees of freedom the lower one too.
CHI2_5 = 20.515
CHI2_100 = (61.918, 149.449)


def rollouts(sizes: dict[int, int], per_trajectory: int = 5, num_tasks: int = 7) -> list[StepPlace]:
    """`sizes[iteration]` steps in each iteration."""
    return [
        StepPlace(iteration, number // per_trajectory, number % per_trajectory, f"task_{number % num_tasks}")
        for iteration, size in sizes.items()
        for number in range(size)
    ]


def chosen_from(
    places: list[StepPlace], total: int, power: float, seed: int, cap: int | None = None
) -> list[StepPlace]:
    table = StepTable.of(places)
    return list(table.take(sample(table, plan_quotas(table.counts(), total, power), seed, cap)[0]))


def test_a_table_holds_the_places_in_order() -> None:
    places = rollouts({12: 9, 3: 11, 20250115143022: 1})
    shuffled = random.Random(0).sample(places, len(places))
    table = StepTable.of(shuffled)
    assert list(table) == sorted(places)
    assert len(table) == 21
    assert table.counts() == {3: 11, 12: 9, 20250115143022: 1}
    assert table.ranges() == {3: (0, 11), 12: (11, 20), 20250115143022: (20, 21)}
    assert list(table.take(np.array([0, 20]))) == [min(places), max(places)]
    assert list(StepTable.of([])) == []


def test_a_sample_has_the_quotas_and_no_step_twice() -> None:
    places = rollouts(dict.fromkeys((4, 5, 6, 7), 4000))
    table = StepTable.of(places)
    chosen, plan = sample(table, plan_quotas(table.counts(), 1800, 2.0), seed=0)
    taken = list(table.take(chosen))
    assert taken == sorted(set(taken))
    assert Counter(place.iteration for place in taken) == {4: 60, 5: 240, 6: 540, 7: 960}
    assert plan.taken == plan.quotas == {4: 60, 5: 240, 6: 540, 7: 960}
    assert (plan.num_taken, plan.seed, plan.wanted, plan.cap_per_task) == (1800, 0, 1800, None)


def test_all_steps_when_fewer_are_there_than_wanted() -> None:
    places = rollouts({1: 3, 2: 5})
    assert chosen_from(places, 100, 2.0, seed=0) == places


def test_an_iteration_without_steps_gives_none() -> None:
    table = StepTable.of(rollouts({1: 50, 3: 50}))
    chosen, plan = sample(table, plan_quotas({**table.counts(), 2: 0}, 20, 2.0), seed=0)
    assert plan.taken == {1: 2, 2: 0, 3: 18}
    assert len(chosen) == 20
    empty, plan = sample(StepTable.of([]), plan_quotas({2: 0}, 20, 2.0), seed=0)
    assert (len(empty), plan.taken) == (0, {2: 0})


def test_the_same_seed_gives_the_same_bytes_for_places_in_any_order() -> None:
    places = rollouts({1: 300, 2: 300})
    shuffled = random.Random(1).sample(places, len(places))
    for cap in (None, 10):
        same = [chosen_from(given_places, 60, 2.0, 5, cap) for given_places in (places, shuffled)]
        assert same[0] == same[1]
        assert chosen_from(places, 60, 2.0, 6, cap) != same[0]
    # A run that is repeated years later draws these too.
    assert draw(20, 5, (42, 7)).tolist() == [0, 1, 8, 13, 17]
    assert draw(20, 5, (-1, 7)).tolist() == draw(20, 5, (2**64 - 1, 7)).tolist()


def test_an_iteration_is_drawn_from_whatever_else_is_there() -> None:
    alone = StepTable.of(rollouts({5: 100}))
    among = StepTable.of(rollouts({3: 40, 5: 100, 9: 7}))
    counts = {3: 40, 5: 100, 9: 7}
    quotas = Quotas(30, 0, counts, dict.fromkeys(counts, 1 / 3), {3: 10, 5: 17, 9: 3}, {})
    of_five = [place for place in among.take(sample(among, quotas, seed=8)[0]) if place.iteration == 5]
    assert list(alone.take(sample(alone, quotas, seed=8)[0])) == of_five


@pytest.mark.parametrize("cap", [None, 1000])
def test_each_step_is_drawn_as_often_as_any_other_of_its_iteration(cap: int | None) -> None:
    # Under the closed form a step of iteration i is in the sample with probability quota_i / count_i; the statistic of
    # each iteration has count_i - 1 degrees of freedom, 100 in all.
    sizes = {1: 26, 2: 27, 3: 25, 4: 26}
    table = StepTable.of(rollouts(sizes))
    quotas = plan_quotas(sizes, 36, 2.0)
    assert list(quotas.quotas.values()) == [1, 5, 11, 19]
    draws = 1000
    seen = np.zeros(len(table))
    for seed in range(draws):
        seen[sample(table, quotas, seed, cap)[0]] += 1
    statistic = 0.0
    for iteration, (start, stop) in table.ranges().items():
        chance = quotas.quotas[iteration] / sizes[iteration]
        spread = draws * chance * (1 - chance) * sizes[iteration] / (sizes[iteration] - 1)
        statistic += ((seen[start:stop] - draws * chance) ** 2).sum() / spread
    assert CHI2_100[0] < statistic < CHI2_100[1]


def test_a_race_with_weights_follows_the_closed_form() -> None:
    weights = np.array([1.0, 2.0, 3.0, 6.0])
    draws = 4000
    seen = Counter(tuple(draw(4, 2, (seed, 0), weights).tolist()) for seed in range(draws))
    whole = weights.sum()
    statistic = 0.0
    for one, other in combinations(range(4), 2):
        a, b = weights[one], weights[other]
        expected = draws * a * b / whole * (1 / (whole - a) + 1 / (whole - b))
        statistic += (seen[one, other] - expected) ** 2 / expected
    assert statistic < CHI2_5


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 450), st.integers(0, 2**70), st.booleans())
def test_those_are_drawn_who_arrive_first(count: int, number: int, seed: int, weighted: bool) -> None:
    weights = 1.0 + np.arange(count) % 5 if weighted else None
    times = np.concatenate([np.empty(0), *(times for _, times in race(count, (seed, 3), weights))])
    drawn = draw(count, number, (seed, 3), weights)
    assert drawn.tolist() == sorted(sorted(range(count), key=lambda place: times[place])[:number])


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 450), st.integers(1, 60))
def test_the_size_of_the_pieces_changes_nothing(count: int, number: int, chunk: int) -> None:
    weights = 1.0 + np.arange(count) % 5
    with pytest.MonkeyPatch.context() as patch:
        whole = draw(count, number, (1, 3), weights)
        patch.setattr(replay, "CHUNK", chunk)
        assert draw(count, number, (1, 3), weights).tolist() == whole.tolist()


def test_a_cap_that_nothing_meets_changes_nothing() -> None:
    places = rollouts({1: 300, 2: 300, 3: 40})
    assert chosen_from(places, 200, 2.0, 4, cap=200) == chosen_from(places, 200, 2.0, 4)


def walk_by_hand(table: StepTable, quotas: dict[int, int], seed: int, cap: int) -> list[StepPlace]:
    """Step by step: newest iteration first, in the order of arrival, over tasks that are full."""
    used: Counter[str] = Counter()
    chosen = []
    places = list(table)
    for iteration, (start, stop) in reversed(table.ranges().items()):
        times = np.concatenate([times for _, times in race(stop - start, (seed, iteration))])
        left = quotas[iteration]
        for position in start + np.argsort(times):
            if left and used[places[position].task] < cap:
                left -= 1
                used[places[position].task] += 1
                chosen.append(places[position])
    return sorted(chosen)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
def test_a_cap_is_kept_and_the_walk_is_by_the_order_of_arrival(total: int, cap: int, seed: int) -> None:
    table = StepTable.of(rollouts({1: 30, 2: 25, 4: 20}))
    quotas = plan_quotas(table.counts(), total, 2.0)
    chosen, plan = sample(table, quotas, seed, cap)
    taken = list(table.take(chosen))
    assert max(Counter(place.task for place in taken).values()) <= cap
    assert taken == sorted(set(taken))
    assert len(taken) == plan.num_taken == min(total, 7 * cap)  # every task has steps enough in every iteration
    by_hand = walk_by_hand(table, dict(quotas.quotas), seed, cap)
    if len(by_hand) == len(taken):  # otherwise what was missing has been shared out again
        assert taken == by_hand
    else:
        assert set(by_hand) < set(taken)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 99))
def test_how_far_ahead_is_looked_under_a_cap_changes_nothing(total: int, cap: int, seed: int) -> None:
    places = [place._replace(task=f"task_{place.step * place.iteration}") for place in rollouts({1: 70, 2: 80, 3: 90})]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "AHEAD", 1000)
        whole = chosen_from(places, total, 2.0, seed, cap)
        patch.setattr(replay, "AHEAD", 1)
        assert chosen_from(places, total, 2.0, seed, cap) == whole


def test_what_the_cap_leaves_open_is_shared_among_the_others() -> None:
    newest = [StepPlace(3, number, 0, "shop") for number in range(100)]
    older = [StepPlace(iteration, number, 0, f"{iteration}_{number}") for iteration in (1, 2) for number in range(100)]
    table = StepTable.of([*older, *newest])
    chosen, plan = sample(table, plan_quotas(table.counts(), 60, 1.0), 0, cap_per_task=6)
    assert plan.quotas == {1: 10, 2: 20, 3: 30}
    assert plan.taken == {1: 18, 2: 36, 3: 6}
    chosen, plan = sample(table, plan_quotas({**table.counts(), 4: 0}, 290, 1.0), 0, cap_per_task=6)
    assert (len(chosen), plan.taken) == (206, {1: 100, 2: 100, 3: 6, 4: 0})
    assert plan.shortfalls()[-1] == "84 left out by the cap of 6 steps per task"


def test_a_cap_that_is_none() -> None:
    table = StepTable.of(rollouts({1: 10}))
    with pytest.raises(UsageProblem, match="cap_per_task=0: at least one"):
        sample(table, plan_quotas({1: 10}, 5, 2.0), 0, cap_per_task=0)


def trajectories(places: StepTable) -> set[tuple[int, int]]:
    return {(place.iteration, place.trajectory) for place in places}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 5)), unique=True),
    st.floats(0, 1, exclude_max=True),
    st.integers(),
)
def test_a_trajectory_is_on_one_side(keys: list[tuple[int, int, int]], ratio: float, seed: int) -> None:
    table = StepTable.of(StepPlace(*key, "task") for key in keys)
    train, val = split_by_trajectory(table, ratio, seed)
    assert not trajectories(train) & trajectories(val)
    assert sorted([*train, *val]) == list(table)
    assert list(train) == sorted(train)
    assert len(train) > 0 or not keys


def test_the_split_has_about_the_ratio_and_stays() -> None:
    first = StepTable.of(rollouts({1: 20_000}))
    second = StepTable.of(rollouts({1: 20_000, 2: 20_000}))
    train, val = split_by_trajectory(first, 0.05, seed=0)
    assert len(trajectories(val)) / 4000 == pytest.approx(0.05, abs=0.011)
    later_train, later_val = split_by_trajectory(second, 0.05, seed=0)
    assert trajectories(train) < trajectories(later_train)
    assert trajectories(val) < trajectories(later_val)
    # the trajectories of another iteration, and another seed, are split anew
    assert {number for iteration, number in trajectories(later_val) if iteration == 2} != {
        number for _, number in trajectories(val)
    }
    assert trajectories(split_by_trajectory(first, 0.05, seed=1)[1]) != trajectories(val)


def test_the_newest_trajectory_stays_in_train_when_chance_leaves_none() -> None:
    table = StepTable.of([StepPlace(1, 0, 0, "a"), StepPlace(2, 3, 0, "b"), StepPlace(2, 3, 1, "b")])
    train, val = split_by_trajectory(table, 1 - 1e-9, seed=0)
    assert trajectories(train) == {(2, 3)}
    assert trajectories(val) == {(1, 0)}


def test_trajectories_of_one_number_are_split_each_for_itself() -> None:
    table = StepTable.of([StepPlace(iteration, 0, step, "a") for iteration in range(200) for step in (2, 5)])
    train, val = split_by_trajectory(table, 0.5, seed=0)
    assert min(len(trajectories(train)), len(trajectories(val))) > 70


def test_no_ratio_no_validation() -> None:
    table = StepTable.of(rollouts({1: 10}))
    train, val = split_by_trajectory(table, 0, seed=0)
    assert (len(train), len(val)) == (10, 0)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 5, float("nan")])
def test_a_ratio_that_is_none(ratio: float) -> None:
    with pytest.raises(UsageProblem, match=f"val_split_ratio={ratio}: not a number from 0"):
        split_by_trajectory(StepTable.of([]), ratio, 0)


def test_memory_is_for_positions() -> None:
    import tracemalloc

    count = 4_000_000
    column: NDArray[np.int32] = np.zeros(count, np.int32)
    table = StepTable(np.zeros(count, np.int64), column, column, column, ("task",))
    quotas = plan_quotas({0: count}, 10_000, 2.0)
    tracemalloc.start()
    sample(table, quotas, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # one number for each step would be 32 MB
