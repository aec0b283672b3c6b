"""`trainkit validate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainkit.cli.figures import show_previews, show_sets
from trainkit.cli.options import AsJson, GpuName, Gpus, Jobs
from trainkit.cli.output import Output, problem_json
from trainkit.cli.training import (
    BatchSize,
    ConfigFile,
    Dataset,
    Epochs,
    ForceTemplate,
    LearningRate,
    Overrides,
    ResumeFrom,
    Strict,
    make_settings,
)

if TYPE_CHECKING:
    from trainkit.workflow.prepare import Settings
    from trainkit.workflow.suggestion import Suggestion
    from trainkit.workflow.validate import ValidateOptions, Validation

FailOn = Annotated[
    list[str] | None,
    typer.Option("--fail-on", metavar="NAME>N[%]", help="A limit, such as truncation>5% or leaks>0; may be repeated."),
]
PreviewRows = Annotated[int, typer.Option("--preview", metavar="N", help="Show N rows as the trainer sees them.")]
Report = Annotated[
    Path | None, typer.Option("--report", metavar="DIR", help="Write every figure and a picture of the lengths there.")
]


def validate(
    overrides: Overrides = None,
    config: ConfigFile = None,
    dataset: Dataset = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    resume: ResumeFrom = None,
    gpu: GpuName = None,
    gpus: Gpus = None,
    strict: Strict = False,
    fail_on: FailOn = None,
    preview: PreviewRows = 0,
    report: Report = None,
    jobs: Jobs = None,
    force_template: ForceTemplate = False,
    as_json: AsJson = False,
) -> None:
    """Find every problem of a training before it costs anything; writes nothing but the report.

    Looks at each row as the trainer will see it: what it leaves out, how long it is, what cutoff_len takes away.

    Example: trainkit validate -d reward_model_full --fail-on 'truncation>5%' --preview 1
    """
    from trainkit.dataset.findings import parse_limit
    from trainkit.workflow.examine import ExamineOptions
    from trainkit.workflow.validate import ValidateOptions

    settings = make_settings(
        config,
        overrides,
        dataset=dataset,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        force_template=force_template,
    )
    limits = [parse_limit(word) for word in fail_on or ()]
    options = ValidateOptions(ExamineOptions(gpu, gpus, jobs, resume), strict, limits, preview)
    run_validation(Output(as_json=as_json), settings, options, report)


def run_validation(
    output: Output, settings: Settings, options: ValidateOptions | None = None, report: Path | None = None
) -> Validation:
    """Validate a training and print what was found; raises ProblemsFound when it cannot start."""
    from trainkit.workflow.validate import ValidateOptions, require_valid, validate, write_report

    with output.progress("looking at the data") as progress:
        validation = validate(settings, options or ValidateOptions(), progress)
    found = validation.found
    content = as_json(validation)
    if report:
        write_report(report, found.look, content)
        output.say(f"written: {report}")
    if not validation.prepared.errors:
        show_sets(output, found.look.sets)
        show_previews(output, validation.previews)
    output.json(content)
    if output.as_json and not content["ok"]:
        raise typer.Exit(1)
    require_valid(validation)
    output.problems(validation.problems)
    output.data(summary(validation))
    return validation


def as_json(validation: Validation) -> dict[str, Any]:
    """Return every figure of a validation; `ok` says whether the training can start."""
    from trainkit.workflow.validate import said

    found, prepared = validation.found, validation.prepared
    errors = sum(problem.level == "error" for problem in validation.problems)
    return {
        "ok": not errors,
        **({"error": said(errors), "hint": ""} if errors else {}),
        "problems": [problem_json(problem) for problem in validation.problems],
        "data": {each.name: {"side": each.side, **each.figures} for each in found.look.sets},
        "steps": dataclasses.asdict(found.steps) if found.steps else None,
        "fit": fit_json(found.fit) if found.fit else None,
        "config": prepared.public_values,
        "origin": dict(prepared.config.origin),
        "previews": [dataclasses.asdict(each) for each in validation.previews],
    }


def fit_json(fit: Suggestion) -> dict[str, Any]:
    from trainkit.workflow.suggestion_report import report

    return report(fit)


def summary(validation: Validation) -> str:
    """Return the last line: what will be trained, how long, and whether it fits."""
    values, found = validation.prepared.config.values, validation.found
    parts = [f"ok: {values['finetuning_type']} training of {values['model_name_or_path']} on {values['dataset']}"]
    if found.steps:
        parts.append(f"{found.steps.total:,} steps of {found.steps.rows_per_step} rows")
    if found.fit and found.fit.advice.given.fits:
        given = found.fit.advice.given
        parts.append(f"{given.memory.total / 2**30:.1f} of {given.usable / 2**30:.1f} GiB a GPU")
    return ", ".join(parts)
