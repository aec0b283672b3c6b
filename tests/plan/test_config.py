from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from trainkit.datatypes import Gpu, Hardware
from trainkit.errors import UsageProblem
from trainkit.plan.config import build_config, parse_override
from trainkit.plan.templates import templates_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainkit.datatypes import TrainConfig
    from trainkit.plan.arguments import TrainerSchema

    Build = Callable[..., TrainConfig]

A100 = Hardware((Gpu("NVIDIA A100-SXM4-40GB", 40.0, (8, 0)),), 32, 256.0)
TOO_OLD = "switched off: Tesla T4 cannot compute it (that takes capability 8.0)"
CHOSEN = "left out: the trainer chooses it, and a single process fails when it is named"
NO_EVALUATION = "no evaluation: there is neither eval_dataset nor val_size"
NO_GPU = Hardware((), 2, 8.0)
OLD_GPU = Hardware((Gpu("Tesla T4", 16.0, (7, 5)),), 8, 32.0)


def words(config: TrainConfig) -> list[str]:
    return [f"{note.level}: {note.where}: {note.message}" for note in config.notes]


def test_precedence(build: Build, model: Path) -> None:
    text = "learning_rate: 1e-5\nnum_train_epochs: 1\nlora_rank: 4\n"
    options = {"num_train_epochs": ("--epochs", 5), "lora_rank": ("--rank", 6), "dataset": ("--dataset", None)}
    config = build(text, "lora_rank=7", options=options)
    keys = ("weight_decay", "learning_rate", "num_train_epochs", "lora_rank", "dataset")
    assert {key: (config.values[key], config.origin[key]) for key in keys} == {
        "weight_decay": (0.01, "template qwen/lora"),
        "learning_rate": (1e-5, "training_config.yaml:1"),
        "num_train_epochs": (5, "--epochs"),
        "lora_rank": (7, "command line"),
        "dataset": ("reward_model_full", "template qwen/lora"),
    }
    assert set(config.origin) == set(config.values)
    assert config.notes == ()


def test_without_a_file(schema: TrainerSchema, tmp_path: Path) -> None:
    config = build_config(None, {}, [], schema=schema, hardware=A100, templates=templates_folder(), base=tmp_path)
    assert set(config.origin.values()) == {"template qwen/lora"}
    assert words(config) == [
        "warning: template qwen/lora template: ./model does not tell its family, so qwen is assumed"
    ]


@pytest.mark.parametrize(
    ("model_config", "text", "template", "origin", "start"),
    [
        ({"model_type": "qwen2"}, "", "qwen", "template qwen/lora", "qwen/lora"),
        ({"model_type": "qwen3"}, "", "qwen3", "the model's config.json", "qwen/lora"),
        ({"model_type": "qwen3"}, "template: qwen3_nothink", "qwen3_nothink", "training_config.yaml:1", "qwen/lora"),
        ({"model_type": "mistral"}, "finetuning_type: full", "mistral", "template mistral/full", "mistral/full"),
        (
            {"model_type": "llama", "vocab_size": 128256},
            "finetuning_type: freeze",
            "llama3",
            "template llama3/full",
            "llama3/full",
        ),
        ({"model_type": "gemma2"}, "finetuning_type: oft", "gemma2", "the model's config.json", "qwen/lora"),
    ],
)
def test_the_models_family_chooses_the_template(
    model_config: dict[str, Any],
    text: str,
    template: str,
    origin: str,
    start: str,
    build: Build,
    make_model: Callable[..., Path],
) -> None:
    make_model(**model_config)
    config = build(text)
    assert (config.values["template"], config.origin["template"]) == (template, origin)
    assert config.origin["stage"] == f"template {start}"
    assert words(config) == []


