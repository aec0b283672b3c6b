"""The three formattings of a row, alpaca, sharegpt and openai, turned into prompt and response as the trainer does it.

Modelled on llamafactory 0.9.5 (data/converter.py), oddities included. A row is the mapping that JSON gives; a column or
a message key that it lacks counts as null, as it does in the trainer's table when other rows have it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from trainkit.dataset.kinds import check_types, column, kind_of, tag_of, text_of
from trainkit.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trainkit.dataset.entry import Entry

TOOL_JOIN = "\n</tool_response>\n<tool_response>\n"
SHORT_THINKING = "detailed thinking off"
QUESTIONS, ANSWERS = ("user", "observation"), ("assistant", "function")


class Said(NamedTuple):
    """One message: its role in the trainer's words, what it says, and how to name it: `turn 3 (gpt)`."""

    role: str
    content: Any
    where: str


@dataclass(slots=True)
class Aligned:
    """A row as the converter hands it on; `response` holds two messages for preference rows."""

    prompt: list[Said]
    response: list[Said]
    system: Any = ""
    tools: Any = ""


def roles_of(entry: Entry) -> dict[str | None, str]:
    """Return the trainer's role for each tag; of equal tags the last one wins, also when they are None."""
    return {
        entry.user_tag: "user",
        entry.assistant_tag: "assistant",
        entry.observation_tag: "observation",
        entry.function_tag: "function",
        entry.system_tag: "system",
    }


def wanted_tags(entry: Entry, number: int) -> tuple[str | None, str | None]:
    """Return the tags that the trainer takes at a place: questions at even numbers, answers at odd ones."""
    if number % 2:
        return entry.assistant_tag, entry.function_tag
    return entry.user_tag, entry.observation_tag


