"""Tool conversations in any common form, made into training rows.

A row of each form (see `chat_forms`) becomes one row that LLaMA-Factory's sharegpt converter takes (see `chat_turns`
for what is put right on the way, and how calls and results are written):

    {"conversations": [{"from": "human", "value": "..."}, {"from": "function_call", "value": "[...]"},
                       {"from": "observation", "value": "..."}, {"from": "gpt", "value": "..."}],
     "system": "...", "tools": "[...]", "images": [], "metadata": "{\\"source\\": \\"run 7\\"}"}

What else the row has goes into its metadata: its own `metadata`, all keys that are not part of the conversation, keys
of single messages that nobody reads under "message_keys", and a last turn that had to be left out under "dropped_turn".
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from trainkit.errors import InputError, Rejected
from trainkit.sources.chat_forms import PARTS, read_messages, read_system, read_turns
from trainkit.sources.chat_messages import ABSENT, Draft, decode_json, list_of, text_of
from trainkit.sources.chat_tools import tools_text
from trainkit.sources.chat_turns import CALL_MARKS, Turns, make_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from trainkit.datatypes import Example

LISTS = ("conversations", "messages")
OTHER_MEDIA = ("videos", "audios")
READ = ("system", "tools", "functions", "images", "metadata", *OTHER_MEDIA)
# What tells the forms with roles and content apart; a row with plain texts alone could be any of them.
BLOCKS = {"tool_use": "anthropic", "tool_result": "anthropic", "thinking": "anthropic", "image_url": "openai"}
WORDS = {
    "sharegpt": "turns with from and value",
    "openai": "messages with tool_calls, tool_call_id or OpenAI's content parts",
    "anthropic": "messages with tool_use, tool_result or thinking blocks, or tools with an input_schema",
    "v1": "messages whose parts have a type and a value, as in LLaMA-Factory's v1",
    "plain": "messages with role and content that are text alone",
}

encode_json = msgspec.json.Encoder().encode


class Form(NamedTuple):
    """The form of conversations, and why they were taken for it: `Form("sharegpt", "turns with from and value")`."""

    name: str
    why: str


def recognise(rows: Sequence[bytes]) -> Form:
    """Return the form of the conversations that begin with these rows.

    Raises:
        InputError: the rows are of several forms, or none is a conversation.
    """
    first: dict[str, int] = {}
    for number, line in enumerate(rows, 1):
        if name := form_of(line):
            first.setdefault(name, number)
    plain = first.pop("plain", 0)
    if len(first) > 1 or (plain and "sharegpt" in first):
        found = first | ({"plain": plain} if plain else {})
        seen = "; ".join(f"row {number}: {WORDS[name]}" for name, number in sorted(found.items(), key=lambda x: x[1]))
        raise InputError(f"the rows are of several forms: {seen}", "convert each form by itself")
    if first:
        name = next(iter(first))
        return Form(name, WORDS[name])
    if plain:
        return Form("openai", WORDS["plain"])
    raise InputError(
        f"no conversation in the first {len(rows)} rows: {keys_of(rows)}",
        "a row has conversations (from, value) or messages (role, content)",
    )


def keys_of(rows: Sequence[bytes]) -> str:
    """Return in words what the first row has instead of a conversation."""
    try:
        value = decode_json(rows[0]) if rows else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return "the first is not JSON"
    return f"the first has {', '.join(value) or 'no keys'}" if isinstance(value, dict) else "the first is no object"


def form_of(line: bytes) -> str:
    """Return the form of one row, "plain" when it could be any with roles, and nothing when it is no conversation."""
    try:
        row = load_row(line)
        messages = turns_in(row)
    except Rejected:
        return ""
    objects = [message for message in messages if isinstance(message, dict)]
    if any("from" in message for message in objects):
        return "sharegpt"
    if not any("role" in message for message in objects):
        return ""
    parts = [part for message in objects for part in parts_of(message)]
    if any("value" in part and "text" not in part for part in parts):
        return "v1"
    tools = row.get("tools")
    if isinstance(tools, list) and any("input_schema" in tool for tool in tools if isinstance(tool, dict)):
        return "anthropic"
    if any(message.get(key) for message in objects for key in ("tool_calls", "tool_call_id", "function_call")):
        return "openai"
    if any(message["role"] in ("tool", "function", "developer") for message in objects if "role" in message):
        return "openai"
    kinds = [BLOCKS.get(str(part.get("type")), "anthropic" if "source" in part else "") for part in parts]
    return next(filter(None, kinds), "plain")


def parts_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def make_to_example(
    form: Form,
    *,
    media_dir: Path | None = None,
    group_by: str | None = "task_id",
    keep: Callable[[Mapping[str, Any]], bool] | None = None,
    repairs: Counter[str] | None = None,
) -> Callable[[bytes], Example | None]:
    """Return the function that turns one JSON row into an `Example`, or None when `keep` leaves it out.

    Args:
        form: how the rows are read, from `recognise`.
        media_dir: the folder of images with a relative path.
        group_by: the fact whose rows stay on one side of the split (the first user turn where a row has none); None
            means each row by itself.
        keep: told the facts of a row (see `facts_of`), whether it stays.
        repairs: added to for what was put right in the rows that stay, by the names in `chat_turns` and `chat_tools`.

    The returned function raises `Rejected` for a row that cannot be trained on. Its examples have no type and no judge;
    their task is the fact `task_id`, or else `task`.
    """

    def to_example(line: bytes) -> Example | None:
        changes: Counter[str] = Counter()
        row = convert_row(load_row(line), form.name, media_dir, changes)
        facts = facts_of(row)
        if keep is not None and not keep(facts):
            return None
        if repairs is not None:
            repairs.update(+changes)
        task = as_text(facts.get("task_id", facts.get("task")))
        return "", "", task, group_of(row, facts, group_by), encode_json(row) + b"\n"

    return to_example


def group_of(row: Mapping[str, Any], facts: Mapping[str, Any], group_by: str | None) -> bytes:
    """Return what decides the row's side."""
    if group_by is None:
        return encode_json(row)
    return (as_text(facts.get(group_by)) or row["conversations"][0]["value"]).encode()


