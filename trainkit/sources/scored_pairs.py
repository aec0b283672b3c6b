"""Pairs for preference training, out of answers to one prompt that have different scores.

Two answers belong together when their tasks are the same and so is all that the model was given before them: system
text, tools, images, and every turn, letter for letter, as the training row has it. The one with the higher score is
chosen. An answer that is there several times counts once, with the mean of its scores.

The score is a fact of the row's metadata (`reward`, `judge.score`, `success` as 1 or 0), or the mean of the scores in
the answer itself where that is a judge's verdict; verdicts that score other things are not compared. Of two verdicts on
one prompt, the higher is the kinder one: whether it is the better one, the numbers do not say.

The rows are read once and kept in a file, so memory holds 40 bytes of each, and about 90 more while they are put in
order.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from itertools import accumulate
from statistics import fmean
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec
import xxhash

from trainkit.datatypes import Example
from trainkit.errors import Rejected, UsageProblem
from trainkit.sources.conversations import parsed, put_under
from trainkit.sources.pairs import check_answer, join_pair, prompt_of
from trainkit.verdicts import is_number, read_verdict, scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

TINY = 1e-9  # 0.95 - 0.9 is a little less than 0.05
encode_json = msgspec.json.Encoder().encode
decode_json = msgspec.json.Decoder().decode
pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder(Example).decode


class Score(NamedTuple):
    """A score and what was scored: `Score(0.9, "clip_score")`; only those of the same are compared."""

    value: float
    subject: str


class PairRule(NamedTuple):
    """Which pairs are made: `PairRule(margin=0.1, per_task=8, seed=42)`.

    `margin` is the least difference of the scores, `per_task` the most pairs of one task (None for all there are,
    which grow with the square of its answers), drawn by `seed`.
    """

    margin: float
    per_task: int | None
    seed: int


class Answer(NamedTuple):
    """One answer to a prompt; `number` counts the rows that have a score."""

    score: float
    digest: int
    number: int


def check_rule(rule: PairRule) -> None:
    """Check the numbers of a rule; raises UsageProblem."""
    if not 0 < rule.margin < float("inf"):
        raise UsageProblem(f"--margin {rule.margin:g}: must be above 0", "scores from 0 to 1 are often 0.1 apart")
    if rule.per_task is not None and rule.per_task < 1:
        raise UsageProblem(f"--per-task {rule.per_task}: must be at least 1")


def verdict_score(row: Mapping[str, Any]) -> Score:
    """Return the mean of the scores in the last turn, a judge's verdict; `Rejected` "no verdict" or "no score"."""
    verdict = read_verdict(row["conversations"][-1]["value"])
    if verdict.value is None:
        raise Rejected("no verdict", verdict.problem)
    found = scores(verdict.value)
    if not found:
        raise Rejected("no score", "there is no score in the verdict")
    return Score(fmean(found.values()), " ".join(sorted(found)))


def make_fact_score(key: str) -> Callable[[Mapping[str, Any]], Score]:
    """Return the function that reads the score from a row's metadata, one level down where the key has a dot.

    The function raises `Rejected` "no score" where that is neither a number nor true or false.
    """
    owner, _, name = key.partition(".")

    def fact_score(row: Mapping[str, Any]) -> Score:
        metadata = parsed(row["metadata"])
        value = metadata.get(key)
        if value is None and isinstance(metadata.get(owner), dict):
            value = metadata[owner].get(name)
        if not isinstance(value, bool) and not is_number(value):
            raise Rejected("no score", f"metadata: {key} is not a number")
        return Score(float(value), key)

    return fact_score


class Book:
    """What is remembered of the rows; the rows themselves are in `spool`, which is empty at first."""

    def __init__(self, spool: IO[bytes]) -> None:
        self.spool = spool
        self.ends = array("Q", [0])
        self.tasks = array("Q")
        self.prompts = array("Q")
        self.answers = array("Q")
        self.scores = array("d")

    def add(self, example: Example, row: Mapping[str, Any], score: Score) -> None:
        prompt = encode_json([score.subject, prompt_of(row)])
        self.prompts.append(xxhash.xxh3_64_intdigest(prompt))
        self.tasks.append(xxhash.xxh3_64_intdigest(example[2].encode()) if example[2] else self.prompts[-1])
        self.answers.append(xxhash.xxh3_64_intdigest(encode_json(row["conversations"][-1])))
        self.scores.append(score.value)
        self.ends.append(self.ends[-1] + self.spool.write(pack(example)))

    def load(self, number: int) -> Example:
        self.spool.seek(self.ends[number])
        example: Example = unpack(self.spool.read(self.ends[number + 1] - self.ends[number]))
        return example

    def tasks_in_order(self) -> Iterator[list[int]]:
        """Yield the rows of each task, in the order in which the tasks first come."""
        order = sorted(range(len(self.tasks)), key=self.tasks.__getitem__)
        starts = [at for at, number in enumerate(order) if not at or self.tasks[number] != self.tasks[order[at - 1]]]
        stops = dict(zip(starts, [*starts[1:], len(order)], strict=False))
        for start in sorted(starts, key=order.__getitem__):
            yield order[start : stops[start]]

    def prompts_of(self, numbers: list[int]) -> list[list[Answer]]:
        """Return the different answers to each prompt of a task, the lowest score first, whatever their order was."""
        found: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number in numbers:
            found[self.prompts[number]][self.answers[number]].append(number)
        return [
            sorted(
                Answer(fmean(self.scores[number] for number in same), digest, same[0])
                for digest, same in answers.items()
            )
            for _, answers in sorted(found.items())
        ]


