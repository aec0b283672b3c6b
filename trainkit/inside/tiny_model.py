"""Make a tiny language model with its own tokenizer, for the demo and the tests: nothing is downloaded.

Run by path with the trainer's Python; the request is one JSON object on stdin, the answer the last line of stdout:

    echo '{"output": "model", "texts": "evaluations.jsonl"}' | python trainkit/inside/tiny_model.py
    {"ok": true, "output": "model", "architecture": "qwen2", "parameters": 349632, "vocab_size": 2000}

Request keys: `output` (a folder that does not exist yet), `texts` (JSONL of evaluations, whose turns train the
tokenizer), `seed` (42), `architecture` (qwen2, llama or mistral). The same request gives the same bytes.
When it fails: `{"ok": false, "error": "..."}` and exit code 1.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VOCAB_SIZE = 2000
MAX_POSITIONS = 8192

CHATML = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HEADERS = (
    "{{ '<|begin_of_text|>' }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
INSTRUCTIONS = (
    "{{ '<s>' }}"
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\\n\\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + message['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + '</s>' }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """The special tokens and the chat template of one architecture, as LLaMA-Factory's template of it has them."""

    special_tokens: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str
    chat_template: str


FAMILIES = {
    "qwen2": Family(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), None, "<|im_end|>", "<|endoftext|>", CHATML),
    "llama": Family(
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|eom_id|>",
        ),
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|end_of_text|>",
        HEADERS,
    ),
    "mistral": Family(("<pad>", "<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", "<pad>", INSTRUCTIONS),
}


class BadRequest(Exception):
    """Something in the request that cannot be carried out, in words for the user."""


def read_texts(path: Path) -> Iterator[str]:
    """Yield the text of every turn of a JSONL file of evaluations.

    Raises:
        BadRequest: the file cannot be read, or a line is not an evaluation.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    for turn in json.loads(line)["conversations"]:
                        yield turn["value"]
                except (ValueError, KeyError, TypeError) as error:
                    raise BadRequest(f"{path}:{number}: not an evaluation with conversations") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: cannot be read: {error}") from error


def train_tokenizer(texts: Iterator[str], family: Family) -> Any:
    """Train a byte-level BPE tokenizer of at most `VOCAB_SIZE` tokens; it can encode any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    named = (family.bos, family.eos, family.pad)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(family.special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        additional_special_tokens=[token for token in family.special_tokens if token not in named],
        chat_template=family.chat_template,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def make_model(architecture: str, tokenizer: Any, seed: int) -> Any:
    """Make a randomly initialised causal language model of about 0.35 M parameters in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=MAX_POSITIONS,
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)


def make(request: Mapping[str, Any]) -> dict[str, Any]:
    """Make the model that the request asks for and return what was made.

    Raises:
        BadRequest: an unknown architecture, an output that exists already, or texts that cannot be read.
    """
    output, texts = Path(request["output"]), Path(request["texts"])
    architecture, seed = request.get("architecture", "qwen2"), request.get("seed", 42)
    if architecture not in FAMILIES:
        raise BadRequest(f"architecture {architecture!r} is not one of {', '.join(FAMILIES)}")
    if output.exists():
        raise BadRequest(f"{output} exists already and is left as it is")
    tokenizer = train_tokenizer(read_texts(texts), FAMILIES[architecture])
    model = make_model(architecture, tokenizer, seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        unpublished = Path(scratch) / "model"
        model.save_pretrained(unpublished)
        tokenizer.save_pretrained(unpublished)
        unpublished.rename(output)
    return {
        "ok": True,
        "output": str(output),
        "architecture": architecture,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": len(tokenizer),
    }


def load_request(stdin: TextIO) -> dict[str, Any]:
    """Load the request.

    Raises:
        BadRequest: it is not a JSON object, or a key is missing.
    """
    try:
        request = json.load(stdin)
    except ValueError as error:
        raise BadRequest(f"the request is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise BadRequest("the request is not a JSON object")
    if missing := [key for key in ("output", "texts") if not request.get(key)]:
        raise BadRequest(f"the request has no {' and no '.join(missing)}")
    return request


def keep_stdout_clean() -> TextIO:
    """Send what libraries print to stderr, and return the real stdout for the answer."""
    real = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return real


def main() -> int:
    """Answer the request on stdin with one line of JSON on stdout; return the exit code."""
    stdout = keep_stdout_clean()
    try:
        answer = make(load_request(sys.stdin))
    except (BadRequest, OSError) as error:
        answer = {"ok": False, "error": str(error)}
    print(json.dumps(answer), file=stdout, flush=True)
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
