"""What `suggest` finds: the advice for a configuration, and the exact traces that were made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainkit.datatypes import Problem, TrainConfig
    from trainkit.plan.suggest import Advice
    from trainkit.plan.verdict import Task
    from trainkit.workflow.prepare import Settings


@dataclass(frozen=True, slots=True)
class Traced:
    """The exact trace of one setup, in bytes; all 0 with the reason in `error` when it could not be traced.

    `allocated` is the peak of all tensors; `total` adds what the closed form has for workspaces, the allocator's
    rounding and the CUDA context; `difference` is how far the closed form is from the trace, 0.01 being 1 % above it.
    """

    allocated: int = 0
    total: int = 0
    difference: float = 0.0
    phase: str = ""
    error: str = ""

    def fits(self, usable: int) -> bool:
        """Whether the traced setup fits; one that could not be traced is not spoken against."""
        return self.total <= usable


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The advice for a configuration; `traced` is for the given setup and each candidate, empty unless asked for."""

    settings: Settings
    config: TrainConfig
    task: Task
    advice: Advice
    notes: tuple[Problem, ...]
    traced: tuple[Traced, ...] = ()
