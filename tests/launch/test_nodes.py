from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainkit.datatypes import Command
from trainkit.errors import TrainkitError, UsageProblem
from trainkit.launch.llamafactory import train_command
from trainkit.launch.nodes import Nodes, every_node, node_environment, parse_elastic, parse_master, parse_nodes

MASTER = "gpu01:29500"
TWO = {"nodes": 2, "node_rank": 1, "master": MASTER}
MET = {"MASTER_ADDR": "gpu01", "MASTER_PORT": "29500"}
TWO_NODES = {"FORCE_TORCHRUN": "1", "NNODES": "2", "NODE_RANK": "1", **MET}
ELASTIC = {"FORCE_TORCHRUN": "1", "NNODES": "4", "MIN_NNODES": "1", "MAX_NNODES": "4"}


@pytest.mark.parametrize(
    ("env", "options", "visible", "additions"),
    [
        ({}, {}, 8, {}),
        # what the user set for the launcher stays, so there is nothing to add
        ({"NNODES": "2", "NODE_RANK": "1", **MET}, {}, 8, {}),
        ({}, {"gpus": 2}, 8, {"NPROC_PER_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,1"}),
        ({}, {"gpus": 2}, 2, {"NPROC_PER_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,1"}),
        (
            {"CUDA_VISIBLE_DEVICES": "3, 5,GPU-7"},
            {"gpus": 2},
            3,
            {"NPROC_PER_NODE": "2", "CUDA_VISIBLE_DEVICES": "3,5"},
        ),
        ({}, TWO, 8, TWO_NODES),
        ({"NNODES": "2", "NODE_RANK": "1", **MET}, TWO, 8, TWO_NODES),
        ({"NODE_RANK": "1", **MET}, {"nodes": 2}, 8, {"FORCE_TORCHRUN": "1", "NNODES": "2", "NODE_RANK": "1"}),
        (
            {},
            TWO | {"gpus": 4},
            8,
            {"NPROC_PER_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3", **TWO_NODES},
        ),
        ({}, {"nodes": 1, "master": MASTER}, 1, MET),
        (
            {},
            {"elastic": "1:4", "master": MASTER, "max_restarts": 3},
            8,
            {**ELASTIC, **MET, "RDZV_ID": "trainkit-29500", "MAX_RESTARTS": "3"},
        ),
        ({"RDZV_ID": "mine", **MET}, {"elastic": "1:4"}, 8, {**ELASTIC, "RDZV_ID": "mine", "MAX_RESTARTS": "0"}),
        (MET, {"elastic": "1:4"}, 8, {**ELASTIC, "RDZV_ID": "trainkit-29500", "MAX_RESTARTS": "0"}),
        # without torchrun's restarts there is nothing to say to the launcher
        ({}, {"max_restarts": 3}, 8, {}),
    ],
)
def test_the_environment_of_a_node(
    env: dict[str, str], options: dict[str, Any], visible: int, additions: dict[str, str]
) -> None:
    assert node_environment(parse_nodes(env, **options), env, visible=visible) == additions


