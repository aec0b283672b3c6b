"""`probe.py`: real steps are measured, and whatever goes wrong is an answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.inside import probe_speed

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]
TINY = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}
STEP = {"micro_batch": 2, "seq_tokens": 32, "accumulation": 8}


@pytest.mark.parametrize(
    ("speeds", "peak", "shares"),
    [
        ((750.0, 445.0, 247.3), 989.0, {"matmul": 0.758, "attention": 0.45, "masked": 0.25}),
        ((750.0, 445.0, 247.3), None, None),
        ((None, None, None), 989.0, None),
    ],
)
def test_speeds_become_shares_of_the_cards_peak(speeds: tuple[Any, ...], peak: float | None, shares: Any) -> None:
    machine = dict(zip(("matmul_tflops", "attention_tflops", "masked_tflops"), speeds, strict=True))
    assert probe_speed.efficiency(machine, peak) == shares


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_steps_run_on_the_cpu_for_every_method_and_stage(run: Run) -> None:
    setups = [
        {"masked": True, "dropout": 0.1},
        {"method": "full", "checkpointing": False},
        {"method": "full", "stage": "dpo"},
        {"stage": "rm", "pure_bf16": True},
    ]
    cases = [{"config": TINY, "setup": STEP | setup, "peak_tflops": 989} for setup in setups]
    answers = lines(run("probe", "--device", "cpu", stdin={"cases": cases}))
    none = dict.fromkeys(("allocated", "reserved", "outside_torch", "workspace_bytes", "context_bytes", "memory_bytes"))
    none |= dict.fromkeys(("matmul_tflops", "attention_tflops", "masked_tflops", "efficiency", "capability"))
    for answer, parameters, trainable in zip(
        answers, (137_280, 119_360, 119_360, 137_345), (17_920, 119_360, 119_360, 17_985), strict=True
    ):
        speed = answer.pop("tokens_per_second"), answer.pop("seconds_per_step")
        assert all(figure > 0 for figure in speed)
        assert 0.5 < answer.pop("loss") < 7
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", answer.pop("date"))
        assert {answer.pop("torch"), answer.pop("cudnn")} - {None}
        sizes = {"parameters": parameters, "trainable": trainable}
        kernels: dict[str, Any] = {"attention_kernels": [], "masked_kernels": []}
        assert answer == {"ok": True, "out_of_memory": False, "gpu": "cpu", **none, **sizes, **kernels}


@pytest.mark.slow
def test_what_cannot_be_run_is_an_answer(run: Run) -> None:
    tiny = {"config": TINY, "setup": STEP}
    zero = {"config": TINY, "setup": STEP | {"zero_stage": 2}}
    liger = {"config": TINY | {"model_type": "gpt2"}, "setup": STEP | {"liger": True}}
    answers = lines(run("probe", "--device", "cpu", stdin={"cases": [zero, liger]}))
    assert answers == [
        {"ok": False, "error": "not probed: DeepSpeed, which needs a launcher"},
        {"ok": False, "error": "liger has no kernels for gpt2"},
    ]
    late = lines(run("probe", "--device", "cpu", stdin={"cases": [tiny], "seconds": -1}))
    assert late == [{"ok": False, "error": "no time left"}]
    assert lines(run("probe", stdin=tiny)) == [{"ok": False, "error": "RuntimeError: no GPU that PyTorch can use"}]


@pytest.mark.slow
def test_the_benchmark_runs_dry(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [result["measured"]["ok"] for result in results] == [True] * 4
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [
        "tiny lora 2x32",
        "tiny lora 2x32 masked no checkpointing",
        "tiny full 2x32",
        "tiny lora 2x32 dpo",
    ]
