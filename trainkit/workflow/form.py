"""The trainer's tokenizer and chat template as it would load them: asked once, kept by content and settings."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

import trainkit.inside
from trainkit import environment
from trainkit.dataset.chatform import decode_form
from trainkit.datatypes import Problem
from trainkit.errors import EnvironmentProblem
from trainkit.files import write_bytes_atomic
from trainkit.plan.hardware import run_child_json
from trainkit.workflow.prepare import cache_folder, trainer_python

if TYPE_CHECKING:
    from trainkit.dataset.chatform import ChatForm
    from trainkit.workflow.prepare import Prepared

INSIDE = Path(trainkit.inside.__file__).parent
# The keys that decide how a row becomes tokens, the cut itself apart.
FORM_KEYS = (
    "model_name_or_path", "model_revision", "cache_dir", "trust_remote_code", "use_fast_tokenizer",
    "split_special_tokens", "add_tokens", "add_special_tokens", "new_special_tokens_config", "template", "tool_format",
    "default_system", "enable_thinking", "preserve_thinking", "train_on_prompt", "image_max_pixels", "image_min_pixels",
)  # fmt: skip
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "config.json", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
VERSIONED = ("llamafactory", "transformers", "python")


def find_form(prepared: Prepared) -> tuple[ChatForm | None, list[Problem]]:
    """Return how the trainer would turn rows into tokens; None with the reason when its answer cannot be had."""
    asked, cache = form_request(prepared), form_cache(prepared)
    try:
        form = find_kept(cache) or ask(asked, cache)
    except EnvironmentProblem as error:
        model = str(asked.get("model_name_or_path"))
        if not Path(model).is_absolute():  # the trainer will download it; an examination does not
            message = f"no lengths are counted: {model} is not on this disk, or not whole"
            return None, [Problem("model_name_or_path", message, "download it first, or name its folder", "warning")]
        return None, [Problem("template", f"no lengths are counted: {error.message}", error.hint, "warning")]
    return form, [Problem("template", limit, level="note") for limit in form.limits]


def has_form(prepared: Prepared) -> bool:
    """Whether the trainer's answer is known, so that `find_form` need not ask."""
    return form_cache(prepared).is_file()


def find_kept(cache: Path) -> ChatForm | None:
    """Return the answer that is kept, None when there is none or it is damaged."""
    try:
        return decode_form(cache.read_bytes())
    except (OSError, EnvironmentProblem):
        return None


def form_cache(prepared: Prepared) -> Path:
    """Return where the answer is kept."""
    return cache_folder() / f"form-{form_key(prepared, form_request(prepared))}.json"


def form_request(prepared: Prepared) -> dict[str, Any]:
    """Return what the trainer's environment is asked: the keys that are set."""
    return {key: prepared.config.values[key] for key in FORM_KEYS if key in prepared.config.values}


def form_key(prepared: Prepared, asked: dict[str, Any]) -> str:
    """Return a digest of all that decides the answer: the keys, the tokenizer's files, the trainer's versions."""
    digest = xxhash.xxh3_128()
    versions = [prepared.schema.versions.get(name, "") for name in VERSIONED]
    digest.update(json.dumps([asked, versions], sort_keys=True).encode())
    digest.update((INSIDE / "chat_form.py").read_bytes())
    model = Path(str(asked.get("model_name_or_path", "")))
    for name in TOKENIZER_FILES if model.is_absolute() else ():
        if (model / name).is_file():
            digest.update(name.encode() + (model / name).read_bytes())
    return digest.hexdigest()


def ask(asked: dict[str, Any], cache: Path) -> ChatForm:
    """Return the trainer's answer and keep it; nothing is downloaded.

    Raises:
        EnvironmentProblem: it cannot load the tokenizer or the template.
    """
    env = environment.snapshot() | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    answer = json.dumps(run_child_json(trainer_python(), INSIDE / "chat_form.py", asked, env)).encode()
    form = decode_form(answer)
    with contextlib.suppress(OSError):  # a home that cannot be written costs the time to ask again
        write_bytes_atomic(cache, answer)
    return form
