"""A checkpoint is copied for a new learning rate, and the user's own stays as it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainkit.errors import ConfigError, TrainkitError
from trainkit.runs.checkpoints import load_checkpoint
from trainkit.runs.scheduler_copy import find_rate_files, with_learning_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., Path]

RANKS = ("zero_pp_rank_0_mp_rank_00", "zero_pp_rank_1_mp_rank_00")


def replace_first(folder: Path, files: list[str], learning_rate: float) -> None:
    """Rewrite the scheduler as the true program does: by a new file."""
    (folder / "new").write_text(f"{learning_rate}")
    (folder / "new").replace(folder / files[0])


def states_in(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    states = ((file.relative_to(folder).as_posix(), file.stat(), file.read_bytes()) for file in files)
    return {name: (state.st_ino, state.st_mtime_ns, content) for name, state, content in states}


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("full", ["scheduler.pt", "optimizer.pt"]),
        (
            "deepspeed",
            ["scheduler.pt"]
            + [f"global_step40/{rank}_{kind}_states.pt" for kind in ("optim", "model") for rank in RANKS],
        ),
    ],
)
def test_the_files_that_may_hold_a_rate(make_checkpoint: Make, kind: str, files: list[str]) -> None:
    assert find_rate_files(make_checkpoint(40, kind)) == files


@pytest.mark.parametrize("kind", ["full", "deepspeed"])
def test_the_copy_is_whole_and_the_checkpoint_is_not_touched(make_checkpoint: Make, tmp_path: Path, kind: str) -> None:
    checkpoint = make_checkpoint(40, kind)
    before = states_in(checkpoint)
    target = tmp_path / "copies" / "checkpoint-40"
    assert with_learning_rate(checkpoint, target, 1e-6, replace_first) == target
    assert states_in(checkpoint) == before
    copied = states_in(target)
    assert {name: content for name, (_, _, content) in copied.items()} == {
        name: content for name, (_, _, content) in before.items()
    } | {"scheduler.pt": b"1e-06"}
    linked = {name for name in copied if copied[name][0] == before[name][0]}
    assert {Path(name).suffix for name in linked} == {".safetensors", ".pt", ".pth"}
    assert set(copied) - linked == {"scheduler.pt", "trainer_state.json"} | ({"latest"} & set(copied))
    assert [path.name for path in target.parent.iterdir()] == ["checkpoint-40"]
    # an edit of the copy's state is no edit of the checkpoint's
    (target / "trainer_state.json").write_text(json.dumps({"global_step": 40, "max_steps": 7}))
    assert load_checkpoint(checkpoint).total_steps == 120


def test_a_failed_or_killed_copy_leaves_nothing(make_checkpoint: Make, tmp_path: Path) -> None:
    checkpoint, target = make_checkpoint(40, "full"), tmp_path / "checkpoint-40"

    def fail(folder: Path, files: list[str], learning_rate: float) -> None:
        raise TrainkitError("the program failed")

    left = tmp_path / ".checkpoint-40.unfinished"
    left.mkdir()
    (left / "optimizer.pt").write_text("half")
    for _ in range(2):
        with pytest.raises(TrainkitError, match="the program failed"):
            with_learning_rate(checkpoint, target, 1e-6, fail)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_target_that_exists_is_left_alone(make_checkpoint: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="out: exists already"):
        with_learning_rate(make_checkpoint(40, "full"), tmp_path / "out", 1e-6, replace_first)


def test_a_disk_that_refuses_is_explained(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path, **_: bool) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(TrainkitError, match=r"checkpoint-40: the checkpoint was not copied: .*No space left"):
        with_learning_rate(make_checkpoint(40, "full"), tmp_path / "checkpoint-40", 1e-6, replace_first)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("rate", [0.0, -1e-6, float("nan")])
def test_a_rate_that_is_none(make_checkpoint: Make, tmp_path: Path, rate: float) -> None:
    with pytest.raises(ConfigError, match="is not above 0"):
        with_learning_rate(make_checkpoint(40, "full"), tmp_path / "copy", rate, replace_first)


@pytest.mark.parametrize(
    ("missing", "there", "message", "hint"),
    [
        ("scheduler.pt", "", "no scheduler.pt", "a scheduler in DeepSpeed's own configuration"),
        ("optimizer.pt", "", "no optimizer state whose learning rate can be changed", ""),
        ("optimizer.pt", "optimizer_0", "no optimizer state", "the sharded optimizer state of FSDP is not supported"),
    ],
)
def test_a_checkpoint_that_cannot_get_a_new_rate(
    make_checkpoint: Make, tmp_path: Path, missing: str, there: str, message: str, hint: str
) -> None:
    checkpoint = make_checkpoint(40, "full")
    (checkpoint / missing).unlink()
    if there:
        (checkpoint / there).mkdir()
    with pytest.raises(ConfigError, match=message) as caught:
        with_learning_rate(checkpoint, tmp_path / "copy", 1e-6, replace_first)
    assert hint in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
