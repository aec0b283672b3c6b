"""A row of a data set as LLaMA-Factory aligns it, or why it would skip it or stop on it.

`formats` models the converters and `media` the images and the like; here is what comes after them: the rows that the
processors drop, and the content on which the template stops. The usual sharegpt row takes a short way of its own.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from trainkit.dataset.formats import CONVERTERS, Said
from trainkit.dataset.kinds import check_columns, kind_of, text_of
from trainkit.dataset.media import KINDS, MediaRules, check_media, media_of
from trainkit.dataset.usual import usual_reader
from trainkit.datatypes import Conversation, Turn
from trainkit.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trainkit.dataset.entry import Entry
    from trainkit.dataset.formats import Aligned

__all__ = ["FATAL", "SKIPPED", "MediaRules", "align"]

# The trainer leaves these rows out with a warning, one among thousands of lines.
SKIPPED = (
    "role not in tags", "wrong alternation", "odd count", "even count", "no turns", "no answer", "no pair",
    "preference row",
)  # fmt: skip
# The trainer stops on these with a traceback.
FATAL = (
    "not JSON", "wrong type", "missing column", "non-string content", "unknown role", "tools not JSON",
    "function call not JSON", "no prompt", "media not taken",
    *(f"{kind} {what}" for what in ("count", "mark in text", "file") for kind in KINDS),
)  # fmt: skip

TEXT_ONLY = MediaRules()
decode_json = msgspec.json.Decoder().decode


def align(
    row: bytes | Mapping[str, Any], entry: Entry, media_dir: Path, media: MediaRules = TEXT_ONLY, stage: str = "sft"
) -> Conversation:
    """Return a row as the trainer aligns it: of a preference row the prompt with the chosen or wanted answer.

    Args:
        row: the JSON text of the row, or the row itself.
        entry: how its columns and roles are called.
        media_dir: the folder of images, videos and audio.
        media: what the template takes.
        stage: sft, pt, ppo, rm, dpo or kto. A ranking entry can only be for rm or dpo.

    Raises:
        Rejected: the trainer skips the row (`SKIPPED`) or stops on it (`FATAL`).
    """
    if isinstance(row, bytes):
        if stage == "sft" and (read_usual := usual_reader(entry)) and (usual := read_usual(row)):
            return finish(usual.said, usual.system, usual.tools, usual.media, media_dir, media)
        row = load_row(row)
    check_columns(row, entry)
    found = media_of(row, entry)
    if stage == "pt":
        return first_text(row, entry)
    aligned = CONVERTERS[entry.formatting](row, entry)
    answers = answers_of(aligned, entry, "rm" if entry.ranking else stage)
    for other in answers[1:]:
        finish([*aligned.prompt, other], aligned.system, aligned.tools, found, media_dir, media)
    return finish([*aligned.prompt, answers[0]], aligned.system, aligned.tools, found, media_dir, media)


def load_row(row: bytes) -> Mapping[str, Any]:
    """Return the object that a line holds."""
    try:
        value = decode_json(row)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("not JSON", str(error)) from None
    value = {} if value is None else value  # the trainer's table has nulls all over such a row
    if not isinstance(value, dict):
        raise Rejected("wrong type", f"the row is {kind_of(value)}, not an object")
    return value


def first_text(row: Mapping[str, Any], entry: Entry) -> Conversation:
    """Return the text that stage pt trains on: the first message of the prompt, nothing else."""
    try:
        first = CONVERTERS[entry.formatting](row, entry).prompt[0]
    except Rejected as rejected:
        if rejected.reason not in SKIPPED:
            raise
        raise Rejected("no prompt", f"{rejected.detail}; stage pt takes the first message of each row") from None
    return Conversation((Turn(first.role, text_of(first.content, first.where)),))


def answers_of(aligned: Aligned, entry: Entry, stage: str) -> list[Said]:
    """Return the answers that the processor of a stage takes from a row; for rm and dpo there are two.

    Raises:
        Rejected: it drops the row.
    """
    response = aligned.response
    if stage == "ppo":
        return response if len(response) == 1 else [Said("assistant", "", "the answer")]
    if stage in ("rm", "dpo", "kto"):
        if len(response) < 2:
            names = f"{entry.chosen} and {entry.rejected}" if entry.ranking else str(entry.kto_tag)
            raise Rejected("no pair", f"{names}: missing, or not of the form that {entry.formatting} has")
        return [response[0] if response[0].content else response[1]] if stage == "kto" else response
    if len(response) > 1:
        raise Rejected("preference row", f"{entry.kto_tag} marks a row for stage kto")
    if not response:
        raise Rejected("no answer", f"{entry.response}: missing or null" if entry.response else "no response column")
    return response


def finish(
    said: list[Said], system: Any, tools: Any, found: Mapping[str, list[Any]], media_dir: Path, media: MediaRules
) -> Conversation:
    """Return the conversation, with everything checked on which the template would stop."""
    turns = []
    for role, content, where in said:
        turns.append(Turn(role, text_of(content, where)))
        if role == "function":
            check_call(content, where, media)
        elif role == "system":
            raise Rejected("unknown role", f"{where}: the template has no such role in the middle of a conversation")
    if found or media.any:
        check_media(found, (turn.content for turn in turns), media, media_dir)
    if tools and (problem := tools_problem(tools)):
        raise Rejected("tools not JSON", problem)
    return Conversation(tuple(turns), text_of(system or "", "the system text"), tools or "")


def check_call(content: str, where: str, media: MediaRules) -> None:
    """Check that a function turn holds calls as JSON, each with name and arguments (data/formatter.py).

    The trainer takes the text between the first pair of tool call words, or else all but the first thought.
    """
    if match := between(*media.tool_call_words).search(content):
        content = match[1]
    elif match := between(*media.thought_words).search(content):
        content = content.replace(match[0], "")
    try:
        calls = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Rejected("function call not JSON", f"{where}: {error}") from None
    for call in calls if isinstance(calls, list) else [calls]:
        if not isinstance(call, dict) or not {"name", "arguments"} <= call.keys():
            raise Rejected("function call not JSON", f"{where}: a call is not an object with name and arguments")


@lru_cache(maxsize=8)
def between(first: str, last: str) -> re.Pattern[str]:
    if not first or not last:
        return re.compile(r"(?!)")
    return re.compile(f"{re.escape(first)}(.*?){re.escape(last)}", re.DOTALL)


@lru_cache(maxsize=32)
def tools_problem(tools: str) -> str:
    """Return what is wrong with the text of the tools: it is a list of objects, or an empty list or object for none."""
    try:
        value = json.loads(tools)
    except (ValueError, RecursionError) as error:
        return f"the tools cannot be parsed: {error}"
    if value in ("", {}):
        return ""
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        return "the tools are not a list of objects"
    return ""
