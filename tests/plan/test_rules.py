from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.datatypes import Gpu, Hardware
from trainkit.plan.arguments import TrainerSchema
from trainkit.plan.facts import Facts
from trainkit.plan.rules import RULES

if TYPE_CHECKING:
    from trainkit.plan.facts import Rule

A100 = Gpu("NVIDIA A100-SXM4-40GB", 40.0, (8, 0))
GOOD = {"dataset": "d", "do_train": True, "learning_rate": 1e-5}
QUANTIZED = {"quantization_bit": 4}
BADAM = {"finetuning_type": "full", "use_badam": True}
ZERO3 = {"deepspeed": "ds_z3.json"}
EVALUATED = {"eval_dataset": "e", "eval_strategy": "steps", "eval_steps": 100, "load_best_model_at_end": True}

# keys -> the rules that apply, as "key: a piece of the message"
CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"finetuning_type": "full", "adapter_name_or_path": "a"}, ["adapter_name_or_path: lora only"]),
    (QUANTIZED, []),
    (QUANTIZED | {"finetuning_type": "oft"}, []),
    (QUANTIZED | {"finetuning_type": "full"}, ["quantization_bit: lora or oft only"]),
    (QUANTIZED | {"pissa_init": True}, ["pissa_init: quantized"]),
    (QUANTIZED | {"resize_vocab": True}, ["resize_vocab: quantized"]),
    (QUANTIZED | {"adapter_name_or_path": "a", "create_new_adapter": True}, ["create_new_adapter: quantized"]),
    (QUANTIZED | {"adapter_name_or_path": "a,b"}, ["adapter_name_or_path: a single adapter"]),
    (QUANTIZED | {"fp8": True}, ["fp8: quantized"]),
    ({"quantization_device_map": "auto"}, ["quantization_device_map: inference only"]),
    ({"finetuning_type": "full", "loraplus_lr_ratio": 16.0}, ["loraplus_lr_ratio: lora only"]),
    ({"finetuning_type": "full", "use_dora": True}, ["use_dora: lora only"]),
    ({"finetuning_type": "full", "use_dora": False, "use_rslora": False}, []),
    ({"finetuning_type": "freeze", "use_rslora": True}, ["use_rslora: lora only"]),
    ({"finetuning_type": "full", "pissa_init": True}, ["pissa_init: lora only"]),
    ({"finetuning_type": "full", "use_llama_pro": True}, ["use_llama_pro: lora and freeze only"]),
    ({"use_galore": True}, ["use_galore: does not work with finetuning_type: lora"]),
    ({"use_apollo": True}, ["use_apollo: does not work with finetuning_type: lora"]),
    ({"use_badam": True}, ["use_badam: does not work with finetuning_type: lora"]),
    (BADAM | {"use_galore": True}, ["use_galore: only one of"]),
    ({"stage": "kto", "pissa_init": True}, ["pissa_init: this stage"]),
    ({"stage": "dpo", "pissa_init": True}, ["pissa_init: this stage"]),
    ({"stage": "dpo", "pissa_init": True, "pref_loss": "orpo"}, []),
    ({"finetuning_type": "full", "learning_rate": 1e-4}, ["learning_rate: high for training"]),
    ({"finetuning_type": "lora", "learning_rate": 1e-4}, []),
    ({"stage": "pt", "neat_packing": True}, ["neat_packing: stage: sft only"]),
    ({"stage": "kto", "train_on_prompt": True}, ["train_on_prompt: stage: sft only"]),
    ({"stage": "kto", "mask_history": True}, ["mask_history: stage: sft only"]),
    ({"stage": "rm", "predict_with_generate": True, "val_size": 10}, ["predict_with_generate: stage: sft only"]),
    ({"stage": "rm", "save_strategy": "best"} | EVALUATED, ["load_best_model_at_end: rm and ppo"]),
    ({"stage": "ppo", "reward_model": "r", "do_train": False, "do_eval": True}, ["do_train: can only train"]),
    ({"stage": "ppo"}, ["reward_model: needs a reward model"]),
    (
        {"stage": "ppo", "reward_model": "r", "finetuning_type": "full"},
        ["reward_model_type: finetuning_type: lora only"],
    ),
    ({"stage": "ppo", "reward_model": "r", "shift_attn": True}, ["shift_attn: ppo"]),
    ({"stage": "dpo", "pref_loss": "ipo", "dpo_label_smoothing": 0.1}, ["dpo_label_smoothing: sigmoid only"]),
    ({"do_predict": True, "val_size": 0.1}, ["do_predict: predict_with_generate"]),
    ({"predict_with_generate": True}, ["eval_dataset: predicting needs"]),
    (
        {"predict_with_generate": True, "val_size": 0.1, "compute_accuracy": True},
        ["compute_accuracy: predict_with_generate"],
    ),
    ({"do_train": False}, ["do_train: nothing would run"]),
    ({"dataset": None}, ["dataset: no data set"]),
    ({"eval_dataset": "e", "val_size": 0.1}, ["val_size: cannot be there together"]),
    (
        {"dataset": None, "do_train": False, "do_eval": True, "val_size": 0.1},
        ["val_size: no dataset to take rows from"],
    ),
    ({"dataset": "a,b", "interleave_probs": "0.5,0.5"}, ["interleave_probs: mix_strategy"]),
    ({"dataset": "a,b", "interleave_probs": "0.5,0.5", "mix_strategy": "interleave_under"}, []),
    (
        {"dataset": "a,b", "interleave_probs": "1.0", "mix_strategy": "interleave_under"},
        ["interleave_probs: one number for each"],
    ),
    ({"streaming": True, "max_steps": 10, "val_size": 0.1}, ["val_size: number of rows"]),
    ({"streaming": True, "max_steps": 10, "val_size": 100}, []),
    ({"streaming": True, "max_steps": 10, "max_samples": 5}, ["max_samples: streaming"]),
    ({"streaming": True}, ["max_steps: number of steps"]),
    ({"mask_history": True, "train_on_prompt": True}, ["mask_history: train_on_prompt"]),
    ({"dataloader_prefetch_factor": 2}, ["dataloader_prefetch_factor: dataloader_num_workers"]),
    ({"dataloader_prefetch_factor": 2, "dataloader_num_workers": 1}, []),
    (EVALUATED, []),
    ({"load_best_model_at_end": True}, ["load_best_model_at_end: needs an evaluation"]),
    (EVALUATED | {"eval_strategy": "no"}, ["load_best_model_at_end: needs an evaluation"]),
    (EVALUATED | {"eval_strategy": "epoch"}, ["load_best_model_at_end: same save_strategy and eval_strategy"]),
    (EVALUATED | {"eval_steps": 300}, ["save_steps: a multiple of eval_steps"]),
    (EVALUATED | {"eval_steps": 1000}, ["save_steps: a multiple of eval_steps"]),
    (EVALUATED | {"eval_steps": 0.1}, ["save_steps: a multiple of eval_steps"]),
    (EVALUATED | {"eval_steps": 0.1, "save_steps": 0.3}, []),
    (EVALUATED | {"eval_steps": None, "logging_steps": 5}, []),
    ({"early_stopping_steps": 3, "metric_for_best_model": "loss"}, ["early_stopping_steps: an evaluation during"]),
    (EVALUATED | {"early_stopping_steps": 3}, []),
    (
        {"val_size": 0.1, "eval_strategy": "epoch", "early_stopping_steps": 3},
        ["early_stopping_steps: metric_for_best_model"],
    ),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, ["lr_scheduler_type: an evaluation during"]),
    ({"warmup_steps": 10, "warmup_ratio": 0.1}, ["warmup_steps: wins"]),
    ({"warmup_steps": 10}, []),
    ({"logging_steps": 2.5}, ["logging_steps: whole number"]),
    ({"eval_steps": 2.5}, ["eval_steps: whole number"]),
    ({"save_steps": 2.5}, ["save_steps: whole number"]),
    ({"save_steps": 0.25}, []),
    ({"bf16": True, "fp16": True}, ["fp16: cannot both"]),
    ({"bf16_full_eval": True, "fp16_full_eval": True}, ["fp16_full_eval: cannot both"]),
    (ZERO3 | {"pure_bf16": True}, ["pure_bf16: ZeRO-3"]),
    (ZERO3, []),
    (ZERO3 | {"pissa_init": True}, ["pissa_init: ZeRO-3"]),
    (ZERO3 | {"predict_with_generate": True, "val_size": 1}, ["predict_with_generate: ZeRO-3"]),
    (ZERO3 | {"use_unsloth": True}, ["use_unsloth: ZeRO-3"]),
    (ZERO3 | {"use_kt": True}, ["use_kt: ZeRO-3"]),
    (ZERO3 | {"finetuning_type": "full", "use_galore": True}, ["use_galore: DeepSpeed"]),
    (ZERO3 | {"finetuning_type": "full", "use_apollo": True}, ["use_apollo: DeepSpeed"]),
    (ZERO3 | BADAM, []),
    (ZERO3 | BADAM | {"badam_mode": "ratio"}, ["badam_mode: several devices"]),
    (BADAM, []),
    ({"infer_backend": "vllm"}, ["infer_backend: huggingface only"]),
]

