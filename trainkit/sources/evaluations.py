"""Process-reward evaluations: a prompt, a judge's JSON verdict, and metadata on what was judged by whom.

A record is one JSON object:

    {"conversations": [{"from": "human", "value": "You are evaluating ..."},
                       {"from": "gpt", "value": "{\\"reasonableness_score\\": 0.9, ...}"}],
     "metadata": {"evaluation_type": "clip", "model_name": "deepseek-chat", "task_id": "qa_0", "category": null}}

and becomes one training row, in which the human turn carries the metadata prefix and the metadata itself is one JSON
string (as nested values whose type changes from row to row, they would break the trainer's Arrow schema):

    {"conversations": [{"from": "human", "value": "[EVAL_TYPE: clip] You are ..."}, ...],
     "system": "", "tools": "", "metadata": "{\\"evaluation_type\\": \\"clip\\", ...}"}

The long strings are never decoded: they are checked and passed on as the bytes that were read.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from trainkit.errors import Rejected, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trainkit.datatypes import Example

# The metadata that a prompt can carry, in the order in which it is written, with its word in the prefix.
PREFIX_WORDS = {"type": "EVAL_TYPE", "model": "MODEL", "task": "TASK", "category": "CATEGORY"}
DEFAULT_FORM = ("type", "category")
MAX_SEEN = 1000

Role = Literal["human", "gpt", "system", "observation", "function_call"]
Scalar = str | int | float | bool | None
ASKING, ANSWERING = ("human", "observation"), ("gpt", "function_call")

QUOTE = 34
BLANK = re.compile(rb'"(?:[ ]|\\[nrt])*"')
BLANK_STARTS = b' "\\'
ROW_HEAD = b'{"conversations":[{"from":"human","value":"'
ROW_GPT = b'},{"from":"gpt","value":'
ROW_TAIL = b'}],"system":"","tools":"","metadata":'


class Turn(msgspec.Struct, gc=False):
    """One turn; `value` is the JSON string as it was read, quotes included."""

    role: Role = msgspec.field(name="from")
    value: msgspec.Raw


class Metadata(msgspec.Struct, gc=False):
    """What the project knows of a row's metadata; other keys are kept but not read."""

    evaluation_type: Scalar = None
    model_name: Scalar = None
    task_id: Scalar = None
    category: Scalar = None


class Record(msgspec.Struct, gc=False):
    """One evaluation as it was read."""

    conversations: list[Turn]
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    system: str | None = None
    tools: str | None = None


encode_json = msgspec.json.Encoder().encode
decode_record = msgspec.json.Decoder(Record).decode
decode_metadata = msgspec.json.Decoder(Metadata | None).decode
decode_mapping = msgspec.json.Decoder(dict[str, Any] | None).decode


def parse_form(words: str) -> tuple[str, ...]:
    """Return the metadata form that `--metadata` names: "type,category", "all" or "none".

    Raises:
        UsageProblem: a word that is not one of the form's.
    """
    if words in ("none", ""):
        return ()
    if words == "all":
        return tuple(PREFIX_WORDS)
    chosen = {word.strip() for word in words.split(",")} - {""}
    if unknown := sorted(chosen - PREFIX_WORDS.keys()):
        raise UsageProblem(
            f"--metadata: {', '.join(unknown)} cannot be put into the prompt",
            f"choose from {', '.join(PREFIX_WORDS)}, or all, or none",
        )
    return tuple(word for word in PREFIX_WORDS if word in chosen)


def metadata_prefix(form: Iterable[str], values: Mapping[str, Scalar]) -> str:
    """Return the words before the prompt: `[EVAL_TYPE: clip] [CATEGORY: tavily] `; absent values are left out.

    `values` maps the words of the form (type, model, task, category) to what the row says.
    """
    return "".join(
        f"[{PREFIX_WORDS[word]}: {as_text(values[word])}] " for word in form if values.get(word) not in (None, "")
    )


