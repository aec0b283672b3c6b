"""Tools and calls in the trainer's own formats."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.dataset.toolforms import format_call, format_tools, load_tool_forms
from trainkit.errors import EnvironmentProblem, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

THINK = ("<think>\n", "\n</think>\n\n")
CALL_WORDS = ("<tool_call>", "</tool_call>")
CALL = '{"name": "search", "arguments": {"q": "天气"}}'
WRITTEN = '<tool_call>\n{"name": "search", "arguments": {"q": "天气"}}\n</tool_call>'


@pytest.fixture
def forms(make_form: Callable[..., Any]) -> ModuleType:
    return load_tool_forms(make_form().tool_utils)


@pytest.mark.parametrize(
    ("content", "written"),
    [
        (CALL, WRITTEN),
        (f"[{CALL}, {CALL}]", f"{WRITTEN}\n{WRITTEN}"),
        (f"<think>\na\n</think>\n\n{CALL}", f"<think>\na\n</think>\n\n{WRITTEN}"),
        (f"Look: <tool_call>{CALL}</tool_call>.", f"Look: .{WRITTEN}"),
        (f"<think>\na\n</think>\n\n<tool_call>\n{CALL}\n</tool_call>", f"<think>\na\n</think>\n\n{WRITTEN}"),
    ],
)
def test_a_call_is_written_as_the_model_is_trained_to(forms: ModuleType, content: str, written: str) -> None:
    assert format_call(forms, "qwen", content, THINK, CALL_WORDS) == written


@pytest.mark.parametrize(
    ("tool_format", "content", "reason", "detail"),
    [
        ("qwen", "look", "function call is not JSON", "function turn: look"),
        ("qwen", "x" * 99, "function call is not JSON", f"function turn: {'x' * 80}..."),
        ("qwen", "[" * 100_000, "function call is not JSON", f"function turn: {'[' * 80}..."),
        ("qwen", "3", "function call without name or arguments", "function turn: 3"),
        ("qwen", '{"name": "a"}', "function call without name or arguments", 'function turn: {"name": "a"}'),
        (
            "glm4", '[{"name":"a","arguments":{}},{"name":"b","arguments":{}}]',
            "function call does not fit the tool format",
            'the glm4 format cannot write [{"name":"a","arguments":{}},{"name":"b","arguments":{}}]: '
            "ValueError GLM-4 does not support parallel functions.",
        ),
        (
            "seed_oss", '{"name": "a", "arguments": 3}', "function call does not fit the tool format",
            'the seed_oss format cannot write {"name": "a", "arguments": 3}: '
            "AttributeError 'int' object has no attribute 'items'",
        ),
    ],
)  # fmt: skip
def test_a_call_that_the_trainer_stops_at_is_rejected(
    forms: ModuleType, tool_format: str, content: str, reason: str, detail: str
) -> None:
    with pytest.raises(Rejected) as caught:
        format_call(forms, tool_format, content)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


def test_tools_are_written_as_the_trainer_does(forms: ModuleType) -> None:
    tools = json.dumps([{"name": "search", "parameters": {"properties": {}}}])
    wrapped = '{"type": "function", "function": {"name": "search", "parameters": {"properties": {}}}}'
    assert f"<tools>\n{wrapped}\n</tools>" in format_tools(forms, "qwen", tools)
    assert format_tools(forms, "qwen", "[]") == ""


@pytest.mark.parametrize(
    ("tools", "reason", "detail"),
    [
        ("search", "tools are not JSON", "tools: search"),
        ("3", "tools are not a list of functions",
         "the default format cannot write 3: TypeError object of type 'int' has no len()"),
        ('[{"name": "a"}]', "tools are not a list of functions",
         "the default format cannot write [{\"name\": \"a\"}]: KeyError 'parameters'"),
    ],
)  # fmt: skip
def test_tools_that_the_trainer_stops_at_are_rejected(forms: ModuleType, tools: str, reason: str, detail: str) -> None:
    with pytest.raises(Rejected) as caught:
        format_tools(forms, "default", tools)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.py", None, "the trainer's tool formats do not load: [Errno 2] No such file or directory"),
        ("old.py", "import no_such_package_at_all", "do not load: No module named 'no_such_package_at_all'"),
        ("bad.py", "def", "do not load: invalid syntax"),
        ("new.py", "FunctionCall = 1", "has no get_tool_utils"),
        ("text.txt", "", "is not a Python file"),
    ],
)
def test_tool_formats_that_do_not_load_are_explained(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(EnvironmentProblem) as caught:
        load_tool_forms(str(path))
    assert caught.value.message.startswith(f"{path}: ")
    assert message in caught.value.message
