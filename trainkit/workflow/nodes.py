"""A training on several GPUs and nodes: its environment on this node, what is checked before it, a job for Slurm."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.dataset.registry import find_files
from trainkit.datatypes import Command
from trainkit.errors import EnvironmentProblem, ProblemsFound, TrainkitError, UsageProblem
from trainkit.files import write_text_atomic
from trainkit.launch.nodes import every_node, node_environment, parse_nodes
from trainkit.launch.preflight import check_digest, check_master, check_port, node_digest
from trainkit.launch.process import capture
from trainkit.launch.slurm import SlurmJob, slurm_script
from trainkit.plan.hardware import find_hardware
from trainkit.workflow.on_ray import put_on_ray, ray_environment
from trainkit.workflow.prepare import names_of, prepare

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainkit.datatypes import Problem
    from trainkit.launch.nodes import Nodes
    from trainkit.workflow.prepare import Settings


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """On what a training is to run, as the command line says it; None was not given.

    Attributes:
        gpus, nodes, node_rank, master, elastic: see `trainkit.launch.nodes.parse_nodes`.
        max_restarts: how often an elastic start begins again.
        check_node: the digest of data and model on another node.
        ray: workers of a training on Ray.
    """

    gpus: int | None = None
    nodes: int | None = None
    node_rank: int | None = None
    master: str | None = None
    elastic: str | None = None
    max_restarts: int = 0
    check_node: str | None = None
    ray: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing is asked for that this machine alone would not do."""
        return self == NodeOptions(max_restarts=self.max_restarts)


def place_on_nodes(settings: Settings, options: NodeOptions, *, wait: bool = True) -> Settings:
    """Return the settings with the environment that the training needs on this node.

    Args:
        settings: what the user said about the training.
        options: what the user said about nodes.
        wait: the training follows, so the way to the master is tried.

    Raises:
        UsageProblem: options that contradict each other or the environment, or that are missing.
        EnvironmentProblem: Ray is asked for and cannot be used.
        ProblemsFound: the master cannot be reached, its port is taken, or data or model differ from the other node's.
    """
    if options.is_plain:
        return settings
    placed, problems = _on_ray(settings, options) if options.ray is not None else _on_nodes(settings, options, wait)
    if options.check_node is not None:
        problems += check_digest(options.check_node, digest_here(placed))
    if any(problem.level == "error" for problem in problems):
        raise ProblemsFound("this node is not ready; nothing was started", problems)
    return placed


def _on_ray(settings: Settings, options: NodeOptions) -> tuple[Settings, list[Problem]]:
    for name in ("gpus", "nodes", "node_rank", "master", "elastic"):
        if getattr(options, name) is not None:
            raise UsageProblem(f"--ray and --{name.replace('_', '-')} exclude each other", "Ray places the workers")
    return put_on_ray(settings, options.ray or 0, visible=len(find_hardware(settings.environ()).gpus)), []


def _on_nodes(settings: Settings, options: NodeOptions, wait: bool) -> tuple[Settings, list[Problem]]:
    nodes, env = parsed(settings, options), settings.environ()
    visible = len(find_hardware(env).gpus)
    placed = dataclasses.replace(
        settings, environment={**settings.environment, **node_environment(nodes, env, visible=visible)}
    )
    problems: list[Problem] = []
    if wait and nodes.count > 1 and nodes.master:
        rank = nodes.rank if nodes.rank is not None else int(env.get("NODE_RANK") or 0)
        reach = check_master if rank and nodes.least is None else check_port
        problems += reach(nodes.master, nodes.port) if nodes.least is None else []
    return placed, problems


def parsed(settings: Settings, options: NodeOptions) -> Nodes:
    """Return what the options ask for, checked against the environment."""
    return parse_nodes(
        settings.environ(),
        gpus=options.gpus,
        nodes=options.nodes,
        node_rank=options.node_rank,
        master=options.master,
        elastic=options.elastic,
        max_restarts=options.max_restarts if options.elastic else 0,
    )


def other_nodes(settings: Settings, options: NodeOptions) -> list[dict[str, str]]:
    """Return what is added to the environment of each node, by rank; empty for a training on one node without Ray."""
    if options.is_plain:
        return []
    if options.ray is not None:
        return [ray_environment(settings.environ(), options.ray)]
    nodes = parsed(settings, options)
    return [] if nodes.count == 1 and nodes.least is None else list(every_node(nodes, settings.environ()))


def digest_here(settings: Settings) -> str:
    """Return the digest of the data and the model of a training on this node; every byte of them is read.

    Raises:
        ProblemsFound, ConfigError, InputError: as for a training; or a file cannot be read.
    """
    values = prepare(settings).config.values
    dataset_dir = Path(str(values.get("dataset_dir", "data")))
    names = [*names_of(values.get("dataset")), *names_of(values.get("eval_dataset"))]
    data = sorted({file for name in names for file in find_files(dataset_dir, name)})
    model = Path(str(values.get("model_name_or_path")))
    weights = sorted(path for path in model.iterdir() if path.is_file()) if model.is_dir() else []
    return node_digest({"data": data, "model": weights})


def write_job(file: Path, asked: Mapping[str, Any], words: Sequence[str], base: Path) -> None:
    """Write the script of a Slurm job that trains on every node.

    Args:
        file: where to.
        asked: of the cluster, by the names of `SlurmJob`.
        words: the words after `trainkit train`, without those about nodes and Slurm.
        base: the folder in which the training is started, under this path on every node.

    Raises:
        UsageProblem: a value that sbatch cannot take, or there is another file.
    """
    if file.exists() and not file.read_text(encoding="utf-8", errors="replace").startswith("#!/bin/bash\n#SBATCH"):
        raise UsageProblem(f"--slurm {file}: is there already, and is no job script", "name another file")
    script = slurm_script(SlurmJob(**asked), words, folder=str(base), program=(sys.executable, "-m", "trainkit"))
    write_text_atomic(file, script)
    file.chmod(0o755)


def submit_job(file: Path, settings: Settings) -> str:
    """Give a job script to Slurm; return what sbatch says.

    Raises:
        EnvironmentProblem: there is no sbatch here.
        TrainkitError: Slurm refuses it.
    """
    env = settings.environ()
    program = shutil.which("sbatch", path=env.get("PATH"))
    if program is None:
        raise EnvironmentProblem("--submit: sbatch is not here", f"on a node of the cluster: sbatch {file}")
    exit_code, out, err = capture(Command((program, str(file.absolute())), file.absolute().parent), env=env)
    if exit_code:
        raise TrainkitError(f"sbatch refuses the job: {(err or out).strip()}", f"the script is {file}")
    return out.strip()