TWO_GPUS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"finetuning_type": "full", "use_galore": True, "galore_layerwise": True}, ["galore_layerwise: several devices"]),
    ({"finetuning_type": "full", "use_apollo": True, "apollo_layerwise": True}, ["apollo_layerwise: several devices"]),
    (BADAM, ["use_badam: needs DeepSpeed ZeRO-3"]),
]

NO_PACKAGES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"use_adam_mini": True}, ["use_adam_mini: package adam-mini,"]),
    ({"use_apollo": True, "finetuning_type": "full"}, ["use_apollo: package apollo_torch,"]),
    (BADAM, ["use_badam: package badam,"]),
    (QUANTIZED, ["quantization_bit: package bitsandbytes,"]),
    (QUANTIZED | {"quantization_method": "hqq"}, []),
    ({"deepspeed": "ds_z2.json"}, ["deepspeed: package deepspeed,"]),
    ({"use_galore": True, "finetuning_type": "full"}, ["use_galore: package galore_torch,"]),
    ({"enable_liger_kernel": True}, ["enable_liger_kernel: package liger-kernel,"]),
    ({"plot_loss": True}, ["plot_loss: package matplotlib,"]),
    ({"mixture_of_depths": "convert"}, ["mixture_of_depths: package mixture-of-depth,"]),
    ({"use_unsloth": True}, ["use_unsloth: package unsloth,"]),
    (
        {"predict_with_generate": True, "val_size": 1},
        [f"predict_with_generate: package {package}," for package in ("jieba", "nltk", "rouge_chinese")],
    ),
]


