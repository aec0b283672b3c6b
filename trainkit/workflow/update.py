"""`trainkit update`: from the rollouts of the last iterations to the next model, one round at a time.

    rollouts --survey--> steps --sample, split--> llamafactory_data/
    llamafactory_data/ --train--> checkpoints/model_TIME/ --hand over--> model.pt/

Each step leaves a state from which the next call goes on: the names of folders and the round's record say how far it
came (see `trainkit/runs/rounds.py` and `trainkit/runs/handover.py`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainkit import environment
from trainkit.dataset.findings import strict
from trainkit.dataset.select import TRAIN
from trainkit.dataset.short import make_is_short
from trainkit.dataset.thoughts import has_thoughts
from trainkit.datatypes import Problem
from trainkit.errors import EnvironmentProblem, ProblemsFound, UsageProblem
from trainkit.files import locked
from trainkit.plan.arguments import load_arguments
from trainkit.plan.hardware import find_hardware
from trainkit.plan.update import count_gpus, load_update
from trainkit.runs.exchange import remove
from trainkit.runs.handover import hand_over, recover
from trainkit.runs.rounds import (
    CHECKPOINTS,
    COPY,
    find_model,
    find_started,
    load_rounds,
    output_of,
    remove_old,
    write_round,
)
from trainkit.sources.trajectories import find_iterations
from trainkit.workflow.prepare import cache_folder, trainer_python, writing
from trainkit.workflow.rollouts import survey
from trainkit.workflow.round import (
    PreparedRound,
    Trainer,
    begin_writing,
    digest_of,
    draft_round,
    find_shorten,
    inputs_of,
    model_of,
    place_of,
    plan_round,
    write_round_files,
)
from trainkit.workflow.round_data import NAMES, Written, draw_sample, write_data
from trainkit.workflow.round_options import Told, UpdateOptions
from trainkit.workflow.round_resume import going_on_from, learning_rate_note, resuming
from trainkit.workflow.round_train import refuse_useless, train_round

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainkit.plan.update import UpdateConfig
    from trainkit.runs.handover import Handover
    from trainkit.runs.rounds import Round
    from trainkit.sources.trajectories import IterationFile
    from trainkit.workflow.train import TrainResult

DEFAULT_CONFIG = Path("update.yaml")


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What came of a call.

    `outcome` is "prepared" (its data and configuration are written, or with a dry run only shown), "handed over" or
    "nothing to do"; `prepared` is None where no data had to be made, `trained` where no training had to run. `removed`
    are folders of old rounds, as `keep_rounds` says.
    """

    outcome: Literal["prepared", "handed over", "nothing to do"]
    record: Round
    place: Path
    prepared: PreparedRound | None = None
    trained: TrainResult | None = None
    handover: Handover | None = None
    removed: tuple[Path, ...] = ()


def update(
    file: Path | None, overrides: Sequence[str], options: UpdateOptions, base: Path, told: Told | None = None
) -> UpdateResult:
    """Run one round of an online update, or what is left of one that was interrupted.

    Args:
        file: the update's YAML; None is update.yaml.
        overrides: `key=value` words that win over it.
        options: how far the round goes.
        base: the folder that relative paths start from.
        told: what is called on the way.

    Raises:
        ProblemsFound: keys or values of the configuration are wrong, or the training has errors.
        InputError: rollouts that cannot be read, or none that can be trained on.
        TrainerFailed, Interrupted: as for a training; the next call goes on.
        TrainkitError: the training made no step, or its model is of no use: it is not handed over.
    """
    told = told or Told()
    trainer, notes = find_trainer_here(must=options.train)
    config = load_update(base / (file or DEFAULT_CONFIG), overrides, base=base, schema=trainer.schema)
    check_gpus(config, trainer, options)
    config = dataclasses.replace(config, notes=(*notes, *config.notes))
    if options.dry_run:
        return run_round(config, options, trainer, base, told)
    with writing(config.save_path):
        if not config.save_path.is_dir():
            find_iterations(config.save_path, config.last_n_iterations)  # says what is wrong
        with locked(config.save_path):
            return run_round(config, options, trainer, base, told)


def find_trainer_here(*, must: bool) -> tuple[Trainer, tuple[Problem, ...]]:
    """Return the trainer and the machine of this environment.

    Raises:
        EnvironmentProblem: LLaMA-Factory is not installed, and it must be.
    """
    env = environment.snapshot()
    hardware = find_hardware(env)
    try:
        return Trainer(load_arguments(trainer_python(), cache_folder(), env), hardware, env), ()
    except EnvironmentProblem as error:
        if must:
            raise
        note = Problem("llamafactory", f"only the update's own keys can be set: {error.message}", error.hint, "note")
        return Trainer(None, hardware, env), (note,)


def check_gpus(config: UpdateConfig, trainer: Trainer, options: UpdateOptions) -> None:
    """Check that a training here does not want more GPUs than there are.

    Raises:
        UsageProblem: it does.
    """
    here = len(trainer.hardware.gpus)
    if options.train and count_gpus(config, trainer.hardware) > here:
        raise UsageProblem(f"num_gpus={config.num_gpus}: there are {here} GPUs here", "num_gpus=null takes all of them")


