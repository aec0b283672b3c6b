"""`trainkit update --watch`: a round for each new iteration of rollouts, until it is told to stop."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from trainkit.errors import InputError, UsageProblem
from trainkit.launch.stop import stoppable
from trainkit.plan.update import load_update
from trainkit.runs.rounds import load_rounds
from trainkit.sources.trajectories import find_iterations
from trainkit.workflow.round import inputs_of
from trainkit.workflow.update import DEFAULT_CONFIG, Told, UpdateOptions, UpdateResult, update

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

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
    config = load_update(base / (file or DEFAULT_CONFIG), overrides, base=base)
    with stoppable() as stop:

        def stage(words: str) -> None:
            stop.check()
            told.stage(words)

        seen: dict[str, list[int]] = {}
        while True:
            states = find_states(config.save_path)
            new = count_new(config.save_path)
            if new >= waiting.every and states == seen:
                on_result(update(file, overrides, options, base, dataclasses.replace(told, stage=stage)))
            elif new < waiting.every:
                told.stage(f"waiting for rollouts: {new} of {waiting.every} new iterations")
            seen = states
            if stop.wait(waiting.poll_seconds):
                return


def find_states(save_path: Path) -> dict[str, list[int]]:
    """Return size and time of change of every iteration's file; empty while there is none."""
    try:
        return inputs_of(tuple(find_iterations(save_path, ALL)))
    except InputError:
        if any((save_path / "train_trajectories").glob("train_trajectories.*iteration*")):
            raise
        return {}


def count_new(save_path: Path) -> int:
    """Return how many iterations are newer than those of the last round that was handed over."""
    done = [one.newest_iteration for one in load_rounds(save_path) if one.state == "handed over"]
    try:
        files = find_iterations(save_path, ALL)
    except InputError:
        return 0
    return sum(file.number > max(done, default=-1) for file in files)
