from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.dataset.batches import Recipe, convert_records
from trainkit.dataset.select import make_split
from trainkit.datatypes import PartKey
from trainkit.errors import InputError, Rejected
from trainkit.sources.conversations import Form, facts_of, make_to_example, recognise

if TYPE_CHECKING:
    from collections.abc import Mapping

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "glaive_toolcall_en_demo.json"
SEARCH = {"name": "search", "description": "Search", "parameters": {"type": "object", "properties": {"q": {}}}}
ASK = {"role": "user", "content": "Tea?"}


def line_of(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def row_of(form: str, row: Mapping[str, Any], repairs: Counter[str] | None = None, **options: Any) -> Any:
    example = make_to_example(Form(form, ""), repairs=repairs, **options)(line_of(row))
    assert example is not None
    line = example[4]
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    return json.loads(line)


def turns_of(form: str, row: Mapping[str, Any], repairs: Counter[str] | None = None, **options: Any) -> list[Any]:
    return [(turn["from"], turn["value"]) for turn in row_of(form, row, repairs, **options)["conversations"]]


def openai(*messages: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def sharegpt(*turns: tuple[str, object], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **more}


def call(identity: str | None, name: str = "search", arguments: object = '{"q": "tea"}') -> dict[str, Any]:
    found: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return found if identity is None else {"id": identity, **found}


def calls(*found: dict[str, Any], content: object = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(found)}


def result(identity: str | None, content: object) -> dict[str, Any]:
    found = {"role": "tool", "content": content}
    return found if identity is None else found | {"tool_call_id": identity}


def answer(text: str = "Done.") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


# -- whole rows


def test_text_beside_two_parallel_calls_survives_with_both_calls_and_both_results() -> None:
    row = openai(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather and time in Köln?"},
        calls(call("a", "weather", '{"city": "Köln"}'), call("b", "time", {"zone": "CET"}), content="I look both up."),
        result("b", "12:00"),
        result("a", '{"c": 3}'),
        answer("3 °C, noon."),
        tools=[{"type": "function", "function": {"name": "time", "description": "The time"}}],
        success=True,
        metadata={"run": 7},
    )
    repairs: Counter[str] = Counter()
    assert row_of("openai", row, repairs) == {
        "conversations": [
            {"from": "human", "value": "Weather and time in Köln?"},
            {
                "from": "function_call",
                "value": 'I look both up.\n<tool_call>[{"name":"weather","arguments":{"city":"Köln"}},'
                '{"name":"time","arguments":{"zone":"CET"}}]</tool_call>',
            },
            {"from": "observation", "value": '["{\\"c\\": 3}","12:00"]'},
            {"from": "gpt", "value": "3 °C, noon."},
        ],
        "system": "Be brief.",
        "tools": '[{"type":"function","function":{"name":"time","description":"The time",'
        '"parameters":{"type":"object","properties":{}}}}]',
        "images": [],
        "metadata": '{"success":true,"run":7}',
    }
    assert repairs == {"merged_results": 1, "results_put_in_order": 1, "tools_without_parameters": 1}


def test_an_anthropic_row() -> None:
    row = {
        "system": [{"type": "text", "text": "You buy "}, {"type": "text", "text": "tea.", "cache_control": {"a": 1}}],
        "tools": [{"name": "search", "description": "Search", "input_schema": SEARCH["parameters"]}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Find tea."}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Two shops.", "signature": "s1"},
                    {"type": "text", "text": "One moment."},
                    {"type": "tool_use", "id": "t1", "name": "search", "input": {"q": "a<b"}},
                    {"type": "tool_use", "id": "t2", "name": "search", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": "no such shop"},
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "green tea"}]},
                ],
            },
            {"role": "assistant", "content": "Green tea."},
        ],
    }
    assert row_of("anthropic", row) == {
        "conversations": [
            {"from": "human", "value": "Find tea."},
            {
                "from": "function_call",
                "value": "<think>\nTwo shops.\n</think>\n\nOne moment.\n"
                '<tool_call>[{"name":"search","arguments":{"q":"a\\u003cb"}},{"name":"search","arguments":{}}]'
                "</tool_call>",
            },
            {"from": "observation", "value": '["green tea","no such shop"]'},
            {"from": "gpt", "value": "Green tea."},
        ],
        "system": "You buy tea.",
        "tools": '[{"name":"search","description":"Search","parameters":{"type":"object","properties":{"q":{}}}}]',
        "images": [],
        "metadata": '{"message_keys":{"system.content[1]":{"cache_control":{"a":1}},'
        '"messages[1].content[0]":{"signature":"s1"},"messages[2].content[0]":{"is_error":true}}}',
    }


