"""The keys of an update's configuration: what may stand in its sections, of which kind, and what they are when absent.

The names and figures are those of the web agent's update script, whose files are read as they are.
"""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainkit.datatypes import Argument
from trainkit.plan.check import SAID, check_value
from trainkit.plan.secret import is_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trainkit.plan.arguments import TrainerSchema

LOG, ALGORITHM = "log_config", "algorithm_config"
BASE_MODEL = "policy_config.base_model"  # where the rollouts' configuration names the model
OLD_SAMPLES, SAMPLES = "samples_to_train", "positive_samples_to_train"
ROLLOUT_SECTIONS = ("context_config", "defaults", "env_config", "hydra", "model_config", "openai_config")
FOLDERS_IN_USE = ("checkpoints", "llamafactory_data", "train_trajectories", "test_trajectories")
STEP_KEYS = ("eval_steps", "logging_steps", "save_steps")  # below 1 they are a fraction of an epoch

SCHEDULERS = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy",
)  # fmt: skip
CHOICES = {
    "eval_strategy": ("no", "steps", "epoch"),
    "lr_scheduler_type": SCHEDULERS,
    "save_strategy": ("no", "steps", "epoch", "best"),
}

MAY_BE_EMPTY = ("preprocessing_num_workers", "save_total_limit")  # none for the trainer, whatever the default is here


def _keys(section: str, *rows: tuple[str, str, Any]) -> dict[str, Argument]:
    dot = f"{section}." if section else ""
    return {
        f"{dot}{name}": Argument(name, kind, default, CHOICES.get(name, ()), default is None or name in MAY_BE_EMPTY)
        for name, kind, default in rows
    }


# What trainkit itself reads. A default of None means that the key may be empty.
OWN_KEYS = {
    **_keys(
        "",
        ("save_path", "str", None),
        ("data_path", "str", None),
        ("model_path", "str", None),
        ("num_gpus", "int", None),
        ("last_n_iterations", "int", 4),
        ("keep_rounds", "int", None),
        ("seed", "int", 42),
    ),
    **_keys(
        LOG,
        ("run_name", "str", None),
        ("project_name", "str", "rl"),
        ("entity_name", "str", None),
        ("wandb_key_env_var", "str", "WANDB_API_KEY"),
    ),
    **_keys(
        ALGORITHM,
        ("model_output_name", "str", "model.pt"),
        (SAMPLES, "int", 1800),
        ("recency_bias_power", "float", 2),
        ("max_samples_per_task", "int", None),
        ("val_split_ratio", "float", 0.05),
        ("min_token_length", "int", 10),
        ("gradient_checkpointing", "bool", False),
        ("deepspeed_config_filename", "str", None),
        ("report_to", "any", "wandb"),
    ),
}
# What goes to the trainer under the same name.
TRAINER_KEYS = _keys(
    ALGORITHM,
    ("template", "str", None),
    ("cutoff_len", "int", 16384),
    ("per_device_train_batch_size", "int", 3),
    ("per_device_eval_batch_size", "int", 3),
    ("gradient_accumulation_steps", "int", 4),
    ("learning_rate", "float", 1e-6),
    ("max_grad_norm", "float", 1.0),
    ("weight_decay", "float", 0.01),
    ("num_train_epochs", "float", 2),
    ("warmup_steps", "float", 30),
    ("lr_scheduler_type", "str", "constant_with_warmup"),
    ("logging_steps", "float", 1),
    ("bf16", "bool", True),
    ("do_eval", "bool", False),
    ("eval_strategy", "str", "epoch"),
    ("eval_steps", "float", None),
    ("save_strategy", "str", "steps"),
    ("save_steps", "float", 999999),
    ("save_total_limit", "int", 1),
    ("save_only_model", "bool", False),
    ("preprocessing_num_workers", "int", 16),
    ("dataloader_num_workers", "int", 2),
    ("dataloader_pin_memory", "bool", True),
    ("remove_unused_columns", "bool", False),
    ("plot_loss", "bool", False),
)
KEYS = OWN_KEYS | TRAINER_KEYS

# Keys of the trainer that the update sets itself -> what to write instead.
SET_BY_UPDATE = {
    "dataset": "the rollouts in save_path are the data",
    "dataset_dir": "the rollouts in save_path are the data",
    "deepspeed": "set deepspeed_config_filename",
    "disable_gradient_checkpointing": "set gradient_checkpointing",
    "do_train": "an update always trains",
    "eval_dataset": "set val_split_ratio and do_eval",
    "finetuning_type": "an update trains all weights, as the next rollout loads a whole model",
    "ignore_data_skip": "set when a checkpoint is resumed",
    "mask_history": "only the last turn of a step trains",
    "media_dir": "set data_path",
    "model_name_or_path": "set model_path",
    "output_dir": "set save_path",
    "resume_from_checkpoint": "the checkpoint is found in save_path",
    "run_name": "set log_config.run_name",
    "seed": "set seed outside of the section: it is the sampling's too",
    "stage": "an update is stage sft",
    "val_size": "set val_split_ratio, which keeps a trajectory on one side",
}

