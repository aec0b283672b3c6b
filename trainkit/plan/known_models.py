"""Shapes of widely used open models, for the days on which neither their config.json nor the internet is at hand.

Source: the config.json of each model's public repository.
"""

from __future__ import annotations

import re
from typing import Any

# hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, vocab_size, tied
Shape = tuple[int, int, int, int, int, int, bool]

QWEN2: dict[str, Shape] = {
    "qwen2.5-0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "qwen2.5-1.5b": (1536, 8960, 28, 12, 2, 151936, True),
    "qwen2.5-3b": (2048, 11008, 36, 16, 2, 151936, True),
    "qwen2.5-7b": (3584, 18944, 28, 28, 4, 152064, False),
    "qwen2.5-14b": (5120, 13824, 48, 40, 8, 152064, False),
    "qwen2.5-32b": (5120, 27648, 64, 40, 8, 152064, False),
    "qwen2.5-72b": (8192, 29568, 80, 64, 8, 152064, False),
}
QWEN3: dict[str, Shape] = {
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, 151936, True),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, 151936, True),
    "qwen3-4b": (2560, 9728, 36, 32, 8, 151936, True),
    "qwen3-8b": (4096, 12288, 36, 32, 8, 151936, False),
    "qwen3-14b": (5120, 17408, 40, 40, 8, 151936, False),
    "qwen3-32b": (5120, 25600, 64, 64, 8, 151936, False),
}
LLAMA: dict[str, Shape] = {
    "llama-3-8b": (4096, 14336, 32, 32, 8, 128256, False),
    "llama-3-70b": (8192, 28672, 80, 64, 8, 128256, False),
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128256, False),
    "llama-3.1-70b": (8192, 28672, 80, 64, 8, 128256, False),
    "llama-3.1-405b": (16384, 53248, 126, 128, 8, 128256, False),
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 128256, True),
    "llama-3.2-3b": (3072, 8192, 28, 24, 8, 128256, True),
    "llama-3.3-70b": (8192, 28672, 80, 64, 8, 128256, False),
}
MISTRAL: dict[str, Shape] = {
    "mistral-7b": (4096, 14336, 32, 32, 8, 32768, False),
    "mistral-7b-v0.1": (4096, 14336, 32, 32, 8, 32000, False),
    "mistral-7b-v0.2": (4096, 14336, 32, 32, 8, 32000, False),
    "mistral-7b-v0.3": (4096, 14336, 32, 32, 8, 32768, False),
    "mistral-nemo": (5120, 14336, 40, 32, 8, 131072, False),
}
FAMILIES = {"qwen2": QWEN2, "qwen3": QWEN3, "llama": LLAMA, "mistral": MISTRAL}
# Heads are hidden_size / num_attention_heads wide except here.
HEAD_DIM = {"qwen3": 128, "mistral": 128}

# Words of a name that say how a model was trained further, not what shape it has; 2407 and 2507 are months.
TRAINED_AS = re.compile(r"-(instruct|base|chat|it|hf|thinking|2407|2507)(?=-|$)")


def find_known_config(model: str) -> dict[str, Any] | None:
    """Return the keys of config.json that decide memory, by hub name: `find_known_config("Qwen/Qwen2.5-7B-Instruct")`.

    Organisation, case and words like -Instruct do not matter; None when the name is in no table.
    """
    name = TRAINED_AS.sub("", model.rstrip("/").rpartition("/")[2].lower()).removeprefix("meta-")
    for family, shapes in FAMILIES.items():
        if name in shapes:
            return _config(family, shapes[name])
    return None


def _config(family: str, shape: Shape) -> dict[str, Any]:
    hidden, intermediate, layers, heads, kv_heads, vocab, tied = shape
    return {
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": HEAD_DIM.get(family, hidden // heads),
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }
