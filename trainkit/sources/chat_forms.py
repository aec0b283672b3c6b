"""The common forms of a conversation, read into messages.

    sharegpt    {"conversations": [{"from": "human", "value": "..."}, ...], "system": "...", "tools": "[...]"}
    openai      {"messages": [{"role": "assistant", "content": "...", "tool_calls": [...]}, ...], "tools": [...]}
    anthropic   {"messages": [{"role": "user", "content": [{"type": "tool_result", ...}]}, ...], "system": "..."}
    v1          {"messages": [{"role": "user", "content": [{"type": "text", "value": "..."}]}, ...]}

The last is LLaMA-Factory's own. A thought is written as `<think>\\n...\\n</think>\\n\\n`, as most of its templates have
it.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, Any

from trainkit.errors import Rejected
from trainkit.sources.chat_messages import (
    Content,
    Message,
    Result,
    call_of,
    id_of,
    list_of,
    load_inner,
    object_of,
    text_of,
)

if TYPE_CHECKING:
    from trainkit.sources.chat_messages import Draft

SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "model": "assistant", "chatgpt": "assistant", "bot": "assistant", "function_call": "call", "tool_call": "call",
    "observation": "tool", "tool": "tool", "function_response": "tool", "tool_response": "tool",
}  # fmt: skip
ROLES = {
    "openai": {
        "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
        "tool": "tool", "function": "tool",
    },
    "anthropic": {"user": "user", "assistant": "assistant", "system": "system"},
    "v1": {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"},
}  # fmt: skip
# The parts of a message by their type: what they are, and the key that says it.
PARTS = {
    "openai": {
        "text": ("text", "text"), "refusal": ("text", "refusal"),
        "image_url": ("image", "image_url"), "image": ("image", "image"),
    },
    "anthropic": {
        "text": ("text", "text"), "thinking": ("thought", "thinking"), "image": ("image", "source"),
        "tool_use": ("call", "input"),
    },
    "v1": {
        "text": ("text", "value"), "reasoning": ("thought", "value"), "image_url": ("image", "value"),
        "tool_call": ("call", "value"),
    },
}  # fmt: skip
TAKEN = {
    "system": ("text",), "user": ("text", "image"), "tool": ("text", "image"),
    "assistant": ("text", "image", "thought", "call"),
}  # fmt: skip
THOUGHT = "<think>\n{}\n</think>\n\n"
REASONING = ("reasoning_content", "reasoning")
MARKED_CALL = re.compile(r"<tool_call>(.*?)</tool_call>\s*", re.DOTALL)
MARKED_THOUGHT = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


def read_system(value: Any, form: str, draft: Draft) -> None:
    """Read a row's own `system`: text, or in the forms with parts a list of them."""
    if value not in (None, "", []):
        message = Message("system", "system")
        read_content(value, form, message, message.content, draft)
        draft.messages.append(message)


def read_turns(turns: list[Any], draft: Draft) -> None:
    """Read the turns of a row in the sharegpt form; raises `Rejected`."""
    for number, value in enumerate(turns):
        where = f"conversations[{number}]"
        turn = object_of(value, where)
        role = SHAREGPT_ROLES.get(text_of(turn.get("from"), f"{where}.from"))
        if role is None:
            raise Rejected("unknown role", f"{where}: is from {turn.get('from')!r}")
        message = Message("assistant" if role == "call" else role, where)
        if role == "call":
            read_call_turn(turn.get("value"), message, draft)
        elif role == "tool":
            result = Result(None, Content())
            draft.say(result.content, text_of(turn.get("value"), f"{where}.value"))
            message.results.append(result)
        else:
            draft.say(message.content, text_of(turn.get("value"), f"{where}.value"))
        draft.keep(where, turn, "from", "value")
        draft.messages.append(message)


def read_call_turn(value: Any, message: Message, draft: Draft) -> None:
    """Read a turn of calls: one call or a list, also with text around `<tool_call>` marks or a thought before it."""
    where = f"{message.where}.value"
    if not isinstance(value, str):
        texts, found = "", [value]
    else:
        texts, found = part_calls(value, where, draft)
    draft.say(message.content, texts)
    for calls in found:
        for call in calls if isinstance(calls, list) else [calls]:
            fields = object_of(call, where)
            key = "parameters" if "arguments" not in fields else "arguments"
            message.calls.append(call_of(fields, where, fields.get("id"), draft, key))
            draft.keep(where, fields, "id", "name", key)
    if not message.calls:
        raise Rejected("call not JSON", f"{where}: there is no call in it")


def part_calls(value: str, where: str, draft: Draft) -> tuple[str, list[Any]]:
    """Return the text of a turn of calls, and the JSON values in it."""
    try:
        return "", [load_inner(value, where, "call not JSON")]
    except Rejected:
        if calls := MARKED_CALL.findall(value):
            if MARKED_CALL.split(value)[-1].strip():
                draft.changes["text_moved_before_calls"] += 1
            return MARKED_CALL.sub("", value), [load_inner(call, where, "call not JSON") for call in calls]
        if thought := MARKED_THOUGHT.match(value.lstrip()):
            return thought[0], [load_inner(value.lstrip()[thought.end() :], where, "call not JSON")]
        raise


def read_messages(messages: list[Any], form: str, draft: Draft) -> None:
    """Read the messages of a row in one of the forms with roles and content; raises `Rejected`."""
    for number, value in enumerate(messages):
        where = f"messages[{number}]"
        fields = object_of(value, where)
        role = ROLES[form].get(text_of(fields.get("role"), f"{where}.role"))
        if role is None:
            raise Rejected("unknown role", f"{where}: is of {fields.get('role')!r} (read as {form})")
        message = Message(role, where)
        if role == "tool":
            read_result(fields, form, message, draft)
        elif form == "anthropic" and role == "user" and isinstance(fields.get("content"), list):
            read_user_blocks(fields, where, draft)
            continue
        else:
            read_said(fields, form, message, draft)
        draft.messages.append(message)


