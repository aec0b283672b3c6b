"""Cutting a JSON array into byte ranges of whole elements, so that several processes can share one file.

The array is parsed once, a buffer at a time. A file that is not one valid array is left to `trainkit.arrays`, which
cuts by brackets alone and can say where the damage is.
"""

from __future__ import annotations

import json
import re
from typing import IO, TYPE_CHECKING, NamedTuple

import msgspec

from trainkit.lines import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BUFFER = 64 << 20  # a longer element is left to trainkit.arrays, which says what is too long
BLANK = re.compile(r"[ \t\r\n]*")
decode_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode


class NotAnArray(Exception):
    """The text is not one valid JSON array, or has an element too long to hold."""


def refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError(constant)


parse_element = json.JSONDecoder(parse_constant=refuse).raw_decode


class Piece(NamedTuple):
    """Elements of an array: bytes [start, stop) hold `num_rows` of them, commas between; the first is on `line`."""

    start: int
    stop: int
    line: int
    num_rows: int


class Cutter:
    """Parses an array that arrives in pieces; `text` starts at byte `base` and on line `line`.

    The bytes are taken for Latin-1, so that places in the text are places in the file: the marks of JSON are ASCII, and
    what the strings say does not matter here.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.text = ""
        self.base = 0
        self.line = 1
        self.ended = False

    def read(self) -> None:
        data = self.stream.read(BLOCK_BYTES)
        self.text += data.decode("latin-1")
        self.ended = not data

    def drop(self, position: int) -> None:
        """Forget the text before `position`."""
        self.base += position
        self.line += self.text.count("\n", 0, position)
        self.text = self.text[position:]

    def skip(self, position: int) -> int:
        match = BLANK.match(self.text, position)
        return match.end() if match else position

    def take(self) -> tuple[int, int, bool]:
        """Parse the elements at the head of the text; return their number, their end, and whether the array ends."""
        num_rows = end = position = 0
        while True:
            try:
                stop = parse_element(self.text, position)[1]
            except (ValueError, RecursionError):
                return num_rows, end, False
            mark = self.skip(stop)
            if self.text[mark : mark + 1] not in (",", "]"):
                return num_rows, end, False
            num_rows, end = num_rows + 1, stop
            if self.text[mark] == "]":
                return num_rows, end, True
            position = self.skip(mark + 1)


def cut_elements(stream: IO[bytes]) -> Iterator[Piece]:
    """Yield the byte ranges of an array's elements, about `BLOCK_BYTES` each.

    Raises:
        NotAnArray: the text is not one valid array.
    """
    cutter = Cutter(stream)
    cutter.read()
    cutter.drop(cutter.skip(0))
    if not cutter.text.startswith("["):
        raise NotAnArray
    cutter.drop(cutter.skip(1))
    closed = cutter.text.startswith("]")
    end = 0
    while not closed:
        num_rows, end, closed = cutter.take()
        if num_rows:
            yield Piece(cutter.base, cutter.base + end, cutter.line, num_rows)
        elif cutter.ended or len(cutter.text) > MAX_BUFFER:
            raise NotAnArray
        if not closed:
            cutter.drop(cutter.skip(cutter.skip(end) + 1) if num_rows else 0)
            cutter.read()
    check_end(cutter, cutter.skip(end) + 1)


def check_end(cutter: Cutter, position: int) -> None:
    """Check that nothing but blanks follows the array."""
    while not cutter.ended:
        cutter.drop(position)
        position = 0
        if cutter.text.strip(" \t\r\n"):
            raise NotAnArray
        cutter.read()


def read_elements(data: bytes, line: int) -> Iterator[tuple[int, bytes]]:
    """Yield the elements of a piece with the line on which each starts."""
    position = 0
    for raw in decode_elements(b"[" + data + b"]"):
        element = bytes(raw)
        start = data.index(element, position)
        line += data.count(b"\n", position, start)
        yield line, element
        line += element.count(b"\n")
        position = start + len(element)
