"""Model families: which chat templates fit a model, and whether its folder holds all that a trainer loads.

The family is read from `model_type` in the model's config.json. A type that is not in the table gets no judgement.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainkit.datatypes import Problem
from trainkit.errors import InputError
from trainkit.files import load_json

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Family:
    """A model type, the LLaMA-Factory templates that fit it (the usual one first), and its folder in templates/."""

    model_type: str
    templates: tuple[str, ...]
    folder: str = "qwen"


# Plain text, no special tokens: these fit any base model.
PLAIN_TEMPLATES = ("default", "empty", "alpaca", "fewshot", "vicuna")

QWEN2 = ("qwen", "chatml", "deepseekr1", "sailor", "openchat")
QWEN3 = ("qwen3", "qwen3_nothink", "deepseekr1", "mimo")
QWEN3_5 = ("qwen3_5", "qwen3_5_nothink", "qwen3_6")
LLAMA3 = ("llama3", "deepseekr1", "openchat-3.6", "seed_coder", "xuanyuan")
LLAMA2 = ("llama2", "llama2_zh", "vicuna", "xuanyuan", "solar", "zephyr", "openchat", "yi", "index", "chatml")
ANY_LLAMA = tuple(dict.fromkeys((*LLAMA3, *LLAMA2, "deepseek", "deepseekcoder", "opencoder", "smollm", "smollm2")))
MISTRAL = ("mistral", "ministral", "mistral_small", "zephyr", "openchat", "breeze", "chatml")

TEMPLATES_OF_TYPE: dict[str, tuple[str, ...]] = {
    "bailing_moe": ("bailing", "bailing_v2"),
    "bailing_moe_v2": ("bailing_v2",),
    "chatglm": ("glm4", "chatglm3"),
    "cohere": ("cohere",),
    "cohere2": ("cohere",),
    "dbrx": ("dbrx",),
    "deepseek": ("deepseek",),
    "deepseek_v2": ("deepseek", "deepseekcoder"),
    "deepseek_v3": ("deepseek3", "deepseekr1", "moonlight"),
    "ernie4_5": ("ernie", "ernie_nothink"),
    "ernie4_5_moe": ("ernie", "ernie_nothink"),
    "exaone": ("exaone",),
    "falcon": ("falcon",),
    "falcon_h1": ("falcon_h1",),
    "gemma": ("gemma",),
    "gemma2": ("gemma2", "gemma"),
    "gemma3": ("gemma3",),
    "gemma3_text": ("gemma3",),
    "gemma3n": ("gemma3n",),
    "glm": ("glm4",),
    "glm4": ("glm4", "glmz1"),
    "glm4_moe": ("glm4_moe", "glm4_7"),
    "gpt_oss": ("gpt_oss",),
    "granite": ("granite3",),
    "granitemoe": ("granite3",),
    "granitemoehybrid": ("granite4",),
    "hunyuan_v1_dense": ("hunyuan_small", "hunyuan"),
    "hunyuan_v1_moe": ("hunyuan",),
    "internlm2": ("intern2",),
    "internlm3": ("intern2",),
    "lfm2": ("lfm2",),
    "llama4": ("llama4",),
    "mimo": ("mimo", "qwen"),
    "ministral3": ("ministral3",),
    "mistral": MISTRAL,
    "mixtral": ("mistral", "chatml"),
    "olmo": ("olmo",),
    "olmo2": ("olmo",),
    "phi3": ("phi", "phi4", "phi4_mini"),
    "phi3small": ("phi_small",),
    "qwen2": QWEN2,
    "qwen2_5_vl": ("qwen2_vl", "mimo_vl"),
    "qwen2_moe": QWEN2,
    "qwen2_vl": ("qwen2_vl",),
    "qwen3": QWEN3,
    "qwen3_5": QWEN3_5,
    "qwen3_5_moe": QWEN3_5,
    "qwen3_5_text": QWEN3_5,
    "qwen3_moe": QWEN3,
    "qwen3_next": ("qwen3", "qwen3_nothink"),
    "qwen3_vl": ("qwen3_vl", "qwen3_vl_nothink"),
    "qwen3_vl_moe": ("qwen3_vl", "qwen3_vl_nothink"),
    "seed_oss": ("seed_oss",),
}

FOLDER_OF_TYPE = {
    "llama": "llama3",
    "llama4": "llama3",
    "mistral": "mistral",
    "mixtral": "mistral",
    "ministral3": "mistral",
}

# Many families share the Llama architecture; the size of the vocabulary tells them apart.
LLAMA_OF_VOCABULARY = {
    32256: ("deepseekcoder", "deepseek"),
    49152: ("smollm", "smollm2"),
    64000: ("yi", "chatml"),
    102400: ("deepseek", "deepseekcoder"),
    155136: ("seed_coder",),
}
LLAMA2_VOCABULARIES = range(32000, 32256)  # 32000 of Llama 2 and a few added tokens
LLAMA3_VOCABULARY = 128000

WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "qwen.tiktoken", "spiece.model")
LFS_POINTER = b"version https://git-lfs"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_family(model_dir: Path) -> Family | None:
    """Return the family of the model in a folder; None when its config.json says nothing that the table knows."""
    config_file = model_dir / "config.json"
    if not config_file.is_file():
        return None
    config = load_json(config_file)
    return family_of(config) if isinstance(config, dict) else None


def family_of(config: dict[str, Any]) -> Family | None:
    """Return the family that a model's config.json describes.

    `family_of({"model_type": "qwen2"}).templates[0]` is `qwen`.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return None
    templates = (
        llama_templates(config.get("vocab_size")) if model_type == "llama" else TEMPLATES_OF_TYPE.get(model_type)
    )
    return Family(model_type, templates, FOLDER_OF_TYPE.get(model_type, "qwen")) if templates else None


