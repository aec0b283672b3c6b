"""A training on several nodes, and its job for Slurm, from the command line."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from trainkit.datatypes import Gpu, Hardware
from trainkit.workflow import on_ray

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


@pytest.fixture
def ray(ready: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place where Ray is installed, on a machine of 4 cores."""
    package = ready.write("packages/ray/__init__.py", "")
    monkeypatch.syspath_prepend(str(package.parents[1]))
    monkeypatch.setattr(on_ray, "own_address", lambda: "192.0.2.7")
    monkeypatch.setattr(on_ray, "usable_cores", lambda: 4)
    return ready


def ray_keys(values: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if key.startswith(("ray_", "master_"))}


def test_a_training_on_a_ray_of_its_own(ray: Place, four_gpus: None) -> None:
    done = ray.trainkit("train", "--ray", "2")
    assert done.code == 0, done.err
    start = {"num_cpus": 20, "num_gpus": 2, "include_dashboard": False, "_node_ip_address": "192.0.2.7"}
    call = ray.calls("train")[0]
    assert ray_keys(call["values"]) == {
        "ray_num_workers": 2,
        "ray_init_kwargs": {"address": "local", **start},
        "master_addr": "192.0.2.7",
    }
    assert not {"FORCE_TORCHRUN", "NPROC_PER_NODE"} & set(call["env"])
    done = ray.trainkit("train", "--ray", "2", "--dry-run", "--resume", "never")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == (
        "Ray's driver: CUDA_VISIBLE_DEVICES=0,1 RAY_COLOR_PREFIX=0 RAY_DEDUP_LOGS=0 RAY_LOGGER_LEVEL=warning "
        "RAY_USAGE_STATS_ENABLED=0 USE_RAY=1"
    )


def test_a_training_on_a_ray_cluster(ray: Place, four_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "gpu01:6379")
    for name in [name for name in os.environ if on_ray.holds_secret(name)]:
        monkeypatch.delenv(name)
    done = ray.trainkit("train", "--ray", "8", "--dry-run")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "Ray's driver: RAY_COLOR_PREFIX=0 RAY_DEDUP_LOGS=0 USE_RAY=1"
    assert ray.trainkit("train", "--ray", "8").code == 0
    assert ray_keys(ray.calls("train")[0]["values"]) == {"ray_num_workers": 8}


@pytest.mark.parametrize(
    ("variables", "words"),
    [({"AWS_SECRET_ACCESS_KEY": "x"}, []), ({"HF_TOKEN": "x"}, []), ({}, ["hf_hub_token=x"])],
)
def test_a_cluster_gets_no_secret(
    ray: Place, four_gpus: None, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: list[str]
) -> None:
    for name in [name for name in os.environ if on_ray.holds_secret(name)]:
        monkeypatch.delenv(name)
    for name, value in {"RAY_ADDRESS": "auto", **variables}.items():
        monkeypatch.setenv(name, value)
    done = ray.trainkit("train", "--ray", "2", *words)
    named = next(iter(variables), "HF_TOKEN")
    assert (done.code, done.err.splitlines()[0]) == (2, f"error: --ray: the cluster would write {named} to its logs")
    assert ray.calls("train") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ray", "0"], "--ray 0: must be 1 or more"),
        (["--ray", "5"], "--ray 5: only 4 GPUs are visible"),
        (["--ray", "2", "--gpus", "2"], "--ray and --gpus exclude each other"),
        (["--ray", "2", *TWO], "--ray and --nodes exclude each other"),
        (["--ray", "2", "--elastic", "1:2"], "--ray and --elastic exclude each other"),
        (["--ray", "2", "--slurm", "job.sh"], "--ray: has no meaning with --slurm"),
        (["--ray", "2", "deepspeed=zero.json"], "--ray: with deepspeed the trainer starts torchrun"),
    ],
)
def test_what_cannot_be_on_ray(ray: Place, four_gpus: None, words: list[str], message: str) -> None:
    ray.write("zero.json", "{}")
    done = ray.trainkit("train", *words)
    assert (done.code, done.err.splitlines()[0]) == (2, f"error: {message}")
    assert ray.calls("train") == []


def test_ray_where_torchrun_is_asked_for(ray: Place, four_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    done = ray.trainkit("train", "--ray", "2")
    message = "error: --ray: NPROC_PER_NODE=2 in the environment starts torchrun\n    unset NPROC_PER_NODE\n"
    assert (done.code, done.err) == (2, message)


def test_ray_without_ray_or_without_a_gpu(ray: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    done = ray.trainkit("train", "--ray", "1")
    assert done.err.splitlines()[0].startswith("error: --ray: needs GPUs; ")
    monkeypatch.setitem(sys.modules, "ray", None)
    missing = ray.trainkit("train", "--ray", "1")
    assert missing.err == ("error: --ray: Ray is not installed beside LLaMA-Factory\n    pip install 'trainkit[ray]'\n")
    assert done.code == missing.code != 0
    assert ray.calls("train") == []


def test_one_gpu_is_too_few_for_two_workers(ray: Place) -> None:
    from trainkit.errors import UsageProblem

    with pytest.raises(UsageProblem, match="--ray 2: only 1 GPU is visible"):
        on_ray.check_start({}, 2, visible=1)


def test_the_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert socket.inet_aton(on_ray.own_address())

    def no_way(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(socket.socket, "connect", no_way, raising=False)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "192.0.2.9")
    assert on_ray.own_address() == "192.0.2.9"


def test_a_later_node_leaves_what_is_there_once_to_the_first(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ready.trainkit("train").code == 0
    before = {name: content for name, content in ready.tree().items() if name.startswith("saves/")}
    latest = ready.run()
    monkeypatch.setattr("trainkit.workflow.nodes.check_master", lambda *_: [])
    ready.trainkit("train", *TWO, "--node-rank", "1", "--resume", "never")
    assert not ready.path("saves/rm.previous").exists()
    assert ready.tree()["saves/rm/trainkit_run.json"] == before["saves/rm/trainkit_run.json"]
    assert ready.run() == latest
    assert any(path.name.endswith("-train-node1") for path in ready.path("logs").iterdir())
