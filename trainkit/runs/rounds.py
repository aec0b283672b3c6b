"""The rounds of an online update: what each was made of, how far it came, and where the next one starts.

<save_path>/
  updates/model_20260301_142530.json          one record for each round
  checkpoints/model_20260301_142530/          what its training wrote: the model, and checkpoint-N to resume from
  checkpoints/resume/checkpoint-N             a copy of a checkpoint with the new learning rate
  model.pt/                                   the model of the newest round that was handed over
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from trainkit.datatypes import Problem
from trainkit.errors import InputError
from trainkit.files import load_json, write_json_atomic
from trainkit.runs.checkpoints import find_newest_complete, load_checkpoint
from trainkit.runs.exchange import remove
from trainkit.runs.handover import find_source
from trainkit.runs.store import PROGRESS_LOG
from trainkit.runs.weights import find_weight_problems

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from trainkit.datatypes import Checkpoint

RECORDS, CHECKPOINTS, COPY = "updates", "checkpoints", "resume"
NAME = re.compile(r"model_\d{8}_\d{6}(_\d+)?")

State = Literal["prepared", "trained", "handed over", "refused"]


@dataclass(frozen=True, slots=True)
class Round:
    """One round, as its record has it.

    Attributes:
        name: `model_20260301_142530`, the folder of its training in checkpoints/.
        inputs: file -> [bytes, time of change in nanoseconds] of the iterations that it was made of.
        settings: digest of its configuration.
        wandb_run_id: the run at W&B, which later rounds continue.
        model: the model of the first round, as it was configured.
        start: the checkpoint that its training goes on from; empty when from none.
        start_step: the step of that checkpoint, 0 without one.
        total_steps: the step at which its training ends.
        newest_iteration: the highest number among the iterations.
        sampling: the plan of the sample (see `SamplingPlan.to_json`).
        state: how far it came; "refused" is a training that ended with a model of no use.
    """

    name: str
    inputs: dict[str, list[int]]
    settings: str
    wandb_run_id: str
    model: str = ""
    start: str = ""
    start_step: int = 0
    total_steps: int = 0
    newest_iteration: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)
    state: State = "prepared"

    def is_made_of(self, inputs: dict[str, list[int]], settings: str) -> bool:
        """Whether a round of these iterations and this configuration would be the same."""
        return (self.inputs, self.settings) == (inputs, settings)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a round starts: from a checkpoint, or with None from a model's weights alone; `notes` say why."""

    checkpoint: Checkpoint | None
    notes: tuple[Problem, ...] = ()


def new_name(save_path: Path, now: datetime) -> str:
    """Return the name of a new round: `model_20260301_142530`, with `_2` for a second one in the same second."""
    base = f"model_{now:%Y%m%d_%H%M%S}"
    names = [base, *(f"{base}_{number}" for number in range(2, 100))]
    return next(name for name in names if not record_file(save_path, name).exists())


def record_file(save_path: Path, name: str) -> Path:
    """Return the file of a round's record."""
    return save_path / RECORDS / f"{name}.json"


def output_of(save_path: Path, name: str) -> Path:
    """Return the folder that a round's training writes to."""
    return save_path / CHECKPOINTS / name


def write_round(save_path: Path, one: Round) -> None:
    """Write a round's record, all or nothing."""
    write_json_atomic(record_file(save_path, one.name), dataclasses.asdict(one))


def load_rounds(save_path: Path) -> list[Round]:
    """Return the rounds that trainkit prepared, the oldest first.

    Raises:
        InputError: a record is damaged.
    """
    folder = save_path / RECORDS
    files = sorted(path for path in folder.glob("*.json") if NAME.fullmatch(path.stem)) if folder.is_dir() else []
    return sorted((load_round(file) for file in files), key=lambda one: order_of(one.name))


def load_round(file: Path) -> Round:
    """Return the round that a file records.

    Raises:
        InputError: the record is damaged.
    """
    try:
        one = msgspec.json.decode(file.read_bytes(), type=Round)
    except (OSError, msgspec.DecodeError) as error:
        hint = "remove it; the models stay as they are"
        raise InputError(f"{file}: is no record of a round: {error}", hint) from None
    if one.name != file.stem:
        raise InputError(f"{file}: is the record of {one.name}", "give the file its name again")
    return one


