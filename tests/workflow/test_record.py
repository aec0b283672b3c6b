from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from trainkit.datatypes import Outcome
from trainkit.errors import InputError
from trainkit.workflow.record import find_metrics

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Place


def test_every_file_of_the_data_is_described_once(ready: Place) -> None:
    assert ready.trainkit("train", "-d", "reward_model_full,reward_model_clip").code == 0
    files = [file["path"] for file in ready.manifest()["data"]]
    assert len(files) == len(set(files)) == 2
    assert ready.run().name.endswith("-reward_model_full+reward_model_clip")
    marker = json.loads(ready.path("saves/rm/trainkit_run.json").read_text())
    assert marker["metadata_form"] == ["type", "category"]


def test_foreign_data_has_no_form_of_ours(ready: Place) -> None:
    ready.write("data/mine.jsonl", '{"instruction": "a", "input": "", "output": "b"}\n')
    ready.write("data/dataset_info.json", '{"mine": {"file_name": "mine.jsonl"}}')
    ready.config("max_new_tokens: 64", "do_sample: false")
    assert ready.trainkit("train", "-d", "mine").code == 0
    (file,) = ready.manifest()["data"]
    assert (file["path"], file["rows"], file["bytes"]) == (str(ready.path("data/mine.jsonl")), 1, 49)
    marker = json.loads(ready.path("saves/rm/trainkit_run.json").read_text())
    assert (marker["metadata_form"], marker["generation"]) == ([], {"do_sample": False, "max_new_tokens": 64})


def test_the_commit_of_the_folder_is_kept(ready: Place) -> None:
    ready.write(".git/HEAD", "c0ffee\n")
    assert ready.trainkit("train").code == 0
    assert ready.manifest()["git_commit"] == "c0ffee"


@pytest.mark.parametrize(
    ("text", "exit_code", "metrics"),
    [
        (None, 0, {}),
        ('{"train_loss": 1.5}', 1, {}),
        ('{"train_loss": 1.5, "epoch": NaN, "word": "x"}', 0, {"train_loss": 1.5, "epoch": None, "word": "x"}),
    ],
)
def test_metrics_are_those_of_a_training_that_ended(
    tmp_path: Path, text: str | None, exit_code: int, metrics: dict[str, object]
) -> None:
    if text is not None:
        (tmp_path / "all_results.json").write_text(text)
    assert find_metrics(tmp_path, Outcome(exit_code, 1.0)) == metrics


def test_damaged_metrics_are_named(tmp_path: Path) -> None:
    (tmp_path / "all_results.json").write_text("{")
    with pytest.raises(InputError, match=r"all_results\.json:1:2: not valid JSON"):
        find_metrics(tmp_path, Outcome(0, 1.0))
