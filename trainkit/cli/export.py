"""`trainkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainkit.cli.options import AsJson, Model, find_model_dir
from trainkit.cli.output import Output
from trainkit.cli.training import ConfigFile, run_export


def export(
    model: Model = None,
    config: ConfigFile = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Else export_dir of the training.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Largest size of a weight file in GB.")] = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|auto", help="auto uses the GPU.")] = None,
    as_json: AsJson = False,
) -> None:
    """Merge the adapter into the model, check the result, and put it in its place.

    Example: trainkit export --output-dir exported_model
    """
    output = Output(as_json=as_json)
    model_dir = find_model_dir(model, config)
    result = run_export(output, model_dir, Path.cwd(), output_dir=output_dir, size=size, device=device)
    output.json({"ok": True, "folder": result.folder, "report": result.report})
