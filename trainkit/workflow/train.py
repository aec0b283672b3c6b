"""`trainkit train`: check, start the trainer, follow it, say how it ended."""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.dataset.findings import strict
from trainkit.datatypes import Problem, gravest_first
from trainkit.errors import ConfigError, OutOfMemory, TrainerFailed, TrainkitError
from trainkit.launch.diagnosis import OUT_OF_MEMORY, diagnose, find_silent_failure
from trainkit.launch.llamafactory import find_trainer
from trainkit.launch.process import PREEMPTIONS, run
from trainkit.runs.checkpoints import set_aside
from trainkit.runs.progress import ProgressReader
from trainkit.runs.store import PROGRESS_LOG, Run, create_run
from trainkit.workflow.auto import predicted, smaller_hint
from trainkit.workflow.examine import ExamineOptions, examine
from trainkit.workflow.export import check_planned
from trainkit.workflow.preempt import (
    AGAIN,
    Ended,
    StopRequest,
    find_preemption,
    find_restart,
    hand_on,
    load_last_tail,
    step_of,
    stopped,
)
from trainkit.workflow.prepare import Settings, prepare, read_from, require_sound, trainer_python, writing
from trainkit.workflow.record import find_metrics, finish_run, restart_run, start_run
from trainkit.workflow.start import LOG_ROOT, TrainOptions, TrainPlan, choose_resume, lay_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.datatypes import Step, TrainConfig
    from trainkit.runs.checkpoints import Resume
    from trainkit.workflow.prepare import Prepared
    from trainkit.workflow.suggestion import Suggestion


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


def train(
    settings: Settings,
    options: TrainOptions,
    on_start: Callable[[TrainPlan, Run], None],
    on_step: Callable[[Step, int], None],
    on_look: Callable[[int, int | None], None] = lambda done, total: None,  # noqa: ARG005
    on_word: Callable[[Problem], None] = lambda word: None,  # noqa: ARG005
) -> TrainResult:
    """Train with LLaMA-Factory and wait for its end.

    Args:
        settings: the configuration and what the command line adds to it.
        options: resume, monitoring and restarts.
        on_start: told once, before the trainer starts.
        on_step: told of each row of the trainer's log, with the step that a resumed training went on from.
        on_look: told of the bytes of data that were looked at before the start, and of all.
        on_word: told that the trainer was asked to stop, and of each restart.

    Raises:
        ProblemsFound: the configuration or the data have errors; nothing was started.
        OutOfMemory: the GPU's memory was too small; the message says what was predicted, the hint what needs less.
        TrainerFailed: the trainer failed; the message says why as far as its log tells.
        Interrupted: the user or the system asked to stop, and the training has not finished.
    """
    prepared = prepare(settings)
    require_sound(prepared)
    if options.export:
        check_planned(prepared.config.values, settings.base)
    find_trainer(trainer_python())
    prepared, fit = examined(settings, prepared, options, on_look)
    resume = choose_resume(prepared.config, options.resume, settings.base)
    with writing(settings.base):
        run_folder = create_run(settings.base / LOG_ROOT, run_name(settings, prepared), datetime.now().astimezone())
        try:
            plan = lay_out(prepared, resume, options, run_folder.path)
            # of several nodes on one disk, the first alone moves and marks what is there once
            moved = [] if prepared.node_rank else make_room(resume, prepared.config)
        except TrainkitError:
            run_folder.path.rmdir()
            raise
        plan = dataclasses.replace(plan, notes=(*plan.notes, *moved))
        manifest = start_run(plan, run_folder, settings)
    on_start(plan, run_folder)
    ended = follow_to_the_end(plan, settings, options, run_folder, manifest, on_step, on_word)
    metrics = {} if ended.preempted else find_metrics(plan.output_dir, ended.outcome)
    with writing(run_folder.path):
        finish_run(run_folder, manifest, ended, metrics)
    check_outcome(ended, run_folder, fit)
    if not prepared.node_rank:  # elsewhere the trainer writes no log of its steps
        check_progress(ended, run_folder)
    hand_on(ended.outcome.signal)
    notes = (*plan.notes, *check_learning(run_folder, metrics))
    return TrainResult(run_folder, plan.output_dir, metrics, notes, ended.outcome.seconds)


def examined(
    settings: Settings, prepared: Prepared, options: TrainOptions, on_look: Callable[[int, int | None], None]
) -> tuple[Prepared, Suggestion | None]:
    """Return the configuration with all that an examination adds to its problems, and how it fits on the GPU.

    Raises:
        ProblemsFound: something keeps the training from starting.
    """
    found = examine(settings, prepared, ExamineOptions(resume=options.resume, export=options.export), on_look)
    problems = [*prepared.problems, *found.problems]
    problems = strict(problems) if options.strict else problems
    prepared = dataclasses.replace(prepared, problems=tuple(gravest_first(problems)))
    require_sound(prepared)
    return prepared, found.fit


