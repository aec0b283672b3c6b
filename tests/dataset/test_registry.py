from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.dataset.registry import (
    COLUMNS,
    IMAGES,
    check_free,
    entry_for,
    find_eval_name,
    find_files,
    find_manifest,
    is_ours,
    load_registry,
    read_members,
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


def test_an_entry_of_pairs_and_one_of_labels() -> None:
    answers = {"chosen": "chosen", "rejected": "rejected"}
    pairs = entry_for("p-0123abcd/train.jsonl", (), images=True, columns=COLUMNS | IMAGES | answers)
    assert list(pairs) == ["file_name", "formatting", "ranking", "columns", "tags"]
    assert (pairs["ranking"], pairs["columns"]) == (True, COLUMNS | IMAGES | answers)
    labels = entry_for("p-0123abcd/train.jsonl", (), columns=COLUMNS | IMAGES | {"kto_tag": "kto_tag"})
    assert "ranking" not in labels
    assert labels["columns"] == COLUMNS | {"kto_tag": "kto_tag"}


# Each entry as its owner wrote it: indented in their way, with escapes, a name twice, numbers in several forms.
ODD = (
    '"a": {"file_name":"a.json",  "n": 1.0, "m": 1e2, "k": 10000000000000000000000.50}',
    '"b"  :\t{\n      "file_name": "b.json",\n\n      "note": "caf\\u00e9 \\/ \\ud83d\\ude00 任\u2028"\n    }',
    '"\\u0063": [ ]',
    '"d": {"x": 1, "x": 2, "nan": NaN, "big": -Infinity}',
    '"a": {"file_name": "again.json"}',
    '"e": "}, \\"f\\": {"',
)
HUNDRED = [ODD[number % 6].replace('"', f'"{number} ', 1) for number in range(100)]


@pytest.mark.parametrize(
    ("start", "between", "end", "indent"),
    [
        ("{\n    ", ",\n    ", "\n}\n", "    "),
        ("{", ", ", "}", "  "),
        ("{", ",", "}\n\n", "  "),
        ("\n{\r\n\t", " ,\r\n\r\n\t", " \r\n}", "\t"),
        ("\ufeff{ ", "\n, ", "}", "  "),
    ],
)
def test_the_entries_of_others_stay_byte_for_byte(
    tmp_path: Path, start: str, between: str, end: str, indent: str
) -> None:
    path = tmp_path / "dataset_info.json"
    path.write_bytes((start + between.join(HUNDRED) + end).encode())
    before = load_registry(tmp_path)
    for new in (OURS, dict(list(OURS.items())[:1]), OURS):
        replace_entries(tmp_path, "rm", new)
        content = path.read_bytes()
        assert entries_in(content)[:100] == [entry.encode() for entry in HUNDRED]
        assert content.count(b"rm-0123abcd/") == len(new)
        assert str(load_registry(tmp_path)) == str(before | new)  # NaN is not equal to itself
        assert f'\n{indent}"rm_full": {{\n{indent}  "file_name"'.encode() in content
    replace_entries(tmp_path, "rm", {})
    assert entries_in(path.read_bytes()) == [entry.encode() for entry in HUNDRED]


def entries_in(content: bytes) -> list[bytes]:
    return [member.text.strip().encode() for member in read_members(content.decode())]


def test_a_registry_of_ours_alone_is_plain_json(tmp_path: Path) -> None:
    replace_entries(tmp_path, "rm", OURS)
    expected = json.dumps(OURS, indent=2, ensure_ascii=False) + "\n"
    assert (tmp_path / "dataset_info.json").read_text(encoding="utf-8") == expected
    replace_entries(tmp_path, "rm", {})
    assert load_registry(tmp_path) == {}
    replace_entries(tmp_path, "rm", OURS)
    assert (tmp_path / "dataset_info.json").read_text(encoding="utf-8") == expected


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.tuples(st.text(max_size=4), values), max_size=4),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
    st.sampled_from(["", " ", "\n", "\r\n "]),
)
def test_any_object_is_read_member_by_member(
    members: list[tuple[str, Any]], indent: Any, ascii_only: bool, space: str
) -> None:
    texts = [
        f"{json.dumps(name, ensure_ascii=ascii_only)}{space}:{space}"
        f"{json.dumps(value, indent=indent, ensure_ascii=ascii_only)}"
        for name, value in members
    ]
    text = space + "{" + ",".join(space + each + space for each in texts) + space + "}" + space
    assert json.loads(text) == dict(members)
    found = list(read_members(text))
    assert [(member.name, member.value) for member in found] == members
    assert [member.text for member in found] == [space + each for each in texts]


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
