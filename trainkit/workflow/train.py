"""`trainkit train`: check, start the trainer, follow it, say how it ended."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainkit import environment
from trainkit.datatypes import Problem
from trainkit.errors import ConfigError, Interrupted, TrainerFailed, TrainkitError, UsageProblem
from trainkit.launch.diagnosis import diagnose, find_silent_failure, load_tail
from trainkit.launch.llamafactory import find_trainer, train_command
from trainkit.launch.monitoring import Monitoring, plan_monitoring
from trainkit.launch.process import run
from trainkit.launch.reach import can_reach
from trainkit.plan.paths import local_path
from trainkit.plan.render import secret_environment
from trainkit.runs.checkpoints import Resume, plan_resume, set_aside
from trainkit.runs.progress import ProgressReader
from trainkit.runs.store import (
    PROGRESS_LOG,
    Run,
    create_run,
    find_marker,
)
from trainkit.workflow.export import check_planned
from trainkit.workflow.prepare import Prepared, Settings, prepare, read_from, require_sound, trainer_python, writing
from trainkit.workflow.record import SAME_RUN, find_metrics, finish_run, start_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.datatypes import Command, Outcome, Step, TrainConfig

LOG_ROOT = Path("logs")

Monitor = Literal["swanlab", "wandb", "none"]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How a training is started.

    Attributes:
        resume: "auto", "never" or a checkpoint; None means auto, or never where the configuration says
            `overwrite_output_dir: true`.
        monitor: the tracker; None means what the configuration says, else SwanLab.
        export: an export will follow, so its folder is checked too.
    """

    resume: str | None = None
    monitor: Monitor | None = None
    export: bool = False


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """A training as it will be started; `secrets` are environment variables that are never written down."""

    prepared: Prepared
    config: TrainConfig
    command: Command
    resume: Resume
    secrets: dict[str, str]
    notes: tuple[Problem, ...]

    @property
    def output_dir(self) -> Path:
        """The folder of the trained model."""
        return Path(str(self.config.values["output_dir"]))


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a training ended: its run folder, the trained model's folder, the trainer's own metrics."""

    run: Run
    output_dir: Path
    metrics: dict[str, Any]
    notes: tuple[Problem, ...]
    seconds: float

    @property
    def loss_curve(self) -> Path | None:
        """The picture of the training loss, when the trainer drew one."""
        picture = self.output_dir / "training_loss.png"
        return picture if picture.exists() else None


def plan_training(settings: Settings, options: TrainOptions) -> TrainPlan:
    """Return the training that the settings describe; nothing is started and nothing written.

    Raises:
        ProblemsFound: the configuration has errors.
        ConfigError: the output folder holds a finished or another training.
    """
    prepared = prepare(settings)
    require_sound(prepared)
    if options.export:
        check_planned(prepared.config.values, settings.base)
    resume = choose_resume(prepared.config, options.resume, settings.base)
    return lay_out(prepared, resume, options, settings.base / LOG_ROOT / "RUN")


def train(
    settings: Settings,
    options: TrainOptions,
    on_start: Callable[[TrainPlan, Run], None],
    on_step: Callable[[Step, int], None],
) -> TrainResult:
    """Train with LLaMA-Factory and wait for its end.

    Args:
        settings: the configuration and what the command line adds to it.
        options: resume and monitoring.
        on_start: told once, before the trainer starts.
        on_step: told of each row of the trainer's log, with the step that a resumed training went on from.

    Raises:
        ProblemsFound: the configuration has errors; nothing was started.
        TrainerFailed: the trainer failed; the message says why as far as its log tells.
        Interrupted: the user or the system asked to stop.
    """
    prepared = prepare(settings)
    require_sound(prepared)
    if options.export:
        check_planned(prepared.config.values, settings.base)
    find_trainer(trainer_python())
    resume = choose_resume(prepared.config, options.resume, settings.base)
    with writing(settings.base):
        run_folder = create_run(settings.base / LOG_ROOT, run_name(settings), datetime.now().astimezone())
        try:
            plan = lay_out(prepared, resume, options, run_folder.path)
            moved = make_room(resume, prepared.config)
        except TrainkitError:
            run_folder.path.rmdir()
            raise
        plan = dataclasses.replace(plan, notes=(*plan.notes, *moved))
        manifest = start_run(plan, run_folder, settings)
    on_start(plan, run_folder)
    outcome, last = follow(plan, run_folder, on_step)
    metrics = find_metrics(plan.output_dir, outcome)
    with writing(run_folder.path):
        finish_run(run_folder, manifest, outcome, metrics)
    check_outcome(outcome, run_folder, plan)
    check_progress(last, resume, run_folder)
    notes = (*plan.notes, *check_learning(run_folder, metrics))
    return TrainResult(run_folder, plan.output_dir, metrics, notes, outcome.seconds)


def lay_out(prepared: Prepared, resume: Resume, options: TrainOptions, run_folder: Path) -> TrainPlan:
    """Return the training as it will be started from `run_folder`."""
    config, secrets = secret_environment(prepared.config)
    monitoring = choose_monitoring(config, resume, options, secrets, run_folder)
    changes = {**monitoring.config, **resume_keys(resume)}
    config = dataclasses.replace(
        config,
        values={**without(config.values, "resume_from_checkpoint", "overwrite_output_dir"), **changes},
        origin={**config.origin, **dict.fromkeys(changes, "trainkit")},
    )
    env = environment.snapshot()
    command = train_command(
        run_folder / "config.yaml",
        bin_dir=find_trainer(trainer_python()),
        cwd=run_folder,
        env=env,
        deepspeed=bool(config.values.get("deepspeed")),
        gpu_count=len(prepared.hardware.gpus),
        extra_env={**monitoring.env, **quiet_environment(env)},
    )
    about_secrets = config.notes[len(prepared.config.notes) :]
    notes = (*prepared.problems, *about_secrets, *resume.notes, *monitoring.notes)
    return TrainPlan(prepared, config, command, resume, secrets, notes)


def follow(plan: TrainPlan, run_folder: Run, on_step: Callable[[Step, int], None]) -> tuple[Outcome, Step | None]:
    """Run the trainer to its end; return how it ended, and its last logged step."""
    start_step = plan.resume.checkpoint.step if plan.resume.checkpoint else 0
    reader = ProgressReader(plan.output_dir / PROGRESS_LOG, from_end=start_step > 0)
    last: Step | None = None

    def tick() -> None:
        nonlocal last
        for last in reader.read_new():
            on_step(last, start_step)

    env = environment.snapshot() | plan.secrets
    return run(plan.command, env=env, log_file=run_folder.log_file, on_tick=tick), last


def parse_monitor(word: str | None) -> Monitor | None:
    """Return the tracker that `--monitor` names.

    Raises:
        UsageProblem: it is none of those that are known.
    """
    match word:
        case None | "swanlab" | "wandb" | "none":
            return word
    raise UsageProblem(f"--monitor {word}: must be swanlab, wandb or none")


def run_name(settings: Settings) -> str:
    """Return the last part of the run folder's name: the data set that the command line names, or `train`."""
    option = settings.options.get("dataset", ("", None))[1]
    return str(option).replace(",", "+") if option else "train"