def read_said(fields: dict[str, Any], form: str, message: Message, draft: Draft) -> None:
    """Read a message that is no result: its thought, its content, its calls."""
    used = ["role", "content"]
    if form == "openai" and message.role == "assistant":
        used += ["tool_calls", "function_call"]
        thoughts = [key for key in REASONING if isinstance(fields.get(key), str) and fields[key].strip()]
        for key in thoughts[:1]:
            draft.say(message.content, THOUGHT.format(fields[key]))
            used.append(key)
    read_content(fields.get("content"), form, message, message.content, draft)
    if form == "openai" and message.role == "assistant":
        read_tool_calls(fields, message, draft)
    draft.keep(message.where, fields, *used)


def read_tool_calls(fields: dict[str, Any], message: Message, draft: Draft) -> None:
    """Read the calls beside the content of an assistant's message, in today's form or the one before it."""
    for number, value in enumerate(list_of(fields.get("tool_calls"), f"{message.where}.tool_calls")):
        where = f"{message.where}.tool_calls[{number}]"
        call = object_of(value, where)
        if call.get("type") not in (None, "function"):
            raise Rejected("unknown content", f"{where}: a call of type {call.get('type')!r}")
        function = call.get("function") or call
        message.calls.append(call_of(function, where, call.get("id"), draft))
        draft.keep(where, call | object_of(function, where), "id", "type", "index", "function", "name", "arguments")
    if (old := fields.get("function_call")) is not None:
        where = f"{message.where}.function_call"
        message.calls.append(call_of(old, where, None, draft))
        draft.keep(where, object_of(old, where), "name", "arguments")


def read_result(fields: dict[str, Any], form: str, message: Message, draft: Draft) -> None:
    """Read a message that is the result of a call."""
    result = Result(id_of(fields.get("tool_call_id"), f"{message.where}.tool_call_id"), Content())
    read_content(fields.get("content"), form, message, result.content, draft)
    message.results.append(result)
    draft.keep(message.where, fields, "role", "content", "tool_call_id")


def read_user_blocks(fields: dict[str, Any], where: str, draft: Draft) -> None:
    """Read an Anthropic user message, whose results and own words become messages of their own, in order."""
    blocks = parts_at(fields["content"], "anthropic", f"{where}.content")
    if not blocks:
        draft.messages.append(Message("user", where))
    for are_results, group in groupby(blocks, lambda block: block[1].get("type") == "tool_result"):
        message = Message("tool" if are_results else "user", where)
        for place, block in group:
            if not are_results:
                read_part(block, "anthropic", place, message, message.content, draft)
                continue
            result = Result(id_of(block.get("tool_use_id"), f"{place}.tool_use_id"), Content())
            read_content(block.get("content"), "anthropic", Message("tool", place), result.content, draft)
            message.results.append(result)
            draft.keep(place, block, "type", "tool_use_id", "content")
        draft.messages.append(message)
    draft.keep(where, fields, "role", "content")


def read_content(value: Any, form: str, message: Message, content: Content, draft: Draft) -> None:
    """Read the content of a message, a text or a list of parts, into `content`."""
    where = f"{message.where}.content"
    if not isinstance(value, list) or form == "sharegpt":
        draft.say(content, text_of(value, where))
        return
    for place, part in parts_at(value, form, where):
        read_part(part, form, place, message, content, draft)


def parts_at(values: list[Any], form: str, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the parts of a content with their places; a bare text is a part too."""
    key = PARTS[form]["text"][1]
    parts = [{"type": "text", key: value} if isinstance(value, str) else value for value in values]
    places = [f"{where}[{number}]" for number in range(len(parts))]
    return [(place, object_of(part, place)) for place, part in zip(places, parts, strict=True)]


def read_part(part: dict[str, Any], form: str, where: str, message: Message, content: Content, draft: Draft) -> None:
    """Read one part of a message; text goes into `content`, a call to the message."""
    kind, key = PARTS[form].get(str(part.get("type")), ("", ""))
    if kind not in TAKEN[message.role]:
        detail = f"{where}: a part of type {part.get('type')!r} in a message of {message.role} (read as {form})"
        raise Rejected("unknown content", detail)
    value = part.get(key)
    used = ["type", key]
    if kind == "image":
        draft.show(content, address_of(value, where))
    elif kind == "call" and form == "anthropic":
        used += ["id", "name"]
        message.calls.append(call_of(part, where, part.get("id"), draft, key))
    elif kind == "call":
        call = object_of(load_inner(text_of(value, where), where, "call not JSON"), where)
        message.calls.append(call_of(call, where, call.get("id"), draft))
        draft.keep(f"{where}.value", call, "id", "name", "arguments")
    else:
        if message.calls and text_of(value, where).strip():
            draft.changes["text_moved_before_calls"] += 1
        text = text_of(value, where)
        draft.say(content, THOUGHT.format(text) if kind == "thought" else text)
    draft.keep(where, part, *used)


def address_of(value: Any, where: str) -> str:
    """Return the address of an image: it is given as it is, or as an object with a `url`."""
    address = value.get("url") if isinstance(value, dict) else value
    if isinstance(address, str) and address:
        return address
    kind = value.get("type") if isinstance(value, dict) else None
    raise Rejected("image file", f"{where}: is {f'of type {kind}' if kind else 'nothing'}, not the address of a file")
