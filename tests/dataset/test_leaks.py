"""The same prompt twice, and the same row twice."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.dataset import leaks
from trainkit.dataset.leaks import count_repeats, count_shared, prompt_hash, twin_hash
from trainkit.datatypes import Conversation, Turn

numbers = st.lists(st.integers(0, 12), max_size=40)


def talk(*texts: str, system: str = "", tools: str = "") -> Conversation:
    roles = ["user", "assistant"] * len(texts)
    return Conversation(tuple(map(Turn, roles, texts)), system, tools)


def test_two_judges_of_one_step_ask_the_same_question() -> None:
    one = talk("[EVAL_TYPE: clip] [MODEL: kimi-k2] Judge step 3.", '{"score": 0.1}')
    other = talk("[EVAL_TYPE: clip] [MODEL: deepseek-chat] Judge step 3.", '{"score": 0.9}')
    assert prompt_hash(one) == prompt_hash(other)
    assert twin_hash(one) != twin_hash(other)


@pytest.mark.parametrize(
    "other",
    [
        talk("Judge step 4.", "yes", "why?", "so"),
        talk("Judge step 3.", "no", "why?", "so"),
        talk("Judge step 3.", "yes", "why?", "so", system="Be strict."),
        talk("Judge step 3.yes", "", "why?", "so"),
    ],
)
def test_another_question_has_another_hash(other: Conversation) -> None:
    assert prompt_hash(talk("Judge step 3.", "yes", "why?", "so")) != prompt_hash(other)


def test_the_last_answer_is_no_part_of_the_prompt_but_of_the_row() -> None:
    one, other = talk("Judge.", "yes"), talk("Judge.", "no")
    assert prompt_hash(one) == prompt_hash(other)
    assert twin_hash(one) != twin_hash(other)
    assert twin_hash(one) == twin_hash(talk("Judge.", "yes"))
    assert prompt_hash(Conversation(())) == prompt_hash(Conversation(()))
    twin_hash(talk("lone \ud800 surrogate", "yes"))


@pytest.mark.parametrize("at_once", [2_000_000, 3])
@given(one=numbers, other=numbers)
def test_counts_are_those_of_plain_sets(at_once: int, one: list[int], other: list[int]) -> None:
    spread = 1 << 59  # over the whole range of hashes, so that each round finds some
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaks, "ROUND", at_once)
        first, second = array("Q", [n * spread for n in one]), array("Q", [n * spread for n in other])
        shared = [position for position, number in enumerate(other) if number in one]
        assert count_shared(first, second) == (len(shared), shared[:3])
        repeats = [(position, one.index(number)) for position, number in enumerate(one) if number in one[:position]]
        assert count_repeats(first) == (len(repeats), repeats[:3])
