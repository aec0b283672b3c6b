"""Preference data as people publish it, made into rows of LLaMA-Factory's sharegpt format.

Pairs, for the stages rm and dpo, have `chosen` and `rejected`, each a text, a message or a list of messages. The prompt
before them is `conversations` or `messages`, `prompt` (text or messages), `question`, or `instruction` with `input` and
`history`; without one of these, the two are whole conversations that differ in the last turn alone.

    {"conversations": [{"from": "human", "value": "..."}], "chosen": {"from": "gpt", "value": "..."},
     "rejected": {"from": "gpt", "value": "..."}, "system": "", "tools": "", "images": [], "metadata": "{}"}

Labels, for the stage kto, are a `kto_tag` or `label` beside a conversation that ends on the answer, or beside a prompt
as above with a `completion`, `response` or `output`.

    {"conversations": [..., {"from": "gpt", "value": "..."}], "kto_tag": true, "system": "", ...}

Every conversation goes through `conversations`, so calls, results and tools become what they become there. A pair whose
two prompts come out different is rejected.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from trainkit.errors import Rejected
from trainkit.sources.chat_forms import ROLES, SHAREGPT_ROLES
from trainkit.sources.chat_messages import ABSENT, list_of, object_of, text_of
from trainkit.sources.conversations import (
    LISTS,
    as_text,
    convert_row,
    facts_of,
    form_of,
    group_of,
    load_row,
    parsed,
    put_under,
)
from trainkit.sources.marks import IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from trainkit.datatypes import Example

# What the registry says of the files: an entry with pairs also has `"ranking": true`, one with labels has not.
PROMPT_COLUMNS = {"messages": "conversations", "system": "system", "tools": "tools", "images": "images"}
PAIR_COLUMNS = PROMPT_COLUMNS | {"chosen": "chosen", "rejected": "rejected"}
LABEL_COLUMNS = PROMPT_COLUMNS | {"kto_tag": "kto_tag"}
LABELS = ("kto_tag", "label")
COMPLETIONS = ("completion", "response", "output")
PROMPTS = (*LISTS, "prompt", "question", "instruction")
ANSWERING = ("assistant", "call")
PROMPT_PARTS = ("system", "tools", "images")

encode_json = msgspec.json.Encoder().encode
Row = dict[str, Any]


def make_pair_example(
    *,
    media_dir: Path | None = None,
    group_by: str | None = "task_id",
    keep: Callable[[Mapping[str, Any]], bool] | None = None,
    repairs: Counter[str] | None = None,
) -> Callable[[bytes], Example | None]:
    """Return the function that turns one JSON row with chosen and rejected into an `Example` of a pair.

    The arguments are those of `conversations.make_to_example`; the facts are those of the chosen conversation. The
    returned function raises `Rejected`, of its own with "no pair", "no prompt", "no answer", "prompts differ", "same
    answers", "image in an answer".
    """
    return make_example(convert_pair, media_dir, group_by, keep, repairs)


def make_label_example(
    *,
    media_dir: Path | None = None,
    group_by: str | None = "task_id",
    keep: Callable[[Mapping[str, Any]], bool] | None = None,
    repairs: Counter[str] | None = None,
) -> Callable[[bytes], Example | None]:
    """Return the function that turns one JSON row with a label into an `Example` for kto.

    As `make_pair_example`; `Rejected` of its own with "no label", "no answer", "image in an answer".
    """
    return make_example(convert_label, media_dir, group_by, keep, repairs)


def make_example(
    convert: Callable[[Row, Path | None, Counter[str]], tuple[Row, Row]],
    media_dir: Path | None,
    group_by: str | None,
    keep: Callable[[Mapping[str, Any]], bool] | None,
    repairs: Counter[str] | None,
) -> Callable[[bytes], Example | None]:
    """Return a row's function; `convert` gives the row and the whole conversation that its facts are read from."""

    def to_example(line: bytes) -> Example | None:
        changes: Counter[str] = Counter()
        row, whole = convert(load_row(line), media_dir, changes)
        facts = facts_of(whole)
        if keep is not None and not keep(facts):
            return None
        if repairs is not None:
            repairs.update(+changes)
        task = as_text(facts.get("task_id", facts.get("task")))
        return "", "", task, group_of(row, facts, group_by), encode_json(row) + b"\n"

    return to_example


