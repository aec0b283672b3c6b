"""The promises that only a real LLaMA-Factory can prove, on a tiny model without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

pytestmark = pytest.mark.slow

# Measuring the coverage of the trainer too would make it several times slower.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
SHORT = ["cutoff_len=512", "logging_steps=1", "gradient_accumulation_steps=1", "preprocessing_num_workers=1"]
TINY = [*SHORT, "max_samples=12", "cutoff_len=128", "eval_strategy=no"]
FEW_ROWS = ["max_samples=12"]
TOOL_CONVERSATIONS = Path(__file__).parents[1].parent / "shared" / "data" / "glaive_toolcall_en_demo.json"


def trainkit(
    folder: Path, *words: str, env: Mapping[str, str] | None = None, exit_code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run the program in a folder and check its exit code."""
    command = [sys.executable, "-m", "trainkit", *words]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**ENVIRONMENT, **(env or {})},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == exit_code, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `trainkit init --demo` makes, with its data converted."""
    folder = tmp_path_factory.mktemp("a demo")
    trainkit(folder, "init", "--demo")
    trainkit(folder, "convert", "--split-eval")
    return folder


@pytest.fixture
def work(demo: Path, tmp_path: Path) -> Path:
    """A folder of its own for one training, with the demo's model and data."""
    for name in ("training_config.yaml", "finetune.jsonl"):
        shutil.copy(demo / name, tmp_path / name)
    shutil.copytree(demo / "model", tmp_path / "model")
    shutil.copytree(demo / "data", tmp_path / "data")
    return tmp_path


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "logs" / "latest" / "run.json").read_text(encoding="utf-8"))
    return manifest


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


