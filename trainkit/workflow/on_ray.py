"""A training on Ray: LLaMA-Factory's own start of one Ray worker for each GPU, instead of torchrun.

Where RAY_ADDRESS names a cluster, the training joins it. Otherwise the trainer starts a Ray of its own, which ends with
it. What LLaMA-Factory 0.9.5 asks of Ray, and what it does there, decides on the rest:

    devices      one for each worker, of the kind that this machine has; without a GPU it asks for ten times the
                 cores that there are, and waits for ever
    cores        ten for each GPU of the cluster; a Ray of its own is told that there are so many
    address      found through Ray's dashboard, which may be that of another Ray on this machine, unless it is given
    environment  every variable is handed to Ray for the workers, and Ray writes them to a log that all users can read
"""

from __future__ import annotations

import dataclasses
import importlib.util
import socket
from typing import TYPE_CHECKING, Any

from trainkit.errors import EnvironmentProblem, UsageProblem
from trainkit.launch.nodes import Nodes, gpu_environment
from trainkit.plan.hardware import usable_cores
from trainkit.plan.render import secret_environment
from trainkit.plan.secret import is_secret
from trainkit.workflow.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainkit.workflow.prepare import Settings

CORES_PER_WORKER = 10
# with these the trainer starts torchrun, whose workers would each start a Ray
TORCHRUN_VARIABLES = ("FORCE_TORCHRUN", "NPROC_PER_NODE", "NNODES", "RDZV_ID", "USE_MCA")
CLUSTER = "RAY_ADDRESS"


def put_on_ray(settings: Settings, workers: int, *, visible: int) -> Settings:
    """Return the settings of a training by `workers` Ray workers.

    Args:
        settings: what the user said about the training.
        workers: how many; on a Ray of its own not more than there are GPUs.
        visible: GPUs of this machine.

    Raises:
        EnvironmentProblem: Ray is not installed, or there is no GPU.
        UsageProblem: too many workers, something that needs torchrun, or a secret that a cluster would write down.
    """
    env = settings.environ()
    check_start(env, workers, visible)
    joins = bool(env.get(CLUSTER))
    placed = dataclasses.replace(
        settings,
        options={**settings.options, **({} if joins else own_ray(workers)), "ray_num_workers": ("--ray", workers)},
        environment={**settings.environment, **ray_environment(env, workers)},
    )
    config = prepare(placed).config
    if config.values.get("deepspeed"):
        raise UsageProblem("--ray: with deepspeed the trainer starts torchrun", "deepspeed=null, or leave --ray out")
    secrets = {**secret_environment(config)[1], **{name: env[name] for name in env if env[name] and holds_secret(name)}}
    if joins and secrets:
        raise UsageProblem(
            f"--ray: the cluster would write {', '.join(sorted(secrets))} to its logs",
            "take it out of the environment and the configuration; log in on each node, where a file keeps the secret",
        )
    return placed


def check_start(env: Mapping[str, str], workers: int, visible: int) -> None:
    """Check that the trainer can start on Ray here.

    Raises:
        EnvironmentProblem, UsageProblem: as for `put_on_ray`.
    """
    if workers < 1:
        raise UsageProblem(f"--ray {workers}: must be 1 or more")
    if importlib.util.find_spec("ray") is None:
        raise EnvironmentProblem("--ray: Ray is not installed beside LLaMA-Factory", "pip install 'trainkit[ray]'")
    for name in TORCHRUN_VARIABLES:
        if env.get(name):
            raise UsageProblem(f"--ray: {name}={env[name]} in the environment starts torchrun", f"unset {name}")
    if not visible:
        raise EnvironmentProblem(
            "--ray: needs GPUs; without one LLaMA-Factory waits for ever for cores that Ray does not have",
            "leave --ray out; NPROC_PER_NODE=N starts N processes on the CPU",
        )
    if workers > visible and not env.get(CLUSTER):
        count = "only 1 GPU is visible" if visible == 1 else f"only {visible} GPUs are visible"
        raise UsageProblem(f"--ray {workers}: {count}", f"--ray {visible}; {CLUSTER}=HOST:PORT joins a cluster")


def own_ray(workers: int) -> dict[str, tuple[str, Any]]:
    """Return the trainer's keys for a Ray that the trainer starts for itself."""
    here = own_address()
    start = {
        "address": "local",
        "num_cpus": max(usable_cores(), CORES_PER_WORKER * workers),
        "num_gpus": workers,
        "include_dashboard": False,
        "_node_ip_address": here,
    }
    return {"ray_init_kwargs": ("--ray", start), "master_addr": ("--ray", here)}


def ray_environment(env: Mapping[str, str], workers: int) -> dict[str, str]:
    """Return what is added to the environment of a training on Ray."""
    # plain lines, and all of them, as the log of another training has them
    added = {"USE_RAY": "1", "RAY_COLOR_PREFIX": "0", "RAY_DEDUP_LOGS": "0"}
    if env.get(CLUSTER):
        return added
    gpus = gpu_environment(Nodes(gpus=workers), env, visible=None)
    gpus.pop("NPROC_PER_NODE")
    # below this level Ray writes the environment to its logs; it also tells its makers of each use unless told not to
    return {**added, **gpus, "RAY_LOGGER_LEVEL": "warning", "RAY_USAGE_STATS_ENABLED": "0"}


def holds_secret(variable: str) -> bool:
    """Whether a variable of the environment is named like a secret."""
    return is_secret(variable.lower()) or variable.upper().endswith(("_KEY", "PASSWORD"))


def own_address() -> str:
    """Return the address of this machine, as Ray finds it; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way_out:
        try:
            way_out.connect(("8.8.8.8", 80))
        except OSError:
            return socket.gethostbyname(socket.gethostname())
        return str(way_out.getsockname()[0])
