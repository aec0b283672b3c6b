"""Reading JSON records from files of any size, with their line numbers.

Plain JSONL is read in byte ranges of `BLOCK_BYTES`, so that several processes can share one file; what is compressed,
piped in or one large JSON array is read once from front to back. Either way the records come as `bytes`, one JSON value
each, grouped into the same kind of chunk, and memory holds one chunk.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from trainkit.arrays import read_array
from trainkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import zstandard
    from typing_extensions import Buffer

BLOCK_BYTES = 4 << 20
READ_BUFFER = 1 << 20
PACKED_BYTES = 1 << 16  # unpacks to some MB
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Source:
    """One input: `Source(Path("finetune.jsonl"), "finetune.jsonl", size=43024, whole=False)`.

    `whole` says that it must be read from front to back: compressed, piped in, or one JSON array. `size` is in bytes
    as stored, None when unknown.
    """

    path: Path | None
    name: str
    size: int | None
    whole: bool


@dataclass(frozen=True, slots=True)
class Block:
    """The lines of a plain file that start in bytes [start, stop)."""

    source: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records of one source with their line numbers, and the stored bytes read so far."""

    records: list[tuple[int, bytes]]
    position: int


def open_sources(paths: Iterable[Path]) -> list[Source]:
    """Return what each path holds; `-` is standard input.

    Raises:
        InputError: a path that is missing, a folder, unreadable or empty, or that was named before.
    """
    sources: list[Source] = []
    for path in paths:
        source = find_source(path)
        if any(is_same(source, other) for other in sources):
            raise InputError(f"{source.name}: is named twice", "its rows would count double")
        sources.append(source)
    return sources


def is_same(one: Source, other: Source) -> bool:
    if one.path is None or other.path is None:
        return one.path is other.path
    return one.path.samefile(other.path)


def find_source(path: Path) -> Source:
    if str(path) == "-":
        return Source(None, "standard input", None, whole=True)
    if path.is_dir():
        raise InputError(f"{path}: is a folder", "name the files in it, for example with *.jsonl")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a file", "what comes through a pipe is read with -: ... | trainkit convert -")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", nearest_name(path)) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise InputError(f"{path}: is empty", "there is nothing to convert in it")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}: is UTF-16 text", "save it as UTF-8")
    return Source(path, str(path), size, whole=is_compressed(head) or starts_array(head))


def nearest_name(path: Path) -> str:
    """Return a hint that names the file in the same folder whose name is closest."""
    import difflib

    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"did you mean {path.with_name(close[0])}?" if close else ""


def is_compressed(head: bytes) -> bool:
    return head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd"))


def starts_array(head: bytes) -> bool:
    return head.removeprefix(BOM).lstrip().startswith(b"[")


def plan_blocks(sources: list[Source]) -> list[Block]:
    """Return the byte ranges of the plain sources; the cut depends on the files alone, never on the machine."""
    return [
        Block(index, start, min(start + BLOCK_BYTES, source.size))
        for index, source in enumerate(sources)
        if not source.whole and source.size is not None
        for start in range(0, source.size, BLOCK_BYTES)
    ]


def read_block(source: Source, block: Block) -> list[bytes]:
    """Return the lines, blank ones too, that start within the block."""
    assert source.path is not None
    with source.path.open("rb", buffering=READ_BUFFER) as file:
        position = seek_line(file, block.start)
        if position >= block.stop:
            return []
        # readlines stops behind the line with which it has more bytes than its hint; 0 would mean no limit
        lines = file.readlines(block.stop - position - 1) if block.stop - position > 1 else [file.readline()]
    if position == 0:
        lines[0] = lines[0].removeprefix(BOM)
    return lines


def seek_line(file: IO[bytes], start: int) -> int:
    """Move to the first line that starts at or after `start`; return its position."""
    if start == 0:
        return 0
    file.seek(start - 1)
    return start - 1 + len(file.readline())


def read_chunks(source: Source) -> Iterator[Chunk]:
    """Yield the records of a source that is read from front to back, in chunks of about `BLOCK_BYTES`.

    Raises:
        InputError: a damaged archive, or an array that is not closed.
    """
    with open_stream(source) as (stream, raw):
        batch: list[tuple[int, bytes]] = []
        size = 0
        try:
            for number, record in read_records(stream, source.name):
                batch.append((number, record))
                size += len(record)
                if size >= BLOCK_BYTES:
                    yield Chunk(batch, position_of(raw))
                    batch, size = [], 0
        except (EOFError, OSError, zlib.error, zstd_error()) as error:
            raise InputError(f"{source.name}: the archive is damaged: {error}", "fetch or pack it again") from None
        if batch:
            yield Chunk(batch, position_of(raw))


def read_records(stream: io.BufferedReader, name: str) -> Iterator[tuple[int, bytes]]:
    head = stream.peek(4096)[:4096]
    yield from read_array(stream, name) if starts_array(head) else read_lines(stream)


def read_lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(stream, 1):
        yield number, line.removeprefix(BOM) if number == 1 else line


def position_of(raw: IO[bytes] | None) -> int:
    return raw.tell() if raw is not None else 0


@contextmanager
def open_stream(source: Source) -> Iterator[tuple[io.BufferedReader, IO[bytes] | None]]:
    """Open a source for reading; yield the unpacked stream and the stored file, None for a pipe."""
    if source.path is None:
        yield unpacked(sys.stdin.buffer), None
        return
    with source.path.open("rb", buffering=READ_BUFFER) as stored:
        yield unpacked(stored), stored


def unpacked(stream: IO[bytes]) -> io.BufferedReader:
    """Return the stream itself, or a reader of what its first bytes say it packs."""
    assert isinstance(stream, io.BufferedReader)
    head = stream.peek(4)[:4]
    if head.startswith(b"\x1f\x8b"):
        return io.BufferedReader(gzip.GzipFile(fileobj=stream), READ_BUFFER)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return io.BufferedReader(ZstdReader(stream), READ_BUFFER)
    return stream


class ZstdReader(io.RawIOBase):
    """Unpacks zstd frames. zstandard's own reader takes a file that is cut off for one that has ended."""

    def __init__(self, stored: IO[bytes]) -> None:
        import zstandard

        self.stored = stored
        self.new_frame = zstandard.ZstdDecompressor().decompressobj
        self.frame: zstandard.ZstdDecompressionObj | None = None
        self.rest = b""  # stored bytes of the next frame
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Fill `buffer`; raise EOFError when the file ends within a frame."""
        target = memoryview(buffer)
        while not self.ready:
            if not (data := self.rest or self.stored.read(PACKED_BYTES)):
                if self.frame is not None:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            frame = self.frame or self.new_frame()
            self.ready = memoryview(frame.decompress(data))
            self.frame, self.rest = (None, frame.unused_data) if frame.eof else (frame, b"")
        taken = min(len(target), len(self.ready))
        target[:taken], self.ready = self.ready[:taken], self.ready[taken:]
        return taken


def zstd_error() -> type[Exception]:
    """Return zstandard's error type without importing the library for those who do not use it."""
    module = sys.modules.get("zstandard")
    return module.ZstdError if module else EOFError
