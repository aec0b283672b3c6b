"""An update's configuration: the script's own files are read as they are, and the trainer gets what the user means."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainkit import environment
from trainkit.datatypes import Checkpoint, Gpu, Hardware, Problem
from trainkit.errors import ConfigError, ProblemsFound, TrainkitError, UsageProblem
from trainkit.plan.check import check_config
from trainkit.plan.hardware import run_child_json
from trainkit.plan.render import render_yaml
from trainkit.plan.templates import templates_folder
from trainkit.plan.update import (
    UpdateConfig,
    count_gpus,
    extend_steps,
    load_update,
    render_train_config,
    wandb_env,
)
from trainkit.plan.update_keys import ALGORITHM, KEYS, SET_BY_UPDATE, TRAINER_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.datatypes import TrainConfig
    from trainkit.plan.arguments import TrainerSchema

HERE = Path(__file__).parent
BASE = Path("/base")
GPU = Gpu("NVIDIA A100-SXM4-40GB", 40.0, (8, 0))
CPU = Hardware((), 2, 8.0)
SAVE = "save_path=/data/exp1"
NO_TRACKER = "algorithm_config.report_to=none"

# The configuration that the update script's documentation lists, names filled in.
SCRIPT = """\
log_config:
  run_name: 'webgym-first'
  wandb_key_env_var: "WANDB_API_KEY"
  entity_name: "team"
algorithm_config:
  model_output_name: "model.pt"
  positive_samples_to_train: 1800
  recency_bias_power: 2
  val_split_ratio: 0.05
  cutoff_len: 16384
  per_device_train_batch_size: 3
  per_device_eval_batch_size: 3
  gradient_accumulation_steps: 4
  learning_rate: 1e-6
  max_grad_norm: 1.0
  weight_decay: 0.01
  num_train_epochs: 2
  warmup_steps: 30
  lr_scheduler_type: "constant_with_warmup"
  logging_steps: 1
  bf16: True
  do_eval: false
  eval_strategy: "epoch"
  save_strategy: "steps"
  save_steps: 999999
  save_total_limit: 1
  save_only_model: False
  preprocessing_num_workers: 16
  dataloader_num_workers: 2
  dataloader_pin_memory: True
  remove_unused_columns: False
  min_token_length: 10
  gradient_checkpointing: False
  plot_loss: False
  deepspeed_config_filename: "ds_config_b200_zero1.json"
  report_to: "wandb"
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., UpdateConfig]:
    """Load update.yaml with the given text; save_path and model_path are given unless the words say otherwise."""

    def loaded(text: str = "", *words: str, schema: TrainerSchema | None = None) -> UpdateConfig:
        file = tmp_path / "update.yaml"
        file.write_text(text)
        return load_update(file, [SAVE, "model_path=./model", *words], base=BASE, schema=schema)

    return loaded


@pytest.fixture
def problems(load: Callable[..., UpdateConfig]) -> Callable[..., list[tuple[str, str, str]]]:
    """Return the problems of a file that cannot be used."""

    def found(text: str = "", *words: str, schema: TrainerSchema | None = None) -> list[tuple[str, str, str]]:
        with pytest.raises(ProblemsFound, match="the update cannot start") as caught:
            load(text, *words, schema=schema)
        return [(problem.where, problem.message, problem.hint) for problem in caught.value.problems]

    return found


def rendered(update: UpdateConfig, *, rows: int = 1710, gpus: int = 4, **more: Any) -> TrainConfig:
    usual: dict[str, Any] = {
        "dataset_dir": Path("/data/exp1/llamafactory_data"),
        "train_name": "finetune_train",
        "val_name": "finetune_val",
        "model": "/base/model",
        "output_dir": Path("/data/exp1/checkpoints/model_20250115_143022"),
        "template": "qwen2_vl",
    }
    return render_train_config(update, rows=rows, gpus=gpus, **(usual | more))


def template(*words: str) -> UpdateConfig:
    return load_update(templates_folder() / "update.yaml", [SAVE, *words], base=BASE)


