"""Make a tiny vision-language model with its own tokenizer and processor for the tests: nothing is downloaded.

Run by path with the trainer's Python; the request is one JSON object on stdin, the answer the last line of stdout:

    echo '{"output": "model"}' | python tests/tiny_vision_model.py
    {"ok": true, "output": "model", "architecture": "qwen2_5_vl", "parameters": 191584, "vocab_size": 263}

Request keys: `output` (a folder that does not exist yet), `seed` (42). The same request gives the same bytes. The model
speaks the template `qwen2_vl`. Its tokenizer has a token for each byte, and an image is one token for 28 x 28 pixels.
When it fails: `{"ok": false, "error": "..."}` and exit code 1.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

END, PAD = "<|im_end|>", "<|endoftext|>"
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SPECIAL = (PAD, "<|im_start|>", END, *VISION)
MAX_POSITIONS = 8192
PIXELS = {"min_pixels": 28 * 28, "max_pixels": 16 * 28 * 28}  # the processor scales what is smaller or larger

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class BadRequest(Exception):
    """Something in the request that cannot be carried out."""


def make_tokenizer() -> Any:
    """Make a tokenizer with one token for each byte behind the special tokens; it can encode any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate([*SPECIAL, *letters])}, []))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=["<|im_start|>", *VISION],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def make_processor(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**PIXELS),
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: Any, seed: int) -> Any:
    """Make a randomly initialised Qwen2.5-VL with two layers of text and two of vision, in float32."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    start, end, image, video = tokenizer.convert_tokens_to_ids(VISION)
    hidden_size = 64
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": MAX_POSITIONS,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=False,
        dtype="float32",
    )
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(config)


def make(request: dict[str, Any]) -> dict[str, Any]:
    """Make the model that the request asks for and return what was made.

    Raises:
        BadRequest: the output exists already.
    """
    output = Path(request["output"])
    if output.exists():
        raise BadRequest(f"{output} exists already and is left as it is")
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, request.get("seed", 42))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        unpublished = Path(scratch) / "model"
        model.save_pretrained(unpublished)
        make_processor(tokenizer).save_pretrained(unpublished)
        unpublished.rename(output)
    return {
        "ok": True,
        "output": str(output),
        "architecture": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": len(tokenizer),
    }


def keep_stdout_clean() -> TextIO:
    """Send what libraries print to stderr, and return the real stdout for the answer."""
    real = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return real


def main() -> int:
    """Answer the request on stdin with one line of JSON on stdout; return the exit code."""
    stdout = keep_stdout_clean()
    try:
        answer = make(json.load(sys.stdin))
    except (BadRequest, OSError) as error:
        answer = {"ok": False, "error": str(error)}
    print(json.dumps(answer), file=stdout, flush=True)
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
