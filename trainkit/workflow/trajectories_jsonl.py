"""`trainkit convert --kind trajectories --to jsonl`: the same rollouts as open JSONL."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainkit.errors import InputError
from trainkit.sources.trajectories import FOLDER, iteration_of, write_jsonl
from trainkit.workflow.convert_trajectories import add_up, explained, find_rollouts, ignore_file, none_read, of_them
from trainkit.workflow.rollouts import skipped

if TYPE_CHECKING:
    from pathlib import Path

    from trainkit.datatypes import Problem
    from trainkit.sources.trajectories import IterationFile
    from trainkit.workflow.convert_trajectories import OnFile

WRITTEN = "written"  # among the counts of write_jsonl; all others are reasons


@dataclass(frozen=True, slots=True)
class JsonlResult:
    """The files that were written, each iteration with its counts ("written", and what was left out by reason)."""

    folder: Path
    counts: dict[int, Counter[str]]
    notes: list[str]
    problems: list[Problem]

    @property
    def left_out(self) -> Counter[str]:
        """Trajectories that were left out, by reason."""
        return Counter({reason: number for reason, number in add_up(self.counts.values()).items() if reason != WRITTEN})


def rewrite_as_jsonl(
    save_path: Path, output_dir: Path, last_n: int | None, *, skip_bad: bool = False, on_file: OnFile = ignore_file
) -> JsonlResult:
    """Write iterations as JSONL into `output_dir`, which can then be used as a save_path; each is written whole.

    Args:
        save_path: the folder that holds `train_trajectories/`.
        output_dir: the folder to hold another one.
        last_n: how many of the newest iterations; None for all.
        skip_bad: leave out an iteration whose file cannot be read.
        on_file: as for `convert_trajectories`.

    Raises:
        InputError: nothing to read, a file that cannot be read, no usable trajectory, or a file in the way.
        ProblemsFound: every file was skipped.
    """
    files = find_rollouts(save_path, sys.maxsize if last_n is None else last_n)
    folder = output_dir / FOLDER
    targets = {file.number: folder / f"{FOLDER}.iteration{file.number}.jsonl" for file in files}
    check_targets(files, targets, folder)
    counts: dict[int, Counter[str]] = {}
    problems = []
    with explained(folder):
        for position, file in enumerate(files, 1):
            on_file(file, position, len(files))
            try:
                counts[file.number] = write_jsonl(file, targets[file.number])
            except InputError as error:
                problems.append(skipped(error, skip_bad=skip_bad))
        empty = [number for number, found in counts.items() if not found[WRITTEN]]
        for number in empty:
            targets[number].unlink()  # an empty file would be taken for a damaged one
    if not counts:
        raise none_read(problems)
    if len(empty) == len(counts):
        raise InputError(f"{save_path}: there is no usable trajectory{of_them(add_up(counts.values()))}")
    notes = [f"iteration {number} has no usable trajectory, so no file was written for it" for number in empty]
    return JsonlResult(folder, counts, notes, problems)


def check_targets(files: list[IterationFile], targets: dict[int, Path], folder: Path) -> None:
    """Check that nothing is in the way of the new files but earlier ones of the same name; raises `InputError`."""
    there = [found for path in sorted(folder.iterdir()) if (found := iteration_of(path))] if folder.is_dir() else []
    for found in there:
        target = targets.get(found.number)
        if target is not None and found.path != target:
            raise InputError(
                f"{folder}: holds iteration {found.number} already, as {found.path.name}",
                "choose another folder with -o, as one that holds an iteration twice cannot be read",
            )
    for file in files:
        target = targets[file.number]
        if target.exists() and target.samefile(file.path):
            raise InputError(f"{target}: is JSONL already, and would be read and written", "choose another folder: -o")
