"""Random conversations in every form: each is rejected with a reason, or is a row that the trainer takes, with all of
its texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainkit.dataset.entry import entry_of
from trainkit.dataset.media import MediaRules
from trainkit.dataset.registry import COLUMNS, TAGS
from trainkit.dataset.rows import align
from trainkit.errors import Rejected
from trainkit.sources.conversations import Form, make_to_example, recognise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = Path(__file__).parent / "trainer_conversations.py"
ENTRY = {"file_name": "x.jsonl", "formatting": "sharegpt", "tags": TAGS, "columns": COLUMNS | {"images": "images"}}
IMAGES = MediaRules(image=True, video=True, audio=True)
GLM, LFM = ("chatglm3", "glm4", "glm4v", "glm_ocr", "glmz1"), ("lfm2", "lfm2_vl")

Row = dict[str, Any]

# -- random conversations: what is said, independent of the form; mostly sound, with now and then a step that is not

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5)
ODD = st.sampled_from(
    [
        "<image>",
        "a <video> b",
        "<tool_call>",
        "</tool_call>{",
        "<think>\nx\n</think>\n\n",
        '"}]',
        "\\u003c",
        "{{content}}",
        "\n",
    ]
)
NUMBERS = st.integers(0, 10**30) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none()


class Told:
    """Draws texts that can be found again, and remembers them."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw
        self.texts: list[str] = []

    def text(self) -> str:
        odd = self.draw(ODD) if self.draw(st.integers(0, 9)) == 0 else ""
        text = f"{odd}~{len(self.texts)}{self.draw(WORDS)}~"
        self.texts.append(text)
        return text

    def arguments(self) -> Row:
        return {self.text(): self.draw(NUMBERS), "k": [self.text(), {"n": self.draw(NUMBERS)}]}

    def one_in(self, number: int) -> bool:
        return bool(self.draw(st.integers(1, number)) == number)


def steps_of(told: Told) -> Iterator[tuple[str, Any]]:
    """Yield (user, text), (answer, text), (calls, (text, thought, [arguments]), (results, [text])."""
    for _ in range(told.draw(st.integers(1, 3))):
        yield "user", told.text()
        if told.one_in(8):
            yield "user", told.text()
        while told.one_in(2):
            number = told.draw(st.integers(1, 3))
            beside = told.text() if told.one_in(2) else ""
            thought = told.text() if told.one_in(3) else ""
            yield "calls", (beside, thought, [told.arguments() for _ in range(number)])
            if not told.one_in(12):
                yield "results", [told.text() for _ in range(number - told.one_in(15))]
        if not told.one_in(8):
            yield "answer", told.text()


def openai_messages(steps: list[tuple[str, Any]], told: Told) -> list[Row]:
    messages: list[Row] = []
    for kind, said in steps:
        if kind in ("user", "answer"):
            content = [{"type": "text", "text": said}] if told.one_in(3) else said
            messages.append({"role": "user" if kind == "user" else "assistant", "content": content})
        elif kind == "calls":
            text, thought, calls = said
            listed = [
                {
                    "id": f"c{n}",
                    "function": {"name": "fetch", "arguments": json.dumps(given) if told.one_in(2) else given},
                }
                for n, given in enumerate(calls)
            ]
            thoughts = {"reasoning_content": thought} if thought else {}
            messages.append({"role": "assistant", "content": text or None, "tool_calls": listed, **thoughts})
        else:
            results = [{"role": "tool", "tool_call_id": f"c{n}", "content": text} for n, text in enumerate(said)]
            messages += told.draw(st.permutations(results))
    return messages


