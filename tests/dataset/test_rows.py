"""Rows as the trainer aligns them, and the words in which a row is refused; test_rows_agreement.py asks the trainer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.dataset import media
from trainkit.dataset.chatform import ChatForm, Slots
from trainkit.dataset.columns import check_columns, needed_columns
from trainkit.dataset.entry import Entry, entry_of
from trainkit.dataset.reader import plan_rows
from trainkit.dataset.registry import entry_for
from trainkit.dataset.rows import FATAL, SKIPPED, MediaRules, align
from trainkit.dataset.usual import usual_reader
from trainkit.datatypes import Conversation, Problem, Turn
from trainkit.errors import Rejected

HERE = Path("no such folder")
IMAGES = MediaRules(image=True)
SHAREGPT = entry_of("x", {"file_name": "a.json", "formatting": "sharegpt"})
WITH_TOOLS = entry_of("x", entry_for("a.json", ()))
COLUMNS = {"messages": "conversations", "images": "images", "videos": "videos"}
WITH_IMAGES = entry_of("x", {"file_name": "a.json", "formatting": "sharegpt", "columns": COLUMNS})
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function",
    "system_tag": "system",
}
OPENAI = entry_of(
    "x",
    {
        "file_name": "a.json",
        "formatting": "openai",
        "tags": OPENAI_TAGS,
        "columns": {"messages": "messages", "tools": "tools"},
    },
)
ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
ALPACA = entry_of("x", {"file_name": "a.json", "columns": ALPACA_COLUMNS})
PLAIN = entry_of("x", {"file_name": "a.json"})
PAIRS: dict[str, Any] = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
RANKING = entry_of("x", {"file_name": "a.json", "formatting": "sharegpt", "ranking": True, "columns": PAIRS})
KTO_COLUMNS = {"messages": "conversations", "kto_tag": "label"}
KTO = entry_of("x", {"file_name": "a.json", "formatting": "sharegpt", "columns": KTO_COLUMNS})
ALPACA_KTO_COLUMNS = {"prompt": "instruction", "response": "output", "kto_tag": "label"}
ALPACA_KTO = entry_of("x", {"file_name": "a.json", "columns": ALPACA_KTO_COLUMNS})
ALPACA_PAIR_COLUMNS = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
ALPACA_PAIR = entry_of("x", {"file_name": "a.json", "ranking": True, "columns": ALPACA_PAIR_COLUMNS})
CALL = '{"name": "f", "arguments": {}}'
YES_TOO, OFF = ("assistant", "Yes"), "detailed thinking off"
HI, YES = ("human", "Hi"), ("gpt", "Yes")


def says(*turns: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **more}


def chat(*turns: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


def talk(*turns: tuple[str, str], system: str = "", tools: str = "") -> Conversation:
    return Conversation(tuple(Turn(*turn) for turn in turns), system, tools)


@pytest.mark.parametrize(
    ("entry", "row", "expected"),
    [
        (SHAREGPT, says(HI, YES), talk(("user", "Hi"), ("assistant", "Yes"))),
        (
            SHAREGPT,
            says(("system", "Be brief."), HI, ("function_call", CALL), ("observation", "5"), YES, weight=2),
            talk(("user", "Hi"), ("function", CALL), ("observation", "5"), ("assistant", "Yes"), system="Be brief."),
        ),
        (
            WITH_TOOLS,
            says(HI, YES, system="S", tools="[]"),
            talk(("user", "Hi"), ("assistant", "Yes"), system="S", tools="[]"),
        ),
        (WITH_TOOLS, says(HI, YES, system=None, tools=[]), talk(("user", "Hi"), ("assistant", "Yes"))),
        (
            WITH_TOOLS,
            says(("system", "T"), HI, YES, system="S"),
            talk(("user", "Hi"), ("assistant", "Yes"), system="T"),
        ),
        (
            OPENAI,
            chat(("user", "Hi"), ("assistant", "Yes")),
            talk(("user", "Hi"), ("assistant", "Yes"), system="detailed thinking off"),
        ),
        (
            OPENAI,
            {
                "messages": [
                    {"role": "system", "content": "S"},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "overwritten", "tool_calls": [{"function": {"name": "f"}}]},
                    {"role": "tool", "content": "1"},
                    {"role": "tool", "content": "2"},
                    {"role": "assistant", "content": "Yes"},
                    {"role": "tool", "content": "dropped"},
                ],
                "tools": [{"name": "f"}],
            },
            talk(
                ("user", "Hi"),
                ("function", '[{"name": "f", "arguments": null}]'),
                ("observation", "1\n</tool_response>\n<tool_response>\n2"),
                ("assistant", "Yes"),
                system="S\n",
                tools='[{"name": "f"}]',
            ),
        ),
        (OPENAI, chat(("system", "S"), ("user", "Hi"), YES_TOO), talk(("user", "Hi"), YES_TOO, system=f"S\n{OFF}")),
        (OPENAI, chat(("system", OFF), ("user", "Hi"), YES_TOO), talk(("user", "Hi"), YES_TOO, system=OFF)),
        (WITH_TOOLS, says(HI, YES, tools="{}"), talk(("user", "Hi"), ("assistant", "Yes"), tools="{}")),
        (PLAIN, {"instruction": "A", "input": "B", "output": "C"}, talk(("user", "A\nB"), ("assistant", "C"))),
        (
            ALPACA,
            {"instruction": None, "input": "B", "output": "", "history": [["a", "b"]]},
            talk(("user", "a"), ("assistant", "b"), ("user", "B"), ("assistant", "")),
        ),
        (
            RANKING,
            says(HI, chosen={"from": "gpt", "value": "Yes"}, rejected={"from": "gpt", "value": "No"}),
            talk(("user", "Hi"), ("assistant", "Yes")),
        ),
        (ALPACA_PAIR, {"instruction": "A", "chosen": "C", "rejected": "D"}, talk(("user", "A"), ("assistant", "C"))),
    ],
)
def test_a_row_as_the_trainer_aligns_it(entry: Entry, row: dict[str, Any], expected: Conversation) -> None:
    assert align(json.dumps(row).encode(), entry, HERE) == expected
    assert align(row, entry, HERE) == expected


@pytest.mark.parametrize(
    ("stage", "entry", "row", "expected"),
    [
        ("kto", KTO, says(HI, YES, label=True), talk(("user", "Hi"), ("assistant", "Yes"))),
        ("kto", KTO, says(HI, YES, label=False), talk(("user", "Hi"), ("assistant", "Yes"))),
        (
            "kto",
            ALPACA_KTO,
            {"instruction": "A", "output": "C", "label": False},
            talk(("user", "A"), ("assistant", "C")),
        ),
        ("ppo", SHAREGPT, says(HI, YES), talk(("user", "Hi"), ("assistant", "Yes"))),
        ("ppo", PLAIN, {"instruction": "A", "input": "", "output": None}, talk(("user", "A"), ("assistant", ""))),
        ("pt", PLAIN, {"instruction": "A"}, talk(("user", "A"))),
        ("pt", SHAREGPT, says(("observation", "O"), YES, HI, YES), talk(("observation", "O"))),
    ],
)
def test_what_other_stages_take_of_a_row(stage: str, entry: Entry, row: dict[str, Any], expected: Conversation) -> None:
    assert align(json.dumps(row).encode(), entry, HERE, stage=stage) == expected


TAGS = "human, gpt, observation, function_call, system"


@pytest.mark.parametrize(
    ("entry", "row", "reason", "detail"),
    [
        (SHAREGPT, says(("bot", "Hi"), YES), "role not in tags", f"turn 1 (bot): its role is none of {TAGS}"),
        (SHAREGPT, says(HI, HI), "wrong alternation", "turn 2 (human) stands where gpt or function_call belongs"),
        (
            SHAREGPT,
            says(("system", "S"), HI, YES, ("system", "S"), YES),
            "wrong alternation",
            "turn 4 (system) stands where human or observation belongs",
        ),
        (SHAREGPT, says(HI, YES, HI), "odd count", "3 turns: the last one has no answer"),
        (SHAREGPT, says(("system", "S")), "no turns", "there are no turns"),
        (
            OPENAI,
            chat(("user", "a"), ("user", "b")),
            "wrong alternation",
            "turn 2 (user) is user where assistant or function belongs",
        ),
        (
            OPENAI,
            chat(("user", "a"), ("tool", "b")),
            "odd count",
            "1 turns, with tool results joined: the last one has no answer",
        ),
        (RANKING, says(HI, YES), "even count", "2 turns: a ranking row ends on a question"),
        (RANKING, says(HI), "no pair", "chosen and rejected: missing, or not of the form that sharegpt has"),
        (ALPACA_PAIR, {"chosen": "a"}, "no pair", "chosen and rejected: missing, or not of the form that alpaca has"),
        (PLAIN, {"instruction": "a"}, "no answer", "output: missing or null"),
        (KTO, says(HI, YES, label=True), "preference row", "label marks a row for stage kto"),
        (
            entry_of("x", {"file_name": "a", "columns": {"prompt": "p"}}),
            {"p": "a"},
            "no answer",
            "no response column",
        ),
    ],
)
def test_a_row_that_the_trainer_skips(entry: Entry, row: Any, reason: str, detail: str) -> None:
    assert refusal(json.dumps(row).encode(), entry) == (reason, detail)
    assert reason in SKIPPED


def refusal(
    row: Any, entry: Entry, rules: MediaRules = IMAGES, stage: str = "sft", folder: Path = HERE
) -> tuple[str, str]:
    with pytest.raises(Rejected) as caught:
        align(row, entry, folder, rules, stage)
    return caught.value.reason, caught.value.detail


NO_TAGS = entry_of("x", {"file_name": "a.json", "formatting": "sharegpt", "tags": {"user_tag": "human"}})
NULL_SYSTEM = entry_of(
    "x",
    {
        "file_name": "a",
        "formatting": "sharegpt",
        "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
    },
)


@pytest.mark.parametrize(
    ("entry", "row", "reason", "detail"),
    [
        (SHAREGPT, b"{", "not JSON", "Input data was truncated"),
        (
            SHAREGPT,
            b'{"conversations": "\xff"}',
            "not JSON",
            "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
        (SHAREGPT, b"[]", "wrong type", "the row is a list, not an object"),
        (SHAREGPT, b"null", "missing column", "conversations is missing or null"),
        (SHAREGPT, {}, "missing column", "conversations is missing or null"),
        (NO_TAGS, says(HI, YES), "missing column", "the entry names no messages column, role_tag or content_tag"),
        (SHAREGPT, {"conversations": "Hi"}, "wrong type", "conversations is a string, not a list"),
        (SHAREGPT, {"conversations": ["Hi"]}, "wrong type", "turn 1 is a string, not an object"),
        (SHAREGPT, {"conversations": [None]}, "wrong type", "turn 1 is null"),
        (SHAREGPT, says((5, "Hi"), YES), "wrong type", "turn 1: from is a number"),
        (SHAREGPT, says(HI, ("gpt", [1])), "non-string content", "turn 2 (gpt) is a list"),
        (SHAREGPT, says(HI, ("gpt", None)), "non-string content", "turn 2 (gpt) is null"),
        (SHAREGPT, says(("human", True), YES), "non-string content", "turn 1 (human) is a boolean"),
        (WITH_TOOLS, says(HI, YES, system={"a": 1}), "non-string content", "system is an object"),
        (WITH_TOOLS, says(HI, YES, tools=[1]), "tools not JSON", "tools is a list, not JSON text"),
        (
            WITH_TOOLS,
            says(HI, YES, tools="[1"),
            "tools not JSON",
            "the tools cannot be parsed: Expecting ',' delimiter: line 1 column 3 (char 2)",
        ),
        (WITH_TOOLS, says(HI, YES, tools='{"a": 1}'), "tools not JSON", "the tools are not a list of objects"),
        (
            OPENAI,
            chat(("user", "a"), ("assistant", "b"), tools=5),
            "tools not JSON",
            "tools is a number, not JSON text",
        ),
        (
            SHAREGPT,
            says(HI, ("function_call", "f()")),
            "function call not JSON",
            "turn 2 (function_call): Expecting value: line 1 column 1 (char 0)",
        ),
        (
            SHAREGPT,
            says(HI, ("function_call", '{"name": "f"}')),
            "function call not JSON",
            "turn 2 (function_call): a call is not an object with name and arguments",
        ),
        (
            NULL_SYSTEM,
            says(HI, (None, "x")),
            "unknown role",
            "turn 2 (None): the template has no such role in the middle of a conversation",
        ),
        (
            OPENAI,
            chat(("developer", "S"), ("user", "a")),
            "unknown role",
            "turn 1 (developer): its role is none of user, assistant, tool, function, system",
        ),
        (
            OPENAI,
            chat(("user", "a"), ("tool", None), ("assistant", "b")),
            "non-string content",
            "turn 2 (tool) is null",
        ),
        (
            OPENAI,
            {"messages": [{"role": "assistant", "tool_calls": [None]}]},
            "function call not JSON",
            "turn 1 (assistant): tool_calls has a null in it",
        ),
        (
            OPENAI,
            {"messages": [{"role": "user", "tool_calls": ["f"]}]},
            "wrong type",
            "turn 1: tool_calls is not a list of objects with a function",
        ),
        (
            OPENAI,
            {"messages": [{"role": "user", "content": "", "tool_calls": 5}]},
            "wrong type",
            "turn 1: tool_calls is not a list of objects with a function",
        ),
        (RANKING, says(HI, chosen=5), "wrong type", "chosen is a number, not an object"),
        (
            RANKING,
            says(HI, chosen={"from": "bot"}, rejected={}),
            "unknown role",
            f"chosen: its role is none of {TAGS}",
        ),
        (
            RANKING,
            says(HI, chosen={"from": "gpt", "value": "a"}, rejected={"from": "gpt"}),
            "non-string content",
            "rejected is null",
        ),
        (KTO, says(HI, YES, label="yes"), "wrong type", "label is a string, not true or false"),
        (PLAIN, {"instruction": 5, "output": "a"}, "non-string content", "instruction is a number"),
        (PLAIN, {"instruction": "a", "output": 5}, "non-string content", "output is a number"),
        (ALPACA, {"output": "a", "history": [["a"]]}, "wrong type", "history: pair 1 is not a question and its answer"),
        (ALPACA, {"output": "a", "history": [[None, "b"]]}, "non-string content", "history, question 1 is null"),
    ],
)
def test_a_row_on_which_the_trainer_stops(entry: Entry, row: Any, reason: str, detail: str) -> None:
    assert refusal(row if isinstance(row, bytes) else json.dumps(row).encode(), entry, MediaRules()) == (reason, detail)
    assert reason in FATAL


def test_stage_pt_needs_the_prompt_of_every_row() -> None:
    detail = "1 turns: the last one has no answer; stage pt takes the first message of each row"
    assert refusal(says(HI), SHAREGPT, stage="pt") == ("no prompt", detail)
    assert refusal({}, SHAREGPT, stage="pt") == ("missing column", "conversations is missing or null")


def test_kto_needs_its_tag() -> None:
    assert refusal(says(HI, YES), KTO, stage="kto") == (
        "no pair",
        "label: missing, or not of the form that sharegpt has",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an image, a file that only looks like one, an empty file and a video."""
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_bytes(b"text")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "a.mp4").write_bytes(b"video")
    return tmp_path


