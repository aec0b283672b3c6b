from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.plan.architecture import architecture_of
from trainkit.plan.gpus import GIB, MODELS, find_gpu
from trainkit.plan.memory import Setup
from trainkit.plan.padding import Lengths
from trainkit.plan.search import LARGEST_MICRO_BATCH, search
from trainkit.plan.setup import keys_of
from trainkit.plan.suggest import Advice, advise
from trainkit.plan.verdict import Machine, Task, judge

if TYPE_CHECKING:
    from trainkit.plan.options import Option

QWEN_7B = architecture_of({
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
})  # fmt: skip
QWEN3_8B = architecture_of({
    "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "head_dim": 128,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": False,
})  # fmt: skip
# A reward model: LoRA r64 with dropout 0.1 on Qwen2.5-7B, 2 x 8 rows of up to 4096 tokens.
REWARD = Setup(
    method="lora", stage="sft", micro_batch=2, seq_tokens=4096, rank=64, dropout=0.1, masked=True, accumulation=8,
)  # fmt: skip
# A tool-calling model: Qwen3-8B in full under ZeRO-3 on 8 GPUs, 2 x 4 rows of up to 16384 tokens.
TOOLS = Setup(
    method="full", stage="sft", micro_batch=2, seq_tokens=16384, masked=True, accumulation=4, zero_stage=3, world=8,
)  # fmt: skip
LIGER = {"enable_liger_kernel": True}
NO_CHECKPOINTS = {"disable_gradient_checkpointing": True}
ONE_ROW = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}


def task_for(setup: Setup, gpu: str, **fields: Any) -> Task:
    architecture = QWEN3_8B if setup.seq_tokens == 16384 else QWEN_7B
    model = find_gpu(gpu)
    setup = replace(setup, hopper=model.capability >= (9, 0))
    machine = Machine(model, setup.world, setup.expandable_segments)
    rows = setup.micro_batch * setup.accumulation * setup.world
    return replace(Task(architecture, machine, setup, setup.seq_tokens, rows), **fields)


def advice_for(setup: Setup, gpu: str, **fields: Any) -> Advice:
    return advise(task_for(setup, gpu, **fields))


def option(advice: Advice, *keys: str) -> Option:
    return next(option for option in advice.options if tuple(option.keys) == keys)


@pytest.mark.parametrize(
    ("gpu", "changes", "speedup", "together"),
    [
        ("a100-40", LIGER, 1.05, 1.5),
        ("a100-80", LIGER | NO_CHECKPOINTS, 1.45, 2.0),
        ("h100", LIGER | NO_CHECKPOINTS, 1.5, 2.0),
        ("h200", LIGER | NO_CHECKPOINTS, 1.5, 2.0),
    ],
)
def test_the_reward_model_gets_faster_on_every_card(
    gpu: str, changes: dict[str, Any], speedup: float, together: float
) -> None:
    """The second figure is reached with what is only offered: no mask, no dropout, the 16-bit engine."""
    advice = advice_for(REWARD, gpu)
    first = advice.candidates[0]
    assert advice.given.fits
    assert (first.changes, first.verdict.fits) == (changes, True)
    assert first.speedup >= speedup
    offered = option(advice, "flash_attn", "lora_dropout", "deepspeed")
    assert offered.gain * first.speedup >= together
    assert offered.verdict.fits


@pytest.mark.parametrize("gpu", ["a100-80", "h100"])
def test_the_tool_model_does_not_fit_as_written_and_fits_with_liger(gpu: str) -> None:
    advice = advice_for(TOOLS, gpu)
    assert not advice.given.fits
    assert advice.given.margin < -4 * GIB
    assert advice.given.memory.logits > 50 * GIB
    assert advice.candidates[0].changes == LIGER
    assert advice.candidates[0].verdict.margin > 30 * GIB
    assert advice.nearest is None


def test_on_a_small_card_less_is_kept_at_once() -> None:
    advice = advice_for(replace(REWARD, seq_tokens=8192), "4090")
    assert not advice.given.fits
    assert advice.candidates[0].changes == ONE_ROW | LIGER


def test_when_nothing_fits_the_nearest_is_named_with_what_would_fit() -> None:
    advice = advice_for(REWARD, "t4")
    assert (advice.candidates, advice.something_fits) == ((), False)
    assert advice.nearest is not None
    assert advice.nearest.changes == ONE_ROW | LIGER
    assert advice.nearest.verdict.margin < 0
    fits = option(advice, "quantization_bit")
    assert (fits.keys, fits.verdict.fits, fits.gain) == ({"quantization_bit": 4}, True, 1.0)


