"""Cutting one large JSON array into its elements, without holding more than one of them."""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING, NoReturn

from trainkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_BYTES = 1 << 20
MAX_RECORD_BYTES = 256 << 20

# A whole string, or one character that opens, closes or separates: all that is needed to find where a value ends.
# The group is empty when the text ends before the string does.
TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{},]', re.DOTALL)
QUOTE = 34


def read_array(stream: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Yield each element of one JSON array with the line it starts on, holding one element and one buffer at a time.

    An element is cut out by its brackets and quotes alone; whether it is valid is for its reader to say.

    Raises:
        InputError: the array is not closed, or an element is larger than `MAX_RECORD_BYTES`.
    """
    scanner = ArrayScanner(name)
    while data := stream.read(READ_BYTES):
        yield from scanner.feed(data)
    scanner.finish()


class ArrayScanner:
    """Cuts the elements out of a JSON array that arrives in pieces."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.buffer = b""
        self.scanned = 0  # the tokens before this position have been seen
        self.begin = 0  # where the current element starts
        self.depth = 0
        self.counted = 0  # the line breaks before this position are in `line`
        self.line = 1
        self.closed = False

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the elements that end in `data`."""
        self.forget()
        self.buffer += data
        while (token := TOKEN.search(self.buffer, self.scanned)) is not None:
            if token.group()[0] == QUOTE and not token[1]:
                self.scanned = token.start()  # the string goes on in the next piece
                return
            self.scanned = token.end()
            yield from self.take(token.group(), token.start())
        self.scanned = len(self.buffer)
        if self.closed and (rest := self.buffer[self.begin :].lstrip()):
            self.refuse_more(len(self.buffer) - len(rest))

    def take(self, token: bytes, start: int) -> Iterator[tuple[int, bytes]]:
        if self.closed:
            self.refuse_more(start)
        if token in b"[{":
            self.depth += 1
            if self.depth == 1:
                self.begin = start + 1
        elif token in b"]}":
            self.depth -= 1
            self.closed = self.depth == 0
        if self.closed or (token == b"," and self.depth == 1):
            element = self.buffer[self.begin : start]
            if text := element.strip():
                yield self.line_at(self.begin + element.index(text)), text
            self.begin = start + 1

    def refuse_more(self, position: int) -> NoReturn:
        raise InputError(f"{self.name}:{self.line_at(position)}: text after the end of the array")

    def forget(self) -> None:
        """Drop what has been handed out."""
        keep = self.begin if self.depth or self.closed else self.scanned
        self.line_at(keep)
        self.buffer = self.buffer[keep:]
        self.scanned -= keep
        self.begin -= keep
        self.counted = 0
        if len(self.buffer) > MAX_RECORD_BYTES:
            raise InputError(f"{self.name}:{self.line}: an element of more than {MAX_RECORD_BYTES >> 20} MiB")

    def line_at(self, position: int) -> int:
        """Return the line of a position; positions only ever grow."""
        self.line += self.buffer.count(b"\n", self.counted, position)
        self.counted = position
        return self.line

    def finish(self) -> None:
        """Check that the array has ended."""
        if not self.closed:
            raise InputError(
                f"{self.name}:{self.line_at(len(self.buffer))}: the JSON array is not closed", "the file may be cut off"
            )
