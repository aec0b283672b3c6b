"""A trained model is put where the next rollout looks for it, so that a complete model is there at every moment.

Beside the place, here `model.pt`, with a token of eight hexadecimal digits:

    .model.pt.<token>.part   the new model while it is gathered, or what is being thrown away; never a model
    .model.pt.<token>.new    the new model, complete and verified; after the exchange with `model.pt` the old one,
                             which is told by the token that the new model carries in trainkit_handover.json
    model.pt.previous        the old model, once the new one is verified in its place
    .model.pt.<token>.old    the model before the old one, to be removed

So the names alone say how far a killed hand-over came, and the next one goes on from there. One process at a time:
the caller holds the lock of the folder (`trainkit.files.locked`).
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.errors import ConfigError, TrainkitError
from trainkit.files import sync_folder
from trainkit.runs.exchange import complete_swap, is_there, link_or_copy, remove, swap, sync_tree
from trainkit.runs.weights import find_weight_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Verify = Callable[[Path], list[str]]

MARKER = "trainkit_handover.json"
# What a training leaves beside its model: for resuming, for reading, and whole checkpoints.
TRAINING_FILES = (
    ".*", MARKER, "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "trainer_state.json", "training_args.bin",
    "trainer_log.jsonl", "*_results.json", "training_*.png", "checkpoint-*", "global_step*", "latest",
    "zero_to_fp32.py", "pytorch_model_fsdp*", "runs", "wandb", "swanlog",
)  # fmt: skip
WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True, slots=True)
class Handover:
    """A model in its place: `Handover(Path("model.pt"), Path("model.pt.previous"), num_linked=4, num_copied=6)`.

    `previous` is None when there is no earlier model. Both numbers are 0 when the model was in place already.
    """

    place: Path
    previous: Path | None
    num_linked: int = 0
    num_copied: int = 0


@dataclass(frozen=True, slots=True)
class _Names:
    """The names around a place; those with a token belong to one hand-over."""

    place: Path
    token: str

    def _hidden(self, ending: str) -> Path:
        return self.place.with_name(f".{self.place.name}.{self.token}.{ending}")

    @property
    def part(self) -> Path:
        return self._hidden("part")

    @property
    def new(self) -> Path:
        return self._hidden("new")

    @property
    def old(self) -> Path:
        return self._hidden("old")

    @property
    def previous(self) -> Path:
        return self.place.with_name(f"{self.place.name}.previous")


def no_more_problems(_: Path) -> list[str]:
    """Ask no more of a model than that its files are whole."""
    return []


def hand_over(new_model: Path, place: Path, verify: Verify = no_more_problems) -> Handover:
    """Put the model in `new_model` at `place` and keep the one that was there as `<place>.previous`.

    Args:
        new_model: the folder of a full model; the model's own files are taken, weights as hard links where possible.
        place: a folder, a link (which is replaced; what it leads to is never touched), or nothing yet.
        verify: returns what is wrong with a model's folder; asked before the exchange and again in place.

    Raises:
        ConfigError: there is no such folder, or it is the place itself.
        TrainkitError: the model is not complete, or the disk refuses; the old model is then in place.
    """
    place = place.absolute()
    if not new_model.is_dir():
        raise ConfigError(f"{new_model}: no such folder", "name the folder of a trained model")
    if place.is_dir() and not place.is_symlink() and place.samefile(new_model):
        raise ConfigError(f"{new_model}: is the model in place already", "name the folder that the training wrote")
    with _explained(place):
        for names in _find_started(place):
            _go_on(names, verify, put_in_place=False)
        names = _Names(place, secrets.token_hex(4))
        files = _model_files(new_model)
        about = {"source": str(new_model.resolve()), "files": _describe(new_model, files)}
        if _is_in_place(place, about, verify):
            return Handover(place, _find(names.previous))
        num_linked = _gather(new_model, files, names, about, verify)
        _put_in_place(names, verify)
    return Handover(place, _find(names.previous), num_linked, len(files) - num_linked)


def recover(place: Path, verify: Verify = no_more_problems) -> Handover | None:
    """Finish what a killed hand-over left: a model that was verified goes into place, the rest is removed.

    Returns:
        What is there now; None when there is no model at `place`.

    Raises:
        TrainkitError: the new model is not complete, or the disk refuses; the old model is then in place.
    """
    place = place.absolute()
    with _explained(place):
        for names in _find_started(place):
            _go_on(names, verify, put_in_place=True)
    return Handover(place, _find(_Names(place, "").previous)) if is_there(place) else None


def find_source(place: Path) -> Path | None:
    """Return the folder whose model was handed over to `place`; None when no hand-over put there what is there now."""
    marker = _load_marker(place)
    source, files = marker.get("source"), marker.get("files")
    if not isinstance(source, str) or not isinstance(files, dict):
        return None
    weights = {name: state for name, state in files.items() if name.endswith(WEIGHTS)}
    there = _describe(place, [name for name in weights if (place / name).is_file()])
    return Path(source) if there == weights else None


def _find_started(place: Path) -> list[_Names]:
    """Return the hand-overs to `place` that have left something behind."""
    if not place.parent.is_dir():
        return []
    pattern = re.compile(rf"\.{re.escape(place.name)}\.([0-9a-f]{{8}})\.(part|new|new\.aside|old)")
    found = (pattern.fullmatch(path.name) for path in place.parent.iterdir())
    return [_Names(place, token) for token in sorted({match[1] for match in found if match})]


def _go_on(names: _Names, verify: Verify, *, put_in_place: bool) -> None:
    complete_swap(names.place, names.new)
    if _load_marker(names.new).get("token") != names.token:
        if is_there(names.new):
            _keep_old(names, verify)
    elif put_in_place:
        _put_in_place(names, verify)
    else:
        _throw_away(names)
    remove(names.part)
    remove(names.old)


def _gather(source: Path, files: list[str], names: _Names, about: dict[str, Any], verify: Verify) -> int:
    """Make the new model beside its place, complete, verified and on the disk; return how many files are links."""
    num_linked = 0
    try:
        names.part.mkdir(parents=True)
        for name in files:
            target = names.part / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix in WEIGHTS:
                num_linked += link_or_copy(source / name, target)
            else:
                # small files are edited by hand, which must not reach the training's own folder
                shutil.copyfile(source / name, target)
        (names.part / MARKER).write_text(json.dumps({"token": names.token, **about}, indent=2) + "\n", encoding="utf-8")
        if problems := _find_problems(names.part, verify):
            raise TrainkitError(f"{source}: not handed over: {'; '.join(problems)}", _hint(problems))
        sync_tree(names.part)
    except BaseException:
        remove(names.part)
        raise
    names.part.rename(names.new)
    sync_folder(names.place.parent)
    return num_linked


def _put_in_place(names: _Names, verify: Verify) -> None:
    if not is_there(names.place):
        names.new.rename(names.place)
        sync_folder(names.place.parent)
        return
    swap(names.place, names.new)
    _keep_old(names, verify)


def _keep_old(names: _Names, verify: Verify) -> None:
    """Keep the old model as the previous one, if the new one is good in its place; else put it back."""
    if problems := _find_problems(names.place, verify):
        swap(names.place, names.new)
        _throw_away(names)
        raise TrainkitError(
            f"{names.place}: the new model is not good in its place: {'; '.join(problems)}",
            "the old model is in place again",
        )
    if is_there(names.previous):
        names.previous.rename(names.old)
    names.new.rename(names.previous)
    sync_folder(names.place.parent)
    remove(names.old)


def _throw_away(names: _Names) -> None:
    # renamed first: half of a removed model must not look like a verified one
    names.new.rename(names.part)
    remove(names.part)


def _model_files(folder: Path) -> list[str]:
    """Return the paths, relative to `folder`, of the files that belong to the model itself."""
    own = [path for path in folder.iterdir() if not any(fnmatch(path.name, pattern) for pattern in TRAINING_FILES)]
    files = [file for path in own for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return sorted(file.relative_to(folder).as_posix() for file in files)


def _describe(folder: Path, files: list[str]) -> dict[str, list[int]]:
    """Return size in bytes and time of change in nanoseconds of each file."""
    states = ((name, (folder / name).stat()) for name in files)
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states}


def _is_in_place(place: Path, about: dict[str, Any], verify: Verify) -> bool:
    marker = _load_marker(place)
    return all(marker.get(key) == value for key, value in about.items()) and not _find_problems(place, verify)


def _load_marker(folder: Path) -> dict[str, Any]:
    # a model behind a link is not one that was put there by a hand-over
    if folder.is_symlink() or not (folder / MARKER).is_file():
        return {}
    return _find_json_object(folder / MARKER)


def _find_json_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _find_problems(folder: Path, verify: Verify) -> list[str]:
    problems = list(find_weight_problems(folder))
    if not (folder / "config.json").is_file():
        problems.append("no config.json")
    elif not _find_json_object(folder / "config.json"):
        problems.append("config.json cannot be read")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        problems.append("no tokenizer")
    return problems or verify(folder)


def _hint(problems: list[str]) -> str:
    if "no config.json" in problems:
        return "an adapter is merged into its base model first: trainkit export"
    return "the model in place is the one that was there"


def _find(path: Path) -> Path | None:
    return path if is_there(path) else None


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainkitError(
            f"{place}: the hand-over stopped: {error}", "the model that was there is kept; run it again to go on"
        ) from error
