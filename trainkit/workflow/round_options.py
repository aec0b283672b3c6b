"""How a round of an update is run, and who is told of its course."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.datatypes import Problem, Step
    from trainkit.runs.store import Run
    from trainkit.workflow.round import PreparedRound
    from trainkit.workflow.start import Monitor, TrainPlan


@dataclass(frozen=True, slots=True)
class UpdateOptions:
    """How a round is run.

    Attributes:
        train: train it and hand its model over; without it the data and the configuration are written.
        resume: "auto", "never" or a checkpoint's folder; None is auto.
        skip_bad: go on without iterations that cannot be read.
        again: make a new round of the rollouts and the configuration of the last one.
        dry_run: write nothing.
        monitor: the tracker in place of the configured ones.
        strict: a warning keeps the training from starting.
    """

    train: bool = False
    resume: str | None = None
    skip_bad: bool = False
    again: bool = False
    dry_run: bool = False
    monitor: Monitor | None = None
    strict: bool = False


def ignore(*_: object) -> None:
    """Show nothing."""


@dataclass(frozen=True, slots=True)
class Told:
    """What is called while a round runs: by a person's eyes, nothing depends on it.

    Attributes:
        stage: a few words on what is being done.
        prepared: the round, when it is ready to be trained.
        started, step, looked, word: as for `trainkit.workflow.train.train`.
    """

    stage: Callable[[str], None] = ignore
    prepared: Callable[[PreparedRound], None] = ignore
    started: Callable[[TrainPlan, Run], None] = ignore
    step: Callable[[Step, int], None] = ignore
    looked: Callable[[int, int | None], None] = ignore
    word: Callable[[Problem], None] = ignore
