"""Which rows are where, against a reference that only looks at the finished files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.dataset.batches import Ledger, Recipe, convert_records, report_of
from trainkit.dataset.select import EVAL, TRAIN, lane_order, make_variants, merge_ranges
from trainkit.dataset.write import fold_eval, side_file
from trainkit.datatypes import Part
from trainkit.lines import Source

if TYPE_CHECKING:
    import pytest


class Row(NamedTuple):
    """What the reference remembers of a row."""

    side: str
    kind: str
    judge: str
    task: str
    number: int


rows = st.lists(
    st.builds(
        Row,
        st.sampled_from([TRAIN, TRAIN, EVAL]),
        st.sampled_from(["clip", "final", "", "zeta"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["", "t1", "t2", "t3", "t4"]),
        st.integers(0, 0),
    ),
    max_size=50,
).map(lambda found: [row._replace(number=number) for number, row in enumerate(found)])
SOURCE = Source(Path("in.jsonl"), "in.jsonl", 1, whole=False)


def convert_blocks(found: list[Row], block: int, max_tasks: int) -> tuple[Ledger, dict[str, bytes], list[list[Row]]]:
    """Return the book, the text of each side, and the rows of each block, as a conversion makes them."""
    recipe = Recipe(
        lambda record: (lambda row: (row.kind, row.judge, row.task, record, b"%d\n" % row.number))(found[int(record)]),
        lambda group: found[int(group)].side,
        max_tasks,
    )
    ledger = Ledger(max_tasks, lambda reject: None)
    files = {TRAIN: b"", EVAL: b""}
    blocks = [found[start : start + block] for start in range(0, len(found), block)]
    for given_rows in blocks:
        batch = convert_records(((n, b"%d" % row.number) for n, row in enumerate(given_rows, 1)), recipe, 0)
        places = ledger.place(report_of(batch, recipe), SOURCE)
        for side, text in batch.texts.items():
            assert places[side] == len(files[side])
            files[side] += text
    return ledger, files, blocks


def runs_of(chosen: list[bool]) -> tuple[tuple[int, int], ...]:
    """Return the longest runs of True."""
    edges = [n for n, (one, other) in enumerate(zip([False, *chosen], [*chosen, False], strict=True)) if one != other]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


@settings(deadline=None, max_examples=200)
@given(rows, st.integers(1, 20), st.integers(0, 6))
def test_the_ranges_of_every_variant(found: list[Row], block: int, max_tasks: int) -> None:
    ledger, files, _ = convert_blocks(found, block, max_tasks)
    in_file = {side: [found[int(line)] for line in text.split()] for side, text in files.items()}
    for side, held in in_file.items():
        assert Counter(held) == Counter(row for row in found if row.side == side)
        assert (ledger.num_rows[side], ledger.num_bytes[side]) == (len(held), len(files[side]))
    for part in ledger.parts():
        assert part.ranges == merge_ranges(part.ranges)  # the book grows with the runs, not with the blocks
    tasks = {row.task for row in found} - {""}
    assert ledger.tasks_apart == (max_tasks > 0 and len(tasks) <= max_tasks)
    levels = [("kind", {"clip", "final", "zeta"}), ("judge", {"a", "b"})]
    if ledger.tasks_apart:
        levels.append(("task", tasks))
    expected = {}
    for side, suffix in ((TRAIN, ""), (EVAL, "_eval")):
        expected[f"rm_full{suffix}"] = runs_of([True] * len(in_file[side]))
        for level, values in levels:
            for value in values:
                expected[f"rm_{value}{suffix}"] = runs_of([getattr(row, level) == value for row in in_file[side]])
    variants = make_variants(ledger.parts(), "rm", single=False, with_tasks=ledger.tasks_apart)
    assert {variant.name: variant.ranges for variant in variants} == {
        n: ranges for n, ranges in expected.items() if ranges
    }
    assert all(variant.num_rows == len([*numbers(variant.ranges)]) for variant in variants)


def test_the_book_does_not_grow_with_the_tasks() -> None:
    found = [Row(TRAIN, "clip", "a", f"t{number}", number) for number in range(500)]
    ledger, _, _ = convert_blocks(found, 2, 20)
    assert not ledger.tasks_apart
    assert len(ledger.parts()) <= 21


def numbers(ranges: tuple[tuple[int, int], ...]) -> list[int]:
    return [number for start, stop in ranges for number in range(start, stop)]


@settings(deadline=None)
@given(rows, st.integers(1, 20), st.integers(4, 6))
def test_a_block_is_sorted_and_keeps_the_order_of_its_input_within_a_key(
    found: list[Row], block: int, max_tasks: int
) -> None:
    _, files, blocks = convert_blocks(found, block, max_tasks)
    for side, text in files.items():
        expected = [
            row.number
            for given_rows in blocks
            for row in sorted(given_rows, key=lambda row: (*lane_order(row[:4]), row.number))
            if row.side == side
        ]
        assert [int(line) for line in text.split()] == expected


@settings(deadline=None)
@given(rows, st.integers(0, 3))
def test_with_too_many_tasks_the_order_within_type_and_judge_is_kept_from_there_on(
    found: list[Row], max_tasks: int
) -> None:
    _, files, _ = convert_blocks(found, max(len(found), 1), max_tasks)
    seen: set[str] = {""}
    shared = set()  # the rows after the task that was one too many
    for row in found:
        seen.add(row.task)
        if max_tasks == 0 or len(seen) > max_tasks + 1:
            shared.add(row.number)
    for side, text in files.items():
        held = [found[int(line)] for line in text.split() if int(line) in shared]
        assert held == sorted(held, key=lambda row: (*lane_order((side, row.kind, row.judge, None)), row.number))


@settings(deadline=None)
@given(rows, st.integers(1, 20), st.integers(0, 6), st.booleans())
def test_a_fold_puts_the_eval_rows_behind_the_others(
    tmp_path_factory: pytest.TempPathFactory, found: list[Row], block: int, max_tasks: int, dry_run: bool
) -> None:
    ledger, files, _ = convert_blocks(found, block, max_tasks)
    folder = None if dry_run else tmp_path_factory.mktemp("fold")
    for side, text in files.items():
        if folder and text:
            (folder / side_file(side)).write_bytes(text)
    folded = fold_eval(ledger.parts(), ledger.num_rows[TRAIN], folder)
    text = files[TRAIN] + files[EVAL]
    if folder and text:
        assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("train.jsonl", text)]
    in_file = [found[int(line)] for line in text.split()]
    keys = {part.key for part in folded}
    assert len(keys) == len(folded)
    assert {key.side for key in keys} <= {TRAIN}
    assert sorted(number for part in folded for number in numbers(part.ranges)) == list(range(len(found)))
    for part in folded:
        for number in numbers(part.ranges):
            row = in_file[number]
            assert (row.kind, row.judge) == part.key[1:3]
            assert part.key.task in (row.task, None)
        assert part == Part(part.key, runs_of([n in numbers(part.ranges) for n in range(len(found))]))