def choose_resume(config: TrainConfig, asked: str | None, base: Path) -> Resume:
    """Decide where the training starts, from the option, the configuration, and what the output folder holds.

    A checkpoint that the option names is looked for from `base`; the trainer works in another folder.

    Raises:
        ConfigError: the training there has finished or is another one, or the chosen checkpoint is not complete.
    """
    values = config.values
    output_dir = Path(str(values["output_dir"]))
    from_config = values.get("resume_from_checkpoint")
    choice = asked or (str(from_config) if from_config else "never" if values.get("overwrite_output_dir") else "auto")
    if choice in ("auto", "never"):
        plan = plan_resume(
            output_dir,
            "auto" if choice == "auto" else "never",
            num_train_epochs=values.get("num_train_epochs"),
            max_steps=int(values.get("max_steps") or -1),
        )
        if plan.checkpoint:
            check_same_run(config, output_dir)
        return plan
    return plan_resume(output_dir, local_path(choice, base))


def check_same_run(config: TrainConfig, output_dir: Path) -> None:
    """Check that a training found in the output folder is the one that is to go on.

    Raises:
        ConfigError: it was made from other data, another model or in another way.
    """
    marker = find_marker(output_dir) or {}
    different = [key for key in SAME_RUN if key in marker and marker[key] != config.values.get(key)]
    if different:
        told = ", ".join(f"{key} was {marker[key]}" for key in different)
        raise ConfigError(
            f"{output_dir}: holds an unfinished training that is not this one ({told})",
            "choose another output_dir, or --resume never to start anew (the old folder is kept as .previous)",
        )


