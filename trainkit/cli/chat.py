"""`trainkit chat`."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from trainkit.cli.options import Model, find_model_dir
from trainkit.cli.output import Output
from trainkit.cli.training import ConfigFile
from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from trainkit.workflow.chat import ChatOptions, Talk

KeyVariable = Annotated[
    str | None, typer.Option("--key-env", metavar="VARIABLE", help="The environment variable that holds the key.")
]


def chat(
    model: Model = None,
    config: ConfigFile = None,
    url: Annotated[str | None, typer.Option(help="Talk to this server, as http://host:port/v1.")] = None,
    server_model: Annotated[str | None, typer.Option("--model", help="With --url: one of the server's models.")] = None,
    key_env: KeyVariable = None,
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
    """Talk with a trained or exported model in the form it was trained with, or with a server.

    Example: trainkit chat --evaluation-type clip --message "$(cat prompt.txt)"
    """
    from trainkit.workflow.chat import ChatOptions, plan_chat
    from trainkit.workflow.chat import chat as run

    words = {"type": evaluation_type, "model": model_name, "task": task_id, "category": category}
    about = {word: value for word, value in words.items() if value}
    given = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    generation = {key: value for key, value in given.items() if value is not None}
    options = ChatOptions(message, system, about, template, generation)
    if url is not None:
        refuse({"MODEL": model, "--config": config, "--template": template}, "the server has loaded its model")
        talk_to(url, server_model, key_env, options)
        return
    refuse({"--model": server_model, "--key-env": key_env}, "it goes with --url")
    plan = plan_chat(find_model_dir(model, config), options)
    for note in plan.notes:
        Output().say(f"note: {note}")
    if exit_code := run(plan):
        raise typer.Exit(exit_code)


def refuse(values: dict[str, object], why: str) -> None:
    """Refuse options that have no meaning beside the others."""
    for option, value in values.items():
        if value is not None:
            raise UsageProblem(f"{option}: {why}")


def talk_to(url: str, model: str | None, key_env: str | None, options: ChatOptions) -> None:
    """Answer one message, or the lines of stdin until `exit` or the end of input."""
    from trainkit.workflow.chat import start_talk

    talk = start_talk(url, model, key_env, options)
    if options.message is not None:
        show_answer(talk, options.message)
        return
    import readline  # noqa: F401  gives input() line editing on a terminal

    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    while (line := read_line()) not in (None, "exit"):
        if line == "clear":
            talk.clear()
        elif line:
            try:
                show_answer(talk, line)
            except KeyboardInterrupt:  # stops the answer in progress only
                typer.echo()


def read_line() -> str | None:
    """Return the next line of stdin, None at its end."""
    try:
        return input("You: " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def show_answer(talk: Talk, message: str) -> None:
    """Print the answer as it comes."""
    with closing(talk.say(message)) as pieces:
        for piece in pieces:
            typer.echo(piece, nl=False)
    typer.echo()
