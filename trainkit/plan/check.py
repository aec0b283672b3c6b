"""Every problem of a configuration at once, before any GPU time."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.datatypes import Problem, gravest_first
from trainkit.errors import InputError
from trainkit.files import load_json
from trainkit.plan.facts import Facts
from trainkit.plan.families import check_model_folder, check_template, find_family
from trainkit.plan.rules import RULES
from trainkit.plan.secret import VARIABLE_OF_SECRET, shown
from trainkit.plan.yamlfile import parse_scalar

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.datatypes import Argument, Hardware, TrainConfig
    from trainkit.plan.arguments import TrainerSchema

LEAST_FREE_DISK = 2**30  # bytes

TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list, str),
    "dict": (dict, str),
}
SAID = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "dict": "keys and values",
}

POSITIVE = (
    "cutoff_len", "export_size", "gradient_accumulation_steps", "learning_rate", "logging_steps", "lora_alpha",
    "lora_rank", "max_new_tokens", "max_samples", "num_train_epochs", "per_device_eval_batch_size",
    "per_device_train_batch_size", "preprocessing_batch_size", "preprocessing_num_workers", "save_steps",
    "save_total_limit",
)  # fmt: skip
NOT_NEGATIVE = ("dataloader_num_workers", "max_grad_norm", "seed", "val_size", "warmup_steps", "weight_decay")
PARTS = ("label_smoothing_factor", "lora_dropout", "warmup_ratio")
RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (POSITIVE, lambda number: number > 0, "above 0"),
    (NOT_NEGATIVE, lambda number: number >= 0, "0 or more"),
    (PARTS, lambda number: 0 <= number < 1, "from 0 to below 1"),
    (("quantization_bit",), lambda number: number in (2, 3, 4, 5, 6, 8), "4 or 8"),
)


def check_config(
    config: TrainConfig, schema: TrainerSchema, hardware: Hardware, *, force_template: bool = False
) -> list[Problem]:
    """Return all that is wrong with a configuration: errors, then warnings; each names the origin of its key.

    Reads the model's config.json, the DeepSpeed file and the state of the output folder; writes nothing.
    """
    checks = _Checks(config, schema, hardware)
    problems = [
        *checks.keys(),
        *checks.model(force_template),
        *checks.adapters(),
        *checks.deepspeed(),
        *checks.combinations(),
        *checks.folders(),
    ]
    return gravest_first(problems)


def check_value(argument: Argument, value: Any) -> tuple[str, str] | None:
    """Return what is wrong with a value and what to write, or None when the trainer can take it.

    `check_value(Argument("lora_rank", "int"), "8")` is `("is '8', not a whole number", "write it without quotes")`.
    """
    if value is None and argument.optional:
        return None
    allowed = TYPES.get(argument.kind)
    if allowed and not (isinstance(value, allowed) and (argument.kind == "bool" or not isinstance(value, bool))):
        hint = "put it in quotes" if argument.kind == "str" else "write it without quotes" if is_quoted(value) else ""
        return f"is {shown(argument.name, value)}, not {SAID[argument.kind]}", hint
    if argument.choices and isinstance(value, str) and value not in argument.choices:
        near = difflib.get_close_matches(value, argument.choices, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(argument.choices[:12])}"
        return f"{value!r} is not one of its values", hint
    return _check_range(argument.name, value)


def is_quoted(value: Any) -> bool:
    """Whether a text would be a number, true or false without its quotes."""
    try:
        return isinstance(value, str) and not isinstance(parse_scalar(value), str)
    except ValueError:
        return False


def _check_range(key: str, value: Any) -> tuple[str, str] | None:
    if not isinstance(value, int | float):
        return None
    for keys, fits, said in RANGES:
        if key in keys and not fits(value):
            return f"is {value}, but must be {said}", ""
    return None


def load_deepspeed(value: str | dict[str, Any]) -> dict[str, Any]:
    """Return the DeepSpeed configuration that a `deepspeed` value stands for: a path, JSON text, or the mapping itself.

    Raises:
        InputError: the file is missing or not a JSON object.
    """
    if isinstance(value, dict):
        return value
    try:
        loaded = json.loads(value) if value.startswith("{") else load_json(Path(value))
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{value}: not a JSON object")
    return loaded


def zero_stage(deepspeed: dict[str, Any]) -> int:
    """Return the ZeRO stage of a DeepSpeed configuration, 0 when it names none."""
    section = deepspeed.get("zero_optimization")
    stage = section.get("stage") if isinstance(section, dict) else None
    return stage if isinstance(stage, int) else 0


class _Checks:
    """The checks of one configuration, in the order in which they are shown."""

    def __init__(self, config: TrainConfig, schema: TrainerSchema, hardware: Hardware) -> None:
        self.values, self.origin = config.values, config.origin
        self.schema, self.hardware = schema, hardware

    def where(self, key: str) -> str:
        """Return the place of a key: `training_config.yaml:12 learning_rate`, or the key alone when it is not set."""
        return f"{self.origin[key]} {key}" if key in self.origin else key

    def keys(self) -> list[Problem]:
        """Unknown keys, wrong types, values out of range."""
        problems = []
        for key, value in self.values.items():
            argument = self.schema.arguments.get(key)
            found = check_value(argument, value) if argument else self._unknown(key)
            if found:
                problems.append(Problem(self.where(key), *found))
        return problems

    def _unknown(self, key: str) -> tuple[str, str] | None:
        if key in VARIABLE_OF_SECRET:
            return None
        near = difflib.get_close_matches(key, self.schema.arguments, n=1, cutoff=0.6)
        version = self.schema.versions.get("llamafactory", "")
        return f"LLaMA-Factory {version} has no such key", f"did you mean {near[0]}?" if near else "take it away"

    def model(self, force_template: bool) -> list[Problem]:
        """The model's folder, and whether the chat template fits it."""
        name = self.values.get("model_name_or_path")
        if not isinstance(name, str):
            return [Problem("model_name_or_path", "no model is named", "set model_name_or_path to the model's folder")]
        is_local = Path(name).is_absolute()
        problems = check_model_folder(Path(name), self.where("model_name_or_path")) if is_local else []
        template = self.values.get("template")
        if isinstance(template, str):
            family = None if problems or not is_local else find_family(Path(name))
            known = self.schema.templates
            problems += check_template(template, family, known, force=force_template, where=self.where("template"))
        return problems

    def adapters(self) -> list[Problem]:
        """Adapter folders, and the checkpoint to resume from."""
        adapters = self.values.get("adapter_name_or_path")
        names = adapters.split(",") if isinstance(adapters, str) else []
        where = self.where("adapter_name_or_path")
        problems = [
            Problem(where, f"{name}: there is no adapter_config.json", "name the folder that training wrote")
            for name in names
            if Path(name).is_absolute() and not (Path(name) / "adapter_config.json").is_file()
        ]
        resume = self.values.get("resume_from_checkpoint")
        if isinstance(resume, str) and not Path(resume).is_dir():
            hint = "name a checkpoint-... folder, or use --resume auto"
            problems.append(Problem(self.where("resume_from_checkpoint"), f"{resume}: there is no such folder", hint))
        return problems

    def deepspeed(self) -> list[Problem]:
        """The DeepSpeed file: there, and a JSON object."""
        try:
            self._deepspeed()
        except InputError as error:
            hint = "trainkit brings ds_z2.json, ds_z3.json and ds_z3_offload.json"
            return [Problem(self.where("deepspeed"), error.message, hint)]
        return []

    def _deepspeed(self) -> dict[str, Any]:
        value = self.values.get("deepspeed")
        return load_deepspeed(value) if isinstance(value, str | dict) else {}

    def combinations(self) -> list[Problem]:
        """The table of rules."""
        try:
            stage = zero_stage(self._deepspeed())
        except InputError:
            stage = 0
        facts = Facts(self.values, self.schema, self.hardware, stage)
        return [
            Problem(self.where(rule.key), rule.message, rule.hint, rule.level) for rule in RULES if rule.applies(facts)
        ]

    def folders(self) -> list[Problem]:
        """The output folder: can be made, can be written, has room."""
        name = self.values.get("output_dir")
        if not isinstance(name, str):
            return [Problem(self.where("output_dir"), "no output folder is named", "set output_dir")]
        where, folder = self.where("output_dir"), Path(name)
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not existing.is_dir():
            return [Problem(where, f"{existing} is a file, not a folder", "choose another output_dir")]
        if not os.access(existing, os.W_OK):
            return [Problem(where, f"{existing} cannot be written", "choose another output_dir")]
        free = shutil.disk_usage(existing).free
        if free < LEAST_FREE_DISK:
            message = f"only {free / LEAST_FREE_DISK:.2f} GiB are free on the disk of {existing}"
            return [Problem(where, message, "a full disk ends a training; make room, or choose another", "warning")]
        return []
