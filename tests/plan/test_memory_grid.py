"""The closed form against the exact trace of the real model classes, over a grid of models and settings."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from trainkit.plan.architecture import architecture_of
from trainkit.plan.known_models import find_known_config
from trainkit.plan.memory import Setup, estimate

TRACE = Path(__file__).parents[2] / "trainkit" / "inside" / "memory_trace.py"
MODELS = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b", "llama-3-8b", "mistral-7b", "qwen3-8b")
FOUR = ("qwen2.5-0.5b", "qwen2.5-7b", "mistral-7b", "qwen3-8b")
LENGTHS = (1024, 4096, 16384, 2048)
VARIANTS: tuple[dict[str, Any], ...] = (
    {"method": "lora", "dropout": 0.1},
    {"method": "lora", "masked": True},
    {"method": "full", "masked": True},
    {"method": "qlora"},
    {"method": "qlora", "dropout": 0.1},
    {"method": "lora", "zero_stage": 0},
    {"method": "lora", "zero_stage": 0, "dropout": 0.1},
    {"method": "full", "pure_bf16": True},
    {"method": "lora", "rank": 16, "lora_targets": ("q_proj", "v_proj")},
    {"method": "full", "optimizer": "adamw_8bit"},
    {"method": "lora", "stage": "dpo"},
    {"method": "lora", "stage": "rm"},
)
GOAL = 0.03
SHALLOW = (2, 3)


def grid() -> list[tuple[str, Setup]]:
    """7 models x LoRA or full x checkpointing x liger, and 12 variants of 4 models.

    Lengths and whether gradients are accumulated change from case to case, in other steps than the rest.
    """
    switches = [{"checkpointing": on, "liger": fused} for on in (True, False) for fused in (True, False)]
    plain = [(name, {"method": method, **way}) for name in MODELS for method in ("lora", "full") for way in switches]
    varied = [
        (name, {**variant, **switches[(row + column) % 4]})
        for row, variant in enumerate(VARIANTS)
        for column, name in enumerate(FOUR)
    ]
    cases = []
    for index, (name, fields) in enumerate([*plain, *varied]):
        seq_tokens = LENGTHS[(index + index // 4) % 4]
        accumulation = 1 + (index + index // 8) % 2
        cases.append((name, Setup(**{"seq_tokens": seq_tokens, "rank": 64, "accumulation": accumulation} | fields)))
    return cases


def traced(cases: list[tuple[str, Setup]]) -> list[int]:
    """Return the tensors' peak of each case in bytes, continued from two shallow models to the real depth.

    The peak of each phase is linear in the number of layers.
    """
    configs = [find_known_config(name) or {} for name, _ in cases]
    request = [
        {"config": config, "setup": asdict(setup), "layers": layers}
        for config, (_, setup) in zip(configs, cases, strict=True)
        for layers in SHALLOW
    ]
    half = len(request) // 2 // len(SHALLOW) * len(SHALLOW)
    with ThreadPoolExecutor(2) as programs:
        results = iter([*chain(*programs.map(run_trace, (request[:half], request[half:])))])
    peaks = []
    for config, case in zip(configs, cases, strict=True):
        near, far = next(results), next(results)
        assert "peaks" in near, (case, near)
        assert "peaks" in far, (case, far)
        deeper = config["num_hidden_layers"] - SHALLOW[0]
        rises = {phase: far["peaks"][phase] - peak for phase, peak in near["peaks"].items()}
        peaks.append(max(near["peaks"][phase] + deeper * rise for phase, rise in rises.items()))
    return peaks


def run_trace(request: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(TRACE)],
        input=json.dumps({"cases": request}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
        check=True,
    )
    answer: dict[str, list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return answer["results"]


@pytest.mark.slow
def test_the_closed_form_is_within_3_percent_of_the_trace_over_the_grid() -> None:
    cases = grid()
    assert len(cases) >= 100
    errors = {}
    for (name, setup), peak in zip(cases, traced(cases), strict=True):
        memory = estimate(architecture_of(find_known_config(name) or {}), setup)
        errors[name, setup] = (memory.allocated - memory.workspace) / peak - 1
    worst = max(errors, key=lambda case: abs(errors[case]))
    median = statistics.median(map(abs, errors.values()))
    print(f"{len(errors)} cases, median {median:.4%}, {errors[worst]:+.2%} {worst}")
    assert abs(errors[worst]) < GOAL
    assert median < 0.001
