"""`trainkit convert --kind trajectories`: rollouts in, a data set of their steps out."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainkit.dataset.registry import check_free, load_registry
from trainkit.dataset.select import EVAL, TRAIN, Variant, make_split
from trainkit.dataset.stage import Stage
from trainkit.dataset.write import RejectFile, flushing, publish, staging_folder
from trainkit.errors import InputError, ProblemsFound, TrainkitError, UsageProblem
from trainkit.files import locked
from trainkit.lines import nearest_name
from trainkit.sources.trajectories import FOLDER, find_iterations
from trainkit.workflow.convert import BASE
from trainkit.workflow.rollouts import Tally, read_steps, skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from trainkit.datatypes import Problem
    from trainkit.sources.trajectories import IterationFile

    OnFile = Callable[[IterationFile, int, int], None]

NAME = "trajectories"
HOLDS = f"name the folder that holds {FOLDER}/"


@dataclass(frozen=True, slots=True)
class TrajectoryOptions:
    """How rollouts become a data set.

    Attributes:
        last_n: how many of the newest iterations are read.
        skip_bad: leave out an iteration whose file cannot be read.
        name: of the data set.
        eval_ratio: share of the trajectories on the eval side; 0 means no split.
        max_rejects: largest share of the eligible steps that may be rejected.
    """

    last_n: int = 4
    skip_bad: bool = False
    name: str = NAME
    eval_ratio: float = 0.0
    seed: int = 42
    max_rejects: float = 0.01
    dry_run: bool = False


@dataclass(slots=True)
class TrajectoriesResult:
    """What came out: what each iteration held, which were skipped, the data set with its sides, the rejected steps."""

    tallies: list[Tally] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)
    folder: Path | None = None
    rejected_file: Path | None = None

    @property
    def num_rows(self) -> int:
        """Rows of all sides."""
        return sum(variant.num_rows for variant in self.variants)

    @property
    def unusable(self) -> Counter[str]:
        """Trajectories that were left out, by reason."""
        return add_up(tally.unusable for tally in self.tallies)

    @property
    def left_out(self) -> Counter[str]:
        """Steps that are not meant to be trained on, by reason."""
        return add_up(Counter(tally.passed_over) for tally in self.tallies)

    @property
    def rejected(self) -> Counter[str]:
        """Eligible steps that cannot be made a row, by reason."""
        return add_up(tally.rejected for tally in self.tallies)

    @property
    def changes(self) -> Counter[str]:
        """What was changed in rows."""
        return add_up(tally.changes for tally in self.tallies)


def ignore_file(file: IterationFile, number: int, total: int) -> None:
    """Do nothing."""


def convert_trajectories(
    save_path: Path, dataset_dir: Path, options: TrajectoryOptions, on_file: OnFile = ignore_file
) -> TrajectoriesResult:
    """Convert the eligible steps of the newest iterations into a registered data set, all or nothing.

    Args:
        save_path: the folder that holds `train_trajectories/`.
        dataset_dir: the folder of `dataset_info.json`.
        options: which iterations, name, split and limits.
        on_file: told of each file before it is read: the file, its position from 1, and how many there are.

    Raises:
        InputError: nothing to read, a file that cannot be read, no usable step, too many rejected ones, a name that is
            taken.
        ProblemsFound: every file was skipped.
        UsageProblem: options that cannot be.
    """
    check_options(options)
    files = find_rollouts(save_path, options.last_n)
    if options.dry_run:
        return run(files, dataset_dir, options, on_file)
    with explained(dataset_dir), locked(dataset_dir):
        names = [options.name, f"{options.name}_{EVAL}"][: 2 if options.eval_ratio else 1]
        check_free(load_registry(dataset_dir), options.name, names, dataset_dir)  # told before the work, not after it
        return run(files, dataset_dir, options, on_file)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the system says of a file into an error with a next step."""
    try:
        yield
    except OSError as error:
        hint = "is there space on the disk, and may you write there? What was there before is untouched"
        raise TrainkitError(f"{error.filename or folder}: {error.strerror or error}", hint) from error


def check_options(options: TrajectoryOptions) -> None:
    if not 0 <= options.eval_ratio < 1:
        raise UsageProblem(f"--eval-ratio {options.eval_ratio}: must be at least 0 and below 1")
    if not 0 <= options.max_rejects <= 1:
        raise UsageProblem(f"--max-rejects {options.max_rejects}: must be between 0 and 1 (or 0% and 100%)")
    if options.name == BASE:
        raise UsageProblem(f"--name {BASE}: is the name of the evaluations' variants together", f"for example {NAME}")


def find_rollouts(save_path: Path, last_n: int) -> list[IterationFile]:
    """Return the newest iterations below a folder; raises `InputError` for a folder that is not there."""
    if not save_path.exists():
        raise InputError(f"{save_path}: no such folder", nearest_name(save_path) or HOLDS)
    if not save_path.is_dir():
        raise InputError(f"{save_path}: is not a folder", HOLDS)
    return find_iterations(save_path, last_n)


