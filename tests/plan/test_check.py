from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.datatypes import Argument, Gpu, Hardware, Problem
from trainkit.plan.check import check_config, check_value

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainkit.datatypes import TrainConfig
    from trainkit.plan.arguments import TrainerSchema

    Build = Callable[..., TrainConfig]

A100 = Hardware((Gpu("NVIDIA A100-SXM4-40GB", 40.0, (8, 0)),), 32, 256.0)


@pytest.fixture
def check(build: Build, schema: TrainerSchema) -> Callable[..., list[Problem]]:
    def checked(text: str, *words: str, force_template: bool = False) -> list[Problem]:
        return check_config(build(text, *words), schema, A100, force_template=force_template)

    return checked


def test_a_good_configuration(check: Callable[..., list[Problem]], model: Path) -> None:
    assert check("learning_rate: 1e-4\nreport_to: [wandb, tensorboard]\ntf32: true\nwandb_api_key: k\n") == []


def test_all_problems_at_once_with_their_places(
    check: Callable[..., list[Problem]], make_model: Callable[..., Path]
) -> None:
    make_model(model_type="mistral")
    text = """
learning_rat: 1e-4
lora_rank: '8'
bf16: 'yes'
template: qwen
warmup_steps: 3
warmup_ratio: 0.1
use_galore: true
deepspeed: missing.json
"""
    problems = check(text, "stage=sfft", "zzzzzzzz=1")
    place = "training_config.yaml"
    assert [(problem.where, problem.level) for problem in problems] == [
        ("command line stage", "error"),
        (f"{place}:3 lora_rank", "error"),
        (f"{place}:4 bf16", "error"),
        (f"{place}:2 learning_rat", "error"),
        ("command line zzzzzzzz", "error"),
        (f"{place}:5 template", "error"),
        (f"{place}:9 deepspeed", "error"),
        (f"{place}:8 use_galore", "error"),
        (f"{place}:8 use_galore", "error"),
        (f"{place}:6 warmup_steps", "warning"),
    ]
    assert {(problem.message, problem.hint) for problem in problems} >= {
        ("is '8', not a whole number", "write it without quotes"),
        ("is 'yes', not true or false", "write it without quotes"),
        ("'sfft' is not one of its values", "did you mean sft?"),
        ("LLaMA-Factory 1.0 has no such key", "did you mean learning_rate?"),
        ("LLaMA-Factory 1.0 has no such key", "take it away"),
    }


@pytest.mark.parametrize(
    ("argument", "value", "found"),
    [
        (Argument("learning_rate", "float"), 1e-4, None),
        (Argument("num_train_epochs", "float"), 3, None),
        (Argument("learning_rate", "float"), "1e-4", ("is '1e-4', not a number", "write it without quotes")),
        (Argument("learning_rate", "float"), True, ("is True, not a number", "")),
        (Argument("learning_rate", "float"), 0, ("is 0, but must be above 0", "")),
        (Argument("cutoff_len", "int"), 4096.0, ("is 4096.0, not a whole number", "")),
        (Argument("cutoff_len", "int"), -1, ("is -1, but must be above 0", "")),
        (Argument("run_name", "str"), 20260101, ("is 20260101, not text", "put it in quotes")),
        (Argument("run_name", "str"), "1", None),
        (Argument("hf_hub_token", "str"), 123, ("is a secret value, not text", "put it in quotes")),
        (Argument("bf16", "bool"), True, None),
        (Argument("bf16", "bool"), 1, ("is 1, not true or false", "")),
        (Argument("label_names", "list"), ["labels"], None),
        (Argument("label_names", "list"), 3, ("is 3, not a list", "")),
        (Argument("liger_kernel_config", "dict"), {"rope": True}, None),
        (Argument("liger_kernel_config", "dict"), [1], ("is [1], not keys and values", "")),
        (Argument("report_to", "any"), ["wandb"], None),
        (Argument("lora_alpha", "int", optional=True), None, None),
        (Argument("seed", "int", optional=False), None, ("is None, not a whole number", "")),
        (Argument("seed", "int"), -1, ("is -1, but must be 0 or more", "")),
        (Argument("lora_dropout", "float"), 1.0, ("is 1.0, but must be from 0 to below 1", "")),
        (Argument("lora_dropout", "float"), 0, None),
        (Argument("quantization_bit", "int"), 7, ("is 7, but must be 4 or 8", "")),
        (Argument("optim", "str", choices=("sgd", "adafactor")), "sgd", None),
        (
            Argument("optim", "str", choices=("sgd", "adafactor")),
            "sdg",
            ("'sdg' is not one of its values", "did you mean sgd?"),
        ),
        (
            Argument("optim", "str", choices=("sgd", "adafactor")),
            "x",
            ("'x' is not one of its values", "one of sgd, adafactor"),
        ),
    ],
)
def test_value(argument: Argument, value: Any, found: tuple[str, str] | None) -> None:
    assert check_value(argument, value) == found