def evaluated(load: Callable[..., UpdateConfig], *words: str) -> UpdateConfig:
    section = "algorithm_config"
    given = ("do_eval=true", "eval_strategy=steps", "save_steps=0.5", "deepspeed_config_filename=null", *words)
    return load(SCRIPT, "data_path=shots", *(f"{section}.{word}" for word in given))


def rounds(load: Callable[..., UpdateConfig]) -> dict[str, TrainConfig]:
    checkpoint = Checkpoint(Path("/data/exp1/checkpoints/model_1/checkpoint-72"), 72, total_steps=72)
    return {
        "first": rendered(dataclasses.replace(template(), deepspeed=Path("/templates/deepspeed/ds_z2.json"))),
        "resumed": rendered(evaluated(load), resume=checkpoint),
        "cpu": rendered(load(SCRIPT, "algorithm_config.deepspeed_config_filename=null"), gpus=0, hardware=CPU),
    }


@pytest.mark.parametrize("name", ["first", "resumed", "cpu"])
def test_rendered_whole(name: str, load: Callable[..., UpdateConfig]) -> None:
    assert render_yaml(rounds(load)[name]) == (HERE / "golden" / f"update_{name}.yaml").read_text()


def test_the_trainer_knows_every_key(load: Callable[..., UpdateConfig], schema: TrainerSchema) -> None:
    for config in rounds(load).values():
        assert set(config.values) <= set(schema.arguments)
        assert set(config.origin) == set(config.values)
    wrong = [problem for problem in check_config(rounds(load)["cpu"], schema, CPU) if problem.level == "error"]
    assert [problem.where for problem in wrong] == ["trainkit update model_name_or_path"]  # /base/model is not there


def test_the_tables_are_the_trainers(schema: TrainerSchema) -> None:
    for name, ours in TRAINER_KEYS.items():
        theirs = schema.arguments[name.removeprefix("algorithm_config.")]
        assert (ours.kind, ours.choices, ours.optional) == (theirs.kind, theirs.choices, theirs.optional), name
    assert set(SET_BY_UPDATE) <= set(schema.arguments)


def test_the_template_says_what_it_is_and_holds_the_defaults() -> None:
    text = (templates_folder() / "update.yaml").read_text()
    assert text.startswith("# The online update:")
    assert "#   trainkit update -c update.yaml save_path=/data/exp1\n" in text
    stated = yaml.safe_load(text)
    flat = {key: value for key, value in stated.items() if not isinstance(value, dict)}
    flat |= {
        f"{key}.{name}": value for key in stated if isinstance(stated[key], dict) for name, value in stated[key].items()
    }
    assert set(KEYS) - set(flat) == {"algorithm_config.template", "algorithm_config.eval_steps"}
    changed = {name for name, value in flat.items() if value != KEYS[name].default}
    assert changed == {"model_path", "algorithm_config.deepspeed_config_filename"}
    words = ((note.where, note.message, note.level) for note in template().notes)
    assert list(words) == [
        ("update.yaml:49 algorithm_config.deepspeed_config_filename", "trainkit's own ds_z2.json", "note")
    ]


