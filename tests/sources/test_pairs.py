from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.errors import Rejected
from trainkit.sources.pairs import make_label_example, make_pair_example

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

USER = {"role": "user", "content": "Tea?"}
YES, NO = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}
HUMAN = {"from": "human", "value": "Tea?"}
GPT_YES, GPT_NO = {"from": "gpt", "value": "Yes."}, {"from": "gpt", "value": "No."}
EMPTY = {"system": "", "tools": "", "images": [], "metadata": "{}"}
PAIR = {"conversations": [HUMAN], "chosen": GPT_YES, "rejected": GPT_NO, **EMPTY}
CALL = {"id": "a", "type": "function", "function": {"name": "search", "arguments": '{"q": "tea"}'}}


def convert(make: Callable[..., Any], row: Mapping[str, Any], **options: Any) -> Any:
    example = make(**options)(json.dumps(row).encode())
    assert example is not None
    assert example[4].endswith(b"}\n")
    return json.loads(example[4])


def pair(row: Mapping[str, Any], **options: Any) -> Any:
    return convert(make_pair_example, row, **options)


def label(row: Mapping[str, Any], **options: Any) -> Any:
    return convert(make_label_example, row, **options)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No."},
        {"question": "Tea?", "chosen": "Yes.", "rejected": "No."},
        {"instruction": "Tea?", "input": "", "chosen": "Yes.", "rejected": "No."},
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"prompt": [USER], "chosen": YES, "rejected": "No."},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": "Tea?", "chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": [USER], "chosen": [USER, YES], "rejected": [NO]},
        {"messages": [USER], "chosen": YES, "rejected": NO},
        {"conversations": [HUMAN], "chosen": GPT_YES, "rejected": GPT_NO},
        {"conversations": [HUMAN], "chosen": [GPT_YES], "rejected": "No."},
        {"prompt": "Tea?", "chosen": GPT_YES, "rejected": GPT_NO},
        {"prompt": "Tea?", "chosen": [HUMAN, GPT_YES], "rejected": [HUMAN, GPT_NO]},
        {"messages": [USER | {"content": [{"type": "text", "text": "Tea?"}]}], "chosen": YES, "rejected": NO},
        PAIR,
    ],
)
def test_every_common_form_is_the_same_pair(row: dict[str, Any]) -> None:
    assert pair(row) == PAIR


def test_a_row_with_everything() -> None:
    search = {"name": "search", "description": "Search", "parameters": {"type": "object", "properties": {}}}
    row = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "a", "content": "green"},
        ],
        "tools": [search],
        "chosen": [{"role": "assistant", "content": "Green.", "weight": 1}],
        "rejected": [{"role": "assistant", "content": "One more.", "tool_calls": [CALL], "weight": 0}],
        "score_chosen": 8,
        "metadata": {"task_id": "tea_1"},
    }
    repairs: Counter[str] = Counter()
    example = make_pair_example(repairs=repairs)(json.dumps(row).encode())
    assert example is not None
    call = '{"name":"search","arguments":{"q":"tea"}}'
    assert json.loads(example[4]) == {
        "conversations": [
            HUMAN,
            {"from": "function_call", "value": f"[{call}]"},
            {"from": "observation", "value": "green"},
        ],
        "chosen": {"from": "gpt", "value": "Green."},
        "rejected": {"from": "function_call", "value": f"One more.\n<tool_call>[{call}]</tool_call>"},
        "system": "Be brief.",
        "tools": '[{"name":"search","description":"Search","parameters":{"type":"object","properties":{}}}]',
        "images": [],
        "metadata": '{"message_keys":{"messages[4]":{"weight":1}},"score_chosen":8,"task_id":"tea_1",'
        '"rejected.message_keys":{"messages[4]":{"weight":0}}}',
    }
    assert example[:4] == ("", "", "tea_1", b"tea_1")
    assert repairs == {}


def test_the_turns_before_an_instruction_come_from_its_history() -> None:
    row = {"instruction": "And", "input": "now?", "history": [["Tea?", "Yes."]], "chosen": "Go.", "rejected": "Stop."}
    assert pair(row)["conversations"] == [HUMAN, GPT_YES, {"from": "human", "value": "And\nnow?"}]


