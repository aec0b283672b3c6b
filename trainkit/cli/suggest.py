"""`trainkit suggest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainkit.cli.options import AsJson
from trainkit.cli.output import Output
from trainkit.cli.training import BatchSize, ConfigFile, Dataset, Overrides, make_settings

if TYPE_CHECKING:
    from trainkit.workflow.suggest import Suggestion

GpuName = Annotated[
    str | None,
    typer.Option("--gpu", metavar="NAME|GIB", help="a100-40, a100-80, h100, h200, l40s, 4090, rtx3090, t4, or GiB."),
]
Gpus = Annotated[int | None, typer.Option("--gpus", help="How many; all of this machine, or 1 of a named one.")]
Effective = Annotated[
    int | None, typer.Option("--effective-batch", help="Rows of an optimizer step; else as the configuration has it.")
]
Exact = Annotated[bool, typer.Option("--exact", help="Also trace the real model class; takes some seconds.")]
Write = Annotated[Path | None, typer.Option("--write", help="Write the configuration with the first suggestion.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the file of --write.")]


def suggest(
    overrides: Overrides = None,
    config: ConfigFile = None,
    dataset: Dataset = None,
    batch_size: BatchSize = None,
    gpu: GpuName = None,
    gpus: Gpus = None,
    effective_batch: Effective = None,
    exact: Exact = False,
    write: Write = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Find the settings that fit a GPU and are the fastest that do; the model's config.json is enough.

    Example: trainkit suggest --gpu a100-80
    """
    output = Output(as_json=as_json)
    settings = make_settings(config, overrides, dataset=dataset, batch_size=batch_size)
    from trainkit.workflow.suggest import SuggestOptions
    from trainkit.workflow.suggest import suggest as find

    with output.waiting("searching"):
        suggestion = find(settings, SuggestOptions(gpu, gpus, exact, effective_batch))
    show(output, suggestion)
    if write:
        from trainkit.workflow.suggested_file import write_suggestion

        write_suggestion(suggestion, write, force=force)
        output.say(f"written: {write}; trainkit train --config {write}")
    if not suggestion.advice.something_fits:
        raise typer.Exit(1)


def show(output: Output, suggestion: Suggestion) -> None:
    """Print a suggestion: the verdict on the configuration, the best settings, the options."""
    from trainkit.cli.suggestion_text import text_of
    from trainkit.datatypes import Problem
    from trainkit.workflow.suggestion_report import report

    found = report(suggestion)
    for line in text_of(found):
        output.data(line)
    output.problems(Problem(**note) for note in found["notes"])
    output.json(found)
