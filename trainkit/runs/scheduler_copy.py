"""A copy of a checkpoint in which a new learning rate takes effect; the checkpoint itself is left as it is.

A trainer that resumes takes its learning rate from the checkpoint, not from its configuration (transformers'
`Trainer._load_optimizer_and_scheduler`): scheduler.pt holds the base rate of all later steps, and the optimizer's
parameter groups the rate of the first one. DeepSpeed keeps its parameter groups in *optim_states.pt, without ZeRO in
*model_states.pt, which may hold a scheduler too.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.errors import ConfigError, TrainkitError
from trainkit.files import sync_folder
from trainkit.runs.exchange import is_there, link_or_copy, remove, sync_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Rewrite = Callable[[Path, list[str], float], object]

# What a trainer only reads and what is large; all other files are copied, as they are edited for the next round.
LINKED = (".safetensors", ".bin", ".pt", ".pth", ".distcp")
SCHEDULER = "scheduler.pt"


def find_rate_files(checkpoint: Path) -> list[str]:
    """Return the files of a checkpoint that may hold a learning rate, relative to it, the scheduler's first.

    Raises:
        ConfigError: the scheduler's or the optimizer's state is missing, or is in a form that cannot be rewritten.
    """
    if not (checkpoint / SCHEDULER).is_file():
        hint = "a learning rate that a scheduler in DeepSpeed's own configuration holds cannot be changed"
        raise ConfigError(f"{checkpoint}: no {SCHEDULER}", hint)
    files = [file for pattern in ("optimizer.pt", "optimizer.bin") for file in checkpoint.glob(pattern)]
    pointer = checkpoint / "latest"
    if pointer.is_file():
        state = checkpoint / pointer.read_text(encoding="utf-8").strip()
        files += [file for kind in ("optim", "model") for file in sorted(state.glob(f"*{kind}_states.pt"))]
    if not files:
        hint = "the sharded optimizer state of FSDP is not supported" if (checkpoint / "optimizer_0").exists() else ""
        raise ConfigError(f"{checkpoint}: no optimizer state whose learning rate can be changed", hint)
    return [SCHEDULER, *(file.relative_to(checkpoint).as_posix() for file in files)]


def with_learning_rate(checkpoint: Path, target: Path, learning_rate: float, rewrite: Rewrite) -> Path:
    """Copy `checkpoint` to `target`, with large files as hard links, and give the copy a new learning rate.

    Args:
        checkpoint: a checkpoint-N folder; nothing in it is changed.
        target: a path where nothing is yet; the copy appears there whole or not at all.
        learning_rate: the base rate of the next steps, above 0.
        rewrite: called with the copy, the files that may hold a rate and the rate; it must replace a file that it
            changes by a new one, as the copy's files are links (trainkit/inside/scheduler_lr.py does).

    Raises:
        ConfigError: the learning rate or the checkpoint cannot be used, or `target` exists.
        TrainkitError: the disk refuses.
    """
    if not learning_rate > 0:
        raise ConfigError(f"learning_rate: {learning_rate} is not above 0")
    if is_there(target):
        raise ConfigError(f"{target}: exists already", "name a new folder for the copy of the checkpoint")
    files = find_rate_files(checkpoint)
    # the same name each time, so that the next call removes what a killed one left
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        remove(unfinished)
        try:
            _copy_tree(checkpoint, unfinished)
            rewrite(unfinished, files, learning_rate)
            sync_tree(unfinished)
            unfinished.rename(target)
        except BaseException:
            remove(unfinished)
            raise
        sync_folder(target.parent)
    except OSError as error:
        raise TrainkitError(f"{target}: the checkpoint was not copied: {error}", "nothing was changed") from error
    return target


def _copy_tree(source: Path, target: Path) -> None:
    for folder in _folders(source):
        copied = target / folder.relative_to(source)
        copied.mkdir(parents=True)
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            if file.suffix in LINKED:
                link_or_copy(file, copied / file.name)
            else:
                shutil.copyfile(file, copied / file.name)


def _folders(top: Path) -> Iterator[Path]:
    for folder, _, _ in os.walk(top):
        yield Path(folder)
