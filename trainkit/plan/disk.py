"""Whether the checkpoints, the trained model and its export fit on the disks that they go to.

What a checkpoint holds is read in transformers 5.6.0 (`Trainer._save_checkpoint`), LLaMA-Factory 0.9.5
(`init_adapter`, which casts trained weights to float32) and DeepSpeed 0.19.8 (`save_checkpoint`).
A new checkpoint is written before the oldest one is deleted, so there is one more than `save_total_limit` at a time.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainkit.datatypes import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

GIB = 2**30
TOKENIZER_BYTES = 16 * 2**20  # the tokenizer of a vocabulary of 150,000 and the small files beside it
FROZEN_BYTES = 2  # of a parameter: bfloat16, as the model was loaded
MOST_OF_DISK = 0.8
ADAPTERS = ("lora", "oft")


@dataclass(frozen=True, slots=True)
class Training:
    """What decides how much a training writes: `Training(7_615_616_512, 161_480_704, "lora")`.

    Attributes:
        params: parameters of the whole model, without an adapter.
        trainable: those that are trained, an adapter's included.
        method: the trainer's finetuning_type.
        zero_stage: of DeepSpeed; None without DeepSpeed.
        pure_bf16: the trained weights and their optimizer stay in bfloat16.
        optim: the trainer's key.
    """

    params: int
    trainable: int
    method: str
    zero_stage: int | None = None
    pure_bf16: bool = False
    optim: str = "adamw_torch"


@dataclass(frozen=True, slots=True)
class Volume:
    """The disk that a folder is on: the same `device` is the same disk, `free_bytes` are left to this user."""

    device: int
    free_bytes: int


def weights_bytes(training: Training) -> int:
    """Return the bytes of the weights in a checkpoint and in the output folder: the adapter, or the whole model."""
    half = training.pure_bf16 or training.zero_stage is not None
    trained = training.trainable * (2 if half else 4)
    frozen = 0 if training.method in ADAPTERS else (training.params - training.trainable) * FROZEN_BYTES
    return trained + frozen + TOKENIZER_BYTES


def checkpoint_bytes(training: Training, *, save_only_model: bool = False) -> int:
    """Return the bytes of one checkpoint.

    Full training with Adam takes 12 bytes a parameter (weights and two moments in float32); with DeepSpeed 14 under
    ZeRO-3 (float32 weights and moments, bfloat16 weights) and 16 under ZeRO-1 and 2 (the bfloat16 weights twice).
    """
    weights = weights_bytes(training)
    if save_only_model:
        return weights
    moments = _optimizer_bytes(training.optim)
    if training.zero_stage is None:
        return weights + training.trainable * (moments // 2 if training.pure_bf16 else moments)
    engine = training.trainable * (4 + moments)
    if training.zero_stage < 3:
        engine += weights - TOKENIZER_BYTES
    return weights + engine


def _optimizer_bytes(optim: str) -> int:
    """Return the bytes that an optimizer keeps for a parameter in float32: two moments, unless its name says less."""
    if optim.startswith(("sgd", "adafactor")):
        return 0  # adafactor keeps a row and a column for each matrix
    return 2 if "8bit" in optim else 8


def export_bytes(params: int) -> int:
    """Return the bytes of an exported model, adapter merged, in bfloat16."""
    return params * FROZEN_BYTES + TOKENIZER_BYTES


def find_volume(folder: Path) -> Volume:
    """Return the disk of a folder, which need not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return Volume(existing.stat().st_dev, shutil.disk_usage(existing).free)


def count_saves(values: Mapping[str, Any], total_steps: int | None) -> int | None:
    """Return how many checkpoints a training writes; None when that cannot be known.

    One more is written at the last step, unless the trainer saves by epochs or never.
    """
    strategy = values.get("save_strategy", "steps")
    if strategy in ("no", False):
        return 0
    if strategy == "epoch" and isinstance(epochs := values.get("num_train_epochs", 3), int | float):
        return math.ceil(epochs)
    if strategy != "steps" or total_steps is None:
        return None
    every = float(values.get("save_steps", 500))
    return math.ceil(total_steps / (every if every >= 1 else math.ceil(total_steps * every)))