def test_a_shorter_cutoff_is_offered_when_rows_are_too_long() -> None:
    long = replace(REWARD, micro_batch=1, accumulation=1, seq_tokens=65536, stage="dpo")
    advice = advice_for(long, "a100-40")
    shorter = option(advice, "cutoff_len")
    assert advice.something_fits is False
    assert shorter.verdict.fits
    assert shorter.verdict.setup.seq_tokens == shorter.keys["cutoff_len"] < 65536
    too_long = replace(long, seq_tokens=2 * shorter.keys["cutoff_len"])
    assert not advice_for(too_long, "a100-40").something_fits
    packed = replace(long, stage="sft", packing=True, seq_tokens=131080, liger=True, masked=True)
    advice = advice_for(packed, "4090", cutoff_len=131072)
    assert option(advice, "cutoff_len").verdict.setup.seq_tokens == option(advice, "cutoff_len").keys["cutoff_len"] + 8


def test_no_cutoff_is_offered_when_the_weights_alone_are_too_many() -> None:
    assert [list(option.keys) for option in advice_for(replace(REWARD, method="qlora"), "4").options] == []


def test_what_is_the_fastest_already_stays() -> None:
    best = replace(REWARD, liger=True, checkpointing=False)
    advice = advice_for(best, "a100-80")
    assert [candidate.changes for candidate in advice.candidates] == [{}]
    assert advice.candidates[0].speedup == 1


def test_candidates_are_of_different_kinds_and_the_first_is_the_fastest() -> None:
    advice = advice_for(TOOLS, "h100")
    kinds = {
        (setup.checkpointing, setup.liger, setup.zero_stage, setup.offload_params)
        for setup in (candidate.verdict.setup for candidate in advice.candidates)
    }
    assert len(kinds) == len(advice.candidates) == 3
    assert advice.candidates[0].speedup >= 0.98 * max(candidate.speedup for candidate in advice.candidates)


@pytest.mark.parametrize(
    ("setup", "packages", "stages"),
    [
        (REWARD, ("deepspeed",), {None}),
        (replace(REWARD, world=8), ("deepspeed",), {None, 2, 3}),
        (replace(REWARD, world=8), (), {None}),
        (replace(REWARD, method="qlora", world=8), ("deepspeed",), {None, 2}),
        (replace(TOOLS, world=1, zero_stage=None), ("deepspeed",), {None, 2, 3}),
        (replace(TOOLS, zero_stage=None, pure_bf16=True), ("deepspeed",), {None, 2}),
        (TOOLS, (), {3}),
    ],
)  # fmt: skip
def test_sharding_is_searched_where_it_can_be(setup: Setup, packages: tuple[str, ...], stages: set[int | None]) -> None:
    found = search(task_for(setup, "h200", packages=packages))
    assert {candidate.verdict.setup.zero_stage for candidate in found} == stages


def test_an_offload_of_ones_own_is_kept_in_the_search() -> None:
    own = replace(TOOLS, offload_optimizer=True)
    kinds = {
        (setup.zero_stage, setup.offload_optimizer, setup.offload_params)
        for setup in (candidate.verdict.setup for candidate in search(task_for(own, "h200")))
    }
    assert kinds == {
        (3, True, False), (None, False, False), (2, False, False), (3, False, False), (3, True, True),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setup", "searched"),
    [
        (REWARD, {True, False}),
        (replace(REWARD, liger=True), {True}),
        (replace(REWARD, stage="dpo"), {False}),
        (replace(REWARD, stage="pt"), {True, False}),
    ],
)
def test_liger_is_searched_where_it_saves_the_logits(setup: Setup, searched: set[bool]) -> None:
    assert {candidate.verdict.setup.liger for candidate in search(task_for(setup, "h200"))} == searched


def test_rows_packed_without_a_mask_go_one_at_a_time() -> None:
    packed = replace(REWARD, packing=True, masked=False, micro_batch=1, accumulation=16)
    assert {candidate.verdict.setup.micro_batch for candidate in search(task_for(packed, "h200"))} == {1}


