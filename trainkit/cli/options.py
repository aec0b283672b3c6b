"""Options that several commands share, and the small parsers for their words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Iterable

AsJson = Annotated[bool, typer.Option("--json", help="Report as one JSON document on stdout.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", help="Processes at most; all cores unless given.")]
GpuName = Annotated[
    str | None,
    typer.Option("--gpu", metavar="NAME|GIB", help="a100-40, a100-80, h100, h200, l40s, 4090, rtx3090, t4, or GiB."),
]
Gpus = Annotated[
    int | None, typer.Option("--gpus", metavar="N", help="How many; all of this machine, or 1 of a named one.")
]
Model = Annotated[
    Path | None,
    typer.Argument(help="A training's output folder, a checkpoint or a model; else output_dir of the configuration."),
]


def split_words(values: Iterable[str]) -> frozenset[str]:
    """Return the values of a repeatable, comma-separated option."""
    return frozenset(word.strip() for value in values for word in value.split(",") if word.strip())


def parse_where(conditions: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return metadata key -> wanted values from `key=value` words; a key given twice takes either value."""
    wanted: dict[str, frozenset[str]] = {}
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if not equals or not key:
            raise UsageProblem(f"--where {condition}: must be key=value", "for example --where provider=openai")
        wanted[key.strip()] = wanted.get(key.strip(), frozenset()) | {value.strip()}
    return wanted


def parse_share(words: str, option: str) -> float:
    """Return "1%" or "0.01" as a share between 0 and 1."""
    try:
        return float(words.removesuffix("%")) / (100 if words.endswith("%") else 1)
    except ValueError:
        raise UsageProblem(f"{option} {words}: must be a share such as 1% or 0.01") from None


def find_model_dir(model: Path | None, config: Path | None) -> Path:
    """Return the model's folder: the named one, else the output folder of the configuration."""
    from trainkit.workflow.prepare import Settings, output_dir_of

    return model.absolute() if model else output_dir_of(Settings(config, base=Path.cwd()))
