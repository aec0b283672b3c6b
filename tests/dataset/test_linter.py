"""What the linter says of a registry, hand-written ones above all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.dataset.jsontext import JsonText
from trainkit.dataset.linter import check_registry
from trainkit.dataset.registry import entry_for
from trainkit.datatypes import Problem

if TYPE_CHECKING:
    from pathlib import Path

ALL_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with files and folders, sound ones and others."""
    (tmp_path / "a.json").write_text("[]")
    for name in ("good", "hollow", "mixed", "deep", "odd", "scripted"):
        (tmp_path / name).mkdir()
    for name in ("good/a.jsonl", "good/b.json", "mixed/a.csv", "mixed/b.json", "odd/a.json", "odd/README.md", "a.yaml"):
        (tmp_path / name).write_text("")
    (tmp_path / "deep" / "inner").mkdir()
    (tmp_path / "deep" / "a.json").write_text("")
    (tmp_path / "scripted" / "scripted.py").write_text("")
    (tmp_path / "loader.py").write_text("")
    return tmp_path


def check(data: Path, text: str, *names: str, stage: str = "") -> list[tuple[str, str, str, str]]:
    """Return the problems as (line and entry, level, message, hint), the data folder written as DATA."""
    (data / "dataset_info.json").write_text(text)
    return [
        (
            problem.where.removeprefix("dataset_info.json:"), problem.level,
            problem.message.replace(str(data), "DATA"), problem.hint.replace(str(data), "DATA"),
        )
        for problem in check_registry(data, names or None, stage)
    ]  # fmt: skip


def check_one(data: Path, entry: Any, stage: str = "") -> list[tuple[str, str, str]]:
    return [found[1:] for found in check(data, json.dumps({"x": entry}), stage=stage)]


@pytest.mark.parametrize(
    "entry",
    [
        {"file_name": "a.json"},
        {"file_name": "good", "split": "train[:10%]+train[20:30]"},
        {"file_name": "a.json", "formatting": "sharegpt", "columns": {"messages": "m"}},
        {"file_name": "a.json", "columns": {"prompt": "q", "response": "a"}, "num_samples": 5},
        {"file_name": "a.json", "ranking": True, "columns": {"prompt": "q", "chosen": "a", "rejected": "b"}},
        {"file_name": "a.json", "formatting": "openai", "tags": ALL_TAGS},
        entry_for("a.json", [(0, 1)]),
    ],
)
def test_a_sound_entry(data: Path, entry: dict[str, Any]) -> None:
    assert check_one(data, entry) == []


def test_a_hand_written_registry_has_its_lines(data: Path) -> None:
    text = """\
{
  "first": {"file_name": "a.json"},
  "mine": {
    "file_name": "a.json",
    "format": "sharegpt",
    "columns": {
      "mesages": "conversations",
      "role_tag": "from", "prompt": "q",
      "query": "q"
    },
    "tags": {"role_tag": "from",
             "role_tag": "role", "user": "human"}
  },
  "first": 5, "user_tag": {"file_name": "a.json", "user_tag": "human", "nonsense": 1}
}
"""
    columns = (
        "prompt, query, response, history, messages, system, tools, images, videos, audios, chosen, rejected, kto_tag"
    )
    keys = (
        "hf_hub_url, ms_hub_url, om_hub_url, script_url, cloud_file_name, file_name, formatting, ranking, subset, "
        "split, folder, num_samples, columns, tags"
    )
    assert check(data, text) == [
        ("2 first", "warning", "is there again further down; this one is not read", "rename or remove it"),
        (
            "5 mine", "error", "unknown key format: it is not read, and the rows are taken for alpaca",
            "did you mean formatting?",
        ),
        ("7 mine", "warning", "unknown key mesages in columns: it is not read", "did you mean messages?"),
        ("8 mine", "warning", "unknown key role_tag in columns: it is not read", "it belongs into tags"),
        ("9 mine", "warning", "columns: prompt and query are both q", ""),
        ("12 mine", "warning", "role_tag is there twice; the last one is read", ""),
        ("12 mine", "warning", "unknown key user in tags: it is not read", "did you mean user_tag?"),
        (
            "6 mine", "error", "there is no response column: the trainer leaves out every row",
            "columns has to name response: each column that it leaves out is None",
        ),
        ("14 first", "error", "is not a JSON object", 'for example {"file_name": "my_set.json"}'),
        ("14 user_tag", "warning", "unknown key user_tag: it is not read", "it belongs into tags"),
        ("14 user_tag", "warning", "unknown key nonsense: it is not read", f"the entry has: {keys}"),
    ]  # fmt: skip
    columns = (
        "prompt, query, response, history, messages, system, tools, images, videos, audios, chosen, rejected, kto_tag"
    )
    assert check_one(data, {"file_name": "a.json", "columns": {"response": "a", "zzz": "b"}}) == [
        ("warning", "unknown key zzz in columns: it is not read", f"columns has: {columns}")
    ]


