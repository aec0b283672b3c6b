"""`probe.py`: real steps are measured, and whatever goes wrong is an answer."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

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


class FakeCuda:
    """A GPU of 1000 bytes of which 300 are in use: 120 reserved by PyTorch, 80 by the context, 100 by others."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.allocated = 0

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.calls.append(name)

    def is_available(self) -> bool:
        return True

    def mem_get_info(self) -> tuple[int, int]:
        return 700, 1000

    def memory_reserved(self) -> int:
        return 120

    def memory_allocated(self) -> int:
        self.allocated += 8
        return self.allocated

    def max_memory_allocated(self) -> int:
        return 110

    def max_memory_reserved(self) -> int:
        return 130

    def get_device_name(self) -> str:
        return "NVIDIA H200"

    def get_device_capability(self) -> tuple[int, int]:
        return 9, 0


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A torch that has a GPU, and no tensors to speak of."""
    fake = FakeCuda()
    tensor = MagicMock()
    names = ("ones", "randn", "mm", "nn", "bfloat16", "bool")
    torch = types.SimpleNamespace(cuda=fake, __version__="2.11.0", _C=fake, **dict.fromkeys(names, tensor))
    torch.backends = types.SimpleNamespace(cudnn=types.SimpleNamespace(version=lambda: 91900))
    profiler = types.ModuleType("torch.profiler")
    recorded = types.SimpleNamespace(key_averages=lambda: [types.SimpleNamespace(key=key) for key in KERNELS])
    profiler.profile = lambda activities: nullcontext(recorded)  # type: ignore[attr-defined]
    profiler.ProfilerActivity = types.SimpleNamespace(CUDA="cuda")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "torch.profiler", profiler)
    return fake


KERNELS = ("void gemm<128>", "cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "fmha_cutlassB_bf16")


def test_what_the_gpu_holds_is_told_apart(cuda: FakeCuda) -> None:
    probe_speed.forget_memory("cuda")
    assert cuda.calls == ["_cuda_clearCublasWorkspaces", "empty_cache", "reset_peak_memory_stats"]
    assert probe_speed.memory("cuda") == {"allocated": 110, "reserved": 130, "outside_torch": 180}


def test_a_gpu_is_described_by_its_memory_its_speeds_and_its_kernels(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter((0.002, 0.001, 0.004))
    measure = probe_speed.seconds_of
    monkeypatch.setattr(probe_speed, "seconds_of", lambda function: (measure(function), next(seconds))[1])
    attention = 14 * 32 * 4096**2 * 128 / 1e12
    assert probe_speed.describe("cuda") == {
        "gpu": "NVIDIA H200",
        "capability": [9, 0],
        "workspace_bytes": 8,
        "context_bytes": 180,
        "memory_bytes": 1000,
        "matmul_tflops": round(2 * 8192**3 / 0.002 / 1e12, 1),
        "attention_tflops": round(attention / 2 / 0.001, 1),
        "masked_tflops": round(attention / 0.004, 1),
        "attention_kernels": sorted(KERNELS[1:]),
        "masked_kernels": sorted(KERNELS[1:]),
        "torch": "2.11.0",
        "cudnn": 91900,
    }
    assert "synchronize" in cuda.calls


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module, its neighbours imported the way it does when it is run by path."""
    monkeypatch.syspath_prepend(str(ROOT / "trainkit" / "inside"))
    return importlib.import_module("probe")


def test_out_of_memory_is_an_answer(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Exception):
        pass

    def train(*_: Any) -> None:
        raise Full

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(OutOfMemoryError=Full))  # type: ignore[arg-type]
    monkeypatch.setattr(probe, "Training", train)
    monkeypatch.setattr(probe.trace_model, "config_of", lambda values: types.SimpleNamespace(**values))
    for name, answer in {"forget_memory": None, "memory": {"allocated": 7}, "describe": {"gpu": "H200"}}.items():
        monkeypatch.setattr(probe.probe_speed, name, lambda device, answer=answer: answer)
    requests = [{"config": TINY, "setup": STEP}, {"config": TINY, "setup": STEP | {"world": 2}}]
    monkeypatch.setattr(probe.probe_speed, "efficiency", lambda machine, peak: None)
    first, second = probe.answers(requests, "cuda", 60)
    assert first.pop("date")
    assert first == {"ok": True, "out_of_memory": True, "allocated": 7, "gpu": "H200", "efficiency": None}
    assert second == {"ok": False, "error": "not traced: more than one rank, or offloading"}


@pytest.mark.parametrize(
    ("stage", "options"),
    [("sft", {}), ("dpo", {"fused_linear_cross_entropy": False, "cross_entropy": True})],
)
def test_liger_is_applied_as_llamafactory_does(
    probe: Any, monkeypatch: pytest.MonkeyPatch, stage: str, options: dict[str, Any]
) -> None:
    calls: list[dict[str, Any]] = []
    liger = types.ModuleType("liger_kernel.transformers")
    liger.apply_liger_kernel_to_qwen2 = lambda **given: calls.append(given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, liger.__name__, liger)
    probe.apply_liger("qwen2", probe.trace_model.Setup(stage=stage))
    assert calls == [options]
    with pytest.raises(probe.trace_model.NotTraced, match="liger has no kernels for gpt2"):
        probe.apply_liger("gpt2", probe.trace_model.Setup())


@pytest.mark.parametrize(("optimizer", "name"), [("adamw_8bit", "AdamW8bit"), ("paged", "PagedAdamW32bit")])
def test_the_optimizers_of_bitsandbytes(probe: Any, monkeypatch: pytest.MonkeyPatch, optimizer: str, name: str) -> None:
    module = types.ModuleType("bitsandbytes.optim")
    setattr(module, name, lambda parameters, lr: (name, parameters, lr))
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace())  # type: ignore[arg-type]
    setup = probe.trace_model.Setup(optimizer=optimizer)
    assert probe.optimizer_of(["weights"], setup, "cuda") == (name, ["weights"], 1e-4)


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
        {"method": "qlora"},
    ]
    cases = [{"config": TINY, "setup": STEP | setup, "peak_tflops": 989, "expandable": True} for setup in setups]
    answers = lines(run("probe", "--device", "cpu", stdin={"cases": cases}))
    none = dict.fromkeys(("allocated", "reserved", "outside_torch", "workspace_bytes", "context_bytes", "memory_bytes"))
    none |= dict.fromkeys(("matmul_tflops", "attention_tflops", "masked_tflops", "efficiency", "capability"))
    for answer, parameters, trainable in zip(
        answers, (137_280, 119_360, 119_360, 137_345, 94_272), (17_920, 119_360, 119_360, 17_985, 17_920), strict=True
    ):
        speed = answer.pop("tokens_per_second"), answer.pop("seconds_per_step")
        assert all(figure > 0 for figure in speed)
        assert 0 < answer.pop("loss") < 7
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