def test_every_option_of_the_script_has_its_place(tmp_path: Path) -> None:
    (tmp_path / "ds_config_b200_zero1.json").write_text('{"zero_optimization": {"stage": 1}}')
    file = tmp_path / "script.yaml"
    file.write_text(SCRIPT)
    (tmp_path / "model").mkdir()
    update = load_update(file, ["save_path=exp1", "model_path=model", "data_path=shared"], base=tmp_path)
    assert dataclasses.replace(update, origin={}) == UpdateConfig(
        save_path=tmp_path / "exp1",
        data_path=tmp_path / "shared",
        model=str(tmp_path / "model"),
        num_gpus=None,
        last_n_iterations=4,
        keep_rounds=None,
        seed=42,
        run_name="webgym-first",
        project_name="rl",
        entity_name="team",
        wandb_key_env_var="WANDB_API_KEY",
        model_output_name="model.pt",
        positive_samples_to_train=1800,
        recency_bias_power=2,
        max_samples_per_task=None,
        val_split_ratio=0.05,
        min_token_length=10,
        gradient_checkpointing=False,
        deepspeed=tmp_path / "ds_config_b200_zero1.json",
        report_to=("wandb",),
        trainer={
            "template": None,
            "cutoff_len": 16384,
            "per_device_train_batch_size": 3,
            "per_device_eval_batch_size": 3,
            "gradient_accumulation_steps": 4,
            "learning_rate": 1e-06,
            "max_grad_norm": 1.0,
            "weight_decay": 0.01,
            "num_train_epochs": 2,
            "warmup_steps": 30,
            "lr_scheduler_type": "constant_with_warmup",
            "logging_steps": 1,
            "bf16": True,
            "do_eval": False,
            "eval_strategy": "epoch",
            "eval_steps": None,
            "save_strategy": "steps",
            "save_steps": 999999,
            "save_total_limit": 1,
            "save_only_model": False,
            "preprocessing_num_workers": 16,
            "dataloader_num_workers": 2,
            "dataloader_pin_memory": True,
            "remove_unused_columns": False,
            "plot_loss": False,
        },
        origin={},
        notes=(),
    )
    assert (update.origin["learning_rate"], update.origin["save_path"]) == ("script.yaml:14", "command line")


def test_all_problems_at_once(problems: Callable[..., list[tuple[str, str, str]]]) -> None:
    text = """\
save_pth: /data/exp1
log_config: webgym
algorithm_config:
  learning_rat: 1e-6
  bf16: "true"
  val_split_ratio: 1.0
  eval_strategy: sometimes
  num_train_epochs: 2
  num_train_epochs: 3
  save_steps: 1.5
  output_dir: /elsewhere
"""
    section, no_key = "algorithm_config", "there is no such key"
    assert problems(text, "save_path=null", "learning_rate=2e-6", "num_gpus=-1") == [
        (f"update.yaml:8 {section}.num_train_epochs", "written twice, again in line 9", "keep one of the two lines"),
        ("update.yaml:2 log_config", "is 'webgym', not a section of keys", "indent its keys below it"),
        ("update.yaml:1 save_pth", "there is no such key", "did you mean save_path?"),
        (f"update.yaml:4 {section}.learning_rat", no_key, f"did you mean {section}.learning_rate?"),
        ("update.yaml:5 algorithm_config.bf16", "is 'true', not true or false", "write it without quotes"),
        ("update.yaml:6 algorithm_config.val_split_ratio", "is 1.0, but must be from 0 to below 1", ""),
        (f"update.yaml:7 {section}.eval_strategy", "'sometimes' is not one of its values", "one of no, steps, epoch"),
        (
            "update.yaml:10 algorithm_config.save_steps",
            "is 1.5, but must be a whole number, or below 1 for a fraction of an epoch",
            "",
        ),
        ("update.yaml:11 algorithm_config.output_dir", "the update sets it", "set save_path"),
        ("command line learning_rate", "there is no such key", "did you mean algorithm_config.learning_rate?"),
        ("command line num_gpus", "is -1, but must be 0 (the CPU) or more", ""),
        ("command line save_path", "is missing", "add save_path=/data/exp1: the folder that holds train_trajectories"),
    ]  # fmt: skip


