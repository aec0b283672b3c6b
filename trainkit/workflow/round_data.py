"""The data set of a round in `<save_path>/llamafactory_data/`: its sample, drawn and split, written row by row.

finetune_train.jsonl  finetune_val.jsonl    the rows, those with images first
dataset_info.json                           both by name, for LLaMA-Factory
sampling_plan.json                          what was drawn from which iteration, and what was left out
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainkit.dataset.quotas import plan_quotas
from trainkit.dataset.registry import REGISTRY, entry_for, load_registry
from trainkit.dataset.replay import StepTable, sample, split_by_trajectory
from trainkit.dataset.select import EVAL, TRAIN
from trainkit.dataset.stage import Stage
from trainkit.dataset.write import side_file, staging_folder
from trainkit.errors import InputError
from trainkit.files import sync_folder, write_json_atomic
from trainkit.workflow.rollouts import Tally, read_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from trainkit.dataset.quotas import SamplingPlan
    from trainkit.plan.update import UpdateConfig
    from trainkit.sources.trajectories import IterationFile
    from trainkit.workflow.rollouts import Survey

FOLDER = "llamafactory_data"
NAMES = {TRAIN: "finetune_train", EVAL: "finetune_val"}
PLAN = "sampling_plan.json"


@dataclass(frozen=True, slots=True)
class Sample:
    """The steps of a round, those to train on and those to validate on, and the plan by which they were drawn."""

    train: StepTable
    val: StepTable
    plan: SamplingPlan


def draw_sample(update: UpdateConfig, found: Survey) -> Sample:
    """Return the steps that a round trains on.

    Raises:
        InputError: there is no step that can be trained on.
    """
    if not len(found.table):
        reasons = ", ".join(f"{number} {reason}" for reason, number in left_out(found).items())
        raise InputError(
            f"{update.save_path}: no step of the last iterations can be trained on ({reasons or 'there is none'})",
            "nothing was written",
        )
    quotas = plan_quotas(found.counts(), update.positive_samples_to_train, update.recency_bias_power)
    positions, plan = sample(found.table, quotas, update.seed, update.max_samples_per_task)
    train, val = split_by_trajectory(found.table.take(positions), update.val_split_ratio, update.seed)
    return Sample(train, val, plan)


def left_out(found: Survey) -> dict[str, int]:
    """Return how many trajectories and steps were left out of all iterations, by reason."""
    total: dict[str, int] = {}
    for tally in found.tallies:
        for reason, number in (*tally.unusable.items(), *tally.left_out.items()):
            total[reason] = total.get(reason, 0) + number
    return dict(sorted(total.items()))


def write_data(
    folder: Path, files: tuple[IterationFile, ...], drawn: Sample, on_file: Callable[[IterationFile], None]
) -> None:
    """Write a round's rows and their registry; a file is replaced whole or not at all.

    Raises:
        InputError: a file of rollouts changed while it was read.
    """
    sides = {TRAIN: drawn.train, EVAL: drawn.val}
    with staging_folder(folder, dry_run=False) as staging:
        with Stage(staging) as stage:
            for file in files:
                on_file(file)
                stage_steps(stage, file, {side: steps_of(table, file.number) for side, table in sides.items()})
        written = stage.settle()
        for side, name in NAMES.items():
            settle_side((staging or folder) / side_file(side), folder / f"{name}.jsonl")
    entries = {
        NAMES[side]: entry_for(f"{NAMES[side]}.jsonl", (), images=written[side_file(side)]["rows_with_images"] > 0)
        for side in sides
        if side_file(side) in written
    }
    others = {name: entry for name, entry in load_registry(folder).items() if name not in NAMES.values()}
    write_json_atomic(folder / REGISTRY, others | entries)


def steps_of(table: StepTable, iteration: int) -> set[tuple[int, int]]:
    """Return (trajectory, step) of each step of an iteration."""
    start, stop = table.ranges().get(iteration, (0, 0))
    trajectories, steps = table.trajectory[start:stop].tolist(), table.step[start:stop].tolist()
    return set(zip(trajectories, steps, strict=True))


def stage_steps(stage: Stage, file: IterationFile, wanted: Mapping[str, set[tuple[int, int]]]) -> None:
    """Stage the rows of the wanted steps of an iteration, each on its side.

    Raises:
        InputError: the file changed since it was read before.
    """
    everything = wanted[TRAIN] | wanted[EVAL]
    if not everything:
        return
    num_rows = 0
    for place, row in read_steps(file, Tally(file.number), wanted=everything):
        stage.add(TRAIN if place[1:3] in wanted[TRAIN] else EVAL, row)
        num_rows += 1
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
