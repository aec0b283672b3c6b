"""`trainkit export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainkit.cli.options import AsJson, Model, find_model_dir
from trainkit.cli.output import Output
from trainkit.cli.training import ConfigFile, run_export
from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from trainkit.workflow.export import ExportResult
    from trainkit.workflow.push import PushOptions, PushResult


def export(
    model: Model = None,
    config: ConfigFile = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Else export_dir of the training.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Largest size of a weight file in GB.")] = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|auto", help="auto uses the GPU.")] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/MODEL", help="Upload it to the Hugging Face Hub, private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: a new model is for everybody.")] = False,
    as_json: AsJson = False,
) -> None:
    """Merge the adapter into the model, check the result, and put it in its place; with --push also on the hub.

    Example: trainkit export --output-dir exported_model
    """
    output = Output(as_json=as_json)
    model_dir = find_model_dir(model, config)
    options = {"output_dir": output_dir, "size": size, "device": device}
    if public and push is None:
        raise UsageProblem("--public: goes with --push OWNER/MODEL")
    if push is None:
        result, pushed = run_export(output, model_dir, Path.cwd(), **options), None
    else:
        result, pushed = run_push(output, model_dir, push, options, public=public)
    about = {} if pushed is None else {"pushed": asdict(pushed)}
    output.json({"ok": True, "folder": result.folder, "report": result.report, **about})


def run_push(
    output: Output, model_dir: Path, name: str, options: dict[str, Any], *, public: bool
) -> tuple[ExportResult, PushResult]:
    """Ask the hub, export what is not exported yet, and upload it."""
    from trainkit.workflow.export import ExportOptions, find_export
    from trainkit.workflow.push import PushOptions, check_push, push

    where = PushOptions(name, public)
    result = find_export(model_dir, ExportOptions(**options), Path.cwd())
    with output.waiting("asking the Hugging Face Hub"):
        check_push(where, Path.cwd())
    if result is None:
        result = run_export(output, model_dir, Path.cwd(), **options)
    else:
        output.data(f"{'exported model':<15}{result.folder}")
        output.data(f"{'checked':<15}before; neither it nor what it was made of has changed")
    with output.waiting("pushing") as stage:
        pushed = push(result.folder, where, stage)
    show_push(output, where, pushed)
    return result, pushed


def show_push(output: Output, options: PushOptions, pushed: PushResult) -> None:
    """Print where the model is, and what is left to the user."""
    words = "private" if pushed.private else "public"
    words += "" if pushed.changed else "; the same files were there already"
    output.data(f"{'pushed':<15}{pushed.url} ({words})")
    if pushed.private and options.public:
        output.say("note: it was private before and stays so: make it public in its settings there")
    if pushed.new_card:
        output.say("note: its model card is a start: add a licence and what it is for; a later push keeps the card")
