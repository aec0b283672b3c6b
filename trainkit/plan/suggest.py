"""The advice: which settings fit a GPU, which of those are predicted to be the fastest, and what would help more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainkit.datatypes import Problem
from trainkit.plan.options import find_options
from trainkit.plan.search import choose, search
from trainkit.plan.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainkit.plan.options import Option
    from trainkit.plan.verdict import Candidate, Task, Verdict


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer: the given configuration's verdict, the best that fit, what would help more, and the nearest miss.

    `nearest` is the smallest setup when nothing fits; else None.
    """

    given: Verdict
    candidates: tuple[Candidate, ...]
    options: tuple[Option, ...]
    nearest: Candidate | None
    notes: tuple[Problem, ...]

    @property
    def something_fits(self) -> bool:
        """Whether there is a setting to train with."""
        return bool(self.candidates)


def advise(task: Task) -> Advice:
    """Return the settings that fit and are predicted to be the fastest."""
    given = judge(task, task.given)
    found = search(task)
    fitting = [candidate for candidate in found if candidate.verdict.fits]
    candidates = choose(fitting, given)
    nearest = None if candidates else min(found, key=lambda candidate: candidate.verdict.memory.total)
    options = find_options(task, candidates[0] if candidates else None)
    return Advice(given, candidates, options, nearest, tuple(_notes(task)))


def _notes(task: Task) -> Iterator[Problem]:
    given, machine = task.given, task.machine
    if task.effective_batch % given.world:
        rows = task.effective_batch // given.world * given.world or given.world
        yield Problem(
            "effective batch",
            f"{task.effective_batch} rows cannot be divided among {given.world} GPUs: {rows} are taken",
            f"a multiple of {given.world} keeps it exact",
            "warning",
        )
    if not machine.gpu.known:
        message = f"the speed of {machine.gpu.name} is not known: that of an A100 is taken, so only ratios count"
        yield Problem("--gpu", message, level="note")
    if task.lengths is None:
        message = f"the rows' lengths are not known: every row is taken as {given.seq_tokens:,} tokens, the worst case"
        yield Problem("cutoff_len", message, level="note")
