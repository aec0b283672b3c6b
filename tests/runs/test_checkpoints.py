from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.datatypes import Checkpoint, Problem
from trainkit.errors import ConfigError
from trainkit.runs.checkpoints import (
    Resume,
    find_checkpoints,
    find_newest_complete,
    load_checkpoint,
    plan_resume,
    set_aside,
)
from trainkit.runs.weights import is_whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., Path]

SHARD = "model-00002-of-00002.safetensors"
OPTIMIZER_SHARD = "global_step40/zero_pp_rank_1_mp_rank_00_optim_states.pt"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("kind", ["lora", "full", "sharded", "bin", "deepspeed"])
def test_a_whole_checkpoint(make_checkpoint: Make, kind: str) -> None:
    folder = make_checkpoint(40, kind)
    assert load_checkpoint(folder) == Checkpoint(folder, 40, 120, ())


@pytest.mark.parametrize(
    ("kind", "file", "missing"),
    [
        ("lora", "trainer_state.json", ["no readable trainer_state.json"]),
        ("lora", "adapter_model.safetensors", ["no weights"]),
        ("lora", "adapter_config.json", ["no adapter_config.json"]),
        ("full", "model.safetensors", ["no weights"]),
        ("sharded", SHARD, [f"no {SHARD}"]),
        ("lora", "scheduler.pt", ["no scheduler.pt"]),
        ("lora", "optimizer.pt", ["no optimizer state (optimizer.pt), as save_only_model leaves it"]),
        ("lora", "rng_state.pth", ["no random state (rng_state.pth)"]),
        ("deepspeed", "latest", ["no file `latest` that names DeepSpeed's folder"]),
        ("deepspeed", OPTIMIZER_SHARD, ["global_step40 holds the optimizer of 1 of 2 processes"]),
    ],
)
def test_a_missing_file_is_named(make_checkpoint: Make, kind: str, file: str, missing: list[str]) -> None:
    folder = make_checkpoint(40, kind)
    (folder / file).unlink()
    assert list(load_checkpoint(folder).missing) == missing


@pytest.mark.parametrize(
    ("kind", "file", "missing"),
    [
        ("lora", "trainer_state.json", "no readable trainer_state.json"),
        ("lora", "adapter_model.safetensors", "adapter_model.safetensors is cut off"),
        ("full", "model.safetensors", "model.safetensors is cut off"),
        ("sharded", SHARD, f"{SHARD} is cut off"),
        ("sharded", "model.safetensors.index.json", "model.safetensors.index.json cannot be read"),
        ("bin", "pytorch_model.bin", "pytorch_model.bin is cut off"),
        ("lora", "optimizer.pt", "optimizer.pt is cut off"),
        ("lora", "scheduler.pt", "scheduler.pt is cut off"),
        ("lora", "rng_state.pth", "rng_state.pth is cut off"),
        ("deepspeed", OPTIMIZER_SHARD, f"{OPTIMIZER_SHARD} is cut off"),
    ],
)
def test_a_file_cut_off_by_a_kill_is_named(make_checkpoint: Make, kind: str, file: str, missing: str) -> None:
    folder = make_checkpoint(40, kind)
    cut(folder / file)
    found = load_checkpoint(folder).missing
    assert missing in found
    assert not load_checkpoint(folder).complete


def test_deepspeed_without_model_states_or_scheduler_file(make_checkpoint: Make) -> None:
    folder = make_checkpoint(40, "deepspeed")
    (folder / "scheduler.pt").unlink()
    assert load_checkpoint(folder).complete
    for file in (folder / "global_step40").glob("*model_states.pt"):
        file.unlink()
    assert load_checkpoint(folder).missing == ("global_step40 holds no model states",)


def test_the_state_of_another_step_does_not_count(make_checkpoint: Make) -> None:
    folder = make_checkpoint(40)
    folder = folder.rename(folder.with_name("checkpoint-50"))
    assert load_checkpoint(folder).missing == ("trainer_state.json is of step 40",)


@given(st.integers(0, 10_000), st.binary(max_size=64))
def test_no_part_of_a_safetensors_file_is_whole(
    tmp_path_factory: pytest.TempPathFactory, size: int, tail: bytes
) -> None:
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    header = json.dumps({"w": {"data_offsets": [0, len(tail)]}}).encode()
    content = len(header).to_bytes(8, "little") + header + tail
    file.write_bytes(content[:size])
    assert is_whole(file) == (size >= len(content))


