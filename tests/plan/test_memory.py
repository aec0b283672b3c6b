"""The closed form: golden figures, published measurements, and what must hold for every model and setup.

That it agrees with the exact trace is tested in test_memory_grid.py.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.plan.architecture import Architecture, architecture_of
from trainkit.plan.known_models import find_known_config
from trainkit.plan.memory import Memory, Setup, estimate

GIB = 2**30
MODELS = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b", "llama-3-8b", "mistral-7b", "qwen3-8b")


def model(name: str) -> Architecture:
    config = find_known_config(name)
    assert config is not None
    return architecture_of(config)


QWEN_7B, QWEN3_8B, QWEN_05B = model("qwen2.5-7b"), model("qwen3-8b"), model("qwen2.5-0.5b")
LORA = Setup(micro_batch=2, seq_tokens=4096, rank=64, accumulation=8, hopper=True)
FULL = replace(LORA, method="full")


def gib(name: str, **fields: Any) -> float:
    return estimate(model(name), replace(LORA, **fields)).allocated / GIB


# In GiB, with 64 MiB of workspace: traces and figures of another closed form, both made before this code.
@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("qwen2.5-7b", {"dropout": 0.1}, 32.2),
        ("qwen2.5-7b", {"liger": True}, 20.7),
        ("qwen2.5-7b", {"liger": True, "micro_batch": 4}, 24.8),
        ("qwen2.5-7b", {"liger": True, "checkpointing": False}, 58.3),
        ("qwen2.5-7b", {"checkpointing": False, "seq_tokens": 1024, "micro_batch": 1}, 25.1),
        ("qwen2.5-7b", {"method": "full", "seq_tokens": 1024}, 130.4),
        ("qwen2.5-0.5b", {"seq_tokens": 1024, "micro_batch": 1}, 3.3),
        ("qwen2.5-1.5b", {"method": "full"}, 39.0),
        ("qwen2.5-3b", {"seq_tokens": 16384, "micro_batch": 1, "liger": True}, 12.8),
        ("llama-3-8b", {}, 31.4),
        ("llama-3-8b", {"method": "full", "checkpointing": False}, 205.8),
        ("mistral-7b", {"micro_batch": 4}, 26.3),
        ("qwen3-8b", {"liger": True}, 22.3),
        ("qwen3-8b", {"checkpointing": False}, 93.4),
    ],
)
def test_golden_figures(name: str, fields: dict[str, Any], expected: float) -> None:
    assert gib(name, **fields) == pytest.approx(expected, abs=0.06, rel=0.006)


@pytest.mark.parametrize(
    ("seq_tokens", "measured"), [(256, 20.1), (512, 20.4), (1024, 21.5), (2048, 23.8), (4096, 29.7), (8192, 36.6)]
)
def test_measured_qwen_7b(seq_tokens: int, measured: float) -> None:
    """QwenLM/Qwen's README, in GB: Qwen-7B, LoRA rank 64, one A100-80, batch 1, accumulation 8, by nvidia-smi."""
    qwen = Architecture("qwen2", 4096, 11008, 32, 32, 32, 128, 151936, qkv_bias=True)
    setup = Setup(seq_tokens=seq_tokens, rank=64, accumulation=8)
    assert estimate(qwen, setup).total / 1e9 == pytest.approx(measured, rel=0.10)


def test_qwen3_8b_on_eight_gpus_of_80_gib_does_not_fit_as_written_and_fits_with_liger() -> None:
    setup = replace(FULL, seq_tokens=16384, accumulation=4, zero_stage=3, world=8)
    written, liger = (estimate(QWEN3_8B, replace(setup, liger=on)) for on in (False, True))
    assert written.allocated / GIB == pytest.approx(82.9, abs=0.3)
    assert written.phase == "backward, loss"
    assert written.total > 80 * GIB
    assert liger.allocated / GIB == pytest.approx(31.5, abs=1.0)
    assert liger.total < 0.95 * 79 * GIB


def words(memory: Memory) -> dict[str, str]:
    return {name: why for name, _, why in memory.terms()}


