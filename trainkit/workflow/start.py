"""How a training will be started: from which checkpoint, with which tracker, by which command; nothing starts here."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainkit.errors import ConfigError, UsageProblem
from trainkit.launch.llamafactory import find_trainer, preemptible, train_command
from trainkit.launch.monitoring import Monitoring, plan_monitoring
from trainkit.launch.reach import can_reach
from trainkit.plan.paths import local_path
from trainkit.plan.render import secret_environment
from trainkit.runs.checkpoints import Resume, plan_resume
from trainkit.runs.store import find_marker
from trainkit.workflow.export import check_planned
from trainkit.workflow.prepare import Prepared, Settings, prepare, require_sound, trainer_python

if TYPE_CHECKING:
    from trainkit.datatypes import Command, Hardware, Problem, TrainConfig

LOG_ROOT = Path("logs")
# in a run's folder while it runs
STOP_FILE = "stop"
# What makes two trainings the same one, so that one can go on where the other stopped.
SAME_RUN = ("dataset", "model_name_or_path", "finetuning_type", "template")

# PyTorch's own settings of its CUDA allocator, under the name of today and the one before 2.9.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

Monitor = Literal["swanlab", "wandb", "none"]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How a training is started.

    Attributes:
        resume: "auto", "never" or a checkpoint; None means auto, or never where the configuration says
            `overwrite_output_dir: true`.
        monitor: the tracker; None means what the configuration says, else SwanLab.
        export: an export will follow, so its folder is checked too.
        strict: a warning keeps the training from starting.
        max_restarts: how often a training that crashed goes on from its newest complete checkpoint.
    """

    resume: str | None = None
    monitor: Monitor | None = None
    export: bool = False
    strict: bool = False
    max_restarts: int = 0


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


def lay_out(prepared: Prepared, resume: Resume, options: TrainOptions, run_folder: Path) -> TrainPlan:
    """Return the training as it will be started from `run_folder`."""
    config, secrets = secret_environment(prepared.config)
    env = dict(prepared.environ)
    monitoring = choose_monitoring(config, resume, options, env | secrets, run_folder)
    changes = {**monitoring.config, **resume_keys(resume)}
    config = dataclasses.replace(
        config,
        values={**without(config.values, "resume_from_checkpoint", "overwrite_output_dir"), **changes},
        origin={**config.origin, **dict.fromkeys(changes, "trainkit")},
    )
    command = train_command(
        run_folder / "config.yaml",
        bin_dir=find_trainer(trainer_python()),
        cwd=run_folder,
        env=env,
        deepspeed=bool(config.values.get("deepspeed")),
        gpu_count=len(prepared.hardware.gpus),
        extra_env={**monitoring.env, **quiet_environment(env), **memory_environment(env, prepared.hardware)},
    )
    command = preemptible(command, trainer_python(), run_folder / STOP_FILE)
    about_secrets = config.notes[len(prepared.config.notes) :]
    notes = (*prepared.problems, *about_secrets, *resume.notes, *monitoring.notes)
    return TrainPlan(prepared, config, command, resume, secrets, notes)


def parse_monitor(word: str | None) -> Monitor | None:
    """Return the tracker that `--monitor` names.

    Raises:
        UsageProblem: it is none of those that are known.
    """
    match word:
        case None | "swanlab" | "wandb" | "none":
            return word
    raise UsageProblem(f"--monitor {word}: must be swanlab, wandb or none")


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
            f"{output_dir}: holds a training that is not this one ({told})",
            "choose another: output_dir=saves/NAME; or start anew with --resume never (the old is kept as .previous)",
        )


def resume_keys(resume: Resume) -> dict[str, Any]:
    """Return the trainer's keys for a resume; without one LLaMA-Factory must not look for a checkpoint itself."""
    if resume.checkpoint:
        return {"resume_from_checkpoint": str(resume.checkpoint.path)}
    return {"overwrite_output_dir": True}


def choose_monitoring(
    config: TrainConfig, resume: Resume, options: TrainOptions, env: dict[str, str], run_folder: Path
) -> Monitoring:
    """Decide on the tracker; a run without login or network is recorded in the run folder."""
    return plan_monitoring(
        options.monitor,
        config.values,
        env,
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


def memory_environment(env: dict[str, str], hardware: Hardware) -> dict[str, str]:
    """Return what keeps the GPU's memory from falling to pieces, unless the user has said how it is handed out."""
    if not hardware.gpus or any(name in env for name in ALLOCATOR_VARIABLES):
        return {}
    return {ALLOCATOR_VARIABLES[0]: "expandable_segments:True"}


def without(values: Any, *keys: str) -> dict[str, Any]:
    """Return a mapping without some keys."""
    return {key: value for key, value in values.items() if key not in keys}
