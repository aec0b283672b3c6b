"""Fixtures of the programs that run inside the trainer's environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "templates" / "demo" / "evaluations.jsonl"


def run_program(name: str, *arguments: str, stdin: Any = "") -> subprocess.CompletedProcess[str]:
    """Run a program by path, as trainkit does; a stdin that is no text is sent as JSON."""
    text = stdin if isinstance(stdin, str) else json.dumps(stdin)
    program = ROOT / "trainkit" / "inside" / f"{name}.py"
    command = [sys.executable, str(program), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run_program


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2 model, made once for all tests of this folder."""
    model = tmp_path_factory.mktemp("tiny") / "model"
    done = run_program("tiny_model", stdin={"output": str(model), "texts": str(DEMO)})
    assert done.returncode == 0, done.stderr
    return model