ONE, TWO = ("human", "<image> Hi"), ("human", "<image> and <image>")
ALL = MediaRules(image=True, video=True)


@pytest.mark.parametrize(
    ("rules", "row", "reason", "detail"),
    [
        (MediaRules(), says(ONE, ("gpt", "<video> <audio>"), images=[]), "", ""),
        (
            MediaRules(),
            says(ONE, YES, images=["a.png"]),
            "media not taken",
            "there are 1 images, and the template takes none",
        ),
        (IMAGES, says(HI, YES, videos=["a.mp4"]), "media not taken", "there are 1 videos, and the template takes none"),
        (IMAGES, says(ONE, YES, images=["a.png"]), "", ""),
        (IMAGES, says(ONE, YES, images="a.png"), "", ""),
        (IMAGES, says(ONE, YES, images=[{"path": "a.png", "bytes": None}]), "", ""),
        (IMAGES, says(ONE, YES, images=[{"path": None, "bytes": [1]}]), "", ""),
        (IMAGES, says(TWO, YES, images=["a.png"]), "image count", "2 times <image> in the turns, and 1 in the row"),
        (IMAGES, says(HI, YES, images=["a.png"]), "image count", "0 times <image> in the turns, and 1 in the row"),
        (IMAGES, says(ONE, YES), "image count", "1 times <image> in the turns, and 0 in the row"),
        (
            IMAGES,
            says(("human", "a <video>"), YES),
            "video mark in text",
            "1 times <video> in the turns, and 0 in the row",
        ),
        (
            ALL,
            says(("human", "an <audio>"), YES),
            "audio mark in text",
            "1 times <audio> in the turns, and 0 in the row",
        ),
        (ALL, says(("human", "a <video>"), YES), "video count", "1 times <video> in the turns, and 0 in the row"),
        (IMAGES, says(ONE, YES, images=["b.png"]), "image file", "b.png: no such file in FOLDER"),
        (IMAGES, says(ONE, YES, images=["text.png"]), "image file", "text.png: is not an image that can be read"),
        (IMAGES, says(ONE, YES, images=["empty.png"]), "image file", "empty.png: is empty"),
        (IMAGES, says(ONE, YES, images=[["a.png"]]), "", ""),
        (
            IMAGES,
            says(ONE, YES, images=[5]),
            "wrong type",
            "images has something in it that is neither a path nor an object",
        ),
        (IMAGES, says(ONE, YES, images=["a.png", None]), "wrong type", "images: not all of its 2 items are paths"),
        (IMAGES, says(ONE, YES, images=[None]), "wrong type", "an image is neither a path nor an object with one"),
        (ALL, says(("human", "a <video>"), YES, videos=["a.mp4"]), "", ""),
        (
            ALL,
            says(("human", "a <video>"), YES, videos=[["a.png", "text.png"]]),
            "image file",
            "text.png: is not an image that can be read",
        ),
    ],
)
def test_media(folder: Path, rules: MediaRules, row: dict[str, Any], reason: str, detail: str) -> None:
    for given_row in (row, json.dumps(row).encode()):
        if reason:
            assert refusal(given_row, WITH_IMAGES, rules, folder=folder) == (
                reason,
                detail.replace("FOLDER", str(folder)),
            )
            assert reason in FATAL
        else:
            assert align(given_row, WITH_IMAGES, folder, rules).turns[1].role == "assistant"


