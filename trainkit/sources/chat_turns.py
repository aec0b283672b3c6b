"""Messages made into the turns that LLaMA-Factory takes, without losing any of their text.

Its converter wants (human or observation) and (gpt or function_call) in turn, from the human to an answer, and skips
any other row with a warning. What is put right, each by its name in the counts:

    joined_system_messages      several system texts become one, with an empty line between them
    joined_user_messages        the same for user messages in a row
    joined_assistant_messages   the same for answers in a row
    merged_calls                calls in messages in a row become one turn
    merged_text_and_calls       an answer and the calls behind it become one turn
    text_moved_before_calls     text behind a call stands before it, where alone the trainer keeps it
    merged_results              the results of parallel calls become one turn
    results_put_in_order        results that came in another order than their calls
    trailing_observation_dropped, trailing_user_dropped
                                a last turn that nothing answers goes into the metadata: no loss was on it
    empty_arguments             absent arguments of a call are written as {}
    marks_in_text               a text with <image>, <video> or <audio> in it: < image>

A turn of calls is a JSON list of {"name", "arguments"}. With text beside the calls it is the text and then that list
between <tool_call> and </tool_call>: LLaMA-Factory writes what is outside these marks before the calls, in the call
form of the model (data/formatter.py, FunctionFormatter). Within the list `<` is written \\u003c, so that no text in
the arguments is taken for a mark; the trainer reads it back. Several results are a JSON list of their texts in the
order of the calls; a single one is its text.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from trainkit.errors import Rejected

if TYPE_CHECKING:
    from collections import Counter

    from trainkit.sources.chat_messages import Call, Message, Result

encode_json = msgspec.json.Encoder().encode
CALL_MARKS = ("<tool_call>", "</tool_call>")
ASKING = ("human", "observation")


class Turn(NamedTuple):
    """One turn of a training row, with the images that its marks stand for."""

    role: str
    value: str
    images: list[str]


class Turns(NamedTuple):
    """A conversation as a training row has it; `dropped` is a last turn that nothing answers."""

    system: str
    turns: list[Turn]
    dropped: Turn | None


def make_turns(messages: list[Message], *, by_id: bool, changes: Counter[str]) -> Turns:
    """Return the turns of a conversation.

    Args:
        messages: what was read.
        by_id: each call has one result. In the forms without ids one observation may also answer several calls, or
            calls that stand in the text of an answer.
        changes: added to for what had to be put right.

    Raises:
        Rejected: "wrong order of turns", "empty turn", "no answer", "call without a result", "result without a call",
            "call ids not unique", "user text after results", "call mark in text", "image in the system message".
    """
    first = next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))
    system = system_of(messages[:first], changes)
    turns: list[Turn] = []
    calls: list[Call] = []
    for role, group in groupby(messages[first:], lambda message: message.role):
        said = list(group)
        check_place(role, turns[-1].role if turns else "", said[0].where, by_id=by_id)
        if role == "user":
            turns.append(joined(said, "human", "joined_user_messages", changes))
        elif role == "tool":
            turns.append(observed(said, calls, by_id=by_id, changes=changes))
        else:
            calls = [call for message in said for call in message.calls]
            turns.append(answered(said, calls, changes))
    dropped = drop_last(turns, changes)
    return Turns(system, turns, dropped)


def system_of(messages: list[Message], changes: Counter[str]) -> str:
    """Return the system texts as one; the same text twice, in the row and as a message, is one."""
    texts = []
    for message in messages:
        if message.content.images:
            raise Rejected("image in the system message", f"{message.where}: can only be text")
        if (text := message.content.text(changes)).strip() and text not in texts:
            texts.append(text)
    changes["joined_system_messages"] += max(0, len(texts) - 1)
    return "\n\n".join(texts)


def check_place(role: str, before: str, where: str, *, by_id: bool) -> None:
    """Check that messages of a role can stand behind a turn; raises `Rejected`."""
    if role == "system":
        raise Rejected("wrong order of turns", f"{where}: a system message can only be the first")
    if role == "assistant" and not before:
        raise Rejected("wrong order of turns", f"{where}: the model speaks before the user")
    if role == "user" and before == "function_call":
        raise Rejected("call without a result", f"{where}: the user speaks before the calls are answered")
    if role == "user" and before == "observation":
        raise Rejected("user text after results", f"{where}: the trainer has no place for it before the model's turn")
    if role == "tool" and before != "function_call" and (by_id or before != "gpt"):
        raise Rejected("result without a call", f"{where}: nothing was called before it")


def joined(said: list[Message], role: str, name: str, changes: Counter[str]) -> Turn:
    """Return messages of one side in a row as one turn."""
    texts, images = [], []
    for message in said:
        if (text := message.content.text(changes)).strip():
            texts.append(text)
            images += message.content.images
    if not texts and role != "function_call":
        raise Rejected("empty turn", f"{said[0].where}: is empty")
    changes[name] += max(0, len(texts) - 1)
    return Turn(role, "\n\n".join(texts), images)


def answered(said: list[Message], calls: list[Call], changes: Counter[str]) -> Turn:
    """Return the messages of the model in a row as one turn, an answer or calls."""
    if not calls:
        return joined(said, "gpt", "joined_assistant_messages", changes)
    calling = [bool(message.calls) for message in said]
    if not calling[-1]:
        raise Rejected("call without a result", f"{said[-1].where}: the model goes on before its calls are answered")
    changes["merged_calls"] += sum(calling) - 1
    changes["merged_text_and_calls"] += calling.index(True)
    began = False
    for message in said:
        if began and any(run.strip() for run in message.content.runs):
            changes["text_moved_before_calls"] += 1
        began = began or bool(message.calls)
    turn = joined(said, "function_call", "joined_assistant_messages", changes)
    return turn._replace(value=write_calls(turn.value, calls, said[0].where))


def write_calls(text: str, calls: list[Call], where: str) -> str:
    """Return the value of a turn of calls; raises `Rejected` when the trainer would read a call in its text."""
    listed = encode_json([{"name": call.name, "arguments": call.arguments} for call in calls]).decode()
    # `<` begins all the words that the trainer looks for, but for those of one template, which begin with the other.
    listed = listed.replace("<", "\\u003c").replace("◁", "\\u25c1")
    if not text:
        return listed
    if CALL_MARKS[0] in text:
        raise Rejected("call mark in text", f"{where}: {CALL_MARKS[0]} stands in the text beside the calls")
    return f"{text}{'' if text.endswith(chr(10)) else chr(10)}{CALL_MARKS[0]}{listed}{CALL_MARKS[1]}"


def observed(said: list[Message], calls: list[Call], *, by_id: bool, changes: Counter[str]) -> Turn:
    """Return the results of one round of calls as one turn, in the order of the calls."""
    results = in_call_order([result for message in said for result in message.results], calls, said[0].where, by_id)
    if [result.id for result in results] != [result.id for message in said for result in message.results]:
        changes["results_put_in_order"] += 1
    texts = [result.content.text(changes) for result in results]
    images = [image for result in results for image in result.content.images]
    changes["merged_results"] += len(texts) - 1
    return Turn("observation", texts[0] if len(texts) == 1 else encode_json(texts).decode(), images)


def in_call_order(results: list[Result], calls: list[Call], where: str, by_id: bool) -> list[Result]:
    """Return results in the order of their calls: by id where all have one, otherwise as they stand.

    Raises:
        Rejected: a call has no result, or a result no call.
    """
    if calls and None not in [call.id for call in calls] + [result.id for result in results]:
        wanted = [call.id for call in calls]
        if len(set(wanted)) < len(wanted):
            raise Rejected("call ids not unique", f"{where}: {', '.join(map(str, wanted))}")
        left = list(wanted)
        for result in results:
            if result.id not in left:
                raise Rejected("result without a call", f"{where}: {result.id}")
            left.remove(result.id)
        if left:
            raise Rejected("call without a result", f"{where}: {', '.join(map(str, left))}")
        return sorted(results, key=lambda result: wanted.index(result.id))
    loose = not by_id and (len(results) == 1 or not calls)
    if len(results) != len(calls) and not loose:
        reason = "call without a result" if len(results) < len(calls) else "result without a call"
        raise Rejected(reason, f"{where}: {len(results)} results of {len(calls)} calls")
    return results


def drop_last(turns: list[Turn], changes: Counter[str]) -> Turn | None:
    """Take away a last turn that nothing answers and return it; raises `Rejected` when no answer is left."""
    dropped = turns.pop() if turns and turns[-1].role in ASKING else None
    if not turns:
        raise Rejected("no answer", "there is no answer of the model in it")
    if dropped is not None:
        name = "trailing_user_dropped" if dropped.role == "human" else "trailing_observation_dropped"
        changes[name] += 1
    return dropped
