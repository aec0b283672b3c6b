"""Whether the answers of a data set think, from its first rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.dataset.thoughts import NUM_ROWS, has_thoughts

if TYPE_CHECKING:
    from pathlib import Path

THOUGHT = "<think>\nFirst the price.\n</think>\n\n7 euros"


def talk(answer: str, role: str = "gpt") -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "say <think>x</think>"}, {"from": role, "value": answer}]}


def write_set(folder: Path, name: str, rows: list[Any], **entry: Any) -> None:
    """Write a data set and its entry."""
    (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    registry = folder / "dataset_info.json"
    entries = json.loads(registry.read_text()) if registry.exists() else {}
    entries[name] = {"file_name": f"{name}.jsonl", "formatting": "sharegpt", **entry}
    registry.write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([talk("hi"), talk("ho")], False),
        ([talk("hi"), talk(THOUGHT)], True),
        ([talk("write <think> first")], False),  # no whole block
        ([talk(f'{THOUGHT}[{{"name": "a", "arguments": {{}}}}]', "function_call")], True),
        ([{"other": 1}], None),
        ([{"other": 1}, talk(THOUGHT)], True),
        ([talk("hi")] * NUM_ROWS + [talk(THOUGHT)], False),  # further down is not looked
    ],
)
def test_the_answers_of_the_first_rows(tmp_path: Path, rows: list[Any], expected: bool | None) -> None:
    write_set(tmp_path, "talks", rows)
    assert has_thoughts(tmp_path, ["talks"]) is expected


def test_pairs_and_alpaca(tmp_path: Path) -> None:
    pair = {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": THOUGHT},
        "rejected": {"from": "gpt", "value": "c"},
    }
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    write_set(tmp_path, "pairs", [pair], ranking=True, columns=columns)
    write_set(tmp_path, "alpaca", [{"instruction": "q", "input": "", "output": THOUGHT}], formatting="alpaca")
    assert has_thoughts(tmp_path, ["pairs"]) is True
    assert has_thoughts(tmp_path, ["alpaca"]) is True


def test_several_sets_and_what_cannot_be_looked_at(tmp_path: Path) -> None:
    write_set(tmp_path, "no", [talk("hi")])
    write_set(tmp_path, "yes", [talk(THOUGHT)])
    write_set(tmp_path, "gone", [])
    (tmp_path / "gone.jsonl").unlink()
    write_set(tmp_path, "hub", [], hf_hub_url="owner/set")
    assert has_thoughts(tmp_path, ["no", "yes"]) is True
    assert [has_thoughts(tmp_path, [name]) for name in ("gone", "hub", "unknown")] == [None, None, None]
    assert has_thoughts(tmp_path / "nowhere", ["no"]) is None
    (tmp_path / "dataset_info.json").write_text("[]")
    assert has_thoughts(tmp_path, ["no"]) is None
