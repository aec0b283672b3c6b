"""One round of an online update, made ready: its data, where its training starts, and the trainer's configuration."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import trainkit.inside
from trainkit import environment
from trainkit.dataset.select import EVAL, TRAIN
from trainkit.datatypes import Problem
from trainkit.errors import ConfigError
from trainkit.files import write_json_atomic, write_text_atomic
from trainkit.launch.llamafactory import program_command
from trainkit.launch.process import capture
from trainkit.plan.families import find_family
from trainkit.plan.paths import local_path
from trainkit.plan.render import render_yaml
from trainkit.plan.steps import plan_steps
from trainkit.plan.update import count_gpus, render_train_config, wandb_env
from trainkit.runs.checkpoints import find_newest_complete, plan_resume
from trainkit.runs.exchange import remove
from trainkit.runs.resume_check import find_base_rates
from trainkit.runs.rounds import (
    CHECKPOINTS,
    COPY,
    Round,
    Start,
    find_start,
    is_trained,
    new_name,
    output_of,
    write_round,
)
from trainkit.runs.scheduler_copy import with_learning_rate
from trainkit.workflow.export import last_json
from trainkit.workflow.prepare import trainer_python
from trainkit.workflow.round_data import FOLDER, NAMES, PLAN, left_out, write_data

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.datatypes import Hardware, TrainConfig
    from trainkit.plan.arguments import TrainerSchema
    from trainkit.plan.update import UpdateConfig
    from trainkit.sources.trajectories import IterationFile
    from trainkit.workflow.rollouts import Survey
    from trainkit.workflow.round_data import Sample

INSIDE = Path(trainkit.inside.__file__).parent
CONFIG_FILE, WANDB_FILE = "train_config.yaml", "wandb_env.sh"


@dataclass(frozen=True, slots=True)
class Trainer:
    """What is known of the trainer and its machine; `schema` is None where LLaMA-Factory is not installed."""

    schema: TrainerSchema | None
    hardware: Hardware
    environ: dict[str, str]


@dataclass(frozen=True, slots=True)
class PreparedRound:
    """A round that is ready to be trained: its record, its data, and what the trainer reads."""

    record: Round
    update: UpdateConfig
    found: Survey
    drawn: Sample
    config: TrainConfig
    resume: Path | None
    notes: tuple[Problem, ...]

    @property
    def folder(self) -> Path:
        """The folder of the data and the configuration."""
        return self.update.save_path / FOLDER

    @property
    def config_file(self) -> Path:
        """What `llamafactory-cli train` is called with."""
        return self.folder / CONFIG_FILE


def place_of(update: UpdateConfig) -> Path:
    """Return where the next rollout looks for the model: `<save_path>/model.pt`."""
    return update.save_path / update.model_output_name


def inputs_of(files: tuple[IterationFile, ...]) -> dict[str, list[int]]:
    """Return size and time of change of each iteration's file, by its name."""
    states = {file.path.name: file.path.stat() for file in files}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}


def digest_of(update: UpdateConfig) -> str:
    """Return a digest of all that an update is configured to do, the places of its keys apart."""
    values = dataclasses.asdict(update)
    told = {key: value for key, value in values.items() if key not in ("origin", "notes")}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def draft_round(
    update: UpdateConfig, files: tuple[IterationFile, ...], rounds: list[Round], resume: str | None, base: Path
) -> tuple[Round, Start]:
    """Return the record of the next round and where it starts; an unfinished one of the same kind goes on.

    Args:
        update: what the user wants.
        files: the iterations at hand.
        rounds: those of before.
        resume: "auto" (None is the same), "never", or a checkpoint's folder.
        base: the folder that a relative checkpoint starts from.

    Raises:
        ConfigError: the checkpoint that is named is not complete.
    """
    inputs, settings = inputs_of(files), digest_of(update)
    start = choose_start(update, rounds, resume, base)
    began = start.checkpoint.path if start.checkpoint else None
    step = start.checkpoint.step if start.checkpoint else 0
    last = rounds[-1] if rounds else None
    if last and last.is_made_of(inputs, settings) and not is_trained(update.save_path, last):
        return dataclasses.replace(last, start=str(began or ""), start_step=step), start
    name = new_name(update.save_path, datetime.now().astimezone())
    earlier = next((one for one in rounds if began and one.name in began.parts), None)
    run_id = earlier.wandb_run_id if earlier else re.sub(r"[^\w-]+", "-", f"{update.run_name}-{name}", flags=re.ASCII)
    newest = files[-1].number
    return Round(name, inputs, settings, run_id[-128:], str(began or ""), step, newest_iteration=newest), start