def convert_pair(row: Row, media_dir: Path | None, changes: Counter[str]) -> tuple[Row, Row]:
    """Return the training row of a pair, and the chosen conversation."""
    rest = dict(row)
    given = {name: rest.pop(name, None) for name in ("chosen", "rejected")}
    if absent := [name for name, value in given.items() if value in ABSENT]:
        raise Rejected("no pair", f"there is no {' and no '.join(absent)}")
    prompt = take_prompt(rest)
    made = []
    for name, value in given.items():
        noted: Counter[str] = Counter()
        made.append(convert_row(*whole_row(rest, prompt, value, name), media_dir, noted))
        changes |= noted  # the larger of both: the prompt is the same
    chosen, rejected = made
    check_pair(chosen, rejected)
    return join_pair(chosen, rejected, joined_metadata(chosen, rejected)), chosen


def check_pair(chosen: Row, rejected: Row) -> None:
    """Check that two rows differ in their last turn alone, which is text; raises `Rejected`."""
    if prompt_of(chosen) != prompt_of(rejected):
        raise Rejected("prompts differ", "the two conversations differ before the last turn")
    if chosen["conversations"][-1] == rejected["conversations"][-1]:
        raise Rejected("same answers", "chosen and rejected are the same")
    check_answer(chosen)
    check_answer(rejected)


def check_answer(row: Mapping[str, Any]) -> None:
    """Check that no image is in the last turn: the trainer shows both answers the images of the row."""
    if row.get("images") and IMAGE in row["conversations"][-1]["value"]:
        raise Rejected("image in an answer", "the trainer takes images in the prompt only")


def prompt_of(row: Mapping[str, Any]) -> list[Any]:
    """Return all that the model is given before the last turn of a training row."""
    return [row["conversations"][:-1], *(row.get(name) or "" for name in PROMPT_PARTS)]


def join_pair(chosen: Row, rejected: Row, metadata: Mapping[str, Any]) -> Row:
    """Return the row of two conversations with the same prompt."""
    return {
        "conversations": chosen["conversations"][:-1],
        "chosen": chosen["conversations"][-1],
        "rejected": rejected["conversations"][-1],
        "system": chosen["system"],
        "tools": chosen["tools"],
        "images": chosen.get("images", []),
        "metadata": encode_json(metadata).decode(),
    }


def joined_metadata(chosen: Row, rejected: Row) -> Row:
    """Return the chosen row's metadata, with what the rejected one has of its own: keys of its messages."""
    metadata: Row = parsed(chosen["metadata"])
    other = parsed(rejected["metadata"])
    own = {f"rejected.{key}": value for key, value in other.items() if metadata.get(key) != value}
    put_under(metadata, "rejected", own)
    return metadata


def convert_label(row: Row, media_dir: Path | None, changes: Counter[str]) -> tuple[Row, Row]:
    """Return the training row of a labelled answer, twice: it is the whole conversation too."""
    rest = dict(row)
    name = next((name for name in LABELS if rest.get(name) is not None), "")
    label = rest.pop(name, None)
    if type(label) is not bool and label not in (0, 1):
        raise Rejected("no label", f"{name or ' or '.join(LABELS)}: is not true or false")
    prompt = take_prompt(rest)
    answer = next((key for key in COMPLETIONS if rest.get(key) not in ABSENT), "")
    if not any(row.get(key) not in ABSENT for key in LISTS) or (answer and not is_answer(prompt[-1])):
        given = rest.pop(answer, None)
        if given in ABSENT:
            raise Rejected("no answer", f"there is no {', no '.join(COMPLETIONS)} beside the prompt")
        made = convert_row(*whole_row(rest, prompt, given, answer), media_dir, changes)
    else:
        made = convert_row({**rest, "conversations": prompt}, form_of_messages(prompt, rest), media_dir, changes)
    check_answer(made)
    return made | {"kto_tag": bool(label)}, made


