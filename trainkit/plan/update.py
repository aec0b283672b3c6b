"""An update's configuration: read from the user's file, and rendered for the trainer and for W&B."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.datatypes import Problem, TrainConfig
from trainkit.plan.keys import Draft
from trainkit.plan.machine import adapt_to_machine
from trainkit.plan.steps import Steps, plan_steps
from trainkit.plan.update_file import read_update_file
from trainkit.plan.update_keys import OWN_KEYS, STEP_KEYS, trackers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainkit.datatypes import Checkpoint, Hardware
    from trainkit.plan.arguments import TrainerSchema

UPDATE = "trainkit update"
FIXED = {
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "full",
    "mask_history": True,
    "overwrite_cache": True,
}


@dataclass(frozen=True, slots=True)
class UpdateConfig:
    """An update as the user wants it: `load_update(Path("update.yaml"), ["save_path=/data/exp1"])`.

    Attributes:
        save_path: the folder of the experiment; absolute, as are all paths here.
        data_path: where relative image paths start from.
        model: folder or hub name of the first round's model; None where save_path holds one of an earlier round.
        num_gpus: as given; None asks the machine (see `count_gpus`).
        deepspeed: the DeepSpeed file, None for none.
        keep_rounds: how many of the newest rounds keep their folders in checkpoints/; None keeps all.
        report_to: names of trackers, empty for none.
        trainer: the trainer's keys under its own names, before rendering.
        origin: key without its section -> `update.yaml:12` or `command line`; keys that are not given have none.
        notes: words about keys that were renamed or are not read.
    """

    save_path: Path
    data_path: Path | None
    model: str | None
    num_gpus: int | None
    last_n_iterations: int
    keep_rounds: int | None
    seed: int
    run_name: str
    project_name: str
    entity_name: str | None
    wandb_key_env_var: str
    model_output_name: str
    positive_samples_to_train: int
    recency_bias_power: float
    max_samples_per_task: int | None
    val_split_ratio: float
    min_token_length: int
    gradient_checkpointing: bool
    deepspeed: Path | None
    report_to: tuple[str, ...]
    trainer: Mapping[str, Any]
    origin: dict[str, str]
    notes: tuple[Problem, ...] = ()


def load_update(
    file: Path,
    overrides: Sequence[str] = (),
    *,
    base: Path | None = None,
    schema: TrainerSchema | None = None,
) -> UpdateConfig:
    """Return the configuration of an update: the defaults, the file over them, `key=value` words over both.

    Args:
        file: YAML with save_path, log_config and algorithm_config.
        overrides: `save_path=/data/exp1`, `algorithm_config.learning_rate=2e-6`; a leading `+` is allowed.
        base: where relative paths start from; None is the working folder.
        schema: the installed trainer's arguments, which may then stand in algorithm_config too.

    Raises:
        ConfigError: the file cannot be read.
        UsageProblem: an override is not `key=value`.
        ProblemsFound: keys or values are wrong, each with its file and line.
    """
    draft = read_update_file(file, overrides, base or Path.cwd(), schema)
    own = {_last(name): value for name, value in draft.values.items() if name in OWN_KEYS}
    own["model"], own["deepspeed"] = own.pop("model_path"), own.pop("deepspeed_config_filename")
    own["report_to"] = trackers(own["report_to"])
    own["run_name"] = own["run_name"] or own["save_path"].name
    trainer = {_last(name): value for name, value in draft.values.items() if name not in OWN_KEYS}
    origin = {_last(name): place for name, place in draft.origin.items()}
    return UpdateConfig(**own, trainer=trainer, origin=origin, notes=tuple(draft.notes))


def count_gpus(update: UpdateConfig, hardware: Hardware) -> int:
    """Return how many GPUs share the rows: the number given, else those of the machine; 0 is the CPU."""
    return len(hardware.gpus) if update.num_gpus is None else update.num_gpus


def render_train_config(
    update: UpdateConfig,
    *,
    dataset_dir: Path,
    train_name: str,
    val_name: str | None,
    model: str | Path,
    output_dir: Path,
    rows: int,
    gpus: int,
    template: str,
    resume: Checkpoint | None = None,
    schema: TrainerSchema | None = None,
    hardware: Hardware | None = None,
) -> TrainConfig:
    """Return what LLaMA-Factory reads for one round, with a note on each key that is not as the user wrote it.

    Args:
        update: what `load_update` returned.
        dataset_dir: the folder of dataset_info.json.
        train_name: the training set's name there.
        val_name: the validation set's, None without one.
        model: the model that is trained.
        output_dir: where it goes.
        rows: rows of the training set.
        gpus: what `count_gpus` returned.
        template: the chat template, unless algorithm_config names one.
        resume: the checkpoint to go on from; the steps of this round are added to its own.
        schema: the installed trainer's arguments; keys that it does not know are left out.
        hardware: the machine that trains; what it cannot compute is switched off. None leaves the keys as they are.
    """
    draft = _given(update)
    for key, value in {
        "dataset": train_name,
        "dataset_dir": str(dataset_dir),
        "model_name_or_path": str(model),
        "output_dir": str(output_dir),
    }.items():
        _set(draft, key, value, UPDATE)
    draft.values.setdefault("template", template)
    draft.origin.setdefault("template", UPDATE)
    _gradient_checkpointing(draft, update)
    _evaluation(draft, val_name)
    steps = _steps(rows, update, gpus)
    _epoch_fractions(draft, steps.per_epoch)
    _tracking(draft, update)
    if resume is None:
        _check_warmup(draft, steps.total)
    else:
        _resume(draft, extend_steps(resume.step, rows, update, gpus), resume)
    for key in [key for key in draft.values if schema is not None and key not in schema.arguments]:
        draft.drop(key, "the installed LLaMA-Factory has no such key")
    if hardware is not None:
        adapt_to_machine(draft, hardware)
    return TrainConfig(draft.values, {key: draft.origin[key] for key in draft.values}, tuple(draft.notes))


def extend_steps(checkpoint_step: int, rows: int, update: UpdateConfig, gpus: int) -> dict[str, Any]:
    """Return the keys with which a resumed training takes all of its new steps.

    The trainer counts on from the checkpoint's step, so the round's own steps are added to it; without this a round
    with fewer rows than the last one would end at once. `extend_steps(300, ...)` with 300 new steps, 150 an epoch, is
    `{"max_steps": 600, "num_train_epochs": 4, "ignore_data_skip": True}`; max_steps is what the trainer goes by.
    """
    steps = _steps(rows, update, gpus)
    total = checkpoint_step + steps.total
    return {
        "max_steps": total,
        "num_train_epochs": math.ceil(total / steps.per_epoch),
        "ignore_data_skip": True,
    }


def wandb_values(update: UpdateConfig, run_id: str | None = None) -> dict[str, str]:
    """Return the variables that tell W&B about the run, empty when the update does not report to it.

    Args:
        update: its names of run, project and entity.
        run_id: the run to continue, or to begin under this id; None leaves it to W&B.
    """
    if not {"wandb", "all"} & {*update.report_to}:
        return {}
    values = {
        "WANDB_PROJECT": update.project_name,
        "WANDB_ENTITY": update.entity_name,
        "WANDB_RUN_NAME": update.run_name,
        "WANDB_NAME": update.run_name,  # the one that W&B itself reads
        "WANDB_RESUME": "allow",
        "WANDB_RUN_ID": run_id,
    }
    return {name: value for name, value in values.items() if value is not None}


def wandb_env(update: UpdateConfig, run_id: str | None = None) -> str:
    """Return a file for `source` that tells W&B about the run; it names the key's variable, never the key."""
    values = wandb_values(update, run_id)
    if not values:
        return "# Written by trainkit. This update does not report to W&B.\n"
    lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    variable = update.wandb_key_env_var
    if variable != "WANDB_API_KEY":
        lines.append(f'if [ -n "${{{variable}:-}}" ]; then export WANDB_API_KEY="${variable}"; fi')
    return "\n".join(["# Written by trainkit: source it before the training. It holds no key.", *lines, ""])