def test_a_v1_row() -> None:
    found = {"name": "search", "arguments": {"q": "tea"}}
    row = {
        "messages": [
            {"role": "system", "content": [{"type": "text", "value": "Be brief."}], "loss_weight": 0.0},
            {"role": "user", "content": [{"type": "text", "value": "Tea?"}], "loss_weight": 0.0},
            {
                "role": "assistant",
                "content": [{"type": "reasoning", "value": "hm"}, {"type": "tool_call", "value": json.dumps(found)}],
                "loss_weight": 1.0,
            },
            {"role": "tool", "content": [{"type": "text", "value": "green"}]},
            {"role": "assistant", "content": [{"type": "text", "value": "Green."}]},
        ],
        "tools": json.dumps([SEARCH]),
        "extra_info": "x",
    }
    weights = {f"messages[{number}]": {"loss_weight": weight} for number, weight in enumerate((0.0, 0.0, 1.0))}
    listed = '[{"name":"search","arguments":{"q":"tea"}}]'
    assert row_of("v1", row) == {
        "conversations": [
            {"from": "human", "value": "Tea?"},
            {"from": "function_call", "value": f"<think>\nhm\n</think>\n\n<tool_call>{listed}</tool_call>"},
            {"from": "observation", "value": "green"},
            {"from": "gpt", "value": "Green."},
        ],
        "system": "Be brief.",
        "tools": json.dumps([SEARCH]),
        "images": [],
        "metadata": json.dumps({"message_keys": weights, "extra_info": "x"}, separators=(",", ":")),
    }


def test_a_sharegpt_row_and_what_comes_out_goes_in_again() -> None:
    row = sharegpt(
        ("system", "Be brief."),
        ("human", "Tea?"),
        ("user", "Now!"),
        ("gpt", "I look."),
        ("function_call", '{"name": "search", "arguments": {"q": "tea"}}'),
        ("tool_call", [{"name": "buy", "parameters": '{"n": 1.50, "big": 12345678901234567890123}'}]),
        ("observation", "green <image>"),
        ("tool", ""),
        ("gpt", "Green."),
        ("gpt", "Or black."),
        ("human", "Thanks"),
        tools=json.dumps([SEARCH]),
        system="You sell.",
        task_id="shop_4",
    )
    repairs: Counter[str] = Counter()
    made = row_of("sharegpt", row, repairs)
    assert made == {
        "conversations": [
            {"from": "human", "value": "Tea?\n\nNow!"},
            {
                "from": "function_call",
                "value": 'I look.\n<tool_call>[{"name":"search","arguments":{"q":"tea"}},'
                '{"name":"buy","arguments":{"n":1.5,"big":12345678901234567890123}}]</tool_call>',
            },
            {"from": "observation", "value": '["green < image>",""]'},
            {"from": "gpt", "value": "Green.\n\nOr black."},
        ],
        "system": "You sell.\n\nBe brief.",
        "tools": json.dumps([SEARCH]),
        "images": [],
        "metadata": '{"dropped_turn":{"from":"human","value":"Thanks"},"task_id":"shop_4"}',
    }
    assert repairs == {
        "joined_system_messages": 1, "joined_user_messages": 1, "merged_text_and_calls": 1, "merged_calls": 1,
        "merged_results": 1, "marks_in_text": 1, "joined_assistant_messages": 1, "trailing_user_dropped": 1,
    }  # fmt: skip
    again: Counter[str] = Counter()
    assert row_of("sharegpt", made, again) == made
    assert again == {}


@pytest.mark.skipif(not REAL.exists(), reason="the real sample lies beside the repository")
def test_the_real_conversations() -> None:
    source = json.loads(REAL.read_bytes())
    lines = [line_of(row) for row in source]
    form = recognise(lines[:20])
    assert form == ("sharegpt", "turns with from and value")
    repairs: Counter[str] = Counter()
    to_example = make_to_example(form, repairs=repairs)
    examples = [to_example(line) for line in lines]
    assert len(examples) == 300
    assert repairs == {}
    for row, example in zip(source, examples, strict=True):
        assert example is not None
        made = json.loads(example[4])
        assert [turn["from"] for turn in made["conversations"]] == [turn["from"] for turn in row["conversations"]]
        for mine, theirs in zip(made["conversations"], row["conversations"], strict=True):
            if mine["from"] == "function_call":
                assert json.loads(mine["value"]) == [json.loads(theirs["value"])]
            else:
                assert mine["value"] == theirs["value"]
        assert made["tools"] == ("" if row["tools"] == "[]" else row["tools"])


