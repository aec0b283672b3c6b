"""Where the training of a round goes on: the checkpoint, or a copy of it that has the learning rate of the round."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import trainkit.inside
from trainkit import environment
from trainkit.datatypes import Problem
from trainkit.errors import ConfigError
from trainkit.launch.llamafactory import program_command
from trainkit.launch.process import capture
from trainkit.runs.checkpoints import find_newest_complete
from trainkit.runs.exchange import remove
from trainkit.runs.resume_check import find_base_rates
from trainkit.runs.rounds import CHECKPOINTS, COPY, output_of
from trainkit.runs.scheduler_copy import with_learning_rate
from trainkit.runs.store import find_marker, write_marker
from trainkit.workflow.export import last_json
from trainkit.workflow.prepare import trainer_python

if TYPE_CHECKING:
    from trainkit.datatypes import TrainConfig
    from trainkit.plan.update import UpdateConfig
    from trainkit.runs.rounds import Round, Start

INSIDE = Path(trainkit.inside.__file__).parent


def resuming(config: TrainConfig, checkpoint: Path | None) -> TrainConfig:
    """Return the configuration of a training that goes on from a checkpoint."""
    if checkpoint is None:
        return config
    key = "resume_from_checkpoint"
    origin = {**config.origin, key: config.origin.get(key, "trainkit update")}
    return dataclasses.replace(config, values={**config.values, key: str(checkpoint)}, origin=origin)


def going_on_from(record: Round, start: Start, update: UpdateConfig, *, anew: bool = False) -> Path | None:
    """Return the checkpoint that a training goes on from: its own newest one after an interruption, else the start.

    One whose learning rate is not the configured one is copied to checkpoints/resume/ and changed there. With `anew`
    the training's own checkpoints do not count.

    Raises:
        ConfigError: its state is in a form in which the learning rate cannot be changed.
    """
    own = None if anew else find_newest_complete(output_of(update.save_path, record.name))
    chosen = own or start.checkpoint
    if chosen is None:
        return None
    rate = float(update.trainer["learning_rate"])
    if all(math.isclose(rate, other, rel_tol=1e-6) for other in find_base_rates(chosen.path)):
        return chosen.path
    target = update.save_path / CHECKPOINTS / COPY / f"checkpoint-{chosen.step}"
    remove(target.parent)
    target.parent.mkdir(parents=True)
    if marker := find_marker(chosen.path):
        write_marker(target.parent, marker)
    return with_learning_rate(chosen.path, target, rate, rewrite_rates)


def rewrite_rates(folder: Path, files: list[str], learning_rate: float) -> None:
    """Change the learning rate in the files of a copied checkpoint, in the trainer's environment.

    Raises:
        ConfigError: it cannot be done.
    """
    request = {"folder": str(folder), "files": files, "learning_rate": learning_rate}
    env = environment.snapshot()
    command = program_command(trainer_python(), INSIDE / "scheduler_lr.py", cwd=folder, env=env)
    exit_code, out, err = capture(command, env=env, stdin=json.dumps(request))
    report = last_json(out) or {}
    if exit_code != 0 or not report.get("ok"):
        reason = report.get("error") or "\n    ".join(err.strip().splitlines()[-3:])
        raise ConfigError(
            f"{folder}: the learning rate could not be changed: {reason}",
            "--resume never trains the model's weights on with a new optimizer",
        )


def learning_rate_note(resume: Path | None, update: UpdateConfig) -> tuple[Problem, ...]:
    """Return a word on a learning rate that was changed in a copy of the checkpoint."""
    if resume is None or resume.parent.name != COPY:
        return ()
    message = f"{update.trainer['learning_rate']:g} from here on, in a copy of the checkpoint: {resume}"
    return (Problem("learning_rate", message, level="note"),)
