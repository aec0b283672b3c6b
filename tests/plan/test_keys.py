from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.datatypes import Argument
from trainkit.plan.arguments import TrainerSchema
from trainkit.plan.keys import MEANS_OFF, RENAMED, RETIRED, SPECIAL, translate_keys
from trainkit.plan.yamlfile import load_yaml

if TYPE_CHECKING:
    from trainkit.datatypes import Problem

HERE = Path(__file__).parent


def translated(values: dict[str, Any], schema: TrainerSchema) -> tuple[dict[str, Any], list[Problem]]:
    draft = translate_keys(values, {key: f"c.yaml:{line}" for line, key in enumerate(values, 1)}, schema)
    return draft.values, draft.notes


@pytest.mark.parametrize(
    ("values", "result", "word"),
    [
        ({"evaluation_strategy": "steps"}, {"eval_strategy": "steps"}, "evaluation_strategy is eval_strategy: steps"),
        ({"lora_plus_scale": 16.0}, {"loraplus_lr_ratio": 16.0}, "lora_plus_scale is loraplus_lr_ratio: 16.0"),
        ({"lora_plus_scale": 1.0}, {}, "lora_plus_scale left out: 1.0 is plain LoRA"),
        (
            {"modules_to_save": ["embed_tokens", "lm_head"]},
            {"additional_target": "embed_tokens,lm_head"},
            "modules_to_save is additional_target: embed_tokens,lm_head",
        ),
        (
            {"additional_special_tokens": ["<a>", "<b>"]},
            {"add_special_tokens": "<a>,<b>"},
            "additional_special_tokens is add_special_tokens: <a>,<b>",
        ),
        (
            {"early_stopping_patience": 3},
            {"early_stopping_steps": 3},
            "early_stopping_patience is early_stopping_steps: 3",
        ),
        ({"no_cuda": True}, {"use_cpu": True}, "no_cuda is use_cpu: True"),
        (
            {"per_gpu_train_batch_size": 4},
            {"per_device_train_batch_size": 4},
            "per_gpu_train_batch_size is per_device_train_batch_size: 4",
        ),
        ({"save_safetensors": True}, {}, "save_safetensors left out: weights are always saved as safetensors"),
        (
            {"early_stopping_threshold": 0.1},
            {},
            "early_stopping_threshold left out: the trainer stops when the metric does not improve at all",
        ),
        ({"tokenizer_name_or_path": "./m"}, {}, "tokenizer_name_or_path left out: the tokenizer is always the model's"),
        ({"torch_dtype": "auto"}, {}, "torch_dtype left out: bf16 and fp16 decide the type"),
        ({"torch_dtype": "bfloat16"}, {"bf16": True}, "torch_dtype is bf16: True"),
        ({"torch_dtype": "torch.float16"}, {"fp16": True}, "torch_dtype is fp16: True"),
        (
            {"torch_dtype": "float32"},
            {"bf16": False, "fp16": False},
            "torch_dtype left out: bf16: false and fp16: false mean 32-bit floats",
        ),
        (
            {"group_by_length": True},
            {"train_sampling_strategy": "group_by_length"},
            "group_by_length is train_sampling_strategy: group_by_length",
        ),
        (
            {"group_by_length": False},
            {},
            "group_by_length left out: rows are shuffled unless train_sampling_strategy says otherwise",
        ),
        ({"use_flash_attn": True}, {"flash_attn": "fa2"}, "use_flash_attn is flash_attn: fa2"),
        ({"use_flash_attn": False}, {}, "use_flash_attn left out: flash_attn: auto chooses"),
        (
            {"max_samples": -1},
            {"max_samples": None},
            "max_samples left out: -1 would select no row at all; without the key every row is used",
        ),
        ({"neftune_noise_alpha": 0}, {"neftune_noise_alpha": None}, "neftune_noise_alpha left out: 0 is no noise"),
        ({"quantization_bit": 0}, {"quantization_bit": None}, "quantization_bit left out: 0 is no quantization"),
        (
            {"report_to": "swanlab"},
            {"report_to": "none", "use_swanlab": True},
            "report_to swanlab is use_swanlab: true",
        ),
        (
            {"report_to": ["swanlab", "tensorboard"]},
            {"report_to": ["tensorboard"], "use_swanlab": True},
            "report_to swanlab is use_swanlab: true",
        ),
    ],
)
def test_one_key(values: dict[str, Any], result: dict[str, Any], word: str, schema: TrainerSchema) -> None:
    found, notes = translated(values, schema)
    assert found == result
    [note] = notes
    assert (f"{note.where} {note.message}".removesuffix(" for this trainer"), note.level) == (
        f"c.yaml:1 {word}",
        "note",
    )


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 1e-4, "use_cache": False, "low_cpu_mem_usage": True, "logging_dir": "logs"},
        {"do_sample": True, "temperature": 0.7, "export_dir": "out", "export_size": 2, "max_new_tokens": 10},
        {"max_samples": 10, "quantization_bit": 4, "neftune_noise_alpha": 5.0, "loraplus_lr_ratio": 16.0},
        {"report_to": "wandb"},
        {"default_system": ""},
        {"not_a_key_of_anything": 3},
    ],
)
def test_keys_that_stay(values: dict[str, Any], schema: TrainerSchema) -> None:
    assert translated(values, schema) == (values, [])


