"""Compare trainkit's sampler with `numpy.random.choice(p=...)`, in turn and in one run; print a Markdown table.

    python benchmarks/sampler.py --rounds 5

Both draw without replacement from n steps that are at hand as arrays; trainkit's are in four iterations of equal size,
and its time has the quotas, the draw and the plan in it. choice gets the weight (position + 1)^2 for each step, as
scripts do that sample by position, and its time has the weights in it. The cap is twice what a task has on average. The
ratios are taken within a round. Peak memory is what a call allocates beyond the arrays that it is given, from a run of
its own under tracemalloc.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import tracemalloc
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from trainkit.dataset.quotas import plan_quotas
from trainkit.dataset.replay import StepTable, sample

if TYPE_CHECKING:
    from collections.abc import Callable

ITERATIONS = 4
STEPS_OF_A_TRAJECTORY = 10
TASKS = 5000
SIZES = [(10**5, 1_800), (10**5, 10**4), (10**6, 1_800), (10**6, 10**5), (10**7, 1_800), (10**7, 10**6)]


def make_table(num_steps: int) -> StepTable:
    """Return a table of `num_steps` steps in four iterations of equal size."""
    number = np.arange(num_steps, dtype=np.int32)
    return StepTable(
        iteration=np.repeat(np.arange(ITERATIONS), -(-num_steps // ITERATIONS))[:num_steps],
        trajectory=number // STEPS_OF_A_TRAJECTORY,
        step=number % STEPS_OF_A_TRAJECTORY,
        task=number % TASKS,
        tasks=tuple(f"task_{task}" for task in range(TASKS)),
    )


def plain(num_steps: int, number: int) -> None:
    """Draw by position, with numpy."""
    weights = np.arange(1, num_steps + 1) ** 2.0
    drawn = np.random.choice(num_steps, number, replace=False, p=weights / weights.sum())
    check(drawn, number)


def ours(table: StepTable, number: int, cap: int | None = None) -> None:
    """Draw by iteration, with trainkit."""
    chosen, _ = sample(table, plan_quotas(table.counts(), number, 2.0), seed=0, cap_per_task=cap)
    check(chosen, number)


def check(drawn: np.ndarray, number: int) -> None:
    if len(drawn) != number:
        raise SystemExit(f"drew {len(drawn)} instead of {number}")


def seconds_of(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def peak_of(call: Callable[[], None]) -> float:
    """Return the peak of a call's allocations in MB."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def rows_of(num_steps: int, number: int, rounds: int) -> list[str]:
    """Measure one size; return the rows of the table."""
    table = make_table(num_steps)
    calls: dict[str, Callable[[], None]] = {
        "numpy.random.choice(p)": lambda: plain(num_steps, number),
        "trainkit": lambda: ours(table, number),
        "trainkit, cap per task": lambda: ours(table, number, cap=max(2, 2 * number // TASKS)),
    }
    walls: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            walls[name].append(seconds_of(call))
    first = walls["numpy.random.choice(p)"]
    rows = []
    for name, call in calls.items():
        low, middle, high = min(walls[name]), statistics.median(walls[name]), max(walls[name])
        shown = f"{1e3 * middle:.1f} ({1e3 * low:.1f} to {1e3 * high:.1f})"
        ratio = statistics.median(one / other for one, other in zip(first, walls[name], strict=True))
        rows.append(f"| {num_steps:,} | {number:,} | {name} | {shown} | {ratio:.1f} | {peak_of(call):.1f} |")
    return rows


def main() -> None:
    """Run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--largest", type=float, default=1e7, help="leave out more steps than this")
    words = parser.parse_args()
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}"
    )
    print(f"{words.rounds} rounds; {machine}, {datetime.now(UTC).date()}\n")
    print("| steps | drawn | how | ms: median (min to max) | choice / this | peak MB |")
    print("|---|---|---|---|---|---|")
    for num_steps, number in SIZES:
        if num_steps <= words.largest:
            print(*rows_of(num_steps, number, words.rounds), sep="\n", flush=True)


if __name__ == "__main__":
    main()