# -- how calls, results and thoughts may be given

SHAREGPT_CALLS = [
    ('{"name": "f", "arguments": "{}"}', '[{"name":"f","arguments":{}}]', {}),
    ('[{"name": "f", "arguments": {"a": "<tool_call>"}}]', '[{"name":"f","arguments":{"a":"\\u003ctool_call>"}}]', {}),
    (
        'So:\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>[{"name": "g"}]</tool_call>',
        'So:\n<tool_call>[{"name":"f","arguments":{}},{"name":"g","arguments":{}}]</tool_call>',
        {"empty_arguments": 1},
    ),
    (
        '<tool_call>{"name": "f", "arguments": {}}</tool_call> and so on',
        'and so on\n<tool_call>[{"name":"f","arguments":{}}]</tool_call>',
        {"text_moved_before_calls": 1},
    ),
    (
        '\n<think>\nhm\n</think>\n\n{"name": "f", "arguments": {"k": "◁think▷"}}',
        '<think>\nhm\n</think>\n\n<tool_call>[{"name":"f","arguments":{"k":"\\u25c1think▷"}}]</tool_call>',
        {},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "value", "counted"), SHAREGPT_CALLS, ids=lambda case: str(case)[:30])
def test_calls_as_sharegpt_has_them(given: str, value: str, counted: dict[str, int]) -> None:
    repairs: Counter[str] = Counter()
    row = sharegpt(("human", "?"), ("function_call", given))
    assert turns_of("sharegpt", row, repairs) == [("human", "?"), ("function_call", value)]
    assert repairs == counted


ONE = '[{"name":"search","arguments":{"q":"tea"}}]'
OPENAI_ROUNDS: list[tuple[str, list[dict[str, Any]], list[tuple[str, str]], dict[str, int]]] = [
    (
        "the form before tool_calls",
        [
            {"role": "assistant", "function_call": {"name": "search", "arguments": '{"q": "tea"}'}, "content": None},
            {"role": "function", "name": "search", "content": "green"},
        ],
        [("function_call", ONE), ("observation", "green")],
        {},
    ),
    (
        "calls without the function inside, without ids",
        [
            calls({"name": "search", "arguments": {"q": "tea"}}, call(None), content=""),
            result(None, [{"type": "text", "text": "gr"}, "een"]),
            result("x", None),
        ],
        [("function_call", f"[{ONE[1:-1]},{ONE[1:-1]}]"), ("observation", '["green",""]')],
        {"merged_results": 1},
    ),
    (
        "calls in messages in a row",
        [calls(call("a")), calls(call("b"), content="and"), result("a", "1"), result("b", "2")],
        [
            ("function_call", f"and\n<tool_call>[{ONE[1:-1]},{ONE[1:-1]}]</tool_call>"),
            ("observation", '["1","2"]'),
        ],
        {"merged_calls": 1, "merged_results": 1, "text_moved_before_calls": 1},
    ),
    (
        "a thought beside it, no arguments",
        [{**calls(call("a", "now", "")), "reasoning_content": "hm"}, result("a", "1")],
        [
            ("function_call", '<think>\nhm\n</think>\n\n<tool_call>[{"name":"now","arguments":{}}]</tool_call>'),
            ("observation", "1"),
        ],
        {"empty_arguments": 1},
    ),
    (
        "a round twice with the same ids",
        [calls(call("a")), result("a", "1"), calls(call("a")), result("a", "2")],
        [("function_call", ONE), ("observation", "1"), ("function_call", ONE), ("observation", "2")],
        {},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "made", "counted"), [case[1:] for case in OPENAI_ROUNDS], ids=[
    case[0] for case in OPENAI_ROUNDS
])  # fmt: skip
def test_calls_and_results_as_openai_has_them(
    messages: list[dict[str, Any]], made: list[tuple[str, str]], counted: dict[str, int]
) -> None:
    repairs: Counter[str] = Counter()
    row = openai(ASK, *messages, answer())
    assert turns_of("openai", row, repairs) == [("human", "Tea?"), *made, ("gpt", "Done.")]
    assert repairs == counted


