from __future__ import annotations

import gzip
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit import lines
from trainkit.arrays import ArrayScanner
from trainkit.errors import InputError
from trainkit.lines import Chunk, Source, find_source, open_sources, plan_blocks, read_block, read_chunks

if TYPE_CHECKING:
    from collections.abc import Callable

BOM = b"\xef\xbb\xbf"
ROWS = b'{"a": 1}\n{"b": "\xe4\xbb\xbb"}\n{"c": []}\n'
MANY = b"".join(b'{"n": %d}\n' % n for n in range(20_000))

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def records_of(path: Path) -> list[tuple[int, bytes]]:
    return [record for chunk in read_chunks(find_source(path)) for record in chunk.records]


def cut(text: bytes, sizes: list[int]) -> list[bytes]:
    """The text in pieces of the given sizes, which are taken again and again."""
    pieces, start = [], 0
    while start < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[start : start + size])
        start += size
    return pieces


def scan(pieces: list[bytes]) -> list[tuple[int, bytes]]:
    scanner = ArrayScanner("x.json")
    found = [element for piece in pieces for element in scanner.feed(piece)]
    scanner.finish()
    return found


@settings(deadline=None)
@given(
    st.lists(values, max_size=6),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
    st.sampled_from([b"", BOM, b"\n\n ", b"\r\n"]),
    st.sampled_from([b"", b"\n", b" \r\n\n"]),
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
def test_any_array_in_any_pieces(
    array: list[object], indent: int | None, ascii_only: bool, head: bytes, tail: bytes, sizes: list[int]
) -> None:
    text = head + json.dumps(array, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") + tail
    found = scan(cut(text, sizes))
    assert [json.loads(element) for _, element in found] == array
    text_lines = text.split(b"\n")
    for number, element in found:
        assert element.split(b"\n")[0] in text_lines[number - 1]
    assert [number for number, _ in found] == sorted(number for number, _ in found)


def test_the_line_of_each_element() -> None:
    text = b'\n[ {"a": 1,\n "b": "x\\n"}, \n\n 2, {}\n,[\n]\n]\n'
    for size in (1, 2, 3, 7, 100):
        assert scan(cut(text, [size])) == [(2, b'{"a": 1,\n "b": "x\\n"}'), (5, b"2"), (5, b"{}"), (6, b"[\n]")]


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'[{"a": 1},\n {"b"', "x.json:2: the JSON array is not closed"),
        (b"[", "x.json:1: the JSON array is not closed"),
        (b'[\n"abc\\', "x.json:2: the JSON array is not closed"),
        (b'[{"a": [1]}', "x.json:1: the JSON array is not closed"),
        (b"[1]\n[2]\n", "x.json:2: text after the end of the array"),
        (b'[{"a": 1}]\n\n{"b": 2}\n', "x.json:3: text after the end of the array"),
        (b"[1]\n\nnull\n", "x.json:3: text after the end of the array"),
        (b"[1]]", "x.json:1: text after the end of the array"),
        (b'[1] "a"', "x.json:1: text after the end of the array"),
    ],
)
def test_a_broken_array_names_the_line(text: bytes, message: str, size: int) -> None:
    with pytest.raises(InputError) as caught:
        scan(cut(text, [size]))
    assert caught.value.message == message


def test_an_element_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainkit.arrays.MAX_RECORD_BYTES", 3 << 20)
    with pytest.raises(InputError, match=r"^x\.json:2: an element of more than 3 MiB$"):
        scan(cut(b'[1,\n2, "' + b"a" * (5 << 20), [1 << 20]))


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([b"", b"a", b"{}", b" ", b"\r", b"abcdefghij", BOM, b"\xe4\xbb\xbb"]), max_size=12),
    st.booleans(),
    st.booleans(),
    st.integers(1, 25),
)
def test_blocks_hold_each_line_once(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], bom: bool, ends: bool, block_bytes: int
) -> None:
    content = BOM * bom + b"\n".join(parts) + b"\n" * ends
    path = tmp_path_factory.getbasetemp() / "blocks.jsonl"
    path.write_bytes(content)
    source = Source(path, "blocks.jsonl", len(content), whole=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        blocks = plan_blocks([source])
    assert [(block.start, block.stop) for block in blocks] == [
        (start, min(start + block_bytes, len(content))) for start in range(0, len(content), block_bytes)
    ]
    read = [line for block in blocks for line in read_block(source, block)]
    whole = io.BytesIO(content).readlines()
    assert read == [line.removeprefix(BOM) if number == 0 else line for number, line in enumerate(whole)]


def test_a_line_longer_than_blocks_and_buffers_is_in_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 20)
    path = tmp_path / "long.jsonl"
    content = [b"a" * 10 + b"\n", b"b" * (5 << 19) + b"\n", b"c" * ((1 << 19) - 12) + b"\n", b"d\n", b"e"]
    path.write_bytes(b"".join(content))
    source = find_source(path)
    found = [read_block(source, block) for block in plan_blocks([source])]
    # the third megabyte ends with the line of c: the next line starts with the fourth
    assert found == [content[:2], [], content[2:3], content[3:]]


