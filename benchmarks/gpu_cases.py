"""The cases of gpu.py, in order of value."""

from __future__ import annotations

from typing import Any


def model(kind: str, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int) -> dict[str, Any]:
    """Return the config.json of a model by its public sizes."""
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
        "max_position_embeddings": 32768,
    }


MODELS = {
    "tiny": model("qwen2", 64, 160, 2, 4, 2, 512),
    "Qwen2.5-0.5B": model("qwen2", 896, 4864, 24, 14, 2, 151936) | {"tie_word_embeddings": True},
    "Qwen2.5-1.5B": model("qwen2", 1536, 8960, 28, 12, 2, 151936) | {"tie_word_embeddings": True},
    "Qwen2.5-3B": model("qwen2", 2048, 11008, 36, 16, 2, 151936) | {"tie_word_embeddings": True},
    "Qwen2.5-7B": model("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "Llama-3-8B": model("llama", 4096, 14336, 32, 32, 8, 128256),
    "Mistral-7B": model("mistral", 4096, 14336, 32, 32, 8, 32768) | {"sliding_window": None},
    "Qwen3-8B": model("qwen3", 4096, 12288, 36, 32, 8, 151936) | {"head_dim": 128},
}


def case(name: str, micro_batch: int = 2, seq_tokens: int = 4096, **setup: Any) -> dict[str, Any]:
    """Return a case: LoRA of rank 64 with checkpointing, two micro-batches a step, unless `setup` says otherwise."""
    expandable = setup.pop("expandable", False)
    base = {"method": "lora", "stage": "sft", "rank": 64, "checkpointing": True, "accumulation": 2}
    full_setup = base | {"micro_batch": micro_batch, "seq_tokens": seq_tokens} | setup
    return {"model": name, "config": MODELS[name], "setup": full_setup, "expandable": expandable}


OPEN = {"checkpointing": False}
LIGER = {"liger": True}
FULL = {"method": "full"}
CASES = [
    case("Qwen2.5-7B", dropout=0.1),  # the seed's own setting comes first
    case("Qwen2.5-7B", dropout=0.1, masked=True),
    case("Qwen2.5-7B"),
    case("Qwen2.5-7B", **OPEN),
    case("Qwen2.5-7B", **LIGER),
    case("Qwen2.5-7B", **LIGER, **OPEN),
    case("Qwen2.5-7B", 4, **LIGER, **OPEN),
    case("Qwen2.5-7B", 8, **LIGER),
    case("Qwen2.5-7B", 1, 16384, **LIGER),
    case("Qwen2.5-7B", 1, 16384),
    case("Qwen2.5-7B", 8, 1024),
    case("Qwen2.5-7B", 1, 1024, **OPEN),
    case("Llama-3-8B"),
    case("Llama-3-8B", **LIGER, **OPEN),
    case("Mistral-7B", 4),
    case("Qwen3-8B"),
    case("Qwen3-8B", **LIGER, **OPEN),
    case("Qwen2.5-1.5B", **FULL),
    case("Qwen2.5-1.5B", **FULL, **OPEN),
    case("Qwen2.5-1.5B", 4, **FULL, **LIGER),
    case("Qwen2.5-1.5B", **FULL, **LIGER, **OPEN),
    case("Qwen2.5-3B", **FULL),
    case("Qwen2.5-3B", 1, 16384, **FULL, **LIGER),
    case("Qwen2.5-0.5B", 8, **FULL, **OPEN),
    case("Qwen2.5-0.5B", 4, **FULL, **OPEN, masked=True),
    case("Qwen2.5-3B", **FULL, pure_bf16=True),
    case("Qwen2.5-7B", method="qlora"),
    case("Qwen2.5-7B", 1, stage="dpo"),
    case("Qwen2.5-7B", 1, stage="rm"),
    case("Qwen2.5-7B", dropout=0.1, expandable=True),
]
DRY = [
    case("tiny", 2, 32),
    case("tiny", 2, 32, **OPEN, masked=True),
    case("tiny", 2, 32, **FULL),
    case("tiny", 2, 32, stage="dpo"),
]
