from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trainkit.datatypes import Gpu
from trainkit.errors import EnvironmentProblem
from trainkit.plan.hardware import find_gpus, find_hardware, run_child_json, visible_names


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [
        (None, 2, ["0", "1"]),
        (None, 0, []),
        ("", 2, []),
        ("-1", 2, []),
        ("1,0", 4, ["1", "0"]),
        (" 1 , 3", 4, ["1", "3"]),
        ("0,7,1", 2, ["0"]),
        ("none", 2, []),
        ("GPU-8932f937-d72c", 2, ["GPU-8932f937-d72c"]),
        ("MIG-3c1b,0", 1, ["MIG-3c1b", "0"]),
    ],
)
def test_visible_names(visible: str | None, count: int, names: list[str]) -> None:
    assert visible_names(visible, count) == names


class FakeDriver(ModuleType):
    """Two GPUs, the second one old, and one slice of the first."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, loaded: bool = True, answers: bool = True) -> None:
        super().__init__("pynvml")
        self.loaded, self.answers, self.open = loaded, answers, False

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.loaded:
            raise self.NVMLError("Driver Not Loaded")
        self.open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        assert self.open
        self.open = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if not self.answers:
            raise self.NVMLError("GPU is lost")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return ("new", "old")[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        assert uuid == "MIG-1"
        return "slice"

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:  # noqa: N802
        assert handle == "slice"
        return "new"

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> tuple[int, int]:  # noqa: N802
        return {"new": (9, 0), "old": (7, 5)}[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        class Memory:
            total = {"new": 80, "old": 16, "slice": 10}[handle] * 2**30

        return Memory

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        return f"the {handle} one"


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        (None, (Gpu("the new one", 80.0, (9, 0)), Gpu("the old one", 16.0, (7, 5)))),
        ("1", (Gpu("the old one", 16.0, (7, 5)),)),
        ("MIG-1", (Gpu("the slice one", 10.0, (9, 0)),)),
        ("", ()),
    ],
)
def test_gpus(visible: str | None, gpus: tuple[Gpu, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert find_gpus(visible) == gpus
    assert not driver.open


def test_no_driver_and_no_package_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeDriver(loaded=False))
    assert find_gpus(None) == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_gpus(None) == ()


def test_a_driver_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeDriver(answers=False))
    with pytest.raises(EnvironmentProblem, match="the NVIDIA driver does not answer: GPU is lost"):
        find_gpus(None)


def test_this_machine() -> None:
    known = set(sys.modules)  # another test may have imported the trainer
    hardware = find_hardware({"CUDA_VISIBLE_DEVICES": ""})
    assert hardware.gpus == ()
    assert hardware.cpu_count >= 1
    assert 0.1 < hardware.memory_gib < 100_000
    assert not {"torch", "llamafactory"} & (set(sys.modules) - known)


def script(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "child.py"
    file.write_text(text)
    return file


def test_child_gets_the_payload_and_the_environment(tmp_path: Path) -> None:
    child = script(
        tmp_path, "import os, json, sys\nprint('noise')\nprint(json.dumps([json.load(sys.stdin), os.environ['X']]))"
    )
    assert run_child_json(Path(sys.executable), child, {"a": 1}, {"X": "y"}) == [{"a": 1}, "y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ValueError('no luck')", "child.py failed with exit code 1:"),
        ("print('not json')", "child.py printed no result:\n  not json"),
        ("", "child.py printed no result:"),
    ],
)
def test_child_that_fails(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        run_child_json(Path(sys.executable), script(tmp_path, text), {}, {})
    assert caught.value.message.startswith(message)
    assert "no luck" not in text or caught.value.message.endswith("  ValueError: no luck")


def test_child_that_hangs_or_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainkit.plan.hardware.CHILD_SECONDS", 0.2)
    with pytest.raises(EnvironmentProblem, match=r"child\.py did not end within 0 s"):
        run_child_json(Path(sys.executable), script(tmp_path, "import time; time.sleep(60)"), {}, {})
    with pytest.raises(EnvironmentProblem, match="none: cannot be started: No such file or directory"):
        run_child_json(tmp_path / "none", tmp_path / "child.py", {}, {})