def follow_to_the_end(
    plan: TrainPlan,
    settings: Settings,
    options: TrainOptions,
    run_folder: Run,
    manifest: dict[str, Any],
    on_step: Callable[[Step, int], None],
    on_word: Callable[[Problem], None],
) -> Ended:
    """Run the trainer to its end, and after a crash again as often as the options allow; return how it ended."""
    seconds, restarts = 0.0, 0
    while True:
        ended = follow(plan, run_folder, on_step, on_word)
        seconds += ended.outcome.seconds
        ended = dataclasses.replace(ended, outcome=dataclasses.replace(ended.outcome, seconds=seconds))
        resume = find_restart(settings, ended, run_folder) if restarts < options.max_restarts else None
        if resume is None:
            return ended
        restarts += 1
        plan = lay_out(plan.prepared, resume, options, run_folder.path)
        reason = diagnose(load_last_tail(run_folder.log_file), ended.outcome.exit_code).title
        entry = {"exit_code": ended.outcome.exit_code, "step": step_of(resume), "reason": reason}
        word = f"{reason}; going on after step {entry['step']}"
        with writing(run_folder.path):
            restart_run(plan, run_folder, manifest, entry)
            with run_folder.log_file.open("a", encoding="utf-8") as log:
                log.write(f"\n{AGAIN}{restarts} of {options.max_restarts}: {word}\n")
        on_word(Problem(f"restart {restarts} of {options.max_restarts}", word, level="warning"))


def follow(
    plan: TrainPlan, run_folder: Run, on_step: Callable[[Step, int], None], on_word: Callable[[Problem], None]
) -> Ended:
    """Run the trainer to its end once; return how it ended."""
    start_step = step_of(plan.resume)
    reader = ProgressReader(plan.output_dir / PROGRESS_LOG, from_end=start_step > 0)
    last: Step | None = None
    request = StopRequest(run_folder)
    told: list[int] = []

    def tick() -> None:
        nonlocal last
        for last in reader.read_new():
            on_step(last, start_step)
        if request.number is not None and not told:
            told.append(request.number)
            name = signal.Signals(request.number).name
            on_word(Problem(name, "the trainer saves and stops; a second signal stops it at once", level="note"))

    env = dict(plan.prepared.environ) | plan.secrets
    request.clear()
    outcome = run(plan.command, env=env, log_file=run_folder.log_file, on_tick=tick, ask=request.ask)
    return Ended(plan, outcome, last, find_preemption(request.clear(), outcome, plan.output_dir))


def run_name(settings: Settings, prepared: Prepared) -> str:
    """Return the last part of the run folder's name: the one given, the data set of the command line, or `train`."""
    option = settings.name or settings.options.get("dataset", ("", None))[1]
    name = str(option).replace(",", "+") if option else "train"
    return f"{name}-node{prepared.node_rank}" if prepared.node_rank else name


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


def check_outcome(ended: Ended, run_folder: Run, fit: Suggestion | None = None) -> None:
    """Raise what a failed or stopped training means for the user."""
    outcome = ended.outcome
    if ended.preempted:
        raise stopped(ended, ended.preempted.signal, run_folder)
    if outcome.signal is not None and outcome.signal not in PREEMPTIONS:
        raise stopped(ended, outcome.signal, run_folder)
    if outcome.exit_code == 0:
        return
    found = diagnose(load_last_tail(run_folder.log_file), outcome.exit_code)
    lines = "".join(f"\n    {line}" for line in found.lines)
    message = f"training failed: {found.title}{lines}\n    the whole log: {run_folder.log_file}"
    if found.title == OUT_OF_MEMORY:
        raise OutOfMemory(f"{message}{predicted(fit)}", outcome.exit_code, smaller_hint(fit) or found.hint)
    raise TrainerFailed(message, outcome.exit_code, found.hint)


def check_progress(ended: Ended, run_folder: Run) -> None:
    """Check that a resumed training made steps: the trainer ends at once, with exit code 0, when none are planned."""
    start_step = step_of(ended.plan.resume)
    if start_step and (ended.last is None or ended.last.step <= start_step):
        raise TrainkitError(
            f"the trainer resumed at step {start_step} and made no step; the log is {run_folder.log_file}",
            "raise num_train_epochs or max_steps, or start anew with --resume never",
        )


def check_learning(run_folder: Run, metrics: dict[str, Any]) -> tuple[Problem, ...]:
    """Return a warning for a training that ended well and learnt nothing: the trainer's exit code does not tell."""
    if found := find_silent_failure(load_last_tail(run_folder.log_file)):
        return (Problem("train_loss", f"{found.title}: the model is of no use", found.hint, "warning"),)
    if metrics.get("train_loss") == 0:
        hint = "no token was trained on: are all answers cut off by cutoff_len?"
        return (Problem("train_loss", "is exactly 0", hint, "warning"),)
    return ()