def test_repairs_of_the_prompt_count_once() -> None:
    repairs: Counter[str] = Counter()
    row = {"prompt": [USER, USER, YES, USER], "chosen": [YES, YES], "rejected": "a <video>"}
    made = pair(row, repairs=repairs)
    assert made["chosen"]["value"] == "Yes.\n\nYes."
    assert made["rejected"]["value"] == "a < video>"
    assert repairs == {"joined_user_messages": 1, "joined_assistant_messages": 1, "marks_in_text": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Tea?", "chosen": "Yes."}, "no pair"),
        ({"prompt": "Tea?", "chosen": "Yes.", "rejected": ""}, "no pair"),
        ({"prompt": "Tea?", "chosen": "Yes.", "rejected": "  "}, "empty turn"),
        ({"prompt": "Tea?", "chosen": "Yes.", "rejected": "Yes."}, "same answers"),
        ({"chosen": "Yes.", "rejected": "No."}, "no prompt"),
        ({"prompt": "Tea?", "chosen": [USER, YES], "rejected": [USER | {"content": "Now?"}, NO]}, "prompts differ"),
        ({"chosen": [USER, YES], "rejected": [USER | {"content": "Tea"}, NO]}, "prompts differ"),
        ({"chosen": [USER, YES, USER, YES], "rejected": [USER, NO, USER, YES]}, "prompts differ"),
        ({"chosen": [USER, YES, USER, YES], "rejected": [USER, NO]}, "prompts differ"),
        ({"prompt": [USER, USER], "chosen": [USER, YES], "rejected": [USER, NO]}, "prompts differ"),
        ({"prompt": "Tea?", "chosen": [USER, YES, USER], "rejected": [USER, NO]}, "no answer"),
        ({"prompt": "Tea?", "chosen": USER, "rejected": NO}, "no answer"),
        ({"prompt": [USER, YES], "chosen": "Yes.", "rejected": "No."}, "wrong order of turns"),
        ({"prompt": [YES, USER], "chosen": "Yes.", "rejected": "No."}, "wrong order of turns"),
        ({"prompt": {"a": 1}, "chosen": "Yes.", "rejected": "No."}, "wrong type"),
        ({"prompt": ["Tea?"], "chosen": "Yes.", "rejected": "No."}, "wrong type"),
        ({"prompt": [{"text": "Tea?"}], "chosen": {"text": "Yes."}, "rejected": {"text": "No."}}, "no answer"),
        ({"prompt": "Tea?", "chosen": ["Yes."], "rejected": ["No."]}, "wrong type"),
        ({"prompt": "Tea?", "chosen": 3, "rejected": 4}, "wrong type"),
        ({"instruction": "Tea?", "history": ["a"], "chosen": "Yes.", "rejected": "No."}, "wrong type"),
        ({"prompt": "Tea?", "chosen": YES | {"role": "critic"}, "rejected": NO}, "no answer"),
        ({"prompt": [USER | {"from": "x"}], "chosen": YES, "rejected": NO}, "unknown role"),
    ],
)
def test_a_row_that_is_no_pair_is_rejected(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Rejected) as rejected:
        pair(row)
    assert rejected.value.reason == reason


def test_images_are_taken_in_the_prompt_alone(tmp_path: Path) -> None:
    image = tmp_path / "tea.png"
    image.write_bytes(b"")
    row = {"prompt": "<image>Tea?", "chosen": "Yes.", "rejected": "No.", "images": ["tea.png"]}
    made = pair(row, media_dir=tmp_path)
    assert (made["conversations"], made["images"]) == ([{"from": "human", "value": "<image>Tea?"}], [str(image)])
    both = {"chosen": "<image>Yes.", "rejected": "<image>No.", "prompt": "Tea?"}
    with pytest.raises(Rejected, match="images in the prompt only"):
        pair(row | both, media_dir=tmp_path)
    turned = {"prompt": "Tea?", "completion": "<image>", "label": True, "images": ["tea.png"]}
    with pytest.raises(Rejected, match="images in the prompt only"):
        label(turned, media_dir=tmp_path)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Tea?", "completion": "Yes.", "label": True},
        {"prompt": [USER], "completion": [YES], "label": 1},
        {"instruction": "Tea?", "output": "Yes.", "kto_tag": True},
        {"messages": [USER, YES], "label": True},
        {"conversations": [HUMAN, GPT_YES], "kto_tag": True},
        {"messages": [USER], "completion": "Yes.", "label": True},
        {"conversations": [HUMAN, GPT_YES], "kto_tag": True, **EMPTY},
    ],
)
def test_every_common_form_is_the_same_label(row: dict[str, Any]) -> None:
    assert label(row) == {"conversations": [HUMAN, GPT_YES], "kto_tag": True, **EMPTY}