@pytest.mark.parametrize(
    ("env", "options", "message", "hint"),
    [
        ({}, {"gpus": 0}, "--gpus 0: must be 1 or more", ""),
        ({}, {"nodes": 0}, "--nodes 0: must be 1 or more", ""),
        ({}, {"max_restarts": -1}, "--max-restarts -1: must be 0 or more", ""),
        ({}, {"gpus": 3}, "--gpus 3: only 2 GPUs are visible", "--gpus 2, or leave it out to use all"),
        (
            {"CUDA_VISIBLE_DEVICES": "4"},
            {"gpus": 2},
            "--gpus 2: only 1 GPU is visible (CUDA_VISIBLE_DEVICES=4)",
            "--gpus 1, or leave it out to use all",
        ),
        (
            {"CUDA_VISIBLE_DEVICES": ""},
            {"gpus": 2},
            "--gpus 2: no GPU is visible (CUDA_VISIBLE_DEVICES=)",
            "leave --gpus out; NPROC_PER_NODE=N starts N processes on the CPU",
        ),
        (
            {},
            {"nodes": 2, "node_rank": 0},
            "--nodes 2 needs --master HOST:PORT",
            "add --master HOST:PORT: the same on every node",
        ),
        (
            {"MASTER_ADDR": "gpu01"},
            {"elastic": "1:2"},
            "--elastic 1:2 needs --master HOST:PORT",
            "add --master HOST:PORT: the same on every node",
        ),
        (
            {},
            {"nodes": 2, "master": MASTER},
            "--nodes 2 needs --node-rank I",
            "add --node-rank I: 0 on the master, up to 1 on the others",
        ),
        (
            {},
            {"nodes": 2, "node_rank": 2, "master": MASTER},
            "--node-rank 2: there are 2 nodes",
            "say how many with --nodes 3, or more; the first is 0",
        ),
        (
            {},
            {"node_rank": 1},
            "--node-rank 1: there is 1 node",
            "say how many with --nodes 2, or more; the first is 0",
        ),
        (
            {},
            {"nodes": 2, "elastic": "1:4"},
            "--elastic and --nodes exclude each other",
            "--elastic 1:4 says how many nodes",
        ),
        (
            {},
            {"node_rank": 1, "elastic": "1:4"},
            "--elastic and --node-rank exclude each other",
            "leave --node-rank out: torchrun gives the ranks",
        ),
        (
            {"NPROC_PER_NODE": "8"},
            {"gpus": 2},
            "--gpus says 2, but NPROC_PER_NODE=8 in the environment",
            "unset NPROC_PER_NODE, or leave --gpus out",
        ),
        (
            {"NNODES": "4"},
            {"nodes": 1},
            "--nodes says 1, but NNODES=4 in the environment",
            "unset NNODES, or leave --nodes out",
        ),
        (
            {"NODE_RANK": "0"},
            TWO,
            "--node-rank says 1, but NODE_RANK=0 in the environment",
            "unset NODE_RANK, or leave --node-rank out",
        ),
        (
            {"MASTER_PORT": "1234"},
            TWO,
            "--master says 29500, but MASTER_PORT=1234 in the environment",
            "unset MASTER_PORT, or leave --master out",
        ),
        (
            {"MAX_RESTARTS": "1"},
            {"elastic": "1:4", "master": MASTER},
            "--max-restarts says 0, but MAX_RESTARTS=1 in the environment",
            "unset MAX_RESTARTS, or leave --max-restarts out",
        ),
        (
            {"RDZV_ID": "job"},
            TWO,
            "--nodes 2: RDZV_ID=job in the environment makes the start elastic",
            "unset RDZV_ID, or use --elastic MIN:MAX",
        ),
    ],
)
def test_what_cannot_be_is_explained(env: dict[str, str], options: dict[str, Any], message: str, hint: str) -> None:
    count = (
        len([name for name in env["CUDA_VISIBLE_DEVICES"].split(",") if name]) if "CUDA_VISIBLE_DEVICES" in env else 2
    )
    with pytest.raises(UsageProblem) as caught:
        node_environment(parse_nodes(env, **options), env, visible=count)
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize("word", ["", "gpu01", "gpu01:", ":29500", "gpu01:0", "gpu01:65536", "a b:1", "[::1]:29500"])
def test_a_master_has_a_name_and_a_port(word: str) -> None:
    with pytest.raises(UsageProblem, match="must be HOST:PORT"):
        parse_master(word)


@pytest.mark.parametrize("word", ["", "2", "2:", "0:2", "3:2", "1:2:3", "-1:2"])
def test_an_elastic_start_has_a_least_and_a_most(word: str) -> None:
    with pytest.raises(UsageProblem, match="must be MIN:MAX"):
        parse_elastic(word)


def test_every_node_for_a_dry_run() -> None:
    here = {"CUDA_VISIBLE_DEVICES": "6,7", "NODE_RANK": "1"}
    shared = {"FORCE_TORCHRUN": "1", "NNODES": "3", **MET, "NPROC_PER_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    nodes = parse_nodes(here, gpus=4, nodes=3, master=MASTER)
    assert nodes == Nodes(gpus=4, count=3, master="gpu01", port=29500)
    assert every_node(nodes, here) == tuple({**shared, "NODE_RANK": rank} for rank in "012")
    elastic = parse_nodes({}, elastic="2:3", master=MASTER)
    assert [added["MIN_NNODES"] for added in every_node(elastic, {})] == ["2"], "the same on every node"
    assert every_node(Nodes(), {}) == ({},)


@pytest.mark.parametrize(
    ("options", "gpu_count", "more"),
    [
        ({"gpus": 1}, 1, {}),
        ({"gpus": 2}, 2, {"FORCE_TORCHRUN": "1"}),
        (TWO, 8, {}),
        # two nodes without a GPU, one process each
        (TWO, 0, {"NPROC_PER_NODE": "1"}),
    ],
)
def test_the_additions_make_a_command(options: dict[str, Any], gpu_count: int, more: dict[str, str]) -> None:
    run = Path("/place/logs/run")
    added = node_environment(parse_nodes({}, **options), {}, visible=gpu_count)
    command = train_command(
        run / "config.yaml", bin_dir=Path("/env/bin"), cwd=run, env={}, gpu_count=gpu_count, extra_env=added
    )
    base = {"PATH": "/env/bin", "PYTHONUNBUFFERED": "1"}
    argv = ("/env/bin/llamafactory-cli", "train", "/place/logs/run/config.yaml")
    assert command == Command(argv, run, {**base, **added, **more})


def test_torchrun_on_two_nodes_cannot_start_from_a_path_with_a_space() -> None:
    added = node_environment(parse_nodes({}, **TWO), {}, visible=1)
    with pytest.raises(TrainkitError, match="cannot start torchrun"):
        train_command(Path("/c.yaml"), bin_dir=Path("/my env/bin"), cwd=Path("/"), env={}, extra_env=added)
