"""`trainkit chat`."""

from __future__ import annotations

from typing import Annotated

import typer

from trainkit.cli.options import Model, find_model_dir
from trainkit.cli.output import Output
from trainkit.cli.training import ConfigFile


def chat(
    model: Model = None,
    config: ConfigFile = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Answer this and end.")] = None,
    system: Annotated[str | None, typer.Option(help="System text.")] = None,
    evaluation_type: Annotated[str | None, typer.Option(help="What the prompt is, for its prefix: clip, ...")] = None,
    category: Annotated[str | None, typer.Option(help="Category, for the prefix.")] = None,
    model_name: Annotated[str | None, typer.Option(help="Judge, for the prefix.")] = None,
    task_id: Annotated[str | None, typer.Option(help="Task, for the prefix.")] = None,
    template: Annotated[str | None, typer.Option(help="LLaMA-Factory template; else the training's.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest token.")] = None,
) -> None:
    """Talk with a trained or exported model in the form it was trained with.

    Example: trainkit chat --evaluation-type clip --message "$(cat prompt.txt)"
    """
    from trainkit.workflow.chat import ChatOptions, plan_chat
    from trainkit.workflow.chat import chat as run

    words = {"type": evaluation_type, "model": model_name, "task": task_id, "category": category}
    about = {word: value for word, value in words.items() if value}
    given = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    generation = {key: value for key, value in given.items() if value is not None}
    plan = plan_chat(find_model_dir(model, config), ChatOptions(message, system, about, template, generation))
    for note in plan.notes:
        Output().say(f"note: {note}")
    if exit_code := run(plan):
        raise typer.Exit(exit_code)
