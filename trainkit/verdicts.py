"""Reading a judge's answer: the JSON object that it should be, and the scores in it.

What judges do to JSON is put right where the meaning is plain, and each kind of repair is counted by its name:

    fenced block       ```json {...} ```
    text around it     words before or after the object
    single quotes      {'score': 0.9}
    trailing comma     {"score": 0.9,}
    comment            {"score": 0.9}  // or # up to the end of the line

The first object that can be read is the verdict. NaN and Infinity are refused: they are not JSON, and no score.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Strings end at their quote or at the end of the text; the possessive loops keep every match linear.
STRING = re.compile(r'"(?:[^"\\]+|\\.)*+("?)', re.DOTALL)
SINGLE = re.compile(r"'(?:[^'\\]+|\\.)*+('?)", re.DOTALL)
COMMENT = re.compile(r"(?://|#)[^\n]*")
OTHER = re.compile(r"[^\"'/#\[\]{}:,\s]+|\s+|.", re.DOTALL)
IN_SINGLE = re.compile(r"\\(.)|\"", re.DOTALL)
OPENS_FENCE = re.compile(r"```\w*+\s*+\Z")
BEFORE_VALUE = frozenset("{[,:")
NOTHING_FOUND = "no JSON object in it"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's answer as it was read.

    `Verdict({"score": 0.9}, ("fenced block", "trailing comma"))`, or `Verdict(None, (), "no JSON object in it")`.
    """

    value: Mapping[str, Any] | None
    repaired: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Cut:
    """An object cut out of a text: characters [start, stop), as strict JSON, and the repairs that this took."""

    start: int
    stop: int
    json: str
    repairs: frozenset[str]


def read_verdict(text: str) -> Verdict:
    """Return the JSON object that an answer holds; never raises, and takes time linear in the text."""
    try:
        value = load_strictly(text)
    except (ValueError, RecursionError):
        return find_verdict(text)
    return Verdict(value) if isinstance(value, dict) else Verdict(None, (), "JSON, but not an object")


def scores(value: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a verdict whose dotted name speaks of a score, in its order.

    `{"clip_score": 0.9, "scores": {"task": 1}, "steps": 3}` has `{"clip_score": 0.9, "scores.task": 1.0}`; the items of
    a list have their number as name.
    """
    return {name: float(number) for name, number in leaves(value) if "score" in name.lower() and is_number(number)}


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold; true and false are none."""
    if isinstance(value, float):
        return math.isfinite(value)
    return type(value) is int and abs(value) < 2**1023


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values that are neither objects nor lists, with their dotted names; without recursion."""
    waiting = [("", value)]
    while waiting:
        name, found = waiting.pop()
        if not isinstance(found, dict | list):
            yield name, found
            continue
        items = found.items() if isinstance(found, dict) else enumerate(found)
        waiting += [(f"{name}.{key}" if name else str(key), inner) for key, inner in reversed(list(items))]


def load_strictly(text: str) -> Any:
    """Return the JSON value of a text; NaN, Infinity and numbers beyond a float are a ValueError."""
    return json.loads(text, parse_constant=refuse, parse_float=finite)


def refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")


def finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else refuse(digits)


def find_verdict(text: str) -> Verdict:
    """Return the first object in a text that can be read with repairs."""
    problem = NOTHING_FOUND
    start = text.find("{")
    while start >= 0:
        cut = cut_object(text, start)
        if cut is None:
            return Verdict(None, (), "the JSON object is not closed" if problem == NOTHING_FOUND else problem)
        try:
            value = load_strictly(cut.json)
        except (ValueError, RecursionError) as error:
            problem = f"not JSON: {reason_of(error)}"
            start = text.find("{", cut.stop)
            continue
        return Verdict(value, tuple(sorted(cut.repairs | around(text[:start], text[cut.stop :]))))
    return Verdict(None, (), problem)


def reason_of(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def around(before: str, after: str) -> set[str]:
    """Return the repairs that stand for what is around an object."""
    found = set()
    fence = OPENS_FENCE.search(before)
    if fence and after.lstrip().startswith("```"):
        found.add("fenced block")
        before, after = before[: fence.start()], after.lstrip()[3:]
    if before.strip() or after.strip():
        found.add("text around it")
    return found


def cut_object(text: str, start: int) -> Cut | None:
    """Return the object that starts at a brace, None when the text ends within it."""
    pieces: list[str] = []
    repairs: set[str] = set()
    position, depth, last, comma = start, 0, "", -1
    while position < len(text):
        token, strict, repair = read_token(text, position, last)
        if not token:
            return None
        if token in ("}", "]") and last == "," and comma >= 0:
            pieces[comma], repair = "", "trailing comma"
        if token == ",":
            comma = len(pieces) if last not in BEFORE_VALUE else -1
        repairs |= {repair} if repair else set()
        pieces.append(strict)
        position += len(token)
        depth += (token in ("{", "[")) - (token in ("}", "]"))
        if depth == 0:
            return Cut(start, position, "".join(pieces), frozenset(repairs))
        last = token if strict.strip() else last
    return None


def read_token(text: str, position: int, last: str) -> tuple[str, str, str]:
    """Return the token at a position, how strict JSON writes it, and the repair; no token when a string is not closed.

    A single quote opens a string only where a key or a value can begin, so that an apostrophe does not.
    """
    mark = text[position]
    if mark == '"' or (mark == "'" and last in BEFORE_VALUE):
        match = (STRING if mark == '"' else SINGLE).match(text, position)
        if not match or not match[1]:
            return "", "", ""
        return (match[0], match[0], "") if mark == '"' else (match[0], double_quoted(match[0]), "single quotes")
    if comment := COMMENT.match(text, position):
        return comment[0], "", "comment"
    match = OTHER.match(text, position)
    assert match
    return match[0], match[0], ""


def double_quoted(single: str) -> str:
    """Return a string in single quotes as one in double quotes."""
    return f'"{IN_SINGLE.sub(requote, single[1:-1])}"'


def requote(match: re.Match[str]) -> str:
    if match[1] is None:
        return '\\"'
    return "'" if match[1] == "'" else match[0]
