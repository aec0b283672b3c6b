from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainkit import environment
from trainkit.datatypes import Argument
from trainkit.errors import EnvironmentProblem
from trainkit.plan import arguments
from trainkit.plan.arguments import TrainerSchema, load_arguments

if TYPE_CHECKING:
    from collections.abc import Callable

# What a trainer's environment looks like, with a Python that answers without importing anything.
ANSWER = '{"arguments": {"seed": {"name": "seed", "kind": "int", "default": 42}}, "templates": ["qwen"]}'


@pytest.fixture
def environment_with(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder like a virtual environment whose python is a shell script; each start leaves a line in `starts`."""

    def made(*packages: str, answer: str = f"echo '{ANSWER}'") -> Path:
        site = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
        for package in packages:
            name, _, version = package.partition("==")
            info = site / f"{name}-{version}.dist-info"
            info.mkdir(parents=True, exist_ok=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        python = tmp_path / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(f"#!/bin/sh\necho started >> {tmp_path}/starts\n{answer}\n")
        python.chmod(0o755)
        return python

    return made


def starts(tmp_path: Path) -> int:
    file = tmp_path / "starts"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_asked_once_per_versions(environment_with: Callable[..., Path], tmp_path: Path) -> None:
    python, cache = environment_with("llamafactory==0.9.5", "transformers==5.6.0"), tmp_path / "cache"
    expected = TrainerSchema(
        {"seed": Argument("seed", "int", 42)},
        ("qwen",),
        {"python": "3.11", "llamafactory": "0.9.5", "transformers": "5.6.0"},
    )
    assert load_arguments(python, cache, {}) == expected
    assert load_arguments(python, cache, {}) == expected
    assert starts(tmp_path) == 1
    assert load_arguments(environment_with("deepspeed==0.19"), cache, {}).versions["deepspeed"] == "0.19"
    assert starts(tmp_path) == 1
    (tmp_path / "venv/lib/python3.11/site-packages/transformers-5.6.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: transformers\nVersion: 5.7.0\n"
    )
    assert load_arguments(python, cache, {}).versions["transformers"] == "5.7.0"
    assert starts(tmp_path) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"arguments": {"seed": 3}}', b"\xff"])
def test_a_damaged_cache_is_rebuilt(damage: bytes, environment_with: Callable[..., Path], tmp_path: Path) -> None:
    python, cache = environment_with("llamafactory==0.9.5"), tmp_path / "cache"
    first = load_arguments(python, cache, {})
    [file] = cache.iterdir()
    file.write_bytes(damage)
    assert load_arguments(python, cache, {}) == first
    assert load_arguments(python, cache, {}) == first
    assert starts(tmp_path) == 2


def test_no_llamafactory(environment_with: Callable[..., Path], tmp_path: Path) -> None:
    python = environment_with()
    with pytest.raises(EnvironmentProblem, match="LLaMA-Factory is not installed for") as caught:
        load_arguments(python, tmp_path / "cache", {})
    assert caught.value.hint == "./run_training.sh --install-deps   or   pip install 'trainkit[train]'"
    assert starts(tmp_path) == 0


def test_a_llamafactory_that_does_not_import(environment_with: Callable[..., Path], tmp_path: Path) -> None:
    python = environment_with("llamafactory==0.9.5", answer="echo 'ImportError: no torchaudio' >&2; exit 1")
    with pytest.raises(EnvironmentProblem) as caught:
        load_arguments(python, tmp_path / "cache", {})
    assert caught.value.message == (
        f"{python} cannot import LLaMA-Factory: arguments.py failed with exit code 1:\n  ImportError: no torchaudio"
    )
    assert not (tmp_path / "cache").exists()


def test_defaults(schema: TrainerSchema) -> None:
    assert (schema.default("finetuning_type"), schema.default("no_such_key")) == ("lora", None)


@pytest.mark.slow
def test_the_installed_trainer(schema: TrainerSchema, tmp_path: Path) -> None:
    """The stored schema of the tests is the installed trainer's; the second question is quick and needs no torch."""
    python, env = Path(sys.executable), environment.snapshot()
    asked = load_arguments(python, tmp_path, env)
    assert (asked.arguments, asked.templates) == (schema.arguments, schema.templates)
    program = (
        "import sys; from pathlib import Path; from trainkit.plan.arguments import load_arguments\n"
        f"load_arguments(Path(sys.executable), Path({str(tmp_path)!r}), {{}})\n"
        "assert not {'torch', 'transformers', 'llamafactory', 'omegaconf'} & set(sys.modules)"
    )
    subprocess.run([str(python), "-c", program], check=True)
    began = time.perf_counter()
    assert load_arguments(python, tmp_path, {}) == asked
    assert time.perf_counter() - began < 0.2
    assert set(asked.versions) <= {*arguments.PACKAGES, "python"}
