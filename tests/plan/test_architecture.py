"""The shapes of models: their sizes against what the real classes and the public model cards have."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.errors import ConfigError, InputError
from trainkit.plan.architecture import Architecture, architecture_of, find_architecture

if TYPE_CHECKING:
    from pathlib import Path

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
MOE = {
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 151936,
    "num_experts_per_tok": 8,
}
GEMMA3 = {
    "model_type": "gemma3_text",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
}


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("QWEN/QWEN2.5-7B-INSTRUCT", 7_615_616_512),
        ("Qwen/Qwen2.5-14B", 14_770_033_664),
        ("Qwen/Qwen2.5-32B", 32_763_876_352),
        ("Qwen/Qwen2.5-72B-Instruct", 72_706_203_648),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-4B-Instruct-2507", 4_022_468_096),
        ("Qwen/Qwen3-8B-Base", 8_190_735_360),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B", 70_553_706_496),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("mistralai/Mistral-Nemo-Instruct-2407", 12_247_782_400),
        ("/models/Qwen2.5-7B-Instruct/", 7_615_616_512),
    ],
)
def test_a_known_name_has_the_parameters_of_its_model_card(name: str, params: int, tmp_path: Path) -> None:
    found = find_architecture(name, {"HF_HOME": str(tmp_path)}, tmp_path)
    assert found is not None
    assert found.params == params


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B-Instruct-AWQ", "my-model", "Qwen/Qwen9-7B", ""])
def test_an_unknown_name_is_none(name: str, tmp_path: Path) -> None:
    assert find_architecture(name, {"HF_HOME": str(tmp_path)}, tmp_path) is None


# Parameters and weights of a rank 64 adapter on all linear layers, counted in transformers 5.6's own classes.
@pytest.mark.parametrize(
    ("config", "params", "adapter"),
    [
        (LLAMA, 8_030_261_248, 167_772_160),
        (
            {
                "model_type": "phi3",
                "hidden_size": 3072,
                "intermediate_size": 8192,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "vocab_size": 32064,
            },
            3_821_079_552,
            100_663_296,
        ),
        (
            {
                "model_type": "gemma2",
                "hidden_size": 2304,
                "intermediate_size": 9216,
                "num_hidden_layers": 26,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "vocab_size": 256000,
            },
            2_614_341_888,
            83_066_880,
        ),
        (GEMMA3, 3_880_263_168, 119_209_984),
        ({"model_type": "gemma3", "text_config": GEMMA3}, 3_880_263_168, 119_209_984),
        (
            MOE
            | {
                "model_type": "qwen3_moe",
                "intermediate_size": 6144,
                "moe_intermediate_size": 768,
                "num_experts": 128,
                "num_hidden_layers": 48,
                "head_dim": 128,
            },
            30_532_122_624,
            53_477_376,
        ),
        (
            MOE
            | {
                "model_type": "qwen2_moe",
                "intermediate_size": 5632,
                "moe_intermediate_size": 1408,
                "shared_expert_intermediate_size": 5632,
                "num_experts": 60,
                "num_experts_per_tok": 4,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "num_key_value_heads": 16,
            },
            14_315_784_192,
            63_702_528,
        ),
        (
            LLAMA | {"model_type": "mixtral", "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2},
            46_702_792_704,
            54_525_952,
        ),
    ],
)
def test_a_config_has_the_parameters_of_its_class(config: dict[str, Any], params: int, adapter: int) -> None:
    architecture = architecture_of(config)
    assert (architecture.params, architecture.lora_params(64)) == (params, adapter)


def test_every_field_of_a_config_arrives() -> None:
    config = LLAMA | {"tie_word_embeddings": True, "attention_bias": True, "dtype": "float32"}
    assert architecture_of(config) == Architecture(
        "llama",
        hidden=4096,
        intermediate=14336,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        vocab=128256,
        tied=True,
        qkv_bias=True,
        dtype_bytes=4,
    )


def test_targets_choose_linear_layers() -> None:
    llama = architecture_of(LLAMA)
    assert llama.targeted(("q_proj", "down_proj", "no_such")) == {"q_proj": (4096, 4096), "down_proj": (14336, 4096)}
    assert llama.lora_params(8, ("q_proj",)) == 32 * 8 * 8192
    assert llama.linears == (
        (4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "vision", "params"),
    [
        # Qwen2.5-VL-7B: 676.6 M by its card, Qwen2-VL-7B: 675.8 M.
        (
            "qwen2_5_vl",
            {
                "model_type": "qwen2_5_vl",
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "out_hidden_size": 3584,
                "spatial_merge_size": 2,
            },
            676.6e6,
        ),
        (
            "qwen2_vl",
            {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "spatial_merge_size": 2},
            675.8e6,
        ),
        # Gemma 3's SigLIP: 417 M.
        ("gemma3", {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}, 417e6),
    ],
)
def test_a_vision_tower_counts(model_type: str, vision: dict[str, Any], params: float) -> None:
    config = LLAMA | {"model_type": model_type, "vision_config": vision, "head_dim": 128}
    assert architecture_of(config).tower_params == pytest.approx(params, rel=0.02)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "the memory of a model of type mamba is not known"),
        ({}, "the memory of a model of type None is not known"),
        ({"model_type": "llama"}, "config.json: the key hidden_size is missing"),
        (LLAMA | {"vocab_size": None}, "config.json: the key vocab_size is missing"),
        (LLAMA | {"vocab_size": "many"}, "config.json: vocab_size: 'many' is not a whole number"),
        (LLAMA | {"num_hidden_layers": True}, "config.json: num_hidden_layers: True is not a whole number"),
        (LLAMA | {"head_dim": -1}, "config.json: head_dim: -1 is not a whole number"),
        (LLAMA | {"num_attention_heads": 0}, "config.json: num_attention_heads: 0 is not a whole number above 0"),
        (LLAMA | {"model_type": "mixtral"}, "config.json: the key num_local_experts is missing"),
        (LLAMA | {"vision_config": {}}, "config.json: the key hidden_size is missing"),
    ],
)
def test_a_config_that_says_too_little_is_explained(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        architecture_of(config)
    assert caught.value.message == message
    assert caught.value.hint


def put(folder: Path, config: Any) -> Path:
    folder.mkdir(parents=True)
    file = folder / "config.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return file


def test_a_folder_comes_before_its_name(tmp_path: Path) -> None:
    put(tmp_path / "qwen2.5-7b", LLAMA)
    found = find_architecture("qwen2.5-7b", {}, tmp_path)
    assert found is not None
    assert found.model_type == "llama"


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HOME", ".cache/huggingface/hub"),
    ],
)
def test_the_newest_snapshot_of_the_cache_is_read(variable: str, place: str, tmp_path: Path) -> None:
    snapshots = tmp_path / place / "models--some--model" / "snapshots"
    old = put(snapshots / "b", LLAMA | {"vocab_size": 8})
    os.utime(old, (1, 1))
    put(snapshots / "a", LLAMA)
    (snapshots / "c").mkdir()
    found = find_architecture("some/model", {variable: str(tmp_path)}, tmp_path)
    assert found == architecture_of(LLAMA)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("{", InputError, "{file}:1:2: not valid JSON"),
        ([], ConfigError, "{file}: not a model's config.json"),
        ({"model_type": "llama"}, ConfigError, "{file}: the key hidden_size is missing"),
    ],
)
def test_a_broken_config_is_named_with_its_file(
    config: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    file = put(tmp_path / "model", config)
    with pytest.raises(error) as caught:
        find_architecture("model", {}, tmp_path)
    assert str(caught.value).startswith(message.replace("{file}", str(file)))