def test_other_entries_than_the_named_ones_only_warn(data: Path) -> None:
    text = '{"a": {"file_name": "zzz"}, "b": {"file_name": "a.json"}, "c": {"file_name": "aa.json"}}'
    missing = "DATA/{}: no such file or folder"
    near = "did you mean a.json?"
    assert check(data, text, "c", "d") == [
        ("1 a", "warning", missing.format("zzz"), ""),
        ("1 c", "error", missing.format("aa.json"), near),
        ("dataset_info.json d", "error", "there is no such entry", "there are: a, b, c"),
    ]
    assert check(data, "{}", "d")[0][3] == "there are: none"


NO_COLUMN = "columns has to name {0}: each column that it leaves out is None"
NO_TAG = "tags has to name {0}: each tag that it leaves out is None"
STOPS = "there is no {0} column: the trainer stops with KeyError: None"
STAGES = "rm and dpo take entries with ranking: true, and no other stage does"
PAIR = {"prompt": "q", "chosen": "a"}
HUBS = "it needs file_name, or one of hf_hub_url, ms_hub_url, om_hub_url, script_url, cloud_file_name"
SCRIPT = "a loading script, which datasets 4 does not run any more"
TYPES = "arrow, csv, json, jsonl, parquet, txt"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (None, ("error", "is not a JSON object", 'for example {"file_name": "my_set.json"}')),
        ({}, ("error", "names no file: the trainer stops with KeyError: 'file_name'", HUBS)),
        ({"file_name": 5}, ("error", "file_name is not a string: the trainer stops on it", "")),
        (
            {"file_name": "no/a.json"},
            ("error", "DATA/no/a.json: no such file or folder", "the folder DATA/no does not exist"),
        ),
        ({"file_name": "a.yaml"}, ("error", "DATA/a.yaml: not a type that the trainer reads", f"it reads {TYPES}")),
        ({"file_name": "hollow"}, ("error", "DATA/hollow: the folder is empty: the trainer stops on it", "")),
        (
            {"file_name": "mixed"},
            ("error", "DATA/mixed: has files of 2 types: csv, json", "the trainer takes one type at a time"),
        ),
        (
            {"file_name": "deep"},
            ("error", "DATA/deep: has folders in it: inner", "the trainer takes them for files; move them out"),
        ),
        (
            {"file_name": "odd"},
            (
                "error", "DATA/odd: not a type that the trainer reads: README.md",
                f"the trainer reads every file in it; it knows {TYPES}",
            ),
        ),
        (
            {"file_name": "a.json", "subset": "x", "folder": "y"},
            ("warning", "subset and folder: not read for files", "name the files by file_name"),
        ),
        ({"hf_hub_url": "org/a"}, ("note", "hf_hub_url: org/a was not looked at", "")),
        ({"script_url": "good"}, ("note", "DATA/good: a folder of its own form, was not looked at", "")),
        ({"script_url": "goood"}, ("error", "DATA/goood: no such folder", "did you mean good?")),
        (
            {"script_url": "scripted"},
            ("error", f"DATA/scripted: {SCRIPT}", "save its rows as a file"),
        ),
        (
            {"script_url": "loader.py"},
            ("error", f"DATA/loader.py: {SCRIPT}", "save its rows as a file"),
        ),
        ({"columns": 5}, ("error", "columns is not a JSON object: the trainer stops on it", "")),
        ({"tags": None}, ("error", "tags is not a JSON object: the trainer stops on it", "")),
        (
            {"columns": {"response": "a", "prompt": ["q"]}},
            ("error", "columns.prompt is not a string: the trainer stops on it", ""),
        ),
        (
            {"formatting": "shareGPT"},
            ("error", 'formatting is "shareGPT": the trainer stops on it', "it is one of alpaca, sharegpt, openai"),
        ),
        (
            {"formatting": ["a"]},
            ("error", 'formatting is ["a"]: the trainer stops on it', "it is one of alpaca, sharegpt, openai"),
        ),
        ({"Formatting": "alpaca"}, ("warning", "unknown key Formatting: it is not read", "did you mean formatting?")),
        ({"formated": "x"}, ("warning", "unknown key formated: it is not read", "did you mean formatting?")),
        (
            {"formatting": "sharegpt", "columns": {"system": "s"}},
            ("error", STOPS.format("messages"), NO_COLUMN.format("messages")),
        ),
        ({"columns": PAIR, "ranking": True}, ("error", STOPS.format("rejected"), NO_COLUMN.format("rejected"))),
        (
            {"formatting": "openai", "tags": {key: tag for key, tag in ALL_TAGS.items() if key != "role_tag"}},
            ("error", "there is no role_tag: the trainer stops with KeyError: None", NO_TAG.format("role_tag")),
        ),
        (
            {"formatting": "openai", "tags": {key: tag for key, tag in ALL_TAGS.items() if key != "user_tag"}},
            ("error", "there is no user_tag: the trainer leaves out every row that has one", NO_TAG.format("user_tag")),
        ),
        (
            {"ranking": "true"},
            (
                "warning", "ranking is neither true nor false: the trainer does not see which stage it is for",
                "write true or false",
            ),
        ),
        ({"num_samples": 0}, ("error", "num_samples is not a number of rows", "")),
        ({"num_samples": "5"}, ("error", "num_samples is not a number of rows", "")),
        ({"split": None}, ("error", "split is not a string: the trainer stops on it", "")),
        (
            {"split": "train[5]"},
            (
                "error",
                "split: 'train[5]' is not of the form train, train[10:20] or train[:10%]: the trainer stops on it", "",
            ),
        ),
        (
            {"split": "train[:120%]"},
            ("error", "split: 'train[:120%]' goes beyond 100 percent: the trainer stops on it", ""),
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_entry(data: Path, entry: Any, expected: tuple[str, str, str]) -> None:
    sources = ("file_name", "hf_hub_url", "script_url")
    if entry and not any(key in entry for key in sources):
        entry = {"file_name": "a.json"} | entry
    assert check_one(data, entry) == [expected]


@pytest.mark.parametrize(
    ("ranking", "stage", "stops"),
    [
        (True, "sft", True), (False, "dpo", True), (False, "rm", True), (True, "rm", False), (True, "dpo", False),
        (False, "sft", False), (False, "kto", False), (True, "", False), (False, "", False),
    ],
)  # fmt: skip
def test_ranking_goes_with_its_stages(data: Path, ranking: bool, stage: str, stops: bool) -> None:
    message = f"ranking is {str(ranking).lower()}, and the stage is {stage}: the trainer stops on it"
    expected = [("error", message, STAGES)] if stops else []
    assert check_one(data, {"file_name": "a.json", "ranking": ranking}, stage) == expected


def test_a_prompt_is_enough_for_pt(data: Path) -> None:
    entry = {"file_name": "a.json", "columns": {"prompt": "text"}}
    assert check_one(data, entry, "pt") == check_one(data, entry, "ppo") == []
    assert [message for _, message, _ in check_one(data, entry, "sft")] == [
        "there is no response column: the trainer leaves out every row"
    ]


def test_a_hub_comes_before_a_file(data: Path) -> None:
    assert check_one(data, {"file_name": "none.json", "hf_hub_url": "org/a"}) == [
        ("warning", "file_name: not read, as hf_hub_url comes first", "keep one of them"),
        ("note", "hf_hub_url: org/a was not looked at", ""),
    ]


def test_many_names_are_cut_short(data: Path) -> None:
    for number in range(7):
        (data / "odd" / f"{number}.md").write_text("")
    message = "DATA/odd: not a type that the trainer reads: 0.md, 1.md, 2.md, 3.md, 4.md and 3 more"
    assert [found[1] for found in check_one(data, {"file_name": "odd"})] == [message]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{\n "a": }', Problem("dataset_info.json:2:7", "not valid JSON: Expecting value")),
        (b"[]", Problem("dataset_info.json:1", "is not a JSON object", "each data set is an entry in it, by name")),
        (b"\xff", Problem("dataset_info.json", "not UTF-8 at byte 0", "save it as UTF-8")),
        (b"[" * 100_000, Problem("dataset_info.json", "nested too deeply")),
    ],
)
def test_a_registry_that_is_no_json(tmp_path: Path, content: bytes, expected: Problem) -> None:
    (tmp_path / "dataset_info.json").write_bytes(content)
    assert check_registry(tmp_path) == [expected]


def test_no_registry(tmp_path: Path) -> None:
    message = f"{tmp_path / 'dataset_info.json'}: cannot be read: No such file or directory"
    assert check_registry(tmp_path, ["a"]) == [Problem("dataset_info.json", message)]


LEAVES = st.none() | st.integers() | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=5)


@given(OBJECTS, st.sampled_from([None, 0, 3]))
def test_members_are_what_json_reads(value: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    members = JsonText(text).members()
    assert [(member.key, member.value) for member in members] == list(value.items())
    for member in members:
        assert json.dumps(member.key) in text.split("\n")[member.line - 1]
