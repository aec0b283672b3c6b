from __future__ import annotations

from pathlib import Path

import pytest

from trainkit.datatypes import Command
from trainkit.errors import ConfigError, EnvironmentProblem
from trainkit.launch.llamafactory import (
    TRAIN_TOGETHER,
    export_command,
    find_trainer,
    preemptible,
    program_command,
    train_command,
)

BIN = Path("/env/bin")
RUN = Path("/place/logs/run")
BASE = {"PATH": "/env/bin:/usr/bin", "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize(
    ("env", "options", "additions"),
    [
        ({}, {}, {}),
        ({}, {"extra_env": {"WANDB_MODE": "offline"}}, {"WANDB_MODE": "offline"}),
        ({}, {"gpu_count": 1}, {}),
        # LLaMA-Factory calls torchrun for several GPUs by itself
        ({}, {"gpu_count": 4}, {}),
        ({}, {"deepspeed": True}, {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "1"}),
        ({}, {"deepspeed": True, "gpu_count": 1}, {"FORCE_TORCHRUN": "1"}),
        ({"NPROC_PER_NODE": "2"}, {"deepspeed": True}, {"FORCE_TORCHRUN": "1"}),
        ({"NPROC_PER_NODE": "2"}, {}, {"FORCE_TORCHRUN": "1"}),
        ({"NPROC_PER_NODE": "1"}, {}, {}),
        ({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a"}, {"gpu_count": 8}, {"FORCE_TORCHRUN": "1"}),
        ({"FORCE_TORCHRUN": "1"}, {}, {"NPROC_PER_NODE": "1"}),
        ({"OMP_NUM_THREADS": "3", "HF_HUB_OFFLINE": "1"}, {}, {}),
    ],
)
def test_train_command(env: dict[str, str], options: dict[str, object], additions: dict[str, str]) -> None:
    command = train_command(
        RUN / "config.yaml",
        bin_dir=BIN,
        cwd=RUN,
        env={"PATH": "/usr/bin", **env},
        **options,  # type: ignore[arg-type]
    )
    argv = ("/env/bin/llamafactory-cli", "train", "/place/logs/run/config.yaml")
    assert command == Command(argv, RUN, {**BASE, **additions})


def test_the_same_words_by_way_of_the_program_that_can_be_asked_to_stop() -> None:
    command = train_command(RUN / "config.yaml", bin_dir=BIN, cwd=RUN, env={"PATH": "/usr/bin"}, deepspeed=True)
    additions = {**BASE, "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "1", "TRAINKIT_STOP_FILE": "/place/logs/run/stop"}
    argv = ("/env/bin/python3", str(TRAIN_TOGETHER), "train", "/place/logs/run/config.yaml")
    assert preemptible(command, BIN / "python3", RUN / "stop") == Command(argv, RUN, additions)
    assert TRAIN_TOGETHER.is_file()


def test_a_config_in_a_path_with_a_space_is_named_from_the_run_folder() -> None:
    folder = Path("/my work/logs/run")
    command = train_command(folder / "config.yaml", bin_dir=BIN, cwd=folder, env={}, deepspeed=True)
    assert command.argv[2] == "config.yaml"
    with pytest.raises(ConfigError, match="path holds a space"):
        train_command(Path("/my work/config.yaml"), bin_dir=BIN, cwd=RUN, env={})


@pytest.mark.parametrize("options", [{"deepspeed": True}, {"gpu_count": 2}])
def test_torchrun_cannot_start_from_a_path_with_a_space(options: dict[str, int]) -> None:
    with pytest.raises(EnvironmentProblem, match=r"/my env/bin: LLaMA-Factory cannot start torchrun"):
        train_command(RUN / "c.yaml", bin_dir=Path("/my env/bin"), cwd=RUN, env={}, **options)  # type: ignore[arg-type]
    assert train_command(RUN / "c.yaml", bin_dir=Path("/my env/bin"), cwd=RUN, env={}).argv[1] == "train"


def test_a_process_count_that_is_no_number_is_explained() -> None:
    with pytest.raises(ConfigError, match="NPROC_PER_NODE=two: not a number of processes"):
        train_command(RUN / "c.yaml", bin_dir=BIN, cwd=RUN, env={"NPROC_PER_NODE": "two"})


def test_export_and_program_commands() -> None:
    env = {"PATH": "/usr/bin"}
    assert export_command(RUN / "export.yaml", bin_dir=BIN, cwd=RUN, env=env) == Command(
        ("/env/bin/llamafactory-cli", "export", "/place/logs/run/export.yaml"), RUN, BASE
    )
    assert program_command(BIN / "python", Path("/t/chat.py"), "a.json", cwd=RUN, env=env) == Command(
        ("/env/bin/python", "/t/chat.py", "a.json"), RUN, BASE
    )


def test_find_trainer(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        find_trainer(tmp_path / "python")
    assert caught.value.message == f"llamafactory-cli not found in {tmp_path}: LLaMA-Factory is not installed"
    assert caught.value.hint == "./run_training.sh --install-deps, or: pip install 'trainkit[train]'"
    program = tmp_path / "llamafactory-cli"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_trainer(tmp_path / "python") == tmp_path
