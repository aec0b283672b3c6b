"""The data set of a round in `<save_path>/llamafactory_data/`: its sample, drawn and split, written row by row.

finetune_train.jsonl  finetune_val.jsonl    the rows, those with images first
dataset_info.json                           both by name, for LLaMA-Factory
sampling_plan.json                          what was drawn from which iteration, and what was left out
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainkit.dataset.quotas import plan_quotas
from trainkit.dataset.registry import entry_for, load_registry, put_entries
from trainkit.dataset.replay import StepTable, sample, split_by_trajectory
from trainkit.dataset.select import EVAL, TRAIN
from trainkit.dataset.stage import Stage
from trainkit.dataset.write import side_file, staging_folder
from trainkit.errors import InputError
from trainkit.files import sync_folder
from trainkit.workflow.rollouts import Tally, read_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from trainkit.dataset.quotas import SamplingPlan
    from trainkit.plan.update import UpdateConfig
    from trainkit.sources.trajectories import IterationFile
    from trainkit.workflow.rollouts import Survey

    Shorten = Callable[[bytes], tuple[bytes, int] | None]

FOLDER = "llamafactory_data"
NAMES = {TRAIN: "finetune_train", EVAL: "finetune_val"}
PLAN = "sampling_plan.json"
SINGULAR = {"trajectories": "trajectory", "steps": "step"}


@dataclass(frozen=True, slots=True)
class Sample:
    """The steps of a round, those to train on and those to validate on, and the plan by which they were drawn."""

    train: StepTable
    val: StepTable
    plan: SamplingPlan


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: rows of each side, those that lost their oldest turns, and those left out as too long."""

    train_rows: int
    val_rows: int
    shortened: int = 0
    too_long: int = 0


def draw_sample(update: UpdateConfig, found: Survey) -> Sample:
    """Return the steps that a round trains on.

    Raises:
        InputError: there is no step that can be trained on.
    """
    if not len(found.table):
        reasons = "; ".join(in_words(left_out(found))) or "there is none"
        raise InputError(
            f"{update.save_path}: no step of the last iterations can be trained on; left out: {reasons}",
            "nothing was written",
        )
    quotas = plan_quotas(found.counts(), update.positive_samples_to_train, update.recency_bias_power)
    positions, plan = sample(found.table, quotas, update.seed, update.max_samples_per_task)
    train, val = split_by_trajectory(found.table.take(positions), update.val_split_ratio, update.seed)
    return Sample(train, val, plan)


def left_out(found: Survey) -> dict[str, dict[str, int]]:
    """Return how many trajectories and how many steps of all iterations were left out, by reason."""
    counts: dict[str, Counter[str]] = {"trajectories": Counter(), "steps": Counter()}
    for tally in found.tallies:
        counts["trajectories"].update(tally.unusable)
        counts["steps"].update(tally.left_out)
    return {what: dict(sorted(reasons.items())) for what, reasons in counts.items()}


def in_words(counts: dict[str, dict[str, int]]) -> list[str]:
    """Return what was left out: `["1 trajectory: 1 empty", "9 steps: 3 image file, 6 not successful"]`."""
    words = []
    for what, reasons in counts.items():
        total = sum(reasons.values())
        listed = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items())
        words += [f"{total:,} {SINGULAR[what] if total == 1 else what}: {listed}"] if total else []
    return words


def write_data(
    folder: Path,
    files: tuple[IterationFile, ...],
    drawn: Sample,
    on_file: Callable[[IterationFile], None],
    shorten: Shorten | None = None,
) -> Written:
    """Write a round's rows and their registry; a file is replaced whole or not at all.

    Args:
        folder: of the registry.
        files: the iterations.
        drawn: which steps.
        on_file: told of each file before it is read.
        shorten: makes a row fit into cutoff_len by leaving out its oldest turns; None for a row that cannot.

    Raises:
        InputError: a file of rollouts changed while it was read, or no row is left to train on.
    """
    load_registry(folder)  # a broken one is told before the work, not after it
    sides = {TRAIN: drawn.train, EVAL: drawn.val}
    changed: Counter[str] = Counter()
    with staging_folder(folder, dry_run=False) as staging:
        with Stage(staging) as stage:
            for file in files:
                on_file(file)
                wanted = {side: steps_of(table, file.number) for side, table in sides.items()}
                stage_steps(stage, file, wanted, shorten, changed)
        if not stage.rows_of(TRAIN):
            raise InputError(f"{folder}: every row is longer than cutoff_len, its last turn alone", "raise cutoff_len")
        written = stage.settle()
        for side, name in NAMES.items():
            settle_side((staging or folder) / side_file(side), folder / f"{name}.jsonl")
    entries = {
        NAMES[side]: entry_for(f"{NAMES[side]}.jsonl", (), images=written[side_file(side)]["rows_with_images"] > 0)
        for side in sides
        if side_file(side) in written
    }
    put_entries(folder, entries, lambda member: member.name in NAMES.values())
    return Written(stage.rows_of(TRAIN), stage.rows_of(EVAL), changed["shortened"], changed["too long"])


def steps_of(table: StepTable, iteration: int) -> set[tuple[int, int]]:
    """Return (trajectory, step) of each step of an iteration."""
    start, stop = table.ranges().get(iteration, (0, 0))
    trajectories, steps = table.trajectory[start:stop].tolist(), table.step[start:stop].tolist()
    return set(zip(trajectories, steps, strict=True))


def stage_steps(
    stage: Stage,
    file: IterationFile,
    wanted: Mapping[str, set[tuple[int, int]]],
    shorten: Shorten | None,
    changed: Counter[str],
) -> None:
    """Stage the rows of the wanted steps of an iteration, each on its side.

    Raises:
        InputError: the file changed since it was read before.
    """
    everything = wanted[TRAIN] | wanted[EVAL]
    if not everything:
        return
    num_rows = 0
    for place, row in read_steps(file, Tally(file.number), wanted=everything):
        num_rows += 1
        fitting = shorten(row) if shorten else (row, 0)
        if fitting is None:
            changed["too long"] += 1
            continue
        changed["shortened"] += fitting[1] > 0
        stage.add(TRAIN if place[1:3] in wanted[TRAIN] else EVAL, fitting[0])
    if num_rows != len(everything):
        raise InputError(f"{file.path}: changed while it was read, or its images did", "wait until it is written")


def settle_side(staged: Path, target: Path) -> None:
    """Put a staged file in its place; without one, remove the one of an earlier round."""
    if not staged.exists():
        target.unlink(missing_ok=True)
        return
    with staged.open("rb+") as file:
        os.fsync(file.fileno())
    staged.replace(target)
    sync_folder(target.parent)
