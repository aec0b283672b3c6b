"""Which checkpoints of a run are whole, and from which one a new start goes on.

A trainer that is killed while it saves leaves a folder that looks like a checkpoint and is none. What a whole one
holds (transformers' `Trainer._save_checkpoint`): weights, optimizer, scheduler and random states, and
trainer_state.json, which is written last. DeepSpeed keeps its optimizer in a folder global_step*/ that the file
`latest` names.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainkit.datatypes import Checkpoint, Problem
from trainkit.errors import ConfigError
from trainkit.runs.weights import find_weight_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE_FILE = "trainer_state.json"
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_0")  # the last two are written under FSDP


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a training starts: from `checkpoint`, or from the beginning when it is None; `notes` say why.

    LLaMA-Factory resumes by itself from the last checkpoint in output_dir, even a broken one, unless it is told which.
    So a start from the beginning needs `set_aside` first.
    """

    checkpoint: Checkpoint | None
    notes: tuple[Problem, ...] = ()


def find_checkpoints(output_dir: Path) -> list[Checkpoint]:
    """Return the checkpoints in `output_dir`, whole and broken ones, by rising step."""
    if not output_dir.is_dir():
        return []
    folders = (path for path in output_dir.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir())
    return sorted(map(load_checkpoint, folders), key=lambda checkpoint: checkpoint.step)


def find_newest_complete(output_dir: Path) -> Checkpoint | None:
    """Return the checkpoint of the highest step that a trainer can resume from."""
    return next((point for point in reversed(find_checkpoints(output_dir)) if point.complete), None)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint folder; `missing` lists all that keeps a trainer from resuming there."""
    number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    state = _find_state(folder)
    step = int(number[1]) if number else int(state.get("global_step", 0))
    missing = [*_state_problems(state, step), *find_weight_problems(folder), *_optimizer_problems(folder)]
    return Checkpoint(folder, step, int(state.get("max_steps") or 0), tuple(missing))


def find_step(output_dir: Path) -> int | None:
    """Return the step at which a training in `output_dir` ended; None when it has not."""
    step = _find_state(output_dir).get("global_step")
    return step if isinstance(step, int) else None


def plan_resume(
    output_dir: Path,
    choice: Literal["auto", "never"] | Path,
    *,
    num_train_epochs: float | None = None,
    max_steps: int = -1,
) -> Resume:
    """Decide where a training starts.

    Args:
        output_dir: the folder of the run.
        choice: "auto" takes the newest complete checkpoint, if there is one; "never" starts from the beginning; a path
            is the checkpoint to take.
        num_train_epochs: how far the new training goes; None means as far as the old one.
        max_steps: the same in steps, counted before epochs when it is positive.

    Raises:
        ConfigError: the chosen checkpoint is missing or broken, or the training has finished already.
    """
    if choice == "never":
        return Resume(None)
    if choice != "auto":
        return Resume(_check_chosen(Path(choice)))
    checkpoints = find_checkpoints(output_dir)
    newest = next((point for point in reversed(checkpoints) if point.complete), None)
    skipped = [point for point in checkpoints if newest is None or point.step > newest.step]
    notes = [
        Problem(str(point.path), f"not used to resume: {', '.join(point.missing)}", level="note") for point in skipped
    ]
    if newest is None:
        return Resume(None, tuple(notes))
    if _is_finished(newest, num_train_epochs, max_steps):
        raise ConfigError(
            f"{output_dir}: already finished at step {newest.step} of {newest.total_steps}",
            f"--resume never trains again (the old folder is kept as {output_dir.name}.previous), "
            "or raise num_train_epochs",
        )
    message = f"resuming after step {newest.step} of {newest.total_steps}"
    return Resume(newest, (Problem(str(newest.path), message, level="note"), *notes))


def set_aside(output_dir: Path) -> Path | None:
    """Rename a non-empty output folder to `<name>.previous`, in the place of an older one; return the new path."""
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return None
    previous = output_dir.with_name(f"{output_dir.name}.previous")
    if previous.exists():
        shutil.rmtree(previous)
    return output_dir.rename(previous)


def _check_chosen(folder: Path) -> Checkpoint:
    if not folder.is_dir():
        raise ConfigError(f"resume_from_checkpoint: {folder}: no such folder", "name a checkpoint-N folder")
    checkpoint = load_checkpoint(folder)
    if checkpoint.missing:
        newest = find_newest_complete(folder.parent)
        hint = f"{newest.path} is complete" if newest else "--resume never starts from the beginning"
        raise ConfigError(f"{folder}: cannot be resumed from: {', '.join(checkpoint.missing)}", hint)
    return checkpoint


def _is_finished(checkpoint: Checkpoint, num_train_epochs: float | None, max_steps: int) -> bool:
    if max_steps > 0:
        return checkpoint.step >= max_steps
    epoch = _find_state(checkpoint.path).get("epoch")
    if num_train_epochs is not None and isinstance(epoch, int | float):
        # the trainer's own fraction of an epoch is rounded
        return epoch >= num_train_epochs - 0.001
    return checkpoint.step >= checkpoint.total_steps


def _find_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _state_problems(state: dict[str, Any], step: int) -> Iterator[str]:
    if not state:
        yield f"no readable {STATE_FILE}"
    elif state.get("global_step") != step:
        yield f"{STATE_FILE} is of step {state.get('global_step')}"


def _optimizer_problems(folder: Path) -> Iterator[str]:
    optimizers = [folder / name for name in OPTIMIZERS if (folder / name).exists()]
    if (folder / "latest").exists() or any(folder.glob("global_step*")):
        yield from _deepspeed_problems(folder)
    elif not optimizers:
        yield "no optimizer state (optimizer.pt), as save_only_model leaves it"
    else:
        # DeepSpeed may hold the scheduler in its own folder; elsewhere it is a file
        optimizers.append(folder / "scheduler.pt")
    if not any(folder.glob("rng_state*.pth")):
        yield "no random state (rng_state.pth)"
    yield from _broken_archives([*optimizers, *sorted(folder.glob("rng_state*.pth"))], folder)


def _deepspeed_problems(folder: Path) -> Iterator[str]:
    pointer = folder / "latest"
    if not pointer.is_file():
        yield "no file `latest` that names DeepSpeed's folder"
        return
    state = folder / pointer.read_text(encoding="utf-8").strip()
    optimizers = sorted(state.glob("*optim_states.pt"))
    ranks = max(1, len(list(folder.glob("rng_state_*.pth"))))
    if len(optimizers) < ranks:
        yield f"{state.name} holds the optimizer of {len(optimizers)} of {ranks} processes"
    if not any(state.glob("*model_states.pt")):
        yield f"{state.name} holds no model states"
    yield from _broken_archives(sorted(state.glob("*.pt")), folder)


def _broken_archives(files: list[Path], folder: Path) -> Iterator[str]:
    for file in files:
        name = file.relative_to(folder)
        if not file.exists():
            yield f"no {name}"
        elif file.is_file() and not zipfile.is_zipfile(file):
            # torch.save writes a ZIP archive, whose table of contents is at its end
            yield f"{name} is cut off"