def convert_alpaca(row: Mapping[str, Any], entry: Entry) -> Aligned:
    """Return prompt and response of an alpaca row."""
    prompt = []
    history = column(row, entry.history)
    for number, pair in enumerate(history if isinstance(history, list) else (), 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Rejected("wrong type", f"{entry.history}: pair {number} is not a question and its answer")
        prompt.append(Said("user", pair[0], f"{entry.history}, question {number}"))
        prompt.append(Said("assistant", pair[1], f"{entry.history}, answer {number}"))
    asked = [column(row, entry.prompt), column(row, entry.query)]
    prompt.append(Said("user", "\n".join(filter(None, asked)), entry.prompt or "prompt"))
    system, tools = column(row, entry.system, ""), column(row, entry.tools, "")
    return Aligned(prompt, alpaca_response(row, entry), system, tools)


def alpaca_response(row: Mapping[str, Any], entry: Entry) -> list[Said]:
    answer = column(row, entry.response)
    said = Said("assistant", answer, entry.response or "response")
    if entry.kto_tag and isinstance(row.get(entry.kto_tag), bool):
        return with_empty(said, first=row[entry.kto_tag])
    chosen, rejected = column(row, entry.chosen), column(row, entry.rejected)
    if entry.ranking and isinstance(chosen, str) and isinstance(rejected, str):
        return [Said("assistant", chosen, str(entry.chosen)), Said("assistant", rejected, str(entry.rejected))]
    return [said] if isinstance(answer, str) else []


def with_empty(said: Said, *, first: bool) -> list[Said]:
    """Return a wanted or unwanted answer beside an empty one, which is how the trainer tells them apart."""
    empty = Said("assistant", "", "")
    return [said, empty] if first else [empty, said]


def convert_sharegpt(row: Mapping[str, Any], entry: Entry) -> Aligned:
    """Return prompt and response of a sharegpt row; raise Rejected where the trainer skips it."""
    messages = messages_of(row, entry)
    system, skip = take_system(messages, entry)
    if not skip:
        system = column(row, entry.system, "")
    roles = roles_of(entry)
    said = []
    for number, message in enumerate(messages[skip:]):
        tag, where = tag_of(message, entry, number + skip + 1)
        if tag not in wanted_tags(entry, number):
            raise misplaced(tag, entry, number, where, roles)
        said.append(Said(roles[tag], message.get(entry.content_tag), where))
    check_count(said, entry, "turns")
    return split_response(row, entry, said, system, column(row, entry.tools, ""))


def convert_openai(row: Mapping[str, Any], entry: Entry) -> Aligned:
    """Return prompt and response of an openai row; raise Rejected where the trainer skips it."""
    messages = messages_of(row, entry)
    system, skip = take_system(messages, entry)
    if not skip:
        system = column(row, entry.system, "")
    said = join_tool_results(messages, skip, entry)
    for number, each in enumerate(said):
        if each.role not in (ANSWERS if number % 2 else QUESTIONS):
            raise Rejected("wrong alternation", f"{each.where} is {each.role} where {expected(number)} belongs")
    check_count(said, entry, "turns, with tool results joined")
    tools = column(row, entry.tools, "")
    if isinstance(tools, dict | list):
        tools = json.dumps(tools, ensure_ascii=False)
    aligned = split_response(row, entry, said, system, tools)
    aligned.system = with_thinking(system, tools)
    return aligned


def join_tool_results(messages: list[Any], skip: int, entry: Entry) -> list[Said]:
    """Return the messages with tool results that follow each other as one; results at the end are dropped."""
    roles = roles_of(entry)
    said: list[Said] = []
    results: list[tuple[Any, str]] = []
    for number, message in enumerate(messages[skip:], skip + 1):
        tag, where = tag_of(message, entry, number)
        content = message.get(entry.content_tag)
        if tag in (entry.assistant_tag, entry.function_tag) and (calls := message.get("tool_calls")):
            tag, content = entry.function_tag, write_calls(calls, where)
        if tag == entry.observation_tag:
            results.append((content, where))
            continue
        if results:
            texts = [text_of(*result) for result in results]
            said.append(Said("observation", TOOL_JOIN.join(texts), f"the tool results before {where}"))
            results = []
        if tag not in roles:
            raise Rejected("unknown role", f"{where}: its role is none of {', '.join(filter(None, roles))}")
        said.append(Said(roles[tag], content, where))
    return said


def write_calls(calls: Any, where: str) -> str:
    """Return tool calls as the JSON text that takes the place of what the message says."""
    if None in calls:
        raise Rejected("function call not JSON", f"{where}: tool_calls has a null in it")
    functions = [call.get("function") for call in calls]
    absent = {"name": None, "arguments": None}
    written = [function and function | (absent | function) for function in functions]
    return json.dumps(written, ensure_ascii=False)


def with_thinking(system: Any, tools: Any) -> Any:
    """Return the system text with the words that the openai converter of 0.9.5 adds to it."""
    if not system:
        return system if tools else SHORT_THINKING
    system = text_of(system, "the system text")
    if tools:
        return system + "\n"
    thinking = "detailed thinking on" in system or SHORT_THINKING in system
    return system if thinking else f"{system}\n{SHORT_THINKING}"


def messages_of(row: Mapping[str, Any], entry: Entry) -> list[Any]:
    """Return the messages of a row, the types of their parts checked: one of another type ends the whole reading."""
    if None in (entry.messages, entry.role_tag, entry.content_tag):
        raise Rejected("missing column", "the entry names no messages column, role_tag or content_tag")
    messages = row.get(str(entry.messages))
    if messages is None:
        raise Rejected("missing column", f"{entry.messages} is missing or null")
    if not isinstance(messages, list):
        raise Rejected("wrong type", f"{entry.messages} is {kind_of(messages)}, not a list")
    for number, message in enumerate(messages, 1):
        check_types(message, entry, number)
    return messages


def take_system(messages: list[Any], entry: Entry) -> tuple[Any, int]:
    """Return the text of a system message at the start and how many messages that takes."""
    if entry.system_tag and messages and tag_of(messages[0], entry, 1)[0] == entry.system_tag:
        return messages[0].get(entry.content_tag), 1
    return "", 0


def misplaced(tag: Any, entry: Entry, number: int, where: str, roles: Mapping[str | None, str]) -> Rejected:
    if tag not in roles:
        return Rejected("role not in tags", f"{where}: its role is none of {', '.join(filter(None, roles))}")
    wanted = " or ".join(tag for tag in wanted_tags(entry, number) if tag)
    return Rejected("wrong alternation", f"{where} stands where {wanted} belongs")


def expected(number: int) -> str:
    return " or ".join(ANSWERS if number % 2 else QUESTIONS)


def check_count(said: list[Said], entry: Entry, what: str) -> None:
    """Check that the messages end on an answer, or on a question where the answers are apart."""
    if entry.ranking and len(said) % 2 == 0:
        raise Rejected("even count", f"{len(said)} {what}: a ranking row ends on a question")
    if not entry.ranking and len(said) % 2:
        raise Rejected("odd count", f"{len(said)} {what}: the last one has no answer")
    if not said:
        raise Rejected("no turns", "there are no turns")


def split_response(row: Mapping[str, Any], entry: Entry, said: list[Said], system: Any, tools: Any) -> Aligned:
    """Return the messages with the answer, or the two answers of a preference row, apart."""
    if entry.kto_tag and isinstance(row.get(entry.kto_tag), bool):
        return Aligned(said[:-1], with_empty(said[-1], first=row[entry.kto_tag]), system, tools)
    chosen, rejected = column(row, entry.chosen), column(row, entry.rejected)
    if entry.ranking and isinstance(chosen, dict) and isinstance(rejected, dict):
        answers = [answer_of(chosen, str(entry.chosen), entry), answer_of(rejected, str(entry.rejected), entry)]
        return Aligned(said, answers, system, tools)
    return Aligned(said[:-1], said[-1:], system, tools)


def answer_of(message: Mapping[str, Any], name: str, entry: Entry) -> Said:
    """Return one of the two answers; the trainer takes any role that it knows, with a warning for a question's."""
    tag, roles = message.get(str(entry.role_tag)), roles_of(entry)
    if tag not in roles:
        raise Rejected("unknown role", f"{name}: its role is none of {', '.join(filter(None, roles))}")
    return Said(roles[tag], message.get(str(entry.content_tag)), name)


CONVERTERS: dict[str, Callable[[Mapping[str, Any], Entry], Aligned]] = {
    "alpaca": convert_alpaca,
    "sharegpt": convert_sharegpt,
    "openai": convert_openai,
}
