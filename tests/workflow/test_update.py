"""Rounds of an online update with a trainer that pretends: what is there after each, and after each way to end one."""

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

import pytest
import yaml
from rollouts import UPDATE, add_iteration, places_of, quick, records, rollout, rows_of, start_program, write_iteration

from trainkit.cli import main
from trainkit.datatypes import Gpu, Hardware
from trainkit.errors import EnvironmentProblem, InputError
from trainkit.workflow import round_train
from trainkit.workflow.round import Trainer
from trainkit.workflow.round_options import Told, UpdateOptions
from trainkit.workflow.round_train import training_environment
from trainkit.workflow.update import update

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Done, Place
    from trainkit.workflow.round import PreparedRound

WANDB = ("algorithm_config.report_to=wandb", "log_config.run_name=shop agent's", "log_config.project_name=web")
GPU = Gpu("NVIDIA H100", 80.0, (9, 0))


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Tell the fake trainer how to behave."""
    return lambda **told: monkeypatch.setenv("FAKE_TRAINER", json.dumps(told))


@pytest.fixture
def exp(ready: Place, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment with one iteration of rollouts."""
    quick(monkeypatch)
    ready.write("update.yaml", UPDATE)
    add_iteration(ready.path("exp"), 0)
    return ready.path("exp")


def train(place: Place, *words: str) -> Done:
    return place.trainkit("update", "--train", *words)


def trained(place: Place, *words: str) -> Done:
    done = train(place, *words)
    assert done.code == 0, done.err
    return done


def states(exp: Path) -> list[str]:
    return [record["state"] for record in records(exp)]


def steps_trained(place: Place) -> list[tuple[str, int | None, Any]]:
    """Return of each training its folder, the checkpoint's step that it went on from, and its last step."""
    found = []
    for call in place.calls("train"):
        values = call["values"]
        resume = values.get("resume_from_checkpoint")
        step = int(resume.rpartition("-")[2]) if resume else None
        found.append((Path(values["output_dir"]).name, step, values.get("max_steps")))
    return found


def source_of(model: Path) -> str:
    """Return the folder that a model was handed over from, by its name."""
    return Path(json.loads((model / "trainkit_handover.json").read_text())["source"]).name


def snapshot(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Return of every file its content, its inode and the time of its last change."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
        for path in files
    }


def leftovers(folder: Path) -> list[str]:
    """Return what only a killed process leaves."""
    names = (path.name for path in folder.rglob(".*") if path.name != ".trainkit.lock")
    return sorted(names)


def last_line(text: str) -> str:
    return text.splitlines()[-1]


# a round


def test_the_first_round(ready: Place, exp: Path) -> None:
    trained(ready)
    (record,) = records(exp)
    name = record["name"]
    file = exp / "train_trajectories" / "train_trajectories.iteration0.jsonl"
    plan = json.loads((exp / "llamafactory_data" / "sampling_plan.json").read_text())
    assert record == {
        "name": name,
        "inputs": {file.name: [file.stat().st_size, file.stat().st_mtime_ns]},
        "settings": record["settings"],
        "wandb_run_id": f"exp-{name}",
        "model": str(ready.path("model")),
        "start": "",
        "start_step": 0,
        "total_steps": 3,
        "newest_iteration": 0,
        "sampling": {key: plan[key] for key in record["sampling"]},
        "state": "handed over",
    }
    assert sorted(path.name for path in exp.iterdir()) == [
        ".trainkit.lock", "checkpoints", "llamafactory_data", "logs", "model.pt", "train_trajectories", "updates",
    ]  # fmt: skip
    assert source_of(exp / "model.pt") == name
    assert not [
        path for path in (exp / "model.pt").iterdir() if path.name.startswith(("optim", "checkpoint", "train_"))
    ]
    values = ready.calls("train")[0]["values"]
    assert values["model_name_or_path"] == str(ready.path("model"))
    assert values["output_dir"] == str(exp / "checkpoints" / name)
    assert (values.get("max_steps"), values["overwrite_output_dir"]) == (None, True)
    run = exp / "logs" / "latest"
    assert run.resolve().name.endswith(f"-{name}")
    # what was trained is what is written for a training by hand
    by_hand = yaml.safe_load((exp / "llamafactory_data" / "train_config.yaml").read_text())
    added = {key: value for key, value in values.items() if by_hand.get(key) != value}
    assert added == {"overwrite_output_dir": True, "use_swanlab": False}
    assert set(by_hand) <= set(values)


def test_rollouts_are_trained_on_once(ready: Place, exp: Path) -> None:
    trained(ready)
    before = snapshot(ready.folder)
    done = trained(ready)
    assert done.out == ""
    assert done.err == (
        "nothing to do: WORK/exp/model.pt is of ROUND, which trained on these rollouts\n"
        "    --again trains on them once more\n"
    )
    assert snapshot(ready.folder) == before
    trained(ready, "--again")
    first, second = (record["name"] for record in records(exp))
    assert steps_trained(ready) == [(first, None, None), (second, 3, 6)]
    assert states(exp) == ["handed over", "handed over"]


