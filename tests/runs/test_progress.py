from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.datatypes import Step
from trainkit.runs.progress import ProgressReader, describe, duration_seconds

if TYPE_CHECKING:
    from pathlib import Path

# rows as LLaMA-Factory 0.9.5 writes them
ROW = (
    '{"current_steps": 40, "total_steps": 120, "loss": 0.8123, "lr": 9.1e-05, "epoch": 1.0, "percentage": 33.33, '
    '"elapsed_time": "0:17:23", "remaining_time": "0:34:46"}\n'
)
LAST = '{"current_steps": 120, "total_steps": 120, "epoch": 3.0, "percentage": 100.0, "elapsed_time": "0:52:10", '
LAST += '"remaining_time": "0:00:00"}\n'
STEP = Step(40, 120, loss=0.8123, lr=9.1e-05, epoch=1.0, elapsed="0:17:23", remaining="0:34:46")


def test_rows_are_read_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "trainer_log.jsonl"
    reader = ProgressReader(path)
    assert reader.read_new() == []
    with path.open("w") as log:
        log.write(ROW + ROW[:30])
        log.flush()
        assert reader.read_new() == [STEP]
        assert reader.read_new() == []
        log.write(ROW[30:] + "killed her\n[]\n" + LAST)
    assert reader.read_new() == [STEP, Step(120, 120, epoch=3.0, elapsed="0:52:10", remaining="0:00:00")]


def test_a_resumed_run_skips_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "trainer_log.jsonl"
    path.write_text(LAST)
    reader = ProgressReader(path, from_end=True)
    with path.open("a") as log:
        log.write(ROW)
    assert reader.read_new() == [STEP]


def test_a_log_that_was_written_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "trainer_log.jsonl"
    path.write_text(LAST * 3)
    reader = ProgressReader(path, from_end=True)
    path.write_text(ROW)
    assert reader.read_new() == [STEP]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 100), st.text(max_size=5))), st.data())
def test_any_cutting_gives_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float, str]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "trainer_log.jsonl"
    names = ("current_steps", "loss", "note")
    lines = [json.dumps(dict(zip(names, row, strict=True), total_steps=9), ensure_ascii=False) for row in rows]
    content = "".join(f"{line}\n" for line in lines).encode()
    places = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    reader, steps = ProgressReader(path), []
    for start, end in zip([0, *places], [*places, len(content)], strict=True):
        with path.open("ab") as log:
            log.write(content[start:end])
        steps += reader.read_new()
    assert steps == [Step(step, 9, loss=loss) for step, loss, _ in rows]


@pytest.mark.parametrize(
    ("step", "start_step", "text"),
    [
        (STEP, 0, "step 40/120  loss 0.8123  lr 9.1e-05  2.3 steps/min  left 0:34:46"),
        # 10 steps in 1043 s since the resume, 80 to go
        (STEP, 30, "step 40/120  loss 0.8123  lr 9.1e-05  0.6 steps/min  left 2:19:04"),
        (STEP, 40, "step 40/120  loss 0.8123  lr 9.1e-05"),
        (Step(5, 9, eval_loss=1.23456, elapsed="0:00:00"), 0, "step 5/9  eval loss 1.235"),
        (Step(5, 9), 0, "step 5/9"),
        (Step(1, 3, elapsed="1 day, 0:00:00"), 0, "step 1/3  0.0 steps/min  left 2 days, 0:00:00"),
    ],
)
def test_describe(step: Step, start_step: int, text: str) -> None:
    assert describe(step, start_step) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:12:20", 740), ("2 days, 1:00:01", 176401), ("", 0), ("soon", 0), ("a:b:c", 0)]
)
def test_duration_seconds(text: str, seconds: int) -> None:
    assert duration_seconds(text) == seconds