def check_disk(
    values: Mapping[str, Any],
    training: Training,
    volumes: Mapping[str, Volume],
    *,
    total_steps: int | None = None,
    existing: int = 0,
) -> list[Problem]:
    """Return an error for each disk that cannot hold what is written to it, a warning above 80 % of its free bytes.

    Args:
        values: the trainer's keys.
        training: see `Training`.
        volumes: `output_dir`, and `export_dir` when an export will follow -> the disk of that folder.
        total_steps: of the training; None when they are not known.
        existing: checkpoints that output_dir holds already, when this training goes on from one of them.
    """
    output = volumes["output_dir"]
    needs = _Needs(values, training, total_steps, existing)
    export = export_bytes(training.params) if "export_dir" in volumes else 0
    if not export or volumes["export_dir"].device == output.device:
        return list(needs.check("output_dir", output, export))
    words = f"the exported model takes {_gib(export)}"
    apart = _judge("export_dir", export, volumes["export_dir"], words, "choose an export_dir on another disk")
    return [*needs.check("output_dir", output, 0), *apart]


class _Needs:
    """What a training writes into its output folder."""

    def __init__(self, values: Mapping[str, Any], training: Training, total_steps: int | None, existing: int) -> None:
        only_model = bool(values.get("save_only_model"))
        self.checkpoint = checkpoint_bytes(training, save_only_model=only_model)
        self.weights = weights_bytes(training)
        self.only_model = only_model
        self.existing = existing
        self.saves, self.limit = count_saves(values, total_steps), values.get("save_total_limit") or None

    def total(self, limit: int | None, after: int) -> tuple[int, int]:
        """Return the bytes at the worst moment, and how many checkpoints are written by then that are not there yet.

        `after` are the bytes that come with the trained model at the end.
        """
        saves = 1 if self.saves is None and limit is None else self.saves
        most = min(count for count in (saves, limit and limit + 1) if count is not None)
        kept = min(count for count in (saves, limit) if count is not None)
        new, left = max(0, most - self.existing), max(0, kept - self.existing)
        return max(new * self.checkpoint, left * self.checkpoint + self.weights + after), new

    def check(self, key: str, volume: Volume, after: int) -> Iterator[Problem]:
        """Yield what speaks against a disk."""
        needed, count = self.total(self.limit, after)
        parts = [
            f"{count} x {_gib(self.checkpoint)} of checkpoints" if count else "",
            f"the model {_gib(self.weights)}",
        ]
        words = ", ".join(part for part in (*parts, f"its export {_gib(after)}" if after else "") if part)
        yield from _judge(key, needed, volume, words, self.advice(volume, after))

    def advice(self, volume: Volume, after: int) -> str:
        """Return what would make it fit."""
        for limit in range((self.limit or self.saves or 1) - 1, 0, -1):
            if self.total(limit, after)[0] <= MOST_OF_DISK * volume.free_bytes:
                return f"save_total_limit: {limit} fits"
        elsewhere = "choose an output_dir on another disk"
        return elsewhere if self.only_model else f"save_only_model: true saves no optimizer (no resume), or {elsewhere}"


def _judge(key: str, needed: int, volume: Volume, words: str, hint: str) -> Iterator[Problem]:
    if needed > volume.free_bytes:
        message = f"needs {_gib(needed)} and {_gib(volume.free_bytes)} are free on its disk ({words})"
        yield Problem(key, message, hint)
    elif needed > MOST_OF_DISK * volume.free_bytes:
        message = f"takes {_gib(needed)} of the {_gib(volume.free_bytes)} that are free on its disk ({words})"
        yield Problem(key, message, hint, "warning")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
