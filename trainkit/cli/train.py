"""`trainkit train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trainkit.cli.options import AsJson
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
    Strict,
    make_settings,
    plan_as_json,
    run_auto,
    run_export,
    run_training,
    training_options,
)

if TYPE_CHECKING:
    from trainkit.workflow.prepare import Settings
    from trainkit.workflow.start import TrainOptions


def train(
    overrides: Overrides = None,
    config: ConfigFile = None,
    dataset: Dataset = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    export: Export = False,
    auto: Annotated[bool, typer.Option("--auto", help="Take the settings that trainkit suggest puts first.")] = False,
    strict: Strict = False,
    resume: ResumeFrom = None,
    monitor: MonitorWith = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the command and the configuration only.")] = False,
    force_template: ForceTemplate = False,
    as_json: AsJson = False,
) -> None:
    """Train with LLaMA-Factory; its exit code is this command's.

    Example: trainkit train -d reward_model_full -e 3 --export
    """
    output = Output(as_json=as_json)
    settings = make_settings(
        config,
        overrides,
        dataset=dataset,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        force_template=force_template,
    )
    options = training_options(resume, monitor, export=export, strict=strict)
    if dry_run:
        show_plan(output, settings, options)
        return
    result = (run_auto if auto else run_training)(output, settings, options)
    exported = run_export(output, result.output_dir, settings.base) if export else None
    output.json(
        {
            "ok": True,
            "output_dir": result.output_dir,
            "run": result.run.path,
            "metrics": result.metrics,
            "exported": exported and exported.folder,
        }
    )


def show_plan(output: Output, settings: Settings, options: TrainOptions) -> None:
    """Print the command, its environment, and each key with its origin."""
    import shlex

    from trainkit.workflow.start import plan_training

    plan = plan_training(settings, options)
    output.problems(plan.notes)
    output.data(f"in {plan.command.cwd}, where RUN is the run's name:")
    words = [f"{name}={shlex.quote(value or '')}" for name, value in sorted(plan.command.env.items()) if name != "PATH"]
    output.data(" ".join([*words, *map(shlex.quote, plan.command.argv)]))
    output.data("")
    values = plan.config.values
    output.table(("key", "value", "from"), [(key, values[key], plan.config.origin[key]) for key in sorted(values)])
    output.json(plan_as_json(plan))
