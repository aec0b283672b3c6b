"""`trainkit suggest`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainkit.cli.options import AsJson, GpuName, Gpus
from trainkit.cli.output import Output
from trainkit.cli.training import BatchSize, ConfigFile, Dataset, Overrides, make_settings

if TYPE_CHECKING:
    from trainkit.workflow.probe import Probed
    from trainkit.workflow.suggestion import Suggestion

GIB = 2**30

Effective = Annotated[
    int | None, typer.Option("--effective-batch", help="Rows of an optimizer step; else as the configuration has it.")
]
Exact = Annotated[bool, typer.Option("--exact", help="Also trace the real model class; takes some seconds.")]
Probe = Annotated[
    bool, typer.Option("--probe", help="Also run three real steps on this machine's GPU, and remember its speed.")
]
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
    probe: Probe = False,
    write: Write = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Find the settings that fit a GPU and are the fastest that do; the model's config.json is enough.

    Example: trainkit suggest --gpu a100-80
    """
    output = Output(as_json=as_json)
    settings = make_settings(config, overrides, dataset=dataset, batch_size=batch_size)
    settings = dataclasses.replace(settings, needs_file=False)
    from trainkit.workflow.suggest import SuggestOptions
    from trainkit.workflow.suggest import suggest as find

    with output.waiting("searching"):
        suggestion = find(settings, SuggestOptions(gpu, gpus, exact, effective_batch))
    show(output, suggestion, run_probe(output, suggestion) if probe else None)
    if write:
        from trainkit.workflow.suggested_file import write_suggestion

        write_suggestion(suggestion, write, force=force)
        output.say(f"written: {write}; trainkit train --config {write}")
    if not suggestion.advice.something_fits:
        raise typer.Exit(1)


def run_probe(output: Output, suggestion: Suggestion) -> Probed:
    """Run the first suggestion for three real steps."""
    from trainkit.workflow.probe import probe

    with output.waiting("three real steps with the longest batch"):
        return probe(suggestion)


def show(output: Output, suggestion: Suggestion, probed: Probed | None = None) -> None:
    """Print a suggestion: the verdict on the configuration, the best settings, the options, what a probe measured."""
    from trainkit.cli.suggestion_text import text_of
    from trainkit.datatypes import Problem
    from trainkit.workflow.suggestion_report import report

    found = report(suggestion)
    for line in text_of(found):
        output.data(line)
    if probed:
        found["probe"] = dataclasses.asdict(probed)
        show_probe(output, probed)
    output.problems(Problem(**note) for note in found["notes"])
    output.json(found)


def show_probe(output: Output, probed: Probed) -> None:
    """Print what real steps took, beside what was predicted."""
    memory = f"{probed.allocated / GIB:.1f} GiB allocated, {probed.predicted_allocated / GIB:.1f} predicted"
    speed = f"{probed.tokens_per_second:,.0f} tokens/s, {probed.predicted_tokens_per_second:,.0f} predicted"
    output.data("")
    output.data("probe of the first: " + ("out of memory" if probed.out_of_memory else f"{memory}; {speed}"))
    if probed.calibration:
        output.say(f"later predictions for this kind of GPU use {probed.calibration}")
