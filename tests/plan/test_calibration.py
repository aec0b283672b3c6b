"""A probe's figures are kept for the kind of card and used from then on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.plan.calibration import Calibration, calibrated, calibration_of, keep_calibration
from trainkit.plan.gpus import GIB, Shares, find_gpu
from trainkit.plan.memory import CONTEXT, WORKSPACE

if TYPE_CHECKING:
    from pathlib import Path

ANSWER: dict[str, Any] = {
    "gpu": "NVIDIA H200",
    "date": "2026-11-20",
    "context_bytes": CONTEXT,
    "workspace_bytes": WORKSPACE[True],
    "efficiency": {"matmul": 0.7, "attention": 0.5, "masked": 0.2},
    "tokens_per_second": 15000.0,
}
MEASURED = Calibration("NVIDIA H200", "2026-11-20", 0.7, 0.5, 0.2, CONTEXT, WORKSPACE[True])


def test_a_calibration_is_what_the_probe_measured() -> None:
    assert calibration_of(ANSWER) == MEASURED
    assert calibration_of(ANSWER | {"efficiency": None}) is None
    assert calibration_of({}) is None


def test_a_kept_calibration_changes_speed_but_not_another_card(tmp_path: Path) -> None:
    model = find_gpu("h200")
    assert calibrated(model, tmp_path) == model
    file = keep_calibration(tmp_path, model, MEASURED)
    assert file == tmp_path / "calibration" / "h200.json"
    assert calibrated(model, tmp_path) == dataclasses.replace(model, shares=Shares(0.7, 0.5, 0.2))
    assert calibrated(find_gpu("a100-80"), tmp_path) == find_gpu("a100-80")


@pytest.mark.parametrize(("more", "gib"), [(GIB, 138.8), (-GIB, 139.8)])
def test_memory_beside_the_tensors_counts_when_it_is_more_than_assumed(tmp_path: Path, more: int, gib: float) -> None:
    model = find_gpu("h200")
    keep_calibration(tmp_path, model, dataclasses.replace(MEASURED, context_bytes=CONTEXT + more))
    assert calibrated(model, tmp_path).memory_gib == pytest.approx(gib)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"gpu": 1}'])
def test_a_damaged_calibration_is_none(tmp_path: Path, content: str) -> None:
    model = find_gpu("h200")
    keep_calibration(tmp_path, model, MEASURED).write_text(content)
    assert calibrated(model, tmp_path) == model
