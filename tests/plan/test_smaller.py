"""What is offered when a training ran out of memory although it was predicted to fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from trainkit.plan.architecture import architecture_of
from trainkit.plan.gpus import find_gpu
from trainkit.plan.memory import Setup
from trainkit.plan.search import search
from trainkit.plan.smaller import CLEARLY_LESS, find_smaller
from trainkit.plan.verdict import Machine, Task, judge

QWEN_7B = architecture_of({
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
})  # fmt: skip
GIVEN = Setup(method="lora", stage="sft", micro_batch=8, seq_tokens=4096, rank=64, masked=True, accumulation=2)


def task_for(**fields: Any) -> Task:
    setup = dataclasses.replace(GIVEN, **fields)
    rows = setup.micro_batch * setup.accumulation
    return Task(QWEN_7B, Machine(find_gpu("a100-80")), setup, setup.seq_tokens, rows)


@pytest.mark.parametrize(
    "fields", [{}, {"checkpointing": False}, {"micro_batch": 2, "accumulation": 8}, {"liger": True}]
)
def test_the_fastest_with_clearly_less_is_taken_and_a_step_keeps_its_rows(fields: dict[str, Any]) -> None:
    task = task_for(**fields)
    given = judge(task, task.given).memory.total
    found = find_smaller(task)
    assert found is not None
    setup = found.verdict.setup
    assert found.verdict.memory.total <= CLEARLY_LESS * given
    assert setup.micro_batch * setup.accumulation == 16
    assert (setup.seq_tokens, setup.rank, setup.method) == (4096, 64, "lora")
    assert found.changes
    faster = [other for other in search(task) if other.speedup > found.speedup]
    assert all(other.verdict.memory.total > CLEARLY_LESS * given for other in faster)


def test_the_smallest_has_nothing_below_it() -> None:
    task = task_for(micro_batch=1, accumulation=16, liger=True)
    assert find_smaller(task) is None


def test_taking_it_again_and_again_comes_to_an_end() -> None:
    task, needs = task_for(checkpointing=False), []
    while found := find_smaller(task):
        needs.append(found.verdict.memory.total)
        task = dataclasses.replace(task, given=found.verdict.setup)
    assert needs == sorted(needs, reverse=True)
    assert 1 <= len(needs) <= 10