@pytest.mark.parametrize(
    ("text", "start", "values"),
    [
        ("", "lora", {"learning_rate": 1e-4, "lora_rank": 64, "pref_beta": None}),
        ("quantization_bit: 4", "qlora", {"learning_rate": 1e-4, "quantization_bit": 4}),
        ("quantization_bit: 8\nfinetuning_type: oft", "qlora", {"quantization_bit": 8}),
        ("quantization_bit: 0", "lora", {"quantization_bit": None}),
        ("quantization_bit: 4\nfinetuning_type: full", "full", {"quantization_bit": 4}),
        ("stage: rm", "rm", {"learning_rate": 1e-4, "num_train_epochs": 1.0, "lora_rank": 64}),
        ("stage: dpo", "dpo", {"learning_rate": 5e-6, "pref_beta": 0.1, "pref_loss": "sigmoid", "lora_rank": 64}),
        ("stage: kto", "kto", {"learning_rate": 5e-6, "pref_beta": 0.1, "per_device_train_batch_size": 2}),
        ("stage: dpo\nquantization_bit: 4", "dpo", {"quantization_bit": 4, "learning_rate": 5e-6}),
        ("stage: rm\nfinetuning_type: full", "rm", {"learning_rate": 1e-5, "lora_rank": None, "lora_target": None}),
        ("stage: dpo\nfinetuning_type: full", "dpo", {"learning_rate": 5e-7, "pref_beta": 0.1, "lora_rank": None}),
        ("stage: kto\nfinetuning_type: freeze", "kto", {"learning_rate": 5e-7, "lora_alpha": None}),
        ("stage: dpo\nlearning_rate: 1e-6\nfinetuning_type: full", "dpo", {"learning_rate": 1e-6}),
        ("stage: pt\nfinetuning_type: full", "full", {"learning_rate": 1e-5}),
        ("stage: dop", "lora", {"stage": "dop", "learning_rate": 1e-4}),
    ],
)
def test_stage_method_and_bits_choose_the_template(
    text: str, start: str, values: dict[str, Any], build: Build, model: Path
) -> None:
    config = build(text)
    assert config.origin["weight_decay"] == f"template qwen/{start}"
    assert {key: config.values.get(key) for key in values} == values


@pytest.mark.parametrize("kind", ["full_z2", "full_z3", "dpo", "qlora"])
def test_a_template_named_by_hand_is_a_file_like_any_other(kind: str, build: Build, model: Path) -> None:
    text = (templates_folder() / "qwen" / f"{kind}.yaml").read_text()
    named = yaml.safe_load(text)
    config = build(text, "num_train_epochs=7")
    same = {"learning_rate", "cutoff_len", "stage", "finetuning_type", "per_device_train_batch_size"}
    assert {key: config.values[key] for key in same} == {key: named[key] for key in same}
    assert {config.origin[key].partition(":")[0] for key in same} == {"training_config.yaml"}
    assert config.values["num_train_epochs"] == 7


@pytest.mark.parametrize(
    ("word", "pair"),
    [
        ("learning_rate=2e-4", ("learning_rate", 0.0002)),
        ("bf16=true", ("bf16", True)),
        ("run_name='2e-4'", ("run_name", "2e-4")),
        ("deepspeed=", ("deepspeed", None)),
        ("dataset=a,b", ("dataset", "a,b")),
        ("default_system=a=b", ("default_system", "a=b")),
        ("lora_target=[q_proj, v_proj]", ("lora_target", ["q_proj", "v_proj"])),
        ("lr_scheduler_kwargs.min_lr=1e-6", ("lr_scheduler_kwargs", {"min_lr": 1e-6})),
    ],
)
def test_override(word: str, pair: tuple[str, Any]) -> None:
    assert parse_override(word) == pair