# Key -> what its numbers must be; ranges of the trainer's own keys are those of every configuration.
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "eval_steps": (lambda number: number > 0, "above 0"),
    "keep_rounds": (lambda number: number > 0, "above 0; the newest round is what the next one goes on from"),
    "last_n_iterations": (lambda number: number > 0, "above 0"),
    "max_samples_per_task": (lambda number: number > 0, "above 0"),
    "min_token_length": (lambda number: number >= 0, "0 or more"),
    "num_gpus": (lambda number: number >= 0, "0 (the CPU) or more"),
    "recency_bias_power": (lambda number: number >= 0, "0 (each iteration alike) or more"),
    "val_split_ratio": (lambda number: 0 <= number < 1, "from 0 to below 1"),
    SAMPLES: (lambda number: number > 0, "above 0"),
}


def check_key(name: str, value: Any, schema: TrainerSchema | None) -> tuple[str, str] | None:
    """Return what is wrong with a key (dotted, as `algorithm_config.bf16`) and what to do, or None.

    Without a schema only the keys of this file's tables are known.
    """
    section, _, last = name.rpartition(".")
    if is_secret(last):
        return "a secret does not belong here", "keep it in an environment variable; wandb_key_env_var names W&B's"
    if section == ALGORITHM and last in SET_BY_UPDATE:
        return "the update sets it", SET_BY_UPDATE[last]
    argument = KEYS.get(name)
    if argument is None and section == ALGORITHM and schema is not None:
        argument = schema.arguments.get(last)
    if argument is None:
        return "there is no such key", _nearest(name, schema)
    if last in SPECIAL and value is not None:
        return SPECIAL[last](value)
    try:
        return check_value(argument, value) or _check_number(last, value)
    except (ValueError, yaml.YAMLError):  # a text such as "&" that is no YAML value, where a number belongs
        return f"is {value!r}, not {SAID[argument.kind]}", ""


def plain(name: str, value: Any) -> Any:
    """Return a value as it is meant: `???` is empty, and YAML's false is `no` where that is a choice."""
    argument = KEYS.get(name)
    if value == "???":
        return None
    return "no" if value is False and argument and "no" in argument.choices else value


def check_placeholders(values: Mapping[str, Any], report_to: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return (key, message, hint) for names of W&B that nobody has filled in."""
    if not {"wandb", "all"} & {*report_to}:
        return []
    names = (f"{LOG}.run_name", f"{LOG}.entity_name", f"{LOG}.project_name")
    return [
        (name, f"{values[name]!r} is to be filled in", "or set algorithm_config.report_to: none")
        for name in names
        if re.search(r"<[^<>]+>", str(values.get(name) or ""))
    ]


def trackers(report_to: Any) -> tuple[str, ...]:
    """Return the names in `report_to`: `trackers("wandb,swanlab")` is `("wandb", "swanlab")`; none is ()."""
    names = report_to.split(",") if isinstance(report_to, str) else report_to or []
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip() not in ("", "none")))


def _nearest(name: str, schema: TrainerSchema | None) -> str:
    theirs = set(schema.arguments) - set(SET_BY_UPDATE) if schema is not None else set()
    known = {key: f"{ALGORITHM}.{key}" for key in sorted(theirs)} | {LOG: LOG, ALGORITHM: ALGORITHM}
    known |= {key.rpartition(".")[2]: key for key in KEYS}
    near = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    return f"did you mean {known[near[0]]}?" if near else "take it away"


def _check_number(key: str, value: Any) -> tuple[str, str] | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    fits, said = RANGES.get(key, (lambda _: True, "a number"))
    if (isinstance(value, float) and not math.isfinite(value)) or not fits(value):
        return f"is {value}, but must be {said}", ""
    if key in STEP_KEYS and value >= 1 and value != int(value):
        return f"is {value}, but must be a whole number, or below 1 for a fraction of an epoch", ""
    return None


def _check_variable(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
        return None
    # the value is not shown: it may be the key
    return "is not the name of an environment variable", "capital letters, digits and _, such as WANDB_API_KEY"


def _check_folder_name(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and value not in ("", "..", *FOLDERS_IN_USE) and Path(value).name == value:
        return None
    return f"is {value!r}, not the name of a folder of its own in save_path", "such as model.pt"


def _check_trackers(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        return None
    return f"is {value!r}, not the name of a tracker or a list of them", "wandb, swanlab or none"


SPECIAL: dict[str, Callable[[Any], tuple[str, str] | None]] = {
    "model_output_name": _check_folder_name,
    "report_to": _check_trackers,
    "wandb_key_env_var": _check_variable,
}
