"""`doctor.py`: the trainer's environment, tried out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trainkit.inside import doctor
from trainkit.plan.versions import PINS
from trainkit.workflow.doctor import IMPORTS

SCRIPT = Path(doctor.__file__)
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def package(folder: Path, name: str, code: str) -> None:
    """Install a package of version 1.5 that runs `code` when it is imported."""
    (folder / f"{name}.py").write_text(code)
    (folder / f"{name}-1.5.dist-info").mkdir()
    (folder / f"{name}-1.5.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.5\n")


TORCH = """
import types
version = types.SimpleNamespace(cuda=None)
cuda = types.SimpleNamespace(is_available=lambda: False)
backends = types.SimpleNamespace(cudnn=types.SimpleNamespace(version=lambda: None))
__version__ = "1.5"
"""


def test_a_package_that_ends_the_process_does_not_hide_the_others(tmp_path: Path) -> None:
    package(tmp_path, "good", "print('noise on stdout')")
    package(tmp_path, "crash", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    package(tmp_path, "leave", "import os; os._exit(3)")
    package(tmp_path, "broken", "import nowhere.at_all")
    package(tmp_path, "quit", "raise SystemExit(4)")
    package(tmp_path, "torch", TORCH)
    package(
        tmp_path, "pynvml", "class NVMLError(Exception): pass\ndef nvmlInit(): raise NVMLError('Driver Not Loaded')"
    )
    names = ["crash", "good", "leave", "broken", "quit", "torch"]
    request = {"imports": {name: name for name in (*names, "absent")}, "present": ["pytest"], "folder": str(tmp_path)}
    env = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "CUDA_VISIBLE_DEVICES": "1",
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], input=json.dumps(request), env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("\n") == 1, "only the answer goes to stdout"
    answer = json.loads(done.stdout)
    errors = {name: (found["version"], found["error"]) for name, found in answer["packages"].items()}
    assert errors == {
        "crash": ("1.5", "the process crashed (SIGSEGV)"),
        "good": ("1.5", None),
        "leave": ("1.5", "the process ended with 3"),
        "broken": ("1.5", "ModuleNotFoundError: No module named 'nowhere'"),
        "quit": ("1.5", "SystemExit: 4"),
        "torch": ("1.5", None),
        "absent": (None, None),
        "pytest": (pytest.__version__, None),
    }
    seconds = {name: found["seconds"] for name, found in answer["packages"].items()}
    assert [name for name, second in seconds.items() if second is None] == ["crash", "leave", "absent", "pytest"]
    torch = {key: value for key, value in answer["torch"].items() if key != "seconds"}
    none = {"version": "1.5", "cuda": None, "devices": 0, "why": None, "cudnn": None, "nccl": None, "error": None}
    assert torch == none
    assert answer["driver"]["error"] == "NVMLError: Driver Not Loaded"
    assert (answer["gpus"], answer["deepspeed"]) == ([], None)
    check_machine(answer, tmp_path)


def check_machine(answer: dict[str, Any], folder: Path) -> None:
    machine = answer["machine"]
    assert 0 < machine["available_bytes"] <= machine["memory_bytes"]
    assert machine["open_files"] > 0 or machine["open_files"] == -1
    assert machine["folder"]["path"] == str(folder)
    assert machine["folder"]["free_bytes"] > 0
    assert (machine["hub_cache"]["path"], machine["hub_cache"]["bytes"]) == (str(folder / "hub"), 0)
    assert set(answer["programs"]) == {"torchrun", "llamafactory-cli", "deepspeed", "nvcc", "c++"}
    assert answer["programs"]["torchrun"] == str(Path(sys.executable).parent / "torchrun")


def test_a_step_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "hang", "import time; time.sleep(600)")
    package(tmp_path, "good", "")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "STEP_SECONDS", 1.0)
    done = doctor.run_steps(["import hang", "import good"])
    assert done["import hang"] == {"error": "no answer within 1 s"}
    assert done["import good"]["error"] is None


def rows(*steps: str) -> list[dict[str, Any]]:
    """Carry out steps in this process; every step is announced before its result."""
    found = list(doctor.work(list(steps)))
    assert [row["step"] for row in found] == [step for step in steps for _ in range(2)]
    assert [row for row in found[::2] if len(row) > 1] == []
    return [{key: value for key, value in row.items() if key not in ("step", "seconds")} for row in found[1::2]]


def test_an_import_says_why_it_fails() -> None:
    told = "ModuleNotFoundError: No module named 'not_there_at_all'"
    assert rows("import json", "import not_there_at_all") == [{"error": None}, {"error": told}]


def test_an_error_is_shown_on_one_line() -> None:
    assert doctor.one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert doctor.one_line(ValueError("x" * 400)) == f"ValueError: {'x' * 285}..."


class Matrix:
    shape = (doctor.MATMUL_SIZE, doctor.MATMUL_SIZE)

    def __matmul__(self, other: Matrix) -> Matrix:
        assert isinstance(other, Matrix)
        return self

    def __getitem__(self, key: slice) -> Matrix:
        return self

    def float(self) -> Matrix:
        return self


def fake_torch(*, capability: tuple[int, int] = (9, 0), right: bool = True, available: bool = True) -> Any:
    """A torch with two GPUs."""

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040).")

    def randn(*size: int, device: Any, dtype: str) -> Matrix:
        assert size == Matrix.shape
        assert dtype == ("bf16" if capability >= (8, 0) else "fp16")
        return Matrix()

    torch: Any = ModuleType("torch")
    properties = SimpleNamespace(name="A GPU", total_memory=80 * 2**30, major=capability[0], minor=capability[1])
    torch.cuda = SimpleNamespace(
        is_available=lambda: available,
        init=init,
        device_count=lambda: 2,
        nccl=SimpleNamespace(version=lambda: (2, 28, 9)),
        get_device_properties=lambda device: properties,
        mem_get_info=lambda device: (79 * 2**30, 80 * 2**30),
        synchronize=lambda device: None,
    )
    torch.version = SimpleNamespace(cuda="13.0")
    torch.backends = SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 91900))
    torch.__version__ = "2.11.0+cu130"
    torch.bfloat16, torch.float16, torch.randn = "bf16", "fp16", randn
    torch.device = lambda kind, index: f"{kind}:{index}"
    torch.allclose = lambda *_, **__: right
    return torch


def test_a_gpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.time, "perf_counter", iter(range(100)).__next__)
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    gpu = {
        "name": "A GPU", "memory_bytes": 80 * 2**30, "free_bytes": 79 * 2**30, "capability": [9, 0], "bf16": True,
        # ten products of 2 * 8192**3 operations in the two seconds of the clock above
        "tflops": 5.5, "error": None,
    }  # fmt: skip
    assert rows("gpu 1") == [gpu]
    monkeypatch.setitem(sys.modules, "torch", fake_torch(capability=(7, 5)))
    assert rows("gpu 0") == [{**gpu, "capability": [7, 5], "bf16": False}]
    monkeypatch.setitem(sys.modules, "torch", fake_torch(right=False))
    assert rows("gpu 0") == [{"error": "ArithmeticError: a matrix product in bf16 is wrong"}]


@pytest.mark.parametrize(
    ("available", "devices", "why"),
    [
        (True, 2, None),
        (False, 0, "RuntimeError: The NVIDIA driver on your system is too old (found version 12040)."),
    ],
)
def test_torch_says_what_keeps_it_from_the_gpus(
    monkeypatch: pytest.MonkeyPatch, available: bool, devices: int, why: str | None
) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(available=available))
    assert rows("torch") == [
        {
            "version": "2.11.0+cu130", "cuda": "13.0", "devices": devices, "why": why, "cudnn": "9.19.0",
            "nccl": "2.28.9", "error": None,
        }
    ]  # fmt: skip


@pytest.mark.parametrize(("number", "version"), [(None, None), (91900, "9.19.0"), (90100, "9.1.0"), (8902, "8.9.2")])
def test_the_version_of_cudnn(number: int | None, version: str | None) -> None:
    assert doctor.cudnn_version(number) == version


def test_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml: Any = ModuleType("pynvml")
    nvml.nvmlInit = lambda: None
    nvml.nvmlSystemGetCudaDriverVersion = lambda: 12040
    nvml.nvmlSystemGetDriverVersion = lambda: "550.54.15"
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert rows("driver") == [{"version": "550.54.15", "cuda": "12.4", "error": None}]


def test_the_operators_of_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    versions, extension = ModuleType("deepspeed.git_version_info"), ModuleType("torch.utils.cpp_extension")
    versions.installed_ops = {"fused_adam": False, "cpu_adam": True}  # type: ignore[attr-defined]
    extension.CUDA_HOME = "/usr/local/cuda"  # type: ignore[attr-defined]
    for name in ("deepspeed", "torch", "torch.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for module in (versions, extension):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert rows("deepspeed") == [{"built": ["cpu_adam"], "cuda_home": "/usr/local/cuda", "error": None}]


def test_every_step_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DeepSpeed's operators are asked for when it is there, each GPU when torch sees it."""
    asked: list[list[str]] = []

    def run_steps(steps: list[str]) -> dict[str, Any]:
        asked.append(steps)
        return {step: {"error": None, "devices": 2, "step": step} for step in steps}

    monkeypatch.setattr(doctor, "run_steps", run_steps)
    monkeypatch.setattr(doctor, "find_version", lambda name: None if name == "absent" else "1")
    answer = doctor.examine(
        {"imports": {"deepspeed": "ds", "absent": "absent"}, "present": ["vllm"], "folder": str(tmp_path)}
    )
    assert asked == [["import ds", "deepspeed", "torch", "driver"], ["gpu 0", "gpu 1"]]
    assert [gpu["step"] for gpu in answer["gpus"]] == ["gpu 0", "gpu 1"]
    assert answer["deepspeed"]["step"] == "deepspeed"


