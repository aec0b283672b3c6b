from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.errors import InputError
from trainkit.runs.handover import hand_over
from trainkit.runs.rounds import (
    Round,
    find_model,
    find_resumable,
    find_start,
    is_trained,
    load_rounds,
    new_name,
    output_of,
    remove_old,
    write_round,
)

if TYPE_CHECKING:
    from pathlib import Path

FIRST, SECOND, THIRD = (f"model_20260301_14253{digit}" for digit in range(3))


def record(name: str = FIRST, **changes: Any) -> Round:
    fields: dict[str, Any] = {"inputs": {"a": [1, 2]}, "settings": "abc", "wandb_run_id": f"run-{name}"}
    return Round(name, **{**fields, **changes})


def save_weights(folder: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "tokenizer.json").write_text("{}")


def save_states(folder: Path, step: int, total: int) -> Path:
    save_weights(folder)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": total}))
    return folder


def save_training(save_path: Path, name: str = FIRST, steps: tuple[int, ...] = (3,), total: int = 3) -> Path:
    """Write what a training leaves: the model if it came to its end, and checkpoints."""
    folder = output_of(save_path, name)
    for step in steps:
        save_states(folder / f"checkpoint-{step}", step, total)
    if total in steps:
        save_weights(folder)
    return folder


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    rounds = [
        record(SECOND, state="trained", start="x", start_step=3, total_steps=6, newest_iteration=4, sampling={"a": 1}),
        record(FIRST),
        record(f"{FIRST}_10"),
        record(f"{FIRST}_2", state="handed over"),
    ]
    for one in rounds:
        write_round(tmp_path, one)
    (tmp_path / "updates" / "notes.json").write_text("somebody else's")
    (tmp_path / "updates" / f"{THIRD}.json.tmp").write_text("{")
    assert load_rounds(tmp_path) == [rounds[1], rounds[3], rounds[2], rounds[0]]
    assert load_rounds(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is no record of a round: Input data was truncated"),
        ("{}", "is no record of a round: Object missing required field `name`"),
        ('{"name": 3}', "is no record of a round: Expected `str`, got `int` - at `$.name`"),
        (b"\xff\xfe", "is no record of a round: "),
        (json.dumps({"name": SECOND, "inputs": {}, "settings": "", "wandb_run_id": ""}), f"is the record of {SECOND}"),
        (
            json.dumps({"name": FIRST, "inputs": {}, "settings": "", "wandb_run_id": "", "state": "lost"}),
            "is no record of a round: Invalid enum value 'lost' - at `$.state`",
        ),
    ],
)
def test_a_damaged_record(tmp_path: Path, content: str | bytes, said: str) -> None:
    file = tmp_path / "updates" / f"{FIRST}.json"
    file.parent.mkdir()
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        load_rounds(tmp_path)
    assert caught.value.message.startswith(f"{file}: {said}")
    assert caught.value.hint


def test_a_record_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "updates" / f"{FIRST}.json").mkdir(parents=True)
    with pytest.raises(InputError, match="is no record of a round"):
        load_rounds(tmp_path)


def test_names_in_one_second(tmp_path: Path) -> None:
    now = datetime(2026, 3, 1, 14, 25, 30, tzinfo=UTC)
    names = []
    for _ in range(11):
        names.append(new_name(tmp_path, now))
        write_round(tmp_path, record(names[-1]))
    assert names == [FIRST, *(f"{FIRST}_{number}" for number in range(2, 12))]
    assert [one.name for one in load_rounds(tmp_path)] == names


@pytest.mark.parametrize(("inputs", "settings", "same"), [("a", "abc", True), ("b", "abc", False), ("a", "x", False)])
def test_of_what_a_round_is_made(inputs: str, settings: str, same: bool) -> None:
    assert record().is_made_of({inputs: [1, 2]}, settings) is same
    assert not record().is_made_of({inputs: [1, 3]}, settings)


# where the next round starts


def test_nothing_was_trained_yet(tmp_path: Path) -> None:
    assert find_start(tmp_path, tmp_path / "model.pt", []).checkpoint is None
    (tmp_path / "checkpoints").mkdir()
    assert find_start(tmp_path, tmp_path / "model.pt", []).checkpoint is None


def test_the_training_of_the_model_in_place(tmp_path: Path) -> None:
    place = tmp_path / "model.pt"
    hand_over(save_training(tmp_path, FIRST, (1, 3)), place)
    save_training(tmp_path, SECOND, (6,), 6)
    start = find_start(tmp_path, place, [])
    assert start.checkpoint is not None
    assert (start.checkpoint.path, start.checkpoint.step) == (output_of(tmp_path, FIRST) / "checkpoint-3", 3)
    assert start.notes == ()


def test_a_model_from_a_checkpoint_of_its_training(tmp_path: Path) -> None:
    """As when a training was killed before it wrote its model."""
    place = tmp_path / "model.pt"
    hand_over(save_training(tmp_path, FIRST, (3,), 3) / "checkpoint-3", place)
    checkpoint = find_start(tmp_path, place, []).checkpoint
    assert checkpoint is not None
    assert checkpoint.path == output_of(tmp_path, FIRST) / "checkpoint-3"


