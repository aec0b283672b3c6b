from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trainkit.errors import Rejected, UsageProblem
from trainkit.sources.evaluations import make_to_example, metadata_prefix, parse_form

ALL = ("type", "model", "task", "category")
ASK, REPLY = {"from": "human", "value": "Judge this."}, {"from": "gpt", "value": '{"score": 0.9}'}

# Whatever JSON can hold. Lone surrogates are not text: they are refused, see below.
texts = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\\u2028\u2029\x00\x1f\x7f\n😀任'), min_size=1
)
spoken = texts.filter(lambda text: text.strip(" \n\r\t") != "")
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(-1e300, 1e300) | texts | st.just("")
trees = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=6)
known = st.dictionaries(st.sampled_from(["evaluation_type", "model_name", "task_id", "category"]), scalars)
metadatas = st.none() | st.builds(lambda free, fixed: free | fixed, st.dictionaries(texts, trees, max_size=4), known)


def line_of(record: object, *, ascii_only: bool = False) -> bytes:
    return json.dumps(record, ensure_ascii=ascii_only).encode() + b"\n"


def example(record: object, form: tuple[str, ...] = (), group_by: str | None = "task_id") -> Any:
    return make_to_example(form, {}, group_by, {})(line_of(record))


def row_of(record: object, form: tuple[str, ...] = ()) -> Any:
    return json.loads(example(record, form)[4])


def words_of(value: object) -> str:
    """How a metadata value is written into names and prompts."""
    return "true" if value is True else "false" if value is False else str(value)


def expected_prefix(metadata: dict[str, Any] | None, form: tuple[str, ...]) -> str:
    names = {"type": "evaluation_type", "model": "model_name", "task": "task_id", "category": "category"}
    heads = {"type": "EVAL_TYPE", "model": "MODEL", "task": "TASK", "category": "CATEGORY"}
    found = [(heads[word], (metadata or {}).get(names[word])) for word in ALL if word in form]
    return "".join(f"[{head}: {words_of(value)}] " for head, value in found if value is not None and value != "")


@settings(deadline=None)
@given(
    st.lists(st.tuples(spoken, spoken), min_size=1, max_size=3),
    st.none() | spoken,
    st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    metadatas,
    st.sets(st.sampled_from(ALL)),
    st.booleans(),
)
def test_the_trainer_sees_the_source_with_the_prefix(
    pairs: list[tuple[str, str]],
    system_turn: str | None,
    tools: str | None,
    metadata: dict[str, Any] | None,
    words: set[str],
    ascii_only: bool,
) -> None:
    turns = [{"from": "system", "value": system_turn}] if system_turn else []
    for asked, answered in pairs:
        turns += [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]
    record: dict[str, Any] = {"conversations": turns, "metadata": metadata}
    if tools is not None:
        record["tools"] = tools
    form = tuple(word for word in ALL if word in words)
    kind, judge, task, _, raw = make_to_example(form, {}, "task_id", {})(line_of(record, ascii_only=ascii_only))
    assert raw.count(b"\n") == 1
    assert raw.endswith(b"\n")
    row = json.loads(raw)
    first = 1 if system_turn else 0
    expected = [dict(turn) for turn in turns]
    expected[first]["value"] = expected_prefix(metadata, form) + expected[first]["value"]
    assert row == {
        "conversations": expected,
        "system": "",
        "tools": tools or "",
        "metadata": row["metadata"],
    }
    assert json.loads(row["metadata"]) == (metadata or {})
    assert isinstance(row["metadata"], str)
    keys = [(metadata or {}).get(key) for key in ("evaluation_type", "model_name", "task_id")]
    for value, seen in zip(keys, (kind, judge, task), strict=True):
        if not isinstance(value, float):
            assert seen == ("" if value is None else words_of(value))


def test_equal_values_of_other_types_keep_their_own_prefix() -> None:
    to_example = make_to_example(("category",), {}, "task_id", {})
    prompts = []
    for value in (1, True, 1.0, 0, False, "1"):
        done = to_example(line_of({"conversations": [ASK, REPLY], "metadata": {"category": value}}))
        assert done is not None
        prompts.append(json.loads(done[4])["conversations"][0]["value"].removesuffix("Judge this."))
    assert prompts == [f"[CATEGORY: {word}] " for word in ("1", "true", "1.0", "0", "false", "1")]


def test_a_system_text_and_tools_beside_the_turns() -> None:
    call, seen = {"from": "function_call", "value": '{"name": "f"}'}, {"from": "observation", "value": "[1]"}
    record = {"conversations": [ASK, call, seen, REPLY], "system": "Be fair. \u2028", "tools": '[{"name": "f"}]'}
    assert row_of(record, ("type",)) == record | {"metadata": "{}"}
    for metadata in ({}, None):
        assert row_of({"conversations": [ASK, REPLY], "metadata": metadata})["metadata"] == "{}"
    assert row_of({"conversations": [ASK, REPLY], "system": None, "tools": None})["system"] == ""