def test_template_that_does_not_fit(check: Callable[..., list[Problem]], model: Path) -> None:
    message = "the template llama3 does not fit a model of type qwen2"
    assert [(p.where, p.message, p.level) for p in check("", "template=llama3")] == [
        ("command line template", message, "error")
    ]
    assert [(p.message, p.level) for p in check("", "template=llama3", force_template=True)] == [(message, "warning")]


def test_a_model_that_is_not_there_and_one_of_a_hub(check: Callable[..., list[Problem]], tmp_path: Path) -> None:
    assert [(p.where, p.message) for p in check("")] == [
        ("template qwen/lora model_name_or_path", f"model folder {tmp_path}/model: there is no such folder")
    ]
    assert check("model_name_or_path: Qwen/Qwen2.5-7B\ntemplate: qwen") == []
    assert [p.message for p in check("model_name_or_path: ''")] == ["no model is named"]


def test_a_damaged_config_of_the_model_is_one_problem_among_all(
    check: Callable[..., list[Problem]], model: Path
) -> None:
    (model / "config.json").write_text("{")
    assert [p.message for p in check("learning_rat: 1\ntemplate: qwen")] == [
        "LLaMA-Factory 1.0 has no such key",
        f"{model}/config.json:1:2: not valid JSON: Expecting property name enclosed in double quotes",
    ]


def test_adapter_and_checkpoint(check: Callable[..., list[Problem]], model: Path, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "adapter_config.json").write_text("{}")
    text = "adapter_name_or_path: ./good,./bad,hub/adapter\nresume_from_checkpoint: saves/checkpoint-9\n"
    assert [(p.where, p.message) for p in check(text)] == [
        ("training_config.yaml:1 adapter_name_or_path", f"{tmp_path}/bad: there is no adapter_config.json"),
        ("training_config.yaml:2 resume_from_checkpoint", f"{tmp_path}/saves/checkpoint-9: there is no such folder"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "{}:1:2: not valid JSON: Expecting property name enclosed in double quotes"),
        ("[]", "{}: not a JSON object"),
    ],
)
def test_a_damaged_deepspeed_file(
    content: str,
    message: str,
    check: Callable[..., list[Problem]],
    model: Path,
    tmp_path: Path,
) -> None:
    file = tmp_path / "ds.json"
    file.write_text(content)
    assert [p.message for p in check("deepspeed: ds.json")] == [message.format(file)]
    assert [p.message for p in check("deepspeed: '{'")] == [
        "not valid JSON: Expecting property name enclosed in double quotes at column 2"
    ]


@pytest.mark.parametrize(
    "deepspeed",
    ["ds_z3.json", "{zero_optimization: {stage: 3}}", '\'{"zero_optimization": {"stage": 3}}\'', "own.json"],
)
def test_zero_3_is_found_in_every_form(
    deepspeed: str,
    check: Callable[..., list[Problem]],
    model: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "own.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    assert [p.message for p in check(f"deepspeed: {deepspeed}\npissa_init: true")] == [
        "does not work with DeepSpeed ZeRO-3"
    ]
    assert check("deepspeed: {zero_optimization: 3}\npissa_init: true") == []


def test_output_folder(
    check: Callable[..., list[Problem]],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    where = "training_config.yaml:1 output_dir"
    hint = "choose another output_dir"
    assert check("output_dir: file") == [Problem(where, f"{tmp_path}/file is a file, not a folder", hint)]
    assert check("output_dir: file/inside") == [Problem(where, f"{tmp_path}/file is a file, not a folder", hint)]
    assert [p.message for p in check("output_dir: ''")] == ["no output folder is named"]
    monkeypatch.setattr("os.access", lambda *_: False)
    assert check("output_dir: new") == [Problem(where, f"{tmp_path} cannot be written", hint)]
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 2**29))
    assert [(p.message, p.level) for p in check("output_dir: new")] == [
        (f"only 0.50 GiB are free on the disk of {tmp_path}", "warning")
    ]


@pytest.mark.parametrize("text", ["&", "[1", "\x07", "*a"])
def test_a_text_that_is_no_yaml_is_no_number_in_quotes(text: str) -> None:
    assert check_value(Argument("lora_rank", "int"), text) == (f"is {text!r}, not a whole number", "")
