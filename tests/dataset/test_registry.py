from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.dataset.registry import (
    check_free,
    entry_for,
    find_eval_name,
    find_files,
    find_manifest,
    is_ours,
    load_registry,
    replace_entries,
)
from trainkit.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "rm-0123abcd"
OURS = {
    "rm_full": entry_for(f"{FOLDER}/train.jsonl", ()),
    "rm_full_eval": entry_for(f"{FOLDER}/eval.jsonl", ()),
    "rm_clip": entry_for(f"{FOLDER}/train.jsonl", [(0, 1), (2, 5)]),
}
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
    (folder / "manifest.json").write_text(json.dumps({"metadata_form": [], "variants": {name: {} for name in OURS}}))
    for name in ("train.jsonl", "eval.jsonl"):
        (folder / name).write_text("{}\n")
    replace_entries(tmp_path, "rm", OURS)
    return tmp_path


def test_a_conversion_replaces_its_own_entries_only(data: Path) -> None:
    assert load_registry(data) == FOREIGN | OURS
    new = {name: entry_for("rm-ffffffff/train.jsonl", [(1, 2)]) for name in ("rm_full", "rm_new")}
    replace_entries(data, "rm", new)
    assert load_registry(data) == FOREIGN | new
    other = {"other": entry_for("other-00000000/train.jsonl", ())}
    replace_entries(data, "other", other)
    assert load_registry(data) == FOREIGN | new | other
    assert not list(data.glob(".*"))


def test_an_entry_names_everything_that_the_trainer_would_else_leave_out() -> None:
    entry = entry_for("rm-0123abcd/train.jsonl", [(0, 4), (9, 12)])
    named = (entry["file_name"], entry["split"], entry["formatting"])
    assert named == ("rm-0123abcd/train.jsonl", "train[0:4]+train[9:12]", "sharegpt")
    with_images = entry_for("rm-0123abcd/train.jsonl", [(0, 4), (9, 12)], images=True)
    assert with_images == entry | {"columns": entry["columns"] | {"images": "images"}}
    assert entry_for("rm-0123abcd/train.jsonl", ()) == {key: entry[key] for key in entry if key != "split"}
    assert entry["columns"] == {"messages": "conversations", "system": "system", "tools": "tools"}
    assert set(entry["tags"]) == {
        "role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "ours"),
    [
        ({"file_name": "rm-0123abcd/train.jsonl"}, True),
        ({"file_name": "rm-0123abcd/eval.jsonl", "split": "train[0:1]"}, True),
        ({"file_name": "rm-0123abcd/test.jsonl"}, False),
        ({"file_name": "rm-0123abcd/trainxjsonl"}, False),
        ({"file_name": "rm-0123abcd/train.jsonl.gz"}, False),
        ({"file_name": "rm-0123abcd/x/train.jsonl"}, False),
        ({"file_name": "x/rm-0123abcd/train.jsonl"}, False),
        ({"file_name": "rm-0123abc/train.jsonl"}, False),
        ({"file_name": "rm-0123ABCD/train.jsonl"}, False),
        ({"file_name": "rm_custom-0123abcd/train.jsonl"}, False),
        ({"file_name": "rxm-0123abcd/train.jsonl"}, False),
        ({"file_name": "rm-0123abcd"}, False),
        ({"file_name": 5}, False),
        ({"script_url": "rm-0123abcd/train.jsonl"}, False),
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


def test_what_belongs_to_an_entry(data: Path) -> None:
    folder = data / FOLDER
    assert find_files(data, "rm_full") == find_files(data, "rm_clip") == [folder / "train.jsonl"]
    assert find_files(data, "rm_full_eval") == [folder / "eval.jsonl"]
    assert find_files(data, "mine") == [data / "mine.json"]
    assert find_files(data, "folder") == [data / "parts" / "a.jsonl", data / "parts" / "b.jsonl"]
    assert [find_files(data, name) for name in ("hub", "script", "nothing", "odd", "unknown")] == [[]] * 5
    assert find_eval_name(data, "rm_full") == "rm_full_eval"
    names = ("rm_full_eval", "rm_clip", "mine", "folder", "hub", "odd", "unknown")
    assert [find_eval_name(data, name) for name in names] == [None] * 7
    manifest = find_manifest(data, "rm_clip")
    assert manifest == {"metadata_form": [], "variants": {name: {} for name in OURS}}
    assert [find_manifest(data, name) for name in names[2:]] == [None] * 5
    (data / "manifest.json").write_text('{"name": "of a web page"}')  # beside the foreign file
    assert find_manifest(data, "mine") is None
    assert load_registry(data / "none") == {}