def test_an_image_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *words: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    row = says(ONE, YES, images=["a.png"])
    assert refusal(row, WITH_IMAGES, folder=folder) == ("image file", "a.png: cannot be read: Permission denied")


def test_without_pillow_an_image_only_has_to_be_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "pillow", lambda: None)
    assert align(says(ONE, YES, images=["text.png"]), WITH_IMAGES, folder, IMAGES)
    assert refusal(says(ONE, YES, images=["empty.png"]), WITH_IMAGES, folder=folder)[1] == "empty.png: is empty"


def test_the_rules_of_a_template() -> None:
    def form(tokens: tuple[str, ...], calls: tuple[str, ...]) -> ChatForm:
        return ChatForm(
            None,
            "",
            False,
            None,
            0,
            None,
            "Template",
            Slots((), (), (), (), (), (), ()),
            "",
            False,
            ("<t>", "</t>"),
            calls,
            None,
            False,
            "default",
            None,
            "Plugin",
            tokens,
            "",
        )

    assert MediaRules.of(None) == MediaRules()
    found = MediaRules.of(form(("<|image_pad|>", "<|video_pad|>"), ("<c>", "</c>")))
    assert found == MediaRules(image=True, video=True, thought_words=("<t>", "</t>"), tool_call_words=("<c>", "</c>"))
    assert MediaRules.of(form(("<|AUDIO|>",), ())) == MediaRules(
        audio=True, thought_words=("<t>", "</t>"), tool_call_words=("", "")
    )
    call = says(HI, ("function_call", f"<t>hm</t>so <c>{CALL}</c>"))
    assert align(call, SHAREGPT, HERE, found)
    assert refusal(call, SHAREGPT, MediaRules())[0] == "function call not JSON"
    assert align(says(HI, ("function_call", f"<t>hm</t>{CALL}")), SHAREGPT, HERE, found)
    assert refusal(call, SHAREGPT, MediaRules(tool_call_words=("", "")))[0] == "function call not JSON"