def as_text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else encode_json(value).decode()


def load_row(line: bytes) -> dict[str, Any]:
    """Return the object in a line; raises `Rejected` when it is none."""
    try:
        row = decode_json(line)
    except UnicodeDecodeError as error:
        raise Rejected("not UTF-8", f"byte {error.start}: {error.reason}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Rejected("not JSON", str(error)) from None
    if not isinstance(row, dict):
        raise Rejected("not an object", f"the row is {type(row).__name__}")
    return row


def turns_in(row: Mapping[str, Any]) -> list[Any]:
    """Return the messages of a row; raises `Rejected` when it has none."""
    for name in LISTS:
        if row.get(name) not in ABSENT:
            return list_of(row[name], name)
    raise Rejected("no conversation", f"there is no {' and no '.join(LISTS)}")


def convert_row(row: Mapping[str, Any], form: str, media_dir: Path | None, changes: Counter[str]) -> dict[str, Any]:
    """Return the training row of a conversation; `changes` is added to for what was put right. Raises `Rejected`."""
    messages = turns_in(row)
    for name in OTHER_MEDIA:
        if row.get(name) not in ABSENT:
            raise Rejected("unknown content", f"{name}: only images can be taken along")
    images = [text_of(path, "images") for path in list_of(row.get("images"), "images")]
    draft = Draft(images, media_dir)
    read_system(row.get("system"), form, draft)
    if form in PARTS:
        read_messages(messages, form, draft)
    else:
        read_turns(messages, draft)
    draft.check_all_shown()
    changes += draft.changes
    made = make_turns(draft.messages, by_id=form in ("openai", "anthropic"), changes=changes)
    tools = row.get("tools") if row.get("tools") not in ABSENT else row.get("functions")
    return {
        "conversations": [{"from": turn.role, "value": turn.value} for turn in made.turns],
        "system": made.system,
        "tools": tools_text(tools, changes),
        "images": [image for turn in made.turns for image in turn.images],
        "metadata": encode_json(metadata_of(row, draft, made)).decode(),
    }


def metadata_of(row: Mapping[str, Any], draft: Draft, made: Turns) -> dict[str, Any]:
    """Return what a row has besides its conversation, its own metadata last."""
    found: dict[str, Any] = {"message_keys": draft.kept} if draft.kept else {}
    if made.dropped is not None:
        images = {"images": made.dropped.images} if made.dropped.images else {}
        found["dropped_turn"] = {"from": made.dropped.role, "value": made.dropped.value, **images}
    own = row.get("metadata")
    if isinstance(own, str) and own.lstrip().startswith("{"):
        own = parsed(own)
    read = {*READ, next(name for name in LISTS if row.get(name) not in ABSENT)}
    if row.get("tools") not in ABSENT:
        read.discard("functions")
    put_under(found, "row", {key: value for key, value in row.items() if key not in read and value is not None})
    put_under(found, "metadata", own if isinstance(own, dict) else {} if own is None else {"metadata": own})
    return found


def put_under(found: dict[str, Any], owner: str, values: Mapping[str, Any]) -> None:
    """Add values; one whose name is taken gets its owner's before it."""
    for key, value in values.items():
        name = key
        while name in found:
            name = f"{owner}.{name}"
        found[name] = value


def parsed(text: str) -> Any:
    """Return the value of JSON text, the text itself when it is not JSON."""
    try:
        return decode_json(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


def facts_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what filters ask of a training row that `make_to_example` wrote.

    `{"num_turns": 4, "num_calls": 2, "tools": ["search", "buy"], "num_images": 0, "success": True, "judge.score": 3}`
    are its turns without the system text, its calls, the names of the tools that were called, in order, its images, and
    each text, number and boolean of its metadata, one level down under a name with a dot.
    """
    facts: dict[str, Any] = {}
    for key, value in parsed(row["metadata"]).items():
        nested = {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
        facts |= {name: inner for name, inner in nested.items() if isinstance(inner, str | int | float)}
    names = [name for turn in row["conversations"] if turn["from"] == "function_call" for name in called(turn["value"])]
    return facts | {
        "num_turns": len(row["conversations"]),
        "num_calls": len(names),
        "tools": list(dict.fromkeys(names)),
        "num_images": len(row["images"]),
    }


def called(value: str) -> list[str]:
    """Return the names of the tools that a turn of calls calls."""
    before, mark, after = value.partition(CALL_MARKS[0])
    return [call["name"] for call in decode_json(after.removesuffix(CALL_MARKS[1]) if mark else before)]