def test_each_term_has_its_formula_and_the_terms_add_up() -> None:
    memory = estimate(QWEN_7B, replace(LORA, masked=True))
    terms = memory.terms()
    assert sum(size for _, size, _ in terms) == memory.total
    assert sum(size for _, size, _ in terms[:8]) == memory.allocated
    assert terms == [
        ("weights", 15877155840, "2 bytes x 7,615,616,512 frozen weights + 4 x 161,480,704 of the adapter"),
        ("gradients", 645922816, "4 bytes x 161,480,704 trained weights"),
        ("optimizer", 1291845632, "8 bytes x 161,480,704 trained weights"),
        ("buffers", 33554432, "mask: 1 bytes x 2 rows x 4,096^2 tokens"),
        ("kept activations", 1648361472, "28 layers x 7,168 bytes x 8,192 tokens: the input of each"),
        ("logits", 14948499456, "12 bytes x 152,064 vocabulary x 8,192 tokens"),
        ("layer work", 117440512, "the states behind the last layer"),
        ("workspace", 67108864, "cuBLAS"),
        ("allocator", 347204485, "2% of what comes and goes"),
        ("context", 590558003, "CUDA"),
    ]
    assert memory.phase == "backward, loss"
    assert memory.tokens == 8192


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"method": "full", "zero_stage": 3, "world": 8, "stage": "dpo", "liger": True},
            {
                "weights": "1/8 of 2 bytes x 7,615,616,512 weights, and the reference model, and those of the layers "
                "at work",
                "gradients": "2 bytes x 7,615,616,512 trained weights / 8 ranks",
                "optimizer": "12 bytes x 7,615,616,512 trained weights / 8 ranks, the fp32 copy of weights included",
                "buffers": "ZeRO's buckets: 2 bytes x 25,690,112 elements",
                "logits": "16 bytes x 152,064 vocabulary x 16,384 tokens",
                "context": "CUDA and NCCL",
            },
        ),
        (
            {"method": "full", "zero_stage": 2, "world": 8, "offload_optimizer": True, "liger": True},
            {
                "weights": "2 bytes x 7,615,616,512 weights",
                "gradients": "2 bytes x 7,615,616,512 trained weights, at most a bucket: the rest is in the host's "
                "memory",
                "optimizer": "in the host's memory",
                "buffers": "ZeRO's bucket: 2 bytes x 500,000,000 gradients",
                "layer work": "one layer computed again, and its backward pass",
            },
        ),
        (
            {"world": 2, "accumulation": 1},
            {
                "gradients": "none alive at the peak",
                "buffers": "DDP's buckets: 4 bytes x 161,480,704 trained weights",
            },
        ),
        (
            {"method": "qlora", "checkpointing": False, "liger": True, "masked": True, "packing": True},
            {
                "weights": "0.52 bytes x 6,525,288,448 weights in nf4 + 2 x 1,090,328,064 others",
                "buffers": "mask: 2 bytes x 2 rows x 4,096^2 tokens",
                "logits": "none alive at the peak (backward, last layer)",
                "kept activations": "28 layers x 173,432 bytes x 8,192 tokens: all that each computed",
                "layer work": "the backward pass of one layer",
            },
        ),
        (
            {"method": "full", "liger": True, "seq_tokens": 1024},
            {"logits": "2 bytes x 152,064 vocabulary x 64 tokens of a chunk"},
        ),
        (
            {"method": "full", "seq_tokens": 8, "accumulation": 1, "zero_stage": 0},
            {"layer work": "4 bytes x 7,615,616,512 gradients of the optimizer step"},
        ),
        (
            {"expandable_segments": False},
            {"allocator": "blocks that fit nothing: 30% of the logits, 20% of a layer's work"},
        ),
    ],
)
def test_the_words_of_other_setups(fields: dict[str, Any], expected: dict[str, str]) -> None:
    told = words(estimate(QWEN_7B, replace(LORA, **fields)))
    assert {name: told[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("fields", "optimizer"),
    [
        ({}, 8),
        ({"pure_bf16": True}, 4),
        ({"optimizer": "adamw_8bit"}, 2),
        ({"optimizer": "adamw_8bit", "pure_bf16": True}, 2),
        ({"optimizer": "paged"}, 0),
        ({"zero_stage": 0}, 12),
        ({"zero_stage": 0, "pure_bf16": True}, 12),
        ({"zero_stage": 2, "world": 4}, 3),
        ({"zero_stage": 0, "optimizer": "paged"}, 4),
    ],
)
def test_bytes_of_the_optimizer_for_each_trained_weight(fields: dict[str, Any], optimizer: int) -> None:
    memory = estimate(QWEN_7B, replace(FULL, **fields))
    assert memory.optimizer == pytest.approx(optimizer * QWEN_7B.params)


@pytest.mark.parametrize(
    ("dtype_bytes", "fields", "weight_bytes"),
    [(4, {}, 4), (4, {"zero_stage": 2}, 2), (2, {"method": "full"}, 4), (2, {"method": "full", "pure_bf16": True}, 2)],
)
def test_bytes_of_a_weight(dtype_bytes: int, fields: dict[str, Any], weight_bytes: int) -> None:
    checkpoint = replace(QWEN_7B, dtype_bytes=dtype_bytes)
    memory = estimate(checkpoint, replace(LORA, rank=0, **fields))
    assert memory.weights == weight_bytes * QWEN_7B.params


def test_a_vision_tower_is_held_and_not_trained() -> None:
    tower = replace(QWEN_7B, tower_params=10**9)
    without, with_tower = (estimate(shape, FULL) for shape in (QWEN_7B, tower))
    assert with_tower.weights - without.weights == 2 * 10**9
    assert with_tower.optimizer == without.optimizer


def test_full_preference_training_holds_a_reference_model() -> None:
    held = {stage: estimate(QWEN_7B, replace(FULL, stage=stage)).weights for stage in ("sft", "dpo", "kto", "rm")}
    extra = 2 * QWEN_7B.params
    assert held == {"sft": held["rm"], "dpo": held["rm"] + extra, "kto": held["rm"] + extra, "rm": held["rm"]}


def test_liger_spares_the_logits_only_of_stages_that_do_not_need_them() -> None:
    spared = {
        stage: estimate(QWEN_7B, replace(LORA, stage=stage, liger=True)).logits == 0
        for stage in ("pt", "sft", "rm", "dpo", "kto")
    }
    assert spared == {"pt": True, "sft": True, "rm": False, "dpo": False, "kto": False}


def test_logits_per_token_of_each_stage() -> None:
    logits = {stage: estimate(QWEN_05B, replace(LORA, stage=stage)) for stage in ("pt", "sft", "rm", "dpo", "kto")}
    assert {stage: memory.logits / (memory.tokens * QWEN_05B.vocab) for stage, memory in logits.items()} == {
        "pt": 12, "sft": 12, "rm": 10, "dpo": 16, "kto": 20,
    }  # fmt: skip


def test_other_families() -> None:
    """Figures of the exact trace for one row of 4096 tokens, in GiB without workspace."""
    gemma2 = architecture_of({
        "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 256000,
    })  # fmt: skip
    phi3 = architecture_of({
        "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32064,
    })  # fmt: skip
    mixtral = architecture_of({
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
        "num_experts_per_tok": 2,
    })  # fmt: skip
    setup = replace(LORA, micro_batch=1)
    cases = (
        (gemma2, {}, 20.28),
        (gemma2, {"checkpointing": False}, 34.93),
        (gemma2, {"checkpointing": False, "method": "full", "pure_bf16": True}, 50.02),
        (phi3, {"checkpointing": False}, 28.13),
        (phi3, {"method": "full"}, 66.76),
        (mixtral, {}, 90.51),
        (mixtral, {"checkpointing": False}, 123.00),
        (mixtral, {"checkpointing": False, "method": "full", "pure_bf16": True}, 392.12),
    )
    for shape, fields, traced in cases:
        memory = estimate(shape, replace(setup, **fields))
        assert (memory.allocated - memory.workspace) / GIB == pytest.approx(traced, rel=0.005), (shape, fields)


def test_an_estimate_takes_less_than_a_millisecond() -> None:
    started = time.process_time()
    for micro_batch in range(1, 201):
        estimate(QWEN3_8B, replace(FULL, micro_batch=micro_batch))
    assert (time.process_time() - started) / 200 < 1e-3


models = st.sampled_from(MODELS).map(model)
setups = st.builds(
    Setup,
    method=st.sampled_from(["lora", "full", "qlora"]),
    stage=st.sampled_from(["pt", "sft", "rm", "dpo", "kto"]),
    micro_batch=st.integers(1, 8),
    seq_tokens=st.integers(1, 4096).map(lambda tokens: 8 * tokens),
    rank=st.integers(1, 256),
    lora_targets=st.sampled_from(["all", ("q_proj", "v_proj"), ("down_proj",)]),
    dropout=st.sampled_from([0.0, 0.1]),
    checkpointing=st.booleans(),
    liger=st.booleans(),
    packing=st.booleans(),
    masked=st.booleans(),
    zero_stage=st.sampled_from([None, 0, 1, 2, 3]),
    offload_optimizer=st.booleans(),
    offload_params=st.booleans(),
    world=st.sampled_from([1, 2, 8]),
    pure_bf16=st.booleans(),
    accumulation=st.sampled_from([1, 4]),
    optimizer=st.sampled_from(["adamw", "adamw_8bit", "paged"]),
    hopper=st.booleans(),
    expandable_segments=st.booleans(),
)


@given(models, setups)
def test_terms_are_bytes_that_add_up(shape: Architecture, setup: Setup) -> None:
    memory = estimate(shape, setup)
    sizes = [size for _, size, _ in memory.terms()]
    assert all(isinstance(size, int) and size >= 0 for size in sizes)
    assert sum(sizes) == memory.total
    assert memory.tokens == setup.tokens


@given(models, setups, st.sampled_from(["micro_batch", "seq_tokens", "rank"]), st.integers(1, 64))
def test_more_never_takes_less(shape: Architecture, setup: Setup, field: str, more: int) -> None:
    step = 8 * more if field == "seq_tokens" else more
    larger = replace(setup, **{field: getattr(setup, field) + step})
    assert estimate(shape, larger).allocated >= estimate(shape, setup).allocated


@given(models, setups.filter(lambda setup: setup.tokens >= 1024))
def test_recomputing_never_takes_more(shape: Architecture, setup: Setup) -> None:
    kept, again = (estimate(shape, replace(setup, checkpointing=on)) for on in (False, True))
    assert again.allocated <= kept.allocated


@given(models, setups)
def test_accumulating_and_masks_and_a_larger_world_without_shards_never_take_less(
    shape: Architecture, setup: Setup
) -> None:
    least = replace(setup, accumulation=1, masked=False, world=1, zero_stage=None)
    base = estimate(shape, least)
    for field, value in (("accumulation", 2), ("masked", True), ("world", 2)):
        assert estimate(shape, replace(least, **{field: value})).allocated >= base.allocated


@given(models, setups, st.sampled_from([2, 8]))
def test_each_zero_stage_takes_no_more_than_the_one_before(shape: Architecture, setup: Setup, world: int) -> None:
    whole = replace(setup, world=world, offload_optimizer=False, offload_params=False)
    sizes = [estimate(shape, replace(whole, zero_stage=stage)).allocated for stage in (0, 1, 2, 3)]
    assert sizes == sorted(sizes, reverse=True)


@given(models, setups, st.sampled_from([2, 3]))
def test_offloading_never_takes_more(shape: Architecture, setup: Setup, stage: int) -> None:
    base = replace(setup, zero_stage=stage, offload_optimizer=False, offload_params=False)
    optimizer = replace(base, offload_optimizer=True)
    both = replace(optimizer, offload_params=True)
    sizes = [estimate(shape, choice).allocated for choice in (base, optimizer, both)]
    assert sizes == sorted(sizes, reverse=True)