def test_a_look_at_the_next_round_does_not_train_twice(ready: Place, exp: Path) -> None:
    trained(ready)
    assert ready.trainkit("update").code == 0
    done = trained(ready)
    assert done.err.startswith("nothing to do: ")
    assert len(ready.calls("train")) == 1


def test_back_to_a_configuration_that_was_trained(ready: Place, exp: Path) -> None:
    trained(ready)
    assert ready.trainkit("update", "seed=7").code == 0
    assert trained(ready).err.startswith("nothing to do: ")


@pytest.mark.parametrize("word", ["keep_rounds=3", "log_config.run_name=other"])
def test_what_changes_no_model_trains_none(ready: Place, exp: Path, word: str) -> None:
    trained(ready)
    assert trained(ready, word).err.startswith("nothing to do: ")


def test_each_round_goes_on_from_the_one_before(ready: Place, exp: Path) -> None:
    for number in range(3):
        add_iteration(exp, number)
        trained(ready)
    names = [record["name"] for record in records(exp)]
    assert steps_trained(ready) == [(names[0], None, None), (names[1], 3, 9), (names[2], 9, 18)]
    values = [call["values"] for call in ready.calls("train")]
    assert [one.get("ignore_data_skip") for one in values] == [None, True, True]
    assert [one["resume_from_checkpoint"] for one in values[1:]] == [
        str(exp / "checkpoints" / name / f"checkpoint-{step}") for name, step in zip(names, (3, 9), strict=False)
    ]
    assert [one["model_name_or_path"] for one in values] == [str(ready.path("model")), *[str(exp / "model.pt")] * 2]
    assert [record["start_step"] for record in records(exp)] == [0, 3, 9]
    assert [record["total_steps"] for record in records(exp)] == [3, 9, 18]
    assert (source_of(exp / "model.pt"), source_of(exp / "model.pt.previous")) == (names[2], names[1])
    assert len(places_of(exp)) + len(places_of(exp, "val")) == 36
    assert leftovers(exp) == []


def test_a_changed_learning_rate_is_changed_in_a_copy(ready: Place, exp: Path) -> None:
    trained(ready)
    add_iteration(exp, 1)
    (first,) = records(exp)
    before = snapshot(exp / "checkpoints")
    done = trained(ready, "algorithm_config.learning_rate=2e-6")
    copy = exp / "checkpoints" / "resume" / "checkpoint-3"
    assert (
        f"note: learning_rate: 2e-06 from here on, in a copy of the checkpoint: {ready.tidy(str(copy))}\n" in done.err
    )
    (change,) = ready.calls("scheduler_lr")
    assert change["request"] | {"folder": ""} == {
        "folder": "", "files": ["scheduler.pt", "optimizer.pt"], "learning_rate": 2e-6,
    }  # fmt: skip
    values = ready.calls("train")[1]["values"]
    assert (values["resume_from_checkpoint"], values["learning_rate"], values["max_steps"]) == (str(copy), 2e-6, 9)
    after = snapshot(exp / "checkpoints")
    assert {name: after[name] for name in before} == before
    assert not copy.parent.exists()
    # the next round's checkpoint has the rate
    add_iteration(exp, 2)
    trained(ready, "algorithm_config.learning_rate=2e-6")
    assert len(ready.calls("scheduler_lr")) == 1
    assert records(exp)[1]["start"].endswith(f"{first['name']}/checkpoint-3")


def test_the_same_rate_in_other_words_is_no_change(ready: Place, exp: Path) -> None:
    trained(ready)
    add_iteration(exp, 1)
    trained(ready, "algorithm_config.learning_rate=0.000001")
    assert ready.calls("scheduler_lr") == []


