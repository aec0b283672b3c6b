"""A training on several nodes, and its job for Slurm, from the command line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from trainkit.datatypes import Gpu, Hardware

if TYPE_CHECKING:
    from tests.conftest import Place

TWO = ["--nodes", "2", "--master", "127.0.0.1:29871"]


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    hardware = Hardware((Gpu("NVIDIA A100-SXM4-80GB", 80.0, (8, 0)),) * 4, 16, 256.0)
    for module in ("prepare", "suggest", "nodes"):
        monkeypatch.setattr(f"trainkit.workflow.{module}.find_hardware", lambda _: hardware)


def test_a_dry_run_shows_every_node(ready: Place) -> None:
    done = ready.trainkit("train", "--dry-run", *TWO, "--node-rank", "1")
    assert done.code == 0, done.err
    words = "FORCE_TORCHRUN=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29871 NNODES=2 NODE_RANK={}"
    assert done.out.splitlines()[-2:] == [f"node {rank}: {words.format(rank)}" for rank in range(2)]


def test_a_training_on_a_part_of_the_gpus(ready: Place, four_gpus: None) -> None:
    done = ready.trainkit("train", "--gpus", "2")
    assert done.code == 0, done.err
    assert ready.calls("train")[0]["env"]["NPROC_PER_NODE"] == "2"
    assert len(ready.manifest()["hardware"]["gpus"]) == 4  # the fixture's, whatever is visible
    done = ready.trainkit("train", "--gpus", "5")
    assert (done.code, done.err) == (
        2,
        "error: --gpus 5: only 4 GPUs are visible\n    --gpus 4, or leave it out to use all\n",
    )


def test_the_digest_of_a_node(ready: Place) -> None:
    printed = ready.trainkit("train", "--check-node", "print")
    assert printed.code == 0
    digest = printed.out.strip()
    assert ready.trainkit("train", "--check-node", "print", "--json").json == {"ok": True, "digest": digest}
    assert ready.trainkit("train", "--dry-run", "--check-node", digest).code == 0
    ready.write("model/tokenizer.json", '{"changed": true}')
    done = ready.trainkit("train", "--check-node", digest)
    assert done.code == 1
    assert "error: --check-node model: " in done.err
    assert done.err.splitlines()[-1] == "error: this node is not ready; nothing was started"
    assert ready.calls("train") == []


def test_a_master_that_nobody_knows(ready: Place) -> None:
    done = ready.trainkit("train", "--nodes", "2", "--master", "no-such-host.invalid:29500", "--node-rank", "1")
    assert done.code == 1
    assert "error: --master no-such-host.invalid: no such host\n" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "2"], "--nodes 2 needs --master HOST:PORT"),
        ([*TWO, "--node-rank", "2"], "--node-rank 2: there are 2 nodes"),
        (["--elastic", "2:1"], "--elastic 2:1: must be MIN:MAX"),
        (["--submit"], "--submit: has no meaning without --slurm"),
        (["--time", "1:00:00"], "--time: has no meaning without --slurm"),
        (["--slurm", "job.sh", "--node-rank", "0"], "--node-rank: has no meaning with --slurm"),
        (["--slurm", "job.sh", "--time", "soon"], "--time soon: not a time that sbatch takes"),
        (["--slurm", "training_config.yaml"], "--slurm training_config.yaml: is there already, and is no job script"),
    ],
)
def test_what_cannot_be(ready: Place, words: list[str], message: str) -> None:
    done = ready.trainkit("train", *words)
    assert (done.code, done.err.splitlines()[0]) == (2, f"error: {message}")
    assert ready.calls("train") == []


def test_a_job_for_slurm(ready: Place) -> None:
    words = ["-d", "reward_model_clip", "-e", "2", "--strict", "--max-restarts", "2", "learning_rate=1e-5"]
    done = ready.trainkit("train", "--slurm", "job.sh", "--nodes", "2", "--gpus", "8", "--time", "1-00:00:00", *words)
    assert (done.code, done.out, done.err) == (0, "job script     job.sh\n", "next: sbatch job.sh\n")
    script = ready.path("job.sh").read_text()
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=reward_model_clip\n#SBATCH --nodes=2\n")
    assert "#SBATCH --gpus-per-node=8\n#SBATCH --time=1-00:00:00\n" in script
    asked = "--resume auto --dataset reward_model_clip --epochs 2.0 --strict --max-restarts 2 learning_rate=1e-5"
    assert f"    trainkit {asked} &\n" in script
    assert os.access(ready.path("job.sh"), os.X_OK)
    assert ready.trainkit("train", "--slurm", "job.sh").code == 0  # a script of before is replaced


@pytest.mark.parametrize(("code", "says"), [(0, "Submitted batch job 7"), (1, "Invalid partition")])
def test_a_job_is_submitted(ready: Place, monkeypatch: pytest.MonkeyPatch, code: int, says: str) -> None:
    sbatch = ready.write("bin/sbatch", f'#!/bin/sh\necho "{says}"\nexit {code}\n')
    assert ready.trainkit("train", "--slurm", "job.sh", "--submit").code == 1
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}")
    done = ready.trainkit("train", "--slurm", "job.sh", "--submit", "--json")
    assert done.code == code
    if code == 0:
        assert done.json["sbatch"] == says
    else:
        assert done.json["error"] == f"sbatch refuses the job: {says}"
