"""Print how LLaMA-Factory turns a conversation into tokens: its tokenizer and its template, as one JSON line.

Run by path with the trainer's Python; the request is the trainer's own keys as one JSON object on stdin:

    echo '{"model_name_or_path": "Qwen2.5-7B-Instruct", "template": "qwen"}' | python trainkit/inside/chat_form.py

The answer is what trainkit/dataset/chatform.py decodes, or `{"error": "..."}`; the exit code is 0 either way. A model
is not loaded, but importing the trainer takes about ten seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

# The formatters of a template. The one for tools has slots only where the tools are put in as they are.
FORMATTERS = ("prefix", "system", "user", "assistant", "observation", "function", "tools")

# What tokenizers treat in ways of their own: white space at the ends, digits, accents apart, long runs, a line's end.
PROBES = ("", " ", "  a  b\n\n c", "naïve 北京市 🙂 cafe\u0301 12345 don't", "\t\r\n<think>\n</think>", "a" * 300)

# Width and height of images: tiny, thin, of odd sizes, a screen, a page, and larger than processors take.
IMAGE_PROBES = ((1, 1), (20, 900), (5000, 20), (57, 83), (150, 449), (1280, 720), (1000, 3000), (2560, 1440))


class NoForm(Exception):
    """The trainer cannot be asked, or its answer would not hold; in words for the user."""


def load_request(stdin: TextIO) -> dict[str, Any]:
    """Load the trainer's keys.

    Raises:
        NoForm: it is not a JSON object, or it names no model.
    """
    try:
        request = json.load(stdin)
    except ValueError as error:
        raise NoForm(f"the request is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise NoForm("the request is not a JSON object")
    if not request.get("model_name_or_path"):
        raise NoForm("the request has no model_name_or_path")
    return request


def describe(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the form of the request's tokenizer and template.

    Raises:
        NoForm: the trainer refuses the keys, or does not find the model's tokenizer.
    """
    try:
        return load_form(request)
    except Exception as error:  # loading runs foreign code, a model's own among it: it may raise anything
        raise NoForm(one_line(error.__cause__ or error)) from error


def load_form(request: Mapping[str, Any]) -> dict[str, Any]:
    """Load the tokenizer and the template as the trainer does and describe both."""
    from llamafactory.data import tool_utils
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from llamafactory.model import load_tokenizer

    module = load_tokenizer(ModelArguments(**arguments_of(ModelArguments, request)))
    tokenizer, processor = module["tokenizer"], module["processor"]
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(**arguments_of(DataArguments, request)))
    template.mm_plugin.process_messages([], [], [], [], processor)  # the trainer stops here when it has no processor
    text, reason = tokenizer_text(tokenizer)
    return {
        "tokenizer": text,
        "tokenizer_reason": reason,
        "encode_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **describe_template(template, tokenizer),
        "tool_utils": tool_utils.__file__,
        "images": describe_images(template.mm_plugin, processor, tokenizer),
    }


