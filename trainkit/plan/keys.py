"""Keys of hand-written configurations that the installed trainer does not know, or takes for something else.

Each is translated or dropped, and each time a note says so. A renamed or retired key is touched only when the installed
trainer does not know it; a trap (a value that means "off" in other tools) always.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainkit.datatypes import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trainkit.datatypes import Level
    from trainkit.plan.arguments import TrainerSchema

# old key -> the trainer's key
RENAMED = {
    "additional_special_tokens": "add_special_tokens",
    "early_stopping_patience": "early_stopping_steps",
    "evaluation_strategy": "eval_strategy",
    "lora_plus_scale": "loraplus_lr_ratio",
    "lora_r": "lora_rank",
    "max_seq_length": "cutoff_len",
    "model_max_length": "cutoff_len",
    "modules_to_save": "additional_target",
    "no_cuda": "use_cpu",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "target_modules": "lora_target",
}

# key -> why it is not needed
RETIRED = {
    "dispatch_batches": "belongs into accelerator_config",
    "early_stopping_threshold": "the trainer stops when the metric does not improve at all",
    "fp16_backend": "there is one backend only",
    "half_precision_backend": "there is one backend only",
    "include_tokens_per_second": "include_num_input_tokens_seen takes its place",
    "save_safetensors": "weights are always saved as safetensors",
    "split_batches": "belongs into accelerator_config",
    "use_ipex": "the trainer no longer has it",
    "use_mps_device": "the trainer finds the device itself",
}

# key -> the value that other tools use for "off" and that this trainer would take at its word
MEANS_OFF: dict[str, tuple[Any, str]] = {
    "loraplus_lr_ratio": (1.0, "1.0 is plain LoRA"),
    "max_samples": (-1, "-1 would select no row at all; without the key every row is used"),
    "neftune_noise_alpha": (0, "0 is no noise"),
    "quantization_bit": (0, "0 is no quantization"),
}

EMPTY_HAS_MEANING = ("default_system",)  # an empty system prompt replaces the template's own
HALF_TYPES = {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16", "half": "fp16"}


@dataclass(slots=True)
class Draft:
    """Keys that are being put together, each with its origin: one source, or all of them laid over each other."""

    values: dict[str, Any]
    origin: dict[str, str]
    notes: list[Problem] = field(default_factory=list)

    def say(self, key: str, message: str, level: Level = "note") -> None:
        """Note what happened to a key."""
        self.notes.append(Problem(f"{self.origin[key]} {key}", message, level=level))

    def drop(self, key: str, why: str, level: Level = "note") -> None:
        """Leave a key out, with a word."""
        del self.values[key]
        self.say(key, f"left out: {why}", level)

    def replace(self, key: str, new: str, value: Any) -> None:
        """Put `new: value` in the place of a key, unless this source has `new` already."""
        if self.values.get(new) is not None:
            self.drop(key, f"{new} is there too and is what the trainer reads", "warning")
            return
        del self.values[key]
        self.values[new], self.origin[new] = value, self.origin[key]
        self.say(key, f"is {new}: {value} for this trainer")


def translate_keys(values: Mapping[str, Any], origin: Mapping[str, str], schema: TrainerSchema) -> Draft:
    """Return the keys of one source in the trainer's own words, with a note for each that was changed.

    An empty value (`""`, `[]`, `{}`, null) stays as None: it takes back what a lower source has set.
    """
    draft = Draft(dict(values), dict(origin))
    for key in list(draft.values):
        draft.values[key] = plain_value(key, draft.values[key], schema)
    for key in [key for key in draft.values if key not in schema.arguments]:
        if draft.values[key] is None:
            continue
        if key in RENAMED:
            _rename(draft, key, schema)
        elif key in RETIRED:
            draft.drop(key, RETIRED[key])
        elif key in SPECIAL:
            SPECIAL[key](draft, key)
    _report_trackers(draft)
    _drop_off_values(draft)
    _note_empty(draft)
    return draft


def plain_value(key: str, value: Any, schema: TrainerSchema) -> Any:
    """Return a value in the form that the trainer reads: None for empty, `no` for YAML's false, `a,b` for a list."""
    argument = schema.arguments.get(key)
    if isinstance(value, str | list | dict) and not value and key not in EMPTY_HAS_MEANING:
        return None
    if argument is None or argument.kind != "str":
        return value
    if value is False and "no" in argument.choices:
        return "no"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return value


