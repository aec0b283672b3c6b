"""Thousands of rows, sound and damaged, through LLaMA-Factory's own converter and processor and through `align`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.dataset.entry import entry_of
from trainkit.dataset.media import MediaRules
from trainkit.dataset.rows import FATAL, SKIPPED, align
from trainkit.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = Path(__file__).parent / "trainer_rows.py"
NUM_ROWS = 400
IMAGE = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00"
    b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
)
TEXTS = ("What now?", "Naïve 任务 🙂", "", " ", "<image> look", "a <video> and <audio>", 'say "hi"\n', "{x}", "<think>")
CALL = json.dumps({"name": "search", "arguments": {"q": "x"}})
CALLS = (
    CALL, f"[{CALL}, {CALL}]", f"<think>\nhm\n</think>\n\n{CALL}", f"so: <tool_call>{CALL}</tool_call>", "[]",
    "no JSON", '{"name": "search"}', '["search"]', "5", "<think>\nhm\n</think>\n\n", "null",
    '{"arguments": 1, "name": 2}',
)  # fmt: skip
TOOLS = (
    "", "[]", "{}", '""', "[", "5", "null", '"text"', '{"name": "f"}', '["f"]', " ",
    json.dumps([{"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}]),
)  # fmt: skip
# Values of a type that other data sets have in all rows: in one row alone Arrow would stop, which no single row shows.
ODD_VALUES: dict[str, list[Any]] = {"images": [5, True, [1]], "tools": [5, True], "history": [None]}
COLUMNS = {"messages": "messages", "system": "system", "tools": "tools", "images": "images"}
SHAREGPT_TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
OPENAI_TAGS = {
    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
    "observation_tag": "tool", "function_tag": "function", "system_tag": "system",
}  # fmt: skip


def sharegpt_entry(**more: Any) -> dict[str, Any]:
    return {"file_name": "a.json", "formatting": "sharegpt", "columns": COLUMNS, "tags": SHAREGPT_TAGS} | more


def make_messages(rng: random.Random, tags: dict[str, str], *, odd: bool = False) -> list[Any]:
    """Return messages that are mostly sound, with now and then one that is not."""
    role, content = tags["role_tag"], tags["content_tag"]
    messages = []
    if rng.random() < 0.3:
        messages.append({role: tags["system_tag"], content: rng.choice(TEXTS)})
    for number in range(rng.choice((0, 2, 2, 2, 4, 4, 6, 1, 3)) + odd):
        kinds = ("assistant_tag", "function_tag") if number % 2 else ("user_tag", "observation_tag")
        tag = kinds[rng.random() < 0.25]
        text = rng.choice(CALLS[:5] if rng.random() < 0.7 else CALLS) if tag == "function_tag" else rng.choice(TEXTS)
        messages.append({role: tags[tag], content: text})
    if messages and rng.random() < 0.25:
        damage_message(rng, messages, role, content, tags)
    return messages


def damage_message(rng: random.Random, messages: list[Any], role: str, content: str, tags: dict[str, str]) -> None:
    number = rng.randrange(len(messages))
    message = messages[number]
    what = rng.randrange(10)
    if what == 0:
        message[role] = rng.choice(["bot", "Human", "", None, *tags.values()])
    elif what == 1:
        message[content] = rng.choice([None, 5, ["x"], {"a": 1}, True, None])
    elif what == 2:
        message.pop(rng.choice([role, content]))
    elif what == 3:
        messages.pop(number)
    elif what == 4:
        messages.insert(number, dict(message))
    elif what == 5:
        messages[number] = rng.choice([None, None, "text", 3])
    elif what == 6:
        message[role] = rng.choice([7, ["x"]])
    elif what == 7:
        rng.shuffle(messages)
    elif what == 8:
        message["weight"] = 1
    else:
        messages.append({role: tags["system_tag"], content: "late"})


def damage_row(rng: random.Random, row: dict[str, Any]) -> str:
    """Return the text of a row, sometimes with a column that is missing, null or of another type."""
    if rng.random() < 0.15:
        name = rng.choice(list(row))
        change = rng.randrange(4)
        if change == 0:
            del row[name]
        elif change == 1:
            row[name] = None
        elif change == 2:
            row[name] = rng.choice(ODD_VALUES.get(name, [5, "text", True, {"a": 1}, [1]]))
        else:
            return rng.choice(["{", "[]", "5", "null", '{"a": "\\ud800"}', json.dumps(row)[:-2]])
    return json.dumps(row, ensure_ascii=rng.random() < 0.5)


def sharegpt_row(rng: random.Random) -> dict[str, Any]:
    row: dict[str, Any] = {"messages": make_messages(rng, SHAREGPT_TAGS)}
    if rng.random() < 0.5:
        row["system"] = rng.choice([*TEXTS, None])
    if rng.random() < 0.5:
        row["tools"] = rng.choice([*TOOLS[-1:] * 5, *TOOLS, None])
    if rng.random() < 0.3:
        row["images"] = rng.choice([[], ["a.gif"], ["a.gif", "a.gif"], ["missing.gif"], ["text.gif"], None, [None]])
    return row


def ranking_row(rng: random.Random) -> dict[str, Any]:
    def answer() -> Any:
        role = rng.choice(["gpt", "gpt", "gpt", "gpt", "gpt", "function_call", "human", "bot", None])
        sound = {"from": role, "value": rng.choice(CALLS if role == "function_call" else TEXTS)}
        return rng.choice([sound] * 12 + [None, {"from": "gpt"}, {"value": "x"}, {}])

    messages = make_messages(rng, SHAREGPT_TAGS, odd=rng.random() < 0.9)
    return {"messages": messages, "chosen": answer(), "rejected": answer(), "system": rng.choice(TEXTS)}


def kto_row(rng: random.Random) -> dict[str, Any]:
    return {"messages": make_messages(rng, SHAREGPT_TAGS), "label": rng.choice([True, False, True, False, None])}


def openai_row(rng: random.Random) -> dict[str, Any]:
    messages = make_messages(rng, OPENAI_TAGS)
    for number in range(len(messages) - 1, -1, -1):
        message = messages[number]
        if not isinstance(message, dict):
            continue
        if message.get("role") in ("assistant", "user") and rng.random() < 0.3:
            function = {"name": "search", "arguments": rng.choice(["{}", '{"q": "任"}', None])}
            calls = [{"id": "1", "type": "function", "function": function}]
            message["tool_calls"] = rng.choice([calls, calls, calls * 2, [], None, [None], [{"id": "2"}], ["x"]])
        if message.get("role") == "tool" and rng.random() < 0.5:
            messages.insert(number, dict(message))
    row: dict[str, Any] = {"messages": messages}
    if rng.random() < 0.5:
        row["system"] = rng.choice(["Be brief.", "detailed thinking on", "", "x detailed thinking off", None])
    if rng.random() < 0.5:
        row["tools"] = rng.choice([*TOOLS, None])
    return row


def alpaca_row(rng: random.Random) -> dict[str, Any]:
    pair = [rng.choice(TEXTS), rng.choice(TEXTS)]
    row = {
        "instruction": rng.choice([*TEXTS, None]),
        "input": rng.choice([*TEXTS, None]),
        "output": rng.choice([*TEXTS, "fine", "fine", None]),
        "system": rng.choice([*TEXTS, None]),
        "history": rng.choice([[], [pair], [pair, pair], None, [pair[:1]], [[None, "x"]], [[*pair, "x"]], [None]]),
    }
    return row if rng.random() < 0.5 else {key: row[key] for key in ("instruction", "input", "output")}


def plain_row(rng: random.Random) -> dict[str, Any]:
    row = alpaca_row(rng)
    return {key: row[key] for key in ("instruction", "input", "output")}


def alpaca_pair_row(rng: random.Random) -> dict[str, Any]:
    return {"prompt": rng.choice(TEXTS), "good": rng.choice([*TEXTS, None]), "bad": rng.choice([*TEXTS, None])}


def alpaca_kto_row(rng: random.Random) -> dict[str, Any]:
    return {"prompt": rng.choice(TEXTS), "answer": rng.choice([*TEXTS, None]), "label": rng.choice([True, False, None])}


FULL: dict[str, dict[str, Any]] = {
    "sharegpt": {"messages": [{"from": "human", "value": "a"}], "system": "s", "tools": "[]", "images": ["a.gif"]},
    "ranking": {
        "messages": [{"from": "human", "value": "a"}], "system": "s",
        "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "a"},
    },
    "kto": {"messages": [{"from": "human", "value": "a"}], "label": True},
    "openai": {
        "messages": [
            {
                "role": "assistant", "content": "a",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "a", "arguments": "b"}}],
            }
        ],
        "system": "s", "tools": "[]",
    },
    "alpaca": {"instruction": "a", "input": "a", "output": "a", "system": "a", "history": [["a", "b"]]},
    "plain": {"instruction": "a", "input": "a", "output": "a"},
    "alpaca pair": {"prompt": "a", "good": "a", "bad": "a"},
    "alpaca kto": {"prompt": "a", "answer": "a", "label": True},
}  # fmt: skip
MAKERS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "sharegpt": sharegpt_row, "ranking": ranking_row, "kto": kto_row, "openai": openai_row, "alpaca": alpaca_row,
    "plain": plain_row,
    "alpaca pair": alpaca_pair_row, "alpaca kto": alpaca_kto_row,
}  # fmt: skip
MESSAGES = {"messages": "messages"}
RANKING = sharegpt_entry(
    ranking=True, columns={**MESSAGES, "system": "system", "chosen": "chosen", "rejected": "rejected"}
)
KTO = sharegpt_entry(columns={**MESSAGES, "kto_tag": "label"})
OPENAI = {
    "file_name": "a.json", "formatting": "openai", "tags": OPENAI_TAGS,
    "columns": {**MESSAGES, "system": "system", "tools": "tools"},
}  # fmt: skip
ALPACA_COLUMNS = {name: name for name in ("system", "history")} | {
    "prompt": "instruction", "query": "input", "response": "output",
}  # fmt: skip
ALPACA = {"file_name": "a.json", "columns": ALPACA_COLUMNS}
ALPACA_PAIR = {"file_name": "a", "ranking": True, "columns": {"prompt": "prompt", "chosen": "good", "rejected": "bad"}}
ALPACA_KTO = {"file_name": "a", "columns": {"prompt": "prompt", "response": "answer", "kto_tag": "label"}}
NO_FUNCTIONS = sharegpt_entry(tags={key: tag for key, tag in SHAREGPT_TAGS.items() if key != "function_tag"})
NO_SYSTEM = sharegpt_entry(tags={key: tag for key, tag in SHAREGPT_TAGS.items() if key != "system_tag"})
SAME_TAGS = sharegpt_entry(tags=SHAREGPT_TAGS | {"observation_tag": "human"})
# (rows, entry, stage, template)
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("sharegpt", sharegpt_entry(), "sft", "qwen"),
    ("sharegpt", sharegpt_entry(), "sft", "llava"),
    ("sharegpt", sharegpt_entry(), "ppo", "qwen"),
    ("sharegpt", sharegpt_entry(), "pt", "qwen"),
    ("sharegpt", NO_FUNCTIONS, "sft", "qwen"),
    ("sharegpt", NO_SYSTEM, "sft", "llama3"),
    ("sharegpt", SAME_TAGS, "sft", "qwen"),
    ("ranking", RANKING, "rm", "qwen"),
    ("kto", KTO, "kto", "qwen"),
    ("kto", KTO, "sft", "qwen"),
    ("openai", OPENAI, "sft", "qwen"),
    ("alpaca", ALPACA, "sft", "qwen"),
    ("alpaca", ALPACA, "ppo", "qwen"),
    ("alpaca", ALPACA, "pt", "qwen"),
    ("plain", {"file_name": "a.json"}, "sft", "mistral"),
    ("alpaca pair", ALPACA_PAIR, "rm", "qwen"),
    ("alpaca kto", ALPACA_KTO, "kto", "qwen"),
]
VERDICTS = dict.fromkeys(SKIPPED, "skipped") | dict.fromkeys(FATAL, "fatal")


def ours(row: str, case: dict[str, Any], rules: MediaRules) -> dict[str, Any]:
    entry = entry_of("x", case["entry"])
    try:
        found = align(row.encode(), entry, Path(case["media_dir"]), rules, case["stage"])
    except Rejected as rejected:
        return {"verdict": VERDICTS[rejected.reason]}
    turns = [list(turn) for turn in found.turns]
    return {"verdict": "kept", "turns": turns, "system": found.system, "tools": found.tools}


@pytest.mark.slow
def test_rows_are_kept_skipped_and_aligned_as_the_trainer_does(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(IMAGE)
    (tmp_path / "text.gif").write_bytes(b"not an image")
    rng = random.Random(0)
    cases = [
        {
            "entry": entry, "stage": stage, "template": template, "media_dir": str(tmp_path),
            "full": json.dumps(FULL[kind]), "rows": [damage_row(rng, MAKERS[kind](rng)) for _ in range(NUM_ROWS)],
        }
        for kind, entry, stage, template in CASES
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], input=json.dumps({"cases": cases}), capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    wrong, seen = [], set()
    for case, verdicts in zip(cases, answers, strict=True):
        rules = MediaRules(image=True) if case["template"] == "llava" else MediaRules()
        for row, theirs in zip(case["rows"], verdicts, strict=True):
            error = theirs.pop("error", "")
            seen.add((case["stage"], theirs["verdict"]))
            if ours(row, case, rules) != theirs:
                wrong.append((case["stage"], case["template"], row, theirs, error, ours(row, case, rules)))
    assert wrong == []
    assert {("sft", "kept"), ("sft", "skipped"), ("sft", "fatal"), ("rm", "kept"), ("rm", "skipped")} <= seen
    assert {("kto", "kept"), ("kto", "skipped"), ("pt", "kept"), ("pt", "fatal"), ("ppo", "kept")} <= seen
