"""LLaMA-Factory as commands: which program, which words, which environment. Nothing is started here.

Its launcher joins the words of the command line with spaces and splits them again for torchrun, so that no path which
torchrun gets to see may hold a space.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.datatypes import Command
from trainkit.errors import ConfigError, EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAM = "llamafactory-cli"
# llamafactory-cli with a callback, by which the trainer can be asked to save and stop
TRAIN_TOGETHER = Path(__file__).parents[1] / "inside" / "train_together.py"
STOP_VARIABLE = "TRAINKIT_STOP_FILE"
INSTALL_HINT = "./run_training.sh --install-deps, or: pip install 'trainkit[train]'"


def find_trainer(python: Path) -> Path:
    """Return the bin folder beside `python` that holds llamafactory-cli.

    Raises:
        EnvironmentProblem: that environment has no LLaMA-Factory.
    """
    bin_dir = python.parent
    if shutil.which(PROGRAM, path=str(bin_dir)) is None:
        raise EnvironmentProblem(f"{PROGRAM} not found in {bin_dir}: LLaMA-Factory is not installed", INSTALL_HINT)
    return bin_dir


def train_command(
    config_file: Path,
    *,
    bin_dir: Path,
    cwd: Path,
    env: Mapping[str, str],
    deepspeed: bool = False,
    gpu_count: int = 0,
    extra_env: Mapping[str, str] | None = None,
) -> Command:
    """Return the command that trains with `config_file`, run in `cwd`.

    Args:
        config_file: the rendered YAML.
        bin_dir: the folder of llamafactory-cli and torchrun (see `find_trainer`).
        cwd: the run folder.
        env: the environment that the command will be laid over; NPROC_PER_NODE, NNODES and the other words of a
            distributed start stay as the user set them, unless `extra_env` has them.
        deepspeed: the config names a DeepSpeed file, which needs torchrun even on one device.
        gpu_count: visible GPUs; with more than one LLaMA-Factory calls torchrun by itself.
        extra_env: further additions, as from monitoring and from `nodes.node_environment`.

    Raises:
        EnvironmentProblem: torchrun would be called from an environment whose path holds a space.
        ConfigError: the config's path holds a space that cannot be avoided, or a process count is no number.
    """
    seen = {**env, **(extra_env or {})}
    forced = deepspeed or _count(seen, "NPROC_PER_NODE") > 1 or _count(seen, "NNODES") > 1
    torchrun = forced or gpu_count > 1 or _is_on(seen, "FORCE_TORCHRUN")
    if torchrun and _has_space(bin_dir):
        raise EnvironmentProblem(
            f"{bin_dir}: LLaMA-Factory cannot start torchrun from a path with a space",
            "move the environment to a folder without spaces in its path",
        )
    additions: dict[str, str] = {**base_env(bin_dir, env), **(extra_env or {})}
    if forced:
        additions["FORCE_TORCHRUN"] = "1"
    if torchrun and not gpu_count and not seen.get("NPROC_PER_NODE"):
        # LLaMA-Factory counts GPUs here, and torchrun refuses to start 0 processes
        additions["NPROC_PER_NODE"] = "1"
    return Command((str(bin_dir / PROGRAM), "train", _config_word(config_file, cwd)), cwd, additions)


def preemptible(command: Command, python: Path, stop_file: Path) -> Command:
    """Return a `train_command` whose trainer saves and stops when it is asked to by `stop_file`.

    It has the same words for the same launcher; see trainkit/inside/train_together.py for the file.
    """
    return dataclasses.replace(
        command,
        argv=(str(python), str(TRAIN_TOGETHER), *command.argv[1:]),
        env={**command.env, STOP_VARIABLE: str(stop_file)},
    )


def export_command(config_file: Path, *, bin_dir: Path, cwd: Path, env: Mapping[str, str]) -> Command:
    """Return the command that merges an adapter, or copies a full model, as `config_file` says."""
    return Command((str(bin_dir / PROGRAM), "export", str(config_file)), cwd, base_env(bin_dir, env))


def program_command(python: Path, script: Path, *args: str, cwd: Path, env: Mapping[str, str]) -> Command:
    """Return the command for one of the programs in trainkit/inside, run by the trainer's own python."""
    return Command((str(python), str(script), *args), cwd, base_env(python.parent, env))


def base_env(bin_dir: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Return the additions that every program of the trainer's environment gets."""
    path = os.pathsep.join(part for part in (str(bin_dir), env.get("PATH", "")) if part)
    # unbuffered, so that the log holds the last words of a process that was killed
    return {"PATH": path, "PYTHONUNBUFFERED": "1"}


def _config_word(config_file: Path, cwd: Path) -> str:
    if not _has_space(config_file):
        return str(config_file)
    inside = config_file.relative_to(cwd) if config_file.is_relative_to(cwd) else config_file
    if _has_space(inside):
        raise ConfigError(
            f"{config_file}: LLaMA-Factory cannot read a config whose path holds a space",
            "move it, or start it from its own folder",
        )
    return str(inside)


def _count(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env.get(name) or 1)
    except ValueError:
        raise ConfigError(f"{name}={env[name]}: not a number of processes") from None


def _is_on(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").lower() in ("1", "true", "y")


def _has_space(path: Path) -> bool:
    return any(character.isspace() for character in str(path))
