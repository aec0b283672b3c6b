from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from rollouts import add_iteration, places_of, rollout, rows_of, write_iteration

from trainkit.dataset.registry import COLUMNS, IMAGES, TAGS
from trainkit.dataset.write import STAGING
from trainkit.errors import InputError
from trainkit.plan.update import load_update
from trainkit.sources.trajectories import find_iterations
from trainkit.workflow.rollouts import survey
from trainkit.workflow.round_data import draw_sample, left_out, write_data

if TYPE_CHECKING:
    from pathlib import Path

    from trainkit.plan.update import UpdateConfig
    from trainkit.workflow.round_data import Sample


def configured(save_path: Path, *words: str) -> UpdateConfig:
    file = save_path / "update.yaml"
    file.write_text(f"save_path: {save_path}\nmodel_path: org/model\n")
    return load_update(file, words)


def written(save_path: Path, *words: str) -> Sample:
    """Draw and write the data of the iterations at hand."""
    config = configured(save_path, *words)
    files = tuple(find_iterations(save_path, 4))
    drawn = draw_sample(config, survey(files))
    write_data(save_path / "llamafactory_data", files, drawn, lambda _: None)
    return drawn


def files_in(save_path: Path) -> list[str]:
    return sorted(path.name for path in (save_path / "llamafactory_data").iterdir())


def registry_of(save_path: Path) -> dict[str, Any]:
    return dict(json.loads((save_path / "llamafactory_data" / "dataset_info.json").read_text()))


def screenshot(folder: Path) -> Path:
    path = folder / "shot.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    return path


def test_a_row_is_all_that_the_model_was_shown(tmp_path: Path) -> None:
    shot = screenshot(tmp_path)
    write_iteration(tmp_path, 7, [rollout("a", num_steps=2, images=[shot])])
    written(tmp_path, "algorithm_config.val_split_ratio=0")
    first, second = (f"Task a, step {step}: " for step in range(2))
    rows = rows_of(tmp_path)
    texts = [(turn["from"], turn["value"].partition(":")[0] + ": ") for turn in rows[1]["conversations"][::2]]
    assert texts == [("human", f"<image>{first}"), ("human", f"<image>{second}")]
    assert rows[1] | {"conversations": []} == {
        "conversations": [],
        "system": "You are a web agent. Think, then act.",
        "tools": "",
        "images": [str(shot), str(shot)],
        "loss_weight": 1.0,
        "metadata": '{"iteration":7,"trajectory":0,"step":1,"task":"a"}',
    }
    assert len(rows) == 2


def test_rows_with_images_come_first_on_both_sides(tmp_path: Path) -> None:
    shot = screenshot(tmp_path)
    for number in range(2):
        plain = [rollout(f"p{number}{index}") for index in range(20)]
        write_iteration(tmp_path, number, [*plain, *(rollout(f"s{index}", images=[shot]) for index in range(20))])
    drawn = written(tmp_path, "algorithm_config.val_split_ratio=0.3")
    for side, table in (("train", drawn.train), ("val", drawn.val)):
        with_images = [bool(row["images"]) for row in rows_of(tmp_path, side)]
        assert with_images == sorted(with_images, reverse=True)
        assert {True, False} == {*with_images}
        assert sorted(places_of(tmp_path, side)) == [place[:3] for place in table]
    entry = {"formatting": "sharegpt", "columns": COLUMNS | IMAGES, "tags": TAGS}
    assert registry_of(tmp_path) == {
        "finetune_train": {"file_name": "finetune_train.jsonl", **entry},
        "finetune_val": {"file_name": "finetune_val.jsonl", **entry},
    }
    assert files_in(tmp_path) == ["dataset_info.json", "finetune_train.jsonl", "finetune_val.jsonl"]


def test_the_column_of_the_images_is_there_for_the_side_that_has_some(tmp_path: Path) -> None:
    shot = screenshot(tmp_path)
    write_iteration(tmp_path, 0, [rollout(f"p{index}") for index in range(8)])
    config = ("algorithm_config.val_split_ratio=0.5",)
    written(tmp_path, *config)
    held_out = {trajectory for _, trajectory, _ in places_of(tmp_path, "val")}
    assert {index for _, index, _ in places_of(tmp_path)} == set(range(8)) - held_out
    images = [rollout(f"p{index}", images=[] if index in held_out else [shot]) for index in range(8)]
    write_iteration(tmp_path, 0, images)
    written(tmp_path, *config)
    columns = {name: "images" in entry["columns"] for name, entry in registry_of(tmp_path).items()}
    assert columns == {"finetune_train": True, "finetune_val": False}


def test_a_text_that_speaks_of_no_images_has_some(tmp_path: Path) -> None:
    shot = screenshot(tmp_path)
    tricky = rollout("a", images=[shot])
    tricky[2]["response"]["raw_response"] = '{"images":[],"system":""}'
    write_iteration(tmp_path, 0, [tricky, rollout("b")])
    written(tmp_path, "algorithm_config.val_split_ratio=0")
    assert [bool(row["images"]) for row in rows_of(tmp_path)] == [True] * 3 + [False] * 3


