"""`trainkit convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainkit.cli.convert_conversations import find_shares, open_named, pair_rule, parse_until, run_conversations
from trainkit.cli.convert_kinds import EVALUATIONS, TRAJECTORIES, check_kind
from trainkit.cli.convert_trajectories import DEFAULT_RATIO as TRAJECTORIES_RATIO
from trainkit.cli.convert_trajectories import one_folder, run_to_jsonl, run_trajectories
from trainkit.cli.options import AsJson, Jobs, parse_share, parse_where, split_words
from trainkit.cli.output import Output
from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from trainkit.workflow.convert import ConvertOptions, ConvertResult

Words = list[str]
MAX_NAME_BYTES = 100  # it becomes part of the names of folders
DEFAULT_RATIO = 0.15


def convert(
    context: typer.Context,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="JSONL or a JSON array, also .gz and .zst; - is standard input. Conversations, pairs and labels also "
            "as Parquet. With --kind trajectories the one folder that holds train_trajectories/.",
            metavar="INPUT...",
        ),
    ] = None,
    input_option: Annotated[list[Path] | None, typer.Option("--input", "-i", help="The same as INPUT.")] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder of dataset_info.json.")] = Path("data"),
    kind: Annotated[
        str,
        typer.Option(
            help="What INPUT holds: evaluations, trajectories, conversations, pairs (chosen and rejected), labels "
            "(kto); auto finds out and says so."
        ),
    ] = EVALUATIONS,
    evaluation_types: Annotated[Words | None, typer.Option(help="Only these types, such as clip,final.")] = None,
    model_names: Annotated[Words | None, typer.Option(help="Only these judges.")] = None,
    task_ids: Annotated[Words | None, typer.Option(help="Only these tasks.")] = None,
    where: Annotated[
        Words | None,
        typer.Option(
            help="Only rows whose metadata has key=value; but for evaluations also score>=0.7, tools!=buy, "
            "num_turns>=4, num_calls<9."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of one data set in place of the variants.")] = None,
    metadata: Annotated[
        str, typer.Option(help="What the prompt carries: of type,model,task,category; or all, none.")
    ] = "type,category",
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="The same as --metadata none.")] = False,
    by_task: Annotated[
        str, typer.Option(help="A variant for each task while there are at most so many; all; none.")
    ] = "20",
    split_eval: Annotated[bool, typer.Option("--split-eval", help="Keep rows apart for evaluation.")] = False,
    eval_ratio: Annotated[
        float | None,
        typer.Option(help="Share of the groups kept for evaluation; 0.15 unless given, of trajectories 0.05."),
    ] = None,
    min_samples: Annotated[int, typer.Option(help="A variant with fewer rows gets no eval entry.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 42,
    group_by: Annotated[str, typer.Option(help="Metadata key whose rows stay on one side of the split.")] = "task_id",
    split: Annotated[str, typer.Option(help="groups keeps a group on one side; rows does not.")] = "groups",
    max_rejects: Annotated[str, typer.Option(help="Largest share of unusable rows to go on with.")] = "1%",
    jobs: Jobs = None,
    dedup: Annotated[
        str | None,
        typer.Option(help="Leave out repeats: exact; near, from a similarity of 0.8; near:0.9.", metavar="HOW"),
    ] = None,
    mix: Annotated[
        Words | None,
        typer.Option(help="In place of INPUT, repeatable: rows drawn by weight.", metavar="FILE:WEIGHT"),
    ] = None,
    mix_until: Annotated[
        str, typer.Option(help="first: the mix stops when a file has no row left; all: it goes on with the others.")
    ] = "first",
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Make pairs of answers to one prompt with different scores.")
    ] = False,
    margin: Annotated[
        float | None, typer.Option(help="Least difference of the scores of a pair; 0.1 unless given.")
    ] = None,
    per_task: Annotated[
        str | None, typer.Option(help="Pairs of one task at most; 8 unless given; all.", metavar="N")
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="Metadata key of the score; of evaluations the verdict's own unless given.")
    ] = None,
    last_n_iterations: Annotated[
        int | None, typer.Option(help="The newest iterations of trajectories; 4 unless given, with --to all.")
    ] = None,
    skip_bad_iterations: Annotated[
        bool, typer.Option("--skip-bad-iterations", help="Go on without an iteration that cannot be read.")
    ] = False,
    to: Annotated[
        str | None, typer.Option(help="jsonl: write the trajectories as JSONL, no data set.", metavar="jsonl")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn evaluations of agent runs, their trajectories, or any tool conversations into a registered data set.

    Example: trainkit convert finetune.jsonl --split-eval
    """
    check_kind(context, kind)
    output, paths = Output(as_json=as_json), [*(inputs or []), *(input_option or [])]
    if to is not None:
        run_to_jsonl(output, one_folder(paths), output_dir, last_n_iterations, skip_bad=skip_bad_iterations)
        return
    if kind == TRAJECTORIES:
        from trainkit.workflow.convert_trajectories import NAME, TrajectoryOptions

        trajectory_options = TrajectoryOptions(
            last_n=4 if last_n_iterations is None else last_n_iterations,
            skip_bad=skip_bad_iterations,
            name=check_name(name) or NAME,
            eval_ratio=choose_ratio(split_eval, eval_ratio, TRAJECTORIES_RATIO),
            seed=seed,
            max_rejects=parse_share(max_rejects, "--max-rejects"),
            dry_run=dry_run,
        )
        run_trajectories(output, one_folder(paths), output_dir, trajectory_options)
        return
    from trainkit.sources.evaluations import parse_form

    shares = find_shares(mix or [], paths)
    named = {"evaluation_type": evaluation_types, "model_name": model_names, "task_id": task_ids}
    chosen = {key: split_words(values) for key, values in named.items() if values}
    form = parse_form("none" if no_metadata else metadata)
    if kind == EVALUATIONS:
        paths = paths or [Path("finetune.jsonl")]
    if kind != EVALUATIONS or pairs:
        opened, kind = open_named(output, kind, [share.path for share in shares] or paths, pairs=pairs)
        check_kind(context, kind)
    if kind != EVALUATIONS or pairs:
        from trainkit.workflow.convert_conversations import ConversationOptions

        words = [f"{key}={value}" for key, values in chosen.items() for value in sorted(values)]
        conversation_options = ConversationOptions(
            kind=kind,
            name=check_name(name) or "",
            where=(*(where or []), *words),
            dedup=dedup or "",
            weights=tuple(share.weight for share in shares) or None,
            until=parse_until(mix_until),
            pairs=pair_rule(margin, per_task, seed) if pairs else None,
            score=score or "",
            metadata_form=form if kind == EVALUATIONS else (),
            eval_ratio=choose_ratio(split_eval, eval_ratio),
            seed=seed,
            group_by=parse_split(split, group_by),
            max_rejects=parse_share(max_rejects, "--max-rejects"),
            jobs=available_cores() if jobs is None else jobs,
            dry_run=dry_run,
        )
        run_conversations(output, opened, output_dir, conversation_options)
        return
    from trainkit.workflow.convert import ConvertOptions

    filters = parse_where(where or [])
    filters |= {key: filters.get(key, frozenset()) | values for key, values in chosen.items()}
    options = ConvertOptions(
        filters=filters,
        name=check_name(name),
        form=form,
        by_task=parse_by_task(by_task),
        eval_ratio=choose_ratio(split_eval, eval_ratio),
        min_samples=min_samples,
        seed=seed,
        group_by=parse_split(split, group_by),
        max_rejects=parse_share(max_rejects, "--max-rejects"),
        jobs=available_cores() if jobs is None else jobs,
        dry_run=dry_run,
    )
    run_convert(output, paths, output_dir, options)


