"""`trainkit validate`: all that is known of a training before it costs anything; writes nothing but the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainkit import environment
from trainkit.dataset.findings import Limit, check_limits, strict
from trainkit.datatypes import gravest_first
from trainkit.errors import ProblemsFound, UsageProblem
from trainkit.files import write_json_atomic
from trainkit.plan.hardware import run_child_json
from trainkit.workflow.examine import Examination, ExamineOptions, examine
from trainkit.workflow.form import INSIDE
from trainkit.workflow.prepare import Prepared, Settings, prepare, trainer_python, writing
from trainkit.workflow.preview import Preview, preview
from trainkit.workflow.suggest import SuggestOptions, find_machine, hardware_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trainkit.datatypes import Problem
    from trainkit.workflow.look import LookResult

PICTURE = "lengths.png"
FIGURES = "validate.json"


@dataclass(frozen=True, slots=True)
class ValidateOptions:
    """How a training is validated.

    Attributes:
        examine: the machine, the processes, the resume.
        strict: a warning counts as an error.
        limits: what must not be exceeded, see `trainkit.dataset.findings.parse_limit`.
        preview: how many rows are shown as the trainer sees them.
    """

    examine: ExamineOptions = field(default_factory=ExamineOptions)
    strict: bool = False
    limits: Sequence[Limit] = ()
    preview: int = 0


@dataclass(frozen=True, slots=True)
class Validation:
    """A training as far as it is known before it starts; `problems` holds errors first."""

    prepared: Prepared
    found: Examination
    problems: tuple[Problem, ...]
    previews: tuple[Preview, ...] = ()


def validate(settings: Settings, options: ValidateOptions, report: Callable[[int, int | None], None]) -> Validation:
    """Find every problem of a training.

    Args:
        settings: the configuration and what the command line adds to it.
        options: the limits and the machine.
        report: told of the bytes of data that were looked at, and of all.
    """
    about = options.examine
    hardware = hardware_of(find_machine(SuggestOptions(about.gpu, about.gpus))) if about.gpu else None
    prepared = prepare(settings, hardware)
    found = examine(settings, prepared, about, report)
    problems = [*prepared.problems, *found.problems]
    for each in found.look.sets:
        problems += check_limits(f"{each.side} data {each.name}", each.figures, options.limits)
    if options.strict:
        problems = strict(problems)
    shown = tuple(preview(prepared, found.look, options.preview)) if options.preview else ()
    return Validation(prepared, found, tuple(gravest_first(problems)), shown)


def require_valid(validation: Validation) -> None:
    """Raise what was found when it keeps the training from starting.

    Raises:
        ProblemsFound: at least one error.
    """
    if errors := sum(problem.level == "error" for problem in validation.problems):
        raise ProblemsFound(said(errors), validation.problems)


def said(errors: int) -> str:
    """`said(2)` is `2 problems found; nothing was started`."""
    return f"{errors} problem{'s' if errors > 1 else ''} found; nothing was started"


def write_report(folder: Path, look: LookResult, content: dict[str, Any]) -> None:
    """Write every figure as JSON and the lengths as a picture.

    Raises:
        UsageProblem: it is a file.
        TrainkitError: the folder cannot be written.
        EnvironmentProblem: matplotlib is not installed.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageProblem(f"--report {folder}: is a file", "name a folder; it is made when it is not there")
    with writing(folder):
        write_json_atomic(folder / FIGURES, content)
    counted = [each for each in look.sets if each.figures["histogram"]]
    if not counted:
        return
    request = {
        "output": str(folder / PICTURE),
        "cutoff_len": counted[0].lens.flags.cutoff_len,
        "panels": [
            {"title": f"{each.side} data {each.name}: {each.tally.rows:,} rows", "histogram": each.figures["histogram"]}
            for each in counted
        ],
    }
    run_child_json(trainer_python(), INSIDE / "plot_lengths.py", request, environment.snapshot())