@pytest.mark.parametrize(("text", "limit"), [("1073741824\n", 2**30), ("max\n", None), (None, None)])
def test_the_memory_limit_of_a_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, limit: int | None
) -> None:
    if text:
        (tmp_path / "memory.max").write_text(text)
    monkeypatch.setattr(doctor, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert doctor.find_memory_limit() == limit


def test_downloaded_models_are_counted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    hub = tmp_path / ".cache" / "huggingface" / "hub"
    assert (doctor.describe_hub_cache()["path"], doctor.describe_hub_cache()["bytes"]) == (str(hub), 0)
    (hub / "blobs").mkdir(parents=True)
    (hub / "blobs" / "abc").write_bytes(b"x" * 100_000)
    (hub / "model.safetensors").symlink_to(hub / "blobs" / "abc")
    assert 100_000 <= doctor.describe_hub_cache()["bytes"] < 110_000
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert doctor.describe_hub_cache()["path"] == str(tmp_path / "home" / "hub")


@pytest.mark.slow
def test_the_real_environment_imports_as_a_whole(tmp_path: Path) -> None:
    request = {"imports": IMPORTS, "present": ["vllm"], "folder": str(tmp_path)}
    env = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, input=json.dumps(request), env=env, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    found = {name: (answer["packages"][name]["version"], answer["packages"][name]["error"]) for name in PINS}
    assert found == {name: (version, None) for name, version in PINS.items()}
    assert sum(package["seconds"] or 0 for package in answer["packages"].values()) > 1, "they were really imported"
    assert (answer["torch"]["error"], answer["torch"]["devices"]) == (None, 0)
    assert answer["deepspeed"]["error"] is None
    assert all(answer["programs"][name] for name in ("torchrun", "llamafactory-cli"))
