"""`trainkit convert`: evaluations in, a data set with its variants out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainkit.dataset.batches import Ledger, Recipe
from trainkit.dataset.engine import Job, convert_sources
from trainkit.dataset.registry import load_registry
from trainkit.dataset.select import EVAL, TRAIN, Variant, make_split, make_variants
from trainkit.dataset.write import RejectFile, fold_eval, publish, side_file, staging_folder
from trainkit.errors import InputError, TrainkitError, UsageProblem
from trainkit.files import locked
from trainkit.lines import open_sources
from trainkit.sources import evaluations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from trainkit.datatypes import Part
    from trainkit.lines import Source

BASE = "reward_model"
CUSTOM = "reward_model_custom"
MAX_LISTED = 30


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How evaluations become a data set.

    Attributes:
        filters: metadata key -> values that stay; all keys must hold. A filtered conversion is one data set.
        name: name of a single data set in place of the variants.
        form: which metadata the prompt carries, from `evaluations.parse_form`.
        by_task: keep a variant for each task while there are at most so many; 0 for none.
        eval_ratio: share of the groups on the eval side; 0 means no split.
        min_samples: a variant with fewer rows gets no eval entry.
        group_by: metadata key whose rows stay on one side; None splits row by row.
        max_rejects: largest share of rejected rows at which the data set is still published.
        jobs: number of processes at most.
    """

    filters: Mapping[str, frozenset[str]] = field(default_factory=dict)
    name: str | None = None
    form: tuple[str, ...] = evaluations.DEFAULT_FORM
    by_task: int = 20
    eval_ratio: float = 0.0
    min_samples: int = 5
    seed: int = 42
    group_by: str | None = "task_id"
    max_rejects: float = 0.01
    jobs: int = 1
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What came out: the variants with their rows, what was left out and why."""

    folder: Path | None
    variants: list[Variant]
    num_rows: int
    num_filtered: int
    num_rejected: int
    reasons: dict[str, int]
    rejected_file: Path | None
    notes: list[str]


def convert(
    inputs: list[Path],
    dataset_dir: Path,
    options: ConvertOptions,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> ConvertResult:
    """Convert evaluation files into a registered data set, all or nothing.

    Args:
        inputs: JSONL files or JSON arrays, plain, gzip or zstd; `-` is standard input.
        dataset_dir: the folder of `dataset_info.json`.
        options: filters, names, split and limits.
        on_progress: called with the stored bytes read so far and their total, None when that is unknown.

    Raises:
        InputError: an input that cannot be read, no row left, a filter value that is not there, too many rejected rows.
        UsageProblem: options that do not go together.
    """
    check_options(options)
    sources = open_sources(inputs)
    progress = on_progress or (lambda *_: None)
    if options.dry_run:
        return run(sources, dataset_dir, options, progress)
    try:
        with locked(dataset_dir):
            load_registry(dataset_dir)  # a broken one is told before the work, not after it
            return run(sources, dataset_dir, options, progress)
    except OSError as error:
        hint = "is there space on the disk, and may you write there? The data set of before is untouched"
        raise TrainkitError(f"{error.filename or dataset_dir}: {error.strerror or error}", hint) from error


def check_options(options: ConvertOptions) -> None:
    if not 0 <= options.eval_ratio < 1:
        raise UsageProblem(f"--eval-ratio {options.eval_ratio}: must be at least 0 and below 1")
    if options.min_samples < 2:
        raise UsageProblem(f"--min-samples {options.min_samples}: must be at least 2")
    if not 0 <= options.max_rejects <= 1:
        raise UsageProblem(f"--max-rejects {options.max_rejects}: must be between 0 and 1 (or 0% and 100%)")
    if options.name == BASE:
        raise UsageProblem(f"--name {BASE}: is the name of all variants together", f"for example {CUSTOM}")
    if options.jobs < 1:
        raise UsageProblem(f"--jobs {options.jobs}: must be at least 1")


def run(
    sources: list[Source],
    dataset_dir: Path,
    options: ConvertOptions,
    on_progress: Callable[[int, int | None], None],
) -> ConvertResult:
    rejects = RejectFile(None if options.dry_run else dataset_dir)
    ledger = Ledger(tasks_kept(options), rejects.add)
    try:
        with staging_folder(dataset_dir, dry_run=options.dry_run) as staging:
            job = Job(sources, make_recipe(options), ledger, staging, counting(sources, on_progress))
            convert_sources(job, options.jobs)
            rejected_file = rejects.publish()
            check_outcome(ledger, options, rejected_file)
            parts, notes = settle_split(ledger, options, staging)
            variants = make_variants(
                parts, base_name(options), single=is_single(options), with_tasks=ledger.tasks_apart
            )
            variants, more = drop_small_eval(variants, options)
            folder = None
            if staging is not None:
                manifest = make_manifest(options, variants, ledger, staging)
                digest = ledger.digest.hexdigest()
                folder = publish(staging, dataset_dir, base_name(options), variants, manifest, digest)
    finally:
        rejects.discard()
    return ConvertResult(
        folder,
        variants,
        sum(part.num_rows for part in parts),
        ledger.num_filtered,
        ledger.reasons.total(),
        dict(sorted(ledger.reasons.items())),
        rejected_file,
        notes + more,
    )


def is_single(options: ConvertOptions) -> bool:
    return bool(options.filters or options.name)


def base_name(options: ConvertOptions) -> str:
    return options.name or (CUSTOM if options.filters else BASE)


def tasks_kept(options: ConvertOptions) -> int:
    return 0 if is_single(options) else options.by_task


def make_recipe(options: ConvertOptions) -> Recipe:
    seen: dict[str, set[str]] = {key: set() for key in options.filters}
    to_example = evaluations.make_to_example(options.form, options.filters, options.group_by, seen)
    return Recipe(to_example, make_split(options.eval_ratio, options.seed), tasks_kept(options), seen)


def counting(sources: list[Source], on_progress: Callable[[int, int | None], None]) -> Callable[[int], None]:
    """Return a function that adds up the bytes read."""
    sizes = [source.size for source in sources]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    done = 0

    def add(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        on_progress(done, total)

    return add


def check_outcome(ledger: Ledger, options: ConvertOptions, rejected_file: Path | None) -> None:
    """Check that what was read may be published."""
    num_rows = ledger.num_rows.total()
    num_rejected = ledger.reasons.total()
    num_read = num_rows + num_rejected + ledger.num_filtered
    if num_rejected > round(options.max_rejects * num_read, 6):
        reasons = ", ".join(f"{count} {reason}" for reason, count in ledger.reasons.most_common())
        where = f"see {rejected_file}; " if rejected_file else ""
        raise InputError(
            f"{num_rejected} of {num_read} rows cannot be used ({reasons}): nothing was published",
            f"{where}--max-rejects {math.ceil(10_000 * num_rejected / num_read) / 100:g}% would accept that",
        )
    if num_rows == 0 and ledger.num_filtered == 0:
        raise InputError(f"there is no {'usable ' if num_rejected else ''}row in the input", "nothing was published")
    check_filters(ledger, options, num_rows)


def check_filters(ledger: Ledger, options: ConvertOptions, num_rows: int) -> None:
    """Check that each filter value was met, and that some row passed all filters."""
    problems = []
    for key, wanted in options.filters.items():
        if unknown := sorted(wanted - ledger.seen[key]):
            there = sorted(ledger.seen[key] - {""})
            listed = ", ".join(there[:MAX_LISTED]) + (", ..." if len(there) > MAX_LISTED else "")
            words = ", ".join(value or "an empty value" for value in unknown)
            problems.append(f"{key}: no row has {words}; there are: {listed or 'none'}")
    if problems:
        raise InputError("; ".join(problems), "nothing was published")
    if num_rows == 0:
        raise InputError("no row passes all the filters together", "nothing was published")


def settle_split(ledger: Ledger, options: ConvertOptions, staging: Path | None) -> tuple[list[Part], list[str]]:
    """Return the parts, with the split undone when one side is empty or there are too few rows, and a word on it."""
    parts = ledger.parts()
    num_eval, num_rows = ledger.num_rows[EVAL], ledger.num_rows.total()
    if options.eval_ratio == 0:
        return parts, []
    if num_rows < options.min_samples:
        reason = f"{num_rows} rows are fewer than --min-samples {options.min_samples}"
    elif num_eval in (0, num_rows):
        group = options.group_by or "row"
        reason = f"every {group} is on the same side, as there are too few of them"
    else:
        return parts, []
    folded = fold_eval(parts, ledger.num_rows[TRAIN], staging)
    return folded, [f"no eval split: {reason}; all rows are for training"]


def drop_small_eval(variants: list[Variant], options: ConvertOptions) -> tuple[list[Variant], list[str]]:
    """Return the variants without the eval entries of those that have fewer than `min_samples` rows in all."""
    totals: dict[str, int] = {}
    for variant in variants:
        name = variant.name.removesuffix(f"_{EVAL}") if variant.side == EVAL else variant.name
        totals[name] = totals.get(name, 0) + variant.num_rows
    small = [
        variant.name
        for variant in variants
        if variant.side == EVAL and totals[variant.name.removesuffix(f"_{EVAL}")] < options.min_samples
    ]
    note = f"too small for an eval entry (--min-samples {options.min_samples}): {', '.join(small)}"
    return [variant for variant in variants if variant.name not in small], [note] if small else []


def make_manifest(options: ConvertOptions, variants: list[Variant], ledger: Ledger, staging: Path) -> dict[str, Any]:
    """Return what is known of the data set; no path and no time, so that a rerun gives the same bytes."""
    split = {"eval_ratio": options.eval_ratio, "seed": options.seed, "group_by": options.group_by or "row"}
    files = {side_file(side): staging / side_file(side) for side in (TRAIN, EVAL)}
    there = {name: path.stat().st_size for name, path in files.items() if path.exists()}
    num_eval = ledger.num_rows[EVAL] if side_file(EVAL) in there else 0
    rows = {side_file(TRAIN): ledger.num_rows.total() - num_eval, side_file(EVAL): num_eval}
    return {
        "kind": "evaluations",
        "metadata_form": list(options.form),
        "split": split if options.eval_ratio else None,
        "filters": {key: sorted(values) for key, values in sorted(options.filters.items())},
        "num_rejected": ledger.reasons.total(),
        "files": {name: {"rows": rows[name], "bytes": num_bytes} for name, num_bytes in there.items()},
        "variants": {variant.name: {"rows": variant.num_rows, "side": variant.side} for variant in variants},
    }
