"""What is kept and trained of a conversation; test_agreement.py compares it with the trainer itself."""

from __future__ import annotations

import ast
import bisect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.dataset.imagetokens import ImageForm
from trainkit.dataset.simulate import Flags, Measure, encode, measure, pack
from trainkit.dataset.tokenizer import load_tokenizer
from trainkit.datatypes import Conversation, Turn
from trainkit.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.dataset.chatform import ChatForm

    MakeForm = Callable[..., ChatForm]

THOUGHT = "<think>\nwhy\n</think>\n\n"
REASONING = {"template_class": "ReasoningTemplate"}
# Texts of which each letter is a token: sources of 3 + content, targets of content + 1.
LETTERS = {"user": (1, 2, "{{content}}", 3), "assistant": ("{{content}}", 4), "system": (5, "{{content}}", 6)}


class OneByOne:
    """A tokenizer with a token for each character."""

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    def count(self, text: str) -> int:
        return len(text)


LETTER: Any = OneByOne()


def talk(*contents: str, system: str = "", tools: str = "") -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Turn(roles[index % 2], text) for index, text in enumerate(contents)), system, tools)


def test_a_turn_is_its_slots_and_only_answers_are_trained(make_form: MakeForm) -> None:
    encoded = encode(talk("ab", "c", "d", "e", system="s"), make_form(slots=LETTERS), LETTER, Flags(99))
    a, b, c, d, e, s = map(ord, "abcdes")
    assert encoded.input_ids == [5, s, 6, 1, 2, a, b, 3, c, 4, 1, 2, d, 3, e, 4]
    assert encoded.labels == [-100] * 8 + [c, 4] + [-100] * 4 + [e, 4]
    assert encoded.facts == Measure(16, 16, 4, 2, 2, answer_cut=False, thought="none")
    assert (encoded.facts.is_cut, encoded.facts.no_trained) == (False, False)


# 20 tokens: 8 and 2, 7 and 3.
ROW = talk("abcde", "f", "ghij", "kl")


@pytest.mark.parametrize(
    ("flags", "changes", "facts"),
    [
        (Flags(99), {}, (20, 20, 5, 2, 2, False)),
        (Flags(99, mask_history=True), {}, (20, 20, 3, 2, 2, False)),
        (Flags(99, train_on_prompt=True), {}, (20, 20, 20, 2, 2, False)),
        (Flags(20), {}, (20, 20, 5, 2, 2, False)),
        (Flags(19), {}, (20, 19, 5, 2, 2, False)),  # the last question has lost a token
        (Flags(14), {}, (20, 14, 3, 2, 2, True)),  # 4 left: 10 * 3/10 of them for the answer, as the question is long
        (Flags(10), {}, (20, 10, 2, 2, 1, False)),  # the second turn is gone
        (Flags(3), {}, (20, 3, 0, 2, 1, True)),  # int(3 * 2/10) is none
        (Flags(11, mask_history=True), {}, (20, 11, 3, 2, 2, False)),  # the last turn wins
        (Flags(4, mask_history=True), {}, (20, 4, 1, 2, 1, True)),
        (Flags(12, train_on_prompt=True), {}, (20, 12, 12, 2, 2, True)),
        (Flags(99), {"efficient_eos": True}, (21, 21, 7, 2, 2, False)),
        (Flags(99, mask_history=True), {"efficient_eos": True}, (21, 21, 5, 2, 2, False)),
        (Flags(1), {"efficient_eos": True}, (21, 1, 1, 2, 0, False)),
    ],
)
def test_a_cut_takes_what_the_trainer_takes(
    make_form: MakeForm, flags: Flags, changes: dict[str, Any], facts: tuple[Any, ...]
) -> None:
    form = make_form(slots=LETTERS, **changes)
    assert measure(ROW, form, LETTER, flags) == Measure(*facts, thought="none")


def test_one_end_token_for_the_row_is_trained_between_turns_too(make_form: MakeForm) -> None:
    form = make_form(slots=LETTERS | {"assistant": ("{{content}}",)}, efficient_eos=True)
    encoded = encode(talk("a", "b", "c", "d"), form, LETTER, Flags(99))
    a, b, c, d = map(ord, "abcd")
    assert encoded.input_ids == [1, 2, a, 3, b, 1, 2, c, 3, d, 9]
    assert encoded.labels == [-100, -100, -100, -100, b, 9, -100, -100, -100, d, 9]


