from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.errors import ConfigError, InputError
from trainkit.plan.gpus import find_gpu
from trainkit.plan.memory import Setup
from trainkit.plan.setup import keys_of, not_modelled, optimizer_of, setup_of
from trainkit.plan.templates import templates_folder

if TYPE_CHECKING:
    from pathlib import Path

    from trainkit.plan.arguments import TrainerSchema

A100 = find_gpu("a100-80")
USUAL = {
    "finetuning_type": "lora", "lora_target": "all", "lora_rank": 64, "lora_dropout": 0.1, "cutoff_len": 4096,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "bf16": True,
}  # fmt: skip
AS_SETUP = Setup(
    method="lora",
    stage="sft",
    micro_batch=2,
    seq_tokens=4096,
    rank=64,
    lora_targets="all",
    dropout=0.1,
    checkpointing=True,
    liger=False,
    packing=False,
    masked=True,
    zero_stage=None,
    offload_optimizer=False,
    offload_params=False,
    world=1,
    pure_bf16=False,
    accumulation=8,
    optimizer="adamw",
    hopper=False,
    expandable_segments=True,
)


def setup(schema: TrainerSchema, values: dict[str, Any], **arguments: Any) -> Setup:
    return setup_of(values, schema.default, A100, **arguments)


@pytest.mark.parametrize(
    ("keys", "changed"),
    [
        ({}, {}),
        ({"disable_gradient_checkpointing": True}, {"checkpointing": False}),
        ({"enable_liger_kernel": True}, {"liger": True}),
        ({"cutoff_len": 1001}, {"seq_tokens": 1008}),
        ({"cutoff_len": None}, {"seq_tokens": 2048}),
        ({"lora_rank": None, "lora_dropout": None}, {"rank": 8, "dropout": 0.0}),
        ({"lora_target": "q_proj, v_proj"}, {"lora_targets": ("q_proj", "v_proj")}),
        ({"lora_target": ["q_proj", "all"]}, {"lora_targets": "all"}),
        ({"per_device_train_batch_size": None}, {"micro_batch": 8}),
        ({"gradient_accumulation_steps": None}, {"accumulation": 1}),
        ({"quantization_bit": 4}, {"method": "qlora"}),
        ({"finetuning_type": "full", "pure_bf16": True}, {"method": "full", "pure_bf16": True}),
        ({"stage": "dpo"}, {"stage": "dpo"}),
        ({"optim": "adamw_bnb_8bit"}, {"optimizer": "adamw_8bit"}),
        ({"flash_attn": "fa2"}, {"masked": False}),
        ({"flash_attn": "disabled", "packing": True, "cutoff_len": 4095}, {"packing": True}),
        # a packed row has cutoff_len + 1 tokens and is padded like any other
        ({"packing": True}, {"packing": True, "seq_tokens": 4104}),
        ({"packing": True, "cutoff_len": 4095}, {"packing": True, "masked": False}),
        ({"packing": True, "flash_attn": "fa2"}, {"packing": True, "seq_tokens": 4104, "masked": False}),
        ({"neat_packing": True, "cutoff_len": 4095}, {"packing": True}),
        ({"neat_packing": True, "flash_attn": "fa2"}, {"packing": True, "seq_tokens": 4104, "masked": False}),
        ({"stage": "pt"}, {"stage": "pt", "packing": True, "masked": False}),
        ({"stage": "pt", "cutoff_len": 4097}, {"stage": "pt", "packing": True, "seq_tokens": 4104}),
        ({"stage": "pt", "packing": False}, {"stage": "pt"}),
        ({"deepspeed": "ds_z2.json"}, {"zero_stage": 2}),
        ({"deepspeed": "ds_z3.json"}, {"zero_stage": 3}),
        ({"deepspeed": "ds_z3_offload.json"}, {"zero_stage": 3, "offload_optimizer": True, "offload_params": True}),
        ({"deepspeed": {"train_batch_size": "auto"}}, {"zero_stage": 0}),
        (
            {"deepspeed": '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}'},
            {"zero_stage": 2, "offload_optimizer": True},
        ),
        ({"deepspeed": {"zero_optimization": {"stage": 3, "offload_param": {"device": "none"}}}}, {"zero_stage": 3}),
    ],
    ids=str,
)  # fmt: skip
def test_the_trainers_keys_become_a_setup(schema: TrainerSchema, keys: dict[str, Any], changed: dict[str, Any]) -> None:
    values = USUAL | keys
    if str(values.get("deepspeed")).startswith("ds_"):
        values["deepspeed"] = str(templates_folder() / "deepspeed" / values["deepspeed"])
    assert setup(schema, values) == replace(AS_SETUP, **changed)


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ({"world": 8}, {"world": 8}),
        ({"longest": 1000}, {"seq_tokens": 1000}),
        ({"longest": 1001}, {"seq_tokens": 1008}),
        ({"longest": 9000}, {}),
        ({"never_padded": True}, {"masked": False}),
        ({"expandable_segments": False}, {"expandable_segments": False}),
    ],
    ids=str,
)
def test_data_and_machine_are_part_of_it(
    schema: TrainerSchema, arguments: dict[str, Any], changed: dict[str, Any]
) -> None:
    assert setup(schema, USUAL, **arguments) == replace(AS_SETUP, **changed)