def test_text_between_calls_of_one_message_stands_before_them() -> None:
    blocks = [
        {"type": "text", "text": "First this. "},
        {"type": "tool_use", "id": "a", "name": "f", "input": {}},
        {"type": "text", "text": "Then that."},
        {"type": "tool_use", "id": "b", "name": "g", "input": {}},
    ]
    repairs: Counter[str] = Counter()
    row = openai(ASK, {"role": "assistant", "content": blocks})
    value = 'First this. Then that.\n<tool_call>[{"name":"f","arguments":{}},{"name":"g","arguments":{}}]</tool_call>'
    assert turns_of("anthropic", row, repairs) == [("human", "Tea?"), ("function_call", value)]
    assert repairs == {"text_moved_before_calls": 1}


@pytest.mark.parametrize("observations", [["both"], ["1", "2"]])
def test_one_observation_may_answer_several_calls_where_there_are_no_ids(observations: list[str]) -> None:
    found = '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'
    turns = [("human", "?"), ("function_call", found), *(("observation", text) for text in observations), ("gpt", "!")]
    value = "both" if len(observations) == 1 else '["1","2"]'
    assert turns_of("sharegpt", sharegpt(*turns))[2:] == [("observation", value), ("gpt", "!")]


def test_an_observation_may_follow_calls_that_stand_in_an_answer() -> None:
    turns = [("human", "?"), ("gpt", "<tool_call>look()</tool_call>"), ("observation", "x"), ("gpt", "!")]
    assert turns_of("sharegpt", sharegpt(*turns)) == turns


def test_the_same_system_text_twice_is_one() -> None:
    said = {"role": "system", "content": "Be brief."}
    row = row_of("openai", openai(said, said, {"role": "developer", "content": "Or not."}, ASK, answer()))
    assert row["system"] == "Be brief.\n\nOr not."


def test_a_last_observation_goes_into_the_metadata() -> None:
    repairs: Counter[str] = Counter()
    made = row_of("openai", openai(ASK, calls(call("a")), result("a", "green"), system="Be brief."), repairs)
    assert [turn["from"] for turn in made["conversations"]] == ["human", "function_call"]
    assert made["system"] == "Be brief."
    assert json.loads(made["metadata"]) == {"dropped_turn": {"from": "observation", "value": "green"}}
    assert repairs == {"trailing_observation_dropped": 1}


# -- what cannot be used

BAD: list[tuple[str, object, str, str]] = [
    ("openai", [], "not an object", "the row is list"),
    ("openai", {}, "no conversation", "there is no conversations and no messages"),
    ("openai", {"messages": 5}, "wrong type", "messages: is not a list"),
    ("openai", openai(ASK), "no answer", "there is no answer of the model in it"),
    ("openai", openai(ASK, 5), "wrong type", "messages[1]: is not an object"),  # type: ignore[arg-type]
    ("openai", openai(ASK, {"role": "judge", "content": "x"}), "unknown role", "is of 'judge' (read as openai)"),
    ("openai", openai(ASK, {"role": 5}), "not text", "messages[1].role: is not a string"),
    ("openai", openai(ASK, answer(5)), "not text", "messages[1].content: is not a string"),  # type: ignore[arg-type]
    ("openai", openai(ASK, answer(" ")), "empty turn", "messages[1]: is empty"),
    ("openai", openai({"role": "user"}, answer()), "empty turn", "messages[0]: is empty"),
    ("anthropic", openai(ASK, answer(), {**ASK, "content": []}, answer()), "empty turn", "messages[2]: is empty"),
    ("openai", openai(answer(), ASK), "wrong order of turns", "messages[0]: the model speaks before the user"),
    ("openai", openai(ASK, {"role": "system", "content": "x"}, answer()), "wrong order of turns", "messages[1]: a sy"),
    ("openai", openai(ASK, calls(call("a")), answer()), "call without a result", "messages[2]: the model goes on"),
    ("openai", openai(ASK, calls(call("a")), ASK, answer()), "call without a result", "messages[2]: the user speaks"),
    ("openai", openai(ASK, calls(call("a"), call("b")), result("a", "1"), answer()), "call without a result", "2]: b"),
    ("openai", openai(ASK, calls(call(None), call("b")), result("a", "1")), "call without a result", "1 results of 2"),
    ("openai", openai(ASK, calls(call("a")), result("b", "1")), "result without a call", "messages[2]: b"),
    ("openai", openai(ASK, calls(call("a")), result("a", "1"), result("a", "2")), "result without a call", "[2]: a"),
    ("openai", openai(ASK, calls(call(None)), result("a", "1"), result("b", "2")), "result without a call", "2 resul"),
    ("openai", openai(ASK, calls(call("a"), call("a")), result("a", "1")), "call ids not unique", "messages[2]: a, a"),
    ("openai", openai(ASK, result("a", "1"), answer()), "result without a call", "messages[1]: nothing was called"),
    ("openai", openai(ASK, answer(), result("a", "1"), answer()), "result without a call", "messages[2]: nothing was"),
    ("openai", openai(ASK, calls(call("a")), result("a", "1"), ASK, answer()), "user text after results", "ages[3]"),
    ("openai", openai(ASK, calls(call("a"), content="<tool_call>")), "call mark in text", "messages[1]: <tool_call>"),
    ("openai", openai(ASK, calls(call("a", ""))), "call without a name", "tool_calls[0]: has no name"),
    ("openai", openai(ASK, calls(call("a", arguments="{q"))), "arguments not JSON", "tool_calls[0].arguments: JSON is"),
    ("openai", openai(ASK, calls(call("a", arguments="[1]"))), "arguments not an object", "[0].arguments: is"),
    ("openai", openai(ASK, calls({"type": "custom"})), "unknown content", "a call of type 'custom'"),
    ("openai", openai(ASK, calls(5)), "wrong type", "tool_calls[0]: is not an object"),  # type: ignore[arg-type]
    ("openai", openai(ASK, {"role": "assistant", "tool_calls": {}}), "wrong type", "tool_calls: is not a list"),
    ("openai", openai(ASK, answer([{"type": "tool_use"}])), "unknown content", "'tool_use' in a message of assistant"),  # type: ignore[arg-type]
    ("openai", openai({"role": "user", "content": [{"type": "input_audio"}]}), "unknown content", "'input_audio' in"),
    ("openai", openai(ASK, answer(), videos=["a.mp4"]), "unknown content", "videos: only images can be taken along"),
    ("openai", openai(ASK, answer(), tools="[{"), "tools not JSON", "tools: Input data was truncated"),
    ("openai", openai(ASK, answer(), tools=5), "tools not a list", "tools: is int"),
    ("openai", openai(ASK, answer(), tools=["f"]), "tools not a list", "tools[0]: is not an object"),
    ("openai", openai(ASK, answer(), tools=[{"type": "function"}]), "tool without a name", "tools[0]: has no name"),
    ("openai", openai(ASK, answer(), tools=[{"name": "f", "parameters": 5}]), "tool without parameters", "[0]: its"),
    ("anthropic", openai(ASK, {"role": "tool", "content": "x"}), "unknown role", "is of 'tool' (read as anthropic)"),
    ("anthropic", openai({"role": "user", "content": [{"type": "thinking"}]}), "unknown content", "message of user"),
    ("v1", openai(ASK, answer([{"type": "tool_call", "value": "{"}])), "call not JSON", "content[0]: Input data"),  # type: ignore[arg-type]
    ("sharegpt", openai(ASK, answer()), "unknown role", "conversations[0]: is from None"),
    ("sharegpt", sharegpt(("human", None), ("gpt", "x")), "empty turn", "conversations[0]: is empty"),
    ("sharegpt", sharegpt(("human", ["x"]), ("gpt", "x")), "not text", "conversations[0].value: is not a string"),
    ("sharegpt", sharegpt(("human", "x"), ("function_call", "look()")), "call not JSON", "JSON is malformed"),
    ("sharegpt", sharegpt(("human", "x"), ("function_call", "[]")), "call not JSON", "there is no call in it"),
    ("sharegpt", sharegpt(("human", "x"), ("function_call", "5")), "wrong type", "value: is not an object"),
    ("sharegpt", sharegpt(("human", "x"), ("function_call", "<think>a</think>b")), "call not JSON", "JSON is malf"),
    ("sharegpt", sharegpt(("human", "x"), ("gpt", "y"), system=["x"]), "not text", "system.content: is not a string"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "row", "reason", "detail"), BAD, ids=[f"{case[0]} {case[3][:40]}" for case in BAD])