@pytest.mark.parametrize("header", [b"not JSON", b"[1]", b'{"w": {}}', b'{"w": {"data_offsets": []}}'])
def test_a_safetensors_file_with_a_broken_header_is_not_whole(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert not is_whole(file)


def test_checkpoints_are_sorted_by_step_and_other_folders_ignored(make_checkpoint: Make, tmp_path: Path) -> None:
    for step in (1000, 40, 200):
        make_checkpoint(step)
    for name in ("checkpoint-300.tmp", "tmp-checkpoint-400", "checkpoint-best", "runs"):
        (tmp_path / "out" / name).mkdir()
    (tmp_path / "out" / "checkpoint-500").write_text("a file")
    assert [point.step for point in find_checkpoints(tmp_path / "out")] == [40, 200, 1000]
    assert find_checkpoints(tmp_path / "none") == []


def test_auto_takes_the_newest_complete_one_and_names_the_broken(make_checkpoint: Make, tmp_path: Path) -> None:
    good, half = make_checkpoint(40), make_checkpoint(80)
    (half / "trainer_state.json").unlink()
    (half / "optimizer.pt").unlink()
    assert find_newest_complete(tmp_path / "out") == Checkpoint(good, 40, 120)
    assert plan_resume(tmp_path / "out", "auto") == Resume(
        Checkpoint(good, 40, 120),
        (
            Problem(str(good), "resuming after step 40 of 120", level="note"),
            Problem(
                str(half),
                "not used to resume: no readable trainer_state.json, "
                "no optimizer state (optimizer.pt), as save_only_model leaves it",
                level="note",
            ),
        ),
    )


def test_auto_without_a_complete_one_starts_from_the_beginning(make_checkpoint: Make, tmp_path: Path) -> None:
    assert plan_resume(tmp_path / "out", "auto") == Resume(None)
    half = make_checkpoint(40)
    (half / "rng_state.pth").unlink()
    assert plan_resume(tmp_path / "out", "auto") == Resume(
        None, (Problem(str(half), "not used to resume: no random state (rng_state.pth)", level="note"),)
    )


@pytest.mark.parametrize(
    ("epochs", "max_steps", "finished"),
    [(None, -1, True), (3, -1, True), (2, -1, True), (3.5, -1, False), (3, 120, True), (1, 121, False)],
)
def test_a_finished_training_is_not_resumed_unless_it_goes_further(
    make_checkpoint: Make, tmp_path: Path, epochs: float | None, max_steps: int, finished: bool
) -> None:
    folder = make_checkpoint(120, epoch=2.9995)
    if not finished:
        resume = plan_resume(tmp_path / "out", "auto", num_train_epochs=epochs, max_steps=max_steps)
        assert resume.checkpoint == Checkpoint(folder, 120, 120)
        return
    with pytest.raises(ConfigError) as caught:
        plan_resume(tmp_path / "out", "auto", num_train_epochs=epochs, max_steps=max_steps)
    assert caught.value.message == f"{tmp_path / 'out'}: already finished at step 120 of 120"
    assert caught.value.hint == (
        "--resume never trains again (the old folder is kept as out.previous), or raise num_train_epochs"
    )


def test_a_chosen_checkpoint(make_checkpoint: Make, tmp_path: Path) -> None:
    good, half = make_checkpoint(40), make_checkpoint(80)
    assert plan_resume(tmp_path / "out", good) == Resume(Checkpoint(good, 40, 120))
    (half / "optimizer.pt").unlink()
    with pytest.raises(ConfigError) as caught:
        plan_resume(tmp_path / "out", half)
    message = "cannot be resumed from: no optimizer state (optimizer.pt), as save_only_model leaves it"
    assert (caught.value.message, caught.value.hint) == (f"{half}: {message}", f"{good} is complete")
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint: .*checkpoint-9: no such folder"):
        plan_resume(tmp_path / "out", tmp_path / "out" / "checkpoint-9")


def test_never_ignores_checkpoints(make_checkpoint: Make, tmp_path: Path) -> None:
    make_checkpoint(40)
    assert plan_resume(tmp_path / "out", "never") == Resume(None)


def test_set_aside_keeps_one_previous_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert set_aside(out) is None
    out.mkdir()
    assert set_aside(out) is None
    for word in ("first", "second"):
        out.mkdir(exist_ok=True)
        (out / "word").write_text(word)
        assert set_aside(out) == tmp_path / "out.previous"
        assert not out.exists()
        assert (tmp_path / "out.previous" / "word").read_text() == word
