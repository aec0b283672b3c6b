from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.datatypes import Argument, Gpu, Hardware, TrainConfig
from trainkit.plan.arguments import TrainerSchema
from trainkit.plan.config import build_config
from trainkit.plan.templates import templates_folder

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
A100 = Hardware((Gpu("NVIDIA A100-SXM4-40GB", 40.0, (8, 0)),), 32, 256.0)
PACKAGES = (
    "llamafactory deepspeed bitsandbytes liger-kernel matplotlib jieba nltk rouge_chinese adam-mini badam galore_torch "
    "apollo_torch unsloth"
)
VERSIONS = dict.fromkeys(PACKAGES.split(), "1.0")


@pytest.fixture(scope="session")
def schema() -> TrainerSchema:
    """LLaMA-Factory 0.9.5 as it was asked once; a slow test asks the installed one and compares."""
    stored = json.loads((HERE / "schema.json").read_text())
    arguments = {
        name: Argument(name, **(fields | {"choices": tuple(fields["choices"])}))
        for name, fields in stored["arguments"].items()
    }
    return TrainerSchema(arguments, tuple(stored["templates"]), VERSIONS)


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Make tmp_path/model with the names of a model's files and the given config.json."""

    def made(**config: Any) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(b"")
        (folder / "tokenizer.json").write_text("{}")
        return folder

    return made


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    """A complete Qwen2 folder, tmp_path/model."""
    return make_model(model_type="qwen2")


@pytest.fixture
def build(schema: TrainerSchema, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Build a configuration from the text of a user's file, options and words, on an A100, in tmp_path."""

    def built(
        text: str = "", *words: str, hardware: Hardware = A100, options: dict[str, tuple[str, Any]] | None = None
    ) -> TrainConfig:
        file = tmp_path / "training_config.yaml"
        file.write_text(text)
        return build_config(
            file, options or {}, words, schema=schema, hardware=hardware, templates=templates_folder(), base=tmp_path
        )

    return built