def resume_keys(resume: Resume) -> dict[str, Any]:
    """Return the trainer's keys for a resume; without one LLaMA-Factory must not look for a checkpoint itself."""
    if resume.checkpoint:
        return {"resume_from_checkpoint": str(resume.checkpoint.path)}
    return {"overwrite_output_dir": True}


def choose_monitoring(
    config: TrainConfig, resume: Resume, options: TrainOptions, secrets: dict[str, str], run_folder: Path
) -> Monitoring:
    """Decide on the tracker; a run without login or network is recorded in the run folder."""
    return plan_monitoring(
        options.monitor,
        config.values,
        environment.snapshot() | secrets,
        installed=lambda package: importlib.util.find_spec(package) is not None,
        home=Path.home(),
        run_name=run_folder.name,
        log_dir=run_folder,
        run_id=tracked_as(resume, run_folder),
        reachable=can_reach,
    )


def tracked_as(resume: Resume, run_folder: Path) -> str:
    """Return the tracker's id of this training; a resumed one goes on under the id that it began with."""
    marker = find_marker(resume.checkpoint.path) if resume.checkpoint else None
    return str((marker or {}).get("tracked_as") or run_folder.name)


def quiet_environment(env: dict[str, str]) -> dict[str, str]:
    """Return what keeps a trainer's log readable and its libraries from asking questions."""
    wanted = {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore::FutureWarning"}
    return {name: value for name, value in wanted.items() if name not in env}


def without(values: Any, *keys: str) -> dict[str, Any]:
    """Return a mapping without some keys."""
    return {key: value for key, value in values.items() if key not in keys}


def make_room(resume: Resume, config: TrainConfig) -> list[Problem]:
    """Move an earlier training out of the way of one that does not go on from it; return a word on it.

    Raises:
        ConfigError: the place to move it to holds what this training reads.
    """
    folder = Path(str(config.values["output_dir"]))
    start = resume.checkpoint.path if resume.checkpoint else None
    if (start and start.is_relative_to(folder)) or not folder.is_dir() or not any(folder.iterdir()):
        return []
    previous = folder.with_name(f"{folder.name}.previous")
    if (start and start.is_relative_to(previous)) or read_from(config, previous):
        raise ConfigError(
            f"{previous}: is read by this training, and {folder} would take its place",
            "rename it, or choose another output_dir",
        )
    set_aside(folder)
    return [Problem("output_dir", f"the earlier training there was kept as {previous}", level="note")]


def check_outcome(outcome: Outcome, run_folder: Run, plan: TrainPlan) -> None:
    """Raise what a failed or stopped training means for the user."""
    if outcome.signal is not None:
        hint = f"--resume auto goes on from the newest complete checkpoint in {plan.output_dir}"
        raise Interrupted(f"stopped; the log is {run_folder.log_file}; {hint}", outcome.signal)
    if outcome.exit_code == 0:
        return
    found = diagnose(load_tail(run_folder.log_file), outcome.exit_code)
    lines = "".join(f"\n    {line}" for line in found.lines)
    message = f"training failed: {found.title}{lines}\n    the whole log: {run_folder.log_file}"
    raise TrainerFailed(message, outcome.exit_code, found.hint)


def check_progress(last: Step | None, resume: Resume, run_folder: Run) -> None:
    """Check that a resumed training made steps: the trainer ends at once, with exit code 0, when none are planned."""
    start_step = resume.checkpoint.step if resume.checkpoint else 0
    if start_step and (last is None or last.step <= start_step):
        raise TrainkitError(
            f"the trainer resumed at step {start_step} and made no step; the log is {run_folder.log_file}",
            "raise num_train_epochs or max_steps, or start anew with --resume never",
        )


def check_learning(run_folder: Run, metrics: dict[str, Any]) -> tuple[Problem, ...]:
    """Return a warning for a training that ended well and learnt nothing: the trainer's exit code does not tell."""
    if found := find_silent_failure(load_tail(run_folder.log_file)):
        return (Problem("train_loss", f"{found.title}: the model is of no use", found.hint, "warning"),)
    if metrics.get("train_loss") == 0:
        hint = "no token was trained on: are all answers cut off by cutoff_len?"
        return (Problem("train_loss", "is exactly 0", hint, "warning"),)
    return ()
