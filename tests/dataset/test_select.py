from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.dataset.select import Names, Variant, clean_name, lane_order, make_split, make_variants, merge_ranges
from trainkit.datatypes import Part, PartKey

NAME = re.compile(r"\w+")


def part(kind: str, judge: str, task: str | None = None, side: str = "train", rows: int = 1) -> Part:
    return Part(PartKey(side, kind, judge, task), ((0, rows),))


def consecutive(parts: list[Part]) -> list[Part]:
    """The same parts, each side's one behind the other in its file."""
    ends: Counter[str] = Counter()
    placed = []
    for one in parts:
        start = ends[one.key.side]
        ends[one.key.side] += one.num_rows
        placed.append(Part(one.key, ((start, start + one.num_rows),)))
    return placed


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("deepseek-chat", "deepseek_chat"),
        ("kimi-k2-0711-preview", "kimi_k2_0711_preview"),
        ("a.b", "a_b"),
        ("a__b--c", "a_b_c"),
        ("_a_", "a"),
        ("org/model:latest", "org_model_latest"),
        ("a, b", "a_b"),
        ("任务集", "任务集"),
        ("///", "unnamed"),
        ("", "unnamed"),
        ("../../etc", "etc"),
        ("\u2028x\n", "x"),
    ],
)
def test_clean_names(value: str, name: str) -> None:
    assert clean_name(value) == name


# Few letters, so that many values collide after cleaning.
@settings(deadline=None)
@given(st.lists(st.text("aAbB_-./ 任", max_size=4) | st.sampled_from(["a_eval", "a eval", "eval", "A_EVAL_eval"])))
def test_every_value_has_a_name_of_its_own(values: list[str]) -> None:
    names = Names()
    given_names = {value: names.give(f"rm_{clean_name(value)}", value) for value in values}
    assert all(NAME.fullmatch(name) for name in given_names.values())
    assert {value: names.give(f"rm_{clean_name(value)}", value) for value in values} == given_names
    everything = [full.casefold() for name in given_names.values() for full in (name, f"{name}_eval")]
    assert len(set(everything)) == len(everything)


def test_a_name_fits_a_file_system() -> None:
    names = Names()
    long = [names.give("任" * 300, "one"), names.give("任" * 300, "two"), names.give("任" * 301, "three")]
    assert long[0] == "任" * 60
    assert len(set(long)) == 3
    assert all(len(f"{name}_eval.jsonl".encode()) < 255 for name in long)


def test_many_values_with_one_name() -> None:
    names = Names()
    assert len({names.give("unnamed", "/" * n) for n in range(1, 6000)}) == 5999


def test_variants_in_their_order() -> None:
    parts = [
        part("final", "b", "t2"),
        part("other", "a", "t1", rows=5),
        part("clip", "b", "t1", rows=2),
        part("clip", "a", "t2", side="eval", rows=3),
        part("clip", "a", "t1"),
        part("", "", ""),
    ]
    variants = make_variants(consecutive(parts), "rm", single=False, with_tasks=True)
    assert [(variant.name, variant.side, variant.num_rows) for variant in variants] == [
        ("rm_full", "train", 10),
        ("rm_full_eval", "eval", 3),
        ("rm_clip", "train", 3),
        ("rm_clip_eval", "eval", 3),
        ("rm_final", "train", 1),
        ("rm_other", "train", 5),
        ("rm_a", "train", 6),
        ("rm_a_eval", "eval", 3),
        ("rm_b", "train", 3),
        ("rm_t1", "train", 8),
        ("rm_t2", "train", 1),
        ("rm_t2_eval", "eval", 3),
    ]


def test_a_variant_names_its_rows() -> None:
    parts = [
        Part(PartKey("train", "final", "a", None), ((2, 4), (9, 10))),
        Part(PartKey("train", "clip", "b", None), ((0, 2), (6, 7))),
        Part(PartKey("eval", "clip", "a", None), ((0, 1), (3, 5))),
    ]
    assert make_variants(parts, "rm", single=True, with_tasks=True) == [
        Variant("rm", ((0, 4), (6, 7), (9, 10)), "train"),
        Variant("rm_eval", ((0, 1), (3, 5)), "eval"),
    ]
    assert make_variants(parts, "rm", single=False, with_tasks=False)[2:] == [
        Variant("rm_clip", ((0, 2), (6, 7)), "train"),
        Variant("rm_clip_eval", ((0, 1), (3, 5)), "eval"),
        Variant("rm_final", ((2, 4), (9, 10)), "train"),
        Variant("rm_a", ((2, 4), (9, 10)), "train"),
        Variant("rm_a_eval", ((0, 1), (3, 5)), "eval"),
        Variant("rm_b", ((0, 2), (6, 7)), "train"),
    ]


