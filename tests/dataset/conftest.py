"""Tokenizers and chat forms for the tests of this folder: made on the spot, with the trainer's own tool formats."""

from __future__ import annotations

import dataclasses
import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.dataset.chatform import ChatForm, Slots

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

HERE = Path(__file__).parent
QWEN_QUESTION = "<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"


@cache
def tiny_tokenizers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_tokenizers", HERE / "tiny_tokenizers.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def tokenizer_text(name: str) -> str:
    text: str = tiny_tokenizers().MAKERS[name]().to_str()
    return text


def tool_utils() -> str:
    """The trainer's tool formats, found without importing the trainer."""
    spec = importlib.util.find_spec("llamafactory")
    assert spec
    assert spec.origin
    return str(Path(spec.origin).parent / "data" / "tool_utils.py")


def form_of(kind: str = "qwen2", **changes: Any) -> ChatForm:
    """The form of LLaMA-Factory's `qwen` template, with changes; those of `slots` by their names."""
    slots = {
        "prefix": (),
        "system": ("<|im_start|>system\n{{content}}<|im_end|>\n",),
        "user": (QWEN_QUESTION,),
        "assistant": ("{{content}}<|im_end|>\n",),
        "observation": (QWEN_QUESTION,),
        "function": ("{{content}}<|im_end|>\n",),
        "tools": (),
        **changes.pop("slots", {}),
    }
    form = ChatForm(
        tokenizer=tokenizer_text(kind),
        tokenizer_reason="",
        encode_special_tokens=False,
        bos_token_id=None,
        eos_token_id=9,
        pad_token_id=None,
        template_class="Template",
        slots=Slots(**slots),
        default_system="",
        efficient_eos=False,
        thought_words=("<think>\n", "\n</think>\n\n"),
        tool_call_words=("<tool_call>", "</tool_call>"),
        enable_thinking=True,
        preserve_thinking=False,
        function_format="qwen",
        tools_format="qwen",
        plugin="BasePlugin",
        media_tokens=(),
        tool_utils=tool_utils(),
    )
    return dataclasses.replace(form, **changes)


@pytest.fixture
def make_form() -> Callable[..., ChatForm]:
    """A chat form: `make_form("qwen2", template_class="ReasoningTemplate")`."""
    return form_of


@pytest.fixture
def make_tokenizer() -> Callable[[str], Any]:
    """A fresh copy of a tiny tokenizer, as the tokenizers library has it: `make_tokenizer("llama3")`."""
    from tokenizers import Tokenizer

    return lambda name: Tokenizer.from_str(tokenizer_text(name))
