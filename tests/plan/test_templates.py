"""Every template, the first configuration and a hand-written one: rendered, compared whole, accepted by the trainer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from trainkit import environment
from trainkit.datatypes import Gpu, Hardware
from trainkit.errors import TrainkitError
from trainkit.plan import templates as templates_module
from trainkit.plan.check import check_config
from trainkit.plan.config import build_config
from trainkit.plan.hardware import run_child_json
from trainkit.plan.render import render_yaml
from trainkit.plan.templates import find_template, templates_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.plan.arguments import TrainerSchema

HERE = Path(__file__).parent
BASE = Path("/base")
A100 = Hardware((Gpu("NVIDIA A100-SXM4-40GB", 40.0, (8, 0)),), 32, 256.0)
CPU = Hardware((), 2, 8.0)
MODELS: dict[str, dict[str, Any]] = {
    "qwen": {"model_type": "qwen2"},
    "llama3": {"model_type": "llama", "vocab_size": 128256},
    "mistral": {"model_type": "mistral"},
}
FILES = {
    f"{family}_{method}": templates_folder() / family / f"{method}.yaml"
    for family in MODELS
    for method in ("lora", "full")
}
FILES |= {"training_config": templates_folder() / "training_config.yaml", "hand_written": HERE / "hand_written.yaml"}


def rendered(file: Path, hardware: Hardware, schema: TrainerSchema, base: Path = BASE) -> str:
    config = build_config(file, {}, [], schema=schema, hardware=hardware, templates=templates_folder(), base=base)
    return render_yaml(config)


@pytest.mark.parametrize("name", FILES)
def test_rendered_for_an_a100(name: str, schema: TrainerSchema) -> None:
    assert rendered(FILES[name], A100, schema) == (HERE / "golden" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", [name for name in FILES if "_" in name and name.split("_")[0] in MODELS])
def test_a_template_says_what_it_is_for_and_fits_its_model(
    name: str, schema: TrainerSchema, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    family, method = name.split("_")
    make_model(**MODELS[family])
    config = build_config(
        FILES[name], {}, [], schema=schema, hardware=A100, templates=templates_folder(), base=tmp_path
    )
    assert config.notes == ()
    assert check_config(config, schema, A100) == []
    text = FILES[name].read_text()
    assert text.startswith("# LoRA:" if method == "lora" else "# Full training:")
    assert f"#   trainkit train --config templates/{family}/{method}.yaml\n" in text


def test_the_first_configuration_is_good(
    schema: TrainerSchema, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    make_model(model_type="qwen2")
    file = templates_folder() / "training_config.yaml"
    config = build_config(file, {}, [], schema=schema, hardware=A100, templates=templates_folder(), base=tmp_path)
    assert (config.notes, check_config(config, schema, A100)) == ((), [])


@pytest.mark.parametrize("name", ["ds_z2", "ds_z3", "ds_z3_offload"])
def test_deepspeed_files(name: str) -> None:
    loaded = json.loads((templates_folder() / "deepspeed" / f"{name}.json").read_text())
    assert loaded["zero_optimization"]["stage"] == int(name[4])
    assert ("offload_optimizer" in loaded["zero_optimization"]) is name.endswith("offload")
    assert {loaded[key] for key in ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping")} == {"auto"}


def test_a_wheel_and_no_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "trainkit"
    (package / "plan").mkdir(parents=True)
    monkeypatch.setattr(templates_module, "__file__", str(package / "plan" / "templates.py"))
    with pytest.raises(TrainkitError, match="templates are missing"):
        templates_folder()
    (package / "templates").mkdir()
    (package / "templates" / "training_config.yaml").write_text("")
    assert templates_folder() == package / "templates"
    assert find_template(package / "templates", None, "lora") == package / "templates" / "qwen" / "lora.yaml"


# Reads {name: values} and returns {name: its own words of refusal}; get_train_args checks far more than the names.
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
def test_the_trainers_own_parser_accepts_all(schema: TrainerSchema, tmp_path: Path) -> None:
    texts = {name: rendered(file, CPU, schema, tmp_path) for name, file in FILES.items()}
    texts["refused"] = texts["qwen_lora"] + "no_such_key: 1\n"
    script = tmp_path / "accept.py"
    script.write_text(ACCEPT)
    configs = {name: yaml.safe_load(text) for name, text in texts.items()}
    env = environment.snapshot() | {"CUDA_VISIBLE_DEVICES": ""}
    refused = run_child_json(Path(sys.executable), script, configs, env)
    assert refused == {"refused": "Some keys are not used by the HfArgumentParser: ['no_such_key']"}
