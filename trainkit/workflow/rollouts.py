"""Rollouts read through: which steps of the last iterations can be trained on, and what is left out and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from trainkit.dataset.replay import StepTable
from trainkit.datatypes import Problem, Reject
from trainkit.errors import InputError, Rejected
from trainkit.sources.trajectories import eligible, read_trajectories, to_example

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from trainkit.datatypes import StepPlace
    from trainkit.sources.steps import Trajectory
    from trainkit.sources.trajectories import IterationFile

    IsShort = Callable[[Sequence[str]], Sequence[bool]]

SHORT = "short answer"


@dataclass(slots=True)
class Tally:
    """What one iteration holds, in trajectories and in steps, each with what was left out by its reason.

    Attributes:
        iteration: its number.
        trajectories: all of them.
        unusable: reason -> trajectories, such as `{"fewer than 2 steps": 3, "dummy": 1}`.
        steps: "steps" are those of the usable trajectories; then reason -> steps, such as `{"not successful": 120}`.
        rejected: reason -> steps that cannot be made a training row, such as `{"image file": 2}`.
        changes: what was changed in rows, such as `{"marks in text": 4}`.
        usable: steps that can be trained on.
    """

    iteration: int
    trajectories: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    usable: int = 0

    @property
    def passed_over(self) -> dict[str, int]:
        """Steps that are not meant to be trained on, by reason; no reason that has none."""
        return {name: number for name, number in self.steps.items() if name not in ("steps", "eligible") and number}

    @property
    def left_out(self) -> dict[str, int]:
        """All steps that are not trained on, by reason."""
        return {**self.passed_over, **self.rejected}

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "iteration": self.iteration,
            "trajectories": self.trajectories,
            "unusable": dict(sorted(self.unusable.items())),
            "steps": self.steps["steps"],
            "usable": self.usable,
            "left_out": dict(sorted(self.left_out.items())),
            "changes": {name: number for name, number in sorted(self.changes.items()) if number},
        }


@dataclass(frozen=True, slots=True)
class Survey:
    """The steps of the iterations that could be read, what each iteration held, and those that were skipped."""

    files: tuple[IterationFile, ...]
    table: StepTable
    tallies: tuple[Tally, ...]
    problems: tuple[Problem, ...]

    def counts(self) -> dict[int, int]:
        """Return how many steps each iteration can give; one that can give none keeps its place with 0."""
        return {file.number: 0 for file in self.files} | self.table.counts()


def survey(
    files: Sequence[IterationFile],
    *,
    skip_bad: bool = False,
    is_short: IsShort | None = None,
    on_file: Callable[[IterationFile], None] = lambda _: None,
) -> Survey:
    """Find the steps that can be trained on; each was tried as a training row, none is held.

    Args:
        files: the iterations, the oldest first.
        skip_bad: leave out an iteration whose file cannot be read, with a warning.
        is_short: says of answers which are too short to be trained on.
        on_file: told of each file before it is read.

    Raises:
        InputError: a file cannot be read to its end.
    """
    good, tables, tallies, problems = [], [], [], []
    for file in files:
        on_file(file)
        tally = Tally(file.number)
        try:
            table = StepTable.of(place for place, _ in read_steps(file, tally, is_short))
        except InputError as error:
            problems.append(skipped(error, skip_bad=skip_bad))
            continue
        good.append(file)
        tables.append(table)
        tallies.append(tally)
    return Survey(tuple(good), StepTable.of(chain.from_iterable(tables)), tuple(tallies), tuple(problems))


def skipped(error: InputError, *, skip_bad: bool) -> Problem:
    """Return the warning that an iteration is left out.

    Raises:
        InputError: it may not be, as `skip_bad` is false.
    """
    if not skip_bad:
        raise InputError(error.message, f"{error.hint or 'write it again'}; --skip-bad-iterations goes on without it")
    return Problem("--skip-bad-iterations", f"left out: {error.message}", error.hint, "warning")


def read_steps(
    file: IterationFile,
    tally: Tally,
    is_short: IsShort | None = None,
    on_reject: Callable[[Reject], None] = lambda _: None,
    wanted: Container[tuple[int, int]] | None = None,
) -> Iterator[tuple[StepPlace, bytes]]:
    """Yield each step of an iteration that can be trained on, with its training row as a line of JSON.

    Args:
        file: the iteration.
        tally: added to.
        is_short: as for `survey`.
        on_reject: told of each step that cannot be made a row; whole trajectories are only counted.
        wanted: (trajectory, step) of the rows to make; None makes all of them.

    Raises:
        InputError: the file cannot be read to its end.
    """
    for found in read_trajectories(file):
        tally.trajectories += 1
        if isinstance(found, Reject):
            tally.unusable[found.reason] += 1
            continue
        places = [place for place in eligible(found, tally.steps) if wanted is None or place[1:3] in wanted]
        for place in long_enough(found, places, tally, is_short):
            try:
                row = to_example(found, place.step, tally.changes)
            except Rejected as rejected:
                tally.rejected[rejected.reason] += 1
                detail = f"step {place.step + 1}: {rejected.detail}"
                on_reject(Reject(str(file.path), place.trajectory + 1, rejected.reason, detail, b""))
                continue
            tally.usable += 1
            yield place, row


def long_enough(
    trajectory: Trajectory, places: list[StepPlace], tally: Tally, is_short: IsShort | None
) -> list[StepPlace]:
    """Return the places whose answers are not too short."""
    if is_short is None or not places:
        return places
    short = is_short([trajectory.steps[place.step].response for place in places])
    tally.steps[SHORT] += sum(short)
    return [place for place, is_out in zip(places, short, strict=True) if not is_out]
