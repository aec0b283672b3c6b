"""`trainkit convert --kind trajectories`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli.convert_kinds import TRAJECTORIES
from trainkit.cli.output import Output, problem_json
from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable

    from trainkit.workflow.convert_trajectories import TrajectoriesResult, TrajectoryOptions
    from trainkit.workflow.trajectories_jsonl import JsonlResult

DEFAULT_RATIO = 0.05


def one_folder(paths: list[Path]) -> Path:
    """Return the one path that was named."""
    if len(paths) != 1:
        raise UsageProblem(
            f"--kind {TRAJECTORIES}: takes one SAVE_PATH, not {len(paths)}",
            "name the folder that holds train_trajectories/",
        )
    return paths[0]


def run_trajectories(output: Output, save_path: Path, output_dir: Path, options: TrajectoryOptions) -> None:
    """Convert rollouts into a data set and print what came out."""
    from trainkit.workflow.convert_trajectories import convert_trajectories

    with output.waiting("looking for iterations") as live:
        result = convert_trajectories(save_path, output_dir, options, telling(live))
    show(output, result, output_dir)


def run_to_jsonl(output: Output, save_path: Path, output_dir: Path, last_n: int | None, *, skip_bad: bool) -> None:
    """Write rollouts as JSONL and print what came out."""
    from trainkit.workflow.trajectories_jsonl import rewrite_as_jsonl

    with output.waiting("looking for iterations") as live:
        result = rewrite_as_jsonl(save_path, output_dir, last_n, skip_bad=skip_bad, on_file=telling(live))
    show_jsonl(output, result, output_dir)


def telling(live: Callable[[str], None]) -> Callable[[Any, int, int], None]:
    """Return a function that says which file is read."""
    return lambda file, position, total: live(f"reading iteration {file.number}, {position} of {total}")


def show(output: Output, result: TrajectoriesResult, output_dir: Path) -> None:
    """Print the iterations, what was left out, and where the rows are."""
    rows = [
        (tally.iteration, tally.trajectories, tally.unusable.total(), tally.steps["steps"], tally.usable)
        for tally in result.tallies
    ]
    show_table(output, ("iteration", "trajectories", "unusable", "steps", "usable rows"), rows)
    output.problems(result.problems)
    for note in result.notes:
        output.say(f"note: {note}")
    say_counts(output, "trajectories left out", result.unusable)
    say_counts(output, "steps left out", result.left_out)
    say_counts(output, "steps rejected", result.rejected, f"; see {result.rejected_file}" * bool(result.rejected_file))
    say_counts(output, "changes in the rows", result.changes)
    names = ", ".join(f"{variant.name} ({variant.num_rows:,})" for variant in result.variants)
    written = f"written to {result.folder}, registered in {output_dir / 'dataset_info.json'}"
    output.say(f"{result.num_rows:,} rows {written if result.folder else 'counted, nothing written'}: {names}")
    output.say("train with mask_history: true, as only the last turn of a row is its answer")
    output.json(as_json(result))


def show_table(output: Output, head: tuple[str, ...], rows: Iterable[tuple[int, ...]]) -> None:
    """Print a table of counts by iteration, whose number is not a count."""
    output.table(head, [(row[0], *(f"{number:,}" for number in row[1:])) for row in rows])


def say_counts(output: Output, what: str, counts: Counter[str], more: str = "") -> None:
    """Print how often there was what, by reason."""
    if counts:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
        output.say(f"{counts.total():,} {what}: {reasons}{more}")


def as_json(result: TrajectoriesResult) -> dict[str, Any]:
    """Return the report for machines."""
    return {
        "ok": True,
        "folder": result.folder,
        "rows": result.num_rows,
        "unusable": by_name(result.unusable),
        "left_out": by_name(result.left_out),
        "rejected": result.rejected.total(),
        "reasons": by_name(result.rejected),
        "rejected_file": result.rejected_file,
        "changes": by_name(result.changes),
        "iterations": [tally.to_json() for tally in result.tallies],
        "variants": {variant.name: {"rows": variant.num_rows, "side": variant.side} for variant in result.variants},
        "notes": result.notes,
        "problems": [problem_json(problem) for problem in result.problems],
    }


def by_name(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def show_jsonl(output: Output, result: JsonlResult, output_dir: Path) -> None:
    """Print what was written of each iteration, and what was left out."""
    rows = [
        (number, counts.total(), counts.total() - counts["written"], counts["written"])
        for number, counts in result.counts.items()
    ]
    show_table(output, ("iteration", "trajectories", "unusable", "written"), rows)
    output.problems(result.problems)
    for note in result.notes:
        output.say(f"note: {note}")
    say_counts(output, "trajectories left out", result.left_out)
    output.say(
        f"{sum(row[3] for row in rows):,} trajectories written to {result.folder}: {output_dir} is a SAVE_PATH too"
    )
    iterations = {number: {"written": 0} | by_name(counts) for number, counts in result.counts.items()}
    problems = [problem_json(problem) for problem in result.problems]
    output.json(
        {"ok": True, "folder": result.folder, "iterations": iterations, "notes": result.notes, "problems": problems}
    )