NOT_A_FOLDER = "not the name of a folder of its own in save_path"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("num_gpus=8.5", "is 8.5, not a whole number"),
        ("last_n_iterations=0", "is 0, but must be above 0"),
        ("seed=null", "is None, not a whole number"),
        ("zzzz=1", "there is no such key"),
        ("num_gpus='&'", "is '&', not a whole number"),
        ("algorithm_config.positive_samples_to_train=0", "is 0, but must be above 0"),
        ("algorithm_config.max_samples_per_task=0", "is 0, but must be above 0"),
        ("algorithm_config.recency_bias_power=-1", "is -1, but must be 0 (each iteration alike) or more"),
        ("algorithm_config.recency_bias_power=.inf", "is inf, but must be 0 (each iteration alike) or more"),
        ("algorithm_config.min_token_length=-1", "is -1, but must be 0 or more"),
        ("algorithm_config.learning_rate=.inf", "is inf, but must be a number"),
        ("algorithm_config.learning_rate=0", "is 0, but must be above 0"),
        ("algorithm_config.eval_steps=0", "is 0, but must be above 0"),
        ("algorithm_config.save_steps=-5", "is -5, but must be above 0"),
        ("algorithm_config.model_output_name=../model", f"is '../model', {NOT_A_FOLDER}"),
        ("algorithm_config.model_output_name=checkpoints", f"is 'checkpoints', {NOT_A_FOLDER}"),
        ("algorithm_config.report_to=3", "is 3, not the name of a tracker or a list of them"),
        ("algorithm_config.flash_attn=auto", "there is no such key"),
        ("log_config.wandb_key_env_var=0123abcd", "is not the name of an environment variable"),
        ("log_config.wandb_api_key=0123abcd", "a secret does not belong here"),
        ("log_config.entity_name='<your-wandb-entity-name>'", "'<your-wandb-entity-name>' is to be filled in"),
    ],
)
def test_a_value_that_cannot_be(problems: Callable[..., list[tuple[str, str, str]]], word: str, message: str) -> None:
    found = problems("", word)
    assert found[0][:2] == (f"command line {word.partition('=')[0]}", message)
    assert len(found) == 1
    assert "0123abcd" not in str(found)


def test_a_section_under_another_name(problems: Callable[..., list[tuple[str, str, str]]]) -> None:
    hint = "did you mean algorithm_config?"
    assert problems("algoritm_config:\n  bf16: true\n") == [
        ("update.yaml:1 algoritm_config", "there is no such key", hint)
    ]
    assert problems("", "algoritm_config.bf16=true") == [("command line algoritm_config", "there is no such key", hint)]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_update(tmp_path / "update.yaml", [SAVE])
    hint = "trainkit init --update writes one to start from"
    assert (caught.value.message, caught.value.hint) == (f"{tmp_path}/update.yaml: no such file", hint)


ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10**6),
    st.floats(-10, 10**6),
    st.sampled_from([float("inf"), float("nan"), 10**400, "???", "<x>", "${seed}", "${no}", "null", "1e-4", "../x"]),
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["bf16", "run_name"]), st.booleans(), max_size=2),
)
ODD_KEYS = st.sampled_from(
    [*KEYS, "algorithm_config", "log_config", "policy_config", "policy_config.base_model", "x.y"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(ODD_KEYS, ODD_VALUES, max_size=4))
def test_any_file_is_read_or_explained(load: Callable[..., UpdateConfig], flat: dict[str, Any]) -> None:
    file: dict[str, Any] = {}
    for name, value in flat.items():
        section, _, key = name.rpartition(".")
        inner = file.setdefault(section, {}) if section else file
        if isinstance(inner, dict):
            inner[key] = value
    try:
        update = load(yaml.safe_dump(file, allow_unicode=True))
    except TrainkitError:
        return
    assert rendered(update).values["output_dir"] == "/data/exp1/checkpoints/model_20250115_143022"
    assert wandb_env(update).startswith("# Written by trainkit")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["algorithm_config.learning_rate=2e-6"], {"learning_rate": 2e-6}),
        (["+algorithm_config.cutoff_len=8", "++algorithm_config.bf16=false"], {"cutoff_len": 8, "bf16": False}),
        (["algorithm_config.eval_strategy=no"], {"eval_strategy": "no"}),
        (["algorithm_config={cutoff_len: 8, bf16: false}"], {"cutoff_len": 8, "bf16": False, "learning_rate": 1e-6}),
    ],
)  # fmt: skip
def test_words_win_over_the_file(load: Callable[..., UpdateConfig], words: list[str], expected: dict[str, Any]) -> None:
    trainer = load("algorithm_config:\n  cutoff_len: 4\n", *words).trainer
    assert {key: trainer[key] for key in expected} == expected


