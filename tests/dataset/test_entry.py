"""What the trainer makes of an entry of dataset_info.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest

from trainkit.dataset.entry import COLUMNS, TAGS, Entry, entry_of
from trainkit.errors import InputError

NONE = dict.fromkeys((*COLUMNS, *TAGS))
DEFAULT_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
ENTRIES: list[dict[str, Any]] = [
    {"file_name": "a.json"},
    {"file_name": "a.json", "formatting": "sharegpt", "ranking": True, "split": "train[:5]", "num_samples": 3},
    {"file_name": "a.json", "columns": {"messages": "m", "unknown": "x"}},
    {"file_name": "a.json", "columns": {}, "tags": {}},
    {"file_name": "a.json", "tags": {"role_tag": "role", "system_tag": None}},
    {"hf_hub_url": "org/a", "ms_hub_url": "b", "file_name": "c"},
    {"ms_hub_url": "org/a"},
    {"om_hub_url": "org/a", "script_url": "b"},
    {"script_url": "a", "file_name": "b"},
    {"cloud_file_name": "a", "file_name": "b"},
]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (ENTRIES[0], Entry("x", "file", "a.json")),
        (ENTRIES[1], Entry("x", "file", "a.json", "sharegpt", ranking=True, split="train[:5]", num_samples=3)),
        (ENTRIES[2], Entry("x", "file", "a.json", **{**dict.fromkeys(COLUMNS), "messages": "m"})),
        (ENTRIES[3], Entry("x", "file", "a.json", **NONE)),
        (ENTRIES[4], Entry("x", "file", "a.json", **{**dict.fromkeys(TAGS), "role_tag": "role"})),
        (ENTRIES[5], Entry("x", "hf_hub", "org/a")),
    ],
)
def test_defaults_and_what_a_partial_mapping_takes_away(raw: dict[str, Any], expected: Entry) -> None:
    assert entry_of("x", raw) == expected
    assert hash(entry_of("x", raw)) == hash(expected)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (5, "x: is not a JSON object"),
        ({}, "x: names neither file_name, script_url nor a hub"),
        ({"file_name": 5}, "x: file_name: is not a string"),
        ({"file_name": "a", "split": None}, "x: split: is not a string"),
        ({"file_name": "a", "formatting": ["alpaca"]}, "x: formatting: is not a string"),
        ({"file_name": "a", "columns": None}, "x: columns: is not a JSON object"),
        ({"file_name": "a", "tags": {"role_tag": 1}}, "x: tags.role_tag: is not a string"),
        ({"file_name": "a", "num_samples": True}, "x: num_samples: is not a whole number"),
    ],
)
def test_an_entry_on_which_the_trainer_stops(raw: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        entry_of("x", raw)
    assert caught.value.message == message


@pytest.mark.slow
def test_the_trainer_reads_the_same_entries() -> None:
    program = (
        "import dataclasses, json, sys; from llamafactory.data.parser import get_dataset_list; "
        "entries = json.load(sys.stdin); "
        "print(json.dumps([dataclasses.asdict(each) for each in get_dataset_list(list(entries), entries)]))"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "USE_"))}
    asked = json.dumps({str(number): raw for number, raw in enumerate(ENTRIES)})
    done = subprocess.run([sys.executable, "-c", program], input=asked, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    ours = []
    for number, raw in enumerate(ENTRIES):
        found = asdict(entry_of(str(number), raw))
        found |= {"load_from": found.pop("source"), "dataset_name": found.pop("path"), "subset": None, "folder": None}
        found.pop("name")
        ours.append(found)
    assert ours == json.loads(done.stdout.splitlines()[-1])
