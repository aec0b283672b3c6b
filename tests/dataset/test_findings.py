"""Figures, findings and limits of a look at the data."""

from __future__ import annotations

import json
from array import array

import pytest

from trainkit.dataset.findings import (
    Limit,
    add_leaks,
    check_limits,
    figures_of,
    histogram_of,
    nice_step,
    parse_limit,
    problems_of,
    strict,
)
from trainkit.dataset.tally import Place, Tally
from trainkit.datatypes import Problem
from trainkit.errors import UsageProblem


def tally(rows: int = 100, trained: int | None = None) -> Tally:
    made = Tally(rows=rows)
    made.counts["trained_rows"] = rows if trained is None else trained
    made.twins, made.prompts = array("Q", range(rows)), array("Q", range(rows))
    made.row_numbers = array("Q", range(rows))
    return made


def said(made: Tally) -> list[tuple[str, str, str]]:
    return [(p.level, p.message, p.hint) for p in problems_of("train data rm", made, figures_of(made))]


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("truncation>5%", Limit("truncation", 0.05, "truncation>5%")),
        (" leaks > 0 ", Limit("leaks", 0.0, "leaks > 0")),
        ("duplicates>0.5", Limit("duplicates", 0.5, "duplicates>0.5")),
        ("tokens_p99>4000", Limit("tokens_p99", 4000.0, "tokens_p99>4000")),
    ],
)
def test_limits_are_read(text: str, limit: Limit) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("truncation", "--fail-on truncation: is not of the form NAME>NUMBER"),
        ("truncation<5%", "--fail-on truncation<5%: is not of the form NAME>NUMBER"),
        ("truncated>5%", "--fail-on truncated>5%: there is no figure truncated"),
        ("truncation>5", "--fail-on truncation>5: truncation is a share of the rows"),
    ],
)
def test_a_limit_that_says_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_limit(text)
    assert caught.value.message == message
    assert caught.value.hint


def test_only_what_exceeds_a_limit_is_an_error() -> None:
    made = tally()
    for line in range(5):
        made.note("cut", Place("a.jsonl", line))
    made.lengths[4500] = 100
    figures = figures_of(made)
    limits = [parse_limit(text) for text in ("truncation>5%", "truncation>4.9%", "tokens_max>4499", "tokens_max>4500")]
    assert [(p.level, p.message, p.hint) for p in check_limits("train data rm", figures, limits)] == [
        ("error", "truncation is 5.00 %", "the limit is --fail-on 'truncation>4.9%'"),
        ("error", "tokens_max is 4,500", "the limit is --fail-on 'tokens_max>4499'"),
    ]


def test_every_limit_can_be_asked_of_any_data_set() -> None:
    names = (
        "skipped truncation answers_cut no_trained duplicates leaks broken_verdicts near_empty tokens_p99 tokens_max"
    )
    for made in (Tally(), tally()):
        assert check_limits("rm", figures_of(made), [parse_limit(f"{name}>0") for name in names.split()]) == []


def test_findings_name_rows_places_and_the_next_step() -> None:
    made = tally(1000, 990)
    for line in range(10):
        made.note("skipped: odd number of turns", Place("a.jsonl", line + 1, "3 turns"))
    made.note("cut", Place("a.jsonl", 40, "5,000 tokens, 4,096 kept"))
    made.note("fatal: content is not text", Place("a.jsonl", 41, "turn 2"))
    made.note("near-empty answer", Place("a.jsonl", 42, "'.'"))
    made.note("verdict with a fenced block", Place("a.jsonl", 43))
    assert said(made) == [
        ("error", "the trainer fails on 1 of 1,000 rows (0.1 %): content is not text",
         "correct or remove them; a.jsonl:41 (turn 2)"),
        ("warning", "the trainer leaves out 10 of 1,000 rows (1.0 %): odd number of turns",
         "correct them, or accept the loss; a.jsonl:1 (3 turns), :2 (3 turns), :3 (3 turns)"),
        ("warning", "1 of 1,000 rows (0.1 %) cut at cutoff_len",
         "raise cutoff_len; a.jsonl:40 (5,000 tokens, 4,096 kept)"),
        ("warning", "1 of 1,000 rows (0.1 %) with a nearly empty answer", "a.jsonl:42 ('.')"),
    ]  # fmt: skip


