"""A Slurm job script that trains on every node, saves before its time is over, and goes on in the next one.

Slurm sends SIGUSR1 to the script some time before the end. The script passes it on through srun to trainkit on each
node, waits for the save, and puts the job back into the queue, where `--resume auto` goes on. When another job takes
the nodes, Slurm sends SIGTERM and queues the job again by itself (`--requeue`).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

# what sbatch understands as a time: minutes, M:S, H:M:S, D-H, D-H:M and D-H:M:S
TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d\d?(:\d\d){0,2}")
# Slurm looks at the clock about once a minute, and sends the signal that much too early or too late
LEAST_SIGNAL_SECONDS = 120

SCRIPT = """\
#!/bin/bash
{directives}
set -euo pipefail

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
# jobs that share a node must not meet at the same port
TRAINKIT_MASTER=${{hosts%%$'\\n'*}}:$((20000 + SLURM_JOB_ID % 10000))
export TRAINKIT_MASTER

child=
signals=0
time_is_over=no
pass_on() {{
    signals=$((signals + 1))
    [[ -z $child ]] || kill -s "$1" "$child" || true
}}
trap 'time_is_over=yes; pass_on USR1' USR1
trap 'pass_on TERM' TERM

cd {folder}
# each node finds its own rank; exec, because Slurm signals only the task itself and not what it has started;
# a node that fails leaves the others as much time to end as they have to save
{srun} \\
    bash -c 'exec {command} "$@"' \\
    trainkit {words} &
child=$!

# a signal ends `wait` too early, so only a wait without one knows the exit code
while :; do
    seen=$signals
    code=0
    wait "$child" || code=$?
    ((signals > seen)) || break
done

if [[ $time_is_over = yes && $code -ne 0 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """What a training needs of the cluster: `SlurmJob(name="qwen3", nodes=2, gpus=8, time="24:00:00")`.

    Attributes:
        name: the job's name in the queue.
        nodes: how many nodes.
        gpus: GPUs of each node; 0 for a training on the CPU.
        time: how long at most, as sbatch takes it; None: as long as the partition allows.
        cpus: cores of each node; None: what the cluster gives to one task, often a single core.
        partition: the queue; None: the cluster's default.
        account: who pays; None: the user's default.
        log: the file for the job's words; %j is the job's number. Its folder must exist.
        signal_seconds: how long before the end the training is told to save.
    """

    name: str
    nodes: int = 1
    gpus: int = 0
    time: str | None = None
    cpus: int | None = None
    partition: str | None = None
    account: str | None = None
    log: str = "slurm-%j.log"
    signal_seconds: int = 300


def slurm_script(job: SlurmJob, words: Sequence[str], *, folder: str, program: Sequence[str] = ("trainkit",)) -> str:
    """Return a job script for sbatch that runs `trainkit train WORDS --resume auto` on every node.

    Args:
        job: what the cluster is asked for.
        words: the words after `trainkit train`, without those about nodes, Slurm and resuming.
        folder: where the training is started; every node must see it under this path.
        program: how trainkit is started on the nodes.

    Raises:
        UsageProblem: a value that sbatch cannot take.
    """
    _check(job, (*words, folder, *program))
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {option}" for option in _directives(job)),
        folder=shlex.quote(folder),
        srun=shlex.join(_srun(job)),
        # inside single quotes, where a quote has to leave and enter again
        command=" ".join([shlex.join(program), "train", *_node_words(job)]).replace("'", "'\\''"),
        words=shlex.join(("--resume", "auto", *words)),
    )


def _directives(job: SlurmJob) -> list[str]:
    options: list[tuple[str, str | int | None]] = [
        ("--job-name", job.name),
        ("--nodes", job.nodes),
        ("--ntasks-per-node", 1),
        ("--gpus-per-node", job.gpus or None),
        ("--cpus-per-task", job.cpus),
        ("--time", job.time),
        ("--partition", job.partition),
        ("--account", job.account),
        ("--output", job.log),
        ("--signal", f"B:USR1@{job.signal_seconds}"),
    ]
    given = [f"{name}={shlex.quote(str(value))}" for name, value in options if value is not None]
    # a job that begins again must not lose what it said before
    return [*given, "--open-mode=append", "--requeue"]


def _srun(job: SlurmJob) -> list[str]:
    # srun does not take the number of cores from the job since Slurm 22.05
    cores = [f"--cpus-per-task={job.cpus}"] if job.cpus else []
    return ["srun", f"--nodes={job.nodes}", "--ntasks-per-node=1", *cores, f"--wait={job.signal_seconds}"]


def _node_words(job: SlurmJob) -> list[str]:
    gpus = [f"--gpus {job.gpus}"] if job.gpus else []
    if job.nodes == 1:
        return gpus
    return [*gpus, f"--nodes {job.nodes}", '--node-rank "$SLURM_NODEID"', '--master "$TRAINKIT_MASTER"']


def _check(job: SlurmJob, words: Sequence[str]) -> None:
    if job.time is not None and not TIME.fullmatch(job.time):
        raise UsageProblem(
            f"--time {job.time}: not a time that sbatch takes", "hours, minutes and seconds: 24:00:00, or 2-00:00:00"
        )
    if job.signal_seconds < LEAST_SIGNAL_SECONDS:
        raise UsageProblem(
            f"{job.signal_seconds} s before the end are too few: Slurm's clock is only that exact",
            f"leave at least {LEAST_SIGNAL_SECONDS} s, and more than a step and a save take",
        )
    for number, least in ((job.nodes, 1), (job.gpus, 0), (1 if job.cpus is None else job.cpus, 1)):
        if number < least:
            raise UsageProblem(f"{job.name}: {number} is too few nodes, GPUs or cores")
    for word in (job.name, job.partition, job.account, job.log, *words):
        if word is not None and (not word.isprintable() or not word):
            raise UsageProblem(f"{word!r}: an empty word or one with line breaks cannot stand in a job script")
