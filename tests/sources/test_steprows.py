from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainkit.errors import Rejected
from trainkit.sources.steprows import to_example
from trainkit.sources.steps import Trajectory, TrajectoryStep

if TYPE_CHECKING:
    from pathlib import Path


def rollout(messages: object, response: str = "Action: click(3)") -> Trajectory:
    return Trajectory(7, 12, "shop_41", (TrajectoryStep("[]", "-"), TrajectoryStep(json.dumps(messages), response)))


def row_of(messages: object, response: str = "Action: click(3)", counts: Counter[str] | None = None) -> Any:
    line = to_example(rollout(messages, response), 1, counts)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    return json.loads(line)


def said(role: str, *parts: object) -> dict[str, Any]:
    return {"role": role, "content": list(parts)}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def image(url: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


@pytest.fixture
def shots(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "my shots"
    folder.mkdir()
    paths = [folder / name for name in ("1.png", "2 茶.png", "3%20#?.png")]
    for path in paths:
        path.write_bytes(b"image")
    return paths


def test_a_step_with_its_history(shots: list[Path]) -> None:
    messages = [
        {"role": "system", "content": "You are a web agent. <image> is a tag"},
        said("user", text("Task: buy tea. "), image(shots[0].as_uri()), text(" What now?")),
        {"role": "assistant", "content": "Action: scroll()"},
        said("user", image(shots[1].as_uri()), text("Next")),
    ]
    counts: Counter[str] = Counter()
    assert row_of(messages, "Action: click(3)", counts) == {
        "conversations": [
            {"from": "human", "value": "Task: buy tea. <image> What now?"},
            {"from": "gpt", "value": "Action: scroll()"},
            {"from": "human", "value": "<image>Next"},
            {"from": "gpt", "value": "Action: click(3)"},
        ],
        "system": "You are a web agent. < image> is a tag",
        "tools": "",
        "images": [str(shots[0]), str(shots[1])],
        "loss_weight": 1.0,
        "metadata": '{"iteration":7,"trajectory":12,"step":1,"task":"shop_41"}',
    }
    assert counts == {"joined user messages": 0, "marks in text": 1}


def test_user_messages_in_a_row_are_joined(shots: list[Path]) -> None:
    messages = [
        said("system", text("Be "), text("brief")),
        said("user", text("one")),
        said("user", image(str(shots[0]))),
        said("user", text("three")),
    ]
    counts: Counter[str] = Counter({"joined user messages": 5})
    row = row_of(messages, counts=counts)
    assert row["conversations"][0] == {"from": "human", "value": "one\n\n<image>\n\nthree"}
    assert row["system"] == "Be brief"
    assert counts == {"joined user messages": 7, "marks in text": 0}


@pytest.mark.parametrize("form", ["uri", "raw", "localhost", "path", "image", "plain"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_ways_to_name_an_image(shots: list[Path], form: str, number: int) -> None:
    path = shots[number]
    part: dict[str, Any] = {
        "uri": image(path.as_uri()),
        "raw": image(f"file://{path}"),
        "localhost": image(path.as_uri().replace("file://", "file://localhost")),
        "path": image(str(path)),
        "image": {"type": "image", "image": path.as_uri()},
        "plain": {"type": "image_url", "image_url": path.as_uri()},
    }[form]
    assert row_of([said("user", part)])["images"] == [str(path)]


@pytest.mark.parametrize(
    ("words", "value", "number"),
    [
        ("<image><video> <audio>", "< image>< video> < audio>", 3),
        ("<<image>>", "<< image>>", 1),
        ("<Image> <image/> < image> <images>", "<Image> <image/> < image> <images>", 0),
        ("a < b", "a < b", 0),
    ],
)
def test_marks_in_text_are_no_marks(words: str, value: str, number: int) -> None:
    counts: Counter[str] = Counter()
    row = row_of([{"role": "user", "content": words}], words, counts)
    assert [turn["value"] for turn in row["conversations"]] == [value, value]
    assert counts["marks in text"] == 2 * number


def test_a_mark_that_two_parts_make_together() -> None:
    assert row_of([said("user", text("<ima"), text("ge>"))])["conversations"][0]["value"] == "< image>"


USER, ANSWER = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
SYSTEM = {"role": "system", "content": "s"}
NOT_LOCAL = "is not a file of this machine"
REJECTS: list[tuple[list[Any], str, str]] = [
    ([SYSTEM], "wrong order of turns", "turn 1 is gpt, not human"),
    ([ANSWER, USER], "wrong order of turns", "turn 1 is gpt, not human"),
    ([USER, ANSWER], "wrong order of turns", "turn 3 is gpt, not human"),
    ([USER, ANSWER, ANSWER, USER], "wrong order of turns", "turn 3 is gpt, not human"),
    ([USER, SYSTEM], "wrong order of turns", "message 2 is a system message, which can only be the first"),
    ([{"role": "tool", "content": "x"}], "unknown role", "message 1 is of 'tool'"),
    ([{"role": "user", "content": " \n"}], "empty turn", "turn 1 (human) is empty"),
    ([said("user")], "empty turn", "turn 1 (human) is empty"),
    ([said("user", {"type": "video_url"})], "unknown content", "a part of type 'video_url'"),
    ([said("user", {"type": "text"})], "unknown content", "a part of type 'text'"),
    ([said("user", {"type": "image"})], "unknown content", "a part of type 'image' without an address"),
    ([said("user", image(None))], "unknown content", "a part of type 'image_url' without an address"),
    ([said("system", image("/x")), USER], "unknown content", "the system message is more than text"),
    ([{"role": "user", "content": 5}], "prompt not messages",
     "Expected `str | array`, got `int` - at `$[0].content`"),
    ([said("user", image("/gone/1.png"))], "image file", "/gone/1.png: no such file"),
    ([said("user", image("file:///gone/a%20b.png"))], "image file", "/gone/a b.png: no such file"),
    ([said("user", image("/gone\0"))], "image file", "/gone\0: no such file"),
    ([said("user", image("https://a.b/1.png"))], "image file", f"https://a.b/1.png: {NOT_LOCAL}"),
    ([said("user", image("file://server/1.png"))], "image file", f"file://server/1.png: {NOT_LOCAL}"),
    ([said("user", image("shots/1.png"))], "image file", f"shots/1.png: {NOT_LOCAL}"),
    ([said("user", image("data:image/png;base64," + "A" * 500))], "image file",
     f"data:image/png;base64,{'A' * 58}: {NOT_LOCAL}"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "reason", "detail"), REJECTS, ids=lambda value: str(value)[-40:])
def test_a_step_that_is_no_row(messages: list[Any], reason: str, detail: str) -> None:
    counts: Counter[str] = Counter()
    with pytest.raises(Rejected) as caught:
        to_example(rollout(messages), 1, counts)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)
    assert not counts


def test_an_answer_of_nothing() -> None:
    with pytest.raises(Rejected, match=r"turn 2 \(gpt\) is empty"):
        row_of([USER], "\n")


letters = st.characters(exclude_categories=["Cs"])
words = st.lists(letters | st.sampled_from(["<", ">", "image", "<image>", "<video>", "<audio>"])).map("".join)
pieces = st.lists(words.map(text) | st.just("shot"), max_size=5)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(pieces, min_size=1, max_size=5), words.filter(str.strip))
def test_marks_and_images_agree_in_any_row(shots: list[Path], turns: list[list[Any]], response: str) -> None:
    turns = turns[: len(turns) - (len(turns) + 1) % 2]  # the last one is the user's
    messages = [
        said(role, *(image(shots[0].as_uri()) if part == "shot" else part for part in parts), text("."))
        for role, parts in zip(["user", "assistant"] * 3, turns, strict=False)
    ]
    row = row_of(messages, response)
    values = [turn["value"] for turn in row["conversations"]]
    sent = sum(part["type"] == "image_url" for message in messages for part in message["content"])
    assert len(values) == len(turns) + 1
    assert sum(value.count("<image>") for value in values) == len(row["images"]) == sent
    assert not any(mark in value for value in values for mark in ("<video>", "<audio>"))
    assert values[-1] == re.sub("<(image|video|audio)>", r"< \1>", response)
