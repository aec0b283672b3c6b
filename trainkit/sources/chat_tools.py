"""The tools that a conversation offers, as the JSON text that LLaMA-Factory takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from trainkit.errors import Rejected
from trainkit.sources.chat_messages import ABSENT, load_inner

if TYPE_CHECKING:
    from collections import Counter

encode_json = msgspec.json.Encoder().encode
NO_PARAMETERS = {"type": "object", "properties": {}}


def tools_text(value: Any, changes: Counter[str]) -> str:
    """Return a row's tools as JSON text, empty when there are none.

    They are a list or JSON text of one; text that needs no change stays as it is. `input_schema` (Anthropic) becomes
    `parameters`; a tool without any gets empty ones ("tools_without_parameters" in the counts), which its API takes it
    to have and without which the trainer's default tool format stops; one tool alone becomes a list ("tools_wrapped").

    Raises:
        Rejected: "tools not JSON", "tools not a list", "tool without a name".
    """
    tools = load_inner(value, "tools", "tools not JSON") if isinstance(value, str) and value.strip() else value
    if tools in ABSENT or (isinstance(tools, str) and not tools.strip()):
        return ""
    if isinstance(tools, dict):
        changes["tools_wrapped"] += 1
        tools = [tools]
    if not isinstance(tools, list):
        raise Rejected("tools not a list", f"tools: is {type(tools).__name__}")
    listed = [tool_of(tool, f"tools[{number}]", changes) for number, tool in enumerate(tools)]
    if isinstance(value, str) and listed == tools == load_inner(value, "tools", "tools not JSON"):
        return value
    return encode_json(listed).decode()


def tool_of(tool: Any, where: str, changes: Counter[str]) -> dict[str, Any]:
    """Return a tool with its parameters under the name that the trainer reads."""
    if not isinstance(tool, dict):
        raise Rejected("tools not a list", f"{where}: is not an object")
    if tool.get("type") == "function" and isinstance(tool.get("function"), dict):
        return tool | {"function": function_of(tool["function"], where, changes)}
    return function_of(tool, where, changes)


def function_of(function: dict[str, Any], where: str, changes: Counter[str]) -> dict[str, Any]:
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise Rejected("tool without a name", f"{where}: has no name")
    if "input_schema" in function and "parameters" not in function:
        function = {"parameters" if key == "input_schema" else key: value for key, value in function.items()}
    parameters = function.get("parameters")
    if isinstance(parameters, dict) and "properties" in parameters:
        return function
    if parameters not in ABSENT and not isinstance(parameters, dict):
        raise Rejected("tool without parameters", f"{where}: its parameters are not an object")
    changes["tools_without_parameters"] += 1
    return function | {"parameters": NO_PARAMETERS | (parameters or {})}
