"""A trainer that is asked to save and stop, and one that starts again after a crash.

What preempts a training is SIGTERM or SIGUSR1 to trainkit. The trainer is asked by a file in the run's folder (see
trainkit/inside/train_together.py); before its first step there is nothing to save and it gets the signal. A training
of several nodes stops on all of them, with the signal that one of them got.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainkit.errors import ConfigError, Interrupted
from trainkit.files import write_text_atomic
from trainkit.launch.diagnosis import OUT_OF_MEMORY, diagnose, load_tail
from trainkit.launch.process import PREEMPTIONS
from trainkit.runs.checkpoints import load_checkpoint
from trainkit.workflow.start import STOP_FILE, choose_resume

if TYPE_CHECKING:
    from pathlib import Path

    from trainkit.datatypes import Outcome, Step
    from trainkit.runs.checkpoints import Resume
    from trainkit.runs.store import Run
    from trainkit.workflow.prepare import Settings
    from trainkit.workflow.start import TrainPlan

# stands in the log between two starts of the trainer
AGAIN = "trainkit: restart "


@dataclass(frozen=True, slots=True)
class Preempted:
    """A training that stopped for a signal; `step` is the one after which it saved, None when it did not."""

    signal: int
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a training ended: its last start, that start's last logged step, the seconds of all starts."""

    plan: TrainPlan
    outcome: Outcome
    last: Step | None
    preempted: Preempted | None

    @property
    def step(self) -> int | None:
        """The last step that is known of."""
        if self.preempted and self.preempted.step is not None:
            return self.preempted.step
        return self.last.step if self.last else None


class StopRequest:
    """The file by which a trainer is asked to save and stop; `number` is the signal that was asked for, once it was."""

    def __init__(self, run_folder: Run) -> None:
        self._file = run_folder.path / STOP_FILE
        self.number: int | None = None

    def ask(self, number: int) -> bool:
        """Ask the trainer to stop; return whether it can be asked, which it can from its first step on."""
        if not self._file.exists():
            return False
        try:
            write_text_atomic(self._file, str(number))
        except OSError:  # a full disk: nothing could be saved either, so the trainer gets the signal
            return False
        self.number = number
        return True

    def clear(self) -> Preempted | None:
        """Remove the file; return what the trainer left in it."""
        words = self._file.read_text(encoding="utf-8").split() if self._file.exists() else []
        self._file.unlink(missing_ok=True)
        return Preempted(int(words[0]), int(words[1])) if len(words) == 2 else None


def find_preemption(left: Preempted | None, outcome: Outcome, output_dir: Path) -> Preempted | None:
    """Return how a training was preempted, from what the trainer left; None when it was not.

    A trainer that got the signal in its last step has finished: it is judged by its steps, not by its exit code alone.
    """
    if left is None and outcome.signal in PREEMPTIONS and not has_finished(outcome, output_dir):
        return Preempted(outcome.signal)
    return left


def has_finished(outcome: Outcome, output_dir: Path) -> bool:
    """Return whether the model in the trainer's output folder has made all of its steps."""
    model = load_checkpoint(output_dir)
    return outcome.exit_code == 0 and 0 < model.total_steps <= model.step


def stopped(ended: Ended, number: int, run_folder: Run) -> Interrupted:
    """Return the error that says how a stopped training can go on."""
    output_dir = ended.plan.output_dir
    hint = f"--resume auto goes on from the newest complete checkpoint in {output_dir}"
    if ended.preempted and ended.preempted.step is not None:
        saved = load_checkpoint(output_dir / f"checkpoint-{ended.preempted.step}")
        hint = f"--resume auto goes on after step {saved.step}, which was saved: {saved.path}"
        if saved.missing:
            hint = f"step {saved.step} was the last, and cannot be resumed from: {', '.join(saved.missing)}"
    return Interrupted(f"stopped; the log is {run_folder.log_file}; {hint}", number)


def hand_on(number: int | None) -> None:
    """Hand a signal that a training outlived to whoever waits for one, as `update --watch` does after a round."""
    if number is not None and callable(signal.getsignal(number)):
        signal.raise_signal(number)


def find_restart(settings: Settings, ended: Ended, run_folder: Run) -> Resume | None:
    """Return where a training that crashed goes on; None when it has not crashed, or would only crash again.

    That is: the GPU's memory was too small, there is no complete checkpoint, all steps are made, or none was made since
    the trainer started.
    """
    outcome, start = ended.outcome, ended.plan.resume
    if outcome.exit_code == 0 or outcome.signal is not None or ended.preempted:
        return None
    if diagnose(load_last_tail(run_folder.log_file), outcome.exit_code).title == OUT_OF_MEMORY:
        return None
    try:
        resume = choose_resume(ended.plan.prepared.config, "auto", settings.base)
    except ConfigError:
        # all steps are made: what crashed came after them
        return None
    made = max(step_of(resume), ended.last.step if ended.last else 0)
    return resume if resume.checkpoint and made > step_of(start) else None


def step_of(resume: Resume) -> int:
    """Return the step that a training goes on from, 0 for one that starts from the beginning."""
    return resume.checkpoint.step if resume.checkpoint else 0


def load_last_tail(log_file: Path) -> str:
    """Return the end of a log, as far as it is of the last start."""
    return load_tail(log_file).rpartition(AGAIN)[2]
