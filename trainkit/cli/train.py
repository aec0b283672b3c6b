"""`trainkit train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trainkit.cli.convert_kinds import refuse
from trainkit.cli.nodes import (
    Account,
    CheckNode,
    Cores,
    Elastic,
    Gpus,
    JobTime,
    Master,
    MaxRestarts,
    NodeCount,
    NodeRank,
    Partition,
    Ray,
    Slurm,
    Submit,
    given_words,
    node_options,
    place,
    show_digest,
    show_nodes,
    write_slurm,
)
from trainkit.cli.options import AsJson
from trainkit.cli.output import Output
from trainkit.cli.training import (
    BatchSize,
    ConfigFile,
    Dataset,
    Epochs,
    Export,
    ForceTemplate,
    LearningRate,
    MonitorWith,
    Overrides,
    ResumeFrom,
    Strict,
    make_settings,
    plan_as_json,
    run_auto,
    run_export,
    run_training,
    training_options,
)

if TYPE_CHECKING:
    from trainkit.workflow.prepare import Settings
    from trainkit.workflow.start import TrainOptions


def train(
    context: typer.Context,
    overrides: Overrides = None,
    config: ConfigFile = None,
    dataset: Dataset = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    export: Export = False,
    auto: Annotated[bool, typer.Option("--auto", help="Take the settings that trainkit suggest puts first.")] = False,
    strict: Strict = False,
    resume: ResumeFrom = None,
    monitor: MonitorWith = None,
    gpus: Gpus = None,
    nodes: NodeCount = None,
    node_rank: NodeRank = None,
    master: Master = None,
    elastic: Elastic = None,
    check_node: CheckNode = None,
    max_restarts: MaxRestarts = 0,
    ray: Ray = None,
    slurm: Slurm = None,
    submit: Submit = False,
    time: JobTime = None,
    partition: Partition = None,
    account: Account = None,
    cpus_per_node: Cores = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the command and the configuration only.")] = False,
    force_template: ForceTemplate = False,
    as_json: AsJson = False,
) -> None:
    """Train with LLaMA-Factory; its exit code is this command's.

    Example: trainkit train -d reward_model_full -e 3 --export
    """
    output = Output(as_json=as_json)
    settings = make_settings(
        config,
        overrides,
        dataset=dataset,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        force_template=force_template,
    )
    options = training_options(resume, monitor, export=export, strict=strict, max_restarts=max_restarts)
    where = node_options(gpus, nodes, node_rank, master, elastic, max_restarts, check_node, ray)
    job = {"time": time, "cpus": cpus_per_node, "partition": partition, "account": account}
    if slurm is not None:
        words = [*given_words(context), *(overrides or [])]
        write_slurm(output, settings, where, slurm, {"name": dataset or "trainkit", **job}, words, submit=submit)
        return
    refuse(context, ("submit", "time", "partition", "account", "cpus_per_node"), "without --slurm", "add --slurm FILE")
    if check_node == "print":
        show_digest(output, settings)
        return
    if dry_run:
        show_plan(output, place(settings, where, wait=False), options)
        show_nodes(output, settings, where)
        return
    settings = place(settings, where)
    result = (run_auto if auto else run_training)(output, settings, options)
    exported = run_export(output, result.output_dir, settings.base) if export else None
    output.json(
        {
            "ok": True,
            "output_dir": result.output_dir,
            "run": result.run.path,
            "metrics": result.metrics,
            "exported": exported and exported.folder,
        }
    )


def show_plan(output: Output, settings: Settings, options: TrainOptions) -> None:
    """Print the command, its environment, and each key with its origin."""
    import shlex

    from trainkit.workflow.start import plan_training

    plan = plan_training(settings, options)
    output.problems(plan.notes)
    output.data(f"in {plan.command.cwd}, where RUN is the run's name:")
    words = [f"{name}={shlex.quote(value or '')}" for name, value in sorted(plan.command.env.items()) if name != "PATH"]
    output.data(" ".join([*words, *map(shlex.quote, plan.command.argv)]))
    output.data("")
    values = plan.config.values
    output.table(("key", "value", "from"), [(key, values[key], plan.config.origin[key]) for key in sorted(values)])
    output.json(plan_as_json(plan))