def test_the_demo_goes_the_whole_way(tmp_path: Path) -> None:
    done = trainkit(tmp_path, "pipeline", "--demo", env={"SWANLAB_API_KEY": "", "HOME": str(tmp_path)})
    folder = tmp_path / "demo"
    saved = folder / "saves" / "reward_model_training"
    for path in (saved / "adapter_model.safetensors", saved / "training_loss.png", folder / "exported_model"):
        assert path.exists()
        assert str(path.parent if path.suffix == ".safetensors" else path) in done.stdout
    assert (saved / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    manifest = manifest_of(folder)
    assert manifest["exit_code"] == 0
    assert 0 < manifest["metrics"]["train_loss"] < 8
    assert manifest["metrics"]["eval_loss"] > 0, "the eval side of the split is used"
    assert {len(file["sha256"]) for file in manifest["data"]} == {64}
    assert any((folder / "logs" / "latest" / "swanlog").glob("run-*")), "SwanLab recorded offline"
    assert (folder / "logs" / "trainer_log.jsonl").read_text(encoding="utf-8").count("\n") > 20
    assert "is recorded offline" in done.stderr
    check_chat_with_the_adapter(folder)


def check_chat_with_the_adapter(folder: Path) -> None:
    words = ["chat", "--message", "How reasonable is this step?", "--evaluation-type", "clip", "--max-new-tokens", "8"]
    done = trainkit(folder, *words, "--temperature", "0")
    assert "Traceback" not in done.stderr
    assert "INFO" not in done.stderr


def test_full_training_with_wandb_offline_then_export(work: Path) -> None:
    words = ["finetuning_type=full", "max_steps=3", "eval_dataset=reward_model_category_eval", *SHORT, *FEW_ROWS]
    env = {"WANDB_API_KEY": "", "HOME": str(work), "NETRC": str(work / "none")}
    done = trainkit(work, "train", "-d", "reward_model_clip", "--monitor", "wandb", "--export", *words, env=env)
    assert "tensors differ from the base model" in done.stdout
    assert any((work / "logs" / "latest" / "wandb").glob("offline-run-*"))
    saved = work / "saves" / "reward_model_training"
    assert (saved / "model.safetensors").exists()
    assert not (saved / "adapter_config.json").exists()
    assert json.loads((work / "exported_model" / "trainkit_run.json").read_text(encoding="utf-8"))["kind"] == "export"


@pytest.mark.skipif(not TOOL_CONVERSATIONS.exists(), reason="the real sample lies beside the repository")
def test_all_real_tool_conversations_are_trained_on(work: Path) -> None:
    words = ["convert", str(TOOL_CONVERSATIONS), "--kind", "conversations", "--json"]
    report = json.loads(trainkit(work, *words).stdout)
    assert (report["read"], report["rows"], report["rejected"]) == (300, 300, 0)
    words = ["max_steps=2", "eval_strategy=no", *SHORT, "cutoff_len=256"]
    trainkit(work, "train", "-d", "conversations", "--monitor", "none", *words)
    log = (work / "logs" / "latest" / "train.log").read_text(encoding="utf-8")
    assert "Num examples = 300" in log, "no row was skipped"
    assert 0 < manifest_of(work)["metrics"]["train_loss"] < 20


def steps_of(saved: Path) -> list[int]:
    log = saved / "trainer_log.jsonl"
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    # the trainer may be writing the last line
    return [json.loads(line)["current_steps"] for line in text.split("\n")[:-1]]


def workers_of(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """Return the processes that train, of those that a trainkit started."""
    family = psutil.Process(process.pid).children(recursive=True)
    return [child for child in family if "train_together.py" in " ".join(child.cmdline()[:3]) and not child.children()]


def test_two_processes_with_zero_3_go_on_after_a_crash_and_stop_at_one_step(work: Path) -> None:
    words = ["deepspeed=ds_z3.json", "max_steps=500", "save_steps=2", *TINY]
    command = [sys.executable, "-m", "trainkit", "train", "--monitor", "none", "--max-restarts", "1", *words]
    env = {**ENVIRONMENT, "NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
    saved = work / "saves" / "reward_model_training"
    with subprocess.Popen(command, cwd=work, env=env, stderr=subprocess.PIPE, text=True) as process:
        wait_for((saved / "checkpoint-2" / "trainer_state.json").exists)
        wait_for(lambda: len(steps_of(saved)) > 2)
        family = workers_of(process)
        assert len(family) == 2
        family[1].kill()
        wait_for(lambda: bool(manifest_of(work)["restarts"]))
        (restart,) = manifest_of(work)["restarts"]
        # made after the crash: the log goes on, so a step stands in it again or is a new one
        wait_for(lambda: steps_of(saved).count(restart["step"] + 1) > 1 or max(steps_of(saved)) > restart["step"] + 3)
        family = workers_of(process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert restart["exit_code"] == 1
    manifest = manifest_of(work)
    assert (manifest["preempted"], manifest["resumed_from"], manifest["exit_code"]) == (True, None, 143)
    assert manifest["step"] > restart["step"] >= 2
    newest = saved / f"checkpoint-{manifest['step']}"
    assert f"after step {manifest['step']}, which was saved: {newest}" in said
    assert not list(saved.glob(f"checkpoint-{manifest['step'] + 1}")), "both processes stopped at the same step"
    assert len(list(newest.glob("global_step*/*optim_states.pt"))) == len(list(newest.glob("rng_state_*.pth"))) == 2
    assert not any(child.is_running() and child.status() != "zombie" for child in family)
    log = (work / "logs" / "latest" / "train.log").read_text(encoding="utf-8")
    assert "world size: 2" in log
    assert "Detected DeepSpeed ZeRO-3" in log
    assert not (saved / "model.safetensors").exists()


def test_a_killed_and_then_preempted_training_ends_at_the_same_step(work: Path) -> None:
    words = ["train", "--monitor", "none", "max_steps=16", "save_steps=2", *TINY]
    command = [sys.executable, "-m", "trainkit", *words]
    saved = work / "saves" / "reward_model_training"
    with subprocess.Popen(command, cwd=work, env=ENVIRONMENT) as process:
        wait_for((saved / "checkpoint-4" / "trainer_state.json").exists)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in family), 30)
    newest = max(saved.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (newest / "optimizer.pt").write_bytes(b"PK")
    before = len(steps_of(saved))
    with subprocess.Popen(command, cwd=work, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(steps_of(saved)) > before)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert f"{newest.name}: not used to resume" in said
    manifest = manifest_of(work)
    assert manifest["resumed_from"] == str(saved / f"checkpoint-{int(newest.name.split('-')[1]) - 2}")
    assert manifest["preempted"] is True
    assert not (saved / "trainer_state.json").exists(), "it is not taken for a finished training"
    done = trainkit(work, *words)
    assert f"checkpoint-{manifest['step']}: resuming after step {manifest['step']} of 16" in done.stderr
    assert json.loads((saved / "trainer_state.json").read_text(encoding="utf-8"))["global_step"] == 16
    assert manifest_of(work)["step"] == 16
    again = trainkit(work, *words, exit_code=1)
    assert "already finished at step 16 of 16" in again.stderr


def test_ctrl_c_stops_the_trainer_and_resume_is_offered(work: Path) -> None:
    words = ["train", "--monitor", "none", "max_steps=500", "save_steps=1", *TINY]
    saved = work / "saves" / "reward_model_training"
    command = [sys.executable, "-m", "trainkit", *words]
    with subprocess.Popen(command, cwd=work, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        wait_for((saved / "checkpoint-1" / "trainer_state.json").exists)
        process.send_signal(signal.SIGINT)
        _, words_said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume auto" in words_said
    assert manifest_of(work)["signal"] == signal.SIGINT


def test_a_configuration_with_foreign_keys_trains_after_changing_paths_only(work: Path) -> None:
    shutil.copy(Path(__file__).parent / "data" / "reward_model.yaml", work / "training_config.yaml")
    done = trainkit(work, "train", "-d", "reward_model_final", "--monitor", "none", "max_steps=2", "max_samples=6")
    for key in ("lora_plus_scale", "tokenizer_name_or_path", "max_samples", "tf32", "per_device_eval_batch_size"):
        assert key in done.stderr
    assert manifest_of(work)["exit_code"] == 0


def test_a_trainer_that_fails_says_why(work: Path) -> None:
    """A real failure of the real trainer: an optimizer that the environment does not have."""
    words = ["optim=galore_adamw", "optim_target_modules=all-linear", "max_steps=1", *SHORT, *FEW_ROWS]
    command = [sys.executable, "-m", "trainkit", "train", "--monitor", "none", *words]
    done = subprocess.run(command, cwd=work, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == manifest_of(work)["exit_code"] != 0
    assert "training failed" in done.stderr
    assert "galore" in done.stderr.lower()
    assert "train.log" in done.stderr