@given(st.lists(st.booleans(), max_size=60), st.data())
def test_merged_ranges_hold_the_same_rows(chosen: list[bool], data: st.DataObject) -> None:
    wanted = [row for row, taken in enumerate(chosen) if taken]
    # the rows cut into ranges anywhere, and shuffled: the largest ranges that hold them come back
    ranges: list[tuple[int, int]] = []
    for row in wanted:
        if ranges and ranges[-1][1] == row and data.draw(st.booleans()):
            ranges[-1] = (ranges[-1][0], row + 1)
        else:
            ranges.append((row, row + 1))
    merged = merge_ranges(data.draw(st.permutations(ranges)))
    assert [row for start, stop in merged for row in range(start, stop)] == wanted
    assert all(start < stop for start, stop in merged)
    assert all(one[1] < other[0] for one, other in pairwise(merged))
    assert merge_ranges(merged) == merged


def test_rows_are_sorted_so_that_a_variant_is_few_ranges() -> None:
    keys = [
        ("eval", "clip", "a", None),
        ("train", "clip", "a", "t1"),
        ("train", "clip", "a", "t2"),
        ("train", "clip", "b", "t1"),
        ("train", "category", "a", "t1"),
        ("train", "final", "a", "t1"),
        ("train", "", "a", "t1"),
        ("train", "other", "a", "t1"),
    ]
    shuffled = [keys[n * 3 % 8] for n in range(8)]
    assert sorted(shuffled, key=lane_order) == keys


def test_variants_whose_names_collide() -> None:
    judges = ["A_B", "a-b", "a.b", "clip", "clip_eval", "full", "///", "...", "任务集", "t"]
    parts = consecutive([part("clip", judge, "t", side) for judge in judges for side in ("train", "eval")])
    variants = make_variants(parts, "rm", single=False, with_tasks=True)
    names = [variant.name for variant in variants]
    assert len({name.casefold() for name in names}) == len(names) == 2 * (1 + 1 + len(judges) + 1)
    by_rows = {variant.ranges: variant.name for variant in variants if variant.side == "train"}
    shown = [by_rows[(row, row + 1),] for row in range(len(judges))]
    assert [re.sub(r"_[0-9a-f]{6}$", "_#", name) for name in shown] == [
        "rm_A_B", "rm_a_b_#", "rm_a_b_#", "rm_clip_#", "rm_clip_eval_#", "rm_full_#", "rm_unnamed_#", "rm_unnamed",
        "rm_任务集", "rm_t",
    ]  # fmt: skip
    assert names[-2].startswith("rm_t_")  # the task of the judge's name


@settings(deadline=None)
@given(st.binary(), st.floats(0, 0.999), st.integers())
def test_a_group_has_one_side(group: bytes, ratio: float, seed: int) -> None:
    assert {make_split(ratio, seed)(group) for _ in range(2)} in ({"train"}, {"eval"})
    assert make_split(0, seed)(group) == "train"


@pytest.mark.parametrize("ratio", [0.01, 0.15, 0.5, 0.95])
@pytest.mark.parametrize("seed", [0, 42, -1])
def test_the_ratio_is_about_right(ratio: float, seed: int) -> None:
    side_of = make_split(ratio, seed)
    count = Counter(side_of(b"task_%d" % number) for number in range(20_000))
    assert count["eval"] / 20_000 == pytest.approx(ratio, abs=0.012)


@settings(deadline=None)
@given(st.binary(), st.integers())
def test_a_larger_ratio_only_adds_to_the_eval_side(group: bytes, seed: int) -> None:
    sides = [make_split(ratio / 10, seed)(group) for ratio in range(10)]
    assert sides == sorted(sides, reverse=True)


def test_the_seed_matters() -> None:
    groups = [b"%d" % number for number in range(100)]
    assert [make_split(0.5, 1)(group) for group in groups] != [make_split(0.5, 2)(group) for group in groups]
