"""What a tally means for a training: figures for machines, findings for people, limits that a user sets."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainkit.dataset.leaks import count_repeats, count_shared
from trainkit.dataset.tally import bins_of, list_places, quantile, summary
from trainkit.datatypes import Problem
from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from trainkit.dataset.tally import Scores, Tally
    from trainkit.datatypes import Level

Figures = dict[str, Any]

NUM_BINS = 12
REPAIRED = "verdict with "
LIMIT = re.compile(r"\s*(?P<name>[a-z_0-9]+)\s*>\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<percent>%?)\s*")


@dataclass(frozen=True, slots=True)
class Limit:
    """What must not be exceeded: `Limit("truncation", 0.05, "truncation>5%")`."""

    name: str
    most: float
    text: str


# What a limit can speak of: shares of rows, except for the tokens of a row.
LIMITED: dict[str, Callable[[Figures], float]] = {
    "skipped": lambda figures: share(figures["skipped_rows"], figures["rows"]),
    "truncation": lambda figures: share(figures["truncation"]["rows_cut"], figures["trained_rows"]),
    "answers_cut": lambda figures: share(figures["truncation"]["answers_cut"], figures["trained_rows"]),
    "no_trained": lambda figures: share(figures["truncation"]["nothing_trained"], figures["trained_rows"]),
    "duplicates": lambda figures: share(figures["duplicates"], figures["trained_rows"]),
    "leaks": lambda figures: share(figures.get("leaks", 0), figures["trained_rows"]),
    "broken_verdicts": lambda figures: share(figures["verdicts"]["broken"], figures["verdicts"]["rows"]),
    "near_empty": lambda figures: share(figures["near_empty_answers"], figures["trained_rows"]),
    "tokens_p99": lambda figures: figures["tokens"].get("p99", 0),
    "tokens_max": lambda figures: figures["tokens"].get("max", 0),
}
IN_TOKENS = ("tokens_p99", "tokens_max")


def parse_limit(text: str) -> Limit:
    """Return the limit that a word such as `truncation>5%`, `leaks>0` or `tokens_p99>4000` sets.

    Raises:
        UsageProblem: it has another form or speaks of something else.
    """
    match = LIMIT.fullmatch(text)
    if match is None:
        raise UsageProblem(f"--fail-on {text}: is not of the form NAME>NUMBER", "for example --fail-on 'truncation>5%'")
    name = match["name"]
    if name not in LIMITED:
        raise UsageProblem(f"--fail-on {text}: there is no figure {name}", f"there are {', '.join(LIMITED)}")
    number = float(match["number"])
    if name not in IN_TOKENS and not match["percent"] and number > 1:
        raise UsageProblem(f"--fail-on {text}: {name} is a share of the rows", f"write {name}>{match['number']}%")
    return Limit(name, number / 100 if match["percent"] else number, text.strip())


def figures_of(tally: Tally, cutoff_len: int = 0) -> Figures:
    """Return every figure of a data set, ready for JSON; the bins of its histogram end at `cutoff_len`, too."""
    counts, found = tally.counts, tally.found
    repeats, pairs = count_repeats(tally.twins)
    return {
        "rows": tally.rows,
        "trained_rows": counts["trained_rows"],
        "skipped_rows": sum(number for what, number in found.items() if what.startswith(("skipped: ", "fatal: "))),
        "tokens": summary(tally.lengths),
        "tokens_kept": summary(tally.kept),
        "histogram": histogram_of(tally, cutoff_len),
        "full_tokens": counts["full_tokens"],
        "kept_tokens": counts["kept_tokens"],
        "trained_tokens": counts["trained_tokens"],
        "trained_share": round(share(counts["trained_tokens"], counts["kept_tokens"]), 4),
        "truncation": {
            "rows_cut": found["cut"],
            "turns": counts["turns"],
            "turns_lost": counts["turns_lost"],
            "answers_cut": found["answer cut"],
            "nothing_trained": found["nothing trained"],
        },
        "images_cut": found["images cut"],
        "thoughts": dict(tally.thoughts),
        "sequences_packed": tally.packs,
        "duplicates": repeats,
        "duplicate_rows": [[tally.row_numbers[one], tally.row_numbers[first]] for one, first in pairs],
        "near_empty_answers": found["near-empty answer"],
        "verdicts": verdict_figures(tally),
        "found": {
            what: {"rows": number, "places": [str(place) for place in tally.places[what]]}
            for what, number in sorted(found.items())
        },
    }


def histogram_of(tally: Tally, cutoff_len: int = 0) -> list[list[int]]:
    """Return [low, high, rows] of about `NUM_BINS` even bins; the last one holds all above the 99.5th percentile.

    The bin around `cutoff_len` is parted there, so that rows that are cut have bins of their own.
    """
    if not tally.lengths:
        return []
    shortest, longest = min(tally.lengths), max(tally.lengths)
    usual = quantile(tally.lengths, 0.995)
    step = nice_step((usual - shortest + 1) / NUM_BINS)
    first = (shortest - 1) // step * step
    inner = range(first, usual + step, step)
    edges = {*inner, max(longest, inner[-1])} | ({cutoff_len} if first < cutoff_len < longest else set())
    return [list(part) for part in bins_of(tally.lengths, edges)]


def nice_step(rough: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that is at least `rough`."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= rough:
                return factor * power
        power *= 10


def verdict_figures(tally: Tally) -> Figures:
    """Return how many verdicts could be read, and each score field's range and distribution by evaluation type."""
    repaired = {what[len(REPAIRED) :]: number for what, number in tally.found.items() if what.startswith(REPAIRED)}
    return {
        "rows": tally.counts["verdicts"],
        "broken": tally.found["broken verdict"],
        "repaired": repaired,
        "scores": [
            {"evaluation_type": kind, "field": name, **score_figures(numbers)}
            for (kind, name), numbers in sorted(tally.scores.items())
        ],
    }


