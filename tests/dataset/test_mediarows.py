"""Where the first images of a data set may stand, for one worker and for several."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.dataset.columns import check_columns
from trainkit.dataset.entry import entry_of
from trainkit.dataset.mediarows import Writing, check_merged, shares
from trainkit.dataset.reader import plan_rows

if TYPE_CHECKING:
    from pathlib import Path

    from trainkit.dataset.entry import Entry
    from trainkit.dataset.reader import RowPlan
    from trainkit.datatypes import Problem

COLUMNS = {"messages": "conversations", "images": "pictures"}
TEXT = {"messages": "conversations"}
ONE = Writing(1)
FIRST = "put the rows with images first (trainkit convert --kind trajectories does)"


def make_set(folder: Path, layout: str, columns: dict[str, str] = COLUMNS, **more: Any) -> tuple[RowPlan, Entry]:
    """Write a set of rows with images and rows of text: `i5 t1000` are five and a thousand; `x1` is a broken line."""
    lines = {
        "i": json.dumps({"conversations": [], "pictures": ["a.png"]}),
        "t": json.dumps({"conversations": [], "pictures": []}),
        "x": "{",
    }
    rows = [lines[part[0]] for part in layout.split() for _ in range(int(part[1:]))]
    name = f"{layout.replace(' ', '_')}.jsonl"
    (folder / name).write_text("\n".join(rows))
    entry = entry_of("steps", {"file_name": name, "formatting": "sharegpt", "columns": columns} | more)
    return plan_rows(folder, entry), entry


def said(problems: list[Problem]) -> list[tuple[str, str, str]]:
    return [(problem.level, problem.where.rpartition("/")[2], problem.message) for problem in problems]


def late(rows: str = "1,000 rows or more", stops: str = "the trainer stops here") -> str:
    return f"the first images after {rows} without any: {stops}"


WORKER = late("1,000 rows of its worker or more")


# Each outcome is the one of LLaMA-Factory 0.9.5 with datasets 4.0.0.
@pytest.mark.parametrize(
    ("layout", "writing", "expected"),
    [
        ("i5 t2000", ONE, []),
        ("t999 i1", ONE, []),
        ("t500 x499 i1", ONE, []),
        ("t2000", ONE, []),
        ("t1000 i1", ONE, [("error", "t1000_i1.jsonl:1001", late())]),
        (
            "t1000 i1",
            Writing(),
            [("warning", "t1000_i1.jsonl:1001", late(stops="with one worker the trainer stops here"))],
        ),
        ("t1000 i1", Writing(2), []),
        ("i1500 t1200 i300", ONE, []),
        ("i1500 t1200 i300", Writing(3), []),
        ("i1500 t1200 i300", Writing(2), [("error", "i1500_t1200_i300.jsonl:2701", WORKER)]),
        ("t999 i1", Writing(1, 500), [("error", "t999_i1.jsonl:1000", late("500 rows or more"))]),
    ],
)
def test_a_share_with_images_has_one_among_its_first_rows(
    tmp_path: Path, layout: str, writing: Writing, expected: list[Any]
) -> None:
    problems = check_columns(*make_set(tmp_path, layout), writing)
    assert said(problems) == expected
    assert all(problem.hint == FIRST for problem in problems)


def test_the_rows_are_those_of_the_split_in_its_order(tmp_path: Path) -> None:
    layout, name = "i1500 t1200 i300", "i1500_t1200_i300.jsonl"
    ranged = make_set(tmp_path, layout, split="train[1500:]")
    assert said(check_columns(*ranged, ONE)) == [("error", f"{name}:2701", late())]
    reordered = make_set(tmp_path, layout, split="train[1500:2400]+train[:5]+train[2400:]")
    assert check_columns(*reordered, ONE) == []


def test_sets_in_a_row_are_tokenized_as_one(tmp_path: Path) -> None:
    text, first = make_set(tmp_path, "t1200", TEXT), make_set(tmp_path, "i5 t2000")
    found = [("error", "i5_t2000.jsonl:1", late())]
    problems = check_merged([text, first], ONE, "dataset")
    assert said(problems) == found
    assert problems[0].hint == "name a data set first that begins with images"
    assert check_merged([first, text], ONE, "dataset") == []
    assert check_merged([text, first], Writing(1, 1201), "dataset") == []
    assert check_merged([text, text], ONE, "dataset") == []
    alone = make_set(tmp_path, "t1000 i1")
    assert check_merged([first, alone], ONE, "dataset") == [], "check_columns has said so"


@pytest.mark.parametrize(
    ("layout", "writing", "percent"),
    [
        ("i3 t3997", Writing(1, shuffled=True), "47 %"),
        ("i3 t3997", Writing(3, shuffled=True), "100 %"),
        ("i3 t3997", Writing(4, shuffled=True), ""),  # a share is no longer than a part
        ("i40 t3960", Writing(1, shuffled=True), ""),
        ("t4000", Writing(1, shuffled=True), ""),
    ],
)
def test_rare_images_may_come_late_in_random_order(tmp_path: Path, layout: str, writing: Writing, percent: str) -> None:
    said_of = f"shuffles the rows, and 3 of 4,000 have images: with a chance of {percent} the trainer stops, "
    expected = [("warning", "val_size", said_of + "as 1,000 rows without any come first")] if percent else []
    assert said(check_merged([make_set(tmp_path, layout)], writing, "val_size")) == expected
    drawn = check_columns(*make_set(tmp_path, layout, num_samples=9), writing)
    assert said(drawn) == [(level, "dataset_info.json steps num_samples", words) for level, _, words in expected]


def test_rows_of_a_table_are_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("conversations,pictures\n" + "[],\n" * 1000 + "[],a.png\n")
    entry = entry_of("x", {"file_name": "a.csv", "formatting": "sharegpt", "columns": COLUMNS})
    assert said(check_columns(plan_rows(tmp_path, entry), entry, ONE)) == [("error", "a.csv:1002", late())]


@pytest.mark.parametrize(("rows", "workers"), [(10, 3), (2, 5), (0, 4), (9, 3)])
def test_shares_are_those_of_the_trainers_library(rows: int, workers: int) -> None:
    cut = list(shares(rows, workers))
    assert [row for start, stop in cut for row in range(start, stop)] == list(range(rows))
    sizes = [stop - start for start, stop in cut]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes, default=1) - min(sizes, default=1) <= 1
    assert len(cut) == min(rows, workers)