TURNS = st.tuples(st.sampled_from(["human", "gpt", "system", "observation", "bot"]), st.text() | st.none())
ROWS = st.fixed_dictionaries(
    {"conversations": st.lists(TURNS.map(lambda turn: {"from": turn[0], "value": turn[1]}), max_size=5)},
    optional={"system": st.text() | st.none(), "tools": st.sampled_from(["", "[]", "[", None])},
)


@given(ROWS)
def test_the_short_way_and_the_long_way_agree(row: dict[str, Any]) -> None:
    def outcome(given_row: Any) -> Any:
        try:
            return align(given_row, WITH_TOOLS, HERE, IMAGES)
        except Rejected as rejected:
            return rejected.reason, rejected.detail

    assert outcome(json.dumps(row).encode()) == outcome(row)


@pytest.mark.parametrize(
    "more",
    [
        {"formatting": "alpaca"},
        {"ranking": True},
        {"columns": {"messages": "m", "kto_tag": "k"}},
        {"columns": {}},
        {"columns": {"messages": "m", "system": "m"}},
        {"tags": {}},
        {"tags": OPENAI_TAGS | {"function_tag": "tool"}},
        {"tags": OPENAI_TAGS | {"role_tag": "content"}},
        {"tags": OPENAI_TAGS | {"content_tag": None}},
    ],
)
def test_entries_without_a_short_way(more: dict[str, Any]) -> None:
    assert usual_reader(entry_of("x", {"file_name": "a", "formatting": "sharegpt"} | more)) is None


