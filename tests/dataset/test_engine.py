"""One worker, run in this process; whole conversions with several are in tests/workflow/test_convert.py."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from trainkit import lines
from trainkit.dataset.batches import Ledger, Recipe, convert_block, digest_of, report_of
from trainkit.dataset.engine import Job, receive, send, work, write_at
from trainkit.datatypes import Part, PartKey, Reject
from trainkit.errors import InputError, Rejected, TrainkitError
from trainkit.lines import find_source, plan_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ONE = PartKey("train", "one", "j", None)


def to_example(line: bytes) -> Any:
    if line.isspace():
        raise Rejected("not JSON", "")
    number = json.loads(line)
    if number < 0:
        raise Rejected("negative", str(number))
    return None if number == 0 else ("one", "j", "", b"g", b"<%d>" % number)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Put back what a worker changes in its process."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)
    gc.enable()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 4)
    path = tmp_path / "in.jsonl"
    path.write_text("1\n2\n-3\n0\n\n4\n")
    (tmp_path / "out").mkdir()
    recipe = Recipe(to_example, lambda group: "train", max_tasks=0)
    ledger = Ledger(0, lambda reject: None)
    return Job([find_source(path)], recipe, ledger, tmp_path / "out", lambda num_bytes: None)


def test_a_worker_reports_and_writes_where_it_is_told(job: Job, tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    parent, _other = multiprocessing.Pipe()
    for offset in (0, 6, 9):
        here.send({"train": offset})
    work(there, [parent], job, plan_blocks(job.sources))
    reports = [here.recv() for _ in range(4)]
    assert reports.pop() is None
    assert [(report.num_lines, report.filtered, report.rejects) for report in reports] == [
        (2, 0, []),
        (2, 1, [(1, "negative", "-3", b"-3\n")]),
        (2, 0, []),
    ]
    assert [(report.sizes, report.runs) for report in reports] == [
        ({"train": (6, digest_of(b"<1><2>"))}, [(ONE, 2)]),
        ({}, []),
        ({"train": (3, digest_of(b"<4>"))}, [(ONE, 1)]),
    ]
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == b"<1><2>\0\0\0<4>"
    assert parent.closed


def test_a_worker_whose_parent_is_gone_ends_without_a_word(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    here, there = multiprocessing.Pipe()
    work(there, [here], job, plan_blocks(job.sources))
    assert capfd.readouterr() == ("", "")


def test_a_worker_hands_its_error_to_the_parent(job: Job, tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    here.send({"train": 0})
    (tmp_path / "out").rmdir()
    work(there, [], job, plan_blocks(job.sources))
    receive(here)
    with pytest.raises(
        TrainkitError, match=r"out/train\.jsonl: cannot be written: No such file or directory$"
    ) as caught:
        receive(here)
    assert caught.value.hint == "the data set of before is untouched"


def test_an_error_keeps_its_fields_on_the_way() -> None:
    here, there = multiprocessing.Pipe()
    there.send(InputError("a.jsonl: no such file", "did you mean b.jsonl?"))
    with pytest.raises(InputError) as caught:
        receive(here)
    assert (caught.value.message, caught.value.hint) == ("a.jsonl: no such file", "did you mean b.jsonl?")
    there.close()
    for call in (lambda: receive(here), lambda: send(here, "x" * 10)):
        with pytest.raises(TrainkitError, match=r"^a worker process was killed$"):
            call()


def test_a_short_write_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, text, offset: real(descriptor, text[:3], offset))
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    write_at(descriptor, b"0123456789", 2)
    os.close(descriptor)
    assert path.read_bytes() == b"\0\x000123456789"


def test_lines_are_counted_over_the_blocks(job: Job) -> None:
    rejects: list[Reject] = []
    ledger = Ledger(0, rejects.append)
    places = [
        ledger.place(report_of(convert_block(job.sources[0], block, job.recipe), job.recipe), job.sources[0])
        for block in plan_blocks(job.sources)
    ]
    assert places == [{"train": 0}, {}, {"train": 6}]
    assert rejects == [Reject(job.sources[0].name, 3, "negative", "-3", b"-3\n")]
    assert (ledger.num_filtered, dict(ledger.reasons)) == (1, {"negative": 1})
    assert ledger.parts() == [Part(ONE, ((0, 3),))]
    assert (dict(ledger.num_rows), dict(ledger.num_bytes)) == ({"train": 3}, {"train": 9})
