"""`trainkit export`: merge the adapter into the model, check what came out, and put it in its place."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trainkit.inside
from trainkit import environment
from trainkit.datatypes import TrainConfig
from trainkit.errors import ConfigError, Interrupted, TrainerFailed, TrainkitError, UsageProblem
from trainkit.files import sync_folder, temporary_beside, write_text_atomic
from trainkit.launch.diagnosis import diagnose, load_tail
from trainkit.launch.llamafactory import export_command, find_trainer, program_command
from trainkit.launch.process import capture, run
from trainkit.plan.paths import local_path
from trainkit.plan.render import render_yaml
from trainkit.runs.store import MARKER, find_marker, write_marker
from trainkit.workflow.prepare import trainer_python, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

INSIDE = Path(trainkit.inside.__file__).parent
ADAPTER_FILE = "adapter_config.json"
EXPORT_DIR = "exported_model"
PROMPT = "Reply with one word: ready"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        output_dir: the exported model's folder; None means what the training's configuration says, or exported_model.
        size: largest size of a weight file in GB.
        device: "cpu", or "auto" for the GPU.
    """

    output_dir: Path | None = None
    size: int | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class ExportResult:
    """An exported model and what the check of it said (see `trainkit/inside/verify_export.py`)."""

    folder: Path
    report: dict[str, Any]