def test_lengths_change_the_advice() -> None:
    lengths = Lengths.of([300] * 50 + [900] * 30 + [2000] * 15 + [5000] * 5)
    worst, known = (advice_for(REWARD, "a100-40", lengths=each) for each in (None, lengths))
    assert known.given.memory == worst.given.memory  # the longest row comes up in every epoch
    assert known.given.efficiency == pytest.approx(0.64, abs=0.1)
    assert known.candidates[0].changes == ONE_ROW | LIGER
    packed = option(advice_for(REWARD, "h100", lengths=lengths), "neat_packing", "flash_attn")
    assert packed.changes.items() >= {"neat_packing": True, "flash_attn": "fa2"}.items()
    assert packed.verdict.setup.micro_batch == 1
    assert packed.verdict.efficiency > 0.9
    sorted_rows = judge(task_for(REWARD, "a100-40", lengths=lengths, grouped=True), REWARD)
    assert sorted_rows.efficiency == pytest.approx(0.95, abs=0.01)
    assert sorted_rows.tokens_per_second > known.given.tokens_per_second
    assert [note.where for note in worst.notes] == ["cutoff_len"]
    assert known.notes == ()


def test_an_effective_batch_that_cannot_be_divided_is_said() -> None:
    advice = advice_for(replace(REWARD, world=8), "a100-80", effective_batch=100)
    assert (advice.notes[0].level, advice.notes[0].message) == (
        "warning", "100 rows cannot be divided among 8 GPUs: 96 are taken",
    )  # fmt: skip
    setups = [candidate.verdict.setup for candidate in advice.candidates]
    assert {setup.micro_batch * setup.accumulation * setup.world for setup in setups} == {96}
    few = advice_for(replace(REWARD, world=8), "a100-80", effective_batch=4)
    assert {candidate.verdict.setup.accumulation for candidate in few.candidates} == {1}


def test_a_gpu_of_unknown_speed_is_said() -> None:
    assert [note.where for note in advice_for(REWARD, "48").notes] == ["--gpu", "cutoff_len"]


def test_without_growing_segments_less_may_be_filled() -> None:
    machine = Machine(find_gpu("a100-80"))
    assert machine.usable == int(machine.gpu.memory * 0.95)
    assert replace(machine, expandable_segments=False).usable == int(machine.gpu.memory * 0.92)


@pytest.mark.parametrize(
    ("setup", "offered"),
    [
        (REWARD, {"flash_attn", "lora_dropout", "deepspeed"}),
        (replace(REWARD, dropout=0.0), {"flash_attn", "deepspeed"}),
        (replace(REWARD, masked=False, dropout=0.0), {"deepspeed"}),
        (replace(TOOLS, seq_tokens=4096, world=1, zero_stage=None), {"flash_attn", "pure_bf16"}),
    ],
)
def test_only_what_helps_is_offered(setup: Setup, offered: set[str]) -> None:
    advice = advice_for(setup, "a100-80")
    assert {key for option in advice.options for key in option.keys} == offered
    assert [option.gain for option in advice.options] == sorted((o.gain for o in advice.options), reverse=True)
    assert all(option.gain >= 1.03 for option in advice.options)


@settings(deadline=None)
@given(
    st.sampled_from([REWARD, TOOLS, replace(REWARD, method="full"), replace(REWARD, method="qlora", world=4)]),
    st.sampled_from(["sft", "rm", "dpo"]),
    st.sampled_from(MODELS),
    st.integers(1, 6),
    st.integers(1, 12),
    st.booleans(),
)
def test_advice_keeps_what_is_learnt(
    setup: Setup, stage: Any, gpu: Any, micro_batch: int, accumulation: int, checkpointing: bool
) -> None:
    setup = replace(setup, stage=stage, micro_batch=micro_batch, accumulation=accumulation, checkpointing=checkpointing)
    advice = advice_for(setup, gpu.name)
    rows = micro_batch * accumulation
    for candidate in advice.candidates:
        found = candidate.verdict.setup
        assert candidate.verdict.fits
        assert candidate.verdict.memory.total <= gpu.memory * 0.95
        assert found.micro_batch * found.accumulation == rows
        assert found.micro_batch <= LARGEST_MICRO_BATCH
        kept = ("method", "stage", "rank", "lora_targets", "dropout", "packing", "masked", "pure_bf16", "seq_tokens")
        assert all(getattr(found, field) == getattr(setup, field) for field in kept)
        assert candidate.changes == keys_of(found, advice.given.setup)
        if advice.given.fits:
            assert candidate.speedup >= 0.98
    assert (advice.nearest is None) == bool(advice.candidates)
