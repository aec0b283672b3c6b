"""Writes the README's command reference from the commands: `python -m trainkit.cli.reference README.md`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

BEGIN, END = "<!-- commands: begin -->", "<!-- commands: end -->"


def reference() -> str:
    """Return the Markdown for every command: what it does, an example, its arguments and options."""
    from trainkit.cli.app import app

    group: Any = typer.main.get_command(app)
    return "\n".join(describe(name, command) for name, command in group.commands.items())


def describe(name: str, command: Any) -> str:
    """Return the section of one command."""
    summary, _, example = (part.strip() for part in command.help.partition("Example:"))
    lines = [f"### trainkit {name}", "", summary, "", "```", example, "```", "", "| | |", "|---|---|"]
    lines += [f"| `{words_of(param)}` | {text_of(param)} |" for param in command.params if param.name != "help"]
    return "\n".join([*lines, ""])


def words_of(param: Any) -> str:
    """Return how a parameter is written on the command line."""
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    takes = "" if param.is_flag else f" {param.metavar or str(param.type.name).upper()}"
    return ", ".join(sorted(param.opts, key=len, reverse=True)) + takes


def text_of(param: Any) -> str:
    """Return the help of a parameter with its default."""
    default = param.default
    shown = default not in (None, False, [], ()) and param.param_type_name == "option"
    return (param.help or "") + (f" [{default}]" if shown else "")


def insert(text: str) -> str:
    """Return a README with the reference between its two marks."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{reference()}\n{END}{tail}"


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(insert(readme.read_text(encoding="utf-8")), encoding="utf-8")