def test_rows_that_lose_tokens_of_images_name_the_cutoff_len_that_would_do() -> None:
    made = tally(200)
    for line, needed in ((3, 5120), (9, 6001), (12, 5120)):
        made.note("images cut", Place("a.jsonl", line, f"{needed} tokens"))
        made.needed[needed] += 1
    made.note("not counted: videos", Place("a.jsonl", 40))
    assert said(made) == [
        ("error", "the trainer stops in mid-run at 3 of 200 rows (1.5 %): cutoff_len cuts away tokens of their images",
         "raise cutoff_len to 6001 or more, or take turns out of them; "
         "a.jsonl:3 (5120 tokens), :9 (6001 tokens), :12 (5120 tokens)"),
        ("note", "1 of 200 rows (0.5 %) with videos, whose tokens are not counted: they are longer than is said here",
         "choose cutoff_len with room for them; a.jsonl:40"),
    ]  # fmt: skip
    assert figures_of(made)["images_cut"] == 3


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Tally(), "has no rows"),
        (tally(3, 0), "the trainer can use none of its 3 rows"),
    ],
)
def test_nothing_to_train_on_is_an_error(made: Tally, message: str) -> None:
    assert said(made)[0][:2] == ("error", message)


def test_no_trained_token_at_all_is_an_error() -> None:
    made = tally(2)
    made.lengths[9000] = 2
    made.note("nothing trained", Place("a.jsonl", 1))
    assert [level for level, *_ in said(made)] == ["warning"]
    made.note("nothing trained", Place("a.jsonl", 2))
    assert said(made)[0][:2] == ("error", "no row has a trained token: the loss would be 0")


def test_repeated_rows_and_leaked_prompts_are_named() -> None:
    train, evaluated = tally(10), tally(4)
    train.twins[7] = train.twins[2]
    evaluated.prompts = array("Q", [50, 3, 51, 9])
    figures = figures_of(evaluated)
    add_leaks(figures, [train], evaluated)
    assert said(train) == [
        ("warning", "1 of 10 rows (10.0 %) that are there already: row 8 like 3", "a repeated row counts double")
    ]
    assert [(p.level, p.message) for p in problems_of("eval data rm_eval", evaluated, figures)] == [
        ("warning", "2 of 4 rows (50.0 %) with a prompt that is trained on too (row 2, 4)")
    ]
    assert check_limits("eval", figures, [parse_limit("leaks>50%")]) == []
    assert check_limits("eval", figures, [parse_limit("leaks>0")])


def test_think_blocks_in_some_rows_only_are_said() -> None:
    made = tally(10)
    made.thoughts.update({"added": 7})
    assert said(made) == []
    made.thoughts.update({"present": 3})
    assert said(made) == [
        ("warning", "the template adds an empty think block to 7 of 10 rows (70.0 %), and 3 hold their own",
         "the model learns both: give every answer a block, or take the template's _nothink form"),
    ]  # fmt: skip


def test_strict_turns_warnings_into_errors_and_leaves_notes() -> None:
    problems = [Problem("a", "1", level="warning"), Problem("b", "2", level="note"), Problem("c", "3")]
    assert [problem.level for problem in strict(problems)] == ["error", "note", "error"]


def test_figures_are_json_and_hold_each_score() -> None:
    made = tally(2)
    for number in (0.2, 0.8):
        made.score("clip", "reasonableness_score", number)
    made.counts["verdicts"] = 3
    made.note("broken verdict", Place("a.jsonl", 1, "no object"))
    made.note("verdict with a fenced block", Place("a.jsonl", 2))
    figures = figures_of(made)
    assert json.loads(json.dumps(figures)) == figures
    assert figures["verdicts"] == {
        "rows": 3,
        "broken": 1,
        "repaired": {"a fenced block": 1},
        "scores": [
            {"evaluation_type": "clip", "field": "reasonableness_score", "rows": 2, "min": 0.2, "mean": 0.5, "max": 0.8,
             "tenths": [0, 0, 1, 0, 0, 0, 0, 0, 1, 0]}
        ],
    }  # fmt: skip


def test_the_histogram_holds_every_row_and_ends_with_the_longest() -> None:
    made = Tally()
    made.lengths.update({500: 500, 1000: 480, 2400: 15, 30_000: 2})
    bins = histogram_of(made)
    assert sum(count for *_, count in bins) == 997
    assert bins[0] == [400, 600, 500]
    assert bins[-1] == [2400, 30_000, 2]
    assert histogram_of(Tally()) == []


@pytest.mark.parametrize(("rough", "step"), [(0.3, 1), (1, 1), (1.2, 2), (3, 5), (341.3, 500), (6000, 10_000)])
def test_steps_are_round_numbers(rough: float, step: int) -> None:
    assert nice_step(rough) == step


def test_rows_that_are_cut_have_bins_of_their_own() -> None:
    made = Tally()
    made.lengths.update({500: 500, 1000: 400, 1030: 80, 2400: 15})
    bins = histogram_of(made, 1024)
    assert [1000, 1024, 0] in bins
    assert [1024, 1200, 80] in bins
    assert histogram_of(made, 9000) == histogram_of(made)