def order_of(name: str) -> tuple[str, int]:
    """Return what sorts names of rounds by their time."""
    return name[:21], int(name[22:] or 1)


def find_start(save_path: Path, place: Path, rounds: list[Round], model: str = "") -> Start:
    """Return where the next round starts: the checkpoint of the model in place, if it left one.

    Without a model that trainkit put there, it is the newest training in checkpoints/, but for unfinished rounds, those
    whose model was refused, and those of another `model`.
    """
    if source := find_source(place):
        name = source.name if NAME.fullmatch(source.name) else source.parent.name
        checkpoint = find_resumable(save_path / CHECKPOINTS / name)
        message = f"{name} left no checkpoint with an optimizer, so its weights alone are trained on"
        return Start(checkpoint, () if checkpoint else (Problem(str(place), message, level="note"),))
    passed_over = {one.name for one in rounds if not is_trained(save_path, one) or (one.model and one.model != model)}
    root = save_path / CHECKPOINTS
    names = (path.name for path in root.iterdir()) if root.is_dir() else ()
    trained = sorted((name for name in names if NAME.fullmatch(name) and name not in passed_over), key=order_of)
    for name in reversed(trained):
        if checkpoint := find_resumable(root / name):
            return Start(checkpoint)
    return Start(None)


def find_started(save_path: Path, alike: list[Round]) -> Round | None:
    """Return the newest of some rounds whose training was started, by trainkit or by hand."""
    return next((one for one in reversed(alike) if was_started(save_path, one)), None)


def find_unfinished(save_path: Path, alike: list[Round]) -> Round | None:
    """Return the newest of some rounds whose training has not ended, one that was started before one that was not."""
    left = [one for one in alike if one.state != "refused" and not is_trained(save_path, one)]
    return find_started(save_path, left) or next(reversed(left), None)


def was_started(save_path: Path, one: Round) -> bool:
    """Whether a training of a round has begun, whatever came of it."""
    return one.state != "prepared" or output_of(save_path, one.name).is_dir()


def find_resumable(folder: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint of a training, or its folder itself where that is one."""
    if not folder.is_dir():
        return None
    if checkpoint := find_newest_complete(folder):
        return checkpoint
    itself = load_checkpoint(folder)
    return itself if itself.complete else None


def find_model(save_path: Path, one: Round) -> Path | None:
    """Return the folder that holds the whole model of a round whose training has ended; None when it has not."""
    if one.state == "refused":
        return None
    folder = output_of(save_path, one.name)
    last = find_newest_complete(folder)
    at_end = last is not None and 0 < last.total_steps <= last.step
    if one.state == "prepared" and not at_end:
        return None
    if (folder / "config.json").is_file() and not any(find_weight_problems(folder)):
        return folder
    # killed while it wrote the model after its last checkpoint, which holds the same weights
    return last.path if last and at_end else None


def is_trained(save_path: Path, one: Round) -> bool:
    """Whether the training of a round has ended with a model that can be gone on from."""
    return one.state in ("trained", "handed over") or find_model(save_path, one) is not None


def find_fault(folder: Path) -> str:
    """Return why the model of a training that has ended is of no use, as its log tells it; empty when it does not."""
    results, log = folder / "all_results.json", folder / PROGRESS_LOG
    losses = [load_json(results).get("train_loss")] if results.is_file() else []
    if not losses and log.is_file():  # killed before it wrote its results
        losses = [row.get("loss") for row in map(json.loads, log.read_bytes().splitlines()) if "loss" in row][-1:]
    for loss in losses:
        if isinstance(loss, float | int) and (loss == 0 or not math.isfinite(loss)):
            return f"its loss is {loss}"
    return ""


def remove_old(save_path: Path, rounds: list[Round], keep: int) -> list[Path]:
    """Remove what the trainings of all but the newest `keep` rounds wrote; return the folders.

    Only rounds whose model was handed over count; what a person put into checkpoints/ stays.
    """
    done = [one.name for one in rounds if one.state == "handed over"]
    old = [output_of(save_path, name) for name in done[: max(0, len(done) - keep)]]
    there = [folder for folder in old if folder.is_dir()]
    for folder in there:
        remove(folder)
    return there