def take_prompt(rest: Row) -> list[Any]:
    """Return the messages of a row's prompt, empty when it has none, and take its keys out of `rest`."""
    name = next((name for name in PROMPTS if rest.get(name) not in ABSENT), "")
    value = rest.pop(name, None)
    if name != "instruction":
        return [said("user", text_of(value, name))] if isinstance(value, str) else list_of(value, name)
    messages = []
    for number, pair in enumerate(list_of(rest.pop("history", None), "history")):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Rejected("wrong type", f"history[{number}]: is not a question and its answer")
        messages += [said("user", pair[0]), said("assistant", pair[1])]
    texts = [text_of(value, name), text_of(rest.pop("input", None), "input")]
    return [*messages, said("user", "\n".join(filter(None, texts)))]


def said(role: str, text: Any) -> Row:
    return {"role": role, "content": text}


def whole_row(rest: Row, prompt: list[Any], value: Any, name: str) -> tuple[Row, str]:
    """Return a conversation that ends on an answer, and its form."""
    answer = answer_messages(value, name)
    if not is_answer(answer[0]):
        check_begins(answer, prompt, name)
        messages = answer
    elif not prompt:
        raise Rejected("no prompt", f"there is no prompt, and {name} begins with the model's turn")
    elif is_answer(prompt[-1]):
        raise Rejected("wrong order of turns", f"the prompt ends on a turn of the model, and so begins {name}")
    else:
        messages = prompt + answer
    if any("from" in object_of(message, "message") for message in messages):
        messages = [in_sharegpt(message) for message in messages]
    return {**rest, "conversations": messages}, form_of_messages(messages, rest)


def answer_messages(value: Any, name: str) -> list[Any]:
    """Return an answer as messages: it is a text, a message or a list of them; the last is the model's."""
    if isinstance(value, str):
        return [said("assistant", value)]
    messages = [value] if isinstance(value, dict) else list_of(value, name)
    if not is_answer(messages[-1]):
        raise Rejected("no answer", f"{name}: does not end on a turn of the model")
    return messages


def check_begins(messages: list[Any], prompt: list[Any], name: str) -> None:
    """Check that a whole conversation has the row's own prompt at its start: a text as any of its messages."""
    one_text = len(prompt) == 1 and set(prompt[0]) == {"role", "content"}
    begins = messages[: len(prompt)] == prompt
    if not begins and not (one_text and prompt[0]["content"] in map(text_in, messages)):
        raise Rejected("prompts differ", f"{name}: is a whole conversation that does not have the prompt in it")


def text_in(message: Any) -> Any:
    return message.get("content", message.get("value")) if isinstance(message, dict) else None


def in_sharegpt(message: Row) -> Row:
    """Return a message that was made from a text as a turn with from and value; any other is itself."""
    if set(message) == {"role", "content"}:
        return {"from": message["role"], "value": message["content"]}
    return message


def is_answer(message: Any) -> bool:
    """Whether a message is a turn of the model, in any form."""
    fields = object_of(message, "message")
    role = fields.get("from", fields.get("role"))
    known = SHAREGPT_ROLES if "from" in fields else ROLES["openai"] | ROLES["v1"]
    return isinstance(role, str) and known.get(role) in ANSWERING


def form_of_messages(messages: list[Any], row: Mapping[str, Any]) -> str:
    """Return the form of the messages of one row; raises `Rejected`."""
    form = form_of(encode_json({"messages": messages, "tools": row.get("tools")}))
    if not form:
        raise Rejected("no conversation", "its messages have no from and no role")
    return "openai" if form == "plain" else form
