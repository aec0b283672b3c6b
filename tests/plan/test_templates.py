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
from trainkit.plan.architecture import architecture_of
from trainkit.plan.check import check_config, zero_stage
from trainkit.plan.config import build_config
from trainkit.plan.gpus import find_gpu
from trainkit.plan.hardware import run_child_json
from trainkit.plan.known_models import find_known_config
from trainkit.plan.memory import estimate
from trainkit.plan.render import render_yaml
from trainkit.plan.setup import setup_of
from trainkit.plan.templates import find_template, templates_folder
from trainkit.plan.yamlfile import load_yaml

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
# The first words of each template, and the note on the DeepSpeed file that it names.
WORDS = {
    "lora": ("LoRA", ""),
    "qlora": ("QLoRA", ""),
    "full": ("Full training", ""),
    "full_z2": ("Full training on several GPUs with DeepSpeed ZeRO-2", "ds_z2.json"),
    "full_z3": ("Full training on several GPUs with DeepSpeed ZeRO-3", "ds_z3.json"),
    "rm": ("Reward model", ""),
    "dpo": ("DPO", ""),
    "kto": ("KTO", ""),
}
OF_FAMILY = {f"{family}_{kind}": (family, kind) for family in MODELS for kind in WORDS}
FILES = {name: templates_folder() / family / f"{kind}.yaml" for name, (family, kind) in OF_FAMILY.items()}
FILES |= {"training_config": templates_folder() / "training_config.yaml", "hand_written": HERE / "hand_written.yaml"}


def rendered(file: Path, hardware: Hardware, schema: TrainerSchema, base: Path = BASE) -> str:
    config = build_config(file, {}, [], schema=schema, hardware=hardware, templates=templates_folder(), base=base)
    return render_yaml(config)


@pytest.mark.parametrize("name", FILES)
def test_rendered_for_an_a100(name: str, schema: TrainerSchema) -> None:
    text = rendered(FILES[name], A100, schema).replace(str(templates_folder()), "/templates")
    assert text == (HERE / "golden" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", OF_FAMILY)
def test_a_template_says_what_it_is_for_and_fits_its_model(
    name: str, schema: TrainerSchema, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    family, kind = OF_FAMILY[name]
    make_model(**MODELS[family])
    config = build_config(
        FILES[name], {}, [], schema=schema, hardware=A100, templates=templates_folder(), base=tmp_path
    )
    first, deepspeed = WORDS[kind]
    assert [note.message for note in config.notes] == ([f"trainkit's own {deepspeed}"] if deepspeed else [])
    assert check_config(config, schema, A100) == []
    text = FILES[name].read_text()
    assert text.startswith(f"# {first}:")
    assert f"#   trainkit train --config templates/{family}/{kind}.yaml\n" in text
    assert set(load_yaml(FILES[name]).values) - {"template"} <= set(config.origin)


def test_there_is_no_other_template() -> None:
    found = {path for family in MODELS for path in (templates_folder() / family).iterdir()}
    assert found == {FILES[name] for name in OF_FAMILY}


@pytest.mark.parametrize("kind", WORDS)
def test_a_qwen_template_takes_a_qwen3_model_too(
    kind: str, schema: TrainerSchema, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    make_model(model_type="qwen3")
    file = FILES[f"qwen_{kind}"]
    config = build_config(file, {}, [], schema=schema, hardware=A100, templates=templates_folder(), base=tmp_path)
    assert config.values["template"] == "qwen3"
    assert check_config(config, schema, A100) == []


@pytest.mark.parametrize(
    ("name", "model", "gpus", "least", "most"),
    [
        ("qwen_qlora", "qwen2.5-7b", 1, 0, 23),
        ("mistral_qlora", "mistral-7b", 1, 0, 23),
        *(("qwen_" + kind, "qwen2.5-7b", 1, 0, 38) for kind in ("lora", "rm", "dpo", "kto")),
        ("qwen_full_z2", "qwen3-8b", 8, 36, 43),
        ("llama3_full_z2", "llama-3.1-8b", 8, 36, 43),
        ("qwen_full_z3", "qwen3-8b", 8, 32, 38),
        ("llama3_full_z3", "llama-3.1-8b", 8, 23, 29),
    ],
)
def test_the_memory_that_a_template_speaks_of(
    name: str, model: str, gpus: int, least: float, most: float, schema: TrainerSchema
) -> None:
    config = build_config(FILES[name], {}, [], schema=schema, hardware=A100, templates=templates_folder(), base=BASE)
    setup = setup_of(config.values, schema.default, find_gpu("h100"), world=gpus)
    shape = find_known_config(model)
    assert shape is not None
    assert least < estimate(architecture_of(shape), setup).total / 2**30 < most


def test_the_first_configuration_is_good(
    schema: TrainerSchema, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    make_model(model_type="qwen2")
    file = templates_folder() / "training_config.yaml"
    config = build_config(file, {}, [], schema=schema, hardware=A100, templates=templates_folder(), base=tmp_path)
    assert (config.notes, check_config(config, schema, A100)) == ((), [])


@pytest.mark.parametrize("name", ["ds_z1", "ds_z2", "ds_z3", "ds_z3_offload"])
def test_deepspeed_files(name: str) -> None:
    loaded = json.loads((templates_folder() / "deepspeed" / f"{name}.json").read_text())
    assert ("offload_optimizer" in loaded["zero_optimization"]) is name.endswith("offload")
    assert zero_stage(loaded) == int(name[4])
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
# DeepSpeed is refused outside of torchrun, which would set these variables for a single process.
ACCEPT = """
import json, os, sys
answer = os.fdopen(os.dup(1), "w"); os.dup2(2, 1)
configs = json.load(sys.stdin)
from llamafactory.hparams import get_train_args
refused = {}
for name, values in sorted(configs.items(), key=lambda item: "deepspeed" in item[1]):
    if "deepspeed" in values:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
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