def run(
    files: list[IterationFile], dataset_dir: Path, options: TrajectoryOptions, on_file: OnFile
) -> TrajectoriesResult:
    rejects = RejectFile(None if options.dry_run else dataset_dir)
    try:
        with staging_folder(dataset_dir, dry_run=options.dry_run) as staging:
            with Stage(staging) as stage, flushing(staging):
                result = read_files(files, stage, rejects, options, on_file)
            result.rejected_file = rejects.publish()
            check_outcome(result, options.max_rejects)
            result.notes += settle_split(stage, options)
            written = stage.settle()
            result.variants += stage.variants(options.name)
            if staging is not None:
                manifest, digest = make_manifest(options, result, written), stage.digest.hexdigest()
                result.folder = publish(staging, dataset_dir, options.name, result.variants, manifest, digest)
    finally:
        rejects.discard()
    return result


def read_files(
    files: list[IterationFile], stage: Stage, rejects: RejectFile, options: TrajectoryOptions, on_file: OnFile
) -> TrajectoriesResult:
    """Stage the rows of every iteration; return what each held, and a warning for each that was skipped."""
    side_of = make_split(options.eval_ratio, options.seed)
    result = TrajectoriesResult()
    for position, file in enumerate(files, 1):
        on_file(file, position, len(files))
        stage_mark, rejects_mark = stage.mark(), rejects.mark()
        try:
            result.tallies.append(read_file(file, stage, rejects, side_of))
        except InputError as error:
            result.problems.append(skipped(error, skip_bad=options.skip_bad))
            stage.cut(stage_mark)
            rejects.cut(rejects_mark)
    return result


def read_file(file: IterationFile, stage: Stage, rejects: RejectFile, side_of: Callable[[bytes], str]) -> Tally:
    """Stage the rows of one iteration, a trajectory on one side as `replay.split_by_trajectory` has it."""
    tally = Tally(file.number)
    for place, row in read_steps(file, tally, on_reject=rejects.add):
        stage.add(side_of(b"%d/%d" % (place.iteration, place.trajectory)), row)
    return tally


def check_outcome(result: TrajectoriesResult, max_rejects: float) -> None:
    """Check that what was read may be published."""
    if not result.tallies:
        raise none_read(result.problems)
    where = f"see {result.rejected_file}; " if result.rejected_file else ""
    if not any(tally.usable for tally in result.tallies):
        trajectories = sum(tally.trajectories for tally in result.tallies)
        steps = sum(tally.steps["steps"] for tally in result.tallies)
        raise InputError(
            f"there is no usable step in {len(result.tallies)} iterations: "
            f"{trajectories} trajectories{of_them(result.unusable)}, "
            f"{steps} steps in those that can be used{of_them(result.left_out + result.rejected)}",
            f"{where}nothing was published",
        )
    num_rejected, num_eligible = result.rejected.total(), sum(tally.steps["eligible"] for tally in result.tallies)
    if num_rejected > round(max_rejects * num_eligible, 6):
        raise InputError(
            f"{num_rejected} of {num_eligible} eligible steps cannot be used{of_them(result.rejected)}: "
            "nothing was published",
            f"{where}--max-rejects {math.ceil(10_000 * num_rejected / num_eligible) / 100:g}% would accept that",
        )


def none_read(problems: list[Problem]) -> ProblemsFound:
    """Return the error that every iteration was skipped."""
    return ProblemsFound(f"none of {len(problems)} iterations can be read", problems, "nothing was written")


def of_them(reasons: Counter[str]) -> str:
    """Return " (3 empty, 1 dummy)", nothing when there are none."""
    named = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f" ({named})" if named else ""


def add_up(counters: Iterable[Counter[str]]) -> Counter[str]:
    """Return the sum, without what is 0."""
    return sum(counters, Counter())


def settle_split(stage: Stage, options: TrajectoryOptions) -> list[str]:
    """Undo a split that left one side empty; return a word on it."""
    if options.eval_ratio == 0 or (stage.rows_of(TRAIN) and stage.rows_of(EVAL)):
        return []
    if stage.rows_of(EVAL):
        stage.fold_eval()
    return [
        "no eval split: every trajectory is on the same side, as there are too few of them; all rows are for training"
    ]


def make_manifest(options: TrajectoryOptions, result: TrajectoriesResult, written: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of the data set; no path and no time, so that a rerun gives the same bytes."""
    split = {"eval_ratio": options.eval_ratio, "seed": options.seed, "group_by": "trajectory"}
    return {
        "kind": "trajectories",
        "metadata_form": [],
        "split": split if options.eval_ratio else None,
        "iterations": {str(tally.iteration): tally.to_json() for tally in result.tallies},
        "files": written,
        "variants": {variant.name: {"rows": variant.num_rows, "side": variant.side} for variant in result.variants},
    }
