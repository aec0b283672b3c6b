"""`trainkit update --watch`: a round for each new iteration of rollouts, until it is told to stop."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from trainkit.errors import UsageProblem
from trainkit.launch.stop import stoppable
from trainkit.plan.update import load_update
from trainkit.runs.rounds import load_rounds
from trainkit.sources.trajectories import FOLDER, find_iterations, iteration_of
from trainkit.workflow.round import inputs_of
from trainkit.workflow.update import DEFAULT_CONFIG, UpdateResult, find_trainer_here, update

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trainkit.launch.stop import Stop
    from trainkit.runs.store import Run
    from trainkit.workflow.round_options import Told, UpdateOptions
    from trainkit.workflow.start import TrainPlan

ALL = 1 << 62


@dataclasses.dataclass(frozen=True, slots=True)
class WatchOptions:
    """How new iterations are waited for.

    Attributes:
        every: a round is run when there are so many iterations that no round has seen.
        poll_seconds: how often the folder is looked at; a file that changed in this time is not finished.
    """

    every: int = 1
    poll_seconds: float = 30.0


def watch(
    file: Path | None,
    overrides: Sequence[str],
    options: UpdateOptions,
    waiting: WatchOptions,
    base: Path,
    told: Told,
    on_result: Callable[[UpdateResult], None],
) -> None:
    """Run a round whenever enough new iterations are finished; return when SIGTERM or SIGHUP arrives between rounds.

    Args:
        file, overrides, options, base, told: as for `update`.
        waiting: when a round is due.
        on_result: told of each round.

    Raises:
        Interrupted: the signal came while a round was under way; the next call goes on with it.
        TrainkitError: as for `update`; a round that fails ends the watch.
    """
    if waiting.every < 1 or waiting.poll_seconds <= 0:
        raise UsageProblem("--every and --poll: must be above 0")
    trainer, _ = find_trainer_here(must=True)
    config = load_update(base / (file or DEFAULT_CONFIG), overrides, base=base, schema=trainer.schema)
    with stoppable() as stop:
        checked = stopping(told, stop)
        seen: dict[str, list[int]] = {}
        while True:
            states = find_states(config.save_path)
            new = count_new(config.save_path, states)
            if new >= waiting.every and states == seen:
                on_result(update(file, overrides, options, base, checked))
            elif new < waiting.every:
                told.stage(f"waiting for rollouts: {new} of {waiting.every} new iterations")
            seen = states
            if stop.wait(waiting.poll_seconds):
                return


def stopping(told: Told, stop: Stop) -> Told:
    """Return what is called while a round runs so that a signal ends the round before its training."""

    def stage(words: str) -> None:
        stop.check()
        told.stage(words)

    def looked(done: int, total: int | None) -> None:
        stop.check()
        told.looked(done, total)

    def started(plan: TrainPlan, run: Run) -> None:
        stop.check()
        told.started(plan, run)

    return dataclasses.replace(told, stage=stage, looked=looked, started=started)


def find_states(save_path: Path) -> dict[str, list[int]]:
    """Return size and time of change of every iteration's file; empty while there is none."""
    folder = save_path / FOLDER
    if not folder.is_dir() or not any(map(iteration_of, folder.iterdir())):
        return {}
    return inputs_of(tuple(find_iterations(save_path, ALL)))


def count_new(save_path: Path, states: dict[str, list[int]]) -> int:
    """Return how many iterations are newer than those of the last round that was handed over."""
    if not states:
        return 0
    done = [one.newest_iteration for one in load_rounds(save_path) if one.state == "handed over"]
    return sum(file.number > max(done, default=-1) for file in find_iterations(save_path, ALL))
