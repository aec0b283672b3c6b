"""Which steps of the last iterations are trained on: a draw without replacement, and the split by trajectory.

    table = StepTable.of(places)
    chosen, plan = sample(table, plan_quotas(table.counts(), total=1800, power=2.0), seed=0)
    train, val = split_by_trajectory(table.take(chosen), ratio=0.05, seed=0)

Rows are never held, only where they are: 20 bytes a step.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainkit.dataset.quotas import SamplingPlan, share_out, weigh
from trainkit.dataset.select import TRAIN, make_split
from trainkit.datatypes import StepPlace
from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from trainkit.dataset.quotas import Quotas

    Positions = NDArray[np.int64]

CHUNK = 1 << 18  # steps of a race that are held at a time
AHEAD = 1000  # steps beyond twice its quota that are looked at first in an iteration under a cap


@dataclass(frozen=True, slots=True)
class StepTable:
    """Steps in the order (iteration, trajectory, step), as columns; `tasks[task[n]]` is the task of step n."""

    iteration: Positions
    trajectory: NDArray[np.int32]
    step: NDArray[np.int32]
    task: NDArray[np.int32]
    tasks: tuple[str, ...]

    @classmethod
    def of(cls, places: Iterable[StepPlace]) -> StepTable:
        """Return the table of places in any order."""
        import numpy as np

        iterations, trajectories, steps, numbers = array("q"), array("i"), array("i"), array("i")
        tasks: dict[str, int] = {}
        for iteration, trajectory, step, task in places:
            iterations.append(iteration)
            trajectories.append(trajectory)
            steps.append(step)
            numbers.append(tasks.setdefault(task, len(tasks)))
        table = cls(
            np.asarray(iterations), np.asarray(trajectories), np.asarray(steps), np.asarray(numbers), tuple(tasks)
        )
        return table.take(np.lexsort((table.step, table.trajectory, table.iteration)))

    def __len__(self) -> int:
        return len(self.iteration)

    def __iter__(self) -> Iterator[StepPlace]:
        for iteration, trajectory, step, task in zip(
            self.iteration, self.trajectory, self.step, self.task, strict=True
        ):
            yield StepPlace(int(iteration), int(trajectory), int(step), self.tasks[task])

    def ranges(self) -> dict[int, tuple[int, int]]:
        """Return the positions [start, stop) of each iteration that has steps, oldest first."""
        found, start = {}, 0
        while start < len(self):
            number = self.iteration[start]
            stop = int(self.iteration.searchsorted(number, side="right"))
            found[int(number)] = (start, stop)
            start = stop
        return found

    def counts(self) -> dict[int, int]:
        """Return how many steps each iteration has; one without steps is missing: add it with 0 to keep its place."""
        return {iteration: stop - start for iteration, (start, stop) in self.ranges().items()}

    def take(self, which: NDArray[Any]) -> StepTable:
        """Return the table of some of the steps, given by their positions or by a true or false for each."""
        return StepTable(self.iteration[which], self.trajectory[which], self.step[which], self.task[which], self.tasks)


def sample(
    table: StepTable, quotas: Quotas, seed: int, cap_per_task: int | None = None
) -> tuple[Positions, SamplingPlan]:
    """Draw each iteration's quota without replacement; return positions in the table in rising order, and the plan.

    Each iteration has a random stream of its own, so what is drawn from it depends on the seed, its steps and its quota
    alone. With a cap the newest iteration chooses first, and what the cap leaves open is shared out again.

    Raises:
        UsageProblem: `cap_per_task` is below 1.
    """
    import numpy as np

    if cap_per_task is not None and cap_per_task < 1:
        raise UsageProblem(f"cap_per_task={cap_per_task}: at least one step per task", "leave it out for no cap")
    ranges = table.ranges()
    if cap_per_task is None:
        draws = [
            start + draw(stop - start, quotas.quotas[iteration], (seed, iteration))
            for iteration, (start, stop) in ranges.items()
        ]
        chosen = np.concatenate([np.empty(0, np.int64), *draws])
    else:
        chosen = draw_capped(table, quotas, seed, cap_per_task)
    bounds = {iteration: np.searchsorted(chosen, pair).tolist() for iteration, pair in ranges.items()}
    taken = {key: bounds[key][1] - bounds[key][0] if key in bounds else 0 for key in quotas.counts}
    return chosen, SamplingPlan(
        quotas.wanted, quotas.power, seed, cap_per_task,
        quotas.counts, quotas.weights, quotas.quotas, taken, quotas.shortages,
    )  # fmt: skip


def race(
    count: int, seed_key: tuple[int, int], weights: NDArray[np.float64] | None = None
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield (first runner, times) of `count` runners, `CHUNK` at a time; the first k to arrive are the sample.

    Arrival times Exp(1)/w give a draw without replacement with probabilities in proportion to w (Efraimidis and
    Spirakis, 2006). Equal runners need no logarithm: it would not change their order.
    """
    import numpy as np

    seed, stream = seed_key
    seeds = np.random.SeedSequence(seed % 2**64, spawn_key=(stream,))
    random = np.random.Generator(np.random.PCG64(seeds))
    for start in range(0, count, CHUNK):
        times = random.random(min(CHUNK, count - start))
        yield start, times if weights is None else -np.log1p(-times) / weights[start : start + CHUNK]


def draw(count: int, number: int, seed_key: tuple[int, int], weights: NDArray[np.float64] | None = None) -> Positions:
    """Return `number` of the positions 0 .. count-1 in rising order, drawn without replacement; all if there are fewer.

    Args:
        count: how many positions there are.
        number: how many are drawn.
        seed_key: the seed and the number of the random stream.
        weights: positive, one for each position; without them all are equal.
    """
    import numpy as np

    if not 0 < number < count:
        return np.arange(min(number, count))
    return arrivals(count, number, seed_key, weights)[0]


