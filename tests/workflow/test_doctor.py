from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from trainkit.datatypes import Gpu
from trainkit.errors import EnvironmentProblem
from trainkit.plan.versions import INSTALL_ALL, PINS
from trainkit.workflow import doctor as module
from trainkit.workflow.doctor import (
    IMPORTS,
    Item,
    check_accelerator,
    check_machine,
    check_packages,
    check_programs,
    check_trackers,
    doctor,
)

GIB = 2**30
CPU_HINT = "training runs on the CPU, slow for any real model; trainkit suggest --gpu NAME plans for another machine"
H200 = Gpu("NVIDIA H200", 139.8, (9, 0))
GPU = {
    "name": "NVIDIA H200", "memory_bytes": 140 * GIB, "free_bytes": 139 * GIB, "capability": [9, 0], "bf16": True,
    "tflops": 702.4, "error": None,
}  # fmt: skip
TORCH = {
    "version": "2.11.0+cu130", "cuda": "13.0", "devices": 0, "why": None, "cudnn": "9.19.0", "nccl": "2.28.9",
    "error": None,
}  # fmt: skip
NO_DRIVER = {"error": "NVMLError_LibraryNotFound: NVML Shared Library Not Found"}
FACTS: dict[str, Any] = {
    "python": "3.11.7",
    "packages": {
        **{name: {"version": version, "seconds": 0.0, "error": None} for name, version in PINS.items()},
        "torch": {"version": "2.11.0", "seconds": 2.13, "error": None},
        "flash-attn": {"version": None, "seconds": None, "error": None},
        "vllm": {"version": None, "seconds": None, "error": None},
    },
    "torch": TORCH,
    "driver": NO_DRIVER,
    "gpus": [],
    "deepspeed": {"built": [], "cuda_home": None, "error": None},
    "programs": {
        "torchrun": "/env/bin/torchrun", "llamafactory-cli": "/env/bin/llamafactory-cli", "deepspeed": None,
        "nvcc": None, "c++": "/usr/bin/c++",
    },
    "machine": {
        "memory_bytes": 64 * GIB, "available_bytes": 60 * GIB, "memory_limit_bytes": None,
        "shared_memory_bytes": 32 * GIB, "open_files": 20000, "open_files_most": 20000,
        "folder": {"path": "/home/me/work", "free_bytes": 500 * GIB},
        "hub_cache": {"path": "/home/me/.cache/huggingface/hub", "bytes": 30 * GIB, "free_bytes": 500 * GIB},
    },
}  # fmt: skip