def test_only_the_first_prompt_carries_the_prefix() -> None:
    record = {
        "conversations": [{"from": "system", "value": "s"}, ASK, REPLY, ASK, REPLY],
        "metadata": {"evaluation_type": "clip", "model_name": "j", "task_id": "t", "category": "c"},
    }
    said = [turn["value"] for turn in row_of(record, ALL)["conversations"]]
    prompt = "[EVAL_TYPE: clip] [MODEL: j] [TASK: t] [CATEGORY: c] Judge this."
    assert said == ["s", prompt, '{"score": 0.9}', "Judge this.", '{"score": 0.9}']


def turns(*roles: str) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": "x"} for role in roles]}


def two(asked: object, answered: object = "x") -> bytes:
    return line_of({"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]})


def with_metadata(raw: bytes) -> bytes:
    return line_of({"conversations": [ASK, REPLY]})[:-2] + b', "metadata": ' + raw + b"}"


REJECTS: list[tuple[bytes, str, str]] = [
    (b"{", "not JSON", "Input data was truncated"),
    (b"word\n", "not JSON", "JSON is malformed: invalid character (byte 0)"),
    (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON", "nested too deeply"),
    (b'{"x": "\xff"}', "not UTF-8", "byte 7: invalid start byte"),
    (b'{"x": "\xed\xa0\x80"}', "not UTF-8", "byte 7: invalid continuation byte"),
    (b"[]", "not an object", "Expected `object`, got `array`"),
    (b"5", "not an object", "Expected `object`, got `int`"),
    (b"null", "not an object", "Expected `object`, got `null`"),
    (b"{}", "no conversations", "Object missing required field `conversations`"),
    (b'{"conversations": null}', "no conversations", "Expected `array`, got `null` - at `$.conversations`"),
    (b'{"conversations": []}', "no answer", "0 turns: a prompt and an answer are needed"),
    (line_of(turns("human")), "no answer", "1 turns: a prompt and an answer are needed"),
    (line_of(turns("system", "human")), "no answer", "2 turns: a prompt and an answer are needed"),
    (line_of(turns("user", "gpt")), "unknown role", "Invalid enum value 'user' - at `$.conversations[0].from`"),
    (line_of(turns("gpt", "human")), "wrong order of turns", "turn 1 is gpt, not human or observation"),
    (line_of(turns("human", "human")), "wrong order of turns", "turn 2 is human, not gpt or function_call"),
    (line_of(turns("human", "gpt", "human")), "wrong order of turns", "the last turn is not an answer"),
    (line_of(turns("observation", "gpt")), "wrong order of turns", "turn 1 is observation, not human"),
    (line_of(turns("human", "gpt", "system")), "wrong order of turns", "turn 3 is system, not human or observation"),
    (line_of(turns("system", "system", "human", "gpt")), "wrong order of turns",
     "turn 2 is system, not human or observation"),
    (two(""), "empty turn", "turn 1 (human) is empty"),
    (two(" \n\t\r "), "empty turn", "turn 1 (human) is empty"),
    (two("x", ""), "empty turn", "turn 2 (gpt) is empty"),
    (two("x", None), "not text", "turn 2 (gpt): the value is not a string"),
    (two(5), "not text", "turn 1 (human): the value is not a string"),
    (two("x", {"score": 1}), "not text", "turn 2 (gpt): the value is not a string"),
    (two("x", ["a"]), "not text", "turn 2 (gpt): the value is not a string"),
    (line_of({"conversations": [ASK, {"from": "gpt"}]}), "wrong type",
     "Object missing required field `value` - at `$.conversations[1]`"),
    (line_of({"conversations": [ASK, REPLY], "tools": []}), "wrong type",
     "Expected `str | null`, got `array` - at `$.tools`"),
    (with_metadata(b"[]"), "wrong type", "metadata: Expected `object | null`, got `array`"),
    (with_metadata(b'{"task_id": {}}'), "wrong type",
     "metadata: Expected `bool | int | float | str | null`, got `object` - at `$.task_id`"),
    # without a task the group is looked up in the whole of the metadata
    (with_metadata(b'{"x": 1e999}'), "wrong type", "metadata: Number out of range - at `$[...]`"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "reason", "detail"), REJECTS, ids=lambda value: str(value)[:40])
def test_a_row_that_cannot_be_trained_on(line: bytes, reason: str, detail: str) -> None:
    with pytest.raises(Rejected) as caught:
        make_to_example(("type",), {}, "source", {})(line)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


@pytest.mark.parametrize("text", [rb"a\x", rb"\u12", rb"a\ud800", rb"\udc00\ud800", b"a\x01", b"a\tb", rb"\q"])
@pytest.mark.parametrize("place", ["prompt", "metadata"])
def test_a_string_that_is_not_json_never_reaches_the_trainer(text: bytes, place: str) -> None:
    line = two("MARK").replace(b"MARK", text) if place == "prompt" else with_metadata(b'{"x": "%s"}' % text)
    with pytest.raises(Rejected, match=r"malformed|truncated|hex escape") as caught:
        make_to_example((), {}, "task_id", {})(line)
    assert caught.value.reason == "not JSON"


@settings(deadline=None)
@given(st.binary(max_size=60) | st.builds(lambda tree: json.dumps(tree).encode("utf-8", "replace"), trees))
def test_any_bytes_are_taken_or_rejected(line: bytes) -> None:
    for group_by in ("task_id", "x", None):
        try:
            done = make_to_example(ALL, {"x": frozenset("1")}, group_by, {"x": set()})(line)
        except Rejected:
            continue
        assert done is None


@settings(deadline=None)
@given(metadatas, st.sampled_from(["task_id", "category", "source", "任"]))
def test_rows_of_a_group_share_it(metadata: dict[str, Any] | None, group_by: str) -> None:
    value = (metadata or {}).get(group_by)
    assume(not isinstance(value, float))
    other = {"from": "human", "value": "Another prompt"}
    one, two = (
        example({"conversations": [ask, REPLY], "metadata": metadata}, group_by=group_by)[3] for ask in (ASK, other)
    )
    if value in (None, ""):
        assert (one, two) == (b'"Judge this."', b'"Another prompt"')
    else:
        assert one == two == words_of(value).encode("utf-8")


def test_without_a_group_each_row_is_its_own() -> None:
    metadata = {"task_id": "t"}
    replies = [{"from": "gpt", "value": text} for text in "ab"]
    rows = [example({"conversations": [ASK, reply], "metadata": metadata}, group_by=None)[3] for reply in replies]
    assert rows == [b'"Judge this."\0"a"', b'"Judge this."\0"b"']


def test_filters_hold_together_and_note_what_there_is() -> None:
    seen: dict[str, set[str]] = {"task_id": set(), "provider": set()}
    filters = {"task_id": frozenset({"1", "2"}), "provider": frozenset({"true"})}
    to_example = make_to_example((), filters, "task_id", seen)
    rows = [(1, True), ("2", "true"), (3, True), (1, False), (1, None), (None, [1])]
    kept = [
        to_example(line_of({"conversations": [ASK, REPLY], "metadata": {"task_id": task, "provider": provider}}))
        for task, provider in rows
    ]
    assert [row is not None for row in kept] == [True, True, False, False, False, False]
    assert seen == {"task_id": {"1", "2", "3", ""}, "provider": {"true", "false", "", "[1]"}}
    assert to_example(line_of({"conversations": [ASK, REPLY]})) is None


def test_the_values_met_are_held_up_to_a_limit() -> None:
    seen: dict[str, set[str]] = {"task_id": set()}
    to_example = make_to_example((), {"task_id": frozenset({"1999"})}, None, seen)
    for task in range(2000):
        to_example(line_of({"conversations": [ASK, REPLY], "metadata": {"task_id": task}}))
    assert seen["task_id"] == {*map(str, range(1000)), "1999"}


@pytest.mark.parametrize(
    ("words", "form"),
    [
        ("type,category", ("type", "category")),
        ("category, type", ("type", "category")),
        ("all", ALL),
        ("none", ()),
        ("", ()),
        ("task", ("task",)),
        ("model,model,", ("model",)),
    ],
)
def test_forms(words: str, form: tuple[str, ...]) -> None:
    assert parse_form(words) == form


@pytest.mark.parametrize(("words", "unknown"), [("judge", "judge"), ("type,b,a", "a, b"), ("Type", "Type")])
def test_an_unknown_form_is_refused(words: str, unknown: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_form(words)
    assert caught.value.message == f"--metadata: {unknown} cannot be put into the prompt"
    assert caught.value.hint == "choose from type, model, task, category, or all, or none"


def test_the_prefix() -> None:
    values = {"type": "clip", "model": "", "task": 7, "category": None}
    assert metadata_prefix(ALL, values) == "[EVAL_TYPE: clip] [TASK: 7] "
    assert metadata_prefix((), values) == metadata_prefix(ALL, {}) == ""