def columns_of(folder: Path, entry: dict[str, Any], text: str, name: str = "a.jsonl") -> list[Problem]:
    (folder / name).write_text(text)
    made = entry_of("x", entry | {"file_name": name})
    return check_columns(plan_rows(folder, made), made)


def test_columns_that_no_row_has(tmp_path: Path) -> None:
    sharegpt = entry_for("a.jsonl", ())
    assert columns_of(tmp_path, sharegpt, "5\n{\n" + json.dumps(says(HI, YES, system="", tools=None))) == []
    hint = "there are conversations: correct columns, or add it to the first row, null at least"
    message = "no row has the column {}: the trainer stops with KeyError"
    assert columns_of(tmp_path, sharegpt, json.dumps(says(HI, YES))) == [
        Problem("dataset_info.json x", message.format("system"), hint),
        Problem("dataset_info.json x", message.format("tools"), hint),
    ]
    assert columns_of(tmp_path, sharegpt, json.dumps([{}, says(HI, YES, system="", tools="")]), "a.json") == []
    found = columns_of(tmp_path, {}, "instruction,output\na,b\n", "a.csv")
    assert [problem.message for problem in found] == [message.format("input")]
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.jsonl").write_text('{"output": "a"}')
    (tmp_path / "two" / "b.jsonl").write_text('{"output": "a"}')
    two = entry_of("x", {"file_name": "two", "columns": {"response": "output", "prompt": "p"}})
    assert [problem.message for problem in check_columns(plan_rows(tmp_path, two), two)] == [message.format("p")]
    assert columns_of(tmp_path, {}, "5\n") == columns_of(tmp_path, {}, "") == []