def facts(**changes: Any) -> dict[str, Any]:
    """The facts of a machine in order, with some replaced."""
    return {**copy.deepcopy(FACTS), **changes}


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GPU, and nobody logged in anywhere."""
    monkeypatch.setattr(module, "find_gpus", lambda visible: ())
    monkeypatch.setattr(module, "can_reach", lambda url: True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "SWANLAB_API_KEY",
        "SWANLAB_MODE",
        "NETRC",
        "WANDB_IDENTITY_TOKEN_FILE",
    ):
        monkeypatch.delenv(name, raising=False)


def answer_with(monkeypatch: pytest.MonkeyPatch, folder: Path, answer: object) -> Path:
    """Let a program that says `answer` stand in for inside/doctor.py; return where it keeps what it was asked."""
    asked = folder / "asked.json"
    keep = f"import pathlib, sys\npathlib.Path({str(asked)!r}).write_text(sys.stdin.read())\n"
    (folder / "doctor.py").write_text(f"{keep}print({json.dumps(answer)!r})\n")
    monkeypatch.setattr(module, "INSIDE", folder)
    monkeypatch.setattr(module, "trainer_python", lambda: Path(sys.executable))
    return asked


def test_the_report_of_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = answer_with(monkeypatch, tmp_path, FACTS)
    monkeypatch.chdir(tmp_path)
    report = doctor()
    assert report.facts == FACTS
    assert report.ok
    versions = [Item(name, version) for name, version in PINS.items() if name not in ("llamafactory", "torch")]
    assert list(report.items) == [
        Item("python", "3.11.7"),
        Item("llamafactory", "0.9.5"),
        Item("torch", "2.11.0, imported in 2.1 s"),
        *versions,
        Item("flash-attn", "not installed", "note", "for flash_attn: fa2; PyTorch's own attention does without"),
        Item("vllm", "not installed", "note", "for fast answers in serving"),
        Item("torch's build", "CUDA 13.0, NCCL 2.28.9, cuDNN 9.19.0"),
        Item("GPU", "none, and no NVIDIA driver answers (NVML Shared Library Not Found)", "warning", CPU_HINT),
        Item("llamafactory-cli", "/env/bin/llamafactory-cli"),
        Item("torchrun", "/env/bin/torchrun"),
        Item("deepspeed ops", "its operators are compiled at their first use"),
        Item(
            "swanlab login",
            "no login found, so runs are recorded offline",
            "note",
            "run `swanlab login`, or set SWANLAB_API_KEY; `swanlab sync` sends it later",
        ),
        Item(
            "wandb login",
            "no login found, so runs are recorded offline",
            "note",
            "run `wandb login`, or set WANDB_API_KEY; `wandb sync` sends it later",
        ),
        Item("memory", "64.0 GiB, 60.0 GiB available"),
        Item("/dev/shm", "32.0 GiB"),
        Item("open files", "20,000"),
        Item("disk", "/home/me/work, 500.0 GiB free"),
        Item("model cache", "/home/me/.cache/huggingface/hub holds 30.0 GiB, 500.0 GiB free"),
    ]
    request = json.loads(asked.read_text())
    assert request == {"imports": IMPORTS, "present": ["vllm"], "folder": str(tmp_path)}
    assert list(request["imports"])[-1] == "llamafactory", "what it is built on is tried out before it"


def test_a_trainer_that_gives_no_answer_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer_with(monkeypatch, tmp_path, None)
    (tmp_path / "doctor.py").write_text("raise SystemExit('no luck')")
    with pytest.raises(EnvironmentProblem, match=r"doctor\.py failed with exit code 1:\n  no luck"):
        doctor()


def test_an_error_makes_the_report_not_ok(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = facts()
    broken["packages"]["torchvision"]["error"] = "RuntimeError: operator torchvision::nms does not exist"
    answer_with(monkeypatch, tmp_path, broken)
    report = doctor()
    assert not report.ok
    assert [item for item in report.items if item.level == "error"] == [
        Item(
            "torchvision",
            "0.26.0 does not import: RuntimeError: operator torchvision::nms does not exist",
            "error",
            INSTALL_ALL,
        )
    ]


@pytest.mark.parametrize(
    ("name", "found", "item"),
    [
        (
            "deepspeed",
            {"version": "0.19.8", "seconds": None, "error": "the process crashed (SIGSEGV)"},
            Item("deepspeed", "0.19.8 does not import: the process crashed (SIGSEGV)", "warning", INSTALL_ALL),
        ),
        (
            "flash-attn",
            {"version": "2.8.3", "seconds": 0.4, "error": "ImportError: undefined symbol"},
            Item(
                "flash-attn",
                "2.8.3 does not import: ImportError: undefined symbol",
                "warning",
                "install one that is built for this torch, or remove flash-attn",
            ),
        ),
        ("vllm", {"version": "0.20.0", "seconds": None, "error": None}, Item("vllm", "0.20.0")),
        (
            "trl",
            {"version": None, "seconds": None, "error": None},
            Item("trl", "not installed, and no training starts without it (0.24.0)", "error", INSTALL_ALL),
        ),
        (
            "wandb",
            {"version": "0.1", "seconds": 0.2, "error": None},
            Item("wandb", "0.1 is not 0.31.0, with which trainkit is tested", "warning", INSTALL_ALL),
        ),
    ],
)
def test_a_package(name: str, found: dict[str, Any], item: Item) -> None:
    packages = {**FACTS["packages"], name: found}
    assert [line for line in check_packages(packages) if line.name == name] == [item]


def gpu_items(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], gpus: tuple[Gpu, ...], visible: str | None = None
) -> list[Item]:
    """The lines about GPUs, where the driver has `gpus`."""
    monkeypatch.setattr(module, "find_gpus", lambda shown: () if shown == "" else gpus)
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return [item for item in check_accelerator(found, env) if item.name != "torch's build"]


DRIVER = {"version": "580.65", "cuda": "13.0", "error": None}
OLD_DRIVER = {"version": "550.54", "cuda": "12.4", "error": None}
BLIND = "2 x NVIDIA H200: the driver is there, and torch sees no GPU"


@pytest.mark.parametrize(
    ("torch", "driver", "visible", "value", "hint"),
    [
        ({}, DRIVER, "", BLIND, "CUDA_VISIBLE_DEVICES= hides them: unset it"),
        ({"cuda": None}, DRIVER, None, BLIND, f"this torch is built for the CPU alone: {INSTALL_ALL}"),
        (
            {"why": "RuntimeError: too old"},
            OLD_DRIVER,
            None,
            BLIND,
            "torch is built for CUDA 13.0, the driver runs up to 12.4: update the driver",
        ),
        (
            {"why": "RuntimeError: CUDA unknown error"},
            DRIVER,
            "0,1",
            f"{BLIND}: RuntimeError: CUDA unknown error",
            "does `nvidia-smi` work?",
        ),
        ({}, DRIVER, None, BLIND, "does `nvidia-smi` work?"),
        ({"error": "ImportError: libcudart"}, DRIVER, None, BLIND, "torch does not import, see above"),
    ],
)
def test_a_torch_that_sees_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
    torch: dict[str, Any],
    driver: dict[str, Any],
    visible: str | None,
    value: str,
    hint: str,
) -> None:
    found = facts(torch={**TORCH, **torch}, driver=driver)
    words = f"{driver['version']}, for CUDA up to {driver['cuda']}"
    assert gpu_items(monkeypatch, found, (H200, H200), visible) == [
        Item("driver", words),
        Item("GPU", value, "error", hint),
    ]


@pytest.mark.parametrize(
    ("changes", "item"),
    [
        ({}, Item("GPU 0", "NVIDIA H200, 140.0 GiB, capability 9.0, 702 TFLOP/s in bfloat16")),
        (
            {"free_bytes": 20 * GIB},
            Item(
                "GPU 0",
                "NVIDIA H200, 140.0 GiB, capability 9.0, 702 TFLOP/s, only 20.0 GiB free",
                "warning",
                "another program holds the rest: `nvidia-smi` shows which",
            ),
        ),
        (
            {"name": "Tesla T4", "capability": [7, 5], "bf16": False, "tflops": 24.0},
            Item(
                "GPU 0",
                "Tesla T4, 140.0 GiB, capability 7.5, 24 TFLOP/s, no bfloat16",
                "note",
                "trainkit trains in float16 there",
            ),
        ),
        (
            {"error": "OutOfMemoryError: CUDA out of memory"},
            Item(
                "GPU 0",
                "fails a matrix product: OutOfMemoryError: CUDA out of memory",
                "error",
                "is another program using it? does `nvidia-smi` show errors? leave it out with CUDA_VISIBLE_DEVICES",
            ),
        ),
    ],
)
def test_a_gpu(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], item: Item) -> None:
    found = facts(driver=DRIVER, gpus=[{**GPU, **changes}])
    assert gpu_items(monkeypatch, found, (H200,))[1:] == [item]


def test_a_driver_without_gpus_and_one_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = gpu_items(monkeypatch, facts(driver=DRIVER), ())
    assert lines == [Item("driver", "580.65, for CUDA up to 13.0"), Item("GPU", "none", "warning", CPU_HINT)]

    def refuse(visible: str | None) -> None:
        raise EnvironmentProblem("the NVIDIA driver does not answer: GPU is lost", "does `nvidia-smi` work?")

    monkeypatch.setattr(module, "find_gpus", refuse)
    assert list(check_accelerator(facts(torch={"error": "ImportError"}), {})) == [
        Item("driver", "the NVIDIA driver does not answer: GPU is lost", "error", "does `nvidia-smi` work?")
    ]


def test_a_torch_for_the_cpu_is_named_as_one() -> None:
    torch = {**TORCH, "cuda": None, "nccl": None, "cudnn": None}
    assert next(check_accelerator(facts(torch=torch), {})) == Item("torch's build", "for the CPU alone")


@pytest.mark.parametrize(
    ("changes", "items"),
    [
        (
            {"programs": {"torchrun": None}},
            [Item("torchrun", "not found beside the trainer's Python", "error", INSTALL_ALL)],
        ),
        (
            {"programs": {"torchrun": "/my env/bin/torchrun"}},
            [
                Item(
                    "torchrun",
                    "/my env/bin/torchrun: a space in its path",
                    "warning",
                    "training on several GPUs and with DeepSpeed fails: move the environment",
                )
            ],
        ),
        (
            {"gpus": [GPU], "programs": {"c++": None}},
            [
                Item(
                    "deepspeed ops",
                    "its operators are compiled at their first use, and there is no nvcc and no c++",
                    "warning",
                    "for offload to the CPU install nvcc and c++ (nvcc is in the CUDA toolkit; set CUDA_HOME)",
                )
            ],
        ),
    ],
)
def test_programs(changes: dict[str, Any], items: list[Item]) -> None:
    in_order = list(check_programs(facts()))
    changed = {**changes, "programs": {**FACTS["programs"], **changes.get("programs", {})}}
    assert [item for item in check_programs(facts(**changed)) if item not in in_order] == items


@pytest.mark.parametrize("deepspeed", [{"built": ["cpu_adam"], "error": None}, {"error": "ImportError"}, None])
def test_operators_that_are_built_or_not_there_need_no_compiler(deepspeed: dict[str, Any] | None) -> None:
    names = [item.name for item in check_programs(facts(deepspeed=deepspeed, gpus=[GPU]))]
    assert names == ["llamafactory-cli", "torchrun"]


def test_trackers_say_how_they_would_record(monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"SWANLAB_API_KEY": "secret-one", "WANDB_API_KEY": "secret-two"}
    packages = FACTS["packages"]
    there = "there, and its server answers"
    assert list(check_trackers(packages, env)) == [Item("swanlab login", there), Item("wandb login", there)]
    monkeypatch.setattr(module, "can_reach", lambda url: False)
    away = list(check_trackers({**packages, "swanlab": {"version": None}}, env))
    assert away == [
        Item(
            "wandb login",
            "https://api.wandb.ai does not answer, so runs are recorded offline",
            "note",
            "check the network; `wandb sync` sends it later",
        )
    ]
    assert "secret" not in str(away)


@pytest.mark.parametrize(
    ("changes", "items"),
    [
        (
            {"memory_limit_bytes": 16 * GIB},
            [Item("memory", "16.0 GiB, 60.0 GiB available")],
        ),
        (
            {"shared_memory_bytes": 64 * 2**20},
            [
                Item(
                    "/dev/shm",
                    "0.1 GiB",
                    "warning",
                    "the data loader's workers and NCCL need it: start the container with --shm-size=8g, or --ipc=host",
                )
            ],
        ),
        (
            {"open_files": 256},
            [Item("open files", "256", "warning", "`ulimit -n 1024` or more before the training")],
        ),
        ({"open_files": -1}, [Item("open files", "no limit")]),
        (
            {"folder": {"path": "/small", "free_bytes": 3 * GIB}},
            [Item("disk", "/small, 3.0 GiB free", "warning", "trainkit validate says what a training needs")],
        ),
    ],
)
def test_the_machine(changes: dict[str, Any], items: list[Item]) -> None:
    in_order = list(check_machine(FACTS["machine"]))
    assert [item for item in check_machine({**FACTS["machine"], **changes}) if item not in in_order] == items
