"""`trainkit init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainkit.cli.output import Output
from trainkit.errors import UsageProblem


def init(
    folder: Annotated[Path, typer.Argument(help="Made when it is not there.", metavar="[DIR]")] = Path(),
    demo: Annotated[bool, typer.Option("--demo", help="Also sample evaluations and a tiny model.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Write update.yaml, for trainkit update, instead.")] = False,
) -> None:
    """Write training_config.yaml and the folders of a training; what is there already stays.

    Example: trainkit init my-reward-model
    """
    if demo and update:
        raise UsageProblem("--demo and --update: do not go together", "the demo has no rollouts")
    output = Output()
    run_init(output, folder, demo=demo, update=update)
    if update:
        output.say("next: trainkit update save_path=FOLDER, where FOLDER holds train_trajectories/")
        return
    output.say(
        "next: trainkit convert finetune.jsonl --split-eval"
        if demo
        else "next: put your evaluations into finetune.jsonl and your model into ./model"
    )


def run_init(output: Output, folder: Path, *, demo: bool, update: bool = False) -> None:
    """Make the folder and print what was made and what was there."""
    from trainkit.workflow.init import init as run

    with output.waiting("making the folder") as stage:
        made, kept = run(folder, demo=demo, update=update, on_stage=stage)
    for word, paths in (("made", made), ("kept", kept)):
        for path in paths:
            output.data(f"{word}  {path}")