def run_round(config: UpdateConfig, options: UpdateOptions, trainer: Trainer, base: Path, told: Told) -> UpdateResult:
    """Run a round, or what is left of it; the lock of save_path is held, but for a dry run."""
    place = place_of(config)
    if not options.dry_run:
        recover(place)
    files = tuple(find_iterations(config.save_path, config.last_n_iterations))
    rounds = load_rounds(config.save_path)
    if options.train and not options.again and (done := finish_last(config, files, rounds, options, told)):
        return done
    prepared = prepare_round(config, files, rounds, options, trainer, base, told)
    told.prepared(prepared)
    if not options.train or options.dry_run:
        return UpdateResult("prepared", prepared.record, place, prepared)
    trained = train_round(prepared, options, trainer, told)
    record = dataclasses.replace(prepared.record, state="trained")
    write_round(config.save_path, record)
    return dataclasses.replace(hand_over_round(config, record, told), prepared=prepared, trained=trained)


def finish_last(
    config: UpdateConfig, files: tuple[IterationFile, ...], rounds: list[Round], options: UpdateOptions, told: Told
) -> UpdateResult | None:
    """Return the result when a round of these rollouts needs no training any more; None when it does.

    A model that was trained and not handed over, as the call was killed in between, is handed over.

    Raises:
        TrainkitError: such a model is of no use, or not complete.
    """
    inputs, settings = inputs_of(files), digest_of(config)
    alike = [one for one in rounds if one.is_made_of(inputs, settings)]
    last = find_started(config.save_path, alike)
    place = place_of(config)
    if last is None or last.state == "refused":
        return None
    if last.state == "handed over" and (place.is_dir() or not find_model(config.save_path, last)):
        return UpdateResult("nothing to do", last, place) if place.is_dir() else None
    if options.dry_run or not find_model(config.save_path, last):
        return None
    refuse_useless(config.save_path, last)
    return hand_over_round(config, last, told)


def prepare_round(
    config: UpdateConfig,
    files: tuple[IterationFile, ...],
    rounds: list[Round],
    options: UpdateOptions,
    trainer: Trainer,
    base: Path,
    told: Told,
) -> PreparedRound:
    """Make a round ready; nothing is written by a dry run."""

    def on_file(file: IterationFile) -> None:
        told.stage(f"reading iteration {file.number}")

    record, start = draft_round(config, files, rounds, options.resume, base)
    least = config.min_token_length
    is_short = make_is_short(model_of(config), least) if least > 0 else None
    found = survey(files, skip_bad=options.skip_bad, is_short=is_short, on_file=on_file)
    drawn = draw_sample(config, found)
    rows = Written(len(drawn.train), len(drawn.val))
    record, train_config = plan_round(record, start, config, rows, trainer)
    record = dataclasses.replace(record, sampling=drawn.plan.to_json())
    notes = (*config.notes, *found.problems, *start.notes)
    check_strict((*notes, *train_config.notes), options)
    if options.dry_run:
        path = start.checkpoint.path if start.checkpoint else None
        return PreparedRound(record, config, found, drawn, rows, train_config, path, (*notes, *train_config.notes))
    shorten, doubts = find_shorten(train_config, trainer)
    told.stage("writing the data")
    folder = begin_writing(config)
    rows = write_data(folder, found.files, drawn, on_file, shorten)
    thoughts = has_thoughts(folder, [NAMES[TRAIN]])
    record, train_config = plan_round(record, start, config, rows, trainer, thoughts)
    resume = going_on_from(record, start, config, anew=options.resume not in (None, "auto"))
    notes = (*notes, *doubts, *train_config.notes, *learning_rate_note(resume, config))
    prepared = PreparedRound(record, config, found, drawn, rows, resuming(train_config, resume), resume, notes)
    write_round_files(prepared)
    return prepared


def check_strict(notes: tuple[Problem, ...], options: UpdateOptions) -> None:
    """Check that a training that is to be strict meets no warning.

    Raises:
        ProblemsFound: it does.
    """
    if options.train and options.strict and any(note.level == "warning" for note in notes):
        raise ProblemsFound("a warning is an error (--strict); nothing was started", strict(notes))


def hand_over_round(config: UpdateConfig, record: Round, told: Told) -> UpdateResult:
    """Put the model of a trained round in its place and write down that it is there.

    Raises:
        TrainkitError: the model is not complete; the old one is still in place.
    """
    told.stage("handing the model over")
    folder = output_of(config.save_path, record.name)
    handover = hand_over(find_model(config.save_path, record) or folder, place_of(config))
    record = dataclasses.replace(record, state="handed over")
    write_round(config.save_path, record)
    remove(config.save_path / CHECKPOINTS / COPY)
    removed = (
        remove_old(config.save_path, load_rounds(config.save_path), config.keep_rounds) if config.keep_rounds else []
    )
    return UpdateResult("handed over", record, place_of(config), handover=handover, removed=tuple(removed))
