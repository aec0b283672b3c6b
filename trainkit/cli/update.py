"""`trainkit update`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainkit.cli.convert_kinds import refuse
from trainkit.cli.options import AsJson
from trainkit.cli.output import Output, problem_json
from trainkit.cli.training import MonitorWith, Strict
from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.workflow.round import PreparedRound
    from trainkit.workflow.round_options import Told, UpdateOptions
    from trainkit.workflow.update import UpdateResult


def update(
    context: typer.Context,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the file; they win over it.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The update's YAML; else update.yaml.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Train the round and hand its model over.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="With --train: a round for each new iteration.")] = False,
    every: Annotated[int, typer.Option(help="With --watch: new iterations that make a round.")] = 1,
    poll: Annotated[float, typer.Option(help="With --watch: seconds between two looks.")] = 30.0,
    again: Annotated[bool, typer.Option("--again", help="Train anew on rollouts that were trained on.")] = False,
    skip_bad_iterations: Annotated[
        bool, typer.Option("--skip-bad-iterations", help="Go on without iterations that cannot be read.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="auto|never|PATH", help="Where to start; the last round unless given."),
    ] = None,
    monitor: MonitorWith = None,
    strict: Strict = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the round, write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the next model from the newest rollouts: sample, configure and, with --train, train and hand over.

    Example: trainkit update -c update.yaml --train save_path=/data/exp1
    """
    from trainkit.workflow.round_options import UpdateOptions
    from trainkit.workflow.start import parse_monitor
    from trainkit.workflow.update import update as run

    output = Output(as_json=as_json)
    options = UpdateOptions(train, resume, skip_bad_iterations, again, dry_run, parse_monitor(monitor), strict)
    check_options(context, train=train, watch=watch, resume=resume)
    words = overrides or []
    if watch:
        run_watch(output, config, words, options, every, poll)
        return
    with output.waiting("looking for rollouts") as live:
        result = run(config, words, options, Path.cwd(), telling(output, live))
    show(output, result, options)


def check_options(context: typer.Context, *, train: bool, watch: bool, resume: str | None) -> None:
    """Check that no option is given that would be passed over.

    Raises:
        UsageProblem: one is.
    """
    if not watch:
        refuse(context, ("every", "poll"), "without --watch", "add --watch, with --train")
    elif resume not in (None, "auto"):
        raise UsageProblem(f"--resume {resume}: would hold for each round of --watch", "run that one round by itself")
    if not train:
        refuse(context, ("again", "strict", "monitor"), "without --train", "add --train")


def run_watch(
    output: Output, config: Path | None, words: list[str], options: UpdateOptions, every: int, poll: float
) -> None:
    """Run rounds until a signal ends it."""
    from trainkit.workflow.watch import WatchOptions, watch

    if not options.train or options.dry_run or output.as_json:
        raise UsageProblem("--watch: goes with --train, and not with --dry-run or --json")
    with output.waiting("waiting for rollouts") as live:
        watch(
            config,
            words,
            options,
            WatchOptions(every, poll),
            Path.cwd(),
            telling(output, live),
            lambda result: show(output, result, options),
        )
    output.say("stopped; nothing was under way")


def telling(output: Output, live: Callable[[str], None]) -> Told:
    """Return what shows the course of a round."""
    from trainkit.runs.progress import describe
    from trainkit.workflow.round_options import Told

    def started(plan: Any, run: Any) -> None:
        output.problems(note for note in plan.notes if note.level != "note")
        output.say(f"training {plan.output_dir.name}; the log is {run.log_file}")
        live("starting the trainer")

    return Told(
        stage=live,
        prepared=lambda prepared: show_round(output, prepared),
        started=started,
        step=lambda step, begun: live(describe(step, begun)),
        looked=lambda done, total: live(f"looking at the data: {done >> 20:,} of {(total or 0) >> 20:,} MiB"),
        word=lambda word: output.problems([word]),
    )


def show_round(output: Output, prepared: PreparedRound) -> None:
    """Print what the iterations hold, what was drawn from them, and where the training starts."""
    from trainkit.workflow.round_data import in_words, left_out

    output.problems(prepared.notes)
    plan = prepared.drawn.plan
    rows = [
        (
            tally.iteration,
            f"{tally.trajectories:,}",
            f"{tally.unusable.total():,}",
            f"{tally.steps['steps']:,}",
            f"{tally.usable:,}",
            f"{100 * plan.weights[tally.iteration]:.1f} %",
            f"{plan.taken[tally.iteration]:,}",
        )
        for tally in prepared.found.tallies
    ]
    output.table(("iteration", "trajectories", "unusable", "steps", "eligible", "weight", "drawn"), rows)
    total = f"{plan.num_taken:,} of {len(prepared.found.table):,} steps"
    output.data(f"{'sample':<15}{total}, weights (i+1)^{plan.power:g}, seed {plan.seed}")
    for words in in_words(left_out(prepared.found)):
        output.say(f"left out: {words}")
    for line in plan.shortfalls():
        output.say(f"note: {line}")
    rows_made = prepared.rows
    output.data(f"{'rows':<15}{rows_made.train_rows:,} to train on, {rows_made.val_rows:,} to validate on")
    if rows_made.shortened:
        output.say(f"note: {rows_made.shortened:,} rows were longer than cutoff_len and lost their oldest turns")
    if rows_made.too_long:
        output.say(f"left out: {rows_made.too_long:,} rows whose last turn alone is longer than cutoff_len")
    output.data(f"{'starts from':<15}{prepared.resume or prepared.config.values['model_name_or_path']}")


def show(output: Output, result: UpdateResult, options: UpdateOptions) -> None:
    """Print what came of a round and what comes next."""
    output.json(as_json(result))
    match result.outcome:
        case "nothing to do":
            output.say(f"nothing to do: {result.place} is of {result.record.name}, which trained on these rollouts")
            output.say("    --again trains on them once more")
        case "handed over":
            output.data(f"{'model':<15}{result.place}")
            previous = result.handover.previous if result.handover else None
            if previous:
                output.data(f"{'the one before':<15}{previous}")
            for folder in result.removed:
                output.say(f"removed, as keep_rounds says: {folder}")
        case "prepared" if result.prepared and not options.dry_run:
            folder = result.prepared.folder
            output.data(f"{'written to':<15}{folder}")
            output.say("next: the same with --train, or yourself:")
            script, file = shlex.quote(str(folder / "wandb_env.sh")), shlex.quote(str(result.prepared.config_file))
            output.say(f"    . {script} && llamafactory-cli train {file}")


def as_json(result: UpdateResult) -> dict[str, Any]:
    """Return the report for machines."""
    from trainkit.workflow.round import plan_of

    prepared = result.prepared
    return {
        "ok": True,
        "outcome": result.outcome,
        "round": result.record.name,
        "model": result.place,
        "previous": result.handover.previous if result.handover else None,
        "removed": list(result.removed),
        "start": result.record.start or None,
        "start_step": result.record.start_step,
        "total_steps": result.record.total_steps,
        "sampling": plan_of(prepared) if prepared else result.record.sampling,
        "config": dict(prepared.config.values) if prepared else None,
        "run": result.trained.run.path if result.trained else None,
        "metrics": result.trained.metrics if result.trained else None,
        "notes": [problem_json(note) for note in prepared.notes] if prepared else [],
    }