def test_words_for_off_and_lists_take_the_trainers_form(schema: TrainerSchema) -> None:
    values = {"eval_strategy": False, "lora_target": ["q_proj", "v_proj"], "bf16": False}
    assert translated(values, schema) == ({"eval_strategy": "no", "lora_target": "q_proj,v_proj", "bf16": False}, [])


def test_empty_keys_are_named_in_one_note(schema: TrainerSchema) -> None:
    found, notes = translated(
        {"deepspeed": "", "seed": 1, "report_to": [], "modules_to_save": [], "tf32": None}, schema
    )
    assert found == {"deepspeed": None, "seed": 1, "report_to": None, "modules_to_save": None, "tf32": None}
    assert [(note.where, note.message) for note in notes] == [
        ("c.yaml", "left out, they are empty: deepspeed, report_to, modules_to_save, tf32")
    ]


def test_the_trainers_own_key_wins_over_its_old_name(schema: TrainerSchema) -> None:
    found, notes = translated({"eval_strategy": "epoch", "evaluation_strategy": "steps"}, schema)
    assert found == {"eval_strategy": "epoch"}
    assert [(note.where, note.message, note.level) for note in notes] == [
        (
            "c.yaml:2 evaluation_strategy",
            "left out: eval_strategy is there too and is what the trainer reads",
            "warning",
        )
    ]


def test_another_tokenizer_is_a_warning(schema: TrainerSchema) -> None:
    _, notes = translated({"model_name_or_path": "./m", "tokenizer_name_or_path": "./other"}, schema)
    assert [(note.message, note.level) for note in notes] == [
        ("left out: the tokenizer is always that of model_name_or_path, which is ./m", "warning")
    ]


def test_torch_dtype_beside_the_flag_that_says_the_same(schema: TrainerSchema) -> None:
    found, notes = translated({"torch_dtype": "bfloat16", "bf16": True}, schema)
    assert (found, [note.message for note in notes]) == ({"bf16": True}, ["left out: bf16: true says it"])
    assert translated({"torch_dtype": "bfloat16", "bf16": False}, schema)[0] == {"bf16": True}


def test_experiment_name_names_the_run_too_unless_it_has_a_name(schema: TrainerSchema) -> None:
    assert translated({"experiment_name": "e"}, schema)[0] == {"swanlab_run_name": "e", "run_name": "e"}
    assert translated({"experiment_name": "e", "run_name": "r"}, schema)[0] == {
        "swanlab_run_name": "e",
        "run_name": "r",
    }


def test_a_key_that_the_trainer_knows_is_not_touched() -> None:
    names = [*RENAMED, *RETIRED, *SPECIAL]
    knowing = TrainerSchema({name: Argument(name, "any") for name in names}, (), {})
    values = dict.fromkeys(names, "x")
    assert translated(values, knowing) == (values, [])


def test_every_new_name_is_an_argument_and_no_old_name_is(schema: TrainerSchema) -> None:
    assert {*RENAMED.values(), *MEANS_OFF} <= set(schema.arguments)
    assert not {*RENAMED, *RETIRED, *SPECIAL} & set(schema.arguments)


def test_every_key_of_a_hand_written_file_becomes_one_that_the_trainer_knows(schema: TrainerSchema) -> None:
    found, _ = translated(load_yaml(HERE / "hand_written.yaml").values, schema)
    assert {key for key, value in found.items() if value is not None} <= set(schema.arguments)