EMPTY, LATE = "is empty", "is not"


@pytest.mark.parametrize(
    ("column", "first", "later", "found"),
    [
        ("images", [], ["a.png"], (EMPTY, "DatasetGenerationError", "rows with images first")),
        ("images", None, "a.png", (EMPTY, "DatasetGenerationError", "rows with images first")),
        ("images", [None], ["a.png"], (EMPTY, "DatasetGenerationError", "rows with images first")),
        ("images", ..., None, (LATE, "DatasetGenerationCastError", "rows with images first")),
        ("input", ..., "", (LATE, "DatasetGenerationCastError", "put a row that has it first")),
        ("images", [], [], None),
        ("images", [], None, None),
        ("images", ["a.png"], [], None),
        ("input", "", None, None),
    ],
)
def test_what_comes_behind_the_first_bytes_cannot_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, first: Any, later: Any, found: Any
) -> None:
    whole: dict[str, Any] = {"instruction": "a", "output": "b", "input": "", "images": ["a.png"]}
    rows = [{key: value for key, value in (whole | {column: first}).items() if value is not ...}] * 2
    lines = "".join(json.dumps(row) + "\n" for row in rows) + " \n"
    # the row that starts at the last of the first bytes is one of them
    late = json.dumps(whole | {column: later}) + "\n"
    columns = {"prompt": "instruction", "query": "input", "response": "output", "images": "images"}
    entry = {"columns": columns, "split": "train[2:]"}
    monkeypatch.setattr("trainkit.dataset.columns.FIRST_BYTES", len(lines))
    assert columns_of(tmp_path, entry, lines + late) == []
    monkeypatch.setattr("trainkit.dataset.columns.FIRST_BYTES", len(lines) - 1)
    problems = columns_of(tmp_path, entry, lines + "{\n" + late + late)
    if found is None:
        assert problems == []
        return
    what, error, hint = found
    said = (
        f"{column} {what} in the first 10 MB of a.jsonl, which decide on its type: the trainer stops here with {error}"
    )
    assert [(problem.where, problem.message) for problem in problems] == [(f"{tmp_path}/a.jsonl:5", said)]
    assert hint in problems[0].hint
    assert problems[0].level == "error"


