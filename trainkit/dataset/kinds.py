"""The JSON types that the parts of a row must have, for the trainer's table and for its converters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainkit.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainkit.dataset.entry import Entry


def column(row: Mapping[str, Any], name: str | None, default: Any = None) -> Any:
    """Return what a row holds in a column, `default` for a column that the entry does not have."""
    return row.get(name) if name else default


def check_columns(row: Mapping[str, Any], entry: Entry) -> None:
    """Check the types of a row's columns: one that differs from the other rows' ends the reading of the whole file.

    Where every row has the same wrong type the trainer can use none of them, which ends it as well.
    """
    single = entry.formatting == "alpaca"
    texts = [entry.system] + [entry.prompt, entry.query, entry.response] * single
    answers = [entry.chosen, entry.rejected]
    for name in filter(None, texts + answers * single):
        if not isinstance(row.get(name), str | None):
            raise Rejected("non-string content", f"{name} is {kind_of(row[name])}")
    for name in filter(None, [] if single else answers):
        if not isinstance(row.get(name), dict | None):
            raise Rejected("wrong type", f"{name} is {kind_of(row[name])}, not an object")
    if entry.kto_tag and not isinstance(row.get(entry.kto_tag), bool | None):
        raise Rejected("wrong type", f"{entry.kto_tag} is {kind_of(row[entry.kto_tag])}, not true or false")
    tools, openai = column(row, entry.tools), entry.formatting == "openai"
    if not isinstance(tools, str | None) and tools != [] and not (openai and isinstance(tools, dict | list)):
        raise Rejected("tools not JSON", f"{entry.tools} is {kind_of(tools)}, not JSON text")


def check_types(message: Any, entry: Entry, number: int) -> None:
    """Check that a message is an object of strings, or null; a null matters only where the trainer comes to it."""
    if message is None:
        return
    if not isinstance(message, dict):
        raise Rejected("wrong type", f"turn {number} is {kind_of(message)}, not an object")
    if not isinstance(message.get(entry.role_tag), str | None):
        raise Rejected("wrong type", f"turn {number}: {entry.role_tag} is {kind_of(message[entry.role_tag])}")
    if not isinstance(message.get(entry.content_tag), str | None):
        where = tag_of(message, entry, number)[1]
        raise Rejected("non-string content", f"{where} is {kind_of(message[entry.content_tag])}")
    if entry.formatting == "openai" and not are_calls(message.get("tool_calls")):
        raise Rejected("wrong type", f"turn {number}: tool_calls is not a list of objects with a function")


def are_calls(calls: Any) -> bool:
    """Whether tool calls have the types that they need, nulls apart."""
    if not isinstance(calls, list):
        return calls is None
    if not all(isinstance(call, dict | None) for call in calls):
        return False
    return all(isinstance(call.get("function"), dict | None) for call in calls if call)


def tag_of(message: Any, entry: Entry, number: int) -> tuple[Any, str]:
    """Return the role of a message as the row has it, and how to name the message."""
    if message is None:
        raise Rejected("wrong type", f"turn {number} is null")
    tag = message.get(entry.role_tag)
    return tag, f"turn {number} ({tag})"


def text_of(content: Any, where: str) -> str:
    """Return content that must be text."""
    if not isinstance(content, str):
        raise Rejected("non-string content", f"{where} is {kind_of(content)}")
    return content


def kind_of(value: Any) -> str:
    """Return the JSON type of a value in words."""
    if value is None:
        return "null"
    words = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return words.get(type(value), type(value).__name__)
