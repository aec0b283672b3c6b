"""What `validate` and `train` say of data sets before they are trained on."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from trainkit.dataset.check import check_datasets
from trainkit.dataset.registry import entry_for
from trainkit.datatypes import Problem

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "rm-0123abcd"
AGAIN = "run trainkit convert again"
ROWS = "".join(f'{{"conversations": [{number}]}}\n' for number in range(4))
ENTRIES = {
    "rm_full": entry_for(f"{FOLDER}/train.jsonl", ()),
    "rm_full_eval": entry_for(f"{FOLDER}/eval.jsonl", ()),
    "rm_clip": entry_for(f"{FOLDER}/train.jsonl", [(0, 1), (2, 4)]),
    "mine": {"file_name": "mine.json"},
    "mine_too": {"file_name": f"{FOLDER}/train.jsonl", "split": "train[:3]"},
    "folder": {"file_name": "parts"},
    "hollow": {"file_name": "nothing_in_it"},
    "hub": {"hf_hub_url": "org/data"},
    "script": {"script_url": "own_script"},
    "nothing": {},
    "odd": 5,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with one data set of ours, of four rows and one for eval, and entries of others."""
    for name in (FOLDER, "parts", "nothing_in_it"):
        (tmp_path / name).mkdir()
    (tmp_path / "dataset_info.json").write_text(json.dumps(ENTRIES))
    (tmp_path / "mine.json").write_text("[{}]")
    (tmp_path / "parts" / "a.jsonl").write_text("{}\n")
    (tmp_path / FOLDER / "train.jsonl").write_text(ROWS)
    (tmp_path / FOLDER / "eval.jsonl").write_text("{}\n")
    files = {"train.jsonl": {"rows": 4, "bytes": len(ROWS)}, "eval.jsonl": {"rows": 1, "bytes": 3}}
    manifest = {"metadata_form": [], "files": files, "variants": {}}
    (tmp_path / FOLDER / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_every_data_set_that_cannot_be_trained_on_is_found(data: Path) -> None:
    assert check_datasets(data, ["rm_full", "rm_full_eval", "rm_clip", "mine", "mine_too", "folder"], "dataset") == []
    (data / FOLDER / "train.jsonl").unlink()
    (data / FOLDER / "eval.jsonl").write_text("")
    (data / "mine.json").unlink()
    (data / "parts" / "a.jsonl").write_text("")
    registry = data / "dataset_info.json"
    gone = "cannot be read: No such file or directory"
    neither = "names neither file_name, script_url nor a hub"
    names = ["rm_full", "rm_clip", "rm_full_eval", "rm_fill", "mine", "folder", "hollow", "hub", "script", "nothing"]
    assert check_datasets(data, [*names, "odd"], "dataset") == [
        Problem("dataset rm_full", f"{data / FOLDER / 'train.jsonl'}: {gone}", AGAIN),
        Problem("dataset rm_clip", f"{data / FOLDER / 'train.jsonl'}: {gone}", AGAIN),
        Problem("dataset rm_full_eval", "has no rows", "check the filters of trainkit convert"),
        Problem("dataset rm_fill", f"not in {registry}", "there are: rm_full, rm_full_eval, rm_clip"),
        Problem("dataset mine", f"{data / 'mine.json'}: {gone}", AGAIN),
        Problem("dataset folder", "has no rows", "check the filters of trainkit convert"),
        Problem("dataset hollow", "has no rows", "check the filters of trainkit convert"),
        Problem("dataset hub", "comes from a hub and was not looked at", level="note"),
        Problem("dataset script", f"{data / 'own_script'}: no such folder", "check script_url"),
        Problem("dataset nothing", neither, "see the README, section Data"),
        Problem("dataset odd", neither, "see the README, section Data"),
    ]
    (data / "own_script").mkdir()
    assert check_datasets(data, ["script"], "dataset") == [
        Problem("dataset script", "is a folder that trainkit did not write and was not looked at", level="note")
    ]
    shutil.rmtree(data / FOLDER)
    assert check_datasets(data, ["rm_full"], "eval_dataset") == [
        Problem("eval_dataset rm_full", f"{data / FOLDER / 'train.jsonl'}: {gone}", AGAIN)
    ]


LINES = ROWS.splitlines(keepends=True)
STILL_FOUR = {
    "longer": ROWS.replace("[1]", "[1, 1]"),
    "no last line end": ROWS[:-1],
    "blank lines": "\n" + ROWS.replace("\n", "\n \n") + "\n\n",
    "windows line ends": ROWS.replace("\n", "\r\n"),
}
NOT_FOUR = {
    "one taken out": ("".join(LINES[1:]), 3),
    "one added": (ROWS + LINES[0], 5),
    "one added without line end": (ROWS + LINES[0].rstrip(), 5),
    "one added in front": (LINES[3] + ROWS, 5),
    "cut off at the end": ("".join(LINES[:3]).rstrip(), 3),
}


@pytest.mark.parametrize("how", STILL_FOUR)
def test_rows_that_were_changed_in_place_are_a_note(data: Path, how: str) -> None:
    file = data / FOLDER / "train.jsonl"
    file.write_bytes(STILL_FOUR[how].encode())
    message = f"{file} was edited since the conversion: 4 rows"
    names = ["rm_full", "rm_clip", "mine_too"]
    assert check_datasets(data, [*names, "rm_full_eval"], "dataset") == [
        Problem(f"dataset {name}", message, level="note") for name in names
    ]


@pytest.mark.parametrize("how", NOT_FOUR)
def test_rows_added_or_taken_out_are_an_error_where_there_are_ranges(data: Path, how: str) -> None:
    file = data / FOLDER / "train.jsonl"
    content, rows = NOT_FOUR[how]
    file.write_bytes(content.encode())
    message = f"{file} has {rows} rows, and 4 when it was written: the entry's ranges do not hold any more"
    hint = f"{AGAIN}, or train on the variant that holds all rows"
    assert check_datasets(data, ["rm_full", "rm_clip", "rm_full_eval", "mine_too"], "dataset") == [
        Problem("dataset rm_full", f"{file} was edited since the conversion: {rows} rows", level="note"),
        Problem("dataset rm_clip", message, hint),
        Problem("dataset mine_too", message, hint),
    ]


def test_an_edited_eval_file_is_told_of_too(data: Path) -> None:
    file = data / FOLDER / "eval.jsonl"
    file.write_text("{}\n{}\n")
    message = f"{file} was edited since the conversion: 2 rows"
    assert check_datasets(data, ["rm_full_eval"], "eval_dataset") == [
        Problem("eval_dataset rm_full_eval", message, level="note")
    ]


@pytest.mark.parametrize(
    "manifest", [None, "[]", '{"name": "x"}', '{"metadata_form": []}', '{"metadata_form": [], "files": {}}']
)
def test_what_nobody_counted_cannot_be_edited(data: Path, manifest: str | None) -> None:
    path = data / FOLDER / "manifest.json"
    path.unlink()
    if manifest is not None:
        path.write_text(manifest)
    (data / FOLDER / "train.jsonl").write_text(LINES[0])
    assert check_datasets(data, ["rm_full", "rm_clip"], "dataset") == []


def test_a_damaged_manifest_is_explained(data: Path) -> None:
    path = data / FOLDER / "manifest.json"
    path.write_text("{")
    message = f"{path}:1:2: not valid JSON: Expecting property name enclosed in double quotes"
    assert check_datasets(data, ["rm_clip", "mine"], "eval_dataset") == [
        Problem("eval_dataset rm_clip", message, AGAIN)
    ]


def test_a_broken_registry_is_explained(data: Path) -> None:
    (data / "dataset_info.json").write_text("[]")
    expected = Problem(
        "dataset", f"{data / 'dataset_info.json'}: is not a JSON object", "each data set is an entry in it, by name"
    )
    assert check_datasets(data, ["a", "b"], "dataset") == [expected]


def test_no_registry_at_all(tmp_path: Path) -> None:
    hint = "convert your data first: trainkit convert finetune.jsonl"
    expected = [Problem("dataset", f"{tmp_path / 'dataset_info.json'}: no such file", hint)]
    assert check_datasets(tmp_path, ["a", "b"], "dataset") == expected
