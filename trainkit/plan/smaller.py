"""What to take when a training ran out of memory although it was predicted to fit: less, for the same learning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainkit.plan.search import search
from trainkit.plan.verdict import judge

if TYPE_CHECKING:
    from trainkit.plan.verdict import Candidate, Task

# A prediction that was wrong is not trusted to a few percent.
CLEARLY_LESS = 0.85


def find_smaller(task: Task) -> Candidate | None:
    """Return the fastest setup that needs clearly less than the given one, for the same rows a step; None if none."""
    most = CLEARLY_LESS * judge(task, task.given).memory.total
    less = [candidate for candidate in search(task) if candidate.verdict.memory.total <= most]
    return max(less, key=lambda candidate: candidate.speedup, default=None)
