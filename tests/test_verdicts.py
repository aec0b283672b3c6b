"""Judges' answers, sound and otherwise."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.verdicts import Verdict, read_verdict, scores

SOUND = {"score": 0.9, "why": 'it\'s "so" // # ```'}
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=5)
PIECES = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    '"',
    "'",
    "\\",
    "//",
    "#",
    "\n",
    " ",
    "a",
    "score",
    "1",
    "NaN",
    "```",
    "```json",
    '"a"',
    "'a'",
]


@pytest.mark.parametrize(
    ("text", "value", "repaired"),
    [
        (json.dumps(SOUND), SOUND, ()),
        (f"\n {json.dumps(SOUND, indent=2)}\n", SOUND, ()),
        (f"```json\n{json.dumps(SOUND)}\n```", SOUND, ("fenced block",)),
        (f"```\n{json.dumps(SOUND)}\n```\n", SOUND, ("fenced block",)),
        (f"Here it is:\n```json\n{json.dumps(SOUND)}\n```", SOUND, ("fenced block", "text around it")),
        (f"```json\n{json.dumps(SOUND)}", SOUND, ("text around it",)),
        (f"{json.dumps(SOUND)} I hope this helps.", SOUND, ("text around it",)),
        ('The set {a, b} has it: {"score": 1}', {"score": 1}, ("text around it",)),
        ('{"score": 1} {"score": 2}', {"score": 1}, ("text around it",)),
        ("{'score': 0.5, 'why': 'it\\'s \"so\"'}", {"score": 0.5, "why": "it's \"so\""}, ("single quotes",)),
        (r"""{'why': 'a\nb\\'}""", {"why": "a\nb\\"}, ("single quotes",)),
        ('{"score": [1, 2, ], }', {"score": [1, 2]}, ("trailing comma",)),
        ('{"score": 1, // why\n "b": 2 # {\n}', {"score": 1, "b": 2}, ("comment",)),
        ('{"score": 1, // the last\n}', {"score": 1}, ("comment", "trailing comma")),
        (
            "Sure: {'score': 1,} # done", {"score": 1}, ("single quotes", "text around it", "trailing comma"),
        ),
    ],
)  # fmt: skip
def test_a_verdict_is_read(text: str, value: dict[str, Any], repaired: tuple[str, ...]) -> None:
    assert read_verdict(text) == Verdict(value, repaired)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no JSON object in it"),
        ("I cannot judge this.", "no JSON object in it"),
        ("[1, 2]", "JSON, but not an object"),
        ("0.9", "JSON, but not an object"),
        ('{"score": 0.9', "the JSON object is not closed"),
        ('{"score": "0.9}', "the JSON object is not closed"),
        ("{'score': '0.9}", "the JSON object is not closed"),
        ("{bad} {", "not JSON: Expecting property name enclosed in double quotes"),
        ('{"score": NaN}', "not JSON: NaN is no JSON number"),
        ('{"score": -Infinity}', "not JSON: -Infinity is no JSON number"),
        ('{"score": 1e999}', "not JSON: 1e999 is no JSON number"),
        ('{"a": {"score": 1}, bad}', "not JSON: Expecting property name enclosed in double quotes"),
        ('{"score": 1,,}', "not JSON: Expecting property name enclosed in double quotes"),
        ("{,}", "not JSON: Expecting property name enclosed in double quotes"),
        ('{"a": 1 "b": 2}', "not JSON: Expecting ',' delimiter"),
        ('{"a": "x\ny"}', "not JSON: Invalid control character at"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "not JSON: nested too deeply"),
    ],
)
def test_no_verdict(text: str, problem: str) -> None:
    assert read_verdict(text) == Verdict(None, (), problem)


@given(OBJECTS, st.sampled_from([None, 2]), st.booleans())
def test_valid_objects_come_back_equal(value: dict[str, Any], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read_verdict(text) == Verdict(value)
    assert read_verdict(f"```json\n{text}\n```") == Verdict(value, ("fenced block",))
    assert read_verdict(f"Yes. {text}") == Verdict(value, ("text around it",))


@given(st.dictionaries(st.text(), st.text(), max_size=5))
def test_single_quotes_around_any_text(value: dict[str, str]) -> None:
    verdict = read_verdict(as_single_quoted(value))
    assert verdict.value == value
    assert set(verdict.repaired) <= {"single quotes"}


def as_single_quoted(value: dict[str, str]) -> str:
    def quoted(text: str) -> str:
        return "'" + json.dumps(text)[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"

    return "{" + ", ".join(f"{quoted(key)}: {quoted(inner)}" for key, inner in value.items()) + "}"


@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_it_never_raises(text: str) -> None:
    verdict = read_verdict(text)
    assert (verdict.value is None) == bool(verdict.problem)
    if verdict.value is not None:
        assert all(isinstance(score, float) for score in scores(verdict.value).values())


@pytest.mark.parametrize("piece", [*PIECES, "{a}", "'\\", '"\\', "{'", "{}", "[{", "``` ", "//{", "{'a"])
def test_time_is_linear_in_the_text(piece: str) -> None:
    def seconds(times: int) -> float:
        start = time.process_time()
        read_verdict("{" + piece * times)
        read_verdict(piece * times)
        return time.process_time() - start

    # quadratic time would take minutes; the bound leaves room for slow machines
    assert seconds(50_000) < 5


def test_scores() -> None:
    value = {
        "clip_Score": 1, "why": "so", "steps": 3, "passed": True, "none_score": None, "text_score": "0.9",
        "scores": {"task": 0.5, "detail": {"a": 2}, "flag": False, "nan": float("nan")},
        "parts": [{"score": 0.25}, {"weight": 1}], "score_huge": 10**400,
    }  # fmt: skip
    assert scores(value) == {"clip_Score": 1.0, "scores.task": 0.5, "scores.detail.a": 2.0, "parts.0.score": 0.25}
    assert list(scores({"b_score": 1, "a_score": 2})) == ["b_score", "a_score"]
