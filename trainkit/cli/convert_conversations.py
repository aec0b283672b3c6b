"""`trainkit convert --kind conversations`, `pairs` or `labels`, and `--pairs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli.convert_kinds import AUTO, EVALUATIONS
from trainkit.cli.convert_trajectories import say_counts
from trainkit.cli.output import Output
from trainkit.errors import InputError, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainkit.dataset.mix import Share, Until
    from trainkit.sources.scored_pairs import PairRule
    from trainkit.workflow.convert_conversations import ConversationOptions
    from trainkit.workflow.convert_inputs import Input
    from trainkit.workflow.convert_outcome import ConversationsResult

DEFAULT_MARGIN, DEFAULT_PER_TASK = 0.1, "8"
# What rows that are more than conversations are for.
STAGES = {"pairs": "train with stage: dpo, or rm", "labels": "train with stage: kto"}


def find_shares(words: list[str], paths: Sequence[Path]) -> list[Share]:
    """Return the sources of a mix, none without `--mix`; they stand in the place of INPUT."""
    from trainkit.dataset.mix import parse_mix

    if words and paths:
        raise UsageProblem("--mix: stands in the place of INPUT", f"for example --mix {paths[0]}:0.7")
    return parse_mix(words)


def open_named(output: Output, kind: str, paths: Sequence[Path], *, pairs: bool) -> tuple[list[Input], str]:
    """Return the inputs, opened, and what they hold; with `--kind auto` that is found out, and said."""
    from trainkit.workflow.convert_inputs import find_kind, open_inputs

    if not paths:
        raise UsageProblem(f"--kind {kind}: there is no INPUT", "name the files to convert, or - for standard input")
    inputs = open_inputs(paths)
    if kind != AUTO:
        return inputs, kind
    found = find_kind(inputs)
    output.say(f"taken for {found.name}: {found.why}")
    if found.name == EVALUATIONS and not pairs:
        check_usual(inputs)
    return inputs, found.name


def check_usual(inputs: Sequence[Input]) -> None:
    """Check that evaluations can be read by the usual conversion, which opens them anew."""
    from trainkit.workflow.convert_inputs import is_parquet

    for one in inputs:
        if one.source.path is None:
            raise UsageProblem("--kind auto: standard input can be read only once", "add --kind evaluations")
        if is_parquet(one.source):
            raise InputError(f"{one.source.name}: evaluations are not read from Parquet", "write them as JSONL")


def parse_until(words: str) -> Until:
    """Return how far a mix goes."""
    if words == "first":
        return "first"
    if words == "all":
        return "all"
    raise UsageProblem(f"--mix-until {words}: must be first or all")


def pair_rule(margin: float | None, per_task: str | None, seed: int) -> PairRule:
    """Return how pairs are made."""
    from trainkit.sources.scored_pairs import PairRule

    words = DEFAULT_PER_TASK if per_task is None else per_task
    if words != "all" and not words.isdecimal():
        raise UsageProblem(f"--per-task {words}: must be a number, or all")
    return PairRule(DEFAULT_MARGIN if margin is None else margin, None if words == "all" else int(words), seed)


def run_conversations(output: Output, inputs: list[Input], output_dir: Path, options: ConversationOptions) -> None:
    """Convert and print what came out."""
    from trainkit.workflow.convert_conversations import convert_conversations

    with output.progress("converting") as on_progress:
        result = convert_conversations(inputs, output_dir, options, on_progress)
    show(output, inputs, result, options, output_dir)


def show(
    output: Output,
    inputs: list[Input],
    result: ConversationsResult,
    options: ConversationOptions,
    output_dir: Path,
) -> None:
    """Print the data set, and what became of the rows that are not in it."""
    book = result.book
    output.table(("data set", "rows"), [(variant.name, f"{variant.num_rows:,}") for variant in result.variants])
    for form, names in by_form(inputs, result).items():
        output.say(f"read as {form}: {', '.join(names)}")
    for note in result.notes:
        output.say(f"note: {note}")
    say_counts(output, "repairs in the rows", book.repairs)
    say_counts(output, "rows left out by --where", book.left_out)
    if result.repeats:
        output.say(f"{result.repeats:,} rows left out as repeats of one before them (--dedup {options.dedup})")
    if options.weights is not None:
        drawn = ", ".join(f"{result.drawn[number]:,} of {one.source.name}" for number, one in enumerate(inputs))
        output.say(f"mixed: {drawn}")
    say_counts(output, "rows rejected", book.rejected, f"; see {result.rejected_file}" * bool(result.rejected_file))
    if options.pairs is not None:
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted((+result.paired).items()))
        output.say(f"made into pairs: {counts}")
    written = f"written to {result.folder}, registered in {output_dir / 'dataset_info.json'}"
    output.say(f"{result.num_rows:,} rows {written if result.folder else 'counted, nothing written'}")
    if options.holds in STAGES:
        output.say(STAGES[options.holds])
    output.json(as_json(inputs, result, options))


def by_form(inputs: list[Input], result: ConversationsResult) -> dict[str, list[str]]:
    """Return the inputs of each form of conversations."""
    found: dict[str, list[str]] = {}
    for one, form in zip(inputs, result.forms, strict=bool(result.forms)):
        found.setdefault(f"{form.name} ({form.why})", []).append(one.source.name)
    return found


def as_json(inputs: list[Input], result: ConversationsResult, options: ConversationOptions) -> dict[str, Any]:
    """Return the report for machines."""
    from trainkit.workflow.convert_outcome import by_name

    book = result.book
    drawn = {one.source.name: result.drawn[number] for number, one in enumerate(inputs)}
    return {
        "ok": True,
        "kind": options.holds,
        "made_from": options.kind,
        "folder": result.folder,
        "rows": result.num_rows,
        "read": book.num_read,
        "forms": by_form(inputs, result),
        "repairs": by_name(book.repairs),
        "left_out": by_name(book.left_out),
        "repeats": result.repeats,
        "mixed": drawn if options.weights else None,
        "rejected": book.rejected.total(),
        "reasons": by_name(book.rejected),
        "rejected_file": result.rejected_file,
        "pairs": by_name(result.paired) if options.pairs else None,
        "variants": {variant.name: {"rows": variant.num_rows, "side": variant.side} for variant in result.variants},
        "notes": result.notes,
    }