def test_of_several_files_the_first_decides(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for number, images in enumerate(([], ["a.png"])):
        row = {"conversations": [], "images": images, "videos": ["a.mp4"]}
        (tmp_path / "two" / f"{number}.jsonl").write_text(json.dumps(row))
    plan = plan_rows(tmp_path, replace(WITH_IMAGES, path="two"))
    ordered = replace(plan, files=tuple(sorted(plan.files)))
    (problem,) = check_columns(ordered, WITH_IMAGES)
    assert (problem.where, problem.level) == (f"{tmp_path}/two/1.jsonl:1", "error")
    (tmp_path / "two" / "0.jsonl").write_text(json.dumps([{"conversations": [], "images": [], "videos": []}]))
    assert check_columns(ordered, WITH_IMAGES) == [], "an array is typed as a whole"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (PLAIN, ("instruction", "input", "output")),
        (ALPACA_PAIR, ("chosen", "rejected", "instruction")),
        (ALPACA_KTO, ("label", "instruction")),
        (WITH_TOOLS, ("conversations", "system", "tools")),
        (OPENAI, ("messages",)),
        (WITH_IMAGES, ("images", "videos", "conversations")),
    ],
)
def test_columns_that_the_converter_asks_for(entry: Entry, expected: tuple[str, ...]) -> None:
    assert needed_columns(entry) == expected
