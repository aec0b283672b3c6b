from __future__ import annotations

import random
import sys
from typing import Any

import pytest

from trainkit.dataset.dedup import ExactRepeats, NearRepeats, runs_of
from trainkit.errors import EnvironmentProblem, UsageProblem

ROW: dict[str, Any] = {
    "conversations": [{"from": "human", "value": "Is the café open?"}, {"from": "gpt", "value": "Yes, till 9."}],
    "system": "Be brief.",
    "tools": "",
    "images": [],
    "metadata": '{"run":7}',
}
ANSWERS = {"chosen": {"from": "gpt", "value": "Yes."}, "rejected": {"from": "gpt", "value": "No."}}


def with_turn(number: int, **changes: str) -> dict[str, Any]:
    turns = [dict(turn) for turn in ROW["conversations"]]
    turns[number] |= changes
    return ROW | {"conversations": turns}


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (dict(reversed(ROW.items())), True),
        (ROW | {"metadata": "{}"}, True),
        ({key: value for key, value in ROW.items() if key not in ("images", "tools", "metadata")}, True),
        (with_turn(0, value=" Is the  cafe\u0301\nopen? "), True),
        (with_turn(1, **{"from": "function_call"}), False),
        (with_turn(1, value="yes, till 9."), False),
        (ROW | {"system": ""}, False),
        (ROW | {"tools": "Be brief.", "system": ""}, False),
        (ROW | {"images": ["a.png"]}, False),
        (ROW | ANSWERS, False),
        (ROW | {"kto_tag": True}, False),
    ],
)
def test_rows_are_the_same_when_they_say_the_same(other: dict[str, Any], same: bool) -> None:
    repeats = ExactRepeats()
    assert repeats.is_repeat(ROW) is False
    assert repeats.is_repeat(other) is same
    assert repeats.is_repeat(other) is True


def test_pairs_and_labels_are_told_apart_by_their_answers() -> None:
    repeats = ExactRepeats()
    turned = {"chosen": ANSWERS["rejected"], "rejected": ANSWERS["chosen"]}
    rows = [ROW | ANSWERS, ROW | turned, ROW | {"kto_tag": True}, ROW | {"kto_tag": False}]
    assert [repeats.is_repeat(row) for row in rows * 2] == [False] * 4 + [True] * 4


def test_where_one_text_ends_and_the_next_begins_counts() -> None:
    repeats = ExactRepeats()
    rows: list[dict[str, Any]] = [
        {"conversations": [{"from": "human", "value": one}, {"from": "gpt", "value": other}]}
        for one, other in (("a b", "c"), ("a", "b c"))
    ]
    assert [repeats.is_repeat(row) for row in rows] == [False, False]


def test_runs_of_words_in_any_script() -> None:
    row = {
        "conversations": [{"from": "human", "value": "One, two\nTHREE four!"}, {"from": "gpt", "value": "Five 天气"}]
    }
    runs = ["one two three four five", "two three four five 天", "three four five 天 气"]
    assert [run.decode() for run in runs_of(row)] == runs
    assert runs_of({"conversations": [{"from": "human", "value": "a b c d"}]}) == []
    assert len(runs_of({"conversations": [{"from": "human", "value": "a b c d "}], **ANSWERS})) == 2


@pytest.mark.parametrize("threshold", [0.49, 1.01, float("nan")])
def test_a_similarity_out_of_range_is_told(threshold: float) -> None:
    with pytest.raises(UsageProblem, match=r"must be 0.5 to 1"):
        NearRepeats(threshold)


def test_without_the_library_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(EnvironmentProblem, match="need datasketch"):
        NearRepeats(0.8)


def words(count: int, seed: int) -> list[str]:
    return [f"w{number}" for number in random.Random(seed).choices(range(5000), k=count)]


def row_of(said: list[str]) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "Tell me."}, {"from": "gpt", "value": " ".join(said)}]}


def test_near_repeats_are_found_and_others_stay() -> None:
    pytest.importorskip("datasketch")
    repeats = NearRepeats(0.8)
    texts = [words(300, seed) for seed in range(50)]
    assert [repeats.find_repeat(row_of(text)) for text in texts] == [None] * 50
    # one changed word is in five runs: 297 of 307 are shared (0.97)
    changed = [[*text[:150], "other", *text[151:]] for text in texts]
    assert [repeats.find_repeat(row_of(text)) for text in changed] == list(range(50))
    # half of the text is shared: a similarity of about 0.33
    halves = [text[:150] + words(150, 1000 + seed) for seed, text in enumerate(texts)]
    assert [repeats.find_repeat(row_of(text)) for text in halves] == [None] * 50
    assert repeats.find_repeat(row_of(halves[7])) == 57


def test_short_rows_are_never_near_repeats() -> None:
    pytest.importorskip("datasketch")
    repeats = NearRepeats(0.5)
    assert [repeats.find_repeat(row_of(["a"])) for _ in range(3)] == [None, None, None]
    assert repeats.find_repeat(row_of(words(50, 1))) is None
    assert repeats.find_repeat(row_of(words(50, 1))) == 3
