"""`trainkit doctor`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import typer

from trainkit.cli.options import AsJson
from trainkit.cli.output import Output

if TYPE_CHECKING:
    from trainkit.workflow.doctor import Item, Report

WIDTH = 100
INDENT = " " * 27  # the widths of the columns before


def doctor(as_json: AsJson = False) -> None:
    """Try out this machine and the trainer's environment: packages, GPUs, programs, trackers, disks.

    The packages are imported for real and each GPU computes for a second, which takes half a minute.
    The exit code is 1 when something keeps a training from starting.

    Example: trainkit doctor
    """
    from trainkit.workflow.doctor import doctor as examine

    output = Output(as_json=as_json)
    with output.waiting("importing the trainer's packages, trying out the GPUs"):
        report = examine()
    for item in report.items:
        output.data(describe(item))
    output.json(report_json(report))
    if not report.ok:
        raise typer.Exit(1)


def describe(item: Item) -> str:
    """Return the line of an item, folded to 100 columns, with the next step below it."""
    head = f"{item.level or 'ok':<8} {item.name:<17} "
    fold = {"width": WIDTH, "break_long_words": False, "break_on_hyphens": False, "subsequent_indent": INDENT}
    lines = textwrap.wrap(item.value, initial_indent=head, **fold)  # type: ignore[arg-type]
    if item.hint:
        lines += textwrap.wrap(item.hint, initial_indent=INDENT, **fold)  # type: ignore[arg-type]
    return "\n".join(lines)


def report_json(report: Report) -> dict[str, object]:
    """Return the report as one JSON document: the lines, and every figure behind them."""
    items = [
        {"name": item.name, "level": item.level or "ok", "value": item.value, "hint": item.hint}
        for item in report.items
    ]
    return {"ok": report.ok, "items": items, "facts": dict(report.facts)}