def anthropic_messages(steps: list[tuple[str, Any]], told: Told) -> list[Row]:
    messages: list[Row] = []
    for kind, said in steps:
        if kind in ("user", "answer"):
            messages.append({"role": "user" if kind == "user" else "assistant", "content": said})
        elif kind == "calls":
            text, thought, calls = said
            blocks: list[Row] = [{"type": "thinking", "thinking": thought, "signature": "s"}] if thought else []
            blocks += [{"type": "text", "text": text}] if text else []
            blocks += [
                {"type": "tool_use", "id": f"c{n}", "name": "fetch", "input": given} for n, given in enumerate(calls)
            ]
            messages.append({"role": "assistant", "content": told.draw(st.permutations(blocks))})
        else:
            contents = [text if told.one_in(2) else [{"type": "text", "text": text}] for text in said]
            blocks = [{"type": "tool_result", "tool_use_id": f"c{n}", "content": c} for n, c in enumerate(contents)]
            messages.append({"role": "user", "content": told.draw(st.permutations(blocks))})
    return messages


def v1_messages(steps: list[tuple[str, Any]], told: Told) -> list[Row]:
    messages: list[Row] = []
    for kind, said in steps:
        if kind == "results":
            messages += [{"role": "tool", "content": [{"type": "text", "value": text}]} for text in said]
            continue
        text, thought, calls = said if kind == "calls" else (said, "", [])
        parts = [{"type": "reasoning", "value": thought}] if thought else []
        parts += [{"type": "text", "value": text}] if text else []
        parts += [{"type": "tool_call", "value": json.dumps({"name": "fetch", "arguments": given})} for given in calls]
        role = "user" if kind == "user" else "assistant"
        messages.append({"role": role, "content": parts, "loss_weight": float(role == "assistant")})
    return messages


def sharegpt_turns(steps: list[tuple[str, Any]], told: Told) -> list[Row]:
    turns: list[tuple[str, str]] = []
    for kind, said in steps:
        if kind == "results":
            turns += [("observation", text) for text in said]
        elif kind != "calls":
            turns.append(("human" if kind == "user" else "gpt", said))
        else:
            text, thought, calls = said
            found = [json.dumps({"name": "fetch", "arguments": given}) for given in calls]
            turns += [("gpt", text) for text in (thought, text) if text]
            joined = told.one_in(2)
            turns += (
                [("function_call", f"[{','.join(found)}]")] if joined else [("function_call", one) for one in found]
            )
    return [{"from": role, "value": value} for role, value in turns]


MAKERS = {
    "openai": openai_messages, "anthropic": anthropic_messages, "v1": v1_messages, "sharegpt": sharegpt_turns,
}  # fmt: skip


@st.composite
def conversations(draw: Callable[[Any], Any]) -> tuple[str, Row, list[str]]:
    """A form, a row in it, and every text in the row."""
    told = Told(draw)
    form = draw(st.sampled_from(sorted(MAKERS)))
    row: Row = {"conversations" if form == "sharegpt" else "messages": MAKERS[form](list(steps_of(told)), told)}
    if told.one_in(2):
        row["system"] = told.text()
    if told.one_in(2):
        tools = [{"name": "fetch", "description": told.text(), "parameters": {"type": "object", "properties": {}}}]
        row["tools"] = json.dumps(tools) if form in ("sharegpt", "v1") else tools
    if told.one_in(3):
        row |= {"success": True, "note": told.text(), "metadata": {"judge": {"why": told.text()}}}
    return form, row, told.texts


def convert(form: str, row: Row) -> tuple[Row | None, str, Counter[str]]:
    """Return the training row, or why there is none."""
    repairs: Counter[str] = Counter()
    try:
        example = make_to_example(Form(form, ""), repairs=repairs)(json.dumps(row).encode())
    except Rejected as rejected:
        return None, rejected.reason, repairs
    assert example is not None
    return json.loads(example[4]), "", repairs


def plain(text: str) -> str:
    """A text as it is in a row whose marks are made ordinary text."""
    for mark in ("image", "video", "audio"):
        text = text.replace(f"<{mark}>", f"< {mark}>")
    return text


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings_in(inner)
    elif isinstance(value, str):
        yield value
        yield from strings_in_json(value)


