"""Reading the file of an update: sections laid flat with a dot, `key=value` words over them, all problems at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from trainkit.datatypes import Problem
from trainkit.errors import ConfigError, InputError, ProblemsFound
from trainkit.plan.check import load_deepspeed
from trainkit.plan.config import COMMAND_LINE, SILENCES, ZERO_SPEAKS, parse_override
from trainkit.plan.families import is_hub_name
from trainkit.plan.keys import Draft
from trainkit.plan.paths import local_path
from trainkit.plan.templates import templates_folder
from trainkit.plan.update_keys import (
    ALGORITHM,
    BASE_MODEL,
    KEYS,
    LOG,
    OLD_SAMPLES,
    ROLLOUT_SECTIONS,
    SAMPLES,
    check_key,
    check_placeholders,
    plain,
    trackers,
)
from trainkit.plan.yamlfile import Loader, load_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from trainkit.plan.arguments import TrainerSchema

POLICY = BASE_MODEL.partition(".")[0]
SECTIONS = (LOG, ALGORITHM, POLICY)
DEEPSPEED = f"{ALGORITHM}.deepspeed_config_filename"


def read_update_file(file: Path, overrides: Sequence[str], base: Path, schema: TrainerSchema | None) -> Draft:
    """Return the keys of an update, dotted (`algorithm_config.bf16`), complete with defaults; paths are absolute.

    Raises:
        ConfigError: the file cannot be read.
        UsageProblem: an override is not `key=value`.
        ProblemsFound: keys or values are wrong, each with its file and line.
    """
    reading = _Reading(file, schema)
    draft = reading.lay_flat(reading.merge(overrides))
    reading.use_old_names(draft)
    reading.check(draft)
    if not reading.problems:
        reading.settle(draft, base)
    if reading.problems:
        raise ProblemsFound(f"{file}: the update cannot start", reading.problems)
    return draft


class _Reading:
    """One reading of a file: the places of its keys, and the problems that were found."""

    def __init__(self, file: Path, schema: TrainerSchema | None) -> None:
        self.file, self.schema = file, schema
        self.places: dict[str, str] = {}
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []

    def where(self, name: str) -> str:
        """Return the place of a key, or of its section."""
        return self.places.get(name) or self.places.get(name.partition(".")[0]) or self.file.name

    def blame(self, name: str, message: str, hint: str = "") -> None:
        """Note a problem of a key."""
        self.problems.append(Problem(f"{self.where(name)} {name}", message, hint))

    def merge(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return the file's values with the words laid over them, `${...}` resolved after that."""
        if not self.file.exists():
            raise ConfigError(f"{self.file}: no such file", "trainkit init --update writes one to start from")
        self.notes += load_yaml(self.file).notes  # its checks hold for what is read below
        loader = Loader(self.file.read_text(encoding="utf-8-sig"))
        root = loader.get_single_node()
        self._find_lines(root)
        values = (loader.construct_document(root) if root is not None else None) or {}
        for word in overrides:
            key, value = parse_override(word.lstrip("+"))
            values = _laid_over(values, {key: value})
            path = word.lstrip("+").partition("=")[0].split(".")
            self.places[".".join(path[:2])] = COMMAND_LINE
            self.places.setdefault(path[0], COMMAND_LINE)
        return self._resolved(values)

    def _find_lines(self, root: yaml.Node | None) -> None:
        for name, line in _lines(root):
            place = f"{self.file.name}:{line}"
            if name in self.places and "." in name:
                self.blame(name, f"written twice, again in line {line}", "keep one of the two lines")
            self.places.setdefault(name, place)

    def _resolved(self, values: dict[str, Any]) -> dict[str, Any]:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        if "${" not in str(values):
            return values
        if "oc.env" in str(values):
            raise ConfigError(f"{self.file}: ${{oc.env:...}} is not read", "write the value out, a secret nowhere")
        try:
            resolved: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(values), resolve=True)  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"{self.file}: ${{...}} cannot be resolved: {reason}", "name a key of this file"
            ) from None
        return resolved

    def lay_flat(self, values: dict[str, Any]) -> Draft:
        """Return the sections' keys with a dot; what is the rollouts' own is left out, with a word."""
        flat: dict[str, Any] = {}
        for key, value in values.items():
            if key not in SECTIONS:
                flat[key] = value
            elif isinstance(value, dict):
                flat |= {f"{key}.{name}": inner for name, inner in value.items()}
            elif value is not None:
                self.blame(key, f"is {value!r}, not a section of keys", "indent its keys below it")
        theirs = [key for key in flat if key in ROLLOUT_SECTIONS or (key.startswith(POLICY) and key != BASE_MODEL)]
        if theirs:
            self.notes.append(
                Problem(self.file.name, f"the rollouts' own, not read: {', '.join(theirs)}", level="note")
            )
        known = {key: plain(key, value) for key, value in flat.items() if key not in theirs}
        return Draft(known, {key: self.where(key) for key in known}, self.notes)

    def use_old_names(self, draft: Draft) -> None:
        """Read samples_to_train and policy_config.base_model as the keys that took their place."""
        for old, new in ((f"{ALGORITHM}.{OLD_SAMPLES}", f"{ALGORITHM}.{SAMPLES}"), (BASE_MODEL, "model_path")):
            if old not in draft.values:
                continue
            value = draft.values[old]
            if draft.values.get(new) is not None:
                draft.drop(old, f"{new} is there too and wins", "warning")
                continue
            del draft.values[old]
            draft.values[new], draft.origin[new] = value, draft.origin[old]
            self.places[new] = draft.origin[old]
            draft.say(old, f"is read as {new}")

    def check(self, draft: Draft) -> None:
        """Find unknown keys and wrong values, and what is missing."""
        for name, value in draft.values.items():
            found = check_key(name, value, self.schema)
            if found:
                self.blame(name, *found)
        if not draft.values.get("save_path"):
            self.blame("save_path", "is missing", "add save_path=/data/exp1: the folder that holds train_trajectories")
        report_to = draft.values.get(f"{ALGORITHM}.report_to", "wandb")
        if check_key(f"{ALGORITHM}.report_to", report_to, None) is None:
            for problem in check_placeholders(draft.values, trackers(report_to)):
                self.blame(*problem)

    def settle(self, draft: Draft, base: Path) -> None:
        """Fill in the defaults and write paths out in full."""
        silenced = {f"{ALGORITHM}.{other}" for name, value in draft.values.items() for other in _silences(name, value)}
        defaults = {name: argument.default for name, argument in KEYS.items() if name not in silenced}
        draft.values = defaults | draft.values
        for name in ("save_path", "data_path"):
            value = draft.values[name]
            draft.values[name] = local_path(value, base) if value else None
        self._settle_model(draft, base)
        self._settle_deepspeed(draft, base)

    def _settle_model(self, draft: Draft, base: Path) -> None:
        name = draft.values["model_path"]
        if not name:
            earlier = draft.values["save_path"] / draft.values[f"{ALGORITHM}.model_output_name"]
            if not earlier.is_dir():
                self.blame("model_path", f"no model is named, and there is no {earlier}", "add model_path=FOLDER")
            draft.values["model_path"] = None
            return
        path = local_path(name, base)
        if name.startswith((".", "/", "~")) or path.exists() or not is_hub_name(name):
            draft.values["model_path"] = str(path)
        else:
            draft.say("model_path", f"{name} is no folder here, so it is taken as a hub's name")

    def _settle_deepspeed(self, draft: Draft, base: Path) -> None:
        name = draft.values[DEEPSPEED]
        if not name:
            draft.values[DEEPSPEED] = None
            return
        folder = templates_folder() / "deepspeed"
        path, shipped = local_path(name, base), folder / name
        if not path.is_file() and shipped.parent == folder and shipped.is_file():
            draft.say(DEEPSPEED, f"trainkit's own {name}")
            path = shipped
        if not path.is_file():
            self.blame(DEEPSPEED, f"there is no file {path}", _deepspeed_hint(name, folder))
            return
        try:
            load_deepspeed(str(path))
        except InputError as error:
            self.blame(DEEPSPEED, error.message, error.hint)
        draft.values[DEEPSPEED] = path


def _silences(name: str, value: Any) -> tuple[str, ...]:
    """Return the keys whose defaults give way to this key, as warmup_steps to warmup_ratio."""
    key = name.rpartition(".")[2]
    return SILENCES.get(key, ()) if value or (key in ZERO_SPEAKS and value is not None) else ()


def _deepspeed_hint(name: str, folder: Path) -> str:
    stage = re.search(r"z(?:ero)?[_-]?([123])", name)
    if stage and (folder / f"ds_z{stage[1]}.json").is_file():
        return f"name its path, or trainkit's own ds_z{stage[1]}.json, which is ZeRO-{stage[1]} too"
    return f"name its path, or trainkit's own: {', '.join(sorted(file.name for file in folder.glob('*.json')))}"


def _lines(root: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Yield the dotted name and the line of each key, and of the keys of each section."""
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        yield str(key.value), key.start_mark.line + 1
        if key.value in SECTIONS and isinstance(value, yaml.MappingNode):
            yield from ((f"{key.value}.{inner.value}", inner.start_mark.line + 1) for inner, _ in value.value)


def _laid_over(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _laid_over(below.get(key), value) for key, value in above.items()}
    return above
