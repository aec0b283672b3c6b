"""Properties of `convert` as a function; what it says on the command line is in tests/cli/test_convert.py."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit import lines
from trainkit.cli import main
from trainkit.dataset import engine
from trainkit.dataset import write as dataset_write
from trainkit.dataset.batches import Ledger
from trainkit.dataset.check import check_datasets
from trainkit.dataset.registry import load_registry
from trainkit.errors import InputError, TrainkitError, UsageProblem
from trainkit.workflow.convert import ConvertOptions, ConvertResult, convert

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ALL_TASKS = 1 << 62
KINDS = {"clip", "category", "final"}
FOREIGN = {"mine": {"file_name": "mine.json", "note": "任\u2028", "values": [1, 2.5, None]}}


def evaluation(number: int, kind: str = "clip", judge: str = "deepseek-chat", task: str = "qa_0") -> dict[str, Any]:
    metadata = {"evaluation_type": kind, "model_name": judge, "task_id": task, "category": None}
    turns = [{"from": "human", "value": f"<{number}>"}, {"from": "gpt", "value": f'{{"score": {number}}}'}]
    return {"conversations": turns, "metadata": metadata}


def write(path: Path, records: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def mixed(count: int) -> list[dict[str, Any]]:
    """Rows of three types, three judges and seven tasks in no simple order."""
    kinds, judges = ("final", "clip", "category"), ("kimi-k2", "a.b", "a-b")
    return [
        evaluation(n, kinds[n * 7 % 11 % 3], judges[n * 5 % 13 % 3], f"task {n * 3 % 17 % 7}") for n in range(count)
    ]


def number_of(line: bytes) -> int:
    """The number of the evaluation that a row was made of."""
    return int(json.loads(line)["conversations"][0]["value"].split("<")[1].split(">")[0])


def lines_of(path: Path) -> list[bytes]:
    content = path.read_bytes()
    assert content.endswith(b"}\n")
    return content.split(b"\n")[:-1]


def ranges_of(data: Path, name: str) -> list[tuple[int, int]]:
    """The ranges of rows that an entry names: rising, apart, and none when it is all rows of its file."""
    split = load_registry(data)[name].get("split")
    if split is None:
        return []
    ranges = [(int(start), int(stop)) for start, stop in re.findall(r"train\[(\d+):(\d+)\]", split)]
    assert split == "+".join(f"train[{start}:{stop}]" for start, stop in ranges)
    flat = [bound for pair in ranges for bound in pair]
    assert flat == sorted(set(flat))
    return ranges


def selected(data: Path, name: str) -> list[bytes]:
    """The rows that the trainer takes for an entry."""
    held = lines_of(data / load_registry(data)[name]["file_name"])
    ranges = ranges_of(data, name) or [(0, len(held))]
    assert ranges[-1][1] <= len(held)
    return [held[number] for start, stop in ranges for number in range(start, stop)]


def view(data: Path, name: str) -> list[int]:
    return sorted(map(number_of, selected(data, name)))


def views(data: Path) -> dict[str, list[int]]:
    """Every registered entry with the evaluations that are in it."""
    return {name: view(data, name) for name in load_registry(data) if name not in FOREIGN}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".trainkit.lock"
    }


def check_whole(result: ConvertResult, data: Path) -> None:
    """Check that the registry, the files, the manifest and the report say the same, and that each row is there once."""
    found = views(data)
    assert {name: len(numbers) for name, numbers in found.items()} == {v.name: v.num_rows for v in result.variants}
    assert result.folder is not None
    files = {path.name: lines_of(path) for path in result.folder.glob("*.jsonl")}
    everything = [number_of(line) for held in files.values() for line in held]
    assert len(set(everything)) == len(everything) == result.num_rows
    assert set(files) == {f"{variant.side}.jsonl" for variant in result.variants}
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["files"] == {
        name: {"rows": len(held), "bytes": (result.folder / name).stat().st_size} for name, held in files.items()
    }
    assert manifest["variants"] == {v.name: {"rows": v.num_rows, "side": v.side} for v in result.variants}
    for variant in result.variants:
        entry = load_registry(data)[variant.name]
        name = f"{variant.side}.jsonl"
        assert entry["file_name"] == f"{result.folder.name}/{name}"
        assert ("split" in entry) == (variant.num_rows < len(files[name]))
        assert variant.ranges == tuple(ranges_of(data, variant.name) or [(0, len(files[name]))])
    assert check_datasets(data, found, "dataset") == []


def runs_of(chosen: list[bool]) -> list[tuple[int, int]]:
    """The longest runs of True; none when all are."""
    edges = [n for n, (one, other) in enumerate(zip([False, *chosen], [*chosen, False], strict=True)) if one != other]
    return [] if all(chosen) else list(zip(edges[::2], edges[1::2], strict=True))


def check_ranges(data: Path, tasks: dict[str, str]) -> None:
    """Check the ranges of every entry against what the metadata of the rows of its file say.

    `tasks` are the variants of single tasks: name -> task.
    """
    for name, entry in load_registry(data).items():
        if name in FOREIGN:
            continue
        value = name.removesuffix("_eval").removeprefix("reward_model_")
        key = "task_id" if value in tasks else "evaluation_type" if value in KINDS else "model_name"
        held = [json.loads(json.loads(line)["metadata"]) for line in lines_of(data / entry["file_name"])]
        wanted = [value == "full" or metadata[key] == tasks.get(value, value) for metadata in held]
        assert ranges_of(data, name) == runs_of(wanted)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing takes most of the time of a small conversion, and no power fails here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 3000)
    monkeypatch.setattr(engine, "BYTES_PER_WORKER", 6000)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An output folder with somebody else's entry and a first conversion of four rows."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset_info.json").write_text(json.dumps(FOREIGN))
    convert([write(tmp_path / "old.jsonl", mixed(4))], folder, ConvertOptions())
    return folder


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("jobs", [1, 3])
def test_progress_ends_at_the_size_of_the_input(tmp_path: Path, jobs: int) -> None:
    plain = write(tmp_path / "a.jsonl", mixed(150))
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes().replace(b"<", b"<1000")))
    calls: list[tuple[int, int | None]] = []
    convert([packed, plain], tmp_path / "data", ConvertOptions(jobs=jobs), lambda *call: calls.append(call))
    total = plain.stat().st_size + packed.stat().st_size
    assert calls == sorted(calls)
    assert len(calls) > 6
    assert (calls[-1], {call[1] for call in calls}) == ((total, total), {total})


# -- which rows are in which variant


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["clip", "final", ""]), st.sampled_from("ab"), st.integers(0, 6)), min_size=1),
    st.integers(0, 7),
    st.sampled_from([300, 900, 1 << 20]),
    st.sampled_from(["jsonl", "json", "gz"]),
)
def test_every_variant_holds_exactly_its_rows(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[tuple[str, str, int]], by_task: int, block: int, form: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    records = [evaluation(n, kind, judge, f"t{task}" if task else "") for n, (kind, judge, task) in enumerate(chosen)]
    path = write(folder / "in.jsonl", records)
    if form == "json":
        path.write_text(json.dumps(records, indent=1))
    elif form == "gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block)
        result = convert([path], folder / "data", ConvertOptions(by_task=by_task))
    check_whole(result, folder / "data")
    tasks = {task for _, _, task in chosen if task}
    expected = {"reward_model_full": list(range(len(chosen)))}
    for position, values in enumerate([{"clip", "final"}, {"a", "b"}, tasks if len(tasks) <= by_task else set()]):
        for value in values:
            found = [n for n, row in enumerate(chosen) if row[position] == value]
            name = f"reward_model_{'t' if position == 2 else ''}{value}"
            expected |= {name: found} if found else {}
    assert views(folder / "data") == expected
    check_ranges(folder / "data", {f"t{task}": f"t{task}" for task in tasks})


@pytest.mark.parametrize(
    ("num_tasks", "by_task", "variants"), [(20, 20, 20), (21, 20, 0), (21, 21, 21), (21, ALL_TASKS, 21), (5, 0, 0)]
)
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.usefixtures("small_blocks")
def test_tasks_that_appear_late(tmp_path: Path, num_tasks: int, by_task: int, variants: int, jobs: int) -> None:
    # the last task is met after many blocks in which tasks were kept apart
    records = [evaluation(n, ("clip", "final")[n % 2], task=f"t{n % (num_tasks - 1)}") for n in range(200)]
    records += [evaluation(n, task=f"t{num_tasks - 1}") for n in range(200, 210)]
    path = write(tmp_path / "in.jsonl", [*records, evaluation(210, task="")])
    result = convert([path], tmp_path / "data", ConvertOptions(by_task=by_task, jobs=jobs))
    check_whole(result, tmp_path / "data")
    found = views(tmp_path / "data")
    by_name = {name: numbers for name, numbers in found.items() if name.startswith("reward_model_t")}
    assert len(by_name) == variants
    if variants:
        assert by_name[f"reward_model_t{num_tasks - 1}"] == list(range(200, 210))
        assert by_name["reward_model_t1"] == [n for n in range(200) if n % (num_tasks - 1) == 1]
    assert found["reward_model_full"] == list(range(211))
    check_ranges(tmp_path / "data", {f"t{n}": f"t{n}" for n in range(num_tasks)})


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("num_tasks", "by_task"), [(150, 20), (150, ALL_TASKS), (7, 20), (7, 0)])
def test_a_variant_is_few_ranges(tmp_path: Path, num_tasks: int, by_task: int) -> None:
    # in the first case each block has few tasks, and all of them together have many
    chosen = [
        evaluation(n, ("clip", "final")[n % 2], ("a", "b")[n // 3 % 2], f"t{n * num_tasks // 300:03}")
        for n in range(300)
    ]
    path = write(tmp_path / "in.jsonl", chosen)
    result = convert([path], tmp_path / "data", ConvertOptions(by_task=by_task))
    check_whole(result, tmp_path / "data")
    check_ranges(tmp_path / "data", {f"t{n:03}": f"t{n:03}" for n in range(num_tasks)})
    blocks = len(lines.plan_blocks(lines.open_sources([path])))
    assert blocks > 10
    counts = {variant.name: len(variant.ranges) for variant in result.variants}
    assert counts.pop("reward_model_full") == 1
    assert max(counts.pop(f"reward_model_{kind}") for kind in ("clip", "final")) <= blocks
    assert max(counts.pop(f"reward_model_{judge}") for judge in ("a", "b")) <= 2 * blocks
    assert len(counts) == (num_tasks if by_task >= num_tasks else 0)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("min_samples", [5, 201])
def test_a_dry_run_counts_what_a_conversion_writes(tmp_path: Path, jobs: int, min_samples: int) -> None:
    path = write(tmp_path / "in.jsonl", mixed(200))
    options = ConvertOptions(eval_ratio=0.4, jobs=jobs, min_samples=min_samples)
    counted = convert([path], tmp_path / "data", dataclasses.replace(options, dry_run=True))
    assert not (tmp_path / "data").exists()
    written = convert([path], tmp_path / "data", options)
    assert dataclasses.replace(written, folder=None) == counted


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_single_data_set_has_no_ranges(tmp_path: Path, jobs: int) -> None:
    path = write(tmp_path / "in.jsonl", mixed(200))
    options = ConvertOptions(name="own", eval_ratio=0.4, jobs=jobs)
    check_whole(convert([path], tmp_path / "data", options), tmp_path / "data")
    filtered = ConvertOptions(filters={"model_name": frozenset({"a.b"})}, jobs=jobs)
    check_whole(convert([path], tmp_path / "other", filtered), tmp_path / "other")
    for data, names in (("data", ["own", "own_eval"]), ("other", ["reward_model_custom"])):
        assert {name: ranges_of(tmp_path / data, name) for name in load_registry(tmp_path / data)} == {
            name: [] for name in names
        }


def test_long_task_names(tmp_path: Path) -> None:
    tasks = ["任" * 400, "任" * 400 + "x", "q" * 5000]
    path = write(tmp_path / "in.jsonl", [evaluation(n, task=task) for n, task in enumerate(tasks)])
    result = convert([path], tmp_path / "data", ConvertOptions())
    check_whole(result, tmp_path / "data")
    assert sorted(view(tmp_path / "data", variant.name) for variant in result.variants[-3:]) == [[0], [1], [2]]


# -- the same input gives the same bytes


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("options", [{}, {"eval_ratio": 0.3}, {"eval_ratio": 0.3, "group_by": None}, {"by_task": 3}])
def test_the_bytes_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    first = write(tmp_path / "a.jsonl", [*mixed(100), {"conversations": []}, *mixed(130)[100:]])
    first.write_bytes(b"\xef\xbb\xbf\n" + first.read_bytes())
    second = write(tmp_path / "b.jsonl", ["not an object", *mixed(200)[130:]])
    workers = []
    real = engine.convert_with_workers
    monkeypatch.setattr(engine, "convert_with_workers", lambda *args: (workers.append(args[2]), real(*args)))
    trees = []
    for jobs in (1, 2, 3, 99, 2):
        data = tmp_path / f"data{jobs}"
        result = convert([first, second], data, ConvertOptions(jobs=jobs, max_rejects=0.1, **options))
        check_whole(result, data)
        trees.append(tree(data))
    assert all(found == trees[0] for found in trees)
    assert workers[:2] == [2, 3]
    assert workers[2] > 3
    rejected = [json.loads(line) for line in trees[0]["rejected.jsonl"].splitlines()]
    assert [(Path(row["file"]).name, row["line"], row["reason"]) for row in rejected] == [
        ("a.jsonl", 102, "no answer"),
        ("b.jsonl", 1, "not an object"),
    ]


def test_an_edited_file_is_not_trusted(tmp_path: Path) -> None:
    path, data = write(tmp_path / "in.jsonl", mixed(20)), tmp_path / "data"
    result = convert([path], data, ConvertOptions())
    before = tree(data)
    assert result.folder is not None
    file = result.folder / "train.jsonl"
    file.write_text(file.read_text().replace("score", "scare", 1))
    edited = convert([path], data, ConvertOptions())
    check_whole(edited, data)
    assert b"scare" not in b"".join(tree(data).values())
    assert [folder.name for folder in data.iterdir() if folder.is_dir()] == [edited.folder and edited.folder.name]
    convert([path], data, ConvertOptions())
    assert tree(data) == before


def test_a_folder_with_another_file_in_it_is_not_trusted(tmp_path: Path) -> None:
    path, data = write(tmp_path / "in.jsonl", mixed(20)), tmp_path / "data"
    folder = convert([path], data, ConvertOptions()).folder
    assert folder is not None
    (folder / "mine.txt").write_text("")
    again = convert([path], data, ConvertOptions())
    check_whole(again, data)
    assert [found for found in data.iterdir() if found.is_dir()] == [again.folder]
    assert again.folder != folder


def test_other_content_is_another_folder(tmp_path: Path) -> None:
    folders = set()
    for records in (mixed(20), mixed(21), mixed(20)[::-1]):
        folders.add(convert([write(tmp_path / "in.jsonl", records)], tmp_path / "data", ConvertOptions()).folder)
    folders.add(convert([tmp_path / "in.jsonl"], tmp_path / "data", ConvertOptions(form=())).folder)
    assert len(folders) == 4
    assert [path for path in (tmp_path / "data").iterdir() if path.is_dir()] == [
        convert([tmp_path / "in.jsonl"], tmp_path / "data", ConvertOptions(form=())).folder
    ]


# -- the split


def sides(found: dict[str, list[int]]) -> dict[int, set[str]]:
    """The sides on which each evaluation was seen, over all variants."""
    seen: dict[int, set[str]] = {}
    for name, numbers in found.items():
        for number in numbers:
            seen.setdefault(number, set()).add("eval" if name.endswith("_eval") else "train")
    return seen


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["clip", "final"]), st.sampled_from("ab"), st.integers(0, 9)), min_size=4),
    st.lists(st.tuples(st.sampled_from(["clip", "final"]), st.sampled_from("ab"), st.integers(0, 12)), max_size=20),
    st.floats(0.05, 0.95),
    st.integers(0, 5),
    st.sampled_from(["task_id", None]),
)
def test_the_split(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, int]],
    more: list[tuple[str, str, int]],
    ratio: float,
    seed: int,
    group_by: str | None,
) -> None:
    folder = tmp_path_factory.mktemp("split")
    options = ConvertOptions(eval_ratio=ratio, seed=seed, group_by=group_by, min_samples=2)
    seen = []
    for given_rows in (rows, rows + more):
        records = [evaluation(n, kind, judge, f"t{task}") for n, (kind, judge, task) in enumerate(given_rows)]
        result = convert([write(folder / "in.jsonl", records)], folder / "data", options)
        check_whole(result, folder / "data")
        found = views(folder / "data")
        whole = found["reward_model_full"] + found.get("reward_model_full_eval", [])
        assert sorted(whole) == list(range(len(given_rows)))
        side = sides(found)
        assert all(len(where) == 1 for where in side.values())  # the same in every variant
        if group_by:
            by_task: dict[int, set[str]] = {}
            for number, (_, _, task) in enumerate(given_rows):
                by_task.setdefault(task, set()).update(side[number])
            assert all(len(where) == 1 for where in by_task.values())
        check_ranges(folder / "data", {f"t{n}": f"t{n}" for n in range(13)})
        undone = any(note.startswith("no eval split: ") for note in result.notes)
        assert undone == ("reward_model_full_eval" not in found)
        seen.append(None if undone else side)
    if seen[0] and seen[1]:  # more data moves no row
        assert {number: seen[1][number] for number in seen[0]} == seen[0]


@pytest.mark.parametrize("group_by", ["task_id", None])
def test_the_share_of_eval_rows(tmp_path: Path, group_by: str | None) -> None:
    path = write(tmp_path / "in.jsonl", [evaluation(n, task=f"t{n // 2}") for n in range(4000)])
    convert([path], tmp_path / "data", ConvertOptions(eval_ratio=0.15, group_by=group_by))
    found = views(tmp_path / "data")
    assert len(found["reward_model_full_eval"]) / 4000 == pytest.approx(0.15, abs=0.025)
    assert {name.removesuffix("_eval") for name in found} == {
        "reward_model_full", "reward_model_clip", "reward_model_deepseek_chat"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "options", "note"),
    [
        (4, {}, "no eval split: 4 rows are fewer than --min-samples 5; all rows are for training"),
        (50, {"eval_ratio": 1e-9}, "no eval split: every task_id is on the same side, as there are too few of them; "
         "all rows are for training"),
        (50, {"eval_ratio": 0.9999999}, "no eval split: every task_id is on the same side, as there are too few of "
         "them; all rows are for training"),
        (50, {"eval_ratio": 1e-9, "group_by": None}, "no eval split: every row is on the same side, as there are too "
         "few of them; all rows are for training"),
        (6, {"seed": 1, "group_by": None, "min_samples": 2, "eval_ratio": 0.0}, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_split_that_comes_to_nothing_is_undone(
    tmp_path: Path, rows: int, options: dict[str, Any], note: str | None, dry_run: bool
) -> None:
    path = write(tmp_path / "in.jsonl", mixed(rows))
    result = convert([path], tmp_path / "data", ConvertOptions(dry_run=dry_run, **{"eval_ratio": 0.5} | options))
    assert result.notes == ([note] if note else [])
    assert {variant.side for variant in result.variants} == {"train"}
    assert result.variants[0].num_rows == rows
    if not dry_run:
        check_whole(result, tmp_path / "data")
        assert result.folder is not None
        assert [path.name for path in result.folder.glob("*.jsonl")] == ["train.jsonl"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("by_task", [0, 20])
def test_too_few_rows_with_both_sides_are_put_together(tmp_path: Path, by_task: int, jobs: int) -> None:
    # eval comes behind train in the one file that there is, and the ranges with it
    path, data = write(tmp_path / "in.jsonl", mixed(150)), tmp_path / "data"
    split = convert([path], data, ConvertOptions(eval_ratio=0.5, by_task=by_task, jobs=jobs))
    assert split.folder is not None
    behind = [(split.folder / f"{side}.jsonl").read_bytes() for side in ("train", "eval")]
    assert all(behind)
    result = convert([path], data, ConvertOptions(eval_ratio=0.5, min_samples=151, by_task=by_task, jobs=jobs))
    check_whole(result, data)
    assert result.notes == ["no eval split: 150 rows are fewer than --min-samples 151; all rows are for training"]
    assert result.folder is not None
    assert sorted(path.name for path in result.folder.iterdir()) == ["manifest.json", "train.jsonl"]
    assert (result.folder / "train.jsonl").read_bytes() == b"".join(behind)
    records = mixed(150)

    def numbers(key: str, value: str) -> list[int]:
        return [n for n, record in enumerate(records) if record["metadata"][key] == value]

    found = views(data)
    assert found.pop("reward_model_full") == list(range(150))
    for kind in KINDS:
        assert found.pop(f"reward_model_{kind}") == numbers("evaluation_type", kind)
    assert found.pop("reward_model_kimi_k2") == numbers("model_name", "kimi-k2")
    for n in range(7 if by_task else 0):
        assert found.pop(f"reward_model_task_{n}") == numbers("task_id", f"task {n}")
    assert sorted(found.values()) == sorted(numbers("model_name", judge) for judge in ("a.b", "a-b"))


# -- all or nothing


def at_call(limit: int, names: Iterable[str], act: Callable[[], None], *, after: bool) -> pytest.MonkeyPatch:
    """Let `act` happen before, or after, the limit-th call of any of the named functions of `os`."""
    patch, calls = pytest.MonkeyPatch(), 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            mine = calls
            if mine == limit and not after:
                act()
            try:
                return real(*args, **kwargs)
            finally:
                if mine == limit and after:
                    act()

        return call

    for name in names:
        patch.setattr(os, name, counted(getattr(os, name)))
    return patch


def in_child(work: Callable[[], None]) -> tuple[int, int]:
    """Do the work in a fork of this process, with a process group of its own; return how it ended."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)


