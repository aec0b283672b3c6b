"""`trainkit validate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainkit.cli.options import AsJson
from trainkit.cli.output import Output, problem_json
from trainkit.cli.training import (
    BatchSize,
    ConfigFile,
    Dataset,
    Epochs,
    ForceTemplate,
    LearningRate,
    Overrides,
    make_settings,
)

if TYPE_CHECKING:
    from trainkit.workflow.prepare import Prepared, Settings


def validate(
    overrides: Overrides = None,
    config: ConfigFile = None,
    dataset: Dataset = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    force_template: ForceTemplate = False,
    as_json: AsJson = False,
) -> None:
    """Find every problem of a training before it costs anything; writes nothing.

    Example: trainkit validate -d reward_model_clip learning_rate=2e-4
    """
    settings = make_settings(
        config,
        overrides,
        dataset=dataset,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        force_template=force_template,
    )
    run_validation(Output(as_json=as_json), settings)


def run_validation(output: Output, settings: Settings) -> Prepared:
    """Check a training and print what was found; raises ProblemsFound when it cannot start."""
    from trainkit.workflow.prepare import prepare, require_sound

    with output.waiting("asking the trainer for its arguments"):
        prepared = prepare(settings)
    require_sound(prepared)
    output.problems(prepared.problems)
    values = prepared.config.values
    output.data(f"ok: {values['finetuning_type']} training of {values['model_name_or_path']} on {values['dataset']}")
    listed = [problem_json(problem) for problem in prepared.problems]
    origin = dict(prepared.config.origin)
    output.json({"ok": True, "problems": listed, "config": prepared.public_values, "origin": origin})
    return prepared
