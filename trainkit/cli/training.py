"""What validate, train and pipeline share: the options of a training, and how its course is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainkit.cli.output import Output
    from trainkit.datatypes import Problem
    from trainkit.workflow.export import ExportResult
    from trainkit.workflow.prepare import Settings
    from trainkit.workflow.start import TrainOptions, TrainPlan
    from trainkit.workflow.train import TrainResult

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="LLaMA-Factory's own keys; they win over the file.")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML with LLaMA-Factory's keys; else training_config.yaml.")
]
Dataset = Annotated[str | None, typer.Option("--dataset", "-d", help="Data set, by its name in dataset_info.json.")]
Epochs = Annotated[float | None, typer.Option("--epochs", "-e", help="Passes over the data.")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", "-lr", help="Largest learning rate.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", "-bs", help="Rows per device and step.")]
ForceTemplate = Annotated[
    bool, typer.Option("--force-template", help="Train although the template does not fit the model.")
]
ResumeFrom = Annotated[
    str | None, typer.Option("--resume", metavar="auto|never|PATH", help="Where to start; auto unless given.")
]
MonitorWith = Annotated[
    str | None, typer.Option("--monitor", metavar="swanlab|wandb|none", help="Tracker; SwanLab unless given.")
]
Strict = Annotated[bool, typer.Option("--strict", help="A warning is an error.")]
Export = Annotated[bool, typer.Option("--export", help="Export the model after the training.")]


def make_settings(
    config: Path | None,
    overrides: list[str] | None,
    *,
    dataset: str | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    force_template: bool = False,
) -> Settings:
    """Return the settings that the words of a command line give."""
    from trainkit.workflow.prepare import Settings

    options: dict[str, tuple[str, Any]] = {
        "dataset": ("--dataset", dataset),
        "num_train_epochs": ("--epochs", epochs),
        "learning_rate": ("--learning-rate", learning_rate),
        "per_device_train_batch_size": ("--batch-size", batch_size),
    }
    return Settings(config, options, tuple(overrides or ()), Path.cwd(), force_template)


def training_options(
    resume: str | None, monitor: str | None, *, export: bool = False, strict: bool = False, max_restarts: int = 0
) -> TrainOptions:
    """Return how a training is started, from the words of a command line."""
    from trainkit.workflow.start import TrainOptions, parse_monitor

    return TrainOptions(resume, parse_monitor(monitor), export, strict, max_restarts)


def run_training(
    output: Output, settings: Settings, options: TrainOptions, told: Sequence[Problem] = ()
) -> TrainResult:
    """Train, showing where the log is, then a live line on a terminal, then what came out; `told` is not said again."""
    from trainkit.runs.progress import describe
    from trainkit.workflow.train import train

    def start(plan: TrainPlan, run: Any) -> None:
        output.problems(note for note in plan.notes if note not in told)
        output.say(f"training {plan.config.values['dataset']}; the log is {run.log_file}")
        live("starting the trainer")

    with output.waiting("checking the training") as live:
        result = train(
            settings,
            options,
            start,
            lambda step, begun: live(describe(step, begun)),
            lambda done, total: live(f"looking at the data: {done >> 20:,} of {(total or 0) >> 20:,} MiB"),
            lambda word: output.problems([word]),
        )
    show_training(output, result)
    return result


def run_auto(output: Output, settings: Settings, options: TrainOptions) -> TrainResult:
    """Train with the suggested settings; when the GPU's memory was too small after all, once more with less."""
    from trainkit.errors import OutOfMemory
    from trainkit.workflow.auto import choose_settings, smaller_settings, words_of

    with output.progress("looking at the data") as progress:
        chosen, suggestion = choose_settings(settings, progress)
    best = suggestion.advice.candidates[0]
    words = " ".join(words_of(best.changes))
    output.say(f"--auto: {words} ({best.speedup:.2f}x)" if words else "--auto: the settings are the best already")
    try:
        return run_training(output, chosen, options)
    except OutOfMemory as error:
        smaller = smaller_settings(chosen)
        if smaller is None:
            raise
        if not output.as_json:  # the one document on stdout is about the second training
            output.error(error)
        less, changes = smaller
        output.say(f"--auto: once more with {' '.join(words_of(changes))}")
        return run_training(output, less, options)


def show_training(output: Output, result: TrainResult) -> None:
    """Print where everything is."""
    output.problems(note for note in result.notes if note.where == "train_loss")
    rows: list[tuple[str, Any]] = [("trained model", result.output_dir), ("run folder", result.run.path)]
    rows += [("loss curve", result.loss_curve)] if result.loss_curve else []
    rows += [("log", result.run.log_file), ("seconds", f"{result.seconds:.0f}")]
    losses = {name: result.metrics.get(name) for name in ("train_loss", "eval_loss")}
    rows += [(name, round(loss, 4)) for name, loss in losses.items() if loss is not None]
    for name, value in rows:
        output.data(f"{name:<15}{value}")


def run_export(output: Output, model_dir: Path, base: Path, **options: Any) -> ExportResult:
    """Export a model and print what the check of it said."""
    from trainkit.workflow.export import ExportOptions, export

    with output.waiting("exporting") as stage:
        result = export(model_dir, ExportOptions(**options), base, stage)
    report = result.report
    output.data(f"{'exported model':<15}{result.folder}")
    changed = f"{report['changed']} of {report['tensors']} tensors differ from the base model"
    output.data(f"{'checked':<15}{changed}; it loads and answers")
    for warning in report.get("warnings", []):
        output.say(f"warning: {warning}")
    return result


def plan_as_json(plan: TrainPlan) -> dict[str, Any]:
    """Return a planned training for machines; the names of secret variables, never their values."""
    return {
        "ok": True,
        "command": list(plan.command.argv),
        "environment": dict(plan.command.env),
        "secrets": sorted(plan.secrets),
        "config": dict(plan.config.values),
        "origin": dict(plan.config.origin),
        "resume": str(plan.resume.checkpoint.path) if plan.resume.checkpoint else None,
        "problems": [as_json(note) for note in plan.notes],
    }


def as_json(problem: Problem) -> dict[str, str]:
    """Return a finding for machines."""
    from trainkit.cli.output import problem_json

    return problem_json(problem)
