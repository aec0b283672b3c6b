"""`trainkit pipeline`: convert, validate, train, export, one answer: what run_training.sh calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.dataset.registry import find_files
from trainkit.errors import ConfigError, InputError
from trainkit.files import write_bytes_atomic
from trainkit.plan.templates import templates_folder
from trainkit.workflow.prepare import DEFAULT_CONFIG

if TYPE_CHECKING:
    from trainkit.workflow.prepare import Settings

EVALUATIONS = Path("finetune.jsonl")
DEMO_FOLDER = Path("demo")
LONGEST_PROMPT = 1500


def write_missing_config(settings: Settings) -> Path | None:
    """Write training_config.yaml when none is named and none is there; return it when it was written."""
    path = settings.base / DEFAULT_CONFIG
    if settings.config_file is not None or path.exists():
        return None
    write_bytes_atomic(path, (templates_folder() / DEFAULT_CONFIG).read_bytes())
    return path


def require_evaluations(settings: Settings, named: Path | None) -> Path:
    """Return the evaluations to convert.

    Raises:
        InputError: they are not there.
    """
    path = settings.base / (named or EVALUATIONS)
    if not path.exists():
        raise InputError(
            f"{named or EVALUATIONS}: no such file",
            "put your evaluations there, name them with --input, or --no-convert",
        )
    return path


def pick_prompt(dataset_dir: Path, name: str) -> str:
    """Return the first prompt of a data set that is not too long to read, as the model was trained on it.

    Raises:
        ConfigError: the data set has no such prompt.
    """
    for file in find_files(dataset_dir, name):
        with file.open(encoding="utf-8") as rows:
            for line in rows:
                prompt = str(json.loads(line)["conversations"][0]["value"])
                if len(prompt) <= LONGEST_PROMPT:
                    return prompt
    raise ConfigError(f"{name}: has no prompt of at most {LONGEST_PROMPT} characters")