def score_figures(numbers: Scores) -> Figures:
    return {
        "rows": numbers.count,
        "min": numbers.lowest,
        "mean": round(numbers.total / numbers.count, 4),
        "max": numbers.highest,
        "tenths": [numbers.bins[index] for index in range(10)],
    }


def share(part: float, whole: float) -> float:
    """Return part / whole, 0 of nothing."""
    return part / whole if whole else 0.0


def add_leaks(figures: Figures, train: Iterable[Tally], tally: Tally) -> None:
    """Put into the figures of an eval side how many of its prompts the training data hold too."""
    count = 0
    first: list[int] = []
    for side in train:
        number, positions = count_shared(side.prompts, tally.prompts)
        count, first = count + number, first or positions
    figures["leaks"] = count
    figures["leaked_rows"] = [tally.row_numbers[position] for position in first]


# (finding, level, what it says of N rows, what to do); a finding of the row checks carries its reason after the colon
MEANING: tuple[tuple[str, Level, str, str], ...] = (
    ("fatal", "error", "the trainer fails on {rows}: {reason}", "correct or remove them"),
    ("images cut", "error", "the trainer stops in mid-run at {rows}: cutoff_len cuts away tokens of their images",
     "raise cutoff_len to {needed} or more, or take turns out of them"),
    ("skipped", "warning", "the trainer leaves out {rows}: {reason}", "correct them, or accept the loss"),
    ("nothing trained", "warning", "{rows} without a trained token: the answer is cut off",
     "raise cutoff_len, or leave such rows out; with mask_history: true the last turns win"),
    ("answer cut", "warning", "{rows} whose answer is cut: its end is not learnt", "raise cutoff_len"),
    ("cut", "warning", "{rows} cut at cutoff_len", "raise cutoff_len"),
    ("mixed thought", "warning", "{rows} where the template's think rule makes targets inconsistent",
     "answers speak of <think> without holding a whole block; the template's _nothink form adds no blocks"),
    ("broken verdict", "warning", "{rows} whose verdict is not JSON", "the model would learn to answer like that"),
    ("near-empty answer", "warning", "{rows} with a nearly empty answer", ""),
    ("not counted", "note", "{rows} with {reason}, whose tokens are not counted: they are longer than is said here",
     "choose cutoff_len with room for them"),
)  # fmt: skip