def _given(update: UpdateConfig) -> Draft:
    """Return what does not depend on the round: the trainer's keys that the user gave, and those that follow."""
    own = {
        **FIXED,
        "run_name": update.run_name,
        "seed": update.seed,
        "media_dir": str(update.data_path) if update.data_path else None,
        "deepspeed": str(update.deepspeed) if update.deepspeed else None,
    }
    values = {key: value for key, value in {**own, **update.trainer}.items() if value is not None}
    places = update.origin | {"deepspeed": update.origin.get("deepspeed_config_filename", UPDATE)}
    return Draft(values, {key: places.get(key, UPDATE) for key in values})


def _steps(rows: int, update: UpdateConfig, gpus: int) -> Steps:
    return plan_steps(rows, update.trainer.get, gpus)


def _gradient_checkpointing(draft: Draft, update: UpdateConfig) -> None:
    """LLaMA-Factory checkpoints unless told not to, by a key of its own."""
    if not update.gradient_checkpointing:
        origin = update.origin.get("gradient_checkpointing", UPDATE)
        _set(draft, "disable_gradient_checkpointing", True, origin)


def _evaluation(draft: Draft, val_name: str | None) -> None:
    """The trainer evaluates when eval_strategy says so, whatever do_eval is, and refuses to without data."""
    values = draft.values
    if values["do_eval"] and val_name is not None:
        _set(draft, "eval_dataset", val_name, UPDATE)
        if values["eval_strategy"] == "steps" and "eval_steps" not in values:
            _set(draft, "eval_steps", values["save_steps"], draft.origin["eval_strategy"])
            draft.say("eval_steps", "as save_steps; without it the trainer evaluates as often as it logs")
        return
    if values["do_eval"]:
        draft.say("do_eval", "no evaluation: there are no validation rows (val_split_ratio)", "warning")
    elif values["eval_strategy"] != "no" and draft.origin["eval_strategy"] != UPDATE:
        draft.say("eval_strategy", "no evaluation: do_eval is false, which this trainer would not heed by itself")
    values.update(do_eval=False, eval_strategy="no")
    values.pop("eval_steps", None)