@pytest.mark.parametrize(
    ("changes", "mask_history", "answers", "thought", "targets"),
    [
        ({}, False, ["x"], "none", ["x"]),
        (REASONING, False, ["x", "y"], "added", ["<think>\n\n</think>\n\nx", "<think>\n\n</think>\n\ny"]),
        (REASONING, False, [f"{THOUGHT}x", f"{THOUGHT}y"], "present", [f"{THOUGHT}x", f"{THOUGHT}y"]),
        (REASONING, False, ["x", f"{THOUGHT}y"], "mixed", ["<think>\n\n</think>\n\nx", f"{THOUGHT}y"]),
        (REASONING, False, ["the <think> tag"], "mixed", ["the <think> tag"]),
        (REASONING, False, ["</think> first <think>"], "mixed", ["</think> first <think>"]),
        (REASONING, True, [f"{THOUGHT}x", "y"], "added", ["x", "<think>\n\n</think>\n\ny"]),
        (REASONING, True, ["x", f"{THOUGHT}y"], "present", ["x", f"{THOUGHT}y"]),
        (REASONING | {"preserve_thinking": True}, True, [f"{THOUGHT}x", "y"], "mixed",
         [f"{THOUGHT}x", "<think>\n\n</think>\n\ny"]),
        (REASONING | {"enable_thinking": False}, False, [f"{THOUGHT}x"], "added", ["x"]),
        (REASONING | {"enable_thinking": None}, False, ["x"], "added", ["x"]),
        ({"template_class": "Glm47ReasoningTemplate", "thought_words": ("<think>", "</think>")}, False, ["x"], "added",
         ["</think>x"]),
    ],
)  # fmt: skip
def test_the_think_rule(
    make_form: MakeForm,
    changes: dict[str, Any],
    mask_history: bool,
    answers: list[str],
    thought: str,
    targets: list[str],
) -> None:
    form = make_form(slots=LETTERS, **changes)
    row = talk(*(text for answer in answers for text in ("q", answer)))
    encoded = encode(row, form, LETTER, Flags(999, mask_history))
    assert encoded.facts.thought == thought
    text = "".join(map(chr, encoded.input_ids))
    found = [part.partition("\x03")[2] for part in text.split("\x04")[:-1]]
    unloved = "<think>\n\n</think>\n\n" if changes.get("enable_thinking", True) is not True else ""
    assert found == [unloved + target for target in targets]
    if unloved:
        assert encoded.labels == [-100] * (4 + len(unloved)) + [ord("x"), 4]


def test_the_first_question_holds_the_system_message_of_llama2(make_form: MakeForm) -> None:
    form = make_form(slots=LETTERS | {"system": ("<{{content}}>",)}, template_class="Llama2Template")
    encoded = encode(talk("a", "b", "c", "d", system="S"), form, LETTER, Flags(99))
    assert "".join(map(chr, encoded.input_ids)) == "\1\2<S>a\3b\4\1\2c\3d\4"


@pytest.mark.parametrize(
    ("changes", "system", "tools", "start"),
    [
        ({}, "", "", ""),
        ({"default_system": "D"}, "", "", "\5D\6"),
        ({"default_system": "D"}, "S", "", "\5S\6"),
        ({}, "", "[]", "\5\6"),
        ({"tools_format": None, "slots": LETTERS | {"tools": ("[{{content}}]",)}}, "S", "any", "\5S[any]\6"),
        ({"slots": LETTERS | {"prefix": (7, "P")}}, "S", "", "\7P\5S\6"),
    ],
)
def test_the_row_begins_with_prefix_system_and_tools(
    make_form: MakeForm, changes: dict[str, Any], system: str, tools: str, start: str
) -> None:
    form = make_form(**{"slots": LETTERS, **changes})
    encoded = encode(talk("a", "b", system=system, tools=tools), form, LETTER, Flags(99))
    assert "".join(map(chr, encoded.input_ids)) == f"{start}\1\2a\3b\4"