@pytest.mark.parametrize(
    "word", ["", "learning_rate", "--learning_rate=1", "=1", "a b=1", "a..b=1", "a=[1", "a=b: c: d"]
)
def test_a_malformed_override(word: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_override(word)
    assert caught.value.message.startswith(repr(word))
    assert caught.value.exit_code == 2


def test_dotted_words_join(build: Build, model: Path) -> None:
    config = build("lr_scheduler_kwargs: {a: 1, b: 2}", "lr_scheduler_kwargs.b=3", "lr_scheduler_kwargs.c=4")
    assert config.values["lr_scheduler_kwargs"] == {"a": 1, "b": 3, "c": 4}


def test_an_empty_key_takes_back_what_is_below(build: Build, model: Path) -> None:
    config = build("plot_loss: ''\nsave_total_limit: null\n")
    assert not {"plot_loss", "save_total_limit"} & set(config.values)
    assert words(config) == ["note: training_config.yaml: left out, they are empty: plot_loss, save_total_limit"]


@pytest.mark.parametrize(
    ("text", "word", "gone", "said"),
    [
        ("warmup_steps: 0", "seed=1", "warmup_ratio", []),
        ("fp16: true", "seed=1", "bf16", []),
        ("fp16: false", "seed=1", None, []),
        (
            "max_steps: 10",
            "num_train_epochs=2",
            "max_steps",
            ["note: training_config.yaml:1 max_steps: left out: num_train_epochs of command line takes its place"],
        ),
        ("max_steps: -1", "num_train_epochs=2", None, []),
        (
            "val_size: 0.1\neval_strategy: epoch",
            "eval_dataset=e",
            "val_size",
            ["note: training_config.yaml:1 val_size: left out: eval_dataset of command line takes its place"],
        ),
        ("warmup_steps: 5\nwarmup_ratio: 0.1", "seed=1", None, []),
    ],
)
def test_a_key_silences_what_a_lower_source_says_of_the_same(
    text: str,
    word: str,
    gone: str | None,
    said: list[str],
    build: Build,
    model: Path,
) -> None:
    config = build(text, word)
    assert gone not in config.values
    assert set(_keys(text)) - {gone} <= set(config.values)
    assert words(config) == said


def _keys(text: str) -> list[str]:
    return [line.partition(":")[0] for line in text.splitlines()]


@pytest.mark.parametrize(
    ("text", "evaluation", "said"),
    [
        ("", {}, []),
        ("eval_strategy: 'no'", {"eval_strategy": "no"}, []),
        ("eval_strategy: no", {"eval_strategy": "no"}, []),
        (
            "eval_strategy: steps\neval_steps: 5\ndo_eval: false\neval_delay: 0",
            {"eval_strategy": "no", "do_eval": False},
            ["note: training_config.yaml:1 eval_strategy: " + NO_EVALUATION + " (eval_steps, eval_delay left out)"],
        ),
        ("do_eval: true", {"do_eval": False}, ["note: training_config.yaml:1 do_eval: " + NO_EVALUATION]),
        (
            "eval_dataset: e",
            {"eval_dataset": "e", "eval_strategy": "steps", "eval_steps": 500},
            ["note: training_config.yaml:1 eval_strategy: evaluates every 500 steps and at the end"],
        ),
        (
            "val_size: 0.1\nsave_steps: 20",
            {"eval_strategy": "steps", "eval_steps": 20},
            ["note: training_config.yaml:1 eval_strategy: evaluates every 20 steps and at the end"],
        ),
        ("eval_dataset: e\neval_strategy: epoch", {"eval_dataset": "e", "eval_strategy": "epoch"}, []),
        ("eval_dataset: e\neval_strategy: 'no'", {"eval_dataset": "e", "eval_strategy": "no"}, []),
    ],
)
def test_evaluation_when_there_is_something_to_evaluate_on(
    text: str,
    evaluation: dict[str, Any],
    said: list[str],
    build: Build,
    model: Path,
) -> None:
    config = build(text)
    assert {key: value for key, value in config.values.items() if "eval" in key} == evaluation
    assert words(config) == said


@pytest.mark.parametrize(
    ("hardware", "text", "values", "said"),
    [
        (
            A100,
            "bf16: true\ntf32: true\nddp_backend: gloo",
            {"bf16": True, "tf32": True},
            ["note: training_config.yaml:3 ddp_backend: " + CHOSEN],
        ),
        (
            OLD_GPU,
            "bf16: true\ntf32: true",
            {"bf16": False, "tf32": False, "fp16": True},
            [
                "note: training_config.yaml:1 bf16: " + TOO_OLD,
                "note: training_config.yaml:2 tf32: " + TOO_OLD,
                "note: training_config.yaml:1 fp16: on in the place of bf16",
            ],
        ),
        (OLD_GPU, "bf16: false", {"bf16": False}, []),
        (
            NO_GPU,
            "bf16: false\npure_bf16: true\nfp16: true\nddp_backend: nccl",
            {"bf16": False, "pure_bf16": False, "fp16": False, "use_cpu": True},
            [
                "note: training_config.yaml:2 pure_bf16: switched off: there is no GPU here",
                "note: training_config.yaml:3 fp16: switched off: there is no GPU here",
                "note: this machine use_cpu: there is no GPU here: training on the CPU, slow for any real model",
                "note: training_config.yaml:4 ddp_backend: " + CHOSEN,
            ],
        ),
        (
            NO_GPU,
            "bf16: false\nuse_cpu: true\npreprocessing_num_workers: 8",
            {"bf16": False, "use_cpu": True, "preprocessing_num_workers": 2},
            ["note: training_config.yaml:3 preprocessing_num_workers: 8 is more than the 2 cores here: 2"],
        ),
        (Hardware(A100.gpus * 2, 32, 64.0), "ddp_backend: gloo", {"bf16": True, "ddp_backend": "gloo"}, []),
        (
            Hardware((*A100.gpus, *OLD_GPU.gpus), 32, 64.0),
            "bf16: true",
            {"bf16": False, "fp16": True},
            [
                "note: training_config.yaml:1 bf16: " + TOO_OLD,
                "note: training_config.yaml:1 fp16: on in the place of bf16",
            ],
        ),
    ],
)
def test_fits_the_machine(
    hardware: Hardware,
    text: str,
    values: dict[str, Any],
    said: list[str],
    build: Build,
    model: Path,
) -> None:
    config = build(text, hardware=hardware)
    machine = ("bf16", "pure_bf16", "fp16", "tf32", "use_cpu", "ddp_backend")
    found = {key: config.values[key] for key in machine if key in config.values}
    if "preprocessing_num_workers" in values:
        found["preprocessing_num_workers"] = config.values["preprocessing_num_workers"]
    assert found == values
    assert words(config) == said


def test_deepspeed_on_the_cpu_is_not_told_so(build: Build, model: Path) -> None:
    config = build("deepspeed: {a: 1}\nuse_cpu: true", hardware=Hardware((), 64, 8.0))
    assert "use_cpu" not in config.values
    assert words(config)[-2:] == [
        "note: training_config.yaml:2 use_cpu: left out: DeepSpeed finds the CPU itself, "
        "and its ZeRO-3 fails when it is named",
        "note: training_config.yaml:1 deepspeed: there is no GPU here: training on the CPU, slow for any real model",
    ]


def test_trust_remote_code_is_off_unless_asked_for(build: Build, model: Path) -> None:
    assert "trust_remote_code" not in build("").values
    assert words(build("trust_remote_code: true")) == [
        "note: training_config.yaml:1 trust_remote_code: code that comes with the model will be run"
    ]


def test_paths_are_written_out_in_full(
    build: Build, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "adapters").mkdir()
    text = """
model_name_or_path: model
adapter_name_or_path: ./a, adapters, someone/hub-adapter, plain
dataset_dir: ../data
output_dir: ~/saves
tokenized_path: /absolute/../tokens
deepspeed: deepspeed/ds_z3.json
media_dir: ONLINE
resume_from_checkpoint: saves/checkpoint-5
"""
    config = build(text)
    assert {key: config.values[key] for key in _keys(text.strip())} == {
        "model_name_or_path": str(model),
        "adapter_name_or_path": f"{tmp_path}/a,{tmp_path}/adapters,someone/hub-adapter,{tmp_path}/plain",
        "dataset_dir": str(tmp_path.parent / "data"),
        "output_dir": "/home/someone/saves",
        "tokenized_path": "/tokens",
        "deepspeed": str(templates_folder() / "deepspeed" / "ds_z3.json"),
        "media_dir": "ONLINE",
        "resume_from_checkpoint": f"{tmp_path}/saves/checkpoint-5",
    }
    assert words(config) == [
        "note: training_config.yaml:3 adapter_name_or_path: someone/hub-adapter is no folder here, "
        "so it is taken as a hub's name and downloaded at the start",
        "note: training_config.yaml:7 deepspeed: trainkit's own ds_z3.json",
    ]


def test_the_users_own_deepspeed_wins(build: Build, model: Path, tmp_path: Path) -> None:
    (tmp_path / "ds_z3.json").write_text(json.dumps({}))
    assert build("deepspeed: ds_z3.json").values["deepspeed"] == str(tmp_path / "ds_z3.json")
    assert build("deepspeed: none.json").values["deepspeed"] == str(tmp_path / "none.json")
    assert build("deepspeed: '{\"train_batch_size\": 1}'").values["deepspeed"] == '{"train_batch_size": 1}'
    assert build("deepspeed: {train_batch_size: 1}").values["deepspeed"] == {"train_batch_size": 1}