def _epoch_fractions(draft: Draft, per_epoch: int) -> None:
    """The trainer takes a number below 1 as a part of the whole training; an update means a part of an epoch."""
    for key in STEP_KEYS:
        fraction = draft.values.get(key)
        if fraction is None:
            continue
        if fraction < 1:
            draft.values[key] = max(1, round(fraction * per_epoch))
            draft.say(key, f"{fraction} of an epoch of {per_epoch} steps is every {draft.values[key]} steps")
        else:
            draft.values[key] = int(fraction)


def _tracking(draft: Draft, update: UpdateConfig) -> None:
    """SwanLab has keys of its own: as a name in report_to it takes another path of the trainer, which fails."""
    origin = update.origin.get("report_to", UPDATE)
    others = [name for name in update.report_to if name != "swanlab"]
    _set(draft, "report_to", others[0] if len(others) == 1 else others or "none", origin)
    if "swanlab" in update.report_to:
        for key, value in {"use_swanlab": True, "swanlab_run_name": update.run_name}.items():
            _set(draft, key, draft.values.get(key, value), origin)


def _resume(draft: Draft, steps: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    for key, value in {**steps, "resume_from_checkpoint": str(checkpoint.path)}.items():
        _set(draft, key, value, UPDATE)
    new = draft.values["max_steps"] - checkpoint.step
    draft.say("max_steps", f"{new} new steps after the checkpoint's {checkpoint.step}")
    draft.say(
        "resume_from_checkpoint", f"{', '.join(STEP_KEYS)} stay those of the checkpoint: the trainer restores them"
    )


def _check_warmup(draft: Draft, total: int) -> None:
    warmup = draft.values.get("warmup_steps", 0)
    if warmup >= total:
        draft.say("warmup_steps", f"{warmup} steps of warm-up, {total} in all: learning_rate is not reached", "warning")


def _set(draft: Draft, key: str, value: Any, origin: str) -> None:
    draft.values[key], draft.origin[key] = value, origin


def _last(name: str) -> str:
    return name.rpartition(".")[2]
