"""One round of an online update, made ready: its data, where its training starts, and the trainer's configuration."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.dataset.select import EVAL, TRAIN
from trainkit.dataset.shorten import make_shorten
from trainkit.errors import ConfigError
from trainkit.files import remove_temporaries, write_json_atomic, write_text_atomic
from trainkit.plan.families import find_family
from trainkit.plan.paths import local_path
from trainkit.plan.render import render_yaml
from trainkit.plan.steps import plan_steps
from trainkit.plan.thinking import template_for
from trainkit.plan.update import count_gpus, render_train_config, wandb_env
from trainkit.runs.checkpoints import plan_resume
from trainkit.runs.rounds import (
    Round,
    Start,
    find_start,
    find_unfinished,
    new_name,
    output_of,
    record_file,
    write_round,
)
from trainkit.workflow.form import find_form
from trainkit.workflow.prepare import Prepared
from trainkit.workflow.round_data import FOLDER, NAMES, PLAN, left_out

if TYPE_CHECKING:
    from trainkit.datatypes import Hardware, Problem, TrainConfig
    from trainkit.plan.arguments import TrainerSchema
    from trainkit.plan.update import UpdateConfig
    from trainkit.sources.trajectories import IterationFile
    from trainkit.workflow.rollouts import Survey
    from trainkit.workflow.round_data import Sample, Shorten, Written

CHANGES_NO_MODEL = (
    "origin", "notes", "save_path", "keep_rounds", "run_name", "project_name", "entity_name", "wandb_key_env_var",
    "model_output_name", "report_to", "per_device_eval_batch_size", "logging_steps", "do_eval", "eval_strategy",
    "eval_steps", "save_strategy", "save_steps", "save_total_limit", "plot_loss", "preprocessing_num_workers",
    "dataloader_num_workers", "dataloader_pin_memory",
)  # fmt: skip
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
    rows: Written
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
    """Return a digest of what decides the model that an update makes: not its names, its logs or its folders."""
    values = dataclasses.asdict(update)
    told = {key: value for key, value in values.items() if key not in CHANGES_NO_MODEL}
    told["trainer"] = {key: value for key, value in values["trainer"].items() if key not in CHANGES_NO_MODEL}
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
    same = find_unfinished(update.save_path, [one for one in rounds if one.is_made_of(inputs, settings)])
    if same:
        return dataclasses.replace(same, start=str(began or ""), start_step=step), start
    name = new_name(update.save_path, datetime.now(UTC))
    earlier = next((one for one in rounds if began and one.name in (began.name, began.parent.name)), None)
    run_id = earlier.wandb_run_id if earlier else re.sub(r"[^\w-]+", "-", f"{update.run_name}-{name}", flags=re.ASCII)
    newest = files[-1].number
    record = Round(
        name, inputs, settings, run_id[-128:], update.model or "", str(began or ""), step, newest_iteration=newest
    )
    return record, start


def choose_start(update: UpdateConfig, rounds: list[Round], resume: str | None, base: Path) -> Start:
    """Return where the next round starts, as `--resume` says it.

    Raises:
        ConfigError: the checkpoint that is named is not complete.
    """
    if resume == "never":
        return Start(None)
    if resume in (None, "auto"):
        return find_start(update.save_path, place_of(update), rounds, update.model or "")
    chosen = plan_resume(output_of(update.save_path, ""), local_path(str(resume), base))
    return Start(chosen.checkpoint, chosen.notes)


def plan_round(
    record: Round,
    start: Start,
    update: UpdateConfig,
    rows: Written,
    trainer: Trainer,
    thoughts: bool | None = None,
) -> tuple[Round, TrainConfig]:
    """Return what the trainer reads for a round, and the record with the step at which it ends.

    `thoughts` says whether the answers hold think blocks, which decides between two templates of some models.

    Raises:
        ConfigError: no chat template is named, and the model does not tell its own.
    """
    gpus = count_gpus(update, trainer.hardware)
    model = model_of(update)
    template = update.trainer.get("template") or template_of(model)
    if not update.trainer.get("template") and trainer.schema is not None:
        template = template_for(template, trainer.schema.templates, has_thoughts=thoughts)
    config = render_train_config(
        update,
        dataset_dir=update.save_path / FOLDER,
        train_name=NAMES[TRAIN],
        val_name=NAMES[EVAL] if rows.val_rows else None,
        model=model,
        output_dir=output_of(update.save_path, record.name),
        rows=rows.train_rows,
        gpus=gpus,
        template=template,
        resume=start.checkpoint,
        schema=trainer.schema,
        # with more GPUs than are here, the training is meant for another machine
        hardware=trainer.hardware if gpus <= len(trainer.hardware.gpus) else None,
    )
    total = plan_steps(rows.train_rows, config.values.get, gpus).total
    return dataclasses.replace(record, total_steps=total), config


def find_shorten(config: TrainConfig, trainer: Trainer) -> tuple[Shorten | None, tuple[Problem, ...]]:
    """Return what makes a row fit into cutoff_len as this training counts its tokens; None with the reason."""
    if trainer.schema is None:
        return None, ()
    form, problems = find_form(Prepared(config, trainer.schema, trainer.hardware, ()))
    notes = tuple(problem for problem in problems if problem.level != "note")
    return make_shorten(form, int(config.values["cutoff_len"])) if form else None, notes


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


def begin_writing(update: UpdateConfig) -> Path:
    """Return the folder of a round's data, without what a killed process left and without a configuration.

    The configuration is written last. So wherever this is killed, one that is there belongs to the data beside it.
    """
    folder = update.save_path / FOLDER
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    for place in (folder, record_file(update.save_path, "").parent):
        remove_temporaries(place)
    return folder


def write_round_files(prepared: PreparedRound) -> None:
    """Write what belongs to the data: the plan, the file for W&B, the round's record, and the configuration last."""
    folder, update = prepared.folder, prepared.update
    write_json_atomic(folder / PLAN, plan_of(prepared))
    write_text_atomic(folder / WANDB_FILE, wandb_env(update, prepared.record.wandb_run_id))
    write_round(update.save_path, prepared.record)
    write_text_atomic(prepared.config_file, render_yaml(prepared.config))


def plan_of(prepared: PreparedRound) -> dict[str, object]:
    """Return the sample's plan with what the iterations hold, as it is saved."""
    found, rows = prepared.found, prepared.rows
    return {
        **prepared.drawn.plan.to_json(),
        "train_rows": rows.train_rows,
        "val_rows": rows.val_rows,
        "shortened": rows.shortened,
        "too_long": rows.too_long,
        "left_out": left_out(found),
        "rollouts": [tally.to_json() for tally in found.tallies],
    }
