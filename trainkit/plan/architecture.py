"""The shape of a model, read from its config.json: what the memory and speed models need, and no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.errors import ConfigError
from trainkit.files import load_json
from trainkit.plan.known_models import find_known_config

if TYPE_CHECKING:
    from collections.abc import Mapping

FP32_NAMES = ("float32", "float", "torch.float32")


@dataclass(frozen=True, slots=True)
class Family:
    """What transformers' class of a model type has beside the sizes in config.json.

    Attributes:
        fused: query, key and value are one linear layer, gate and up another one.
        norms: RMSNorms of a layer as wide as the hidden states.
        softcap: logits pass a tanh.
        defaults: values of keys that a config.json may leave to the class.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    fused: bool = False
    tied: bool = False
    norms: int = 2
    softcap: bool = False
    defaults: tuple[tuple[str, Any], ...] = ()


GEMMA3_DEFAULTS = (
    ("num_attention_heads", 8), ("num_key_value_heads", 4), ("head_dim", 256), ("vocab_size", 262208),
)  # fmt: skip
FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "mixtral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen2_moe": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "qwen3_moe": Family(qk_norm=True),
    "gemma2": Family(tied=True, norms=4, softcap=True, defaults=(("head_dim", 256),)),
    "gemma3_text": Family(qk_norm=True, tied=True, norms=4, defaults=GEMMA3_DEFAULTS),
    "phi3": Family(fused=True),
}
# The language model inside a multimodal model, by the type of the whole or of its text part.
TEXT_OF = {
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_text": "qwen3",
    "gemma3": "gemma3_text",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a decoder: `Architecture("llama", hidden=4096, intermediate=14336, layers=32, heads=32, ...)`.

    Attributes:
        tied: the head shares the embedding's weights.
        fused, norms, softcap: see `Family`.
        experts: 0 for a dense model; else every layer has so many, each `expert_intermediate` wide.
        shared_experts: experts that see every token, as a multiple of `expert_intermediate`.
        dtype_bytes: bytes of a weight in the checkpoint, in which frozen weights stay.
        tower_params: weights of a vision tower, which stays frozen.
    """

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    fused: bool = False
    norms: int = 2
    softcap: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_experts: int = 0
    dtype_bytes: int = 2
    tower_params: int = 0

    @property
    def attention_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together."""
        return self.kv_heads * self.head_dim

    @property
    def active_intermediate(self) -> int:
        """Width of the MLP that one token passes."""
        if not self.experts:
            return self.intermediate
        return (self.experts_per_token + self.shared_experts) * self.expert_intermediate

    @property
    def named_linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of a layer's linear layers by name; routed experts are stacked tensors and not among them."""
        hidden, width, kv = self.hidden, self.attention_width, self.kv_width
        if self.fused:
            linears = {"qkv_proj": (hidden, width + 2 * kv)}
        else:
            linears = {"q_proj": (hidden, width), "k_proj": (hidden, kv), "v_proj": (hidden, kv)}
        linears["o_proj"] = (width, hidden)
        inner = self.shared_experts * self.expert_intermediate if self.experts else self.intermediate
        if inner and self.fused:
            linears |= {"gate_up_proj": (hidden, 2 * inner), "down_proj": (inner, hidden)}
        elif inner:
            linears |= {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
        if self.shared_experts:
            linears["shared_expert_gate"] = (hidden, 1)
        return linears

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of each linear layer that `lora_target: all` matches in one layer."""
        return tuple(self.named_linears.values())

    @property
    def linear_params(self) -> int:
        """Weights of one layer's linear layers, without biases."""
        return sum(into * out for into, out in self.linears)

    @property
    def layer_params(self) -> int:
        """Weights of one layer."""
        biases = self.attention_width + 2 * self.kv_width if self.qkv_bias else 0
        norms = self.norms * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        routed = 3 * self.hidden * self.expert_intermediate * self.experts + self.hidden * self.experts
        return self.linear_params + biases + norms + routed

    @property
    def embedding_params(self) -> int:
        """Weights of the embedding; the head has as many again unless it is tied."""
        return self.vocab * self.hidden

    @property
    def params(self) -> int:
        """Weights of the language model, tied ones counted once, without the vision tower."""
        return self.layers * self.layer_params + self.embedding_params * (1 if self.tied else 2) + self.hidden

    def targeted(self, targets: str | tuple[str, ...]) -> dict[str, tuple[int, int]]:
        """Return (in, out) of the linear layers of one layer that LoRA's targets name; "all" is every one."""
        linears = self.named_linears
        return linears if targets == "all" else {name: linears[name] for name in linears if name in targets}

    def lora_params(self, rank: int, targets: str | tuple[str, ...] = "all") -> int:
        """Return the weights of an adapter: rank x (in + out) for each linear layer that it covers."""
        return self.layers * rank * sum(into + out for into, out in self.targeted(targets).values())


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return the shape of the model that a config.json describes.

    Raises:
        ConfigError: a key is missing or no whole number, or nothing is known of models of this type.
    """
    text = {**config, **config["text_config"]} if isinstance(config.get("text_config"), dict) else dict(config)
    model_type = str(text.get("model_type") or config.get("model_type"))
    model_type = TEXT_OF.get(model_type, model_type)
    family = FAMILIES.get(model_type)
    if family is None:
        raise ConfigError(
            f"the memory of a model of type {model_type} is not known", f"known are {', '.join(sorted(FAMILIES))}"
        )
    sizes = _Sizes(dict(family.defaults) | {key: value for key, value in text.items() if value is not None})
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    return Architecture(
        model_type=model_type,
        hidden=hidden,
        intermediate=sizes["intermediate_size"],
        layers=sizes["num_hidden_layers"],
        heads=heads,
        kv_heads=sizes.get("num_key_value_heads", heads),
        head_dim=sizes.get("head_dim", hidden // heads),
        vocab=sizes["vocab_size"],
        tied=bool(text.get("tie_word_embeddings", family.tied)),
        qkv_bias=family.qkv_bias or bool(text.get("attention_bias")),
        qk_norm=family.qk_norm,
        fused=family.fused,
        norms=family.norms,
        softcap=bool(text.get("final_logit_softcapping", family.softcap)),
        dtype_bytes=4 if str(text.get("dtype", text.get("torch_dtype"))) in FP32_NAMES else 2,
        tower_params=_tower_params(config.get("vision_config")),
        **_experts(model_type, sizes),
    )


class _Sizes:
    """The numbers of a config.json; a missing one is an error with its key."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __getitem__(self, key: str) -> int:
        if key not in self.values:
            raise ConfigError(f"config.json: the key {key} is missing", "is the model folder complete?")
        if (value := self.get(key, 0)) == 0:
            raise ConfigError(f"config.json: {key}: 0 is not a whole number above 0", "is the model folder intact?")
        return value

    def get(self, key: str, default: int) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"config.json: {key}: {value!r} is not a whole number", "is the model folder intact?")
        return value


def _experts(model_type: str, sizes: _Sizes) -> dict[str, int]:
    """Return the sizes of the expert layers; every layer is taken to have them."""
    if model_type == "mixtral":
        return {
            "experts": sizes["num_local_experts"],
            "experts_per_token": sizes["num_experts_per_tok"],
            "expert_intermediate": sizes["intermediate_size"],
        }
    if not model_type.endswith("_moe"):
        return {}
    width = sizes["moe_intermediate_size"]
    return {
        "experts": sizes["num_experts"],
        "experts_per_token": sizes["num_experts_per_tok"],
        "expert_intermediate": width,
        "shared_experts": sizes.get("shared_expert_intermediate_size", 0) // width,
    }


def _tower_params(vision: Any) -> int:
    """Return the weights of a vision transformer: attention and MLP of each block, and the merger behind them."""
    if not isinstance(vision, dict):
        return 0
    sizes = _Sizes(vision)
    width = sizes.get("embed_dim", 0) or sizes["hidden_size"]
    blocks = sizes.get("depth", 0) or sizes["num_hidden_layers"]
    inner = sizes.get("intermediate_size", 0) or sizes.get("mlp_ratio", 4) * width
    matrices = 3 if vision.get("model_type") in ("qwen2_5_vl", "pixtral") else 2
    merged = width * sizes.get("spatial_merge_size", 0) ** 2
    out = sizes.get("out_hidden_size", sizes.get("hidden_size", 0))
    return blocks * (4 * width * width + matrices * width * inner) + merged * (merged + out)


def find_architecture(model: str, env: Mapping[str, str], base: Path = Path()) -> Architecture | None:
    """Return the shape of a model: of a folder, of the Hugging Face cache, or of a widely used name; None if not known.

    Args:
        model: a folder (relative to `base`) or a hub name such as `Qwen/Qwen2.5-7B-Instruct`.
        env: the environment, for the place of the cache.
        base: the folder that relative paths start from.

    Raises:
        ConfigError: the config.json describes a model that is not known, or lacks a key.
        InputError: the config.json cannot be read.
    """
    file = base / model / "config.json"
    cached = file if file.is_file() else _find_cached(model, env)
    if cached is None:
        known = find_known_config(model)
        return None if known is None else architecture_of(known)
    config = load_json(cached)
    if not isinstance(config, dict):
        raise ConfigError(f"{cached}: not a model's config.json", "it should be a JSON object")
    try:
        return architecture_of(config)
    except ConfigError as error:
        raise ConfigError(f"{cached}: {error.message.removeprefix('config.json: ')}", error.hint) from None


def _find_cached(model: str, env: Mapping[str, str]) -> Path | None:
    """Return the config.json of a hub name's newest snapshot in the Hugging Face cache."""
    caches = env.get("XDG_CACHE_HOME") or Path(env.get("HOME") or Path.home()) / ".cache"
    home = env.get("HF_HOME") or Path(caches) / "huggingface"
    cache = Path(env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub")
    snapshots = cache / f"models--{model.replace('/', '--')}" / "snapshots"
    files = [path / "config.json" for path in snapshots.iterdir()] if snapshots.is_dir() else []
    found = [file for file in files if file.is_file()]
    return max(found, key=lambda file: (file.stat().st_mtime, str(file)), default=None)
