"""How the trainer writes tools and calls of them: its own tool formats, which need nothing but the standard library."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from typing import TYPE_CHECKING, Any

from trainkit.errors import EnvironmentProblem, Rejected

if TYPE_CHECKING:
    from types import ModuleType

# What the trainer's formats raise on tools or calls that are not of the shape they expect.
MISFIT = (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError)


@functools.cache
def load_tool_forms(path: str) -> ModuleType:
    """Return the trainer's `data/tool_utils.py` as a module of its own, without importing the trainer.

    Raises:
        EnvironmentProblem: the file is not there, or is not what this version of trainkit knows.
    """
    hint = "trainkit doctor shows which LLaMA-Factory it found"
    spec = importlib.util.spec_from_file_location("trainer_tool_utils", path)
    if spec is None or spec.loader is None:
        raise EnvironmentProblem(f"{path}: is not a Python file", hint)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (OSError, ImportError, SyntaxError) as error:
        raise EnvironmentProblem(f"{path}: the trainer's tool formats do not load: {error}", hint) from None
    if missing := [name for name in ("FunctionCall", "get_tool_utils") if not hasattr(module, name)]:
        raise EnvironmentProblem(f"{path}: has no {' and no '.join(missing)}", hint)
    return module


def format_tools(forms: ModuleType, tool_format: str, tools: str) -> str:
    """Return the description of the tools as it goes into the system message; `tools` is JSON text.

    Raises:
        Rejected: the trainer would stop at these tools.
    """
    try:
        listed = json.loads(tools)
    except (ValueError, RecursionError):
        raise Rejected("tools are not JSON", f"tools: {shorten(tools)}") from None
    try:
        return str(forms.get_tool_utils(tool_format).tool_formatter(listed)) if len(listed) else ""
    except MISFIT as error:
        detail = f"the {tool_format} format cannot write {shorten(tools)}: {describe(error)}"
        raise Rejected("tools are not a list of functions", detail) from None


def format_call(
    forms: ModuleType,
    tool_format: str,
    content: str,
    thought_words: tuple[str, ...] = (),
    tool_call_words: tuple[str, ...] = (),
) -> str:
    """Return the calls that a turn of role function holds, as the model is trained to write them.

    The turn is JSON, one call or a list of them; a thought before it stays, and so does the text around a call that
    stands between `tool_call_words`.

    Raises:
        Rejected: the trainer would stop at this turn.
    """
    before, calls = part_call(content, thought_words, tool_call_words)
    return before + write_calls(forms, tool_format, calls, content)


def part_call(content: str, thought_words: tuple[str, ...], tool_call_words: tuple[str, ...]) -> tuple[str, str]:
    """Return what the trainer keeps as text and what it reads as JSON."""
    if (call := find_between(content, tool_call_words)) is not None:
        return content.replace(call.group(0), ""), call.group(1)
    if (thought := find_between(content, thought_words)) is not None:
        return thought.group(0), content.replace(thought.group(0), "")
    return "", content


def find_between(content: str, words: tuple[str, ...]) -> re.Match[str] | None:
    """Return the first stretch of a text from one word to the next other."""
    if len(words) != 2:
        return None
    return re.search(f"{re.escape(words[0])}(.*?){re.escape(words[1])}", content, re.DOTALL)


def write_calls(forms: ModuleType, tool_format: str, calls: str, content: str) -> str:
    try:
        found: Any = json.loads(calls)
    except (ValueError, RecursionError):
        raise Rejected("function call is not JSON", f"function turn: {shorten(content)}") from None
    try:
        listed = [
            forms.FunctionCall(call["name"], json.dumps(call["arguments"], ensure_ascii=False))
            for call in (found if isinstance(found, list) else [found])
        ]
    except (KeyError, TypeError):
        detail = f"function turn: {shorten(content)}"
        raise Rejected("function call without name or arguments", detail) from None
    try:
        return str(forms.get_tool_utils(tool_format).function_formatter(listed))
    except MISFIT as error:
        detail = f"the {tool_format} format cannot write {shorten(content)}: {describe(error)}"
        raise Rejected("function call does not fit the tool format", detail) from None


def shorten(text: str, size: int = 80) -> str:
    return text if len(text) <= size else f"{text[:size]}..."


def describe(error: Exception) -> str:
    return f"{type(error).__name__} {error}".rstrip()