def choose_start(update: UpdateConfig, rounds: list[Round], resume: str | None, base: Path) -> Start:
    """Return where the next round starts, as `--resume` says it.

    Raises:
        ConfigError: the checkpoint that is named is not complete.
    """
    if resume == "never":
        return Start(None)
    if resume in (None, "auto"):
        return find_start(update.save_path, place_of(update), rounds)
    chosen = plan_resume(output_of(update.save_path, ""), local_path(str(resume), base))
    return Start(chosen.checkpoint, chosen.notes)


def plan_round(
    record: Round, start: Start, update: UpdateConfig, drawn: Sample, trainer: Trainer
) -> tuple[Round, TrainConfig]:
    """Return what the trainer reads for a round, and the record with the step at which it ends.

    Raises:
        ConfigError: no chat template is named, and the model does not tell its own.
    """
    gpus = count_gpus(update, trainer.hardware)
    model = model_of(update)
    config = render_train_config(
        update,
        dataset_dir=update.save_path / FOLDER,
        train_name=NAMES[TRAIN],
        val_name=NAMES[EVAL] if len(drawn.val) else None,
        model=model,
        output_dir=output_of(update.save_path, record.name),
        rows=len(drawn.train),
        gpus=gpus,
        template=update.trainer.get("template") or template_of(model),
        resume=start.checkpoint,
        schema=trainer.schema,
        # with more GPUs than are here, the training is meant for another machine
        hardware=trainer.hardware if gpus <= len(trainer.hardware.gpus) else None,
    )
    total = plan_steps(len(drawn.train), config.values.get, gpus).total
    return dataclasses.replace(record, total_steps=total), config


def resuming(config: TrainConfig, checkpoint: Path | None) -> TrainConfig:
    """Return the configuration of a training that goes on from a checkpoint."""
    if checkpoint is None:
        return config
    key = "resume_from_checkpoint"
    origin = {**config.origin, key: config.origin.get(key, "trainkit update")}
    return dataclasses.replace(config, values={**config.values, key: str(checkpoint)}, origin=origin)


def model_of(update: UpdateConfig) -> str:
    """Return the model that a round trains: the one in place, in the first round the one that is named.

    Raises:
        ConfigError: there is neither.
    """
    place = place_of(update)
    if place.is_dir():
        return str(place)
    if update.model is None:
        raise ConfigError(f"{place}: there is no model", "name the first round's: model_path=FOLDER")
    if Path(update.model).is_absolute() and not (Path(update.model) / "config.json").is_file():
        raise ConfigError(f"model_path: {update.model}: holds no model (config.json)", "name the folder of a model")
    return update.model


def template_of(model: str) -> str:
    """Return the chat template that a model's config.json tells.

    Raises:
        ConfigError: it tells none.
    """
    family = find_family(Path(model)) if Path(model).is_absolute() else None
    if family is None:
        raise ConfigError(
            f"{model}: does not tell its chat template", "name it: algorithm_config.template=qwen3_vl, for example"
        )
    return family.templates[0]


def write_round_files(
    prepared: PreparedRound, files: tuple[IterationFile, ...], on_file: Callable[[IterationFile], None]
) -> None:
    """Write the data, then what belongs to it; the trainer's configuration goes first and comes last.

    So wherever this is killed, a configuration that is there belongs to the data beside it.

    Raises:
        InputError: a file of rollouts changed while it was read.
    """
    folder, update = prepared.folder, prepared.update
    prepared.config_file.unlink(missing_ok=True)
    write_data(folder, files, prepared.drawn, on_file)
    write_json_atomic(folder / PLAN, plan_of(prepared))
    write_text_atomic(folder / WANDB_FILE, wandb_env(update, prepared.record.wandb_run_id))
    write_round(update.save_path, prepared.record)
    write_text_atomic(prepared.config_file, render_yaml(prepared.config))


def plan_of(prepared: PreparedRound) -> dict[str, object]:
    """Return the sample's plan with what the iterations hold, as it is saved."""
    drawn, found = prepared.drawn, prepared.found
    return {
        **drawn.plan.to_json(),
        "train_rows": len(drawn.train),
        "val_rows": len(drawn.val),
        "left_out": left_out(found),
        "rollouts": [tally.to_json() for tally in found.tallies],
    }


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
