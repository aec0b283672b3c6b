from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.dataset.registry import (
    check_datasets,
    check_free,
    entry_for,
    find_eval_name,
    find_files,
    find_manifest,
    is_ours,
    load_registry,
    replace_entries,
)
from trainkit.datatypes import Problem
from trainkit.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "rm-0123abcd"
FOREIGN: dict[str, Any] = {
    "mine": {"file_name": "mine.json", "columns": {"prompt": "q"}, "extra": [1, 2.5, None, "任\u2028"]},
    "folder": {"file_name": "parts"},
    "hub": {"hf_hub_url": "org/data"},
    "script": {"script_url": "own_script"},
    "nothing": {},
    "odd": 5,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with foreign entries and one data set of ours that has a train and an eval view."""
    (tmp_path / "dataset_info.json").write_text(json.dumps(FOREIGN, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "mine.json").write_text("[{}]")
    (tmp_path / "parts").mkdir()
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / "parts" / name).write_text("{}\n")
    folder = tmp_path / FOLDER
    folder.mkdir()
    variants = {
        "rm_full": {"rows": 2, "side": "train", "files": ["b.jsonl", "a.jsonl"]},
        "rm_full_eval": {"rows": 1, "side": "eval", "files": ["a.eval.jsonl"]},
    }
    (folder / "manifest.json").write_text(json.dumps({"variants": variants}))
    for name in ("a.jsonl", "b.jsonl", "a.eval.jsonl"):
        (folder / name).write_text("{}\n")
    replace_entries(tmp_path, "rm", FOLDER, variants)
    return tmp_path


def test_a_conversion_replaces_its_own_entries_only(data: Path) -> None:
    assert load_registry(data) == FOREIGN | {name: entry_for(FOLDER, name) for name in ("rm_full", "rm_full_eval")}
    replace_entries(data, "rm", "rm-ffffffff", ["rm_full", "rm_new"])
    assert load_registry(data) == FOREIGN | {name: entry_for("rm-ffffffff", name) for name in ("rm_full", "rm_new")}
    replace_entries(data, "other", "other-00000000", ["other"])
    assert set(load_registry(data)) == {*FOREIGN, "rm_full", "rm_new", "other"}
    assert not list(data.glob(".*"))


def test_an_entry_names_everything_that_the_trainer_would_else_leave_out() -> None:
    entry = entry_for(FOLDER, "rm_full")
    assert (entry["script_url"], entry["subset"], entry["formatting"]) == (FOLDER, "rm_full", "sharegpt")
    assert entry["columns"] == {"messages": "conversations", "system": "system", "tools": "tools"}
    assert set(entry["tags"]) == {
        "role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "ours"),
    [
        ({"script_url": "rm-0123abcd"}, True),
        ({"script_url": "rm-0123abc"}, False),
        ({"script_url": "rm-0123ABCD"}, False),
        ({"script_url": "rm-0123abcd/x"}, False),
        ({"script_url": "rm_custom-0123abcd"}, False),
        ({"script_url": "rxm-0123abcd"}, False),
        ({"script_url": 5}, False),
        ({"file_name": "rm-0123abcd"}, False),
        (None, False),
        ([], False),
    ],
)
def test_whose_an_entry_is(entry: object, ours: bool) -> None:
    assert is_ours(entry, "rm") is ours


def test_the_name_of_somebody_else_is_refused(data: Path) -> None:
    entries = load_registry(data)
    check_free(entries, "rm", ["rm_full", "new"], data)
    with pytest.raises(InputError, match=r"dataset_info\.json: mine, hub: already there, and not from this conversion"):
        check_free(entries, "rm", ["mine", "rm_full", "hub"], data)
    with pytest.raises(InputError, match=r": rm_full: already there"):
        check_free(entries, "rm_full", ["rm_full"], data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "dataset_info.json: is not a JSON object"),
        ('{\n "a": ', "dataset_info.json:2:7: not valid JSON: Expecting value"),
        ("", "dataset_info.json:1:1: not valid JSON: Expecting value"),
    ],
)
def test_a_broken_registry_is_explained(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(InputError) as caught:
        load_registry(tmp_path)
    assert caught.value.message == f"{tmp_path}/{message}"
    (problem,) = check_datasets(tmp_path, ["a"], "dataset")
    assert (problem.where, problem.message) == ("dataset", f"{tmp_path}/{message}")


def test_what_belongs_to_an_entry(data: Path) -> None:
    folder = data / FOLDER
    assert find_files(data, "rm_full") == [folder / "b.jsonl", folder / "a.jsonl"]
    assert find_files(data, "rm_full_eval") == [folder / "a.eval.jsonl"]
    assert find_files(data, "mine") == [data / "mine.json"]
    assert find_files(data, "folder") == [data / "parts" / "a.jsonl", data / "parts" / "b.jsonl"]
    assert [find_files(data, name) for name in ("hub", "script", "nothing", "odd", "unknown")] == [[]] * 5
    assert find_eval_name(data, "rm_full") == "rm_full_eval"
    assert [find_eval_name(data, name) for name in ("rm_full_eval", "mine", "unknown")] == [None] * 3
    manifest = find_manifest(data, "rm_full")
    assert manifest is not None
    assert set(manifest["variants"]) == {"rm_full", "rm_full_eval"}
    assert load_registry(data / "none") == {}


def test_every_data_set_that_cannot_be_trained_on_is_found(data: Path) -> None:
    (data / FOLDER / "a.jsonl").unlink()
    (data / FOLDER / "a.eval.jsonl").write_text("")
    (data / "mine.json").unlink()
    registry = data / "dataset_info.json"
    again = "run trainkit convert again"
    gone = "cannot be read: No such file or directory"
    names = ["rm_full", "rm_full_eval", "rm_fill", "mine", "folder", "hub", "script", "nothing"]
    assert check_datasets(data, names, "dataset") == [
        Problem("dataset rm_full", f"{data / FOLDER / 'a.jsonl'}: {gone}", again),
        Problem("dataset rm_full_eval", "has no rows", "check the filters of trainkit convert"),
        Problem("dataset rm_fill", f"not in {registry}", "there are: rm_full, rm_full_eval"),
        Problem("dataset mine", f"{data / 'mine.json'}: {gone}", again),
        Problem("dataset hub", "comes from a hub and was not looked at", level="note"),
        Problem("dataset script", f"{data / 'own_script'}: no such folder", again),
        Problem("dataset nothing", "names neither file_name, script_url nor a hub", "see the README, section Data"),
    ]
    (data / "own_script").mkdir()
    (problem,) = check_datasets(data, ["script"], "dataset")
    assert problem.level == "note"
    (data / FOLDER / "manifest.json").write_text("{")
    (problem,) = check_datasets(data, ["rm_full"], "eval_dataset")
    assert problem.message.startswith(f"{data / FOLDER / 'manifest.json'}:1:2: not valid JSON")
    shutil.rmtree(data / FOLDER)
    assert check_datasets(data, ["rm_full"], "dataset") == [
        Problem("dataset rm_full", f"{data / FOLDER}: no such folder", again)
    ]


def test_no_registry_at_all(tmp_path: Path) -> None:
    hint = "convert your data first: trainkit convert finetune.jsonl"
    expected = [Problem("dataset", f"{tmp_path / 'dataset_info.json'}: no such file", hint)]
    assert check_datasets(tmp_path, ["a", "b"], "dataset") == expected
