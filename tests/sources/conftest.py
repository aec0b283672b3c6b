"""Files as an agent writes them: objects of modules that are not installed, in the zip that torch.save makes."""

from __future__ import annotations

import pickle
import sys
import types
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = ("Action", "Observation", "Task", "Reward", "Response")


class Thing:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The agent's classes, for writing; each takes its attributes by name."""
    module = types.ModuleType("webgym.data.components")
    for name in NAMES:
        setattr(module, name, type(name, (Thing,), {"__module__": module.__name__}))
    for name, value in {"webgym": types.ModuleType("webgym"), "webgym.data": types.ModuleType("webgym.data")}.items():
        monkeypatch.setitem(sys.modules, name, value)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def save() -> Callable[..., Path]:
    """Write a value, or a pickle that is at hand, as torch.save does."""

    def write(path: Path, value: Any, protocol: int = 2, compression: int = zipfile.ZIP_STORED) -> Path:
        content = value if isinstance(value, bytes) else pickle.dumps(value, protocol=protocol)
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/byteorder", "little")
            archive.writestr("archive/version", "3\n")
        return path

    return write