def test_an_unwanted_answer_and_what_else_a_row_has() -> None:
    row = {"messages": [USER, NO], "label": False, "completion": "is not read", "score": 0.1}
    made = label(row)
    assert (made["kto_tag"], made["conversations"]) == (False, [HUMAN, GPT_NO])
    assert made["metadata"] == '{"completion":"is not read","score":0.1}'


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Tea?", "completion": "Yes."}, "no label"),
        ({"prompt": "Tea?", "completion": "Yes.", "label": "true"}, "no label"),
        ({"prompt": "Tea?", "completion": "Yes.", "label": 0.5}, "no label"),
        ({"prompt": "Tea?", "completion": "Yes.", "label": []}, "no label"),
        ({"prompt": "Tea?", "label": True}, "no answer"),
        ({"messages": [USER], "label": True}, "no answer"),
        ({"completion": "Yes.", "label": True}, "no prompt"),
        ({"messages": [{"text": "Tea?"}], "label": True}, "no conversation"),
    ],
)
def test_a_row_without_a_label_is_rejected(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Rejected) as rejected:
        label(row)
    assert rejected.value.reason == reason


def test_rows_are_kept_by_the_facts_of_the_whole_conversation() -> None:
    seen: list[Mapping[str, Any]] = []

    def keep(facts: Mapping[str, Any]) -> bool:
        seen.append(facts)
        return bool(facts["score"] > 0.5)

    line = json.dumps({"prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "score": 0.5, "task": "t"}).encode()
    repairs: Counter[str] = Counter()
    assert make_pair_example(keep=keep, repairs=repairs)(line) is None
    assert seen == [{"score": 0.5, "task": "t", "num_turns": 2, "num_calls": 0, "tools": [], "num_images": 0}]
    example = make_pair_example(group_by="task")(line)
    assert example is not None
    assert example[:4] == ("", "", "t", b"t")
    example = make_pair_example(group_by="absent")(line)
    assert example is not None
    assert example[3] == b"Tea?"


# -- no text vanishes

TEXTS = st.sampled_from(["<image>", "</tool_call>", "\n", '"}', "<think>", ""])
SAID = st.tuples(TEXTS, st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=4)).map("~".join)


@st.composite
def preferences(draw: Callable[[Any], Any]) -> tuple[dict[str, Any], list[str]]:
    """A row with two answers or a label in one of the common forms, and every text in it."""
    texts: list[str] = []

    def text() -> str:
        texts.append(f"{draw(SAID)}#{len(texts)}#")
        return texts[-1]

    role, value, user, model = draw(
        st.sampled_from([("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
    )

    def message(who: str) -> dict[str, str]:
        return {role: who, value: text()}

    asked = [message(who) for who in (user, model, user)[draw(st.sampled_from([0, 2])) :]]
    row: dict[str, Any] = {"note": text(), "system": text(), "metadata": {"inner": {"why": text()}}}
    answers = ["chosen", "rejected"] if draw(st.booleans()) else ["completion"]
    for name in answers:
        shape = draw(st.sampled_from(["text", "message", "list", "whole"]))
        answer = text() if shape == "text" else message(model)
        row[name] = [*asked, answer] if shape == "whole" else [answer] if shape == "list" else answer
    if answers == ["completion"]:
        row["label"] = draw(st.booleans())
    prompts: list[dict[str, Any]] = [{name: asked} for name in ("prompt", "messages", "conversations")]
    if len(asked) == 1:
        prompts += [{name: asked[0][value]} for name in ("prompt", "question", "instruction")]
        prompts.append({"instruction": asked[0][value], "input": text()})
        prompts.append({"instruction": asked[0][value], "history": [[text(), text()]]})
    return row | draw(st.sampled_from(prompts + [{}] * 2)), texts


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings_in(inner)
    elif isinstance(value, str):
        yield value


def attempt(row: dict[str, Any]) -> tuple[Any, str]:
    """Return the training row, or why there is none."""
    try:
        return (label(row) if "label" in row else pair(row)), ""
    except Rejected as rejected:
        return None, rejected.reason


@settings(max_examples=300, deadline=None)
@given(preferences())
def test_a_preference_keeps_every_text_or_is_rejected(case: tuple[dict[str, Any], list[str]]) -> None:
    row, texts = case
    kept = [text for text in texts if text in "\0".join(strings_in(row))]  # a drawn prompt may not be used
    made, reason = attempt(row)
    if made is None:
        assert reason in ("no prompt", "prompts differ")
        assert not any(isinstance(row.get(name), list) for name in ("prompt", "messages", "conversations"))
        return
    made["metadata"] = json.loads(made["metadata"])
    there = "\0".join(strings_in(made))
    assert [text for text in kept if text.replace("<image>", "< image>") not in there and text not in there] == []
    answers = [made["chosen"], made["rejected"]] if "chosen" in made else [made["conversations"][-1]]
    for name, answer in zip(["chosen", "rejected"] if "chosen" in made else ["completion"], answers, strict=True):
        last = list(strings_in(row[name]))[-1]
        assert answer == {"from": "gpt", "value": last.replace("<image>", "< image>")}
