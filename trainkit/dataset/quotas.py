"""How many steps each iteration gives to a sample, and the record of what was planned and taken.

Newer iterations give more: the i-th of those at hand has the weight (i+1)^power, which is its part of the whole sample
whatever the number of its steps. With power 2, four iterations give 3.3, 13.3, 30 and 53.3 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_POWER = 1000  # far above it the newest iteration has everything, and exact weights would only cost time


@dataclass(frozen=True, slots=True)
class Quotas:
    """How many steps each iteration gives: `plan_quotas({3: 100, 4: 100}, 50, 2.0).quotas` is `{3: 10, 4: 40}`.

    `weights` add up to 1; `shortages` says of an iteration how many steps fewer than its proportion it can give.
    """

    wanted: int
    power: float
    counts: Mapping[int, int]
    weights: Mapping[int, float]
    quotas: Mapping[int, int]
    shortages: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What a sample was to be and what it became, by iteration; kept with the run so that it can be drawn again."""

    wanted: int
    power: float
    seed: int
    cap_per_task: int | None
    counts: Mapping[int, int]
    weights: Mapping[int, float]
    quotas: Mapping[int, int]
    taken: Mapping[int, int]
    shortages: Mapping[int, int]

    @property
    def num_taken(self) -> int:
        """How many steps the sample has."""
        return sum(self.taken.values())

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values, the iterations as rows, oldest first."""
        return {
            "wanted": self.wanted,
            "taken": self.num_taken,
            "power": self.power,
            "seed": self.seed,
            "cap_per_task": self.cap_per_task,
            "iterations": [
                {
                    "iteration": iteration,
                    "weight": self.weights[iteration],
                    "count": self.counts[iteration],
                    "quota": self.quotas[iteration],
                    "taken": self.taken[iteration],
                    "shortage": self.shortages.get(iteration, 0),
                }
                for iteration in self.counts
            ],
        }

    def shortfalls(self) -> list[str]:
        """Return in words where the sample is not what was asked for."""
        planned = sum(self.quotas.values())
        if planned < self.wanted:
            lines = [f"{self.wanted} were asked for, and there are {planned}: every step is wanted"]
        else:
            lines = [
                f"iteration {iteration} is {number} short of its part, which the others give"
                for iteration, number in self.shortages.items()
            ]
        if self.num_taken < planned:
            lines.append(f"{planned - self.num_taken} left out by the cap of {self.cap_per_task} steps per task")
        return lines


def plan_quotas(counts: Mapping[int, int], total: int, power: float) -> Quotas:
    """Share `total` steps among iterations in proportion to (i+1)^power, i = 0 for the oldest at hand.

    What an iteration cannot give is shared among the others in proportion; with `total` above all counts every step
    is taken. Whole numbers by the largest remainder, the newer iteration first where two are equal.

    Args:
        counts: iteration number -> steps it can give; an iteration with 0 keeps its place among the weights.
        total: steps in the sample, at least 1.
        power: 0 makes all iterations equal.

    Raises:
        UsageProblem: `total` is below 1, or `power` not between 0 and `MAX_POWER`.
    """
    if total < 1:
        raise UsageProblem(f"positive_samples_to_train={total}: too few to train on", "give a number above 0")
    if not 0 <= power <= MAX_POWER:
        raise UsageProblem(
            f"recency_bias_power={power}: not a number from 0 to {MAX_POWER}", "0 is uniform; 2 prefers new iterations"
        )
    ordered = {iteration: counts[iteration] for iteration in sorted(counts)}
    weights = weigh(ordered, power)
    quotas = share_out(ordered, total, weights)
    plain = share_out(dict.fromkeys(ordered, total), total, weights)
    whole = sum(weights.values())
    return Quotas(
        wanted=total,
        power=power,
        counts=ordered,
        weights={iteration: float(weight / whole) for iteration, weight in weights.items()},
        quotas=quotas,
        shortages={key: plain[key] - quotas[key] for key in ordered if quotas[key] < plain[key]},
    )


def weigh(iterations: Iterable[int], power: float) -> dict[int, Fraction]:
    """Return (i+1)^power, exactly for a whole power and without overflow for any."""
    whole, rest = int(power), power % 1
    return {iteration: rank**whole * Fraction(rank**rest) for rank, iteration in enumerate(iterations, 1)}


def share_out(counts: Mapping[int, int], total: int, weights: Mapping[int, Fraction]) -> dict[int, int]:
    """Fill iterations in proportion to their weights, each up to its count (water filling), until `total` is given."""
    quotas = dict(counts)
    left, still = total, dict(counts)
    while still:
        unit = Fraction(left) / sum(weights[key] for key in still)
        full = [key for key, count in still.items() if count <= unit * weights[key]]
        if not full:
            break
        for key in full:
            left -= still.pop(key)
    parts = {key: unit * weights[key] for key in still}
    quotas.update({key: math.floor(part) for key, part in parts.items()})
    by_remainder = sorted(parts, key=lambda key: (parts[key] % 1, key), reverse=True)
    for key in by_remainder[: left - sum(quotas[key] for key in parts)]:
        quotas[key] += 1
    return quotas
