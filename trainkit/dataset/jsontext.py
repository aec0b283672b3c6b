"""A JSON object with the line of each key, and with the keys that are there twice."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from typing import Any, NamedTuple

BLANK = re.compile(r"[ \t\n\r]*")
parse_value = json.JSONDecoder().raw_decode


class Member(NamedTuple):
    """A key of an object with its line and its value; `start` is where the value stands in the text."""

    key: str
    line: int
    value: Any
    start: int


class JsonText:
    """A text that is known to be valid JSON."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.ends = [match.start() for match in re.finditer("\n", text)]

    def line(self, position: int) -> int:
        """Return the line of a position, from 1."""
        return bisect_left(self.ends, position) + 1

    def members(self, start: int = 0) -> list[Member]:
        """Return the members of the object at `start`, those of a repeated key too; empty for another value."""
        position = self.skip(start)
        found: list[Member] = []
        if self.text[position] != "{":
            return found
        position = self.skip(position + 1)
        while self.text[position] == '"':
            key, end = parse_value(self.text, position)
            value_start = self.skip(self.skip(end) + 1)
            value, stop = parse_value(self.text, value_start)
            found.append(Member(key, self.line(position), value, value_start))
            position = self.skip(stop)
            if self.text[position] == ",":
                position = self.skip(position + 1)
        return found

    def skip(self, position: int) -> int:
        match = BLANK.match(self.text, position)
        return match.end() if match else position
