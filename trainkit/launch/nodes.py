"""Several GPUs and several nodes: what the user asks for, checked, as the environment of LLaMA-Factory's launcher.

The launcher reads NPROC_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, and for an elastic start RDZV_ID,
MIN_NNODES, MAX_NNODES and MAX_RESTARTS, and hands them to torchrun. Where an option is not given, the words that the
environment has stay as they are.

An elastic start lets nodes join between MIN and MAX. That the training survives the loss of a node is not promised:
on the CPU (gloo) the remaining nodes were seen to fail or to wait without end.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Mapping

PORTS = range(1, 65536)


@dataclass(frozen=True, slots=True)
class Nodes:
    """On what a training runs: `Nodes(gpus=8, count=2, rank=1, master="gpu01", port=29500)`.

    Attributes:
        gpus: GPUs of each node; None: all that are visible.
        count: nodes, or the most of them in an elastic start.
        rank: the place of this node, 0 on the master; None where it is not known yet, or where torchrun gives it.
        master: the name of the node where all meet; None: as the environment says.
        port: the port there; 0 without a master.
        least: nodes that are enough to begin; None: the start is not elastic.
        max_restarts: how often torchrun starts its workers again after a failure, in an elastic start.
    """

    gpus: int | None = None
    count: int = 1
    rank: int | None = None
    master: str | None = None
    port: int = 0
    least: int | None = None
    max_restarts: int = 0

    @property
    def needs_rank(self) -> bool:
        """Whether each node has to be told its place."""
        return self.count > 1 and self.least is None


def parse_nodes(
    env: Mapping[str, str],
    *,
    gpus: int | None = None,
    nodes: int | None = None,
    node_rank: int | None = None,
    master: str | None = None,
    elastic: str | None = None,
    max_restarts: int = 0,
) -> Nodes:
    """Return what the options --gpus, --nodes, --node-rank, --master, --elastic and --max-restarts ask for.

    Args:
        env: the environment; a word of it that says something else than the option is refused.

    Raises:
        UsageProblem: a value that cannot be, options that contradict each other, or a word of the environment.
    """
    least, count = parse_elastic(elastic) if elastic is not None else (None, _at_least("--nodes", nodes, 1) or 1)
    host, port = parse_master(master) if master is not None else (None, 0)
    found = Nodes(
        gpus=_at_least("--gpus", gpus, 1),
        count=count,
        rank=_at_least("--node-rank", node_rank, 0),
        master=host,
        port=port,
        least=least,
        max_restarts=_at_least("--max-restarts", max_restarts, 0) or 0,
    )
    if elastic is not None and nodes is not None:
        raise UsageProblem("--elastic and --nodes exclude each other", f"--elastic {elastic} says how many nodes")
    _check_places(found)
    _check_environment(found, env, count_given=nodes is not None)
    return found


def parse_master(word: str) -> tuple[str, int]:
    """Return host and port: `parse_master("gpu01:29500")` is `("gpu01", 29500)`.

    Raises:
        UsageProblem: no name and port, or an IPv6 address, which torchrun's words cannot carry.
    """
    host, _, port = word.rpartition(":")
    if not re.fullmatch(r"[\w.-]+", host) or not port.isdecimal() or int(port) not in PORTS:
        raise UsageProblem(f"--master {word}: must be HOST:PORT", "name the first node and a free port: gpu01:29500")
    return host, int(port)


def parse_elastic(word: str) -> tuple[int, int]:
    """Return the fewest and the most nodes: `parse_elastic("1:4")` is `(1, 4)`.

    Raises:
        UsageProblem: it is not two numbers, the second of which is not smaller.
    """
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", word)
    if match is None or int(match[1]) > int(match[2]):
        raise UsageProblem(f"--elastic {word}: must be MIN:MAX", "the fewest and the most nodes: --elastic 1:4")
    return int(match[1]), int(match[2])


def node_environment(nodes: Nodes, env: Mapping[str, str], *, visible: int | None = None) -> dict[str, str]:
    """Return what is added to the environment of the node of `nodes.rank`.

    Args:
        nodes: what was asked for.
        env: the environment of that node.
        visible: how many GPUs the node shows; None where that is not known, as for another node.

    Raises:
        UsageProblem: the node's rank or the master is said nowhere, or fewer GPUs are visible than asked for.
    """
    added = gpu_environment(nodes, env, visible=visible)
    if nodes.count > 1 or nodes.least is not None:
        # without a port each launcher would choose its own
        met = nodes.master or (env.get("MASTER_ADDR") and env.get("MASTER_PORT"))
        _require(met, nodes, "--master HOST:PORT", "the same on every node")
        added |= {"FORCE_TORCHRUN": "1", "NNODES": str(nodes.count)}
    if nodes.needs_rank:
        rank = env.get("NODE_RANK") if nodes.rank is None else str(nodes.rank)
        _require(rank, nodes, "--node-rank I", f"0 on the master, up to {nodes.count - 1} on the others")
        added["NODE_RANK"] = str(rank)
    if nodes.master:
        added |= {"MASTER_ADDR": nodes.master, "MASTER_PORT": str(nodes.port)}
    return added | _elastic_environment(nodes, env)


def every_node(nodes: Nodes, env: Mapping[str, str]) -> tuple[dict[str, str], ...]:
    """Return the additions for each node, by rank; an elastic start has the same for all, so only one.

    Raises:
        UsageProblem: as for `node_environment`.
    """
    # CUDA_VISIBLE_DEVICES of this machine says nothing about the others
    shared = {name: word for name, word in env.items() if name not in ("CUDA_VISIBLE_DEVICES", "NODE_RANK")}
    if not nodes.needs_rank:
        return (node_environment(nodes, shared),)
    return tuple(node_environment(at_rank(nodes, rank), shared) for rank in range(nodes.count))


def at_rank(nodes: Nodes, rank: int) -> Nodes:
    """Return the same for the node of that rank."""
    return dataclasses.replace(nodes, rank=rank)


def gpu_environment(nodes: Nodes, env: Mapping[str, str], *, visible: int | None) -> dict[str, str]:
    """Return the additions that leave `nodes.gpus` GPUs visible, the first of those that the environment leaves.

    Raises:
        UsageProblem: there are fewer.
    """
    if nodes.gpus is None:
        return {}
    chosen = env.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(nodes.gpus)]
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",") if name.strip()]
    shown = len(names) if visible is None else visible
    if shown < nodes.gpus:
        raise UsageProblem(f"--gpus {nodes.gpus}: {_shown(shown, chosen)}", _fewer_hint(shown))
    return {"NPROC_PER_NODE": str(nodes.gpus), "CUDA_VISIBLE_DEVICES": ",".join(names[: nodes.gpus])}


def _elastic_environment(nodes: Nodes, env: Mapping[str, str]) -> dict[str, str]:
    if nodes.least is None:
        return {}
    # every node has to come to the same meeting without having spoken to the others
    meeting = env.get("RDZV_ID") or f"trainkit-{nodes.port or env.get('MASTER_PORT', '')}"
    return {
        "RDZV_ID": meeting,
        "MIN_NNODES": str(nodes.least),
        "MAX_NNODES": str(nodes.count),
        "MAX_RESTARTS": str(nodes.max_restarts),
    }


def _check_places(nodes: Nodes) -> None:
    if nodes.least is not None and nodes.rank is not None:
        raise UsageProblem(
            "--elastic and --node-rank exclude each other", "leave --node-rank out: torchrun gives the ranks"
        )
    if nodes.rank is not None and nodes.rank >= nodes.count:
        raise UsageProblem(
            f"--node-rank {nodes.rank}: there {'is 1 node' if nodes.count == 1 else f'are {nodes.count} nodes'}",
            f"say how many with --nodes {nodes.rank + 1}, or more; the first is 0",
        )


def _check_environment(nodes: Nodes, env: Mapping[str, str], *, count_given: bool) -> None:
    """Refuse an option that the environment contradicts: which of the two is meant cannot be known."""
    elastic = nodes.least is not None
    asked = (
        ("--gpus", "NPROC_PER_NODE", nodes.gpus),
        ("--nodes", "NNODES", nodes.count if count_given else None),
        ("--node-rank", "NODE_RANK", nodes.rank),
        ("--master", "MASTER_ADDR", nodes.master),
        ("--master", "MASTER_PORT", nodes.port or None),
        ("--elastic", "NNODES", nodes.count if elastic else None),
        ("--elastic", "MIN_NNODES", nodes.least),
        ("--elastic", "MAX_NNODES", nodes.count if elastic else None),
        ("--max-restarts", "MAX_RESTARTS", nodes.max_restarts if elastic else None),
    )
    for option, name, value in asked:
        if value is not None and env.get(name) and env[name] != str(value):
            raise UsageProblem(
                f"{option} says {value}, but {name}={env[name]} in the environment",
                f"unset {name}, or leave {option} out",
            )
    if count_given and nodes.count > 1 and env.get("RDZV_ID"):
        raise UsageProblem(
            f"--nodes {nodes.count}: RDZV_ID={env['RDZV_ID']} in the environment makes the start elastic",
            "unset RDZV_ID, or use --elastic MIN:MAX",
        )


def _at_least(option: str, value: int | None, least: int) -> int | None:
    if value is not None and value < least:
        raise UsageProblem(f"{option} {value}: must be {least} or more")
    return value


def _require(found: str | None, nodes: Nodes, option: str, meaning: str) -> None:
    if not found:
        asked = f"--nodes {nodes.count}" if nodes.least is None else f"--elastic {nodes.least}:{nodes.count}"
        raise UsageProblem(f"{asked} needs {option}", f"add {option}: {meaning}")


def _shown(shown: int, chosen: str | None) -> str:
    count = {0: "no GPU is visible", 1: "only 1 GPU is visible"}.get(shown, f"only {shown} GPUs are visible")
    return count if chosen is None else f"{count} (CUDA_VISIBLE_DEVICES={chosen})"


def _fewer_hint(shown: int) -> str:
    if shown:
        return f"--gpus {shown}, or leave it out to use all"
    return "leave --gpus out; NPROC_PER_NODE=N starts N processes on the CPU"
