"""A Qwen 3 model without a word about the chat template: the training data choose it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.datatypes import Gpu, Hardware, Problem
from trainkit.plan.config import build_config
from trainkit.plan.families import TEMPLATES_OF_TYPE
from trainkit.plan.templates import templates_folder
from trainkit.plan.thinking import THINKING_TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainkit.datatypes import TrainConfig
    from trainkit.plan.arguments import TrainerSchema

    Built = Callable[..., TrainConfig]

A100 = Hardware((Gpu("NVIDIA A100-SXM4-40GB", 40.0, (8, 0)),), 32, 256.0)
NOT_KNOWN = "the model's config.json"


@pytest.fixture
def built(schema: TrainerSchema, make_model: Callable[..., Path], tmp_path: Path) -> Built:
    """Build a configuration for a model type, from `key=value` words, with what is known of the data."""

    def build(model_type: str, has_thoughts: bool | None, *words: str, trainer: TrainerSchema = schema) -> TrainConfig:
        make_model(model_type=model_type)
        known: dict[str, Any] = {"hardware": A100, "templates": templates_folder(), "base": tmp_path}
        return build_config(None, {}, words, schema=trainer, has_thoughts=has_thoughts, **known)

    return build


@pytest.mark.parametrize(
    ("model_type", "has_thoughts", "template", "origin"),
    [
        ("qwen3", None, "qwen3", NOT_KNOWN),
        ("qwen3", True, "qwen3", "the training data"),
        ("qwen3", False, "qwen3_nothink", "the training data"),
        ("qwen3_moe", False, "qwen3_nothink", "the training data"),
        ("qwen3_next", False, "qwen3_nothink", "the training data"),
        ("qwen3_vl", False, "qwen3_vl_nothink", "the training data"),
        ("qwen3_5", False, "qwen3_5_nothink", "the training data"),
        ("qwen2", False, "qwen", "template qwen/lora"),
        ("qwen2", True, "qwen", "template qwen/lora"),
        ("ernie4_5", False, "ernie", NOT_KNOWN),
        ("seed_oss", False, "seed_oss", NOT_KNOWN),
    ],
)
def test_the_data_choose_between_the_two_forms(
    model_type: str, has_thoughts: bool | None, template: str, origin: str, built: Built
) -> None:
    config = built(model_type, has_thoughts)
    assert (config.values["template"], config.origin["template"]) == (template, origin)
    assert [note.where for note in config.notes] == (
        ["the training data template"] if origin == "the training data" else []
    )


def test_what_is_said_without_thoughts(built: Built) -> None:
    said = "qwen3_nothink, as its first answers hold no think block: qwen3 would add an empty one to each"
    hint = "set template: qwen3 to train with empty blocks"
    assert built("qwen3", False).notes == (Problem("the training data template", said, hint, "note"),)


def test_what_is_said_with_thoughts(built: Built) -> None:
    said = "qwen3, as its first answers hold think blocks"
    assert built("qwen3", True).notes == (Problem("the training data template", said, "", "note"),)


@pytest.mark.parametrize("word", ["template=qwen3", "enable_thinking=true", "enable_thinking=false"])
def test_who_names_the_template_or_its_key_has_decided(word: str, built: Built) -> None:
    config = built("qwen3", False, word)
    assert (config.values["template"], config.notes) == ("qwen3", ())


def test_the_other_form_named(built: Built) -> None:
    assert built("qwen3", True, "template=qwen3_nothink").values["template"] == "qwen3_nothink"


def test_a_trainer_without_the_other_form(schema: TrainerSchema, built: Built) -> None:
    older = dataclasses.replace(schema, templates=tuple(set(schema.templates) - {"qwen3_nothink"}))
    config = built("qwen3", False, trainer=older)
    assert (config.values["template"], config.notes) == ("qwen3", ())


def test_every_thinking_template_is_some_models_usual_one() -> None:
    usual = {names[0]: names for names in TEMPLATES_OF_TYPE.values()}
    assert all(f"{name}_nothink" in usual[name] for name in THINKING_TEMPLATES)
