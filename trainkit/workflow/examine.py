"""Everything about a training that can be known before it: its data, its disk, its resume, its place on the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit import environment
from trainkit.dataset.linter import check_registry
from trainkit.dataset.registry import REGISTRY, find_files, load_registry
from trainkit.datatypes import Problem
from trainkit.errors import ConfigError, InputError
from trainkit.plan.architecture import find_architecture
from trainkit.plan.arguments import installed_versions
from trainkit.plan.check import load_deepspeed, zero_stage
from trainkit.plan.disk import Training, check_disk, find_volume
from trainkit.plan.hardware import GIB
from trainkit.plan.steps import Steps, plan_steps
from trainkit.plan.versions import PINS, check_versions
from trainkit.runs.checkpoints import find_checkpoints
from trainkit.runs.resume_check import PlannedRun, check_resume, find_earlier_manifest
from trainkit.runs.store import find_marker
from trainkit.workflow.auto import words_of
from trainkit.workflow.look import LookResult, faulty_names, find_entries, look_at_data
from trainkit.workflow.prepare import names_of, trainer_python
from trainkit.workflow.start import LOG_ROOT, choose_resume
from trainkit.workflow.suggest import SuggestOptions, suggest

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.datatypes import Checkpoint
    from trainkit.plan.padding import Lengths
    from trainkit.workflow.prepare import Prepared, Settings
    from trainkit.workflow.suggestion import Suggestion


@dataclass(frozen=True, slots=True)
class ExamineOptions:
    """What an examination is about.

    Attributes:
        gpu, gpus: the machine that the training is meant for; None is this one.
        jobs: processes at most.
        resume: as `--resume` says it.
        export: an export will follow, so it needs its room too.
    """

    gpu: str | None = None
    gpus: int | None = None
    jobs: int | None = None
    resume: str | None = None
    export: bool = False


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found: the look at the data, the steps of the training, its place on the GPU, all problems."""

    look: LookResult
    steps: Steps | None
    fit: Suggestion | None
    problems: tuple[Problem, ...]


def examine(
    settings: Settings,
    prepared: Prepared,
    options: ExamineOptions,
    report: Callable[[int, int | None], None] = lambda done, total: None,  # noqa: ARG005
) -> Examination:
    """Find every problem of a training that its configuration alone does not show; nothing is written."""
    problems = [*check_installed(), *check_entries(prepared)]
    look = look_at_data(prepared, options.jobs, report)
    problems += look.problems
    if prepared.errors:  # the rest reckons with values that are sound
        return Examination(look, None, None, tuple(problems))
    world = options.gpus or world_of(prepared)
    steps = plan_steps(look.train_rows, value_of(prepared), world) if look.train_rows else None
    checkpoint, refused = find_checkpoint(settings, prepared, options)
    if not options.gpu:  # the disks of the machine that is meant are not here
        problems += check_room(prepared, steps, options, checkpoint)
    problems += refused
    problems += check_going_on(settings, prepared, steps, checkpoint, world) if checkpoint else []
    try:
        fit = find_fit(settings, prepared, options, look.lengths)
    except (ConfigError, InputError) as error:
        fit, unknown = None, Problem("GPU memory", f"cannot be foreseen: {error.message}", error.hint, "note")
        problems.append(unknown)
    problems += check_fit(fit) if fit else []
    return Examination(look, steps, fit, tuple(problems))


def world_of(prepared: Prepared) -> int:
    """Return how many processes will share the rows, on all nodes together."""
    words = (prepared.environ.get(name, "") for name in ("NNODES", "NPROC_PER_NODE"))
    nodes, here = (int(word) if word.isdecimal() else 0 for word in words)
    return max(1, nodes) * (here or len(prepared.hardware.gpus) or 1)


def value_of(prepared: Prepared) -> Callable[[str], Any]:
    """Return the function from a key to its value, or to the trainer's default for it."""
    return lambda key: prepared.config.values.get(key, prepared.schema.default(key))


def check_installed() -> list[Problem]:
    """Return what is wrong with the versions of the packages that a training needs; `trainkit doctor` imports them."""
    found = check_versions(installed_versions(trainer_python(), PINS))
    return [problem for problem in found if problem.level != "note"]


def check_entries(prepared: Prepared) -> list[Problem]:
    """Return what is wrong with the registry; check_data says when it or an entry is missing."""
    names = [*prepared.datasets, *names_of(prepared.config.values.get("eval_dataset"))]
    if not (prepared.dataset_dir / REGISTRY).is_file() or faulty_names(prepared):
        return []
    problems = check_registry(prepared.dataset_dir, names, stage=str(value_of(prepared)("stage")))
    entries = find_entries(prepared)
    others = {problem.where.rpartition(" ")[2] for problem in problems} & (entries.keys() - {*names})
    told = [problem for problem in problems if problem.where.rpartition(" ")[2] not in others]
    if others:
        message = f"other entries have faults too: {', '.join(sorted(others))}"
        told.append(Problem(REGISTRY, message, "trainkit validate -d NAME tells them", "note"))
    return told