def test_only_plain_files_are_cut_into_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 20)
    for name, content in {"a.jsonl": ROWS, "b.json": b"[1]", "c.gz": gzip.compress(ROWS), "d.jsonl": b"{}"}.items():
        (tmp_path / name).write_bytes(content)
    sources = open_sources([*sorted(tmp_path.iterdir()), Path("-")])
    assert [(Path(source.name).name, source.whole) for source in sources] == [
        ("a.jsonl", False),
        ("b.json", True),
        ("c.gz", True),
        ("d.jsonl", False),
        ("standard input", True),
    ]
    assert [(block.source, block.start, block.stop) for block in plan_blocks(sources)] == [
        (0, 0, 20),
        (0, 20, len(ROWS)),
        (3, 0, 2),
    ]


PACKERS = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "gzip, two members": lambda data: gzip.compress(data[:11]) + gzip.compress(data[11:]),
    "zstd": zstandard.compress,
    "zstd, two frames": lambda data: zstandard.compress(data[:11]) + zstandard.compress(data[11:]),
    "zstd, a skippable frame": lambda data: zstandard.compress(data) + b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc",
    "zstd, unknown size": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize(
    ("content", "records"),
    [
        (ROWS, [(1, b'{"a": 1}\n'), (2, b'{"b": "\xe4\xbb\xbb"}\n'), (3, b'{"c": []}\n')]),
        (BOM + b"1\r\n\n2", [(1, b"1\r\n"), (2, b"\n"), (3, b"2")]),
        (BOM + b'\n[1,\n {"a": "]"}]', [(2, b"1"), (3, b'{"a": "]"}')]),
        (b"[]", []),
        (b"\n\n", [(1, b"\n"), (2, b"\n")]),
    ],
)
def test_what_is_packed_reads_like_what_is_not(
    tmp_path: Path, packer: str, content: bytes, records: list[tuple[int, bytes]]
) -> None:
    path = tmp_path / "packed"
    path.write_bytes(PACKERS[packer](content))
    assert records_of(path) == records


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_a_large_archive_comes_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 50_000)
    path = tmp_path / "many"
    path.write_bytes(compress(MANY))
    chunks = list(read_chunks(find_source(path)))
    assert b"".join(record for chunk in chunks for _, record in chunk.records) == MANY
    assert [number for chunk in chunks for number, _ in chunk.records] == list(range(1, 20_001))
    assert len(chunks) == -(-len(MANY) // 50_000)
    assert [chunk.position for chunk in chunks] == sorted(chunk.position for chunk in chunks)
    assert chunks[-1].position <= path.stat().st_size


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("share", [0.0005, 0.01, 0.5, 0.99, 1.0])
def test_an_archive_cut_off_anywhere_is_an_error(
    tmp_path: Path, compress: Callable[[bytes], bytes], share: float
) -> None:
    packed = compress(MANY)
    path = tmp_path / "cut"
    path.write_bytes(packed[: max(6, min(len(packed) - 1, int(share * len(packed))))])
    with pytest.raises(InputError, match=r"cut: the archive is damaged: ") as caught:
        records_of(path)
    assert caught.value.hint == "fetch or pack it again"


@pytest.mark.parametrize("position", [2, 30, 3000, -6])
def test_a_damaged_gzip_file_is_an_error(tmp_path: Path, position: int) -> None:
    packed = bytearray(gzip.compress(MANY))
    packed[position] ^= 0xFF
    packed[position + 1] ^= 0xFF
    path = tmp_path / "bad.gz"
    path.write_bytes(packed)
    with pytest.raises(InputError, match=r"bad\.gz: the archive is damaged: "):
        records_of(path)


def test_a_damaged_zstd_file_is_an_error(tmp_path: Path) -> None:
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(MANY))
    packed[-2] ^= 0xFF
    path = tmp_path / "bad.zst"
    path.write_bytes(packed)
    with pytest.raises(InputError, match=r"bad\.zst: the archive is damaged: "):
        records_of(path)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"1\n2\n", b"[1,\n2]", gzip.compress(b"1\n2\n")):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(content))))
        (chunk,) = read_chunks(find_source(Path("-")))
        assert [(number, record.strip()) for number, record in chunk.records] == [(1, b"1"), (2, b"2")]
        assert chunk == Chunk(chunk.records, position=0)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("finetun.jsonl", "finetun.jsonl: no such file", "did you mean finetune.jsonl?"),
        ("quite_different", "quite_different: no such file", ""),
        ("none/a.jsonl", "none/a.jsonl: no such file", "the folder none does not exist"),
        ("folder", "folder: is a folder", "name the files in it, for example with *.jsonl"),
        ("empty", "empty: is empty", "there is nothing to convert in it"),
        ("utf16", "utf16: is UTF-16 text", "save it as UTF-8"),
        ("fifo", "fifo: is not a file", "what comes through a pipe is read with -: ... | trainkit convert -"),
    ],
)
def test_an_input_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("finetune.jsonl").write_bytes(ROWS)
    Path("folder").mkdir()
    Path("empty").touch()
    Path("utf16").write_bytes('{"a": 1}\n'.encode("utf-16"))
    os.mkfifo("fifo")
    with pytest.raises(InputError) as caught:
        open_sources([Path("finetune.jsonl"), Path(name)])
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROWS)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read: Permission denied$"):
        find_source(path)


def test_a_file_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    file, link = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    file.write_text("{}\n")
    (tmp_path / "c.jsonl").write_text("{}\n")
    link.symlink_to(file)
    assert len(open_sources([file, tmp_path / "c.jsonl"])) == 2
    for paths in ([file, file], [file, tmp_path / "c.jsonl", link], [Path("-"), Path("-")]):
        with pytest.raises(InputError, match="is named twice"):
            open_sources(paths)