def make_to_example(
    form: tuple[str, ...],
    filters: Mapping[str, frozenset[str]],
    group_by: str | None,
    seen: dict[str, set[str]],
) -> Callable[[bytes], Example | None]:
    """Return the function that turns one JSON record into an `Example`, or None when a filter leaves it out.

    Args:
        form: which metadata the human turn carries, from `parse_form`.
        filters: metadata key -> the values that stay; all of them must hold.
        group_by: the metadata key whose rows stay on one side of the split; None means each row by itself.
        seen: metadata key -> values met so far (at most `MAX_SEEN`), filled in for the filtered keys.

    The returned function raises `Rejected` for a record that cannot be trained on.
    """
    use_type, use_model, use_task, use_category = (word in form for word in PREFIX_WORDS)

    @lru_cache(maxsize=4096, typed=True)  # 1, 1.0 and true are equal to Python
    def prefix_of(*values: Scalar) -> bytes:
        return encode_json(metadata_prefix(form, dict(zip(PREFIX_WORDS, values, strict=True))))[1:-1]

    def to_example(line: bytes) -> Example | None:
        record, metadata = parse(line)
        if filters and not matches(record.metadata, filters, seen):
            return None
        kind, judge, task = metadata.evaluation_type, metadata.model_name, metadata.task_id
        prefix = prefix_of(
            kind if use_type else None,
            judge if use_model else None,
            task if use_task else None,
            metadata.category if use_category else None,
        )
        row = write_row(record, prefix)
        # Most values are text already; the calls would be a tenth of the time.
        kind = kind if type(kind) is str else as_text(kind)
        judge = judge if type(judge) is str else as_text(judge)
        task = task if type(task) is str else as_text(task)
        group = task.encode() if task and group_by == "task_id" else find_group(record, group_by)
        return kind, judge, task, group, row

    return to_example


def parse(line: bytes) -> tuple[Record, Metadata]:
    """Return the record in `line` and its metadata; raises `Rejected` when it is not one."""
    try:
        if not line.isascii():
            line.decode()  # msgspec does not look inside the strings that it passes on
        record = decode_record(line)
    except UnicodeDecodeError as error:
        raise Rejected("not UTF-8", f"byte {error.start}: {error.reason}") from None
    except msgspec.ValidationError as error:
        raise Rejected(*explain_wrong_type(str(error))) from None
    except msgspec.DecodeError as error:
        raise Rejected("not JSON", str(error)) from None
    except RecursionError:
        raise Rejected("not JSON", "nested too deeply") from None
    try:
        return record, decode_metadata(record.metadata) or Metadata()
    except (msgspec.DecodeError, RecursionError) as error:
        raise Rejected("wrong type", f"metadata: {error}") from None


def explain_wrong_type(message: str) -> tuple[str, str]:
    """Return the reason and detail for a msgspec message such as "Expected `str`, got `int` - at `$.x`"."""
    if "Invalid enum value" in message:
        return "unknown role", message
    if "missing required field `conversations`" in message or "at `$.conversations`" in message:
        return "no conversations", message
    if "- at" not in message:
        return "not an object", message
    return "wrong type", message


def check_turns(turns: list[Turn]) -> None:
    """Check that the turns are what the trainer takes: asking and answering in turn, ending with an answer, none empty.

    LLaMA-Factory skips any other row with a warning among thousands of lines.
    """
    first = 1 if turns and turns[0].role == "system" else 0
    if len(turns) - first < 2:
        raise Rejected("no answer", f"{len(turns)} turns: a prompt and an answer are needed")
    for position, turn in enumerate(turns):
        check_value(turn, position)
        expected = ASKING if (position - first) % 2 == 0 else ANSWERING
        if position >= first and turn.role not in expected:
            raise Rejected("wrong order of turns", f"turn {position + 1} is {turn.role}, not {' or '.join(expected)}")
    if turns[first].role != "human":
        raise Rejected("wrong order of turns", f"turn {first + 1} is {turns[first].role}, not human")
    if (len(turns) - first) % 2:
        raise Rejected("wrong order of turns", "the last turn is not an answer")