def test_rows_that_cannot_be_used_are_told_with_their_reason(form: str, row: object, reason: str, detail: str) -> None:
    repairs: Counter[str] = Counter()
    with pytest.raises(Rejected) as caught:
        make_to_example(Form(form, ""), repairs=repairs)(line_of(row))
    assert caught.value.reason == reason
    assert detail in caught.value.detail
    assert repairs == {}


@pytest.mark.parametrize(
    ("line", "reason"), [(b"", "not JSON"), (b'{"messages": [', "not JSON"), (b'"\xff"', "not UTF-8"),
                         (b"[" * 5000 + b"]" * 5000, "not JSON"), (b'{"a": 1e999}', "not JSON")],
)  # fmt: skip
def test_bytes_that_are_no_row(line: bytes, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        make_to_example(Form("openai", ""))(line)
    assert caught.value.reason == reason


# -- images and marks


def shown(*parts: object, **more: Any) -> dict[str, Any]:
    return openai({"role": "user", "content": list(parts)}, answer("A cup <video>."), **more)


@pytest.fixture
def shot(tmp_path: Path) -> Path:
    path = tmp_path / "1.png"
    path.write_bytes(b"image")
    return path


def test_image_parts_become_marks_and_files(shot: Path) -> None:
    text = {"type": "text", "text": "What <ima"}
    for form, part in (
        ("openai", {"type": "image_url", "image_url": {"url": shot.as_uri(), "detail": ""}}),
        ("openai", {"type": "image_url", "image_url": str(shot)}),
        ("openai", {"type": "image", "image": str(shot)}),
        ("anthropic", {"type": "image", "source": {"type": "url", "url": shot.as_uri()}}),
        ("v1", {"type": "image_url", "value": "1.png"}),
    ):
        repairs: Counter[str] = Counter()
        row = shown(text if form != "v1" else {"type": "text", "value": text["text"]}, part, "ge> <audio>")
        made = row_of(form, row, repairs, media_dir=shot.parent)
        assert made["images"] == [str(shot)]
        values = [turn["value"] for turn in made["conversations"]]
        assert values == ["What <ima<image>ge> < audio>", "A cup < video>."]
        assert repairs == {"marks_in_text": 2}


def test_the_image_of_a_result_and_of_a_last_turn(shot: Path) -> None:
    part = {"type": "image_url", "image_url": str(shot)}
    row = openai(ASK, calls(call("a"), call("b")), result("b", "2"), result("a", [part]), answer())
    made = row_of("openai", row)
    assert made["conversations"][2]["value"] == '["<image>","2"]'
    assert made["images"] == [str(shot)]
    made = row_of("openai", openai(ASK, answer(), {"role": "user", "content": [part]}))
    assert made["images"] == []
    dropped = {"from": "human", "value": "<image>", "images": [str(shot)]}
    assert json.loads(made["metadata"]) == {"dropped_turn": dropped}


def test_a_row_with_its_own_list_of_images(shot: Path) -> None:
    row = sharegpt(("human", "<image>Is <video> like <image>?"), ("gpt", "Yes"), images=["1.png", str(shot)])
    made = row_of("sharegpt", row, media_dir=shot.parent)
    assert made["conversations"][0]["value"] == "<image>Is < video> like <image>?"
    assert made["images"] == [str(shot), str(shot)]
    assert made["metadata"] == "{}"


def at(url: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": url}


MARK = {"type": "text", "text": "<image>"}
IMAGE_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    (shown(at({"url": "https://x.org/1.png"})), "image file", "https://x.org/1.png: is not a file of this machine"),
    (shown(at("data:image/png;base64,aa")), "image file", "data:image/png;base64,aa: is not a file of this machine"),
    (shown(at("gone.png")), "image file", "gone.png: is not a file of this machine"),
    (shown(at("/gone.png")), "image file", "/gone.png: no such file"),
    (shown(at(None)), "image file", "messages[0].content[0]: is nothing, not the address of a file"),
    (shown(at({"type": "b64"})), "image file", "messages[0].content[0]: is of type b64, not the address of a file"),
    (shown(MARK, images=["SHOT", "SHOT"]), "image count", "1 of 2 images have no <image> in the texts"),
    (shown(MARK, MARK, images=["SHOT"]), "image count", "more <image> in the texts than the 1 images"),
    (shown(at("SHOT"), images=["SHOT"]), "image count", "there are image parts, and the row has a list of images too"),
    (openai(ASK, system="<image>", images=["SHOT"]), "image in the system message", "system: can only be text"),
    (shown("x", images="SHOT"), "wrong type", "images: is not a list"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "detail"), IMAGE_FAULTS, ids=[case[2][:40] for case in IMAGE_FAULTS])
def test_images_that_cannot_be_taken_along(shot: Path, row: dict[str, Any], reason: str, detail: str) -> None:
    row = json.loads(json.dumps(row).replace("SHOT", str(shot)))
    with pytest.raises(Rejected) as caught:
        row_of("openai", row)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


# -- tools, metadata, facts

EMPTY = '"parameters":{"type":"object","properties":{}}'
TOOLS: list[tuple[object, str, dict[str, int]]] = [
    (None, "", {}),
    ("", "", {}),
    (" [] ", "", {}),
    ("[]", "", {}),
    ({}, "", {}),
    (json.dumps([SEARCH], indent=1), json.dumps([SEARCH], indent=1), {}),
    (json.dumps([{"name": "f"}]), f'[{{"name":"f",{EMPTY}}}]', {"tools_without_parameters": 1}),
    ({"name": "f", "parameters": {}}, f'[{{"name":"f",{EMPTY}}}]', {"tools_without_parameters": 1, "tools_wrapped": 1}),
    (
        [{"name": "f", "input_schema": {"type": "object", "required": []}, "cache_control": 1}],
        '[{"name":"f","parameters":{"type":"object","properties":{},"required":[]},"cache_control":1}]',
        {"tools_without_parameters": 1},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("tools", "text", "counted"), TOOLS, ids=lambda case: str(case)[:30])
def test_tools_are_json_text(tools: object, text: str, counted: dict[str, int]) -> None:
    repairs: Counter[str] = Counter()
    assert row_of("openai", openai(ASK, answer(), tools=tools), repairs)["tools"] == text
    assert repairs == counted


def test_older_functions_are_tools() -> None:
    text = json.dumps([SEARCH], separators=(",", ":"))
    assert row_of("openai", openai(ASK, answer(), functions=[SEARCH]))["tools"] == text
    made = row_of("openai", openai(ASK, answer(), functions=[{"name": "old"}], tools=json.dumps([SEARCH])))
    assert made["tools"] == json.dumps([SEARCH])
    assert json.loads(made["metadata"]) == {"functions": [{"name": "old"}]}


def test_nothing_of_a_row_is_lost_beside_its_conversation() -> None:
    row = openai(
        {**ASK, "name": "ann", "weight": 0},
        answer(),
        source="logs",
        score=None,
        dropped_turn="mine",
        message_keys=1,
        metadata={"source": "judge", "row.message_keys": 2, "score": 0.5},
    )
    assert json.loads(row_of("openai", row)["metadata"]) == {
        "message_keys": {"messages[0]": {"name": "ann", "weight": 0}},
        "source": "logs",
        "dropped_turn": "mine",
        "row.message_keys": 1,
        "metadata.source": "judge",
        "metadata.row.message_keys": 2,
        "score": 0.5,
    }


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        ('{"a": 1}', {"a": 1}), ("{a", {"metadata": "{a"}), ("x", {"metadata": "x"}),
        (None, {}), ([1], {"metadata": [1]}),
    ],
)  # fmt: skip
def test_metadata_may_be_json_text(metadata: object, kept: dict[str, Any]) -> None:
    assert json.loads(row_of("openai", openai(ASK, answer(), metadata=metadata))["metadata"]) == kept