def test_a_learning_rate_that_cannot_be_changed(ready: Place, exp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(ready)
    add_iteration(exp, 1)
    before = snapshot(exp / "model.pt")
    monkeypatch.setenv("FAKE_RATE", "fail")
    done = train(ready, "algorithm_config.learning_rate=2e-6")
    assert done.code == 1
    lines = done.err.splitlines()[-2:]
    assert lines[0].startswith("error: ")
    assert lines[0].endswith("the learning rate could not be changed: several learning rates (1e-05, 2e-05)")
    assert lines[1] == "    --resume never trains the model's weights on with a new optimizer"
    assert snapshot(exp / "model.pt") == before
    assert leftovers(exp) == []
    trained(ready, "algorithm_config.learning_rate=2e-6", "--resume", "never")
    assert steps_trained(ready)[-1][1:] == (None, None)
    assert ready.calls("train")[-1]["values"]["model_name_or_path"] == str(exp / "model.pt")


def test_one_run_at_wandb_for_all_rounds(ready: Place, exp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_KEY", "hush-wandb")
    words = (*WANDB, "log_config.wandb_key_env_var=TEAM_KEY", "log_config.entity_name=team")
    trained(ready, *words)
    add_iteration(exp, 1)
    done = trained(ready, *words, "algorithm_config.learning_rate=2e-6")
    first, second = records(exp)
    run_id = f"shop-agent-s-{first['name']}"
    assert (first["wandb_run_id"], second["wandb_run_id"]) == (run_id, run_id)
    for record, call in zip((first, second), ready.calls("train"), strict=True):
        env = {key: value for key, value in call["env"].items() if key not in ("WANDB_DIR", "WANDB_SILENT")}
        assert env == {
            "WANDB_API_KEY": "hush-wandb",
            "WANDB_ENTITY": "team",
            "WANDB_MODE": "offline",
            "WANDB_NAME": "shop agent's",
            "WANDB_PROJECT": "web",
            "WANDB_RESUME": "allow",
            "WANDB_RUN_ID": run_id,
            "WANDB_RUN_NAME": "shop agent's",
        }
        assert call["values"]["report_to"] == ["wandb"]
        marker = json.loads((exp / "checkpoints" / record["name"] / "trainkit_run.json").read_text())
        (run,) = (exp / "logs").glob(f"*-{record['name']}/run.json")
        assert (marker["tracked_as"], json.loads(run.read_text())["tracked_as"]) == (run_id, run_id)
    assert [name for name, content in ready.tree().items() if b"hush" in content] == []
    assert "hush" not in done.out + done.err


def test_old_rounds_are_removed_when_asked(ready: Place, exp: Path) -> None:
    for number in range(3):
        add_iteration(exp, number)
        done = trained(ready, "keep_rounds=2")
    names = [record["name"] for record in records(exp)]
    assert sorted(path.name for path in (exp / "checkpoints").iterdir()) == names[1:]
    assert f"removed, as keep_rounds says: WORK/exp/checkpoints/{ready.tidy(names[0])}\n" in done.err
    add_iteration(exp, 3)
    trained(ready, "keep_rounds=2")
    assert steps_trained(ready)[-1][1] == steps_trained(ready)[-2][2]


def test_a_training_without_an_optimizer_is_gone_on_from_by_its_weights(ready: Place, exp: Path) -> None:
    trained(ready)
    for file in (exp / "checkpoints").rglob("optimizer.pt"):
        file.unlink()
    add_iteration(exp, 1)
    done = trained(ready)
    assert (
        "note: WORK/exp/model.pt: ROUND left no checkpoint with an optimizer, so its weights alone are trained on\n"
    ) in done.err
    assert steps_trained(ready)[1][1:] == (None, None)


@pytest.mark.parametrize("relative", [True, False])
def test_a_round_from_a_named_checkpoint(ready: Place, exp: Path, relative: bool) -> None:
    trained(ready)
    folder = exp / "checkpoints" / records(exp)[0]["name"] / "checkpoint-2"
    add_iteration(exp, 1)
    trained(ready, "--resume", str(folder.relative_to(ready.folder) if relative else folder))
    assert ready.calls("train")[1]["values"]["resume_from_checkpoint"] == str(folder)
    assert (records(exp)[1]["start_step"], records(exp)[1]["total_steps"]) == (2, 8)


def test_a_save_path_with_a_space(ready: Place) -> None:
    save_path = ready.path("my exp")
    ready.write("update.yaml", UPDATE.replace("save_path: exp", "save_path: my exp"))
    for number in range(2):
        add_iteration(save_path, number)
        trained(ready)
    assert states(save_path) == ["handed over", "handed over"]
    assert steps_trained(ready)[1][1] == 3


def test_an_experiment_that_was_moved_goes_on(ready: Place, exp: Path) -> None:
    trained(ready)
    moved = exp.rename(exp.with_name("moved"))
    add_iteration(moved, 1)
    trained(ready, "save_path=moved")
    call = ready.calls("train")[1]["values"]
    assert call["resume_from_checkpoint"] == str(moved / "checkpoints" / records(moved)[0]["name"] / "checkpoint-3")


def test_the_model_may_be_a_link(ready: Place, exp: Path) -> None:
    (exp / "model.pt").symlink_to(ready.path("model"))
    before = snapshot(ready.path("model"))
    trained(ready, "model_path=null")
    assert snapshot(ready.path("model")) == before
    assert not (exp / "model.pt").is_symlink()
    assert (exp / "model.pt.previous").readlink() == ready.path("model")
    add_iteration(exp, 1)
    trained(ready, "model_path=null")
    assert steps_trained(ready)[1][1:] == (3, 9)


@pytest.mark.parametrize("new_rollouts", [True, False])
def test_the_model_was_removed(ready: Place, exp: Path, new_rollouts: bool) -> None:
    trained(ready)
    shutil.rmtree(exp / "model.pt")
    if new_rollouts:
        add_iteration(exp, 1)
    trained(ready)
    assert (exp / "model.pt" / "config.json").is_file()
    assert len(ready.calls("train")) == 1 + new_rollouts
    if new_rollouts:
        assert steps_trained(ready)[1][1:] == (3, 9)


# a training that comes to nothing


def test_a_failed_training_is_gone_on_with(ready: Place, exp: Path, tell: Callable[..., None]) -> None:
    trained(ready)
    model = snapshot(exp / "model.pt")
    add_iteration(exp, 1)
    tell(stop_at=5, exit=3)
    done = train(ready)
    assert done.code == 3
    assert snapshot(exp / "model.pt") == model
    assert states(exp) == ["handed over", "prepared"]
    tell()
    trained(ready)
    first, second = (record["name"] for record in records(exp))
    assert steps_trained(ready) == [(first, None, None), (second, 3, 9), (second, 5, 9)]
    assert (source_of(exp / "model.pt"), source_of(exp / "model.pt.previous")) == (second, first)
    assert states(exp) == ["handed over", "handed over"]


def test_a_failure_before_the_first_checkpoint(ready: Place, exp: Path, tell: Callable[..., None]) -> None:
    tell(stop_at=0, exit=1)
    assert train(ready).code == 1
    assert not (exp / "model.pt").exists()
    tell()
    trained(ready)
    (record,) = records(exp)
    assert steps_trained(ready) == [(record["name"], None, None)] * 2


def test_an_interrupted_round_with_a_new_learning_rate(ready: Place, exp: Path, tell: Callable[..., None]) -> None:
    """Its own checkpoints have the rate of the round, so nothing is copied a second time."""
    trained(ready)
    add_iteration(exp, 1)
    tell(stop_at=5, exit=3)
    words = ("algorithm_config.learning_rate=2e-6",)
    assert train(ready, *words).code == 3
    tell()
    trained(ready, *words)
    assert len(ready.calls("scheduler_lr")) == 1
    assert steps_trained(ready)[2][1:] == (5, 9)
    assert not (exp / "checkpoints" / "resume").exists()


def test_an_interrupted_round_may_start_anew(ready: Place, exp: Path, tell: Callable[..., None]) -> None:
    tell(stop_at=2, exit=1)
    assert train(ready).code == 1
    tell()
    trained(ready, "--resume", "never")
    (record,) = records(exp)
    assert steps_trained(ready) == [(record["name"], None, None)] * 2
    kept = exp / "checkpoints" / f"{record['name']}.previous"
    assert (kept / "checkpoint-2").is_dir()


def test_new_rollouts_after_a_failure_make_a_new_round(ready: Place, exp: Path, tell: Callable[..., None]) -> None:
    trained(ready)
    add_iteration(exp, 1)
    tell(stop_at=4, exit=3)
    assert train(ready).code == 3
    add_iteration(exp, 2)
    tell()
    trained(ready)
    assert states(exp) == ["handed over", "prepared", "handed over"]
    names = [record["name"] for record in records(exp)]
    assert len(set(names)) == 3
    assert steps_trained(ready)[2] == (names[2], 3, 12)


BROKEN = {
    "nan": {"log": "{'loss': nan, 'grad_norm': nan}", "results": '{"train_loss": NaN}'},
    "nothing trained": {"results": '{"train_loss": 0.0}'},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_useless_model_is_not_handed_over(ready: Place, exp: Path, tell: Callable[..., None], case: str) -> None:
    trained(ready)
    add_iteration(exp, 1)
    model = snapshot(exp / "model.pt")
    tell(**BROKEN[case])
    done = train(ready)
    assert done.code == 1
    assert "error: WORK/exp/checkpoints/ROUND: is not handed over: " in done.err
    assert snapshot(exp / "model.pt") == model


@pytest.mark.parametrize("case", BROKEN)
def test_a_useless_model_is_not_handed_over_by_the_next_call_either(
    ready: Place, exp: Path, tell: Callable[..., None], case: str
) -> None:
    tell(**BROKEN[case])
    assert train(ready).code == 1
    train(ready)
    assert not (exp / "model.pt").exists()
    tell()
    trained(ready)
    values = ready.calls("train")[-1]["values"]
    assert values.get("resume_from_checkpoint") is None  # the weights of its checkpoints are of no use either


def test_a_training_without_a_step(ready: Place, exp: Path, tell: Callable[..., None]) -> None:
    tell(total=0)
    done = train(ready)
    assert (done.code, done.out.count("model  ")) == (1, 0)
    assert done.err.splitlines()[-2:] == [
        "error: WORK/exp/checkpoints/ROUND: is not handed over: it ended at step 0, and it started from 0",
        "    the trainer's log is WORK/exp/logs/DATE-ROUND/train.log",
    ]
    assert not (exp / "model.pt").exists()
    tell()
    trained(ready)
    model = snapshot(exp / "model.pt")
    add_iteration(exp, 1)
    tell(total=3)
    done = train(ready)
    assert done.code == 1
    assert "the trainer resumed at step 3 and made no step" in done.err
    assert snapshot(exp / "model.pt") == model
    tell()
    trained(ready)
    assert steps_trained(ready)[-1][1:] == (3, 9)


def test_a_model_that_is_not_whole_stays_where_it_is(ready: Place, exp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(ready)
    model = snapshot(exp / "model.pt")
    add_iteration(exp, 1)
    real = round_train.train

    def cut_off(*words: Any) -> Any:
        result = real(*words)
        (result.output_dir / "tokenizer.json").unlink()
        return result

    monkeypatch.setattr("trainkit.workflow.round_train.train", cut_off)
    done = train(ready)
    assert done.code == 1
    assert "not handed over: no tokenizer" in done.err
    assert snapshot(exp / "model.pt") == model
    assert leftovers(exp) == []


# killed


def killed_at(name: str, *words: str, nth: int = 1) -> None:
    """Run a command in a child that dies as by kill -9 where it calls a function for the n-th time."""
    child = os.fork()
    if child == 0:
        try:
            die_at(name, nth)
            main(list(words))
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"{name} was not called {nth} times"


def die_at(name: str, nth: int) -> None:
    module, _, function = name.rpartition(".")
    real = getattr(sys.modules[module], function)
    calls: list[int] = []

    def die(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)

    setattr(sys.modules[module], function, die)


PREPARING = (
    ("trainkit.workflow.round_data.stage_steps", 2),
    ("trainkit.workflow.round_data.settle_side", 1),
    ("trainkit.workflow.round_data.settle_side", 2),
    ("trainkit.workflow.round.write_round", 1),
)


@pytest.mark.parametrize(("name", "nth"), PREPARING)
def test_killed_while_the_data_is_written(ready: Place, exp: Path, name: str, nth: int) -> None:
    add_iteration(exp, 1)
    assert ready.trainkit("update").code == 0
    add_iteration(exp, 2)
    killed_at(name, "update", "seed=5", nth=nth)
    config = exp / "llamafactory_data" / "train_config.yaml"
    assert not config.exists() or yaml.safe_load(config.read_text())["seed"] == 5
    assert ready.trainkit("update", "seed=5").code == 0
    assert leftovers(exp) == []
    assert {iteration for iteration, _, _ in places_of(exp)} == {0, 1, 2}
    names = {record["name"] for record in records(exp)}
    assert Path(yaml.safe_load(config.read_text())["output_dir"]).name == max(names)


def test_killed_at_each_flush_of_a_file(ready: Place, exp: Path) -> None:
    """Each file that is written is flushed before it is renamed, and its folder after that."""
    for nth in range(1, 15):
        killed_at("os.fsync", "update", nth=nth)
        assert ready.trainkit("update").code == 0
        assert leftovers(exp) == [], nth


HANDING_OVER = (
    ("trainkit.workflow.update.write_round", 1),
    ("trainkit.workflow.update.hand_over", 1),
    ("trainkit.workflow.update.write_round", 2),
    ("trainkit.workflow.update.remove", 1),
    ("trainkit.runs.handover.swap", 1),
    ("trainkit.runs.handover._keep_old", 1),
)


@pytest.mark.parametrize(("name", "nth"), HANDING_OVER)
def test_killed_after_the_training(ready: Place, exp: Path, name: str, nth: int) -> None:
    """The model is handed over by the next call, and nothing is trained a second time."""
    trained(ready)
    add_iteration(exp, 1)
    killed_at(name, "update", "--train", nth=nth)
    assert (exp / "model.pt" / "config.json").is_file()
    done = trained(ready)
    assert states(exp) == ["handed over", "handed over"]
    assert len(ready.calls("train")) == 2
    first, second = (record["name"] for record in records(exp))
    assert (source_of(exp / "model.pt"), source_of(exp / "model.pt.previous")) == (second, first)
    assert "model          WORK/exp/model.pt" in done.out or "nothing to do" in done.err
    assert leftovers(exp) == []
    assert trained(ready).err.startswith("nothing to do")


def test_killed_after_a_learning_rate_was_changed(ready: Place, exp: Path) -> None:
    trained(ready)
    add_iteration(exp, 1)
    words = ("update", "--train", "algorithm_config.learning_rate=2e-6")
    killed_at("trainkit.runs.scheduler_copy.sync_tree", *words)
    assert ready.trainkit(*words).code == 0
    assert not (exp / "checkpoints" / "resume").exists()
    assert leftovers(exp) == []
    assert steps_trained(ready)[1][1:] == (3, 9)


def test_a_look_in_between_does_not_lose_a_trained_model(ready: Place, exp: Path) -> None:
    killed_at("trainkit.workflow.update.hand_over", "update", "--train")
    assert ready.trainkit("update").code == 0
    trained(ready)
    assert len(ready.calls("train")) == 1
    assert "handed over" in states(exp)


def test_a_model_that_cannot_be_handed_over_can_be_trained_again(ready: Place, exp: Path) -> None:
    killed_at("trainkit.workflow.update.hand_over", "update", "--train")
    (exp / "checkpoints" / records(exp)[0]["name"] / "tokenizer.json").unlink()
    assert train(ready).code == 1
    assert trained(ready, "--again")
    assert (exp / "model.pt" / "tokenizer.json").is_file()


def test_a_dry_run_hands_nothing_over(ready: Place, exp: Path) -> None:
    killed_at("trainkit.workflow.update.hand_over", "update", "--train")
    before = snapshot(ready.folder)
    ready.trainkit("update", "--train", "--dry-run")
    assert snapshot(ready.folder) == before


def test_an_error_while_the_model_is_handed_over(ready: Place, exp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(exp / "model.pt"))

    with monkeypatch.context() as patch:
        patch.setattr("trainkit.runs.handover._gather", full)
        done = train(ready)
        assert done.code == 1
        assert "No space left on device" in done.err
    assert states(exp) == ["trained"]
    trained(ready)
    assert len(ready.calls("train")) == 1
    assert states(exp) == ["handed over"]


# stopped, in a process of its own


def wait_for(pattern: str, folder: Path) -> Path:
    for _ in range(400):
        if found := [*folder.glob(pattern)]:
            return found[0]
        time.sleep(0.025)
    raise AssertionError(f"{pattern} did not appear")


def test_a_stopped_training_is_gone_on_with(ready: Place, exp: Path, tell: Callable[..., None]) -> None:
    tell(stop_at=2, wait=True)
    process = start_program(ready.folder, ready.python, "update", "--train")
    try:
        wait_for("checkpoints/*/ready", exp)
        os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "note: SIGTERM: the trainer saves and stops; a second signal stops it at once\n" in err
    assert last_line(err).startswith("error: stopped; the log is ")
    assert "Traceback" not in err
    assert states(exp) == ["prepared"]
    assert not (exp / "model.pt").exists()
    tell()
    trained(ready)
    (record,) = records(exp)
    assert steps_trained(ready) == [(record["name"], None, None), (record["name"], 2, None)]
    assert source_of(exp / "model.pt") == record["name"]


def test_a_reader_that_has_gone(ready: Place, exp: Path) -> None:
    """`trainkit update | head -0`: no word on the disk, as it is not the disk's fault."""
    process = start_program(ready.folder, ready.python, "update")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "space on the disk" not in err


# by hand


def train_by_hand(place: Place, exp: Path, *, copied: bool = True) -> Path:
    """Train as the seed's run.sh does: llamafactory-cli, then cp -r; return the folder of the training."""
    config = exp / "llamafactory_data" / "train_config.yaml"
    program = str(place.python.parent / "llamafactory-cli")
    env = os.environ | {"FAKE_TRAINER": json.dumps({"by_hand": True})}
    script = '. "$1" && exec "$2" train "$3"'
    words = ["bash", "-euc", script, "bash", str(config.with_name("wandb_env.sh")), program, str(config)]
    done = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    folder = Path(yaml.safe_load(config.read_text())["output_dir"])
    if copied:
        shutil.rmtree(exp / "model.pt", ignore_errors=True)
        shutil.copytree(folder, exp / "model.pt")
    return folder


def test_rounds_by_hand(ready: Place, exp: Path) -> None:
    folders = []
    for number in range(3):
        add_iteration(exp, number)
        assert ready.trainkit("update").code == 0
        folders.append(train_by_hand(ready, exp))
    names = [folder.name for folder in folders]
    assert steps_trained(ready) == [(names[0], None, None), (names[1], 3, 9), (names[2], 9, 18)]
    add_iteration(exp, 3)
    trained(ready)
    assert steps_trained(ready)[3][1:] == (18, 30)


def test_a_round_by_hand_is_handed_over_without_training(ready: Place, exp: Path) -> None:
    assert ready.trainkit("update").code == 0
    folder = train_by_hand(ready, exp, copied=False)
    done = trained(ready)
    assert len(ready.calls("train")) == 1
    assert source_of(exp / "model.pt") == folder.name
    assert done.out == "model          WORK/exp/model.pt\n"


def test_a_round_by_hand_after_one_by_trainkit(ready: Place, exp: Path) -> None:
    trained(ready)
    add_iteration(exp, 1)
    assert ready.trainkit("update").code == 0
    train_by_hand(ready, exp)
    add_iteration(exp, 2)
    trained(ready)
    assert [step for _, step, _ in steps_trained(ready)] == [None, 3, 9]


def test_a_round_by_hand_copied_over_the_model_in_place(ready: Place, exp: Path) -> None:
    """`cp -r FOLDER/. model.pt/` leaves the word on the earlier hand-over there."""
    trained(ready)
    add_iteration(exp, 1)
    assert ready.trainkit("update").code == 0
    folder = train_by_hand(ready, exp, copied=False)
    shutil.copytree(folder, exp / "model.pt", dirs_exist_ok=True)
    add_iteration(exp, 2)
    trained(ready)
    assert [step for _, step, _ in steps_trained(ready)] == [None, 3, 9]


def test_a_checkpoint_of_the_old_script(ready: Place, exp: Path) -> None:
    """checkpoints/model_TIME/ holds the optimizer and trainer_state.json itself, and there is no record."""
    assert ready.trainkit("update").code == 0
    folder = train_by_hand(ready, exp)
    for file in (folder / "checkpoint-3").iterdir():
        file.replace(folder / file.name)
    for number in range(1, 4):
        shutil.rmtree(folder / f"checkpoint-{number}")
    old = folder.rename(folder.with_name("model_20250115_143022"))
    shutil.rmtree(exp / "updates")
    add_iteration(exp, 1)
    trained(ready)
    values = ready.calls("train")[1]["values"]
    assert (values["resume_from_checkpoint"], values["max_steps"]) == (str(old), 9)


# wrong input


def test_an_unreadable_iteration(ready: Place, exp: Path) -> None:
    for number in range(1, 4):
        add_iteration(exp, number)
    bad = exp / "train_trajectories" / "train_trajectories.iteration1.jsonl"
    bad.write_text("{")
    before = ready.tree()
    done = train(ready)
    assert (done.code, done.out) == (1, "")
    assert "WORK/exp/train_trajectories/train_trajectories.iteration1.jsonl:1: is not a trajectory" in done.err
    assert last_line(done.err).endswith("; --skip-bad-iterations goes on without it")
    assert set(ready.tree()) - set(before) <= {"exp/.trainkit.lock"}
    done = ready.trainkit("update", "--skip-bad-iterations", "--json")
    assert done.code == 0
    weights = {one["iteration"]: round(one["weight"], 3) for one in done.json["sampling"]["iterations"]}
    assert weights == {0: round(1 / 14, 3), 2: round(4 / 14, 3), 3: round(9 / 14, 3)}
    (warning,) = (note for note in done.json["notes"] if note["where"] == "--skip-bad-iterations")
    assert "train_trajectories.iteration1.jsonl" in warning["message"]


def test_two_updates_at_once(ready: Place, exp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    class Impatient(FileLock):
        def __init__(self, path: Path, timeout: float) -> None:
            super().__init__(path, timeout=0.1)

    with FileLock(exp / ".trainkit.lock"), monkeypatch.context() as patch:
        patch.setattr("filelock.FileLock", Impatient)
        done = train(ready)
        assert ready.trainkit("update", "--dry-run").code == 0
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "error: WORK/exp: another trainkit process is writing here\n    wait for it, or choose another folder\n"
    )
    assert ready.calls("train") == []


def test_a_damaged_record(ready: Place, exp: Path) -> None:
    trained(ready)
    name = records(exp)[0]["name"]
    (exp / "updates" / f"{name}.json").write_text("{}")
    model = snapshot(exp / "model.pt")
    done = train(ready)
    assert done.code == 1
    assert last_line(done.err) == "    remove it; the models stay as they are"
    assert snapshot(exp / "model.pt") == model
    (exp / "updates" / f"{name}.json").unlink()
    trained(ready)
    assert steps_trained(ready)[1][1] == 3


def test_rollouts_that_change_meanwhile(ready: Place, exp: Path) -> None:
    def change(words: str) -> None:
        if words == "writing the data":
            add_iteration(exp, 0, 1)

    with pytest.raises(InputError, match="changed while it was read"):
        update(None, [], UpdateOptions(), ready.folder, Told(stage=change))
    assert not (exp / "llamafactory_data" / "train_config.yaml").exists()
    assert leftovers(exp) == []


def test_a_disk_that_refuses(ready: Place, exp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "/disk")

    monkeypatch.setattr("trainkit.workflow.round.write_text_atomic", full)
    done = ready.trainkit("update")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "error: /disk: No space left on device\n    is there space on the disk, and may you write there?\n"
    )


# the trainer and the machine


def test_without_llamafactory_the_data_can_be_made(ready: Place, exp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise EnvironmentProblem("LLaMA-Factory is not installed", "pip install llamafactory")

    monkeypatch.setattr("trainkit.workflow.update.load_arguments", missing)
    done = ready.trainkit("update")
    assert done.code == 0
    assert "note: llamafactory: only the update's own keys can be set: LLaMA-Factory is not installed\n" in done.err
    assert train(ready).err == "error: LLaMA-Factory is not installed\n    pip install llamafactory\n"


def test_more_gpus_than_there_are(ready: Place, exp: Path) -> None:
    before = ready.tree()
    done = train(ready, "num_gpus=2")
    assert (done.code, done.out, ready.tree()) == (2, "", before)
    assert done.err == "error: num_gpus=2: there are 0 GPUs here\n    num_gpus=null takes all of them\n"
    # for another machine
    assert ready.trainkit("update", "num_gpus=2").code == 0
    values = yaml.safe_load((exp / "llamafactory_data" / "train_config.yaml").read_text())
    assert (values["bf16"], values.get("use_cpu")) == (True, None)
    assert records(exp)[0]["total_steps"] == 2


@pytest.mark.parametrize(
    ("num_gpus", "visible", "shown"),
    [
        (None, None, None),
        (2, None, "0,1"),
        (1, "5,3,2,4", "5"),
        (0, "5,3,2,4", ""),
        (4, "5,3,2,4", None),
        (3, "", "0,1,2"),
    ],
)
def test_only_as_many_gpus_as_asked_for(
    ready: Place, exp: Path, num_gpus: int | None, visible: str | None, shown: str | None
) -> None:
    found: list[PreparedRound] = []
    word = f"num_gpus={'null' if num_gpus is None else num_gpus}"
    update(None, [word], UpdateOptions(dry_run=True), ready.folder, Told(prepared=found.append))
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    trainer = Trainer(None, Hardware((GPU,) * 4, 4, 16.0), environ)
    assert training_environment(found[0], trainer) == ({} if shown is None else {"CUDA_VISIBLE_DEVICES": shown})


def test_short_answers_are_left_out_by_the_models_own_tokens(ready: Place, exp: Path) -> None:
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
    }  # fmt: skip
    ready.write("model/tokenizer.json", json.dumps(tokenizer))
    rollouts = [rollout("a"), rollout("b")]
    rollouts[1][1]["response"]["raw_response"] = "one two three four five six seven eight nine"
    rollouts[1][2]["response"]["raw_response"] = "one two three four five six seven eight nine ten"
    write_iteration(exp, 0, rollouts)
    words = ("algorithm_config.min_token_length=10", "algorithm_config.val_split_ratio=0")
    done = ready.trainkit("update", *words)
    assert done.code == 0
    assert "left out: 1 step: 1 short answer\n" in done.err
    assert places_of(exp) == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 2)]


def test_the_course_of_a_round(ready: Place, exp: Path) -> None:
    told: list[Any] = []
    result = update(
        None,
        [],
        UpdateOptions(train=True),
        ready.folder,
        Told(
            stage=told.append,
            prepared=lambda prepared: told.append(len(prepared.drawn.train)),
            started=lambda plan, run: told.append(plan.output_dir.name == run.path.name.partition("-model_")[2]),
            step=lambda step, begun: told.append((step.step, begun)),
        ),
    )
    assert [one for one in told if one is not False] == [
        "reading iteration 0", "writing the data", "reading iteration 0", len(places_of(exp)), "checking the training",
        (1, 0), (2, 0), (3, 0), "handing the model over",
    ]  # fmt: skip
    assert (result.outcome, result.place) == ("handed over", exp / "model.pt")
    assert result.trained is not None
    assert result.trained.metrics["train_loss"] == 0.51236


def test_rows_are_made_to_fit_as_the_trainer_counts_them(ready: Place, exp: Path) -> None:
    """A byte is a token in the form of the tests; a row of three turns loses the first, then the second."""
    whole = ready.trainkit("update", "--json").json["sampling"]
    assert (whole["shortened"], whole["too_long"]) == (0, 0)
    turns = [len(row["conversations"]) for side in ("train", "val") for row in rows_of(exp, side)]
    assert max(turns) == 6
    done = ready.trainkit("update", "algorithm_config.cutoff_len=500")
    assert f"note: {turns.count(6)} rows were longer than cutoff_len and lost their oldest turns\n" in done.err
    fitted = [row["conversations"] for row in rows_of(exp)]
    assert max(map(len, fitted)) == 4
    assert all(turn["value"].startswith("Task ") for row in fitted for turn in row if turn["from"] == "human")
    done = ready.trainkit("update", "algorithm_config.cutoff_len=20")
    assert (done.code, done.err.splitlines()[-2:]) == (
        1,
        [
            "error: WORK/exp/llamafactory_data: every row is longer than cutoff_len, its last turn alone",
            "    raise cutoff_len",
        ],
    )