def check_room(
    prepared: Prepared, steps: Steps | None, options: ExamineOptions, checkpoint: Checkpoint | None
) -> list[Problem]:
    """Return what speaks against the disks: checkpoints, the trained model and its export must fit."""
    values, value = prepared.config.values, value_of(prepared)
    try:
        architecture = find_architecture(str(values.get("model_name_or_path") or ""), environment.snapshot())
    except (ConfigError, InputError):  # a model whose sizes are not known; find_fit says so where it matters
        return []
    if architecture is None:
        return []
    method = str(value("finetuning_type"))
    targets = names_of(value("lora_target")) or ["all"]
    chosen = "all" if "all" in targets else tuple(targets)
    adapter = architecture.lora_params(int(value("lora_rank")), chosen) if method == "lora" else 0
    deepspeed = values.get("deepspeed")
    training = Training(
        architecture.params,
        adapter or architecture.params,
        method,
        zero_stage(load_deepspeed(deepspeed)) if deepspeed else None,
        bool(value("pure_bf16")),
        str(value("optim")),
    )
    output_dir = Path(str(values["output_dir"]))
    folders = {"output_dir": output_dir}
    if options.export:
        folders["export_dir"] = Path(str(values.get("export_dir") or output_dir))
    volumes = {key: find_volume(folder) for key, folder in folders.items()}
    existing = len(find_checkpoints(output_dir)) if checkpoint else 0  # without a resume they are set aside
    return check_disk(values, training, volumes, total_steps=steps.total if steps else None, existing=existing)


def find_checkpoint(
    settings: Settings, prepared: Prepared, options: ExamineOptions
) -> tuple[Checkpoint | None, list[Problem]]:
    """Return the checkpoint that this training goes on from, if it does, and why it would be refused."""
    try:
        return choose_resume(prepared.config, options.resume, settings.base).checkpoint, []
    except (ConfigError, InputError) as error:
        return None, [Problem("resume_from_checkpoint", error.message, error.hint, "warning")]


def check_going_on(
    settings: Settings, prepared: Prepared, steps: Steps | None, checkpoint: Checkpoint, world: int
) -> list[Problem]:
    """Return what would not go as planned when this training goes on from a checkpoint."""
    try:
        manifest = find_earlier_manifest(checkpoint.path, settings.base / LOG_ROOT)
        trained_on = names_of((find_marker(checkpoint.path) or {}).get("dataset"))
    except InputError as error:
        return [Problem("resume_from_checkpoint", error.message, error.hint, "warning")]
    value = value_of(prepared)
    entries = load_registry(prepared.dataset_dir)
    planned = PlannedRun(
        total_steps=steps.total if steps else None,
        learning_rate=float(value("learning_rate")),
        batch_size=int(value("per_device_train_batch_size")),
        accumulation=int(value("gradient_accumulation_steps")),
        processes=world,
        deepspeed=bool(value("deepspeed")),
        ignore_data_skip=bool(value("ignore_data_skip")),
        files=tuple({file: 0 for name in prepared.datasets for file in find_files(prepared.dataset_dir, name)}),
        splits={name: entries[name].get("split") for name in prepared.datasets if name in entries},
    )
    return check_resume(checkpoint, planned, without_eval_data(manifest, trained_on))


def without_eval_data(manifest: dict[str, Any], trained_on: list[str]) -> dict[str, Any]:
    """Return the record of a run without the files that only its evaluation read: a resume skips none of their rows."""
    files = {name: entry.get("file_name") for name, entry in manifest.get("datasets", {}).items()}
    trained = {files.get(name) for name in trained_on}
    other = [f"/{file}/" for file in files.values() if file and file not in trained]
    data = [entry for entry in manifest.get("data", ()) if not any(file in f"{entry['path']}/" for file in other)]
    return manifest | {"data": data}


def find_fit(
    settings: Settings, prepared: Prepared, options: ExamineOptions, lengths: Lengths | None
) -> Suggestion | None:
    """Return how the training fits on the GPU that is named or here; None when there is neither.

    Raises:
        ConfigError, InputError: the memory model does not know such a training.
    """
    if not options.gpu and not prepared.hardware.gpus:
        return None
    return suggest(settings, SuggestOptions(options.gpu, options.gpus), lengths)


def check_fit(fit: Suggestion) -> list[Problem]:
    """Return a warning when the configuration will not fit, with settings that do."""
    given, gpu = fit.advice.given, fit.task.machine.gpu
    if given.fits:
        return []
    message = (
        f"needs {given.memory.total / GIB:.1f} GiB, and {given.usable / GIB:.1f} of {gpu.name} can be filled "
        f"(the peak is at {given.memory.phase})"
    )
    best = next(iter(fit.advice.candidates), None)
    if best is None:
        return [Problem("GPU memory", message, "trainkit suggest shows what comes nearest", "warning")]
    words = " ".join(words_of(best.changes))
    need = f"{best.verdict.memory.total / GIB:.1f} GiB"
    hint = f"{words} needs {need}: train --auto takes it, trainkit suggest shows more"
    return [Problem("GPU memory", message, hint, "warning")]