def test_no_trajectory_is_on_both_sides(tmp_path: Path) -> None:
    for number in range(3):
        add_iteration(tmp_path, number, 40)
    words = ("algorithm_config.val_split_ratio=0.2", "algorithm_config.positive_samples_to_train=200")
    written(tmp_path, *words)
    train, val = ({place[:2] for place in places_of(tmp_path, side)} for side in ("train", "val"))
    assert not train & val
    assert val
    assert len(places_of(tmp_path)) + len(places_of(tmp_path, "val")) == 200
    # a trajectory keeps its side when there are more
    add_iteration(tmp_path, 3, 40)
    written(tmp_path, *words)
    now = {place[:2] for place in places_of(tmp_path)}
    assert not now & val


def test_without_validation_rows_the_old_ones_go(tmp_path: Path) -> None:
    add_iteration(tmp_path, 0, 20)
    written(tmp_path, "algorithm_config.val_split_ratio=0.3")
    path = tmp_path / "llamafactory_data" / "dataset_info.json"
    path.write_text(json.dumps(registry_of(tmp_path) | {"mine": {"file_name": "mine.json"}}))
    written(tmp_path, "algorithm_config.val_split_ratio=0")
    assert files_in(tmp_path) == ["dataset_info.json", "finetune_train.jsonl"]
    assert list(registry_of(tmp_path)) == ["mine", "finetune_train"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    add_iteration(tmp_path, 0)
    folder = tmp_path / "llamafactory_data"
    folder.mkdir()
    (folder / f"{STAGING}-0123abcd").mkdir()
    (folder / f"{STAGING}-0123abcd" / "train.jsonl").write_text("half a row")
    (folder / ".dataset_info.json.0123abcd.tmp").write_text("{")
    written(tmp_path, "algorithm_config.val_split_ratio=0")
    assert files_in(tmp_path) == ["dataset_info.json", "finetune_train.jsonl"]


@pytest.mark.parametrize("change", ["fewer", "other", "broken"])
def test_rollouts_that_change_while_they_are_read(tmp_path: Path, change: str) -> None:
    add_iteration(tmp_path, 0)
    written(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "llamafactory_data").iterdir()}
    config = configured(tmp_path)
    files = tuple(find_iterations(tmp_path, 4))
    drawn = draw_sample(config, survey(files))
    if change == "fewer":
        add_iteration(tmp_path, 0, 2)
    elif change == "other":
        write_iteration(tmp_path, 0, [rollout(f"x{index}", reward=0) for index in range(4)])
    else:
        files[0].path.write_text("{")
    with pytest.raises(InputError) as caught:
        write_data(tmp_path / "llamafactory_data", files, drawn, lambda _: None)
    assert str(files[0].path) in caught.value.message
    assert {path.name: path.read_bytes() for path in (tmp_path / "llamafactory_data").iterdir()} == before


def test_a_file_is_read_again_only_if_something_was_drawn_from_it(tmp_path: Path) -> None:
    add_iteration(tmp_path, 0)
    write_iteration(tmp_path, 1, [rollout("lost", reward=0)])
    files = tuple(find_iterations(tmp_path, 4))
    drawn = draw_sample(configured(tmp_path), survey(files))
    files[1].path.unlink()
    read: list[int] = []
    write_data(tmp_path / "llamafactory_data", files, drawn, lambda file: read.append(file.number))
    assert read == [0, 1]
    assert len(rows_of(tmp_path)) == len(drawn.train)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    write_iteration(tmp_path, 0, [rollout("a", reward=0), rollout("b", num_steps=1), []])
    write_iteration(tmp_path, 1, [rollout("c", reward=0)])
    files = find_iterations(tmp_path, 4)
    assert left_out(survey(files)) == {
        "trajectories": {"empty": 1, "fewer than 2 steps": 1},
        "steps": {"not successful": 6},
    }
    with pytest.raises(InputError) as caught:
        draw_sample(configured(tmp_path), survey(files))
    assert caught.value.message == (
        f"{tmp_path}: no step of the last iterations can be trained on; left out: "
        "2 trajectories: 1 empty, 1 fewer than 2 steps; 6 steps: 6 not successful"
    )
    with pytest.raises(InputError, match=r"can be trained on; left out: there is none$"):
        draw_sample(configured(tmp_path), survey([]))


def test_the_sample_is_what_the_configuration_says(tmp_path: Path) -> None:
    for number in range(4):
        add_iteration(tmp_path, number, 100)
    words = ("algorithm_config.positive_samples_to_train=300", "algorithm_config.val_split_ratio=0")
    plan = written(tmp_path, *words).plan
    assert plan.taken == {0: 10, 1: 40, 2: 90, 3: 160}
    assert written(tmp_path, *words, "algorithm_config.recency_bias_power=0").plan.taken == dict.fromkeys(range(4), 75)
    capped = written(tmp_path, *words, "algorithm_config.max_samples_per_task=1")
    assert max(capped.train.task.tolist().count(task) for task in range(len(capped.train.tasks))) == 1
