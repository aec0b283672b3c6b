"""The arguments of the installed trainer: asked once from its own dataclasses, kept per version."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainkit.datatypes import Argument  # noqa: TC001  msgspec reads the annotation
from trainkit.errors import EnvironmentProblem
from trainkit.files import write_bytes_atomic
from trainkit.plan.hardware import run_child_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SCRIPT = Path(__file__).parent.parent / "inside" / "arguments.py"
INSTALL_HINT = "./run_training.sh --install-deps   or   pip install 'trainkit[train]'"

# The trainer, and the packages that some of its arguments need.
PACKAGES = (
    "llamafactory", "transformers", "torch", "peft", "deepspeed", "bitsandbytes", "liger-kernel", "unsloth",
    "galore_torch", "apollo_torch", "badam", "adam-mini", "swanlab", "wandb", "tensorboard", "matplotlib", "jieba",
    "nltk", "rouge_chinese", "mixture-of-depth",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainerSchema:
    """What the installed LLaMA-Factory takes: its arguments, its chat templates, and the versions beside it."""

    arguments: dict[str, Argument]
    templates: tuple[str, ...]
    versions: dict[str, str]

    def default(self, key: str) -> Any:
        """Return the trainer's own default of an argument; None for a key that it does not know."""
        argument = self.arguments.get(key)
        return argument.default if argument else None


def load_arguments(python: Path, cache_dir: Path, env: Mapping[str, str]) -> TrainerSchema:
    """Return the schema of the LLaMA-Factory that `python` imports.

    The first call for a set of versions starts that Python (about ten seconds); later ones read `cache_dir`.

    Raises:
        EnvironmentProblem: LLaMA-Factory is not installed there, or does not import.
    """
    versions = installed_versions(python)
    if "llamafactory" not in versions:
        raise EnvironmentProblem(f"LLaMA-Factory is not installed for {python}", INSTALL_HINT)
    cache = cache_dir / f"arguments-{_cache_key(versions)}.json"
    schema = _read_cache(cache) or _ask(python, cache, env)
    return TrainerSchema(schema.arguments, schema.templates, versions)


def installed_versions(python: Path, packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of packages that the environment of `python` has, without starting it, and Python's own."""
    folders = sys.path if python == Path(sys.executable) else _site_packages(python)
    found = {"python": _python_version(python)}
    for name in packages:
        distribution = next(iter(importlib.metadata.distributions(name=name, path=list(folders))), None)
        if distribution is not None:
            found[name] = distribution.version
    return found


def _site_packages(python: Path) -> list[str]:
    prefix = python.parent.parent  # not resolved: a virtual environment's python is a link out of it
    patterns = ("lib/python3*/site-packages", "lib/python3*/dist-packages", "lib/python3/dist-packages")
    return [str(folder) for pattern in patterns for folder in sorted(prefix.glob(pattern))]


def _python_version(python: Path) -> str:
    if python == Path(sys.executable):
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    folders = [Path(folder).parent.name for folder in _site_packages(python)]
    return next((name.removeprefix("python") for name in folders if name.startswith("python3.")), "unknown")


def _cache_key(versions: Mapping[str, str]) -> str:
    parts = [versions.get(name, "none") for name in ("llamafactory", "transformers", "python")]
    script = hashlib.sha256(SCRIPT.read_bytes()).hexdigest()[:8]  # a changed question makes old answers void
    return "-".join([*parts, script])


def _read_cache(cache: Path) -> TrainerSchema | None:
    try:
        return msgspec.json.decode(cache.read_bytes(), type=TrainerSchema)
    except (OSError, msgspec.DecodeError):  # a damaged file is asked anew and overwritten
        return None


def _ask(python: Path, cache: Path, env: Mapping[str, str]) -> TrainerSchema:
    try:
        answer = run_child_json(python, SCRIPT, {}, env)
    except EnvironmentProblem as error:
        raise EnvironmentProblem(f"{python} cannot import LLaMA-Factory: {error.message}", INSTALL_HINT) from None
    schema = msgspec.convert({**answer, "versions": {}}, type=TrainerSchema)
    with suppress(OSError):  # a cache that cannot be written costs ten seconds the next time
        write_bytes_atomic(cache, msgspec.json.encode(schema))
    return schema