def applying(
    keys: dict[str, Any], schema: TrainerSchema, *, gpus: int = 1, packages: bool = True
) -> tuple[list[str], list[Rule]]:
    values = {key: value for key, value in (GOOD | keys).items() if value is not None}
    lacking = TrainerSchema(schema.arguments, schema.templates, schema.versions if packages else {})
    stage = 3 if "z3" in str(values.get("deepspeed")) else 0
    facts = Facts(values, lacking, Hardware((A100,) * gpus, 8, 64.0), stage)
    rules = [rule for rule in RULES if rule.applies(facts)]
    return [f"{rule.key}: {rule.message}" for rule in rules], rules


def matches(found: list[str], expected: list[str]) -> bool:
    pieces = [
        re.escape(key) + ": .*" + re.escape(piece) for key, _, piece in (text.partition(": ") for text in expected)
    ]
    return len(found) == len(pieces) and all(re.match(piece, text) for piece, text in zip(pieces, found, strict=True))


@pytest.mark.parametrize(("keys", "expected"), CASES)
def test_combination(keys: dict[str, Any], expected: list[str], schema: TrainerSchema) -> None:
    found, _ = applying(keys, schema)
    assert matches(found, expected), found


@pytest.mark.parametrize(("keys", "expected"), TWO_GPUS)
def test_combination_on_two_gpus(keys: dict[str, Any], expected: list[str], schema: TrainerSchema) -> None:
    found, _ = applying(keys, schema, gpus=2)
    assert matches(found, expected), found


@pytest.mark.parametrize(("keys", "expected"), NO_PACKAGES)
def test_missing_package(keys: dict[str, Any], expected: list[str], schema: TrainerSchema) -> None:
    found, _ = applying(keys, schema, packages=False)
    assert matches(found, expected), found


def test_pure_bf16_without_a_gpu_for_it(schema: TrainerSchema) -> None:
    found, _ = applying({"pure_bf16": True}, schema, gpus=0)
    assert matches(found, ["pure_bf16: no GPU here"]), found


def test_every_rule_is_in_the_tables_above(schema: TrainerSchema) -> None:
    used = [rule for keys, _ in CASES for rule in applying(keys, schema)[1]]
    used += [rule for keys, _ in TWO_GPUS for rule in applying(keys, schema, gpus=2)[1]]
    used += [rule for keys, _ in NO_PACKAGES for rule in applying(keys, schema, packages=False)[1]]
    used += applying({"pure_bf16": True}, schema, gpus=0)[1]
    assert [rule.key + ": " + rule.message for rule in RULES if rule not in used] == []


def test_every_rule_names_a_key_of_the_trainer_and_a_next_step(schema: TrainerSchema) -> None:
    assert {rule.key for rule in RULES} <= set(schema.arguments)
    assert all(rule.hint for rule in RULES)
