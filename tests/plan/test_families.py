from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.datatypes import Problem
from trainkit.errors import InputError
from trainkit.plan.families import (
    LLAMA_OF_VOCABULARY,
    PLAIN_TEMPLATES,
    TEMPLATES_OF_TYPE,
    check_model_folder,
    check_template,
    family_of,
    find_family,
    is_hub_name,
    llama_templates,
)

if TYPE_CHECKING:
    from pathlib import Path

    from trainkit.plan.arguments import TrainerSchema


@pytest.mark.parametrize(
    ("config", "template", "folder"),
    [
        ({"model_type": "qwen2"}, "qwen", "qwen"),
        ({"model_type": "qwen3"}, "qwen3", "qwen"),
        ({"model_type": "llama", "vocab_size": 128256}, "llama3", "llama3"),
        ({"model_type": "llama", "vocab_size": 32000}, "llama2", "llama3"),
        ({"model_type": "llama", "vocab_size": 32003}, "llama2", "llama3"),
        ({"model_type": "llama", "vocab_size": 64000}, "yi", "llama3"),
        ({"model_type": "llama", "vocab_size": 2000}, "llama3", "llama3"),
        ({"model_type": "llama"}, "llama3", "llama3"),
        ({"model_type": "llama", "vocab_size": []}, "llama3", "llama3"),
        ({"model_type": "mistral"}, "mistral", "mistral"),
        ({"model_type": "gemma2"}, "gemma2", "qwen"),
        ({"model_type": "chatglm"}, "glm4", "qwen"),
    ],
)
def test_family(config: dict[str, Any], template: str, folder: str) -> None:
    family = family_of(config)
    assert family is not None
    assert (family.templates[0], family.folder) == (template, folder)


@pytest.mark.parametrize("config", [{}, {"model_type": "mamba"}, {"model_type": 3}])
def test_no_judgement_about_other_types(config: dict[str, Any]) -> None:
    assert family_of(config) is None


def test_no_family_without_config(tmp_path: Path) -> None:
    assert find_family(tmp_path) is None
    (tmp_path / "config.json").write_text("[]")
    assert find_family(tmp_path) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json:1:2: not valid JSON"):
        find_family(tmp_path)


def test_every_template_of_the_table_exists(schema: TrainerSchema) -> None:
    named = {name for names in TEMPLATES_OF_TYPE.values() for name in names} | set(PLAIN_TEMPLATES)
    named |= {name for names in LLAMA_OF_VOCABULARY.values() for name in names}
    named |= {name for size in (2000, 32000, 128256) for name in llama_templates(size)}
    assert named <= set(schema.templates)


@pytest.mark.parametrize(
    ("template", "model_type", "force", "problems"),
    [
        ("qwen", "qwen2", False, []),
        ("default", "qwen2", False, []),
        ("llama3", "mamba", False, []),
        ("qwen3_nothink", "qwen3", False, []),
        (
            "qwem",
            "qwen2",
            False,
            [Problem("template", "LLaMA-Factory has no template 'qwem'", "it has qwen, qwen3, qwen3_omni")],
        ),
        (
            "zzzzzz",
            "qwen2",
            False,
            [
                Problem(
                    "template",
                    "LLaMA-Factory has no template 'zzzzzz'",
                    "it has qwen, qwen3, llama3, mistral and others",
                )
            ],
        ),
        (
            "llama3",
            "qwen2",
            False,
            [
                Problem(
                    "template",
                    "the template llama3 does not fit a model of type qwen2",
                    "fitting: qwen, chatml, deepseekr1, sailor, openchat; --force-template trains with it all the same",
                )
            ],
        ),
        (
            "qwen",
            "mistral",
            True,
            [
                Problem(
                    "template",
                    "the template qwen does not fit a model of type mistral",
                    "fitting: mistral, ministral, mistral_small, zephyr, openchat, breeze, chatml; "
                    "--force-template trains with it all the same",
                    "warning",
                )
            ],
        ),
    ],
)
def test_template(template: str, model_type: str, force: bool, problems: list[Problem], schema: TrainerSchema) -> None:
    family = family_of({"model_type": model_type})
    assert check_template(template, family, schema.templates, force=force) == problems


@pytest.mark.parametrize(
    ("name", "is_hub"),
    [
        ("Qwen/Qwen2.5-7B", True),
        ("./model", False),
        ("model", False),
        ("/a/b", False),
        ("a/b/c", False),
        ("a/.b", False),
    ],
)
def test_hub_name(name: str, is_hub: bool) -> None:
    assert is_hub_name(name) is is_hub


def test_a_complete_model_folder(model: Path) -> None:
    assert check_model_folder(model) == []


def test_shards(model: Path) -> None:
    (model / "model.safetensors").unlink()
    shards = {f"layer.{number}": f"model-{number}-of-5.safetensors" for number in range(1, 6)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (model / "model-2-of-5.safetensors").write_bytes(b"")
    [problem] = check_model_folder(model)
    assert problem.message == (
        f"{model}: 4 of 5 weight files are missing: "
        "model-1-of-5.safetensors, model-3-of-5.safetensors, model-4-of-5.safetensors, ..."
    )
    for name in shards.values():
        (model / name).write_bytes(b"")
    assert check_model_folder(model) == []


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (["model.safetensors"], "{}: there are no weights (model.safetensors)"),
        (["tokenizer.json"], "{}: there is no tokenizer (tokenizer.json)"),
        (["config.json"], "{}: there is no config.json, so this is not a model folder"),
    ],
)
def test_what_a_model_folder_misses(model: Path, remove: list[str], message: str) -> None:
    for name in remove:
        (model / name).unlink()
    assert [problem.message for problem in check_model_folder(model)] == [message.format(model)]


def test_weights_that_git_did_not_fetch(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert check_model_folder(model) == [
        Problem(
            "model_name_or_path",
            f"{model}: model.safetensors is a pointer of Git LFS, not the weights themselves",
            f"run `git lfs pull` in {model}, or download the model in another way",
        )
    ]


def test_damaged_index(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text('{"weight_map": ')
    [problem] = check_model_folder(model)
    assert problem.message == f"{model}/model.safetensors.index.json:1:16: not valid JSON: Expecting value"
    (model / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    assert [p.message for p in check_model_folder(model)] == [f"{model}: there are no weights (model.safetensors)"]


def test_the_models_files_in_a_sub_folder(model: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    model.rename(outer / "Qwen2.5-7B")
    assert check_model_folder(outer, "c.yaml:1 model_name_or_path") == [
        Problem(
            "c.yaml:1 model_name_or_path",
            f"{outer}: the model's files are in the sub-folder Qwen2.5-7B",
            f"move the files up into {outer}, or set model_name_or_path: {outer}/Qwen2.5-7B",
        )
    ]


def test_no_model_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    hint = "download the model there, or set model_name_or_path"
    assert check_model_folder(tmp_path / "none") == [
        Problem("model_name_or_path", f"model folder {tmp_path}/none: there is no such folder", hint)
    ]
    assert check_model_folder(file) == [Problem("model_name_or_path", f"model folder {file}: is not a folder", hint)]
