"""What `trainkit convert` can be asked for, and which of its options have a meaning then."""

from __future__ import annotations

import typer

from trainkit.errors import UsageProblem

EVALUATIONS, TRAJECTORIES, CONVERSATIONS, AUTO = "evaluations", "trajectories", "conversations", "auto"
KINDS = (EVALUATIONS, TRAJECTORIES, CONVERSATIONS, "pairs", "labels", AUTO)
# The parameters of `convert` that only some of its ways have a use for.
OF_EVALUATIONS = ("evaluation_types", "model_names", "task_ids", "metadata", "no_metadata")
OF_VARIANTS = ("by_task", "min_samples")
OF_ROWS = ("where", "group_by", "split", "jobs")
OF_CONVERSATIONS = ("dedup", "mix", "mix_until")
OF_SCORES = ("margin", "per_task", "score")
OF_TRAJECTORIES = ("to", "last_n_iterations", "skip_bad_iterations")
OF_A_DATA_SET = ("name", "split_eval", "eval_ratio", "seed", "max_rejects", "dry_run")


def check_kind(context: typer.Context, kind: str) -> None:
    """Check that the words on the command line belong to what is to be done; none of them is passed over.

    Raises:
        UsageProblem: an unknown kind or form, or an option of another kind.
    """
    if kind not in KINDS:
        raise UsageProblem(f"--kind {kind}: must be {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if kind == AUTO:
        return  # it is checked again as what it turns out to be
    if kind == TRAJECTORIES:
        check_trajectories(context)
        return
    refuse(context, OF_TRAJECTORIES, f"without --kind {TRAJECTORIES}", f"add --kind {TRAJECTORIES}")
    if is_given(context, "pairs"):
        check_pairs(context, kind)
    else:
        refuse(context, OF_SCORES, "without --pairs", "add --pairs")
        if kind == EVALUATIONS:
            refuse(context, OF_CONVERSATIONS, f"with --kind {kind}", f"add --kind {CONVERSATIONS}, pairs or labels")
    if kind != EVALUATIONS:
        refuse(context, OF_EVALUATIONS + OF_VARIANTS, f"with --kind {kind}", "leave it out")
    check_mix(context)


def check_trajectories(context: typer.Context) -> None:
    others = (*OF_EVALUATIONS, *OF_VARIANTS, *OF_ROWS, *OF_CONVERSATIONS, "pairs", *OF_SCORES)
    refuse(context, others, f"with --kind {TRAJECTORIES}", "leave it out")
    to = context.params["to"]
    if to is None:
        return
    if to != "jsonl":
        raise UsageProblem(f"--to {to}: must be jsonl", "without --to the steps become a data set")
    refuse(context, OF_A_DATA_SET, "with --to jsonl, which writes whole trajectories", "leave it out")


def check_pairs(context: typer.Context, kind: str) -> None:
    if kind not in (EVALUATIONS, CONVERSATIONS):
        raise UsageProblem(
            f"--pairs: has no meaning with --kind {kind}", f"it makes pairs of {EVALUATIONS} or {CONVERSATIONS}"
        )
    refuse(context, OF_VARIANTS, "with --pairs, which makes one data set", "leave it out")
    refuse(context, OF_CONVERSATIONS, "with --pairs", "convert the pairs once more: --kind pairs")


def check_mix(context: typer.Context) -> None:
    if is_given(context, "mix"):
        refuse(context, ("jobs",), "with --mix, which draws row by row", "leave it out")
    else:
        refuse(context, ("mix_until",), "without --mix", "add --mix")


def refuse(context: typer.Context, names: tuple[str, ...], where: str, hint: str) -> None:
    """Refuse the first of these parameters that stands on the command line."""
    for name in names:
        if is_given(context, name):
            raise UsageProblem(f"--{name.replace('_', '-')}: has no meaning {where}", hint)


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