def test_the_whole_experiment_was_moved(tmp_path: Path) -> None:
    hand_over(save_training(tmp_path / "old", FIRST), tmp_path / "old" / "model.pt")
    moved = (tmp_path / "old").rename(tmp_path / "new")
    checkpoint = find_start(moved, moved / "model.pt", []).checkpoint
    assert checkpoint is not None
    assert checkpoint.path == moved / "checkpoints" / FIRST / "checkpoint-3"


def test_an_experiment_in_a_folder_that_is_called_like_a_round(tmp_path: Path) -> None:
    save_path = tmp_path / SECOND
    hand_over(save_training(save_path, FIRST), save_path / "model.pt")
    checkpoint = find_start(save_path, save_path / "model.pt", []).checkpoint
    assert checkpoint is not None
    assert checkpoint.path == save_path / "checkpoints" / FIRST / "checkpoint-3"


def test_a_training_without_an_optimizer(tmp_path: Path) -> None:
    place = tmp_path / "model.pt"
    folder = save_training(tmp_path, FIRST)
    (folder / "checkpoint-3" / "optimizer.pt").unlink()
    hand_over(folder, place)
    start = find_start(tmp_path, place, [])
    assert start.checkpoint is None
    assert [(note.where, note.message, note.level) for note in start.notes] == [
        (str(place), f"{FIRST} left no checkpoint with an optimizer, so its weights alone are trained on", "note")
    ]
    shutil.rmtree(folder)
    assert find_start(tmp_path, place, []).notes == start.notes


def test_without_a_handed_over_model_it_is_the_newest_training(tmp_path: Path) -> None:
    save_training(tmp_path, FIRST)
    save_training(tmp_path, f"{SECOND}_2", (4,), 4)
    save_training(tmp_path, SECOND, (6,), 6)
    save_training(tmp_path, THIRD, (7,), 9)  # stopped
    save_training(tmp_path, f"{THIRD}.previous", (8,), 8)
    (tmp_path / "checkpoints" / "resume" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / f"{THIRD}_3").write_text("no folder")
    stopped = record(THIRD)
    checkpoint = find_start(tmp_path, tmp_path / "model.pt", [stopped]).checkpoint
    assert checkpoint is not None
    assert (checkpoint.path.parent.name, checkpoint.step) == (f"{SECOND}_2", 4)


def test_a_folder_that_is_itself_the_checkpoint(tmp_path: Path) -> None:
    folder = save_states(output_of(tmp_path, FIRST), 120, 120)
    checkpoint = find_start(tmp_path, tmp_path / "model.pt", []).checkpoint
    assert checkpoint is not None
    assert (checkpoint.path, checkpoint.step, checkpoint.total_steps) == (folder, 120, 120)
    (folder / "optimizer.pt").unlink()
    assert find_resumable(folder) is None
    assert find_resumable(folder / "config.json") is None


# the model of a training


def test_the_model_of_a_round_in_each_state(tmp_path: Path) -> None:
    folder = save_training(tmp_path, FIRST, (2, 3))
    for state in ("prepared", "trained", "handed over"):
        assert find_model(tmp_path, record(FIRST, state=state)) == folder
    assert is_trained(tmp_path, record(FIRST))


def test_a_training_that_has_not_ended_has_no_model(tmp_path: Path) -> None:
    save_training(tmp_path, FIRST, (1, 2), 3)
    save_weights(output_of(tmp_path, FIRST))  # written by an evaluation in between, for example
    assert find_model(tmp_path, record(FIRST)) is None
    assert find_model(tmp_path, record(SECOND)) is None
    assert not is_trained(tmp_path, record(FIRST))
    assert is_trained(tmp_path, record(SECOND, state="trained"))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_killed_while_the_model_was_written(tmp_path: Path, missing: str) -> None:
    folder = save_training(tmp_path, FIRST, (2, 3))
    (folder / missing).unlink()
    for state in ("prepared", "trained"):
        assert find_model(tmp_path, record(FIRST, state=state)) == folder / "checkpoint-3"
    shutil.rmtree(folder / "checkpoint-3")
    assert find_model(tmp_path, record(FIRST, state="trained")) is None


def test_only_old_rounds_that_were_handed_over_are_removed(tmp_path: Path) -> None:
    names = [FIRST, SECOND, THIRD, f"{THIRD}_2"]
    for name in (*names, "mine"):
        save_training(tmp_path, name)
    done = [record(name, state="handed over") for name in names]
    rounds = [done[0], record(SECOND), *done[2:]]
    assert remove_old(tmp_path, rounds, 5) == []
    assert remove_old(tmp_path, rounds, 3) == []
    assert remove_old(tmp_path, rounds, 1) == [output_of(tmp_path, FIRST), output_of(tmp_path, THIRD)]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["mine", SECOND, f"{THIRD}_2"]
    assert remove_old(tmp_path, rounds, 1) == []
