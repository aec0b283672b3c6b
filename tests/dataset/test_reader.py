"""Which rows of its files an entry takes, in which order, with their places."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainkit.dataset import elements, reader
from trainkit.dataset.entry import entry_of
from trainkit.dataset.reader import RowPlan, plan_rows, read_block
from trainkit.dataset.splits import parse_split, resolve
from trainkit.datatypes import Problem
from trainkit.errors import InputError

PROGRAM = Path(__file__).parent / "trainer_splits.py"
WHERE = "dataset_info.json x"


def plan(folder: Path, file_name: str, max_samples: int | None = None, **more: Any) -> RowPlan:
    return plan_rows(folder, entry_of("x", {"file_name": file_name} | more), max_samples)


def rows_of(found: RowPlan) -> list[tuple[str, int, int, Any]]:
    """Return all rows of a plan: name of the file, line, number, content."""
    read = [row for block in pickle.loads(pickle.dumps(found)).blocks for row in read_block(found, block)]
    assert found.num_rows == len(read)
    return [
        (Path(file).name, line, number, json.loads(row) if isinstance(row, bytes) else row)
        for file, line, number, row in read
    ]


def numbers(found: RowPlan) -> list[int]:
    return [number for _, _, number, _ in rows_of(found)]


def lines(count: int, start: int = 0) -> str:
    return "".join(f'{{"n": {number}}}\n' for number in range(start, start + count))


def test_lines_have_their_places_and_blank_ones_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"n": 0}\r\n\n  \t\n{"n": 1}\n\n{"n": 2}')
    assert rows_of(plan(tmp_path, "a.jsonl")) == [
        ("a.jsonl", 1, 0, {"n": 0}), ("a.jsonl", 4, 1, {"n": 1}), ("a.jsonl", 6, 2, {"n": 2}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("json that is jsonl", '{"n": 0}\n{"n": 1}\n', [(1, {"n": 0}), (2, {"n": 1})]),
        ("one line", '[{"n": 0}, {"n": 1}]', [(1, {"n": 0}), (1, {"n": 1})]),
        ("indented", '\n[\n  {\n    "n": 0\n  },\n\n  {"n": "}]"}\n]\n', [(3, {"n": 0}), (7, {"n": "}]"})]),
        ("equal elements", "[1,1 ,11,\n1]", [(1, 1), (1, 1), (1, 11), (2, 1)]),
        ("not ASCII", '[{"n": "任🙂"},\n{"n": "é"}]', [(1, {"n": "任🙂"}), (2, {"n": "é"})]),
        ("empty array", " [ ] ", []),
        ("empty", "", []),
    ],
)
def test_json_as_lines_or_as_an_array(tmp_path: Path, name: str, text: str, expected: list[Any]) -> None:
    (tmp_path / "a.json").write_text(text)
    found = plan(tmp_path, "a.json")
    assert [(line, row) for _, line, _, row in rows_of(found)] == expected
    assert [problem.message for problem in found.problems] == ["takes none of the 0 rows of a.json"] * (not expected)


def test_a_damaged_array_is_cut_by_its_brackets(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"n": 0},\n{"n": NaN},\n{n: 2}]')
    found = plan(tmp_path, "a.json")
    assert [block.kind for block in found.blocks] == ["array"]
    (tmp_path / "b.json").write_bytes(b'\xef\xbb\xbf[{"n": 0}]')
    assert rows_of(plan(tmp_path, "b.json")) == [("b.json", 1, 0, {"n": 0})]
    read = [(line, row) for _, line, _, row in read_block(found, found.blocks[0])]
    assert read == [(1, b'{"n": 0}'), (2, b'{"n": NaN}'), (3, b"{n: 2}")]
    (tmp_path / "a.json").write_text('[{"n": 0},\n{"n": 1}')
    with pytest.raises(InputError, match=r"a\.json:2: the JSON array is not closed"):
        plan(tmp_path, "a.json")
    (tmp_path / "a.json").write_text("[1, 2] []")
    with pytest.raises(InputError, match="text after the end of the array"):
        plan(tmp_path, "a.json")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    values=st.lists(VALUES, max_size=6), indent=st.none() | st.integers(0, 2), ascii_only=st.booleans(),
    size=st.integers(1, 60), longest=st.sampled_from([8, 1000]),
)  # fmt: skip
def test_any_array_is_read_as_json_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any], indent: int | None, ascii_only: bool, size: int,
    longest: int,
) -> None:  # fmt: skip
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "replace"))
    with monkeypatch.context() as patch:
        patch.setattr(elements, "BLOCK_BYTES", size)
        patch.setattr(elements, "MAX_BUFFER", longest)
        found = plan(tmp_path, "a.json")
        assert [row for *_, row in rows_of(found)] == json.loads((tmp_path / "a.json").read_bytes())
    whole = text.encode("utf-8", "replace").decode().split("\n")
    for _, line, _, row in rows_of(found):
        assert json.dumps(row, ensure_ascii=ascii_only)[:1] in whole[line - 1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.lists(st.sampled_from(["", " ", "\t\r", "1", "22", '"x"']), max_size=20), size=st.integers(1, 30),
    start=st.integers(0, 12), length=st.integers(0, 12), last=st.booleans(),
)  # fmt: skip
def test_any_lines_in_blocks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], size: int, start: int, length: int, last: bool
) -> None:
    (tmp_path / "a.jsonl").write_bytes("\n".join(texts).encode() + b"\n" * last)
    monkeypatch.setattr(reader, "BLOCK_BYTES", size)
    expected = [(line, json.loads(text)) for line, text in enumerate(texts, 1) if text.strip()]
    found = plan(tmp_path, "a.jsonl", split=f"train[{start}:{start + length}]+train[{start}:]")
    assert [(line, row) for _, line, _, row in rows_of(found)] == expected[start : start + length] + expected[start:]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", list(range(10))),
        ("train[2:4] + train[7:8]", [2, 3, 7]),
        ("train[7:]+train[:2]", [7, 8, 9, 0, 1]),
        ("train[1:3]+train[2:4]+train[2:3]", [1, 2, 2, 3, 2]),
        ("train[-2:]+train[:-9]", [8, 9, 0]),
        ("train[:25%]", [0, 1]),
        ("train[35%:50%]", [4]),
        ("train[-10%:]", [9]),
        ("train[:]", list(range(10))),
        ("train[3:3]+train[1_0:]+train[:1]", [0]),
    ],
)
def test_ranges_are_taken_in_the_order_in_which_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, expected: list[int]
) -> None:
    monkeypatch.setattr(reader, "BLOCK_BYTES", 20)
    (tmp_path / "a.jsonl").write_text(lines(10))
    found = plan(tmp_path, "a.jsonl", split=split)
    assert (numbers(found), found.problems, found.total_rows) == (expected, (), 10)


@pytest.mark.parametrize(
    ("more", "taken", "problem"),
    [
        ({"split": "train[8:12]+train[11:]"}, 2, ("train[8:12] goes beyond the 10 rows there are, and 1", "warning")),
        ({"split": "train[12:]"}, 0, ("takes none of the 10 rows of a.jsonl", "error")),
        ({"split": "train[5:5]"}, 0, ("takes none of the 10 rows of a.jsonl", "error")),
        ({"split": "train[5:2]"}, 0, ("split: 'train[5:2]' ends before it starts", "error")),
        ({"split": "train[:50%](pct1_dropremainder)"}, 0, ("needs 100 rows, and there are 10", "error")),
        ({"split": "test"}, 0, ("split: there is no split test: files have the one split train", "error")),
        ({"num_samples": 3}, 10, ("num_samples: the trainer draws 3 rows at random; all are looked at", "note")),
    ],
)  # fmt: skip
def test_what_is_said_of_the_choice_of_rows(
    tmp_path: Path, more: dict[str, Any], taken: int, problem: tuple[str, str]
) -> None:
    (tmp_path / "a.jsonl").write_text(lines(10))
    found = plan(tmp_path, "a.jsonl", **more)
    assert found.num_rows == len(numbers(found)) == taken
    assert (problem[0] in found.problems[-1 if taken == 0 else 0].message, found.problems[0].where) == (True, WHERE)
    assert problem[1] in [each.level for each in found.problems]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("train[_:5]", "'train[_:5]': _ is not a number"),
        ("train[:5](closest)", "the rounding (closest) goes with percents only"),
        ("train[:5%](up)", "the rounding is closest or pct1_dropremainder, not 'up'"),
        ("train[:5%]+train[5%:](pct1_dropremainder)", "percents of different rounding cannot be added"),
        ("train[:101%]", "'train[:101%]' goes beyond 100 percent"),
        ("", "'' is not of the form train, train[10:20] or train[:10%]"),
    ],
)
def test_a_split_that_is_none(expression: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_split(expression)
    assert str(caught.value) == message


def test_splits_of_more_rows() -> None:
    assert parse_split("all") == (("all", None, None, False, False),)
    pieces = parse_split("train[:33%](pct1_dropremainder)")
    assert [resolve(piece, 250) for piece in pieces] == [(0, 66)]


def test_the_first_rows_only(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(10))
    assert numbers(plan(tmp_path, "a.jsonl", 3)) == [0, 1, 2]
    assert numbers(plan(tmp_path, "a.jsonl", 3, split="train[7:9]+train[:5]")) == [7, 8, 0]
    assert numbers(plan(tmp_path, "a.jsonl", 30)) == list(range(10))
    assert len(numbers(plan(tmp_path, "a.jsonl", 3, num_samples=5))) == 10  # nobody knows which three


def test_a_folder_is_read_in_the_order_of_listdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "a.jsonl").write_text(lines(2))
    (folder / "b.json").write_text(json.dumps([{"n": 2}, {"n": 3}]))
    monkeypatch.setattr(os, "listdir", lambda path: ["b.json", "a.jsonl"])
    found = plan(tmp_path, "parts")
    assert [(file, number, row["n"]) for file, _, number, row in rows_of(found)] == [
        ("b.json", 0, 2), ("b.json", 1, 3), ("a.jsonl", 2, 0), ("a.jsonl", 3, 1),
    ]  # fmt: skip
    assert sum(block.size for block in found.blocks) == 18 + len('{"n": 2}, {"n": 3}')


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('n,text\n0,"a ""b""\nc"\n\n1,\n')
    assert rows_of(plan(tmp_path, "a.csv", split="train[:2]")) == [
        ("a.csv", 3, 0, {"n": "0", "text": 'a "b"\nc'}), ("a.csv", 5, 1, {"n": "1", "text": None}),
    ]  # fmt: skip
    parquet = pytest.importorskip("pyarrow.parquet")
    table = importlib.import_module("pyarrow").table({"n": list(range(5)), "text": ["x"] * 5})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert rows_of(plan(tmp_path, "a.parquet", split="train[1:4]")) == [
        ("a.parquet", number + 1, number, {"n": number, "text": "x"}) for number in (1, 2, 3)
    ]


def test_what_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.parquet").write_text("x")
    monkeypatch.setattr(reader, "has_pyarrow", lambda: False)
    for kind, name in (("text", "a.txt"), ("parquet", "a.parquet")):
        note = Problem(WHERE, f"{name}: rows of type {kind} were not looked at", level="note")
        assert plan(tmp_path, name) == RowPlan((tmp_path / name,), (), 0, 0, (note,))
    note = Problem(WHERE, "org/data: is not a file here and was not looked at", level="note")
    assert plan_rows(tmp_path, entry_of("x", {"hf_hub_url": "org/data"})) == RowPlan((), (), 0, 0, (note,))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.json", "missing.json: no such file or folder"),
        ("hollow", "hollow: the folder is empty"),
        ("nested", "x.json: not a type that the trainer reads"),
        ("a.yaml", "a.yaml: not a type that the trainer reads"),
        ("bad.csv", "bad.csv:1: cannot be read: 'utf-8' codec"),
        ("bad.parquet", "bad.parquet: is not parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "hollow").mkdir()
    (tmp_path / "nested" / "x.json").mkdir(parents=True)
    (tmp_path / "a.yaml").write_text("x")
    (tmp_path / "bad.csv").write_bytes(b"a,b\n\xff,1\n")
    (tmp_path / "bad.parquet").write_bytes(b"x")
    with pytest.raises(InputError) as caught:
        plan(tmp_path, name)
    assert message in caught.value.message


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *words: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.jsonl").write_text("1\n")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read: Permission denied"):
        plan(tmp_path, "a.jsonl")


def test_twenty_thousand_ranges_are_planned_quickly(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(60_000))
    split = "+".join(f"train[{start}:{start + 1}]" for start in range(0, 60_000, 3))
    start = time.perf_counter()
    found = plan(tmp_path, "a.jsonl", split=split)
    assert time.perf_counter() - start < 2
    assert numbers(found) == list(range(0, 60_000, 3))


def random_spec(rng: random.Random) -> str:
    def bound() -> str:
        return rng.choice(["", "", str(rng.randint(-130, 230)), f"{rng.randint(-110, 110)}%", "1_0", "_", "-", "5.5"])

    def piece() -> str:
        rounding = rng.choice([""] * 8 + ["(closest)", "(pct1_dropremainder)", "(up)", "()"])
        return rng.choice([f"train[{bound()}:{bound()}]{rounding}"] * 9 + ["train", "test", "train[5]", ""])

    return rng.choice(["+", " + ", "+ "]).join(piece() for _ in range(rng.choice((1, 1, 1, 2, 3))))


def our_ranges(spec: str, num_rows: int) -> list[list[int]] | None:
    try:
        return [list(resolve(piece, num_rows)) for piece in parse_split(spec)]
    except ValueError:
        return None


LOADS = [
    ("a.jsonl", "train"), ("a.jsonl", "train[7:]+train[:2]"), ("a.jsonl", "train[1:3]+train[2:4]"),
    ("a.jsonl", "train[-3:]+train[:25%]"), ("a.jsonl", "train[5:2]"), ("a.jsonl", "train[20:]"), ("a.jsonl", "all"),
    ("a.json", "train[3:]"), ("a.csv", "train[1:]"), ("a.parquet", "train[2:4]"), ("parts", "train[1:9]"),
    ("parts", "train"),
]  # fmt: skip


@pytest.mark.slow
def test_the_datasets_library_takes_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n \n" + lines(10).replace("\n", "\r\n\n"))
    (tmp_path / "a.json").write_text(json.dumps([{"n": number} for number in range(10)], indent=2))
    (tmp_path / "a.csv").write_text("n\n" + "\n".join(map(str, range(5))))
    table = importlib.import_module("pyarrow").table({"n": list(range(5))})
    importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "parts").mkdir()
    for name, start in (("c.jsonl", 0), ("a.jsonl", 4), ("b.jsonl", 8)):
        (tmp_path / "parts" / name).write_text(lines(4, start))
    rng = random.Random(0)
    specs = [(random_spec(rng), rng.choice((7, 100, 207))) for _ in range(3000)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    asked = json.dumps({"folder": str(tmp_path), "specs": specs, "loads": LOADS})
    done = subprocess.run([sys.executable, str(PROGRAM)], input=asked, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    wrong = [(spec, found) for spec, found in zip(specs, theirs["ranges"], strict=True) if our_ranges(*spec) != found]
    assert wrong == []
    for (path, split), found in zip(LOADS, theirs["loads"], strict=True):
        ours = [int(row["n"]) for *_, row in rows_of(plan(tmp_path, path, split=split))]
        assert (path, split, ours) == (path, split, found or [])
    assert sum(found is not None for found in theirs["ranges"]) > 400