def arrivals(
    count: int, number: int, seed_key: tuple[int, int], weights: NDArray[np.float64] | None = None
) -> tuple[Positions, NDArray[np.float64]]:
    """Return the first `number` (at least 1) of `count` runners by their numbers, and when each arrives."""
    import numpy as np

    last = time_of_arrival(count, number, seed_key, weights) if number < count else np.inf
    # Running the race again is cheaper than to remember who ran when, and finds them in rising order.
    runs = race(count, seed_key, weights)
    early = [(start + (found := np.flatnonzero(times <= last)), times[found]) for start, times in runs]
    places, times = zip(*early, strict=True)
    return np.concatenate(places)[:number], np.concatenate(times)[:number]


def time_of_arrival(
    count: int, number: int, seed_key: tuple[int, int], weights: NDArray[np.float64] | None
) -> np.float64:
    """Return when the `number`-th of `count` runners arrives, holding twice as many times at most."""
    import numpy as np

    arrived: list[NDArray[np.float64]] = []
    num_arrived, limit = 0, np.float64(np.inf)
    for _, times in race(count, seed_key, weights):
        arrived.append(times[times < limit])
        num_arrived += len(arrived[-1])
        if num_arrived > 2 * number + CHUNK:
            first = np.partition(np.concatenate(arrived), number)[: number + 1]
            arrived, num_arrived, limit = [first], number + 1, first[number]
    return np.float64(np.partition(np.concatenate(arrived), number - 1)[number - 1])


def draw_capped(table: StepTable, quotas: Quotas, seed: int, cap: int) -> Positions:
    """Draw the quotas with at most `cap` steps of a task; what an iteration cannot give is shared out again."""
    import numpy as np

    total, now = sum(quotas.quotas.values()), quotas.quotas
    # To sort all who arrive is slow, and only those far behind the quota are ever missed: first without them.
    for limits in ({key: 2 * quota + AHEAD for key, quota in now.items()}, quotas.counts):
        room = np.full(len(table.tasks), cap)
        waiting = order_of_arrival(table, seed, limits)
        chosen = fill(waiting, table.task, room, now)
        if sum(map(len, chosen)) == total:
            break
    while any(now.values()):
        able = {key: np.bincount(table.task[order], minlength=len(room)) for key, order in waiting.items()}
        counts = {key: int(np.minimum(able[key], room).sum()) if key in able else 0 for key in quotas.counts}
        now = share_out(counts, total - sum(map(len, chosen)), weigh(counts, quotas.power))
        chosen += fill(waiting, table.task, room, now)
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def order_of_arrival(table: StepTable, seed: int, limits: Mapping[int, int]) -> dict[int, Positions]:
    """Return the positions of the first `limits[iteration]` of each iteration, the earliest first."""
    import numpy as np

    waiting = {}
    for iteration, (start, stop) in table.ranges().items():
        places, times = arrivals(stop - start, limits[iteration], (seed, iteration))
        waiting[iteration] = start + places[np.argsort(times, kind="stable")]
    return waiting


def fill(
    waiting: dict[int, Positions], tasks: NDArray[np.int32], room: Positions, quotas: Mapping[int, int]
) -> list[Positions]:
    """Take each iteration's quota, or what it has, the newest first; `waiting` keeps the others, `room` is used up."""
    chosen = []
    for iteration in reversed(waiting):
        picked, waiting[iteration] = walk(waiting[iteration], tasks, room, quotas[iteration])
        chosen.append(picked)
    return chosen


def walk(order: Positions, tasks: NDArray[np.int32], room: Positions, number: int) -> tuple[Positions, Positions]:
    """Return the first `number` of `order` whose task has room, and those that still wait; `room` is used up."""
    import numpy as np

    picked, passed = [order[:0]], [order[:0]]
    while number and len(order):
        block, order = order[: 2 * number], order[2 * number :]
        free = block[ranks(tasks[block]) < room[tasks[block]]]
        picked.append(free[:number])
        passed.append(free[number:])
        room -= np.bincount(tasks[picked[-1]], minlength=len(room))
        number -= len(picked[-1])
    return np.concatenate(picked), np.concatenate([*passed, order])


def ranks(values: NDArray[np.int32]) -> Positions:
    """Return how often each value has been there before: [7, 8, 7] gives [0, 0, 1]."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-1))
    before = np.empty(len(values), np.int64)
    before[order] = np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))
    return before


def split_by_trajectory(table: StepTable, ratio: float, seed: int) -> tuple[StepTable, StepTable]:
    """Return (train, val): whole trajectories, about `ratio` of them in val.

    The side depends on the iteration, the trajectory and the seed alone, so a trajectory keeps it in later rounds. When
    chance puts all in val, the newest goes to train.

    Raises:
        UsageProblem: `ratio` is not in [0, 1).
    """
    import numpy as np

    if not 0 <= ratio < 1:
        raise UsageProblem(f"val_split_ratio={ratio}: not a number from 0 to below 1", "0.05 keeps 5 % for validation")
    side_of = make_split(ratio, seed)
    new = np.ones(len(table), dtype=bool)
    new[1:] = np.diff(table.iteration) != 0
    new[1:] |= np.diff(table.trajectory) != 0
    starts = np.flatnonzero(new)
    pairs = zip(table.iteration[starts].tolist(), table.trajectory[starts].tolist(), strict=True)
    trained = np.array([side_of(b"%d/%d" % pair) == TRAIN for pair in pairs], dtype=bool)
    if not trained.any():
        trained[-1:] = True
    in_train = np.repeat(trained, np.diff(starts, append=len(table)))
    return table.take(in_train), table.take(~in_train)