def make_pairs(
    examples: Iterable[Example],
    score_of: Callable[[Mapping[str, Any]], Score],
    rule: PairRule,
    spool: IO[bytes],
    counts: Counter[str],
) -> Iterator[Example]:
    """Yield the pairs in `examples`, the tasks in the order of the input; the same for the same examples and seed.

    Args:
        examples: training rows whose last turn is the answer, as `evaluations` and `conversations` make them.
        score_of: the score of a row; a row for which it raises `Rejected` is counted by that reason.
        rule: which pairs are made, checked by `check_rule`.
        spool: an empty file for writing and reading bytes; it takes as much as the rows.
        counts: added to: "rows", the reasons for rows left out, "same answer again", "prompts", "prompts without a
            pair", "pairs over the cap", "pairs".
    """
    book = Book(spool)
    for example in examples:
        counts["rows"] += 1
        row = decode_json(example[4])
        try:
            check_answer(row)
            book.add(example, row, score_of(row))
        except Rejected as rejected:
            counts[rejected.reason] += 1
    for numbers in book.tasks_in_order():
        prompts = book.prompts_of(numbers)
        counts["prompts"] += len(prompts)
        counts["same answer again"] += len(numbers) - sum(map(len, prompts))
        for chosen, rejected_answer in choose(prompts, rule, book.tasks[numbers[0]], counts):
            pair = build_pair(book, chosen, rejected_answer)
            counts["pairs" if pair else "other prompt with the same hash"] += 1
            if pair:
                yield pair


def choose(
    prompts: list[list[Answer]], rule: PairRule, task: int, counts: Counter[str]
) -> Iterator[tuple[Answer, Answer]]:
    """Yield the pairs (chosen, rejected) of one task: all of them, or as many as the rule allows, drawn evenly."""
    lanes: list[tuple[list[Answer], Answer, int]] = []
    for answers in prompts:
        values = [answer.score for answer in answers]
        lower = [bisect_right(values, answer.score - rule.margin + TINY) for answer in answers]
        lanes += [(answers, answer, number) for answer, number in zip(answers, lower, strict=True) if number]
        counts["prompts without a pair"] += not any(lower)
    bounds = list(accumulate(number for _, _, number in lanes))
    total = bounds[-1] if bounds else 0
    picks: Iterable[int] = range(total)
    if rule.per_task is not None and total > rule.per_task:
        picks = sorted(random.Random(f"{rule.seed} {task}").sample(range(total), rule.per_task))
        counts["pairs over the cap"] += total - rule.per_task
    for pick in picks:
        place = bisect_right(bounds, pick)
        answers, chosen, number = lanes[place]
        yield chosen, answers[pick - bounds[place] + number]


def build_pair(book: Book, high: Answer, low: Answer) -> Example | None:
    """Return the pair of two answers, None when their tasks or prompts only share a hash."""
    chosen, rejected = book.load(high.number), book.load(low.number)
    row, other = decode_json(chosen[4]), decode_json(rejected[4])
    if chosen[2] != rejected[2] or prompt_of(row) != prompt_of(other):
        return None
    pair = join_pair(row, other, metadata_of(row, other, high.score, low.score))
    kind, judge = (one if one == another else "" for one, another in zip(chosen[:2], rejected[:2], strict=True))
    # split row by row, a prompt would be on both sides
    group = chosen[3] if chosen[3] == rejected[3] else encode_json(prompt_of(row))
    return kind, judge, chosen[2], group, encode_json(pair) + b"\n"


def metadata_of(chosen: Mapping[str, Any], rejected: Mapping[str, Any], high: float, low: float) -> dict[str, Any]:
    """Return both scores, then what both rows say, then what only one of them says under "chosen" or "rejected"."""
    one, other = parsed(chosen["metadata"]), parsed(rejected["metadata"])
    one, other = (value if isinstance(value, dict) else {} for value in (one, other))
    both = {key: value for key, value in one.items() if key in other and other[key] == value}
    found: dict[str, Any] = {"chosen_score": high, "rejected_score": low}
    own = {"chosen": one, "rejected": other}
    for name, values in own.items():
        if left := {key: value for key, value in values.items() if key not in both}:
            found[name] = left
    put_under(found, "row", both)
    return found