def wait_for_the_end_of_group(group: int) -> None:
    """Wait until no process of the group lives; the dead that nobody has asked for do not count."""
    deadline = time.monotonic() + 10
    while any(is_alive_in(process, group) for process in psutil.process_iter()):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.01)


def is_alive_in(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


OPTIONS = ConvertOptions(max_rejects=1.0, eval_ratio=0.4, group_by=None, by_task=0)
FOLDED = dataclasses.replace(OPTIONS, min_samples=13)  # the eval side is put behind the train side
NEW = [*mixed(12), {"conversations": []}]
CALLS = ("open", "pwrite", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


@pytest.mark.parametrize("options", [OPTIONS, FOLDED], ids=["split", "folded"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, options: ConvertOptions
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 300)
    new = write(tmp_path / "new.jsonl", NEW)
    convert([tmp_path / "old.jsonl"], data, ConvertOptions())
    old_views, old_tree = views(data), tree(data)
    convert([new], tmp_path / "other", options)
    new_views, new_tree = views(tmp_path / "other"), tree(tmp_path / "other")
    seen = Counter[str]()
    for limit in range(1, 1000):
        convert([tmp_path / "old.jsonl"], data, ConvertOptions())
        assert tree(data) == old_tree

        def work(limit: int = limit) -> None:
            at_call(limit, CALLS, die, after=False)
            convert([new], data, options)

        _, status = in_child(work)
        found = views(data)
        assert found in (old_views, new_views)
        seen["old" if found == old_views else "new"] += 1
        assert load_registry(data)["mine"] == FOREIGN["mine"]
        convert([new], data, options)
        assert tree(data) == {**new_tree, "dataset_info.json": (data / "dataset_info.json").read_bytes()}
        assert views(data) == new_views
        if status == 0:
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert seen["old"] > 40, seen
    assert seen["new"] > 5, seen


@pytest.mark.parametrize("after", [False, True])
def test_ctrl_c_at_any_moment_leaves_nothing_behind(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], after: bool
) -> None:
    new = write(tmp_path / "new.jsonl", NEW)
    old_views, clean = views(data), tree(data)
    words = ["convert", str(new), "-o", str(data), "--max-rejects", "1", "--split-eval", "--by-task", "none"]

    def interrupt() -> None:
        raise KeyboardInterrupt

    for limit in range(1, 1000):
        patch = at_call(limit, ("pwrite", "fsync", "rename", "replace", "mkdir"), interrupt, after=after)
        try:
            code = main(words)
        finally:
            patch.undo()
        folders = [path for path in data.iterdir() if path.is_dir()]
        assert len(folders) == 1
        assert not list(data.glob(".*.tmp"))
        if code == 0:
            break
        assert (code, capsys.readouterr().out) == (130, "")
        if views(data) == old_views:
            assert {name: text for name, text in tree(data).items() if name != "rejected.jsonl"} == clean
        else:
            (data / "rejected.jsonl").unlink()
            convert([tmp_path / "old.jsonl"], data, ConvertOptions())
    assert limit > 20
    assert views(data) != old_views


@pytest.mark.usefixtures("small_blocks")
def test_the_workers_of_a_killed_process_end_and_give_the_lock_back(tmp_path: Path, data: Path) -> None:
    new, old_views = write(tmp_path / "new.jsonl", mixed(200)), views(data)
    for limit in (1, 2, 5, 8):

        def work(limit: int = limit) -> None:
            real, calls = Ledger.place, 0

            def place(*args: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == limit:
                    die()
                return real(*args)

            Ledger.place = place
            convert([new], data, ConvertOptions(jobs=3))

        pid, status = in_child(work)
        try:
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
            assert views(data) == old_views
            check_whole(convert([new], data, ConvertOptions()), data)  # at once, while workers may still be writing
            wait_for_the_end_of_group(pid)
            convert([tmp_path / "old.jsonl"], data, ConvertOptions())
            assert (views(data), list(data.glob(".trainkit-staging*"))) == (old_views, [])
        finally:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("limit", [1, 4])
def test_a_worker_that_is_killed(tmp_path: Path, data: Path, limit: int) -> None:
    new, before = write(tmp_path / "new.jsonl", mixed(200)), tree(data)
    parent = os.getpid()

    def die_in_worker() -> None:
        if os.getpid() != parent:
            die()

    patch = at_call(limit, ["pwrite"], die_in_worker, after=False)
    try:
        with pytest.raises(TrainkitError, match=r"^a worker process was killed$"):
            convert([new], data, ConvertOptions(jobs=2))
    finally:
        patch.undo()
    assert tree(data) == before


SIGNALLED = """
import os, signal, sys
from trainkit import lines
from trainkit.cli import main
from trainkit.dataset import engine
from trainkit.dataset.batches import Ledger
from trainkit.dataset.check import check_datasets

signal.signal(signal.SIGINT, signal.default_int_handler)  # the test may itself run in the background
lines.BLOCK_BYTES, engine.BYTES_PER_WORKER = 3000, 6000
real, calls = Ledger.place, []

def place(*args):
    calls.append(1)
    if len(calls) == 5:
        os.killpg(0, int(sys.argv[1]))
    return real(*args)

Ledger.place = place
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_reaches_everyone(tmp_path: Path, data: Path, jobs: str) -> None:
    new, before = write(tmp_path / "new.jsonl", mixed(200)), tree(data)
    words = ["convert", str(new), "-o", str(data), "--jobs", jobs]
    argv = [sys.executable, "-c", SIGNALLED, str(int(signal.SIGINT)), *words]
    done = subprocess.run(argv, capture_output=True, text=True, start_new_session=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr
    assert tree(data) == before
    assert not list(data.glob(".trainkit-staging*"))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(("call", "limit"), [("pwrite", 1), ("pwrite", 7), ("replace", 1), ("rename", 1), ("mkdir", 3)])
def test_a_full_disk(tmp_path: Path, data: Path, call: str, limit: int, jobs: int) -> None:
    new, before = write(tmp_path / "new.jsonl", mixed(200)), tree(data)

    def full() -> None:
        raise OSError(28, "No space left on device")

    patch = at_call(limit, [call], full, after=False)
    try:
        with pytest.raises(TrainkitError, match=r": No space left on device$") as caught:
            convert([new], data, ConvertOptions(jobs=jobs))
    finally:
        patch.undo()
    assert "The data set of before is untouched" in caught.value.hint or call == "pwrite"
    assert str(data) in caught.value.message
    assert tree(data) == before


def test_a_full_disk_while_rejected_rows_are_written(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, before = write(tmp_path / "new.jsonl", NEW), tree(data)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainkitError, match=r": No space left on device$"):
        convert([new], data, OPTIONS)
    assert tree(data) == before


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_flushed_on_the_way(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    new, before, flushed = write(tmp_path / "new.jsonl", mixed(200)), tree(data), []

    def fsync(descriptor: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            flushed.append(descriptor)
            if fails:  # the system tells of this once, and not when the same file is flushed again
                raise OSError(5, "Input/output error")

    real = Ledger.place
    monkeypatch.setattr(Ledger, "place", lambda *args: (time.sleep(0.01), real(*args))[1])
    monkeypatch.setattr(dataset_write, "FLUSH_SECONDS", 0.001)
    monkeypatch.setattr(os, "fsync", fsync)
    if fails:
        with pytest.raises(TrainkitError, match=r": Input/output error$"):
            convert([new], data, ConvertOptions(jobs=2))
        assert tree(data) == before
    else:
        check_whole(convert([new], data, ConvertOptions(jobs=2)), data)
    assert flushed


# -- the folder belongs to others too


def test_entries_of_others_stay(data: Path, tmp_path: Path) -> None:
    for options in (ConvertOptions(), ConvertOptions(name="own-name"), ConvertOptions(by_task=0)):
        convert([tmp_path / "old.jsonl"], data, options)
        assert load_registry(data)["mine"] == FOREIGN["mine"]
    assert {"own-name", "reward_model_full"} < set(load_registry(data))
    assert view(data, "own-name") == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_a_broken_registry_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    path, data = write(tmp_path / "in.jsonl", mixed(9)), tmp_path / "data"
    data.mkdir()
    (data / "dataset_info.json").write_text(text)
    with pytest.raises(InputError, match=r"dataset_info\.json"):
        convert([path], data, ConvertOptions())
    assert tree(data) == {"dataset_info.json": text.encode()}


def test_a_name_of_somebody_else(tmp_path: Path, data: Path) -> None:
    before = tree(data)
    with pytest.raises(InputError, match=r"dataset_info\.json: mine: already there"):
        convert([tmp_path / "old.jsonl"], data, ConvertOptions(name="mine"))
    with pytest.raises(InputError, match=r"dataset_info\.json: reward_model_full: already there"):
        convert([tmp_path / "old.jsonl"], data, ConvertOptions(name="reward_model_full"))
    with pytest.raises(UsageProblem, match=r"^--name reward_model: is the name of all variants together$"):
        convert([tmp_path / "old.jsonl"], data, ConvertOptions(name="reward_model"))
    assert tree(data) == before


def test_the_lock(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    before = tree(data)
    real = filelock.FileLock
    monkeypatch.setattr(filelock, "FileLock", lambda path, timeout: real(path, timeout=timeout / 100))
    held = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire();"
        "print('held', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", held, str(data / ".trainkit.lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(TrainkitError, match=r": another trainkit process is writing here$"):
            convert([tmp_path / "old.jsonl"], data, ConvertOptions())
        convert([tmp_path / "old.jsonl"], data, ConvertOptions(dry_run=True))
        holder.communicate()
    assert tree(data) == before
    convert([tmp_path / "old.jsonl"], data, ConvertOptions())


# -- memory

MEASURED = """
import resource, sys
from pathlib import Path
from trainkit.workflow.convert import ConvertOptions, convert

convert([Path(sys.argv[1])], Path(sys.argv[2]), ConvertOptions(eval_ratio=0.15, jobs=int(sys.argv[3])))
own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize(("form", "jobs"), [("jsonl", 1), ("jsonl", 2), ("json", 1), ("gz", 1)])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, form: str, jobs: int) -> None:
    peaks = []
    for megabytes in (8, 100):
        path = tmp_path / "in"
        with gzip.open(path, "wb", 1) if form == "gz" else path.open("wb") as file:
            for number in range(megabytes * 250):
                record = evaluation(number, ("clip", "final")[number % 2], task=f"t{number % 50}")
                record["conversations"][0]["value"] += f"{number:09d} " * 400
                begin = (b"[" if number == 0 else b",") if form == "json" else b""
                file.write(begin + json.dumps(record).encode() + b"\n")
            file.write(b"]" if form == "json" else b"")
        argv = [sys.executable, "-c", MEASURED, str(path), str(tmp_path / "data"), str(jobs)]
        peaks.append(int(subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout))
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 64 << 10
