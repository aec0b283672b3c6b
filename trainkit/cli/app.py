"""The Typer application: every command by its name, in the order in which a newcomer meets them."""

from __future__ import annotations

from typing import Annotated

import typer

from trainkit import __version__
from trainkit.cli.chat import chat
from trainkit.cli.convert import convert
from trainkit.cli.doctor import doctor
from trainkit.cli.export import export
from trainkit.cli.init import init
from trainkit.cli.pipeline import pipeline
from trainkit.cli.serve import serve
from trainkit.cli.suggest import suggest
from trainkit.cli.train import train
from trainkit.cli.update import update
from trainkit.cli.validate import validate

app = typer.Typer(
    name="trainkit",
    help="From agent runs to a trained model: convert, check, train, export, chat.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(value: bool) -> None:
    if value:
        typer.echo(f"trainkit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """From agent runs to a trained model: convert, check, train, export, chat."""


for command in (init, convert, validate, suggest, train, export, chat, serve, update, doctor, pipeline):
    app.command()(command)