def arguments_of(cls: type, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the request that a dataclass of the trainer takes."""
    names = {field.name for field in dataclasses.fields(cls) if field.init}
    return {name: value for name, value in request.items() if name in names}


def tokenizer_text(tokenizer: Any) -> tuple[str | None, str]:
    """Return the tokenizer as the tokenizers library writes it, or None and why it has no such form.

    What it encodes is compared on a few texts: a class of a model's own may do more than its fast tokenizer.
    """
    from tokenizers import Tokenizer

    if not getattr(tokenizer, "is_fast", False):
        return None, f"{type(tokenizer).__name__} is not a fast tokenizer"
    text = tokenizer.backend_tokenizer.to_str()
    reread = Tokenizer.from_str(text)
    reread.no_truncation()
    reread.no_padding()
    reread.encode_special_tokens = tokenizer.split_special_tokens
    for probe in (*PROBES, "".join(tokenizer.all_special_tokens)):
        if reread.encode(probe, add_special_tokens=False).ids != tokenizer.encode(probe, add_special_tokens=False):
            return None, f"{type(tokenizer).__name__} does not encode as its fast tokenizer does"
    return text, ""


def describe_template(template: Any, tokenizer: Any) -> dict[str, Any]:
    """Return the parts of a template, with the tokens among its slots resolved to ids."""
    plugin = template.mm_plugin
    return {
        "template_class": type(template).__name__,
        "slots": {name: resolve(getattr(template, f"format_{name}").slots, template, tokenizer) for name in FORMATTERS},
        "default_system": template.default_system or "",
        "efficient_eos": template.efficient_eos,
        "thought_words": list(template.thought_words),
        "tool_call_words": list(template.tool_call_words),
        "enable_thinking": template.enable_thinking,
        "preserve_thinking": template.preserve_thinking,
        "function_format": template.format_function.tool_format,
        "tools_format": template.format_tools.tool_format,
        "plugin": type(plugin).__name__,
        "media_tokens": [
            token for token in (plugin.image_token, plugin.video_token, plugin.audio_token) if token is not None
        ],
    }


def describe_images(plugin: Any, processor: Any, tokenizer: Any) -> dict[str, Any] | None:
    """Return how many tokens an image becomes, None where that does not go by whole units of its size alone."""
    if plugin.image_token is None:
        return None
    try:
        return probe_images(plugin, processor, tokenizer)
    except Exception:  # each of two dozen plugins has a way of its own, and so has its model's processor
        return None


def probe_images(plugin: Any, processor: Any, tokenizer: Any) -> dict[str, Any] | None:
    """Let the trainer write images of some sizes, and return what it wrote with the settings that decide it.

    Raises:
        AttributeError, KeyError, ...: the processor has other settings, or takes no such images.
    """
    settings = processor.image_processor
    answer = {
        "unit": settings.patch_size * settings.merge_size,
        "min_pixels": settings.size["shortest_edge"],
        "max_pixels": settings.size["longest_edge"],
        "image_min_pixels": processor.image_min_pixels,
        "image_max_pixels": processor.image_max_pixels,
    }
    from PIL import Image

    images = [Image.new("RGB", size) for size in IMAGE_PROBES]
    question = {"role": "user", "content": "\n".join("<image>" for _ in images)}
    written = plugin.process_messages([question], images, [], [], processor)[0]["content"].split("\n")
    token, token_id = plugin.image_token, tokenizer.convert_tokens_to_ids(plugin.image_token)
    begin, end = written[0].partition(token)[0], written[0].rpartition(token)[2]
    counts = [text.count(token) for text in written]
    ids = tokenizer.encode(begin + 3 * token + end, add_special_tokens=False)
    if written != [begin + count * token + end for count in counts] or ids.count(token_id) != 3:
        return None
    probes = [[*size, count] for size, count in zip(IMAGE_PROBES, counts, strict=True)]
    return {"begin": begin, "token": token, "end": end, "token_id": token_id, **answer, "probes": probes}


def resolve(slots: list[Any], template: Any, tokenizer: Any) -> list[Any]:
    """Return slots of texts and token ids; a token that the tokenizer does not have has no id and is left out.

    Raises:
        NoForm: the template names a token that the tokenizer does not know, so the trainer would fail on every row.
    """
    resolved: list[Any] = []
    for slot in slots:
        ids = [slot] if isinstance(slot, str) else template._convert_elements_to_ids(tokenizer, [slot])
        if None in ids:
            raise NoForm(f"the tokenizer has no {slot['token']}: is this the template of the model?")
        resolved += ids
    return resolved


def one_line(error: BaseException) -> str:
    """Return an error's text on one line, or its name when it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def keep_stdout_clean() -> TextIO:
    """Send what libraries print to stderr, and return the real stdout for the answer."""
    real = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return real


def main() -> None:
    """Answer the request on stdin with one line of JSON on stdout."""
    sys.argv = sys.argv[:1]
    stdout = keep_stdout_clean()
    try:
        answer = describe(load_request(sys.stdin))
    except NoForm as error:
        answer = {"error": str(error)}
    with stdout:
        print(json.dumps(answer), file=stdout)


if __name__ == "__main__":
    main()
