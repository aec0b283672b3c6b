"""Two nodes on one machine: full fine-tuning with DeepSpeed ZeRO-3, one process on each, by a real LLaMA-Factory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import trainkit
from trainkit.launch.llamafactory import find_trainer, train_command
from trainkit.launch.nodes import at_rank, node_environment, parse_nodes
from trainkit.launch.preflight import check_master, check_port

pytestmark = pytest.mark.slow

PACKAGE = Path(trainkit.__file__).parent
LEFT_OUT = ("COVERAGE_", "NPROC_", "NNODES", "NODE_RANK", "MASTER_", "RDZV_", "FORCE_")
ENVIRONMENT = {name: word for name, word in os.environ.items() if not name.startswith(LEFT_OUT)} | {
    "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
}  # fmt: skip
CONFIG = {
    "stage": "sft", "do_train": True, "finetuning_type": "full", "model_name_or_path": "model", "template": "qwen",
    "dataset_dir": "data", "dataset": "rows", "cutoff_len": 128, "preprocessing_num_workers": 1,
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 2, "logging_steps": 1,
    "save_strategy": "no", "report_to": "none", "overwrite_output_dir": True, "learning_rate": 1e-3,
}  # fmt: skip


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a tiny model and a few rows."""
    rows = [
        {"conversations": [{"from": "human", "value": f"Count to {n}."}, {"from": "gpt", "value": "1 " * n}]}
        for n in range(2, 10)
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    registry = {"rows": {"file_name": "rows.jsonl", "formatting": "sharegpt"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(registry))
    request = json.dumps({"output": "model", "texts": "data/rows.jsonl"})
    make = [sys.executable, str(PACKAGE / "inside" / "tiny_model.py")]
    subprocess.run(make, input=request, cwd=tmp_path, env=ENVIRONMENT, check=True, text=True, capture_output=True)
    return tmp_path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_two_nodes_train_one_model(work: Path) -> None:
    zero = PACKAGE.parent / "templates" / "deepspeed" / "ds_z3.json"
    (work / "config.yaml").write_text(json.dumps({**CONFIG, "deepspeed": str(zero), "output_dir": str(work / "saved")}))
    port = free_port()
    nodes = parse_nodes({}, nodes=2, master=f"127.0.0.1:{port}")
    assert check_port("127.0.0.1", port) == []
    with ExitStack() as running:
        processes = []
        for rank in range(2):
            command = train_command(
                work / "config.yaml",
                bin_dir=find_trainer(Path(sys.executable)),
                cwd=work,
                env=ENVIRONMENT,
                deepspeed=True,
                extra_env=node_environment(at_rank(nodes, rank), ENVIRONMENT, visible=0),
            )
            log = running.enter_context((work / f"node-{rank}.log").open("wb"))
            env = {**ENVIRONMENT, **{name: word for name, word in command.env.items() if word is not None}}
            processes.append(subprocess.Popen(command.argv, cwd=work, env=env, stdout=log, stderr=subprocess.STDOUT))
        assert check_master("127.0.0.1", port) == [], "a question to the master does no harm"
        codes = [process.wait(300) for process in processes]
    logs = [(work / f"node-{rank}.log").read_text(encoding="utf-8") for rank in range(2)]
    assert codes == [0, 0], logs[0][-3000:] + logs[1][-3000:]
    for rank, text in enumerate(logs):
        assert f"Process rank: {rank}, world size: 2" in text
        assert "Detected DeepSpeed ZeRO-3" in text
    assert 0 < json.loads((work / "saved" / "train_results.json").read_text())["train_loss"] < 20
    assert (work / "saved" / "model.safetensors").stat().st_size > 100_000