def run_convert(output: Output, paths: list[Path], output_dir: Path, options: ConvertOptions) -> None:
    """Convert and print what came out."""
    from trainkit.workflow.convert import convert as run

    with output.progress("converting") as on_progress:
        result = run(paths, output_dir, options, on_progress)
    show(output, result, options, output_dir)


def available_cores() -> int:
    """Return how many cores this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_name(name: str | None) -> str | None:
    """Return the name; one that a registry, a file system or LLaMA-Factory's comma list cannot hold is refused."""
    from trainkit.dataset.select import clean_name

    if name is not None and clean_name(name) != name.replace("-", "_"):
        raise UsageProblem(f"--name {name}: use letters, digits, _ and -", f"for example {clean_name(name)}")
    if name is not None and len(name.encode()) > MAX_NAME_BYTES:
        raise UsageProblem(f"--name {name}: is too long", f"at most {MAX_NAME_BYTES} bytes")
    return name


def choose_ratio(split_eval: bool, eval_ratio: float | None, default: float = DEFAULT_RATIO) -> float:
    """Return the share of the eval side; a ratio without the split would be lost without a word."""
    if eval_ratio is not None and not split_eval:
        raise UsageProblem(f"--eval-ratio {eval_ratio}: has no meaning without --split-eval", "add --split-eval")
    return (default if eval_ratio is None else eval_ratio) if split_eval else 0.0


def parse_by_task(words: str) -> int:
    """Return the largest number of tasks that get a variant each."""
    if words == "all":
        return 1 << 62
    if words == "none":
        return 0
    if words.isdecimal():
        return int(words)
    raise UsageProblem(f"--by-task {words}: must be a number, all or none")


def parse_split(split: str, group_by: str) -> str | None:
    """Return the metadata key that groups the rows for the split; None for row by row."""
    if split not in ("groups", "rows"):
        raise UsageProblem(f"--split {split}: must be groups or rows")
    return group_by if split == "groups" else None


def show(output: Output, result: ConvertResult, options: ConvertOptions, output_dir: Path) -> None:
    """Print the variants and what was left out."""
    output.table(("data set", "rows"), [(variant.name, f"{variant.num_rows:,}") for variant in result.variants])
    for note in result.notes:
        output.say(f"note: {note}")
    if result.num_filtered:
        output.say(f"{result.num_filtered:,} rows left out by the filters")
    if result.num_rejected:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in result.reasons.items())
        place = f"; see {result.rejected_file}" if result.rejected_file else ""
        output.say(f"{result.num_rejected:,} rows rejected: {reasons}{place}")
    form = ", ".join(options.form) or "nothing"
    written = f"written to {result.folder}, registered in {output_dir / 'dataset_info.json'}"
    output.say(
        f"{result.num_rows:,} rows {written if result.folder else 'counted, nothing written'}; prompts carry {form}"
    )
    output.json(as_json(result, options))


def as_json(result: ConvertResult, options: ConvertOptions) -> dict[str, Any]:
    """Return the report for machines."""
    return {
        "ok": True,
        "folder": result.folder,
        "rows": result.num_rows,
        "filtered": result.num_filtered,
        "rejected": result.num_rejected,
        "reasons": result.reasons,
        "rejected_file": result.rejected_file,
        "metadata": list(options.form),
        "variants": {variant.name: {"rows": variant.num_rows, "side": variant.side} for variant in result.variants},
        "notes": result.notes,
    }