def strings_in_json(text: str) -> Iterator[str]:
    """Yield what stands in a string that is JSON text itself: a list of calls, of results, the metadata, the tools."""
    if text.endswith("]</tool_call>"):
        text = text.removesuffix("</tool_call>").partition("<tool_call>")[2]
    if text[:1] in ("[", "{"):
        try:
            yield from strings_in(json.loads(text))
        except ValueError:
            return


def missing_texts(row: Row, texts: list[str]) -> list[str]:
    there = "\0".join(plain(text) for text in strings_in(row))
    return [text for text in texts if plain(text) not in there]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversations())
def test_a_conversation_keeps_every_text_or_is_rejected(case: tuple[str, Row, list[str]]) -> None:
    form, row, texts = case
    made, reason, repairs = convert(form, row)
    if made is None:
        assert reason
        assert repairs == {}
        return
    assert missing_texts(made, texts) == []
    for rules in (MediaRules(), IMAGES):
        aligned = align(json.dumps(made).encode(), entry_of("x", ENTRY), Path(), rules)
        assert len(aligned.turns) == len(made["conversations"])
    again, _, more = convert("sharegpt", made)
    assert again == made
    assert more == {}


@settings(max_examples=100, deadline=None)
@given(conversations())
def test_the_form_is_recognised_from_one_row_or_is_plain(case: tuple[str, Row, list[str]]) -> None:
    form, row, _ = case
    found = recognise([json.dumps(row).encode()]).name
    assert found == form or (found == "openai" and form == "anthropic" and "tool_use" not in json.dumps(row))


@pytest.mark.slow
def test_the_trainer_takes_the_rows_and_writes_every_call_with_its_text() -> None:
    rows: list[Row] = []
    reasons: Counter[str] = Counter()

    @settings(max_examples=400, deadline=None, database=None, derandomize=True)
    @given(conversations())
    def gather(case: tuple[str, Row, list[str]]) -> None:
        made, reason, _ = convert(*case[:2])
        reasons[reason] += 1
        if made is not None:
            rows.append(made)

    gather()
    assert len(rows) > 150
    assert {"call without a result", "call mark in text", "wrong order of turns"} & set(reasons)
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    request = json.dumps({"entry": ENTRY, "rows": rows})
    done = subprocess.run([sys.executable, str(PROGRAM)], input=request, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    roles = {"human": "user", "gpt": "assistant", "observation": "observation", "function_call": "function"}
    for row, theirs in zip(rows, answers, strict=True):
        turns = [[roles[turn["from"]], turn["value"]] for turn in row["conversations"]]
        assert (theirs["turns"], theirs["system"], theirs["tools"]) == (turns, row["system"], row["tools"])
        calls = [value for role, value in turns if role == "function"]
        for value, written in zip(calls, theirs["written"], strict=True):
            check_written(value, written)


def check_written(value: str, written: dict[str, Row]) -> None:
    """Check what every template writes for a turn of calls: the text beside them, then each call with its arguments."""
    marked = value.endswith("</tool_call>")
    text, _, listed = value.removesuffix("</tool_call>").partition("<tool_call>") if marked else ("", "", value)
    calls = json.loads(listed)
    assert len(written) > len(LFM + GLM)
    for template, made in written.items():
        if template in GLM and len(calls) > 1:
            assert made == {"error": "GLM-4 does not support parallel functions."}
        elif template in LFM and text:
            assert made["error"].startswith("Invalid JSON format in function message")
        else:
            before, after = made["text"].split(text, 1) if text else ("", made["text"])
            assert len(before) < 20
            assert after.count("fetch") >= len(calls)
            said = list(strings_in([call["arguments"] for call in calls]))
            assert [
                one for one in said if one not in after and json.dumps(one, ensure_ascii=False)[1:-1] not in after
            ] == []
