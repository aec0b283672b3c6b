"""`trainkit init`: a folder to start from, with `--demo` one that trains at once."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from trainkit import environment
from trainkit.errors import TrainkitError
from trainkit.files import write_bytes_atomic
from trainkit.launch.llamafactory import program_command
from trainkit.launch.process import capture
from trainkit.plan.templates import templates_folder
from trainkit.workflow.export import INSIDE, last_json
from trainkit.workflow.prepare import trainer_python, writing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONFIG, UPDATE = "training_config.yaml", "update.yaml"
FOLDERS = ("data", "saves", "logs")
EVALUATIONS = "finetune.jsonl"
MODEL = "model"


def init(
    folder: Path, *, demo: bool, update: bool = False, on_stage: Callable[[str], None] = lambda _: None
) -> tuple[list[Path], list[Path]]:
    """Make a folder for a training; what is there already stays as it is.

    Args:
        folder: made when it is not there.
        demo: also write the sample evaluations, a small configuration and a tiny model.
        update: write the configuration of an online update instead, and no folders.
        on_stage: told what is being done.

    Returns:
        The paths that were made, and those that were there.

    Raises:
        TrainkitError: the folder cannot be written, or the tiny model could not be made.
    """
    templates = templates_folder()
    files = {CONFIG: templates / "demo" / CONFIG if demo else templates / CONFIG}
    if demo:
        files[EVALUATIONS] = templates / "demo" / "evaluations.jsonl"
    if update:
        files = {UPDATE: templates / UPDATE}
    made: list[Path] = []
    kept: list[Path] = []
    with writing(folder):
        for name, source in files.items():
            path = folder / name
            (kept if path.exists() else made).append(path)
            if not path.exists():
                write_bytes_atomic(path, source.read_bytes())
        for name in () if update else FOLDERS:
            path = folder / name
            (kept if path.is_dir() else made).append(path)
            path.mkdir(parents=True, exist_ok=True)
    if demo:
        model = folder / MODEL
        (kept if model.exists() else made).append(model)
        if not model.exists():
            on_stage("making a tiny model")
            make_tiny_model(model, folder / EVALUATIONS)
    return made, kept


def make_tiny_model(model: Path, texts: Path) -> None:
    """Make a Qwen2 model of 0.3 million parameters whose tokenizer is trained on `texts`.

    Raises:
        TrainkitError: the trainer's environment could not make it.
    """
    request = {"output": str(model.absolute()), "texts": str(texts.absolute()), "seed": 42}
    env = environment.snapshot()
    command = program_command(trainer_python(), INSIDE / "tiny_model.py", cwd=model.parent, env=env)
    exit_code, out, err = capture(command, env=env, stdin=json.dumps(request))
    report = last_json(out) or {}
    if exit_code != 0:
        shutil.rmtree(model, ignore_errors=True)
        reason = report.get("error") or "\n    ".join(err.strip().splitlines()[-3:])
        raise TrainkitError(f"the tiny model could not be made: {reason}", "is the trainer installed? --install-deps")