def test_calls_and_their_results_are_turns(make_form: MakeForm) -> None:
    slots = LETTERS | {"observation": (7, "{{content}}"), "function": ("{{content}}", 8)}
    call = '{"name": "f", "arguments": {}}'
    turns = (Turn("user", "a"), Turn("function", call), Turn("observation", "b"), Turn("assistant", "c"))
    encoded = encode(Conversation(turns), make_form(slots=slots), LETTER, Flags(999))
    written = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert "".join(map(chr, encoded.input_ids)) == f"\1\2a\3{written}\x08\7bc\4"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (talk(), "turns do not come in pairs"),
        (talk("a"), "turns do not come in pairs"),
        (talk("a", "b", tools="{"), "tools are not JSON"),
        (Conversation((Turn("user", "a"), Turn("function", "b"))), "function call is not JSON"),
    ],
)
@pytest.mark.parametrize("simulate", [encode, measure])
def test_a_row_that_the_trainer_stops_at_is_rejected(
    make_form: MakeForm, row: Conversation, reason: str, simulate: Callable[..., Any]
) -> None:
    with pytest.raises(Rejected) as caught:
        simulate(row, make_form(), LETTER, Flags())
    assert caught.value.reason == reason


CONTENTS = st.lists(
    st.sampled_from(["", "word ", "é", "中文", "<think>", THOUGHT, "<|im_end|>", "  \n", "x" * 30]), max_size=6
)
ROWS = st.lists(st.tuples(CONTENTS.map("".join), CONTENTS.map("".join)), min_size=1, max_size=5).map(
    lambda pairs: talk(*(text for pair in pairs for text in pair))
)
FLAGS = st.builds(Flags, st.integers(1, 300), st.booleans(), st.booleans())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        REASONING,
        {"efficient_eos": True},
        {"template_class": "Llama2Template"},
        REASONING | {"enable_thinking": False},
    ],
    ids=["Template", "ReasoningTemplate", "efficient_eos", "Llama2Template", "no thinking"],
)
def test_measuring_agrees_with_encoding(make_form: MakeForm, changes: dict[str, Any]) -> None:
    form = make_form(**changes)
    tokenizer = load_tokenizer(form)

    @settings(max_examples=150, deadline=None)
    @given(ROWS, FLAGS)
    def check(row: Conversation, flags: Flags) -> None:
        facts, encoded = measure(row, form, tokenizer, flags), encode(row, form, tokenizer, flags)
        whole = encode(row, form, tokenizer, flags._replace(cutoff_len=10**6))
        assert facts == encoded.facts
        assert facts.kept_tokens == len(encoded.input_ids) <= flags.cutoff_len
        assert facts.trained_tokens == sum(label != -100 for label in encoded.labels)
        assert facts.full_tokens == len(whole.input_ids)
        assert facts.is_cut == (facts.full_tokens > flags.cutoff_len)

    check()


def test_packs_are_the_trainers(make_form: MakeForm) -> None:
    greedy_knapsack = trainers_knapsack(Path(make_form().tool_utils).parent / "processor" / "processor_utils.py")

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 50))
    def check(lengths: list[int], cutoff_len: int) -> None:
        fitting = [length for length in lengths if length <= cutoff_len]
        assert pack(lengths, cutoff_len) == len(greedy_knapsack(fitting, cutoff_len))

    check()


def trainers_knapsack(path: Path) -> Any:
    """The trainer's own function, without the imports around it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    names: dict[str, Any] = {"bisect": bisect}
    exec(compile(tree, path, "exec"), names)
    return names["greedy_knapsack"]


def test_tokens_of_images_are_counted_in_what_is_kept(make_form: MakeForm) -> None:
    form = make_form(slots=LETTERS, images=ImageForm("", "I", "", ord("I"), 28, 1, 1, 1, 1, ()))

    @settings(deadline=None)
    @given(st.lists(st.text("abI", max_size=12), min_size=2, max_size=8), st.integers(1, 60), st.booleans())
    def check(texts: list[str], cutoff_len: int, mask_history: bool) -> None:
        row, flags = talk(*texts[: len(texts) // 2 * 2]), Flags(cutoff_len, mask_history)
        encoded = encode(row, form, LETTER, flags)
        assert measure(row, form, LETTER, flags) == encoded.facts
        assert encoded.facts.image_tokens == encoded.input_ids.count(ord("I"))
        assert measure(row, form, LETTER, Flags(999)).image_tokens == sum(turn.content.count("I") for turn in row.turns)

    check()