def test_a_word_of_another_form(load: Callable[..., UpdateConfig]) -> None:
    with pytest.raises(UsageProblem, match="not of the form key=value"):
        load("", "~algorithm_config.bf16")


def test_references_are_resolved_after_the_words(load: Callable[..., UpdateConfig], tmp_path: Path) -> None:
    text = "save_path: /old\nlog_config:\n  run_name: run of ${save_path}\n"
    assert load(text).run_name == "run of /data/exp1"
    with pytest.raises(ConfigError, match=r"oc\.env"):
        load("", "data_path=${oc.env:HOME}")
    with pytest.raises(ConfigError, match=r"\$\{\.\.\.\} cannot be resolved: Interpolation key 'nowhere' not found"):
        load("", "data_path=${nowhere}")


@pytest.mark.parametrize(
    ("line", "samples", "message"),
    [
        ("", 16384, "is read as algorithm_config.positive_samples_to_train"),
        (
            "  positive_samples_to_train: 5\n",
            5,
            "left out: algorithm_config.positive_samples_to_train is there too and wins",
        ),
    ],
)
def test_the_old_name_of_the_samples(load: Callable[..., UpdateConfig], line: str, samples: int, message: str) -> None:
    update = load("algorithm_config:\n  samples_to_train: 16384\n" + line)
    assert update.positive_samples_to_train == samples
    where = "update.yaml:2 algorithm_config.samples_to_train"
    assert [(note.where, note.message) for note in update.notes] == [(where, message)]


def test_a_wrong_value_under_an_old_name_is_shown_at_its_line(
    problems: Callable[..., list[tuple[str, str, str]]],
) -> None:
    found = problems("algorithm_config:\n  samples_to_train: many\n")
    assert found == [("update.yaml:2 algorithm_config.positive_samples_to_train", "is 'many', not a whole number", "")]


def test_a_file_of_the_rollouts(tmp_path: Path) -> None:
    file = tmp_path / "update_online.yaml"
    file.write_text(
        "defaults:\n- default\nsave_path: ???\nlog_config:\nenv_config: {split: train}\n"
        "policy_config:\n  base_model: org/model\n  temperature: 1\n"
    )
    update = load_update(file, [SAVE], base=tmp_path)
    assert update.model == "org/model"
    assert [(note.where, note.message) for note in update.notes] == [
        ("update_online.yaml", "the rollouts' own, not read: defaults, env_config, policy_config.temperature"),
        ("update_online.yaml:7 policy_config.base_model", "is read as model_path"),
        ("update_online.yaml:7 model_path", "org/model is no folder here, so it is taken as a hub's name"),
    ]


def test_a_later_round_needs_no_model(tmp_path: Path) -> None:
    file = tmp_path / "update.yaml"
    file.write_text("")
    words = [f"save_path={tmp_path}/exp1"]
    with pytest.raises(ProblemsFound) as caught:
        load_update(file, words)
    message = f"no model is named, and there is no {tmp_path}/exp1/model.pt"
    assert caught.value.problems == (Problem("update.yaml model_path", message, "add model_path=FOLDER"),)
    (tmp_path / "exp1" / "model.pt").mkdir(parents=True)
    assert load_update(file, words).model is None


ALL_SHIPPED = "name its path, or trainkit's own: ds_z1.json, ds_z2.json, ds_z3.json, ds_z3_offload.json"


@pytest.mark.parametrize(
    ("name", "path", "hint"),
    [
        (
            "ds_config_b200_zero1.json",
            "/base/ds_config_b200_zero1.json",
            "name its path, or trainkit's own ds_z1.json, which is ZeRO-1 too",
        ),
        (
            "ds_config_b200_zero2.json",
            "/base/ds_config_b200_zero2.json",
            "name its path, or trainkit's own ds_z2.json, which is ZeRO-2 too",
        ),
        ("../update.yaml", "/update.yaml", ALL_SHIPPED),
    ],
)
def test_a_deepspeed_file_that_is_not_there(
    problems: Callable[..., list[tuple[str, str, str]]], name: str, path: str, hint: str
) -> None:
    key = "algorithm_config.deepspeed_config_filename"
    assert problems("", f"{key}={name}") == [(f"command line {key}", f"there is no file {path}", hint)]


