"""From a template, the user's file, the options and the key=value words to one configuration for the trainer.

Precedence: template < the user's YAML < options < key=value. The result knows where each key came from.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from trainkit.datatypes import Problem, TrainConfig
from trainkit.errors import InputError, UsageProblem
from trainkit.plan.families import find_family
from trainkit.plan.keys import Draft, translate_keys
from trainkit.plan.machine import adapt_to_machine
from trainkit.plan.paths import absolute_paths, local_path
from trainkit.plan.templates import find_template, load_template
from trainkit.plan.thinking import follow_thoughts
from trainkit.plan.yamlfile import load_yaml, parse_scalar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from trainkit.datatypes import Hardware
    from trainkit.plan.arguments import TrainerSchema
    from trainkit.plan.families import Family

OVERRIDE = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)=(.*)", re.DOTALL)
COMMAND_LINE = "command line"

# A key that speaks for itself silences what a lower source says about the same thing.
SILENCES = {
    "bf16": ("fp16",),
    "eval_dataset": ("val_size",),
    "fp16": ("bf16", "pure_bf16"),
    "num_train_epochs": ("max_steps",),
    "val_size": ("eval_dataset",),
    "warmup_ratio": ("warmup_steps",),
    "warmup_steps": ("warmup_ratio",),
}
ZERO_SPEAKS = ("warmup_ratio", "warmup_steps")  # for the others, false or 0 says nothing


def build_config(
    user_file: Path | None,
    options: Mapping[str, tuple[str, Any]],
    overrides: Sequence[str],
    *,
    schema: TrainerSchema,
    hardware: Hardware,
    templates: Path,
    base: Path,
    complete: bool = False,
    has_thoughts: bool | None = None,
) -> TrainConfig:
    """Return the complete configuration for the trainer.

    Args:
        user_file: the user's YAML with LLaMA-Factory's own keys.
        options: trainer's key -> (flag, value), such as `{"num_train_epochs": ("--epochs", 5)}`; None is not given.
        overrides: words of the form `key=value`, the value read as YAML.
        schema: the installed trainer's arguments.
        hardware: the machine that trains.
        templates: the folder of trainkit's templates.
        base: the folder that relative paths start from.
        complete: the sources say everything, so that no template is laid under them.
        has_thoughts: the answers of the training data hold think blocks; None is not known.

    Raises:
        ConfigError: the user's file cannot be read.
        UsageProblem: an override is not `key=value`.
    """
    sources = [
        *([_file_source(user_file, schema)] if user_file else []),
        _options_source(options, schema),
        _overrides_source(overrides, schema),
    ]
    draft = Draft({}, {}) if complete else _start(sources, schema, templates, base, has_thoughts)
    for source in sources:
        _lay_over(draft, source)
    _settle_evaluation(draft)
    adapt_to_machine(draft, hardware)
    absolute_paths(draft, base, templates)
    if draft.values.get("trust_remote_code") is True:
        draft.say("trust_remote_code", "code that comes with the model will be run")
    return TrainConfig(draft.values, {key: draft.origin[key] for key in draft.values}, tuple(draft.notes))


def parse_override(word: str) -> tuple[str, Any]:
    """Return key and value of `key=value`; a dotted key makes a nested mapping, as in OmegaConf.

    `parse_override("learning_rate=2e-4")` is `("learning_rate", 0.0002)`.

    Raises:
        UsageProblem: the word has another form, or its value is not YAML.
    """
    match = OVERRIDE.fullmatch(word)
    if match is None:
        raise UsageProblem(f"{word!r} is not of the form key=value", "for example learning_rate=2e-4")
    path, text = match.groups()
    try:
        value = parse_scalar(text)
    except ValueError as error:
        raise UsageProblem(f"{word!r}: the value cannot be read: {error}", "put it in quotes: key='\"text\"'") from None
    key, *inner = path.split(".")
    for name in reversed(inner):
        value = {name: value}
    return key, value


def _file_source(path: Path, schema: TrainerSchema) -> Draft:
    file = load_yaml(path)
    draft = translate_keys(file.values, {key: f"{path.name}:{line}" for key, line in file.lines.items()}, schema)
    draft.notes[:0] = file.notes
    return draft


def _options_source(options: Mapping[str, tuple[str, Any]], schema: TrainerSchema) -> Draft:
    given = {key: option for key, option in options.items() if option[1] is not None}
    values = {key: value for key, (_, value) in given.items()}
    return translate_keys(values, {key: flag for key, (flag, _) in given.items()}, schema)


def _overrides_source(overrides: Sequence[str], schema: TrainerSchema) -> Draft:
    values: dict[str, Any] = {}
    for word in overrides:
        key, value = parse_override(word)
        values[key] = _merged(values.get(key), value)
    return translate_keys(values, dict.fromkeys(values, COMMAND_LINE), schema)


def _start(
    sources: Sequence[Draft], schema: TrainerSchema, templates: Path, base: Path, has_thoughts: bool | None
) -> Draft:
    """Return the template that fits the model, the stage and the method which the sources name."""
    model = _last(sources, "model_name_or_path") or "./model"
    method, stage = str(_last(sources, "finetuning_type") or "lora"), str(_last(sources, "stage") or "sft")
    family = _family(local_path(str(model), base))
    file = find_template(templates, family, method, stage, _last(sources, "quantization_bit"))
    values = load_template(file, method)
    draft = Draft(values, dict.fromkeys(values, f"template {file.parent.name}/{file.stem}"))
    if _last(sources, "template") is None:
        _choose_chat_template(draft, family, str(model), schema)
        # who sets enable_thinking speaks of the thinking template: the other one does not read it
        if has_thoughts is not None and _last(sources, "enable_thinking") is None:
            follow_thoughts(draft, schema, has_thoughts=has_thoughts)
    return draft


def _family(model_dir: Path) -> Family | None:
    try:
        return find_family(model_dir)
    except InputError:  # a damaged config.json; check_config reports it together with everything else
        return None


def _choose_chat_template(draft: Draft, family: Family | None, model: str, schema: TrainerSchema) -> None:
    if family is None:
        draft.say("template", f"{model} does not tell its family, so {draft.values['template']} is assumed", "warning")
        return
    fitting = [name for name in family.templates if name in schema.templates]
    if fitting and fitting[0] != draft.values["template"]:
        draft.values["template"] = fitting[0]
        draft.origin["template"] = "the model's config.json"


def _last(sources: Sequence[Draft], key: str) -> Any:
    """Return what the strongest source says about a key."""
    return next((source.values[key] for source in reversed(sources) if source.values.get(key) is not None), None)


def _lay_over(draft: Draft, source: Draft) -> None:
    """Let a source win over what is there; its empty keys take back what is there."""
    draft.notes.extend(source.notes)
    for key, value in source.values.items():
        if value is None:
            draft.values.pop(key, None)
            continue
        _silence(draft, source, key)
        draft.values[key] = _merged(draft.values.get(key), value)
        draft.origin[key] = source.origin[key]


def _silence(draft: Draft, source: Draft, key: str) -> None:
    if not source.values[key] and key not in ZERO_SPEAKS:
        return
    for other in SILENCES.get(key, ()):
        if other in source.values or not draft.values.get(other) or draft.values[other] == -1:
            continue
        if draft.origin[other].startswith("template "):
            del draft.values[other]
        else:
            draft.drop(other, f"{key} of {source.origin[key]} takes its place")


def _merged(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _merged(below.get(key), value) for key, value in above.items()}
    return above


def _settle_evaluation(draft: Draft) -> None:
    """Evaluate when there is something to evaluate on, and only then: the trainer refuses one without the other."""
    values = draft.values
    strategy = values.get("eval_strategy")
    if values.get("eval_dataset") or values.get("val_size"):
        if strategy is None:
            steps = values.get("save_steps", 500)
            origin = draft.origin["eval_dataset" if values.get("eval_dataset") else "val_size"]
            values.update({"eval_strategy": "steps", "eval_steps": values.get("eval_steps", steps)})
            draft.origin.update({"eval_strategy": origin, "eval_steps": draft.origin.get("eval_steps", origin)})
            draft.say("eval_strategy", f"evaluates every {values['eval_steps']} steps and at the end")
        return
    pointless = [key for key in ("eval_steps", "eval_delay", "eval_on_start") if key in values]
    asked = [key for key in ("eval_strategy", "do_eval") if values.get(key) not in (None, False, "no")]
    if not asked:
        return
    for key in pointless:
        del values[key]
    values.update(dict.fromkeys(asked, False) | ({"eval_strategy": "no"} if "eval_strategy" in asked else {}))
    left_out = f" ({', '.join(pointless)} left out)" if pointless else ""
    draft.notes.append(
        Problem(
            f"{draft.origin[asked[0]]} {asked[0]}",
            f"no evaluation: there is neither eval_dataset nor val_size{left_out}",
            "`trainkit convert --split-eval` makes an eval data set",
            "note",
        )
    )