def test_facts_for_filters() -> None:
    row = openai(
        ASK, calls(call("a"), call("b", "buy"), content="Now"), result("a", "1"), result("b", "2"),
        calls(call("c")), result("c", "3"), answer(),
        success=True, metadata={"score": 0.5, "judge": {"model": "m", "all": [1]}, "none": None},
    )  # fmt: skip
    assert facts_of(row_of("openai", row)) == {
        "success": True, "score": 0.5, "judge.model": "m",
        "num_turns": 6, "num_calls": 3, "tools": ["search", "buy"], "num_images": 0,
    }  # fmt: skip


def test_an_example_has_its_task_its_group_and_passes_the_filter() -> None:
    row = openai(ASK, answer(), metadata={"task_id": 7, "site": "shop"})
    to_example = make_to_example(Form("openai", ""))
    example = to_example(line_of(row))
    assert example is not None
    assert example[:4] == ("", "", "7", b"7")
    assert make_to_example(Form("openai", ""), group_by="site")(line_of(row))[3] == b"shop"  # type: ignore[index]
    assert make_to_example(Form("openai", ""), group_by="gone")(line_of(row))[3] == b"Tea?"  # type: ignore[index]
    assert make_to_example(Form("openai", ""), group_by=None)(line_of(row))[3] == example[4].rstrip()  # type: ignore[index]
    repairs: Counter[str] = Counter()
    only_long = make_to_example(Form("openai", ""), keep=lambda facts: facts["num_turns"] > 2, repairs=repairs)
    assert only_long(line_of(openai(ASK, ASK, answer()))) is None
    assert repairs == {}