def export(
    model_dir: Path, options: ExportOptions, base: Path, on_stage: Callable[[str], None] = lambda _: None
) -> ExportResult:
    """Export a trained model and verify it; the result takes the place of an earlier export only when it is good.

    Args:
        model_dir: the output folder of a training, or a checkpoint in it.
        options: where to, in what sizes, on which device.
        base: the folder that a relative output folder starts from.
        on_stage: told what is being done.

    Raises:
        UsageProblem: a size or a device that there is not.
        ConfigError: the folder holds no trained model, or the output folder is somebody else's.
        TrainerFailed: LLaMA-Factory could not export it.
        TrainkitError: the exported model did not pass the check.
    """
    check_options(options)
    marker = require_marker(model_dir)
    target = find_target(marker, options, base)
    check_target(target, model_dir, marker)
    staged = temporary_beside(target)
    made = recipe(model_dir, marker, options)  # before the export: a model that changes meanwhile is another one
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            on_stage("merging" if is_adapter(model_dir) else "copying")
            run_export(export_values(model_dir, marker, staged, options), staged)
            on_stage("checking the exported model")
            report = verify(model_dir, marker, staged)
            about = {"kind": "export", "source": str(model_dir), "report": report}
            write_marker(staged, {**marker, **about, "made": made, "files": stamps(staged)})
            replace_folder(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return ExportResult(target, report)


def find_export(model_dir: Path, options: ExportOptions, base: Path) -> ExportResult | None:
    """Return the export of a model as it is on the disk, when neither it nor what it was made of changed since.

    Raises:
        UsageProblem: a size or a device that there is not.
        ConfigError: the folder holds no trained model, or the output folder is somebody else's.
    """
    check_options(options)
    marker = require_marker(model_dir)
    target = find_target(marker, options, base)
    check_target(target, model_dir, marker)
    earlier = find_marker(target) or {}
    if earlier.get("kind") != "export" or earlier.get("made") != recipe(model_dir, marker, options):
        return None
    return ExportResult(target, earlier["report"]) if earlier["files"] == stamps(target) else None


def find_target(marker: dict[str, Any], options: ExportOptions, base: Path) -> Path:
    """Return the folder that an export goes to."""
    wanted = marker.get("export") or {}
    return local_path(str(options.output_dir or wanted.get("export_dir") or EXPORT_DIR), base)


def recipe(model_dir: Path, marker: dict[str, Any], options: ExportOptions) -> dict[str, Any]:
    """Return what an export is made of: the same again gives the same model."""
    values = export_values(model_dir, marker, Path(), options)
    used = {key: value for key, value in values.items() if key not in ("export_dir", "export_device")}
    model = Path(str(values["model_name_or_path"]))
    return {"values": used, "source": stamps(model_dir), "model": stamps(model) if model.is_dir() else None}


def stamps(folder: Path) -> dict[str, list[int]]:
    """Return the size and the time of the last change of each file, without the marker, checkpoints and hidden ones."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    kept = [
        name for name in names
        if name.name != MARKER and not any(part.startswith((".", "checkpoint-")) for part in name.parts)
    ]  # fmt: skip
    found = {str(name): (folder / name).stat() for name in kept}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}


def check_options(options: ExportOptions) -> None:
    if options.size is not None and options.size < 1:
        raise UsageProblem(f"--size {options.size}: must be at least 1 (GB)")
    if options.device not in (None, "cpu", "auto"):
        raise UsageProblem(f"--device {options.device}: must be cpu or auto", "auto uses the GPU")


def require_marker(model_dir: Path) -> dict[str, Any]:
    """Return what is known of a trained model.

    Raises:
        ConfigError: the folder is missing, or no trainkit training wrote it.
    """
    if not model_dir.is_dir():
        raise ConfigError(f"{model_dir}: no such folder", "train first, or name the output_dir of a training")
    marker = find_marker(model_dir)
    if marker is None or not (marker.get("model_name_or_path") and marker.get("template")):
        raise ConfigError(
            f"{model_dir}: there is no {MARKER} of a training, so this is not the output of trainkit train",
            "name the output_dir of a training",
        )
    if not (is_adapter(model_dir) or (model_dir / "config.json").exists()):
        raise ConfigError(f"{model_dir}: holds no model yet", "the training has not ended; a checkpoint-N can be named")
    check_base(model_dir, marker)
    return marker


def check_base(model_dir: Path, marker: dict[str, Any]) -> None:
    """Check that the model which an adapter was trained on is still there.

    Raises:
        ConfigError: it is not.
    """
    base = Path(str(marker["model_name_or_path"]))
    if is_adapter(model_dir) and base.is_absolute() and not base.is_dir():
        raise ConfigError(f"{base}: there is no such folder, and {model_dir} is an adapter of it", "put the model back")


def is_adapter(model_dir: Path) -> bool:
    """Whether a training left an adapter, and not a whole model."""
    return (model_dir / ADAPTER_FILE).exists()


def check_target(target: Path, model_dir: Path, marker: dict[str, Any]) -> None:
    """Check that the output folder is free, or an earlier export.

    Raises:
        ConfigError: it holds something else, or what the export is made of.
    """
    if model_dir.absolute().is_relative_to(target):
        raise ConfigError(f"{target}: is the trained model itself, or holds it", "choose another --output-dir")
    if Path(str(marker["model_name_or_path"])).is_relative_to(target):
        raise ConfigError(f"{target}: is the model that was trained, or holds it", "choose another --output-dir")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    earlier = find_marker(target) if target.is_dir() else None
    if earlier is None or earlier.get("kind") != "export":
        raise ConfigError(f"{target}: exists and was not written by trainkit export", "choose another --output-dir")


def check_planned(values: Mapping[str, Any], base: Path) -> None:
    """Check before a training that its export will find a place: after the training would be late.

    Raises:
        ConfigError: the folder is somebody else's.
    """
    target = (base / (values.get("export_dir") or EXPORT_DIR)).absolute()
    check_target(target, Path(str(values["output_dir"])), dict(values))


def export_values(model_dir: Path, marker: dict[str, Any], staged: Path, options: ExportOptions) -> dict[str, Any]:
    """Return what LLaMA-Factory reads for an export. After full training its output folder is the model."""
    wanted = marker.get("export") or {}
    lora = is_adapter(model_dir)
    values = {
        "model_name_or_path": marker["model_name_or_path"] if lora else str(model_dir),
        "adapter_name_or_path": str(model_dir) if lora else None,
        "finetuning_type": "lora" if lora else "full",
        "template": marker["template"],
        "trust_remote_code": marker.get("trust_remote_code"),
        "export_dir": str(staged),
        "export_size": options.size or wanted.get("export_size") or 5,
        "export_device": options.device or wanted.get("export_device") or "cpu",
        "export_legacy_format": False,
    }
    return {key: value for key, value in values.items() if value is not None}


def run_export(values: dict[str, Any], staged: Path) -> None:
    """Let LLaMA-Factory write the model."""
    config_file = staged.with_suffix(".yaml")
    log_file = staged.with_suffix(".log")
    env = environment.snapshot()
    command = export_command(config_file, bin_dir=find_trainer(trainer_python()), cwd=staged.parent, env=env)
    try:
        write_text_atomic(config_file, render_yaml(TrainConfig(values, {})))
        outcome = run(command, env=env, log_file=log_file, on_tick=lambda: None)
        if outcome.signal is not None:
            raise Interrupted("export stopped; nothing was written", outcome.signal)
        if outcome.exit_code != 0:
            found = diagnose(load_tail(log_file), outcome.exit_code)
            lines = "".join(f"\n    {line}" for line in found.lines)
            raise TrainerFailed(f"export failed: {found.title}{lines}", outcome.exit_code, found.hint)
    finally:
        config_file.unlink(missing_ok=True)
        log_file.unlink(missing_ok=True)


def verify(model_dir: Path, marker: dict[str, Any], staged: Path) -> dict[str, Any]:
    """Check the exported model in the trainer's environment; return the report.

    Raises:
        TrainkitError: it is not good; the message lists every reason.
    """
    lora = is_adapter(model_dir)
    base = Path(str(marker["model_name_or_path"]))
    request = {
        "base": str(base) if base.is_dir() else None,
        "exported": str(staged),
        "adapter": str(model_dir) if lora else None,
        "template": marker["template"],
        "prompt": PROMPT,
        "max_new_tokens": 16,
        "trust_remote_code": bool(marker.get("trust_remote_code")),
    }
    env = environment.snapshot()
    command = program_command(trainer_python(), INSIDE / "verify_export.py", cwd=staged.parent, env=env)
    _, out, err = capture(command, env=env, stdin=json.dumps(request))
    report = last_json(out)
    if report is None:
        lines = "\n    ".join(err.strip().splitlines()[-5:])
        raise TrainkitError(f"the exported model could not be checked:\n    {lines}", "nothing was written")
    if not report.get("ok"):
        reasons = "".join(f"\n    {problem}" for problem in report.get("problems", [report.get("error")]))
        raise TrainkitError(f"the exported model is not good:{reasons}", "nothing was written")
    return report


def last_json(text: str) -> dict[str, Any] | None:
    """Return the JSON object in the last line of a program's output."""
    lines = text.strip().splitlines()
    try:
        value = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def replace_folder(staged: Path, target: Path) -> None:
    """Put the finished folder in the place of an earlier one."""
    old = None
    if target.exists():
        old = temporary_beside(target)
        target.rename(old)
    staged.rename(target)
    sync_folder(target.parent)
    if old is not None:
        shutil.rmtree(old)
