"""The training of a round: an ordinary one in the environment that the update describes, and a look at what it made."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NoReturn

from trainkit.errors import TrainkitError
from trainkit.plan.update import wandb_values
from trainkit.runs.checkpoints import find_step
from trainkit.runs.rounds import find_fault, output_of, write_round
from trainkit.workflow.prepare import Settings
from trainkit.workflow.start import TrainOptions
from trainkit.workflow.train import train

if TYPE_CHECKING:
    from pathlib import Path

    from trainkit.runs.rounds import Round
    from trainkit.workflow.round import PreparedRound, Trainer
    from trainkit.workflow.round_options import Told, UpdateOptions
    from trainkit.workflow.train import TrainResult


def train_round(prepared: PreparedRound, options: UpdateOptions, trainer: Trainer, told: Told) -> TrainResult:
    """Train a round and check that something came of it.

    Raises:
        TrainkitError: it made no step, or its loss is no number: the model would be of no use.
    """
    settings = Settings(
        prepared.config_file,
        base=prepared.update.save_path,
        name=prepared.record.name,
        complete=True,
        environment=training_environment(prepared, trainer),
    )
    resume = str(prepared.resume) if prepared.resume else "never"
    told.stage("checking the training")
    how = TrainOptions(resume, options.monitor, strict=options.strict)
    result = train(settings, how, told.started, told.step, told.looked, told.word)
    save_path, record = prepared.update.save_path, prepared.record
    if failed := [note for note in result.notes if note.where == "train_loss"]:
        refuse(save_path, record, failed[0].message, failed[0].hint or f"its log is {result.run.log_file}")
    step, start = find_step(result.output_dir), record.start_step
    if step is None or step <= start:
        why = f"it ended at step {step}, and it started from {start}"
        refuse(save_path, record, why, f"the trainer's log is {result.run.log_file}")
    return result


def refuse_useless(save_path: Path, record: Round) -> None:
    """Check the model of a training that ended while nobody looked.

    Raises:
        TrainkitError: it is of no use; the next round is trained anew.
    """
    if why := find_fault(output_of(save_path, record.name)):
        refuse(save_path, record, why, "the next call trains anew")


def refuse(save_path: Path, record: Round, why: str, hint: str) -> NoReturn:
    """Write down that a round's model is of no use, and say so; nothing goes on from it.

    Raises:
        TrainkitError: always.
    """
    write_round(save_path, dataclasses.replace(record, state="refused"))
    raise TrainkitError(f"{output_of(save_path, record.name)}: is not handed over: {why}", hint)


def training_environment(prepared: PreparedRound, trainer: Trainer) -> dict[str, str]:
    """Return what the training finds in its environment: W&B's run, its key, the GPUs that are to be used."""
    config = prepared.update
    values = wandb_values(config, prepared.record.wandb_run_id)
    key = trainer.environ.get(config.wandb_key_env_var)
    if values and key:
        values["WANDB_API_KEY"] = key
    if config.num_gpus is not None and config.num_gpus < len(trainer.hardware.gpus):
        shown = trainer.environ.get("CUDA_VISIBLE_DEVICES")
        devices = shown.split(",") if shown else list(map(str, range(len(trainer.hardware.gpus))))
        values["CUDA_VISIBLE_DEVICES"] = ",".join(devices[: config.num_gpus])
    return values