def test_a_deepspeed_file_that_is_none(problems: Callable[..., list[tuple[str, str, str]]], tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("[]")
    found = problems("", f"algorithm_config.deepspeed_config_filename={tmp_path}/ds.json")
    assert [message for _, message, _ in found] == [f"{tmp_path}/ds.json: not a JSON object"]


def test_the_trainers_other_keys(
    load: Callable[..., UpdateConfig], problems: Callable[..., list[tuple[str, str, str]]], schema: TrainerSchema
) -> None:
    words = ["flash_attn=auto", "warmup_ratio=0.1", "fp16=true", "template=qwen3"]
    update = load("", *(f"{ALGORITHM}.{word}" for word in words), schema=schema)
    config = rendered(update, schema=schema)
    values = {
        key: config.values.get(key)
        for key in ("flash_attn", "warmup_ratio", "warmup_steps", "fp16", "bf16", "template")
    }
    assert values == {
        "flash_attn": "auto", "warmup_ratio": 0.1, "warmup_steps": None, "fp16": True, "bf16": None, "template": "qwen3"
    }  # fmt: skip
    found = problems("", f"{ALGORITHM}.flash_atn=auto", f"{ALGORITHM}.flash_attn=slow", schema=schema)
    assert [(message, hint) for _, message, hint in found] == [
        ("there is no such key", "did you mean algorithm_config.flash_attn?"),
        ("'slow' is not one of its values", "one of auto, disabled, sdpa, fa2, fa3"),
    ]


def test_a_key_that_the_installed_trainer_lost(load: Callable[..., UpdateConfig], schema: TrainerSchema) -> None:
    arguments = {name: argument for name, argument in schema.arguments.items() if name != "plot_loss"}
    update = load("algorithm_config:\n  plot_loss: true\n")
    config = rendered(update, schema=dataclasses.replace(schema, arguments=arguments))
    assert "plot_loss" not in config.values
    words = "left out: the installed LLaMA-Factory has no such key"
    assert config.notes[-1] == Problem("update.yaml:2 plot_loss", words, level="note")


@pytest.mark.parametrize(
    ("value", "steps", "message"),
    [
        ("0.5", 18, "0.5 of an epoch of 36 steps is every 18 steps"),
        ("0.001", 1, "0.001 of an epoch of 36 steps is every 1 steps"),
        ("1", 1, None),
        ("40.0", 40, None),
        ("999999", 999999, None),
    ],
)
def test_fractions_of_an_epoch(load: Callable[..., UpdateConfig], value: str, steps: int, message: str | None) -> None:
    config = rendered(load("", f"algorithm_config.save_steps={value}", "algorithm_config.min_token_length=0"))
    assert (config.values["save_steps"], type(config.values["save_steps"])) == (steps, int)
    assert [note.message for note in config.notes] == ([message] if message else [])


EVALUATION = ("do_eval", "eval_strategy", "eval_steps", "eval_dataset")
OFF = (False, "no", None, None)
HEEDED = "no evaluation: do_eval is false, which this trainer would not heed by itself"
AS_SAVED = "as save_steps; without it the trainer evaluates as often as it logs"
NO_ROWS = "no evaluation: there are no validation rows (val_split_ratio)"


@pytest.mark.parametrize(
    ("words", "val_name", "expected", "message"),
    [
        ([], "val", OFF, None),
        (["eval_strategy=epoch"], "val", OFF, HEEDED),
        (["do_eval=true"], "val", (True, "epoch", None, "val"), None),
        (["do_eval=true", "eval_strategy=no"], "val", (True, "no", None, "val"), None),
        (["do_eval=true", "eval_strategy=steps", "eval_steps=7"], "val", (True, "steps", 7, "val"), None),
        (["do_eval=true", "eval_strategy=steps", "save_steps=9"], "val", (True, "steps", 9, "val"), AS_SAVED),
        (["do_eval=true", "eval_steps=7"], None, OFF, NO_ROWS),
    ],
)  # fmt: skip
def test_evaluation(
    load: Callable[..., UpdateConfig],
    words: list[str],
    val_name: str | None,
    expected: tuple[Any, ...],
    message: str | None,
) -> None:
    update = load("", *(f"{ALGORITHM}.{word}" for word in ["min_token_length=0", *words]))
    config = rendered(update, val_name=val_name)
    assert tuple(config.values.get(key) for key in EVALUATION) == expected
    assert [note.message for note in config.notes] == ([message] if message else [])


@pytest.mark.parametrize(
    ("report_to", "expected"),
    [
        ("wandb", {"report_to": "wandb"}),
        ("none", {"report_to": "none"}),
        ("null", {"report_to": "none"}),
        ("[wandb, tensorboard]", {"report_to": ["wandb", "tensorboard"]}),
        ("swanlab", {"report_to": "none", "use_swanlab": True, "swanlab_run_name": "exp1"}),
        ("'wandb, swanlab'", {"report_to": "wandb", "use_swanlab": True, "swanlab_run_name": "exp1"}),
    ],
)
def test_trackers(load: Callable[..., UpdateConfig], report_to: str, expected: dict[str, Any]) -> None:
    values = rendered(load("", f"algorithm_config.report_to={report_to}")).values
    assert {key: value for key, value in values.items() if key == "report_to" or "swanlab" in key} == expected


def test_checkpointing_has_another_name_for_the_trainer(load: Callable[..., UpdateConfig]) -> None:
    assert rendered(load()).values["disable_gradient_checkpointing"] is True
    on = rendered(load("", "algorithm_config.gradient_checkpointing=true")).values
    assert not {"gradient_checkpointing", "disable_gradient_checkpointing"} & set(on)


def test_an_empty_key_is_the_trainers_none(load: Callable[..., UpdateConfig]) -> None:
    values = rendered(load("algorithm_config:\n  save_total_limit:\n  preprocessing_num_workers:\n")).values
    assert not {"save_total_limit", "preprocessing_num_workers"} & set(values)


def test_a_warm_up_that_is_longer_than_the_training(load: Callable[..., UpdateConfig]) -> None:
    notes = rendered(load(), rows=100).notes
    assert notes[-1].message == "30 steps of warm-up, 6 in all: learning_rate is not reached"
    assert notes[-1].level == "warning"


@pytest.mark.parametrize(
    ("step", "rows", "gpus", "words", "expected"),
    [
        (0, 1710, 4, [], {"max_steps": 72, "num_train_epochs": 2}),
        (72, 1710, 4, [], {"max_steps": 144, "num_train_epochs": 4}),
        (72, 900, 4, [], {"max_steps": 110, "num_train_epochs": 6}),
        (1000, 12, 0, [], {"max_steps": 1002, "num_train_epochs": 1002}),
        (72, 900, 8, ["algorithm_config.num_train_epochs=0.5"], {"max_steps": 77, "num_train_epochs": 8}),
    ],
)
def test_new_steps_come_on_top(
    load: Callable[..., UpdateConfig],
    step: int,
    rows: int,
    gpus: int,
    words: list[str],
    expected: dict[str, Any],
) -> None:
    extended = extend_steps(step, rows, load("", *words), gpus)
    assert extended == expected | {"ignore_data_skip": True}
    # the trainer starts in the epoch that the step falls into and needs enough epochs for the new steps
    per_epoch = extend_steps(0, rows, load("", "algorithm_config.num_train_epochs=1"), gpus)["max_steps"]
    assert (extended["num_train_epochs"] - step // per_epoch) * per_epoch >= extended["max_steps"] - step


@pytest.mark.parametrize(("given", "gpus", "count"), [("null", 2, 2), ("null", 0, 0), ("8", 2, 8), ("0", 2, 0)])
def test_gpus_are_counted_or_given(load: Callable[..., UpdateConfig], given: str, gpus: int, count: int) -> None:
    assert count_gpus(load("", f"num_gpus={given}"), Hardware((GPU,) * gpus, 32, 256.0)) == count


WRITTEN = "# Written by trainkit: source it before the training. It holds no key.\n"


def test_wandb_env_whole(load: Callable[..., UpdateConfig]) -> None:
    text = "log_config:\n  run_name: it's $HOME\n  entity_name: team\n  wandb_key_env_var: TEAM_KEY\n"
    assert wandb_env(load(text), "run-1") == WRITTEN + (
        "export WANDB_PROJECT=rl\n"
        "export WANDB_ENTITY=team\n"
        "export WANDB_RUN_NAME='it'\"'\"'s $HOME'\n"
        "export WANDB_NAME='it'\"'\"'s $HOME'\n"
        "export WANDB_RESUME=allow\n"
        "export WANDB_RUN_ID=run-1\n"
        'if [ -n "${TEAM_KEY:-}" ]; then export WANDB_API_KEY="$TEAM_KEY"; fi\n'
    )
    assert wandb_env(load()) == WRITTEN + (
        "export WANDB_PROJECT=rl\nexport WANDB_RUN_NAME=exp1\nexport WANDB_NAME=exp1\nexport WANDB_RESUME=allow\n"
    )
    assert wandb_env(load("", NO_TRACKER)) == "# Written by trainkit. This update does not report to W&B.\n"


@pytest.mark.parametrize("name", ["a b", "$(touch x)", "`touch x`", "'; touch x; '", "a\nb", "模型", "-n", '"\\'])
def test_the_shell_reads_back_what_was_meant(load: Callable[..., UpdateConfig], name: str, tmp_path: Path) -> None:
    update = dataclasses.replace(load("", "log_config.wandb_key_env_var=TEAM_KEY"), run_name=name)
    (tmp_path / "wandb_env.sh").write_text(wandb_env(update, name), encoding="utf-8")
    script = 'set -eu; . ./wandb_env.sh; printf "%s\\0" "$WANDB_NAME" "$WANDB_RUN_ID" "${WANDB_API_KEY-}"'
    for key in ("", "0123"):
        env = {"PATH": os.environ["PATH"], "TEAM_KEY": key}
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, check=True)
        assert done.stdout.decode().split("\0")[:-1] == [name, name, key]
    assert not (tmp_path / "x").exists()


# Reads {name: values} and returns {name: the trainer's words of refusal}.
ACCEPT = """
import json, os, sys
answer = os.fdopen(os.dup(1), "w"); os.dup2(2, 1)
configs = json.load(sys.stdin)
from llamafactory.hparams import get_train_args
refused = {}
for name, values in configs.items():
    try:
        get_train_args(values)
    except ValueError as error:
        refused[name] = str(error)
print(json.dumps(refused), file=answer)
"""


@pytest.mark.slow
def test_the_trainers_own_parser_accepts_all(load: Callable[..., UpdateConfig], tmp_path: Path) -> None:
    words = ("eval_strategy=epoch", "gradient_checkpointing=true", "report_to=[wandb, swanlab]")
    checkpoint = Checkpoint(tmp_path, 72, total_steps=72)
    out = {"output_dir": tmp_path / "out", "hardware": CPU}
    configs = {
        "first": rendered(template(f"{ALGORITHM}.deepspeed_config_filename=null"), **out),
        "resumed": rendered(evaluated(load), resume=checkpoint, **out),
        "evaluated": rendered(evaluated(load, *words), **out),
    }
    values = {name: yaml.safe_load(render_yaml(config)) for name, config in configs.items()}
    values["refused"] = values["first"] | {"gradient_checkpoint": False}
    script = tmp_path / "accept.py"
    script.write_text(ACCEPT)
    env = {name: value for name, value in environment.snapshot().items() if not name.startswith("COVERAGE_")}
    refused = run_child_json(Path(sys.executable), script, values, env | {"CUDA_VISIBLE_DEVICES": ""})
    assert refused == {"refused": "Some keys are not used by the HfArgumentParser: ['gradient_checkpoint']"}
