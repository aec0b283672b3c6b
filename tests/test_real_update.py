"""The online update with a real LLaMA-Factory: rounds on a tiny model, from rollouts to the model that is in place."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from rollouts import rollout, write_iteration

pytestmark = pytest.mark.slow

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "WANDB_"))}
UPDATE = """\
save_path: exp
model_path: ./model
log_config:
  project_name: web
algorithm_config:
  positive_samples_to_train: 24
  cutoff_len: 512
  learning_rate: 1.0e-4
  num_train_epochs: 1
  warmup_steps: 0
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 1
  preprocessing_num_workers: 1
  dataloader_num_workers: 0
  report_to: wandb
"""


def trainkit(folder: Path, *words: str) -> dict[str, Any]:
    """Run the program with --json in a folder, and return its report."""
    command = [sys.executable, "-m", "trainkit", *words, "--json"]
    env = ENVIRONMENT | {"HOME": str(folder), "NETRC": str(folder / "none")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def steps_of(folder: Path) -> list[tuple[int, float]]:
    """Return step and learning rate of each logged step."""
    rows = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    return [(row["current_steps"], row["lr"]) for row in rows if "lr" in row]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_two_rounds_of_rollouts(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "trainkit", "init", "--demo"], cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=300
    )
    (tmp_path / "update.yaml").write_text(UPDATE)
    exp = tmp_path / "exp"
    write_iteration(exp, 0, [rollout(f"shop_{number}", reward=float(number % 4 > 0)) for number in range(16)])

    first = trainkit(tmp_path, "update", "--train")
    assert (first["outcome"], first["start"], first["start_step"]) == ("handed over", None, 0)
    rows = first["sampling"]["train_rows"]
    assert first["sampling"]["taken"] == 24 == rows + first["sampling"]["val_rows"]
    trained = exp / "checkpoints" / first["round"]
    assert steps_of(trained) == [(step, 1e-4) for step in range(1, -(-rows // 4) + 1)]
    last = len(steps_of(trained))
    assert (exp / "model.pt" / "model.safetensors").samefile(trained / "model.safetensors")
    before = digests(trained)

    write_iteration(exp, 1, [rollout(f"mall_{number}") for number in range(16)])
    second = trainkit(tmp_path, "update", "--train", "algorithm_config.learning_rate=5e-5")
    assert (second["outcome"], second["start_step"]) == ("handed over", last)
    assert second["start"] == str(trained / f"checkpoint-{last}")
    new = exp / "checkpoints" / second["round"]
    assert steps_of(new) == [(step, 5e-5) for step in range(last + 1, second["total_steps"] + 1)]
    assert second["total_steps"] > last
    assert digests(trained) == before
    assert (exp / "model.pt" / "model.safetensors").samefile(new / "model.safetensors")
    assert (exp / "model.pt.previous" / "model.safetensors").samefile(trained / "model.safetensors")
    assert not (exp / "checkpoints" / "resume").exists()

    offline = [path.name.split("-", 3)[3] for path in exp.glob("logs/2*/wandb/offline-run-*")]
    assert offline == [f"exp-{first['round']}"] * 2
    assert trainkit(tmp_path, "update", "--train", "algorithm_config.learning_rate=5e-5")["outcome"] == "nothing to do"


def test_a_round_with_screenshots(tmp_path: Path) -> None:
    request = json.dumps({"output": str(tmp_path / "model")})
    program = [sys.executable, str(Path(__file__).parent / "tiny_vision_model.py")]
    subprocess.run(program, input=request, env=ENVIRONMENT, check=True, text=True, capture_output=True)
    words = UPDATE.replace("cutoff_len: 512", "cutoff_len: 2048").replace("report_to: wandb", "report_to: none")
    (tmp_path / "update.yaml").write_text(f"{words}  max_samples_per_task: 1\n")
    shots = [write_screenshot(tmp_path / "shots" / f"{number}.png", 40 + number) for number in range(3)]
    exp = tmp_path / "exp"
    seen = [rollout(f"shop_{number}", images=shots) for number in range(5)]
    write_iteration(exp, 0, [*seen, *(rollout(f"mall_{number}") for number in range(3))])
    done = trainkit(tmp_path, "update", "--train")
    assert (done["outcome"], done["sampling"]["taken"]) == ("handed over", 8)
    assert 0 < done["metrics"]["train_loss"] < 10
    rows = (exp / "llamafactory_data" / "finetune_train.jsonl").read_text().splitlines()
    images = [len(json.loads(row)["images"]) for row in rows]
    assert images == sorted(images, key=bool, reverse=True)
    assert max(images) > 0 == min(images)
    for name in ("processor_config.json", "model.safetensors", "tokenizer.json"):
        assert (exp / "model.pt" / name).is_file(), name


def write_screenshot(path: Path, shade: int) -> Path:
    """Write a small grey PNG."""
    path.parent.mkdir(exist_ok=True)
    width, height = 84, 56

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    lines = zlib.compress((b"\0" + bytes([shade]) * width) * height)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b""))
    return path
