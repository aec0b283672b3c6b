"""`trainkit suggest --probe` with a GPU that pretends: the request, the comparison, the calibration."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.datatypes import Gpu, Hardware

if TYPE_CHECKING:
    from tests.conftest import Place

CARD = Hardware((Gpu("NVIDIA H100 80GB HBM3", 79.1, (9, 0)),), 4, 16.0)
MEASURED = {
    "ok": True, "out_of_memory": False, "allocated": 2**30, "reserved": 2**30, "tokens_per_second": 1000.0,
    "gpu": "NVIDIA H100 80GB HBM3", "date": "2026-11-20", "context_bytes": 1, "workspace_bytes": 1,
    "efficiency": {"matmul": 0.7, "attention": 0.5, "masked": 0.2},
}  # fmt: skip
MODEL = ["model_name_or_path=Qwen/Qwen2.5-7B-Instruct"]


@pytest.fixture
def card(ready: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A machine with one H100, whose probe answers what the returned mapping says and writes down what it is asked."""
    answer: dict[str, Any] = dict(MEASURED)
    for module in ("prepare", "suggest"):
        monkeypatch.setattr(f"trainkit.workflow.{module}.find_hardware", lambda _: CARD)

    def run(python: Path, script: Path, request: Any, env: Any) -> Any:
        assert script.name == "probe.py"
        assert script.exists()
        (tmp_path / "request.json").write_text(json.dumps(request))
        return answer

    monkeypatch.setattr("trainkit.workflow.probe.run_child_json", run)
    return answer


def test_the_first_suggestion_is_run_at_its_longest_batch(card: Any, ready: Place, tmp_path: Path) -> None:
    done = ready.trainkit("suggest", "--probe", *MODEL)
    assert done.code == 0
    request = json.loads((tmp_path / "request.json").read_text())
    assert request["config"]["hidden_size"] == 3584
    assert (request["steps"], request["peak_tflops"], request["expandable"]) == (3, 989, True)
    assert request["setup"]["seq_tokens"] == 4096
    told = next(line for line in done.out.splitlines() if line.startswith("probe of the first: "))
    assert told.startswith("probe of the first: 1.0 GiB allocated, ")
    assert " predicted; 1,000 tokens/s, " in told
    kept = Path(os.environ["XDG_CACHE_HOME"]) / "trainkit" / "calibration" / "h100.json"
    assert json.loads(kept.read_text())["matmul"] == 0.7
    assert f"later predictions for this kind of GPU use {ready.tidy(str(kept))}" in done.err


def test_later_suggestions_use_what_was_measured(card: Any, ready: Place) -> None:
    def speed(*words: str) -> float:
        return float(ready.trainkit("suggest", "--json", *MODEL, *words).json["given"]["tokens_per_second"])

    before, named = speed(), speed("--gpu", "h100")
    assert before == named
    card["efficiency"] = {"matmul": 0.3, "attention": 0.2, "masked": 0.1}
    assert ready.trainkit("suggest", "--probe", "--json", *MODEL).json["probe"]["tokens_per_second"] == 1000.0
    assert speed() == speed("--gpu", "h100") < 0.7 * before


def test_running_out_of_memory_is_a_result(card: Any, ready: Place) -> None:
    card |= {"out_of_memory": True, "tokens_per_second": None, "efficiency": None}
    done = ready.trainkit("suggest", "--probe", *MODEL)
    assert (done.code, "probe of the first: out of memory" in done.out) == (0, True)
    assert "later predictions" not in done.err


@pytest.mark.parametrize(
    ("words", "answer", "told"),
    [
        (["--gpu", "a100-80"], {}, "error: --probe: measures the GPU of this machine\n    leave --gpu out\n"),
        (
            ["deepspeed=ds_z3_offload.json", "finetuning_type=full", "bf16=true"], {},
            "error: --probe: runs on one GPU that holds everything, not on ZeRO's shards\n    --gpus 1\n",
        ),
        ([], {"ok": False, "error": "no CUDA"}, "error: --probe: no CUDA\n    trainkit doctor tries out the GPU\n"),
    ],
)  # fmt: skip
def test_what_cannot_be_probed_is_said(card: Any, ready: Place, words: list[str], answer: Any, told: str) -> None:
    card |= answer
    done = ready.trainkit("suggest", "--probe", *MODEL, *words)
    assert (done.code, done.err) == (1, told)
