"""`trainkit pipeline`: what run_training.sh calls."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainkit.cli.output import Output
from trainkit.cli.training import (
    BatchSize,
    ConfigFile,
    Dataset,
    Epochs,
    Export,
    ForceTemplate,
    LearningRate,
    MonitorWith,
    Overrides,
    ResumeFrom,
    make_settings,
    run_export,
    run_training,
    training_options,
)

if TYPE_CHECKING:
    from trainkit.workflow.prepare import Settings
    from trainkit.workflow.validate import Validation


def pipeline(
    overrides: Overrides = None,
    config: ConfigFile = None,
    dataset: Dataset = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    export: Export = False,
    resume: ResumeFrom = None,
    monitor: MonitorWith = None,
    force_template: ForceTemplate = False,
    evaluations: Annotated[
        Path | None, typer.Option("--input", "-i", help="Evaluations; finetune.jsonl unless given.")
    ] = None,
    no_convert: Annotated[bool, typer.Option("--no-convert", help="Take the data set as it is.")] = False,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Stop before the training.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="The whole way on a sample, in ./demo.")] = False,
) -> None:
    """Convert, validate and train in one go; with --export also export.

    Example: trainkit pipeline -d reward_model_full -e 5 --export
    """
    options = training_options(resume, monitor, export=export)  # a misspelt word ends the command here
    output = Output()
    settings = make_settings(
        config,
        overrides,
        dataset=dataset,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        force_template=force_template,
    )
    if demo:
        run_demo(output, settings, monitor)
        return
    from trainkit.workflow.pipeline import write_missing_config

    if not validate_only and (made := write_missing_config(settings)):
        output.say(f"made {made}: change it for your training")
    to_convert = None if no_convert or validate_only else evaluations or Path("finetune.jsonl")
    validation = convert_and_check(output, settings, to_convert)
    if validate_only:
        return
    output.say("-- train")
    result = run_training(output, settings, options, validation.problems)
    if export:
        run_export(output, result.output_dir, settings.base)


def convert_and_check(
    output: Output, settings: Settings, evaluations: Path | None, *, split_eval: bool = False
) -> Validation:
    """Convert the evaluations, unless there are none to convert, and check the training."""
    from trainkit.cli.convert import DEFAULT_RATIO, available_cores, run_convert
    from trainkit.cli.validate import run_validation
    from trainkit.workflow.convert import ConvertOptions
    from trainkit.workflow.pipeline import require_evaluations
    from trainkit.workflow.prepare import dataset_dir_of

    if evaluations is not None:
        output.say(f"-- convert {evaluations}")
        options = ConvertOptions(eval_ratio=DEFAULT_RATIO if split_eval else 0.0, jobs=available_cores())
        run_convert(output, [require_evaluations(settings, evaluations)], dataset_dir_of(settings), options)
    output.say("-- validate")
    return run_validation(output, settings)


def run_demo(output: Output, settings: Settings, monitor: str | None) -> None:
    """Go the whole way on the sample: init, convert, validate, train, export, one answer."""
    from trainkit.cli.init import run_init
    from trainkit.workflow.chat import ChatOptions, chat, plan_chat
    from trainkit.workflow.pipeline import DEMO_FOLDER, EVALUATIONS, pick_prompt
    from trainkit.workflow.prepare import dataset_dir_of

    output.say("-- init --demo")
    run_init(output, DEMO_FOLDER, demo=True)
    settings = dataclasses.replace(settings, base=DEMO_FOLDER.absolute())
    validation = convert_and_check(output, settings, EVALUATIONS, split_eval=True)
    output.say("-- train")
    result = run_training(output, settings, training_options("never", monitor, export=True), validation.problems)
    output.say("-- export")
    exported = run_export(output, result.output_dir, settings.base)
    output.say("-- one answer of the exported model (it is tiny: do not expect sense)")
    prompt = pick_prompt(dataset_dir_of(settings), "reward_model_full")
    options = ChatOptions(prompt, generation={"max_new_tokens": 60, "do_sample": False})
    if exit_code := chat(plan_chat(exported.folder, options)):
        raise typer.Exit(exit_code)