def test_the_engine_takes_the_function_as_it_does_that_of_evaluations() -> None:
    good, bad = line_of(openai(ASK, answer(), task="shop")), line_of(openai(ASK))
    recipe = Recipe(make_to_example(Form("openai", "")), make_split(0, 1), 20)
    batch = convert_records([(1, good + b"\n"), (2, b"\n"), (3, bad)], recipe, 0)
    assert batch.rejects == [(3, "no answer", "there is no answer of the model in it", bad)]
    assert batch.runs == [(PartKey("train", "", "", "shop"), 1)]
    assert json.loads(batch.texts["train"])["conversations"][1] == {"from": "gpt", "value": "Done."}


# -- which form it is

SAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("sharegpt", sharegpt(("human", "x"), ("gpt", "y"))),
    ("sharegpt", {"messages": [{"from": "human", "value": "x"}]}),
    ("openai", openai(ASK, calls(call("a")))),
    ("openai", {"conversations": [ASK, result("a", "x")]}),
    ("openai", openai({"role": "developer", "content": "x"}, ASK)),
    ("openai", shown({"type": "image_url", "image_url": "x"})),
    ("anthropic", openai(ASK, {"role": "assistant", "content": [{"type": "text"}, {"type": "tool_use"}]})),
    ("anthropic", openai(ASK, answer(), tools=["x", {"name": "f", "input_schema": {}}])),
    ("anthropic", shown({"type": "image", "source": {"type": "url"}})),
    ("v1", openai({"role": "user", "content": [{"type": "text", "value": "x"}]}, ASK)),
]  # fmt: skip
PLAIN = openai(ASK, answer(), tools="[]")


@pytest.mark.parametrize(("form", "row"), SAMPLES, ids=[f"{form} {str(row)[:50]}" for form, row in SAMPLES])
def test_a_form_is_recognised(form: str, row: dict[str, Any]) -> None:
    assert recognise([line_of(row)]).name == form
    assert recognise([b"{", b"5", line_of(row)]).name == form
    if form != "sharegpt":
        assert recognise([line_of(PLAIN), line_of(row)]).name == form


def test_messages_of_text_alone_are_read_as_openai() -> None:
    assert recognise([line_of(PLAIN)]) == ("openai", "messages with role and content that are text alone")


UNKNOWN: list[tuple[list[bytes], str]] = [
    ([], "no conversation in the first 0 rows: the first is no object"),
    ([b"{"], "no conversation in the first 1 rows: the first is not JSON"),
    ([b"{}", b"5"], "no conversation in the first 2 rows: the first has no keys"),
    ([b'{"prompt": 1, "answer": 2}'], "no conversation in the first 1 rows: the first has prompt, answer"),
    ([b'{"messages": [{"a": 1}]}'], "no conversation in the first 1 rows: the first has messages"),
    (
        [line_of(SAMPLES[2][1]), line_of(SAMPLES[6][1])],
        "the rows are of several forms: row 1: messages with tool_calls, tool_call_id or OpenAI's content parts; "
        "row 2: messages with tool_use, tool_result or thinking blocks, or tools with an input_schema",
    ),
    (
        [line_of(PLAIN), line_of(SAMPLES[0][1])],
        "the rows are of several forms: row 1: messages with role and content that are text alone; "
        "row 2: turns with from and value",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), UNKNOWN, ids=[case[1][-30:] for case in UNKNOWN])
def test_a_start_of_no_form_or_several_is_an_error(rows: list[bytes], message: str) -> None:
    with pytest.raises(InputError) as caught:
        recognise(rows)
    assert caught.value.message == message
    assert caught.value.hint