def why_off(key: str, value: Any) -> str | None:
    """Return what a value that means "off" stands for, or None when it is an ordinary value."""
    off, why = MEANS_OFF.get(key, (None, ""))
    return why if off is not None and not isinstance(value, bool) and value == off else None


def _rename(draft: Draft, key: str, schema: TrainerSchema) -> None:
    new = RENAMED[key]
    value = plain_value(new, draft.values[key], schema)
    why = why_off(new, value)
    if why:
        draft.drop(key, why)
    else:
        draft.replace(key, new, value)


def _drop_off_values(draft: Draft) -> None:
    for key in MEANS_OFF:
        why = why_off(key, draft.values.get(key))
        if why:
            draft.values[key] = None
            draft.say(key, f"left out: {why}")


def _note_empty(draft: Draft) -> None:
    """One note for all empty keys: a typical file has many of them."""
    said = {problem.where for problem in draft.notes}
    empty = [key for key, value in draft.values.items() if value is None and f"{draft.origin[key]} {key}" not in said]
    if empty:
        place = draft.origin[empty[0]].rpartition(":")[0] or draft.origin[empty[0]]
        draft.notes.append(Problem(place, f"left out, they are empty: {', '.join(empty)}", level="note"))


def _tokenizer(draft: Draft, key: str) -> None:
    model = draft.values.get("model_name_or_path")
    if model is None or draft.values[key] == model:
        draft.drop(key, "the tokenizer is always the model's")
    else:
        draft.drop(key, f"the tokenizer is always that of model_name_or_path, which is {model}", "warning")


def _data_type(draft: Draft, key: str) -> None:
    name = str(draft.values[key]).removeprefix("torch.")
    if name in HALF_TYPES:
        precision = HALF_TYPES[name]
        if draft.values.get(precision) is True:
            draft.drop(key, f"{precision}: true says it")
        else:
            draft.values.pop(precision, None)
            draft.replace(key, precision, True)
    elif name in ("float32", "fp32", "float"):
        for precision in ("bf16", "fp16"):
            draft.values.setdefault(precision, False)
            draft.origin.setdefault(precision, draft.origin[key])
        draft.drop(key, "bf16: false and fp16: false mean 32-bit floats")
    else:
        draft.drop(key, "bf16 and fp16 decide the type")


def _experiment(draft: Draft, key: str) -> None:
    name = draft.values[key]
    if draft.values.get("run_name") is None:
        draft.values["run_name"], draft.origin["run_name"] = name, draft.origin[key]
    draft.replace(key, "swanlab_run_name", name)


def _group_by_length(draft: Draft, key: str) -> None:
    if draft.values[key] is True:
        draft.replace(key, "train_sampling_strategy", "group_by_length")
    else:
        draft.drop(key, "rows are shuffled unless train_sampling_strategy says otherwise")


def _flash_attention(draft: Draft, key: str) -> None:
    if draft.values[key] is True:
        draft.replace(key, "flash_attn", "fa2")
    else:
        draft.drop(key, "flash_attn: auto chooses")


SPECIAL: dict[str, Callable[[Draft, str], None]] = {
    "dtype": _data_type,
    "experiment_name": _experiment,
    "group_by_length": _group_by_length,
    "tokenizer_name": _tokenizer,
    "tokenizer_name_or_path": _tokenizer,
    "torch_dtype": _data_type,
    "use_flash_attention_2": _flash_attention,
    "use_flash_attn": _flash_attention,
}


def _report_trackers(draft: Draft) -> None:
    """SwanLab has its own keys: `report_to: swanlab` is another code path, which fails with some versions."""
    trackers = draft.values.get("report_to")
    names = trackers if isinstance(trackers, list) else [trackers]
    if "swanlab" not in names:
        return
    rest = [name for name in names if name != "swanlab"]
    draft.values["report_to"] = rest or "none"
    draft.values.setdefault("use_swanlab", True)
    draft.origin.setdefault("use_swanlab", draft.origin["report_to"])
    draft.say("report_to", "swanlab is use_swanlab: true for this trainer")
