from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from trainkit.errors import TrainerFailed, TrainkitError
from trainkit.launch.llamafactory import TRAIN_TOGETHER
from trainkit.runs.store import Run
from trainkit.workflow.preempt import StopRequest
from trainkit.workflow.prepare import Settings
from trainkit.workflow.start import TrainOptions
from trainkit.workflow.train import TrainResult, train

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.conftest import Place


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Tell the fake trainer how to behave."""
    return lambda **told: monkeypatch.setenv("FAKE_TRAINER", json.dumps(told))


def stop_after(place: Place, tell: Callable[..., None], step: int, **more: Any) -> None:
    """Leave a training behind that failed after some steps."""
    tell(stop_at=step, exit=1, total=6, **more)
    assert place.trainkit("train", "-d", "reward_model_full").code == 1
    tell(total=6)


def test_a_training_says_where_everything_is(ready: Place) -> None:
    done = ready.trainkit("train", "-d", "reward_model_full")
    run = "WORK/logs/DATE-reward_model_full"
    assert done.code == 0
    assert done.out == (
        "trained model  WORK/saves/rm\n"
        f"run folder     {run}\n"
        "loss curve     WORK/saves/rm/training_loss.png\n"
        f"log            {run}/train.log\n"
        "seconds        0\n"
        "train_loss     0.5124\n"
        "eval_loss      0.75\n"
    ).replace("seconds        0", f"seconds        {done.out.partition('seconds        ')[2].partition(chr(10))[0]}")
    assert done.err.splitlines()[-1] == f"training reward_model_full; the log is {run}/train.log"
    assert "\r" not in done.err
    assert "step " not in done.err


def test_the_run_folder_holds_what_is_known_about_the_run(ready: Place) -> None:
    assert ready.trainkit("train", "-d", "reward_model_clip", "-e", "2", "-lr", "2e-4", "-bs", "4").code == 0
    run = ready.run()
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "run.json", "train.log"]
    (call,) = ready.calls()
    assert (call["cwd"], call["file"]) == (str(run), str(run / "config.yaml"))
    assert yaml.safe_load((run / "config.yaml").read_text()) == call["values"]
    wanted = {
        "dataset": "reward_model_clip",
        "num_train_epochs": 2.0,
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 4,
        "overwrite_output_dir": True,
        "lora_rank": 64,
    }
    assert {key: call["values"][key] for key in wanted} == wanted
    manifest = ready.manifest()
    assert manifest["run_id"] == run.name
    assert manifest["command"] == [str(ready.python), str(TRAIN_TOGETHER), "train", str(run / "config.yaml")]
    names = ["PATH", "PYTHONUNBUFFERED", "PYTHONWARNINGS", "TOKENIZERS_PARALLELISM", "TRAINKIT_STOP_FILE"]
    assert manifest["environment"] == names
    assert (manifest["exit_code"], manifest["signal"], manifest["resumed_from"]) == (0, None, None)
    assert (manifest["preempted"], manifest["step"], manifest["restarts"]) == (False, 3, [])
    assert manifest["metrics"] == {"train_loss": 0.51236, "eval_loss": 0.75, "epoch": 3.0}
    assert manifest["versions"]["llamafactory"] == "0.9.5"
    assert manifest["hardware"] == {"gpus": [], "cpu_count": 4, "memory_gib": 16.0}
    assert manifest["started"] <= manifest["ended"]
    assert manifest["links"] == []
    rows = {file["path"].rpartition("/")[2]: file["rows"] for file in manifest["data"]}
    assert set(rows) == {"train.jsonl", "eval.jsonl"}
    assert list(manifest["datasets"]) == ["reward_model_clip", "reward_model_clip_eval"]
    assert manifest["datasets"]["reward_model_clip"]["split"].startswith("train[0:")
    assert sum(rows.values()) == 40
    assert all(len(file["sha256"]) == 64 for file in manifest["data"])
    assert "{'loss': 1.0}" in (run / "train.log").read_text()
    assert ready.path("logs/trainer_log.jsonl").resolve() == ready.path("saves/rm/trainer_log.jsonl")
    marker = json.loads(ready.path("saves/rm/trainkit_run.json").read_text())
    assert marker == {
        "run_id": run.name,
        "kind": "training",
        "tracked_as": run.name,
        "dataset": "reward_model_clip",
        "model_name_or_path": str(ready.path("model")),
        "finetuning_type": "lora",
        "template": "qwen",
        "stage": "sft",
        "trust_remote_code": None,
        "quantization_bit": None,
        "enable_thinking": None,
        "metadata_form": ["type", "category"],
        "generation": {},
        "export": {"export_dir": str(ready.path("exported"))},
    }


def test_a_folder_with_a_space_is_no_trouble(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ready.folder.rename(ready.folder.with_name("my work"))
    monkeypatch.chdir(place)
    assert ready.trainkit("train").code == 0
    assert ready.calls()[0]["file"] == "config.yaml"


def test_no_secret_is_written_anywhere(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ready.config("swanlab_api_key: hush-a", "hf_hub_token: hush-b", "hub_token: hush-b", "ms_hub_token: hush-c")
    config = ready.path("training_config.yaml")
    config.rename(config.with_name("mine.yaml"))
    monkeypatch.setenv("WANDB_API_KEY", "hush-d")
    words = ["train", "-c", "mine.yaml", "--monitor", "wandb", "--export", "--json", "swanlab_lark_secret=hush-e"]
    done = ready.trainkit(*words)
    assert done.code == 0
    (call,) = ready.calls("train")
    environment = {name: call["env"].get(name) for name in ("SWANLAB_API_KEY", "HF_TOKEN", "MODELSCOPE_API_TOKEN")}
    assert environment == {"SWANLAB_API_KEY": "hush-a", "HF_TOKEN": "hush-b", "MODELSCOPE_API_TOKEN": "hush-c"}
    assert call["env"]["WANDB_API_KEY"] == "hush-d"
    assert [name for name, content in ready.tree().items() if b"hush" in content] == ["mine.yaml"]
    assert "hush" not in done.out + done.err
    assert {"SWANLAB_API_KEY", "HF_TOKEN", "MODELSCOPE_API_TOKEN"} <= set(ready.manifest()["environment"])


def test_a_dry_run_shows_command_and_origins_and_writes_nothing(ready: Place) -> None:
    before = ready.tree()
    done = ready.trainkit("train", "--dry-run", "-e", "5", "lora_rank=8")
    assert (done.code, ready.tree(), ready.calls()) == (0, before, [])
    lines = done.out.splitlines()
    program = f"{ready.python} {TRAIN_TOGETHER} train WORK/logs/RUN/config.yaml"
    words = "PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore::FutureWarning TOKENIZERS_PARALLELISM=false"
    assert lines[:3] == [
        "in WORK/logs/RUN, where RUN is the run's name:",
        f"{words} TRAINKIT_STOP_FILE=WORK/logs/RUN/stop {program}",
        "",
    ]
    table = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines[3:]}
    assert table["key"] == ["value", "from"]
    assert table["num_train_epochs"] == ["5.0", "--epochs"]
    assert table["lora_rank"] == ["8", "command line"]
    assert table["template"] == ["qwen", "training_config.yaml:5"]
    assert table["learning_rate"] == ["0.0001", "template qwen/lora"]
    assert table["eval_dataset"] == ["reward_model_full_eval", "the eval split of reward_model_full"]
    assert table["overwrite_output_dir"] == ["True", "trainkit"]
    report = ready.trainkit("train", "--dry-run", "--json").json
    assert report["command"][1:] == [str(TRAIN_TOGETHER), "train", "WORK/logs/RUN/config.yaml"]
    assert (report["secrets"], report["resume"], report["origin"]["use_cpu"]) == ([], None, "this machine")
    assert ready.tree() == before


def test_nothing_is_started_while_there_are_problems(ready: Place) -> None:
    before = ready.tree()
    done = ready.trainkit("train", "--json", "template=nope", "lora_rank=x")
    assert (done.code, done.json["error"]) == (1, "2 problems found; nothing was started")
    assert (ready.tree(), ready.calls()) == (before, [])


LOGS: list[tuple[str, int, str, str]] = [
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", 1,
        "the GPU is out of memory", "    halve per_device_train_batch_size and double gradient_accumulation_steps;",
    ),
    (
        "RuntimeError: Cannot find valid samples, check `data/README.md` for the data format.", 1,
        "no valid samples in the data set", "    run `trainkit validate`: every row was skipped",
    ),
    (
        "ValueError: Template nope does not exist.", 1,
        "LLaMA-Factory has no template nope", "    run `trainkit validate` to see the templates that fit the model",
    ),
    ("ModuleNotFoundError: No module named 'liger_kernel'", 1, "the package liger_kernel is missing", "    pip "),
    ("OSError: [Errno 28] No space left on device", 1, "the disk is full", "    free some space, or point output_dir"),
    ("RuntimeError: loss is nan", 1, "the loss is no number any more", "    lower learning_rate, set max_grad_norm"),
    ("KeyError: 'surprise'", 3, "the trainer ended with exit code 3", "    see the log"),
    ("", 137, "the trainer was killed, most likely because this machine is out of memory", "    reduce preprocessing"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "title", "hint"), LOGS, ids=[row[2] for row in LOGS])
def test_a_failure_keeps_the_exit_code_and_is_explained(
    ready: Place, tell: Callable[..., None], line: str, code: int, title: str, hint: str
) -> None:
    tell(log=f'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n{line}', exit=code)
    done = ready.trainkit("train")
    assert (done.code, done.out) == (code, "")
    _, _, told = done.err.partition("error: ")
    words = told.splitlines()
    assert words[0] == f"training failed: {title}"
    assert f"    {line}" in words or not line
    assert words[-2] == "    the whole log: WORK/logs/DATE-train/train.log"
    assert words[-1].startswith(hint)
    assert "Traceback" not in done.err
    manifest = ready.manifest()
    assert (manifest["exit_code"], manifest["metrics"]) == (code, {})


def test_a_failure_in_json(ready: Place, tell: Callable[..., None]) -> None:
    tell(log="KeyError: 'x'", exit=7)
    done = ready.trainkit("train", "--json", "--export")
    assert (done.code, done.err) == (7, "")
    assert done.json["ok"] is False
    assert done.json["error"].startswith("training failed: the trainer ended with exit code 7\n    KeyError: 'x'\n")
    assert [call["program"] for call in ready.calls()] == ["train"]


def test_success_in_json(ready: Place) -> None:
    done = ready.trainkit("train", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json == {
        "ok": True,
        "output_dir": "WORK/saves/rm",
        "run": "WORK/logs/DATE-train",
        "metrics": {"train_loss": 0.51236, "eval_loss": 0.75, "epoch": 3.0},
        "exported": None,
    }


def test_training_and_export_in_one(ready: Place) -> None:
    done = ready.trainkit("train", "--export")
    assert done.code == 0
    assert done.out.endswith(
        "exported model WORK/exported\n"
        "checked        14 of 27 tensors differ from the base model; it loads and answers\n"
    )
    assert [call["program"] for call in ready.calls()] == ["train", "export", "verify"]


WARNINGS: list[tuple[dict[str, Any], str]] = [
    (
        {"log": "{'loss': nan, 'grad_norm': nan}", "results": '{"train_loss": NaN}'},
        "warning: train_loss: the loss is no number any more: the model is of no use\n    lower learning_rate,",
    ),
    (
        {"results": '{"train_loss": 0.0}'},
        "warning: train_loss: is exactly 0\n    no token was trained on: are all answers cut off by cutoff_len?\n",
    ),
]


@pytest.mark.parametrize(("told", "warning"), WARNINGS, ids=["NaN", "0"])
def test_a_training_that_learnt_nothing_is_no_silent_success(
    ready: Place, tell: Callable[..., None], told: dict[str, Any], warning: str
) -> None:
    tell(**told)
    done = ready.trainkit("train")
    assert done.code == 0
    assert warning in done.err


def test_json_stays_json_when_the_loss_is_no_number(ready: Place, tell: Callable[..., None]) -> None:
    tell(results='{"train_loss": NaN, "eval_loss": Infinity, "epoch": 1.0}')
    done = ready.trainkit("train", "--json")
    assert json.loads(done.out, parse_constant=pytest.fail)["metrics"] == {
        "train_loss": None, "eval_loss": None, "epoch": 1.0,
    }  # fmt: skip
    json.loads((ready.run() / "run.json").read_text(), parse_constant=pytest.fail)
    assert "train_loss" not in ready.trainkit("train", "--resume", "never").out


@pytest.mark.parametrize(("results", "metrics"), [("[1]", {}), ('{"a": 1}', {"a": 1})])
def test_metrics_are_what_the_trainer_wrote(
    ready: Place, tell: Callable[..., None], results: str, metrics: dict[str, Any]
) -> None:
    tell(results=results)
    assert ready.trainkit("train", "--json").json["metrics"] == metrics


# resume


def test_auto_goes_on_from_the_newest_checkpoint(ready: Place, tell: Callable[..., None]) -> None:
    stop_after(ready, tell, 4)
    done = ready.trainkit("train", "-d", "reward_model_full")
    assert done.code == 0
    assert "note: WORK/saves/rm/checkpoint-4: resuming after step 4 of 6\n" in done.err
    values = ready.calls()[-1]["values"]
    assert values["resume_from_checkpoint"] == str(ready.path("saves/rm/checkpoint-4"))
    assert "overwrite_output_dir" not in values
    assert ready.manifest()["resumed_from"] == str(ready.path("saves/rm/checkpoint-4"))
    rows = ready.path("saves/rm/trainer_log.jsonl").read_text().splitlines()
    steps = [json.loads(row)["current_steps"] for row in rows]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert not ready.path("saves/rm.previous").exists()


def test_only_new_steps_are_told_after_a_resume(ready: Place, tell: Callable[..., None]) -> None:
    stop_after(ready, tell, 5)
    shutil.rmtree(ready.path("saves/rm/checkpoint-5"))
    steps: list[tuple[int, int]] = []
    train(Settings(), TrainOptions(), lambda *_: None, lambda step, begun: steps.append((step.step, begun)))
    assert steps == [(5, 4), (6, 4)]


def test_what_cannot_be_started_moves_nothing(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ready.trainkit("train").code == 0
    before = ready.tree()
    monkeypatch.setenv("NPROC_PER_NODE", "two")
    done = ready.trainkit("train", "--resume", "never")
    assert (done.code, done.out, ready.tree()) == (1, "", before)
    assert done.err == "error: NPROC_PER_NODE=two: not a number of processes\n"


def test_deepspeed_means_torchrun_even_for_one_process(ready: Place) -> None:
    assert ready.trainkit("train", "deepspeed=ds_z3.json").code == 0
    (call,) = ready.calls()
    assert (call["env"]["FORCE_TORCHRUN"], call["env"]["NPROC_PER_NODE"]) == ("1", "1")
    assert json.loads(Path(call["values"]["deepspeed"]).read_text())["zero_optimization"]["stage"] == 3


def test_an_incomplete_checkpoint_is_passed_over(ready: Place, tell: Callable[..., None]) -> None:
    stop_after(ready, tell, 3)
    ready.path("saves/rm/checkpoint-3/optimizer.pt").write_bytes(b"cut")
    done = ready.trainkit("train", "-d", "reward_model_full")
    assert done.code == 0
    assert "note: WORK/saves/rm/checkpoint-2: resuming after step 2 of 6\n" in done.err
    assert "note: WORK/saves/rm/checkpoint-3: not used to resume: optimizer.pt is cut off\n" in done.err


def test_a_tracker_goes_on_under_its_first_name(ready: Place, tell: Callable[..., None]) -> None:
    tell(stop_at=2, exit=1, total=6)
    assert ready.trainkit("train", "--monitor", "wandb").code == 1
    first = ready.run().name
    assert ready.calls()[-1]["env"]["WANDB_RUN_ID"] == first
    tell(total=6)
    assert ready.trainkit("train", "--monitor", "wandb").code == 0
    assert ready.run().name != first
    assert ready.calls()[-1]["env"]["WANDB_RUN_ID"] == first


def test_never_starts_anew_and_keeps_the_old_one(ready: Place, tell: Callable[..., None]) -> None:
    stop_after(ready, tell, 2)
    done = ready.trainkit("train", "--resume", "never")
    assert done.code == 0
    assert "note: output_dir: the earlier training there was kept as WORK/saves/rm.previous\n" in done.err
    assert "resume_from_checkpoint" not in ready.calls()[-1]["values"]
    assert ready.path("saves/rm.previous/checkpoint-2").is_dir()
    assert not ready.path("saves/rm.previous/checkpoint-3").is_dir()
    assert ready.trainkit("train", "--resume", "never").code == 0
    assert ready.path("saves/rm.previous/checkpoint-6").is_dir()


def test_overwrite_output_dir_means_never_unless_the_command_line_says_more(
    ready: Place, tell: Callable[..., None]
) -> None:
    stop_after(ready, tell, 2)
    ready.config("overwrite_output_dir: true")
    assert ready.trainkit("train", "--dry-run", "--json").json["resume"] is None
    assert ready.trainkit("train", "--dry-run", "--json", "--resume", "auto").json["resume"].endswith("checkpoint-2")
    assert ready.trainkit("train").code == 0
    assert ready.path("saves/rm.previous").is_dir()


@pytest.mark.parametrize("how", ["option", "key"])
def test_a_named_checkpoint_is_taken(ready: Place, tell: Callable[..., None], how: str) -> None:
    stop_after(ready, tell, 3)
    named = "saves/rm/checkpoint-1"
    words = ["--resume", named] if how == "option" else [f"resume_from_checkpoint={named}"]
    assert ready.trainkit("train", *words).code == 0
    assert ready.calls()[-1]["values"]["resume_from_checkpoint"] == str(ready.path(named))


def test_a_checkpoint_of_another_folder_starts_in_an_empty_one(ready: Place, tell: Callable[..., None]) -> None:
    stop_after(ready, tell, 2)
    ready.path("saves/rm").rename(ready.path("saves/old"))
    stop_after(ready, tell, 1)
    assert ready.trainkit("train", "--resume", "saves/old/checkpoint-2").code == 0
    assert ready.path("saves/rm.previous/checkpoint-1").is_dir()
    assert not ready.path("saves/rm/checkpoint-1").exists()


def test_what_the_training_reads_is_not_replaced_by_the_folder_moved_aside(
    ready: Place, tell: Callable[..., None]
) -> None:
    stop_after(ready, tell, 2)
    shutil.copytree(ready.path("saves/rm"), ready.path("saves/rm.previous"))
    shutil.copy(ready.path("model/tokenizer.json"), ready.path("saves/rm.previous"))
    shutil.copy(ready.path("saves/rm/checkpoint-2/adapter_config.json"), ready.path("saves/rm.previous"))
    before = ready.tree()
    told = (
        "error: WORK/saves/rm.previous: is read by this training, and WORK/saves/rm would take its place\n"
        "    rename it, or choose another output_dir\n"
    )
    for words in (
        ["--resume", "saves/rm.previous/checkpoint-2"],
        ["--resume", "never", "adapter_name_or_path=saves/rm.previous"],
    ):
        done = ready.trainkit("train", *words)
        assert (done.code, done.out, ready.tree()) == (1, "", before)
        assert done.err.endswith(told)


def finished(place: Place, _: Callable[..., None]) -> None:
    assert place.trainkit("train").code == 0


def unfinished(place: Place, tell: Callable[..., None]) -> None:
    stop_after(place, tell, 2)


def broken(place: Place, tell: Callable[..., None]) -> None:
    stop_after(place, tell, 2)
    place.path("saves/rm/checkpoint-2/scheduler.pt").unlink()


REFUSED: dict[str, tuple[Callable[..., None], list[str], str]] = {
    "finished": (
        finished, [],
        "error: WORK/saves/rm: already finished at step 3 of 3\n"
        "    --resume never trains again (the old folder is kept as rm.previous), or raise num_train_epochs\n",
    ),
    "another": (
        unfinished, ["-d", "reward_model_clip"],
        "error: WORK/saves/rm: holds a training that is not this one (dataset was reward_model_full)\n"
        "    choose another: output_dir=saves/NAME; or start anew with --resume never (the old is kept as .previous)\n",
    ),
    "another method": (
        unfinished, ["finetuning_type=full", "template=chatml"],
        "error: WORK/saves/rm: holds a training that is not this one "
        "(finetuning_type was lora, template was qwen)\n",
    ),
    "no such checkpoint": (
        unfinished, ["--resume", "saves/rm/checkpoint-9"],
        "error: resume_from_checkpoint: WORK/saves/rm/checkpoint-9: no such folder\n    name a checkpoint-N folder\n",
    ),
    "misspelt word": (
        unfinished, ["--resume", "nver"],
        "error: resume_from_checkpoint: WORK/nver: no such folder\n    name a checkpoint-N folder\n",
    ),
    "broken": (
        broken, ["--resume", "saves/rm/checkpoint-2"],
        "error: WORK/saves/rm/checkpoint-2: cannot be resumed from: no scheduler.pt\n"
        "    WORK/saves/rm/checkpoint-1 is complete\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_training_that_cannot_go_on_is_refused(ready: Place, tell: Callable[..., None], case: str) -> None:
    prepare, words, told = REFUSED[case]
    prepare(ready, tell)
    before, calls = ready.tree(), ready.calls()
    for more in ([], ["--dry-run"]):
        done = ready.trainkit("train", *words, *more)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(told)
    assert (ready.tree(), ready.calls()) == (before, calls)


def test_more_epochs_go_on_with_a_finished_training(ready: Place, tell: Callable[..., None]) -> None:
    assert ready.trainkit("train").code == 0
    tell(total=5, epochs=5.0)
    assert ready.trainkit("train", "-e", "5").code == 0
    assert ready.calls()[-1]["values"]["resume_from_checkpoint"].endswith("checkpoint-3")


def test_a_resume_without_a_step_is_a_failure(ready: Place, tell: Callable[..., None]) -> None:
    stop_after(ready, tell, 4)
    tell(total=4)
    done = ready.trainkit("train", "-d", "reward_model_full")
    assert done.code == 1
    log = ready.tidy(str(ready.run() / "train.log"))
    assert done.err.endswith(
        f"error: the trainer resumed at step 4 and made no step; the log is {log}\n"
        "    raise num_train_epochs or max_steps, or start anew with --resume never\n"
    )


def test_somebody_elses_folder_is_left_alone(ready: Place) -> None:
    ready.write("saves/rm/thesis.tex", "years of work")
    before = ready.tree()
    for words in ([], ["--resume", "never"], ["overwrite_output_dir=true"], ["--dry-run"]):
        done = ready.trainkit("train", *words)
        assert (done.code, ready.tree()) == (1, before)
        assert "output_dir: WORK/saves/rm: is not empty and holds no training\n" in done.err


def test_a_model_that_came_with_a_trainers_files_is_no_output_folder(ready: Place) -> None:
    ready.write("model/trainer_state.json", "{}")
    ready.write("model/all_results.json", "{}")
    before = ready.tree()
    done = ready.trainkit("train", "output_dir=./model")
    assert (done.code, ready.tree(), ready.calls()) == (1, before, [])


def test_a_training_in_the_folder_above_is_not_moved(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ready.write("sub/trainer_log.jsonl", "")
    ready.write("sub/deep/x", "")
    monkeypatch.chdir(ready.path("sub/deep"))
    done = ready.trainkit(
        "train", "-c", "../../training_config.yaml", "output_dir=..", "dataset_dir=../../data",
        "model_name_or_path=../../model",
    )  # fmt: skip
    assert done.code == 1
    assert "error: command line output_dir: WORK/sub: is not empty and holds no training" in done.err


def test_what_the_disk_refuses_is_explained(ready: Place) -> None:
    ready.write("logs", "a file")
    done = ready.trainkit("train")
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith(
        "error: WORK/logs: File exists\n    is there space on the disk, and may you write there?\n"
    )


def test_no_trainer_beside_the_python_is_explained(
    ready: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in ("start", "train"):
        monkeypatch.setattr(f"trainkit.workflow.{module}.trainer_python", lambda: tmp_path / "python")
    for words in (["train"], ["train", "--dry-run"]):
        done = ready.trainkit(*words)
        assert done.code == 1
        assert f"error: llamafactory-cli not found in {tmp_path}: LLaMA-Factory is not installed\n" in done.err


# monitoring


MONITORS: list[tuple[list[str], dict[str, Any], str]] = [
    (["report_to: none"], {"use_swanlab": False, "report_to": "none"}, ""),
    (["report_to: wandb"], {"use_swanlab": False, "report_to": ["wandb"]}, "wandb"),
    (["seed: 42"], {"use_swanlab": True, "report_to": "none", "swanlab_mode": "offline"}, "swanlab"),
]


@pytest.mark.parametrize(("lines", "values", "noted"), MONITORS)
def test_the_configuration_names_the_tracker(
    ready: Place, lines: list[str], values: dict[str, Any], noted: str
) -> None:
    ready.config(*lines)
    if lines == ["seed: 42"]:
        text = ready.path("training_config.yaml").read_text().replace("report_to: none\n", "")
        ready.write("training_config.yaml", text)
    report = ready.trainkit("train", "--dry-run", "--json").json
    assert {key: report["config"].get(key) for key in values} == values
    notes = [note for note in report["problems"] if note["where"] in ("swanlab", "wandb")]
    assert [(note["where"], note["message"]) for note in notes] == (
        [(noted, "no login found, so this run is recorded offline")] if noted else []
    )


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("swanlab", {"use_swanlab": True, "report_to": "none", "swanlab_project": "reward_model_training"}),
        ("wandb", {"use_swanlab": False, "report_to": ["wandb"]}),
        ("none", {"use_swanlab": False, "report_to": "none"}),
    ],
)
def test_the_command_line_names_the_tracker(ready: Place, word: str, values: dict[str, Any]) -> None:
    assert ready.trainkit("train", "--monitor", word).code == 0
    (call,) = ready.calls()
    assert {key: call["values"].get(key) for key in values} == values
    wandb = {"WANDB_MODE": "offline", "WANDB_DIR": str(ready.run()), "WANDB_PROJECT": "reward_model_training"}
    assert {key: call["env"].get(key) for key in wandb} == (wandb if word == "wandb" else dict.fromkeys(wandb))


def test_a_missing_tracker_is_a_note(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainkit.workflow.start.importlib.util.find_spec", lambda _: None)
    done = ready.trainkit("train", "--monitor", "swanlab")
    assert done.code == 0
    assert "note: swanlab: not installed, so this run is not tracked with it\n    pip install swanlab\n" in done.err


def test_another_word_for_the_tracker_is_wrong_usage(ready: Place) -> None:
    for words in (["train"], ["train", "--dry-run"], ["pipeline", "--no-convert"]):
        done = ready.trainkit(*words, "--monitor", "tensorbord")
        assert (done.code, done.out) == (2, "")
        assert done.err == "error: --monitor tensorbord: must be swanlab, wandb or none\n"


# signals, in a process of its own


def wait_for(path: Path) -> None:
    for _ in range(400):
        if path.exists():
            return
        time.sleep(0.025)
    raise AssertionError(f"{path} did not appear")


@contextmanager
def started(place: Place, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A training that has made the steps it was told to make and waits."""
    # in the background of a shell Ctrl-C is ignored, and a child inherits that
    process = place.start("train", *words, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    try:
        wait_for(place.path("saves/rm/ready"))
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(place: Place, process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return the exit code, standard output and the last line of standard error."""
    out, err = (place.tidy(text) for text in process.communicate(timeout=20))
    assert "Traceback" not in err
    return process.returncode, out, err.splitlines()[-1]


GOES_ON = "error: stopped; the log is WORK/logs/DATE-train/train.log; --resume auto goes on "
STOPS: list[tuple[int, int, dict[str, Any], str, tuple[bool, int | None]]] = [
    (signal.SIGINT, 130, {}, "from the newest complete checkpoint in WORK/saves/rm", (False, 2)),
    (signal.SIGHUP, 129, {}, "from the newest complete checkpoint in WORK/saves/rm", (False, 2)),
    (signal.SIGTERM, 143, {}, "after step 2, which was saved: WORK/saves/rm/checkpoint-2", (True, 2)),
    (signal.SIGUSR1, 138, {}, "after step 2, which was saved: WORK/saves/rm/checkpoint-2", (True, 2)),
    # before the training has begun there is nothing to save
    (signal.SIGTERM, 143, {"begin": False}, "from the newest complete checkpoint in WORK/saves/rm", (True, 2)),
    (signal.SIGUSR1, 138, {"begin": False}, "from the newest complete checkpoint in WORK/saves/rm", (True, 2)),
]


@pytest.mark.parametrize(("number", "code", "told", "goes_on", "known"), STOPS)
def test_a_stop_is_passed_on_and_says_how_to_go_on(
    ready: Place,
    tell: Callable[..., None],
    number: int,
    code: int,
    told: dict[str, Any],
    goes_on: str,
    known: tuple[bool, int | None],
) -> None:
    tell(stop_at=2, wait=True, **told)
    with started(ready) as process:
        os.kill(process.pid, number)
        assert ended(ready, process) == (code, "", GOES_ON + goes_on)
    manifest = ready.manifest()
    assert (manifest["signal"], manifest["exit_code"]) == (number, code)
    assert (manifest["preempted"], manifest["step"], manifest["metrics"]) == (*known, {})
    assert sorted(path.name for path in ready.run().iterdir()) == ["config.yaml", "run.json", "train.log"]
    assert not ready.path("saves/rm/adapter_model.safetensors").exists(), "it must not look like a finished training"
    tell()
    again = ready.trainkit("train", "--resume", "auto")
    assert again.code == 0
    assert "checkpoint-2: resuming after step 2 of 3" in again.err
    assert (ready.manifest()["preempted"], ready.manifest()["step"]) == (False, 3)


def test_a_trainer_that_cannot_save_says_what_is_missing(ready: Place, tell: Callable[..., None]) -> None:
    """As PPO's, which stops and saves no checkpoint that a training can go on from."""
    tell(stop_at=2, wait=True, save=False)
    with started(ready) as process:
        os.kill(process.pid, signal.SIGTERM)
        code, _, told = ended(ready, process)
    assert code == 143
    assert told.startswith(
        "error: stopped; the log is WORK/logs/DATE-train/train.log; step 2 was the last, and cannot be resumed from: "
        "no readable trainer_state.json, "
    )


def test_a_training_that_finishes_when_it_is_preempted_has_finished(ready: Place, tell: Callable[..., None]) -> None:
    tell(linger=0.5)
    with started(ready) as process:
        os.kill(process.pid, signal.SIGTERM)
        code, out, _ = ended(ready, process)
    assert (code, out.splitlines()[0]) == (0, "trained model  WORK/saves/rm")
    manifest = ready.manifest()
    assert (manifest["exit_code"], manifest["signal"], manifest["preempted"], manifest["step"]) == (0, 15, False, 3)


def test_who_waits_for_a_signal_gets_the_one_that_came_too_late(ready: Place, tell: Callable[..., None]) -> None:
    """`update --watch` is to end after the round that finished."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    tell(linger=0.3)
    try:
        begin = lambda *_: signal.setitimer(signal.ITIMER_REAL, 0.1)  # noqa: E731
        signal.signal(signal.SIGALRM, lambda *_: poke(ready))
        train(Settings(), TrainOptions(), begin, lambda *_: None)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert seen == [signal.SIGTERM]


def poke(place: Place) -> None:
    """Send this process a SIGTERM as soon as the training lingers."""
    if place.path("saves/rm/ready").exists():
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        signal.setitimer(signal.ITIMER_REAL, 0.02)


def test_a_request_is_told_at_once(ready: Place, tell: Callable[..., None]) -> None:
    tell(stop_at=2, wait=True)
    signal.signal(signal.SIGALRM, lambda *_: poke(ready))
    try:
        begin = lambda *_: signal.setitimer(signal.ITIMER_REAL, 0.1)  # noqa: E731
        words: list[Any] = []
        with pytest.raises(TrainkitError):
            train(Settings(), TrainOptions(), begin, lambda *_: None, on_word=words.append)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert [(word.where, word.message, word.level) for word in words] == [
        ("SIGTERM", "the trainer saves and stops; a second signal stops it at once", "note")
    ]


# restarts


def train_again(max_restarts: int, *overrides: str) -> tuple[TrainResult | TrainkitError, list[str]]:
    """Train in this folder; return what came out, and the words on the way."""
    words: list[str] = []
    try:
        result = train(
            Settings(overrides=overrides),
            TrainOptions(max_restarts=max_restarts),
            lambda *_: None,
            lambda *_: None,
            on_word=lambda word: words.append(f"{word.level}: {word.where}: {word.message}"),
        )
    except TrainkitError as error:
        return error, words
    return result, words


@pytest.mark.parametrize("overrides", [(), ("overwrite_output_dir=true",)])
def test_a_crashed_training_goes_on(ready: Place, tell: Callable[..., None], overrides: tuple[str, ...]) -> None:
    crash = {"exit": 3, "log": "KeyError: 'surprise'"}
    tell(total=6, starts=[{"stop_at": 2, **crash}, {"stop_at": 4, "exit": 137}])
    result, words = train_again(5, *overrides)
    assert isinstance(result, TrainResult)
    first = "the trainer ended with exit code 3"
    second = "the trainer was killed, most likely because this machine is out of memory"
    assert words == [
        f"warning: restart 1 of 5: {first}; going on after step 2",
        f"warning: restart 2 of 5: {second}; going on after step 4",
    ]
    manifest = ready.manifest()
    assert manifest["restarts"] == [
        {"exit_code": 3, "step": 2, "reason": first},
        {"exit_code": 137, "step": 4, "reason": second},
    ]
    assert (manifest["exit_code"], manifest["preempted"], manifest["step"]) == (0, False, 6)
    log = (ready.run() / "train.log").read_text()
    assert log.count("\ntrainkit: restart ") == 2
    assert log.index("KeyError: 'surprise'") < log.index("trainkit: restart 1 of 5")
    rows = ready.path("saves/rm/trainer_log.jsonl").read_text().splitlines()
    assert [json.loads(row)["current_steps"] for row in rows] == [1, 2, 3, 4, 5, 6]
    calls = ready.calls("train")
    assert [call["values"].get("resume_from_checkpoint", "").rpartition("-")[2] for call in calls] == ["", "2", "4"]
    assert [call["values"].get("overwrite_output_dir") for call in calls] == [True, None, None]
    assert yaml.safe_load((ready.run() / "config.yaml").read_text()) == calls[-1]["values"]
    assert len(list(ready.path("logs").glob("*/run.json"))) == 2, "one run, and the link to it"


GIVEN_UP: dict[str, tuple[int, list[dict[str, Any]], int]] = {
    # how often at most, what each start does, how many starts there are
    "not asked for": (0, [{"stop_at": 2, "exit": 7}], 1),
    "as often as allowed": (2, [{"stop_at": 1, "exit": 1}, {"stop_at": 2, "exit": 1}, {"stop_at": 3, "exit": 7}], 3),
    "wrong before the first step": (3, [{"stop_at": 0, "exit": 7}], 1),
    "no complete checkpoint": (3, [{"stop_at": 2, "save": False, "exit": 7}], 1),
    "no step since the restart": (3, [{"stop_at": 2, "exit": 1}, {"stop_at": 2, "exit": 7}], 2),
    "all steps are made": (3, [{"exit": 7}], 1),
    "out of memory": (3, [{"stop_at": 2, "exit": 7, "log": "torch.OutOfMemoryError: CUDA out of memory."}], 1),
}


@pytest.mark.parametrize(("most", "starts", "count"), GIVEN_UP.values(), ids=GIVEN_UP)
def test_a_crash_that_would_only_come_again_is_given_up(
    ready: Place, tell: Callable[..., None], most: int, starts: list[dict[str, Any]], count: int
) -> None:
    tell(total=6, starts=starts)
    error, words = train_again(most)
    assert isinstance(error, TrainerFailed)
    assert error.exit_code == 7
    assert len(ready.calls("train")) == count
    assert len(words) == len(ready.manifest()["restarts"]) == count - 1
    assert ready.manifest()["exit_code"] == 7


def test_the_last_crash_is_the_one_that_is_explained(ready: Place, tell: Callable[..., None]) -> None:
    tell(total=6, starts=[{"stop_at": 2, "exit": 1, "log": "OSError: No space left on device"}, {"exit": 4}])
    error, _ = train_again(1)
    assert isinstance(error, TrainerFailed)
    assert "the trainer ended with exit code 4" in error.message
    assert "No space" not in error.message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_no_crash(ready: Place, tell: Callable[..., None], number: int) -> None:
    tell(stop_at=2, wait=True)
    with started(ready, "--max-restarts", "3") as process:
        os.kill(process.pid, number)
        assert ended(ready, process)[0] == 128 + number
    assert len(ready.calls("train")) == 1


def test_the_user_of_python_gets_the_same(ready: Place) -> None:
    steps: list[tuple[int, int, int]] = []
    started: list[Any] = []
    result = train(
        Settings(),
        TrainOptions(),
        lambda plan, run: started.append((plan.output_dir, run.path)),
        lambda step, begun: steps.append((step.step, step.total, begun)),
    )
    assert steps == [(1, 3, 0), (2, 3, 0), (3, 3, 0)]
    assert started == [(result.output_dir, result.run.path)]
    assert result.loss_curve == result.output_dir / "training_loss.png"
    (result.output_dir / "training_loss.png").unlink()
    assert result.loss_curve is None


def test_an_export_that_would_find_no_place_is_refused_before_the_training(ready: Place) -> None:
    ready.write("exported/precious.txt", "x")
    for words in (["train", "--export"], ["train", "--export", "--dry-run"], ["pipeline", "--no-convert", "--export"]):
        done = ready.trainkit(*words)
        assert done.code == 1
        assert "error: WORK/exported: exists and was not written by trainkit export" in done.err
    assert ready.calls() == []
    assert ready.trainkit("train").code == 0


def test_a_request_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the trainer gets the signal itself."""
    request = StopRequest(Run(tmp_path))
    (tmp_path / "stop").touch()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainkit.workflow.preempt.write_text_atomic", full)
    assert (request.ask(15), request.number) == (False, None)
