"""What the command line says about GPUs, nodes and Slurm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainkit.cli.output import Output
    from trainkit.workflow.nodes import NodeOptions
    from trainkit.workflow.prepare import Settings

Gpus = Annotated[int | None, typer.Option("--gpus", metavar="N", help="GPUs of this node; all unless given.")]
NodeCount = Annotated[int | None, typer.Option("--nodes", metavar="N", help="Nodes that train together.")]
NodeRank = Annotated[int | None, typer.Option("--node-rank", metavar="I", help="This node's place; 0 is the master.")]
Master = Annotated[
    str | None, typer.Option("--master", metavar="HOST:PORT", help="Where the nodes meet; the same on each.")
]
Elastic = Annotated[
    str | None, typer.Option("--elastic", metavar="MIN:MAX", help="Nodes may join between these numbers.")
]
CheckNode = Annotated[
    str | None,
    typer.Option("--check-node", metavar="DIGEST|print", help="Data and model must be as on the node that printed it."),
]
MaxRestarts = Annotated[
    int, typer.Option("--max-restarts", metavar="N", help="After a crash, go on from the newest checkpoint.")
]
Ray = Annotated[int | None, typer.Option("--ray", metavar="N", help="Train on Ray, with N workers of a GPU each.")]
Slurm = Annotated[
    Path | None, typer.Option("--slurm", metavar="FILE", help="Write a job script for Slurm; nothing is trained here.")
]
Submit = Annotated[bool, typer.Option("--submit", help="With --slurm: also give it to sbatch.")]
JobTime = Annotated[str | None, typer.Option("--time", metavar="H:M:S", help="With --slurm: at most so long.")]
Partition = Annotated[str | None, typer.Option("--partition", help="With --slurm: the queue.")]
Account = Annotated[str | None, typer.Option("--account", help="With --slurm: who pays.")]
Cores = Annotated[int | None, typer.Option("--cpus-per-node", metavar="N", help="With --slurm: cores of each node.")]

# the parameters of `train` that a job script says by itself, or that are not about the training
NOT_IN_A_JOB = (
    "gpus", "nodes", "node_rank", "master", "elastic", "check_node", "ray", "slurm", "submit", "time", "partition",
    "account", "cpus_per_node", "resume", "dry_run", "as_json", "overrides",
)  # fmt: skip


def node_options(
    gpus: int | None,
    nodes: int | None,
    node_rank: int | None,
    master: str | None,
    elastic: str | None,
    max_restarts: int,
    check_node: str | None,
    ray: int | None = None,
) -> NodeOptions:
    """Return on what a training is to run."""
    from trainkit.workflow.nodes import NodeOptions

    return NodeOptions(gpus, nodes, node_rank, master, elastic, max_restarts, check_node, ray)


def place(settings: Settings, options: NodeOptions, *, wait: bool = True) -> Settings:
    """Return the settings with what the training needs in its environment on this node."""
    from trainkit.workflow.nodes import place_on_nodes

    return place_on_nodes(settings, options, wait=wait)


def show_digest(output: Output, settings: Settings) -> None:
    """Print the digest of this node's data and model."""
    from trainkit.workflow.nodes import digest_here

    digest = digest_here(settings)
    output.data(digest)
    output.json({"ok": True, "digest": digest})


def show_nodes(output: Output, settings: Settings, options: NodeOptions) -> None:
    """Print what is added to the environment of each node."""
    import shlex

    from trainkit.workflow.nodes import other_nodes

    for rank, added in enumerate(other_nodes(settings, options)):
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(added.items()))
        where = "Ray's driver" if options.ray else "every node" if options.elastic else f"node {rank}"
        output.data(f"{where}: {words}")


def write_slurm(
    output: Output,
    settings: Settings,
    options: NodeOptions,
    file: Path,
    asked: Mapping[str, Any],
    words: list[str],
    *,
    submit: bool,
) -> None:
    """Write the job script, and submit it when that is asked for."""
    from trainkit.workflow.nodes import submit_job, write_job

    for name in ("node_rank", "master", "elastic", "check_node", "ray"):
        if getattr(options, name) is not None:
            raise UsageProblem(f"--{name.replace('_', '-')}: has no meaning with --slurm", "the job finds it out")
    write_job(file, {**asked, "nodes": options.nodes or 1, "gpus": options.gpus or 0}, words, settings.base)
    output.data(f"{'job script':<15}{file}")
    said = submit_job(file, settings) if submit else ""
    output.say(said or f"next: sbatch {file}")
    output.json({"ok": True, "script": file, "sbatch": said or None})


def given_words(context: typer.Context) -> list[str]:
    """Return the options of a command line about the training itself, as words: `["--dataset", "rm", "--strict"]`."""
    names = {param.name: max(param.opts, key=len) for param in context.command.params if param.name}
    given: Mapping[str, Any] = {
        name: value
        for name, value in context.params.items()
        if name not in NOT_IN_A_JOB and value not in (None, False, 0)
    }
    return [word for name, value in given.items() for word in (names[name], *([] if value is True else [str(value)]))]