def llama_templates(vocab_size: Any) -> tuple[str, ...]:
    """Return the templates of a Llama-shaped model; a size that no published family has fits all of them."""
    if not isinstance(vocab_size, int):
        return ANY_LLAMA
    if vocab_size in LLAMA_OF_VOCABULARY:
        return LLAMA_OF_VOCABULARY[vocab_size]
    if vocab_size >= LLAMA3_VOCABULARY:
        return LLAMA3
    return LLAMA2 if vocab_size in LLAMA2_VOCABULARIES else ANY_LLAMA


def check_template(
    template: str,
    family: Family | None,
    known_templates: Iterable[str],
    *,
    force: bool = False,
    where: str = "template",
) -> list[Problem]:
    """Report a template that the trainer does not have, or that does not fit the model (a warning when forced)."""
    known = sorted(known_templates)
    if template not in known:
        near = difflib.get_close_matches(template, known, n=3, cutoff=0.5)
        names = ", ".join(near) if near else "qwen, qwen3, llama3, mistral and others"
        return [Problem(where, f"LLaMA-Factory has no template {template!r}", f"it has {names}")]
    if family is None or template in family.templates or template in PLAIN_TEMPLATES:
        return []
    message = f"the template {template} does not fit a model of type {family.model_type}"
    fitting = [name for name in family.templates if name in known]
    hint = f"fitting: {', '.join(fitting)}; --force-template trains with it all the same"
    return [Problem(where, message, hint, "warning" if force else "error")]


def is_hub_name(name: str) -> bool:
    """Whether a model name has the form of a hub id: `Qwen/Qwen2.5-7B`."""
    return HUB_NAME.fullmatch(name) is not None


def check_model_folder(folder: Path, where: str = "model_name_or_path") -> list[Problem]:
    """Report what a trainer would miss in a model folder: config.json, weights and every shard, the tokenizer."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "there is no such folder"
        return [Problem(where, f"model folder {folder}: {what}", "download the model there, or set model_name_or_path")]
    if not (folder / "config.json").is_file():
        return [_no_config(folder, where)]
    try:
        return [*_check_weights(folder, where), *_check_tokenizer(folder, where)]
    except InputError as error:
        return [Problem(where, error.message, "download the file again")]


def _no_config(folder: Path, where: str) -> Problem:
    inside = sorted(path.parent for path in [*folder.glob("*/config.json"), *folder.glob("*/*/config.json")])
    if inside:
        hint = f"move the files up into {folder}, or set model_name_or_path: {inside[0]}"
        return Problem(
            where, f"{folder}: the model's files are in the sub-folder {inside[0].relative_to(folder)}", hint
        )
    return Problem(
        where, f"{folder}: there is no config.json, so this is not a model folder", "download the model again"
    )


def _check_weights(folder: Path, where: str) -> list[Problem]:
    load_json(folder / "config.json")
    names = _weight_files(folder)
    hint = "download the missing files; an unfinished download leaves this"
    if not names:
        return [Problem(where, f"{folder}: there are no weights (model.safetensors)", hint)]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        message = f"{folder}: {len(missing)} of {len(names)} weight files are missing: {listed}"
        return [Problem(where, message, hint)]
    pointers = [name for name in names if _is_pointer(folder / name)]
    if pointers:
        message = f"{folder}: {pointers[0]} is a pointer of Git LFS, not the weights themselves"
        return [Problem(where, message, f"run `git lfs pull` in {folder}, or download the model in another way")]
    return []


def _weight_files(folder: Path) -> list[str]:
    """Return the names of the weight files: those that an index lists, or the single file that is there."""
    for name in WEIGHT_INDEXES:
        if (folder / name).is_file():
            index = load_json(folder / name)
            shards = index.get("weight_map") if isinstance(index, dict) else None
            return sorted({str(shard) for shard in shards.values()}) if isinstance(shards, dict) else []
    return [name for name in WEIGHT_FILES if (folder / name).is_file()][:1]


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(LFS_POINTER)) == LFS_POINTER


def _check_tokenizer(folder: Path, where: str) -> list[Problem]:
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        return []
    return [Problem(where, f"{folder}: there is no tokenizer (tokenizer.json)", "copy the tokenizer's files there too")]