def check_value(turn: Turn, position: int) -> None:
    value = memoryview(turn.value)
    if value[0] != QUOTE:
        raise Rejected("not text", f"turn {position + 1} ({turn.role}): the value is not a string")
    if not has_text(value):
        raise Rejected("empty turn", f"turn {position + 1} ({turn.role}) is empty")


def has_text(value: memoryview) -> bool:
    """Whether a JSON value is a string with more than white space in it."""
    return value[0] == QUOTE and not (value[1] in BLANK_STARTS and BLANK.fullmatch(value))


def write_row(record: Record, prefix: bytes) -> bytes:
    """Return the training row as one line of JSON, the prefix put before the first human turn.

    Raises:
        Rejected: the turns are not what the trainer takes.
    """
    turns = record.conversations
    metadata = encode_json(str(record.metadata, "utf-8")) if len(record.metadata) > 4 else b'"{}"'
    if len(turns) != 2 or record.system is not None or record.tools is not None:
        check_turns(turns)
        return write_any_row(record, prefix, metadata)
    question, answer = turns
    ask, reply = memoryview(question.value), memoryview(answer.value)
    # Most texts do not start with white space: a call would cost more than the look at one byte.
    sound = (
        question.role == "human"
        and answer.role == "gpt"
        and ask[0] == reply[0] == QUOTE
        and (ask[1] not in BLANK_STARTS or has_text(ask))
        and (reply[1] not in BLANK_STARTS or has_text(reply))
    )
    if not sound:
        check_turns(turns)
    return b"".join((ROW_HEAD, prefix, ask[1:], ROW_GPT, reply, ROW_TAIL, metadata, b"}\n"))


def write_any_row(record: Record, prefix: bytes, metadata: bytes) -> bytes:
    """The general form of `write_row`: any number of turns, a system text, tools."""
    pieces = []
    for turn in record.conversations:
        value = bytes(turn.value)
        if turn.role == "human" and prefix:
            value, prefix = b'"' + prefix + value[1:], b""
        pieces.append(b'{"from":"%s","value":%s}' % (turn.role.encode(), value))
    return b'{"conversations":[%s],"system":%s,"tools":%s,"metadata":%s}\n' % (
        b",".join(pieces),
        encode_json(record.system or ""),
        encode_json(record.tools or ""),
        metadata,
    )


def load_mapping(raw_metadata: msgspec.Raw) -> dict[str, Any]:
    """Return all of a row's metadata; raises `Rejected` for a value that no number can hold, such as 1e999."""
    try:
        return decode_mapping(raw_metadata) or {}
    except (msgspec.DecodeError, RecursionError) as error:
        raise Rejected("wrong type", f"metadata: {error}") from None


def find_group(record: Record, group_by: str | None) -> bytes:
    """Return what decides the row's side: the metadata value, or the prompt where there is none."""
    if group_by is None:
        return b"\0".join(bytes(turn.value) for turn in record.conversations)
    value = load_mapping(record.metadata).get(group_by)
    if value in (None, ""):
        return bytes(next(turn.value for turn in record.conversations if turn.role == "human"))
    return as_text(value).encode()


def matches(raw_metadata: msgspec.Raw, filters: Mapping[str, frozenset[str]], seen: dict[str, set[str]]) -> bool:
    """Whether the metadata holds one of the wanted values for each filtered key; what it holds goes into `seen`."""
    metadata = load_mapping(raw_metadata)
    passed = True
    for key, wanted in filters.items():
        value = as_text(metadata.get(key))
        if len(seen[key]) < MAX_SEEN or value in wanted:
            seen[key].add(value)
        passed = passed and value in wanted
    return passed


def as_text(value: object) -> str:
    """Return a metadata value as filters and names see it; an absent one is the empty string."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)
