"""The simulation against LLaMA-Factory's own processor: every token and every label of rows of many shapes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trainkit.dataset.chatform import decode_form
from trainkit.dataset.simulate import Flags, encode, measure
from trainkit.dataset.tokenizer import load_tokenizer
from trainkit.datatypes import Conversation, Turn
from trainkit.errors import Rejected

HERE = Path(__file__).parent
CHAT_FORM = HERE.parents[1] / "trainkit" / "inside" / "chat_form.py"

CALL = '{"name": "search", "arguments": {"query": "天气", "limit": 10}}'
TOOLS = json.dumps(
    [{"name": "search", "description": "Look {it} up.", "parameters": {"type": "object", "properties": {
        "query": {"type": "string", "description": "what"}}, "required": ["query"]}}]
)  # fmt: skip
THOUGHT = "<think>\nFirst I look.\n</think>\n\n"
LONG = "The quick brown fox jumps over the lazy dog. " * 30
CUTOFFS = (7, 40, 150, 333, 4096)


def row(*contents: str, system: str = "", tools: str = "", calls: bool = False) -> dict[str, Any]:
    roles = [
        ("observation" if calls and turn > 1 else "user")
        if turn % 2 == 0
        else ("function" if calls and turn < len(contents) - 1 else "assistant")
        for turn in range(len(contents))
    ]
    return {"turns": list(zip(roles, contents, strict=True)), "system": system, "tools": tools}


ROWS = [
    row("hi", "hello"),
    row("hi", "hello", system="Be brief."),
    row("", ""),
    row("", "", "", "", system=" "),
    row("one", "1", "two", "2", "three", "3", "four", "4", "five", "5", "six", "6"),
    row("{{idx}} of {{content}}", "{{content}}", "and {{idx}}", "x"),
    row("weather?", CALL, "sunny", "It is sunny.", tools=TOOLS, calls=True),
    row("weather?", CALL, "sunny", "It is sunny.", tools=TOOLS, calls=True, system="Use tools."),
    row("weather?", f"[{CALL}, {CALL}]", "sunny\n\nrain", "Both.", tools="[]", calls=True),
    row("weather?", f"{THOUGHT}{CALL}", "sunny", f"{THOUGHT}It is sunny.", tools=TOOLS, calls=True),
    row("weather?", f"Let me look. <tool_call>{CALL}</tool_call>", "sunny", "It is.", calls=True),
    row("weather?", "not JSON", "sunny", "It is.", calls=True),
    row("weather?", '{"name": "search"}', "sunny", "It is.", calls=True),
    row("weather?", '["search"]', "sunny", "It is.", calls=True),
    row("weather?", '{"name": "search", "arguments": "text"}', "sunny", "It is.", calls=True),
    row("hi", "hello", tools="not JSON"),
    row("hi", "hello", tools="3"),
    row("hi", "hello", tools='{"name": "search"}'),
    row("cafe\u0301 Å \u1112\u1161\u11ab", "e\u0301\u0301 \u0344 <|im_end|>\u0301 ≯ >\u0338"),
    row("a <|im_end|> b<|im_start|>user\n", "[INST] x [/INST]</s> <s><|eot_id|> <|user|> <unk>"),
    row("<think>", "</think>", "x", "<think> half", "y", "half </think>", "z", f"{THOUGHT}whole"),
    row("q", f"{THOUGHT}a", "q", "b", "q", f"\n\n{THOUGHT}{THOUGHT}c"),
    row("q", "<think>\n<think>\nx\n</think>\n\ny\n</think>\n\nz", "q", "\n\nno thought"),
    row("q", f"{THOUGHT}a", "q", f"{THOUGHT}b"),
    row("  spaces   at\t\tthe \n\n ends  ", "\r\n\r\n  x \u3000\u3000y\xa0\xa0z\u2003 ", system="  s  "),
    row("don't WE'LL I'M 'S '\u017f 12345 ½½ ②③ १२३", "北京市 한국어 العربيةُ 🙂🙂👨‍👩‍👧 \x00\x1f\x7f \ufeff\ufffd"),
    row(LONG, "short"),
    row("short", LONG),
    row(LONG, LONG),
    row("a", LONG, LONG, "b", "c", LONG, "d", "e", system=LONG),
    row(LONG, "x", "y", LONG, LONG, LONG),
]

REFUSED = {
    (("template", "no_such"),): "Template no_such does not exist.",
    (("template", "glm4"), ("train_on_prompt", True)): "Current template does not support `train_on_prompt`.",
    (("template", "qwen2_vl"),): "Processor was not found, please check and update your model file.",
    (("template", "chatglm3"),): "the tokenizer has no [gMASK]: is this the template of the model?",
    (("template", "qwen"), ("mask_history", True), ("train_on_prompt", True)): (
        "`mask_history` is incompatible with `train_on_prompt`."
    ),
}

PIECES = [
    "word",
    " ",
    "\n",
    "12",
    "é",
    "e\u0301",
    "中文",
    "🙂",
    "<think>\n",
    "\n</think>\n\n",
    "<|im_end|>",
    "  ",
    "'s",
    "{}",
]


def random_row(rng: random.Random) -> dict[str, Any]:
    def text() -> str:
        return "".join(rng.choices(PIECES, k=rng.choice((0, 1, 4, 12, 60))))

    return row(*(text() for _ in range(2 * rng.randint(1, 6))), system=rng.choice(("", text())))


def cases() -> list[dict[str, Any]]:
    found = [
        (tokenizer, {"template": template, **modes})
        for tokenizer, templates in {
            "qwen2": ("qwen", "qwen3", "qwen3_nothink", "glm4", "glm4_moe", "glm4_7"),
            "llama3": ("llama3",),
            "mistral": ("mistral", "llama2", "gemma2", "empty"),
        }.items()
        for template in templates
        for modes in ({}, {"mask_history": True}, {"train_on_prompt": True})
        if not (modes.get("train_on_prompt") and template in ("glm4", "glm4_moe", "glm4_7", "gemma2", "empty"))
    ]
    found += [
        ("qwen2", {"template": "qwen3", "enable_thinking": False}),
        ("qwen2", {"template": "qwen3", "enable_thinking": False, "mask_history": True}),
        ("qwen2", {"template": "qwen3", "enable_thinking": None, "mask_history": True}),
        ("qwen2", {"template": "qwen3", "preserve_thinking": True, "mask_history": True}),
        ("qwen2", {"template": "qwen", "tool_format": "default", "default_system": "Default."}),
        ("qwen2", {"template": "qwen", "add_tokens": "fox,brown fox", "add_special_tokens": "<|a|>"}),
        ("qwen2", {"template": "qwen", "split_special_tokens": True}),
        ("gpt2", {"template": "chatml"}),
    ]
    return [{"tokenizer": tokenizer, "keys": keys} for tokenizer, keys in found]


def name_of(case: dict[str, Any]) -> str:
    return f"{case['tokenizer']} " + " ".join(f"{key}={value}" for key, value in case["keys"].items())


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    rng = random.Random(5)
    return [*ROWS, *(random_row(rng) for _ in range(30))]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What LLaMA-Factory makes of the rows in every case, and what it says to keys that it refuses."""
    folder = tmp_path_factory.mktemp("trainer")
    request = {
        "folder": str(folder),
        "program": str(CHAT_FORM),
        "cases": cases(),
        "refused": list(map(dict, REFUSED)),
        "rows": rows,
        "cutoffs": CUTOFFS,
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    env |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    program = [sys.executable, str(HERE / "trainer_program.py")]
    done = subprocess.run(program, input=json.dumps(request), capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = msgspec.json.decode((folder / "answer.json").read_bytes())
    return answer


@pytest.fixture(scope="module")
def answers(answered: dict[str, Any]) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = answered["cases"]
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(cases())), ids=list(map(name_of, cases())))
def test_every_token_and_label_is_the_trainers(
    answers: list[dict[str, Any]], rows: list[dict[str, Any]], number: int
) -> None:
    keys = cases()[number]["keys"]
    form = decode_form(msgspec.json.encode(answers[number]["form"]))
    tokenizer = load_tokenizer(form)
    expected = iter(answers[number]["encoded"])
    trained = 0
    for row in rows:
        turns = tuple(Turn(*turn) for turn in row["turns"])
        conversation = Conversation(turns, row["system"], row["tools"])
        for cutoff_len in CUTOFFS:
            flags = Flags(cutoff_len, keys.get("mask_history", False), keys.get("train_on_prompt", False))
            wanted = next(expected)
            if isinstance(wanted, str):
                with pytest.raises(Rejected):
                    encode(conversation, form, tokenizer, flags)
                continue
            encoded = encode(conversation, form, tokenizer, flags)
            assert [encoded.input_ids, encoded.labels] == wanted, (row, cutoff_len)
            facts = measure(conversation, form, tokenizer, flags)
            assert facts == encoded.facts
            assert facts.kept_tokens == len(wanted[0])
            assert facts.trained_tokens == sum(label != -100 for label in wanted[1])
            trained += facts.trained_tokens
    assert trained
    assert not tokenizer.doubt


@pytest.mark.slow
def test_byte_level_tokenizers_take_the_fast_route(answers: list[dict[str, Any]]) -> None:
    routes = {}
    for case, answer in zip(cases(), answers, strict=True):
        tokenizer = load_tokenizer(decode_form(msgspec.json.encode(answer["form"])))
        routes[case["tokenizer"], bool(case["keys"].get("split_special_tokens"))] = tokenizer.route
    assert routes == {
        ("qwen2", False): "tiktoken",
        ("qwen2", True): "tokenizers",
        ("llama3", False): "tiktoken",
        ("gpt2", False): "tiktoken",
        ("mistral", False): "tokenizers",
    }


@pytest.mark.slow
def test_what_the_trainer_refuses_is_said(answered: dict[str, Any]) -> None:
    assert answered["refused"] == list(REFUSED.values())