def test_hopper_is_known_by_its_capability(schema: TrainerSchema) -> None:
    assert setup_of(USUAL, schema.default, find_gpu("h100")) == replace(AS_SETUP, hopper=True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"finetuning_type": "freeze"}, "finetuning_type freeze: the memory model does not know it"),
        ({"quantization_bit": 8}, "quantization_bit 8: the memory model does not know it"),
        ({"stage": "ppo"}, "stage ppo: the memory model does not know it"),
        ({"lora_rank": 0}, "lora_rank: 0 is not a whole number above 0"),
        ({"lora_rank": True}, "lora_rank: True is not a whole number above 0"),
        ({"cutoff_len": "4096"}, "cutoff_len: '4096' is not a whole number above 0"),
    ],
)
def test_what_no_formula_covers_is_refused(schema: TrainerSchema, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        setup(schema, USUAL | keys)
    assert caught.value.message == message


def test_a_missing_deepspeed_file_is_named(schema: TrainerSchema, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        setup(schema, USUAL | {"deepspeed": str(tmp_path / "ds.json")})


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw_torch", "adamw"), ("", "adamw"), ("paged_adamw_8bit", "paged"), ("adamw_8bit", "adamw_8bit")],
)
def test_optimizers_differ_by_what_they_keep(name: str, kind: str) -> None:
    assert optimizer_of(name) == kind


def test_keys_outside_the_model_are_named() -> None:
    assert not_modelled({"use_galore": True, "use_dora": False, "torch_compile": True, "cutoff_len": 1}) == [
        "use_galore", "torch_compile",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        ({}, {}),
        ({"micro_batch": 1, "accumulation": 16}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}),
        ({"checkpointing": False}, {"disable_gradient_checkpointing": True}),
        ({"liger": True}, {"enable_liger_kernel": True}),
        ({"zero_stage": 2}, {"deepspeed": "ds_z2.json"}),
        ({"zero_stage": 3}, {"deepspeed": "ds_z3.json"}),
        (
            {"zero_stage": 3, "offload_optimizer": True, "offload_params": True},
            {"deepspeed": "ds_z3_offload.json"},
        ),
    ],
    ids=str,
)
def test_a_setup_becomes_keys_and_those_lead_back_to_it(
    schema: TrainerSchema, changed: dict[str, Any], keys: dict[str, Any]
) -> None:
    wanted = replace(AS_SETUP, **changed)
    found = keys_of(wanted, AS_SETUP)
    assert found == keys
    if "deepspeed" in found:
        found["deepspeed"] = str(templates_folder() / "deepspeed" / found["deepspeed"])
    assert setup(schema, USUAL | found) == wanted


def test_leaving_deepspeed_takes_its_key_away() -> None:
    assert keys_of(AS_SETUP, replace(AS_SETUP, zero_stage=3)) == {"deepspeed": None}
    assert keys_of(replace(AS_SETUP, checkpointing=True), replace(AS_SETUP, checkpointing=False)) == {
        "disable_gradient_checkpointing": False
    }