def problems_of(name: str, tally: Tally, figures: Figures, base: Path | None = None) -> list[Problem]:
    """Return the findings on one data set, the gravest first; paths are shown from `base`."""
    problems = []
    for what, number in tally.found.items():
        head, _, reason = what.partition(": ")
        for finding, level, message, hint in MEANING:
            if head == finding:
                said = message.format(rows=num_rows(number, tally.rows), reason=reason)
                hint = hint.format(needed=max(tally.needed, default=0))
                told = "; ".join(words for words in (hint, list_places(tally.places[what], base)) if words)
                problems.append((finding, Problem(name, said, told, level)))
    order = [finding for finding, *_ in MEANING]
    ordered = [problem for _, problem in sorted(problems, key=lambda pair: order.index(pair[0]))]
    return [*check_rest(name, tally), *ordered, *check_thoughts(name, tally), *check_sides(name, figures)]


def check_thoughts(name: str, tally: Tally) -> list[Problem]:
    """Return a warning when a reasoning template adds an empty think block to some rows, and others hold a block."""
    added, present = tally.thoughts["added"], tally.thoughts["present"]
    if not added or not present:
        return []
    said = f"the template adds an empty think block to {num_rows(added, tally.rows)}, and {present:,} hold their own"
    hint = "the model learns both: give every answer a block, or take the template's _nothink form"
    return [Problem(name, said, hint, "warning")]


def check_rest(name: str, tally: Tally) -> list[Problem]:
    """Return an error when nothing is left to train on."""
    if not tally.rows:
        return [Problem(name, "has no rows", "check its split and the filters of trainkit convert")]
    trained = tally.counts["trained_rows"]
    if not trained:
        return [Problem(name, f"the trainer can use none of its {tally.rows:,} rows", "see the reasons below")]
    if tally.lengths and tally.found["nothing trained"] == trained:
        return [Problem(name, "no row has a trained token: the loss would be 0", "raise cutoff_len")]
    return []


def check_sides(name: str, figures: Figures) -> list[Problem]:
    problems = []
    if number := figures["duplicates"]:
        pairs = ", ".join(f"{one + 1} like {first + 1}" for one, first in figures["duplicate_rows"])
        said = f"{num_rows(number, figures['rows'])} that are there already: row {pairs}"
        problems.append(Problem(name, said, "a repeated row counts double", "warning"))
    if number := figures.get("leaks", 0):
        rows = ", ".join(str(row + 1) for row in figures["leaked_rows"])
        said = f"{num_rows(number, figures['rows'])} with a prompt that is trained on too (row {rows})"
        problems.append(Problem(name, said, "trainkit convert --split-eval keeps them apart", "warning"))
    return problems


def num_rows(number: int, of: int) -> str:
    """`num_rows(3, 200)` is `3 of 200 rows (1.5 %)`."""
    percent = 100 * share(number, of)
    return f"{number:,} of {of:,} rows ({percent:.1f} %)" if percent >= 0.05 else f"{number:,} of {of:,} rows"


def check_limits(name: str, figures: Figures, limits: Iterable[Limit]) -> list[Problem]:
    """Return an error for each limit that a data set exceeds."""
    problems = []
    for limit in limits:
        value = LIMITED[limit.name](figures)
        if value > limit.most:
            said = f"{value:,.0f}" if limit.name in IN_TOKENS else f"{100 * value:.2f} %"
            problems.append(Problem(name, f"{limit.name} is {said}", f"the limit is --fail-on '{limit.text}'"))
    return problems


def strict(problems: Iterable[Problem]) -> list[Problem]:
    """Return the findings with each warning as an error."""
    return [
        dataclasses.replace(problem, level="error") if problem.level == "warning" else problem for problem in problems
    ]
