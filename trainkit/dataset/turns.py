"""A conversation as the texts that the trainer encodes, one by one: its template filled in, its think rule applied."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from trainkit.dataset.toolforms import format_call, format_tools, load_tool_forms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainkit.dataset.chatform import ChatForm, Slot
    from trainkit.datatypes import Conversation, Turn

CONTENT, INDEX = "{{content}}", "{{idx}}"

Thought = Literal["none", "added", "present", "mixed"]


class Written(NamedTuple):
    """The sources and targets of a conversation as texts and token ids, each to be encoded on its own.

    `thought` is what the think rule of a reasoning template did to the targets: "added" an empty block to each,
    "present" when each has a whole block of its own, "mixed" when the targets differ in this, or when one holds only
    one of the tags or text like it and so gets no block; "none" without such a rule.
    """

    pairs: list[tuple[list[Slot], list[Slot]]]
    thought: Thought


def write_pairs(conversation: Conversation, form: ChatForm, mask_history: bool) -> Written:
    """Fill a conversation, whose turns come in pairs, into the template.

    Raises:
        Rejected: tools or a function call that the trainer would stop at.
    """
    turns = list(conversation.turns)
    if not form.is_reasoning:
        messages = write_messages(turns, conversation, form)
        return Written(pair_up(messages), "none")
    only_last = mask_history and not form.preserve_thinking
    turns = remove_thoughts(turns, form, only_last)
    messages = write_messages(turns, conversation, form)
    looked_at = range(len(turns) - 1 if only_last else 1, len(turns), 2)
    states = {add_thought(messages, index, turns[index].content, form) for index in looked_at}
    return Written(pair_up(messages), "mixed" if len(states) > 1 else states.pop())


def pair_up(messages: list[list[Slot]]) -> list[tuple[list[Slot], list[Slot]]]:
    filled = [[slot for slot in message if slot != ""] for message in messages]
    return list(zip(filled[::2], filled[1::2], strict=True))


def remove_thoughts(turns: list[Turn], form: ChatForm, only_last: bool) -> list[Turn]:
    """Return the turns without the thoughts that the trainer takes out of answers."""
    ranges = []
    if form.enable_thinking is False:
        ranges.append(range(1, len(turns), 2))
    if only_last:
        ranges.append(range(1, len(turns) - 2, 2))
    first, last = map(re.escape, form.thought_words)
    turns = list(turns)
    for index in (index for indices in ranges for index in indices):
        content = re.sub(f"{first}(.*?){last}", "", turns[index].content, flags=re.DOTALL).lstrip("\n")
        turns[index] = turns[index]._replace(content=content)
    return turns


def add_thought(messages: list[list[Slot]], index: int, content: str, form: ChatForm) -> Thought:
    """Add an empty block to an answer that holds no tag; without thinking it goes to the question, without a loss."""
    first, last = (word.strip() for word in form.thought_words)
    if first not in content and last not in content:
        only_end = form.template_class == "Glm47ReasoningTemplate"
        block = form.thought_words[1] if only_end else "".join(form.thought_words)
        if form.enable_thinking:
            messages[index].insert(0, block)
        else:
            messages[index - 1].append(block)
        return "added"
    return "present" if last in content.partition(first)[2] else "mixed"


def write_messages(turns: Sequence[Turn], conversation: Conversation, form: ChatForm) -> list[list[Slot]]:
    """Return each turn in the template's slots; the first one begins with the prefix and the system message."""
    system = conversation.system or form.default_system
    if conversation.tools:
        system += write_tools(conversation.tools, form)
    joined = form.template_class == "Llama2Template"  # it puts the system message into the first question
    start: list[Slot] = list(form.slots.prefix)
    before = ""
    if system or conversation.tools:
        filled = fill(form.slots.system, system)
        if joined:
            before = str(filled[0])
        else:
            start += filled
    messages = []
    for index, turn in enumerate(turns):
        number = None if joined else str(index // 2)
        messages.append(write_turn(turn, number, form, before if index == 0 else ""))
    messages[0] = start + messages[0]
    return messages


def write_tools(tools: str, form: ChatForm) -> str:
    if form.tools_format is None:
        return str(fill(form.slots.tools, tools)[0])
    return format_tools(load_tool_forms(form.tool_utils), form.tools_format, tools)


def write_turn(turn: Turn, number: str | None, form: ChatForm, before: str) -> list[Slot]:
    if turn.role == "user":
        return fill(form.slots.user, before + turn.content, number)
    if turn.role == "assistant":
        return fill(form.slots.assistant, turn.content)
    if turn.role == "observation":
        return fill(form.slots.observation, turn.content)
    words = ((), ()) if number is None else (form.thought_words, form.tool_call_words)
    call = format_call(load_tool_forms(form.tool_utils), form.function_format, turn.content, *words)
    return fill(form.slots.function, call)


def fill(slots: Sequence[Slot], content: str, number: str | None = None) -> list[Slot]:
    """Put a content, and the number of its turn, into slots; as in the trainer also where the content has the mark."""
    filled: list[Slot] = []
    for slot in slots:
        if isinstance(slot, str):
            slot = slot.replace(CONTENT, content, 1)
            if number is not None:
                slot = slot.replace(INDEX, number, 1)
        filled.append(slot)
    return filled
