"""What a probe measured on a GPU: kept for each kind of card, and laid over the figures that are assumed without."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from trainkit.files import write_bytes_atomic
from trainkit.plan.gpus import GIB, Shares
from trainkit.plan.memory import CONTEXT, WORKSPACE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trainkit.plan.gpus import GpuModel


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured on one kind of GPU: shares of its peak, and the bytes that CUDA and cuBLAS take beside the tensors."""

    gpu: str
    date: str
    matmul: float
    attention: float
    masked: float
    context_bytes: int
    workspace_bytes: int


def calibration_of(answer: Mapping[str, Any]) -> Calibration | None:
    """Return the calibration in a probe's answer; None when it measured no speed, as on a card of unknown peak."""
    if not answer.get("efficiency"):
        return None
    found = {key: answer[key] for key in ("gpu", "date", "context_bytes", "workspace_bytes")}
    return msgspec.convert({**found, **answer["efficiency"]}, type=Calibration)


def keep_calibration(cache_dir: Path, model: GpuModel, calibration: Calibration) -> Path:
    """Write a calibration down; return the file."""
    file = file_of(cache_dir, model)
    write_bytes_atomic(file, msgspec.json.format(msgspec.json.encode(calibration), indent=2) + b"\n")
    return file


def calibrated(model: GpuModel, cache_dir: Path) -> GpuModel:
    """Return a GPU with what a probe has measured on its kind; as it is when there was none, or it cannot be read."""
    try:
        found = msgspec.json.decode(file_of(cache_dir, model).read_bytes(), type=Calibration)
    except (FileNotFoundError, msgspec.DecodeError):
        return model
    assumed = CONTEXT + WORKSPACE[model.capability >= (9, 0)]
    more = found.context_bytes + found.workspace_bytes - assumed
    shares = Shares(found.matmul, found.attention, found.masked)
    return dataclasses.replace(model, shares=shares, memory_gib=model.memory_gib - max(0, more) / GIB)


def file_of(cache_dir: Path, model: GpuModel) -> Path:
    return cache_dir / "calibration" / f"{re.sub(r'[^a-z0-9]+', '-', model.name.lower()).strip('-')}.json"
