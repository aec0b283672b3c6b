"""`trainkit update`: its words, its reports, its errors."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from rollouts import UPDATE, add_iteration, data_files, places_of, quick, records, rollout, rows_of, write_iteration

from trainkit.launch.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Place

TABLE = """\
iteration  trajectories  unusable  steps  eligible  weight  drawn
        0            10         1     27        24  20.0 %     24
        1            10         1     27        24  80.0 %     24
sample         48 of 48 steps, weights (i+1)^2, seed 42
rows           45 to train on, 3 to validate on
starts from    WORK/model
"""
WORDS = """\
warning: trainkit update warmup_steps: 30 steps of warm-up, 12 in all: learning_rate is not reached
note: trainkit update bf16: switched off: there is no GPU here
note: this machine use_cpu: there is no GPU here: training on the CPU, slow for any real model
note: trainkit update preprocessing_num_workers: 16 is more than the 4 cores here: 4
left out: 2 trajectories: 2 fewer than 2 steps
left out: 6 steps: 6 not successful
note: 1800 were asked for, and there are 48: every step is wanted
"""


@pytest.fixture
def exp(ready: Place, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment with two iterations of rollouts."""
    quick(monkeypatch)
    ready.write("update.yaml", UPDATE)
    for number in range(2):
        rollouts = [rollout(f"i{number}t{index}") for index in range(8)]
        write_iteration(ready.path("exp"), number, [*rollouts, rollout("lost", reward=0), rollout("one", num_steps=1)])
    return ready.path("exp")


def test_a_round_is_prepared(ready: Place, exp: Path) -> None:
    done = ready.trainkit("update")
    assert done.code == 0
    assert done.out == f"{TABLE}written to     WORK/exp/llamafactory_data\n"
    assert done.err == (
        f"{WORDS}next: the same with --train, or yourself:\n"
        "    . WORK/exp/llamafactory_data/wandb_env.sh && "
        "llamafactory-cli train WORK/exp/llamafactory_data/train_config.yaml\n"
    )
    files = sorted(path.name for path in (exp / "llamafactory_data").iterdir())
    assert files == [
        "dataset_info.json", "finetune_train.jsonl", "finetune_val.jsonl", "sampling_plan.json", "train_config.yaml",
        "wandb_env.sh",
    ]  # fmt: skip
    assert ready.calls() == []
    values = yaml.safe_load((exp / "llamafactory_data" / "train_config.yaml").read_text())
    (record,) = records(exp)
    assert values == {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "mask_history": True,
        "overwrite_cache": True,
        "run_name": "exp",
        "seed": 42,
        "cutoff_len": 16384,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-06,
        "max_grad_norm": 1.0,
        "weight_decay": 0.01,
        "num_train_epochs": 1,
        "warmup_steps": 30,
        "lr_scheduler_type": "constant_with_warmup",
        "logging_steps": 1,
        "bf16": False,
        "do_eval": False,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 999999,
        "save_total_limit": 1,
        "save_only_model": False,
        "preprocessing_num_workers": 4,
        "dataloader_num_workers": 2,
        "dataloader_pin_memory": True,
        "remove_unused_columns": False,
        "plot_loss": False,
        "dataset": "finetune_train",
        "dataset_dir": str(exp / "llamafactory_data"),
        "model_name_or_path": str(ready.path("model")),
        "output_dir": str(exp / "checkpoints" / record["name"]),
        "template": "qwen",
        "disable_gradient_checkpointing": True,
        "report_to": "none",
        "use_cpu": True,
    }
    assert record["state"] == "prepared"


def test_the_plan_of_the_sample_is_saved(ready: Place, exp: Path) -> None:
    done = ready.trainkit("update", "algorithm_config.positive_samples_to_train=10", "--json")
    saved = json.loads((exp / "llamafactory_data" / "sampling_plan.json").read_text())
    tally = {
        "trajectories": 10, "unusable": {"fewer than 2 steps": 1}, "steps": 27, "usable": 24,
        "left_out": {"not successful": 3}, "changes": {},
    }  # fmt: skip
    val = len(places_of(exp, "val")) if (exp / "llamafactory_data" / "finetune_val.jsonl").exists() else 0
    assert saved == {
        "wanted": 10,
        "taken": 10,
        "power": 2,
        "seed": 42,
        "cap_per_task": None,
        "iterations": [
            {"iteration": 0, "weight": 0.2, "count": 24, "quota": 2, "taken": 2, "shortage": 0},
            {"iteration": 1, "weight": 0.8, "count": 24, "quota": 8, "taken": 8, "shortage": 0},
        ],
        "train_rows": 10 - val,
        "val_rows": val,
        "shortened": 0,
        "too_long": 0,
        "left_out": {"trajectories": {"fewer than 2 steps": 2}, "steps": {"not successful": 6}},
        "rollouts": [{"iteration": 0, **tally}, {"iteration": 1, **tally}],
    }
    assert done.json["sampling"] == saved
    drawn = [place[0] for place in (*places_of(exp), *(places_of(exp, "val") if val else []))]
    assert (drawn.count(0), drawn.count(1)) == (2, 8)


def test_the_report_for_machines(ready: Place, exp: Path) -> None:
    done = ready.trainkit("update", "--json")
    assert (done.code, done.err) == (0, "")
    report = done.json
    assert {key: report[key] for key in report if key not in ("sampling", "config", "notes")} == {
        "ok": True,
        "outcome": "prepared",
        "round": "ROUND",
        "model": "WORK/exp/model.pt",
        "previous": None,
        "removed": [],
        "start": None,
        "start_step": 0,
        "total_steps": 12,
        "run": None,
        "metrics": None,
    }
    assert report["config"]["output_dir"] == "WORK/exp/checkpoints/ROUND"
    assert [(note["level"], note["where"]) for note in report["notes"]] == [
        ("warning", "trainkit update warmup_steps"),
        ("note", "trainkit update bf16"),
        ("note", "this machine use_cpu"),
        ("note", "trainkit update preprocessing_num_workers"),
    ]


def test_the_same_seed_gives_the_same_files(ready: Place, exp: Path) -> None:
    few = "algorithm_config.positive_samples_to_train=20"
    found = []
    for seed in (1, 1, 2):
        assert ready.trainkit("update", f"seed={seed}", few).code == 0
        found.append(data_files(exp))
    assert found[0] == found[1]
    assert found[0]["finetune_train.jsonl"] != found[2]["finetune_train.jsonl"]
    add_iteration(exp, 9)
    assert ready.trainkit("update", "seed=1", few).code == 0
    assert data_files(exp) != found[0]


@pytest.mark.parametrize("words", [[], ["--train"], ["--train", "--again"]])
def test_a_dry_run_writes_nothing(ready: Place, exp: Path, words: list[str]) -> None:
    before = ready.tree()
    done = ready.trainkit("update", "--dry-run", *words)
    assert (done.code, ready.tree()) == (0, before)
    assert (done.out, done.err) == (TABLE, WORDS)
    assert ready.trainkit("update", "--dry-run", "--json", *words).json["outcome"] == "prepared"
    assert ready.tree() == before


def test_a_dry_run_of_a_later_round_writes_nothing(ready: Place, exp: Path) -> None:
    assert ready.trainkit("update", "--train").code == 0
    add_iteration(exp, 5)
    before = ready.tree()
    for words in ([], ["--train"], ["--json"]):
        done = ready.trainkit("update", "--dry-run", "algorithm_config.learning_rate=3e-6", *words)
        assert (done.code, ready.tree()) == (0, before)
        assert "WORK/exp/checkpoints/ROUND/checkpoint-3" in done.out


def test_a_dry_run_after_a_round_shows_the_next_one(ready: Place, exp: Path) -> None:
    assert ready.trainkit("update", "--train").code == 0
    before = ready.tree()
    assert ready.trainkit("update", "--train", "--dry-run").code == 0
    assert ready.tree() == before


def test_a_round_is_trained(ready: Place, exp: Path) -> None:
    done = ready.trainkit("update", "--train")
    assert done.code == 0
    assert done.out == f"{TABLE}model          WORK/exp/model.pt\n"
    assert done.err == f"{WORDS}training ROUND; the log is WORK/exp/logs/DATE-ROUND/train.log\n"
    done = ready.trainkit("update", "--train", "--again", "keep_rounds=1")
    start = TABLE.replace("WORK/model", "WORK/exp/checkpoints/ROUND/checkpoint-3")
    assert done.out == (f"{start}model          WORK/exp/model.pt\nthe one before WORK/exp/model.pt.previous\n")
    assert done.err.splitlines()[-2:] == [
        "training ROUND; the log is WORK/exp/logs/DATE-ROUND/train.log",
        "removed, as keep_rounds says: WORK/exp/checkpoints/ROUND",
    ]


def test_a_trained_round_for_machines(ready: Place, exp: Path) -> None:
    assert ready.trainkit("update", "--train", "keep_rounds=1").code == 0
    add_iteration(exp, 2)
    done = ready.trainkit("update", "--train", "keep_rounds=1", "--json")
    assert (done.code, done.err) == (0, "")
    assert {key: done.json[key] for key in done.json if key not in ("sampling", "config", "notes")} == {
        "ok": True,
        "outcome": "handed over",
        "round": "ROUND",
        "model": "WORK/exp/model.pt",
        "previous": "WORK/exp/model.pt.previous",
        "removed": ["WORK/exp/checkpoints/ROUND"],
        "start": "WORK/exp/checkpoints/ROUND/checkpoint-3",
        "start_step": 3,
        "total_steps": done.json["config"]["max_steps"],
        "run": "WORK/exp/logs/DATE-ROUND",
        "metrics": {"train_loss": 0.51236, "eval_loss": 0.75, "epoch": 3.0},
    }
    again = ready.trainkit("update", "--train", "keep_rounds=1", "--json").json
    assert (again["outcome"], again["config"], again["run"], again["notes"]) == ("nothing to do", None, None, [])
    assert (again["start_step"], again["sampling"]["taken"]) == (3, 60)


WANDB = {
    "WANDB_PROJECT": 'it\'s; touch "gone" $(touch gone) `touch gone` \\ ä',
    "WANDB_ENTITY": "a team",
    "WANDB_RUN_NAME": "web&agent",
}


def test_the_file_for_wandb_is_quoted_and_holds_no_key(
    ready: Place, exp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_KEY", "hush-key")
    log = {
        "project_name": WANDB["WANDB_PROJECT"], "entity_name": WANDB["WANDB_ENTITY"],
        "run_name": WANDB["WANDB_RUN_NAME"], "wandb_key_env_var": "TEAM_KEY",
    }  # fmt: skip
    ready.write(
        "update.yaml", UPDATE.replace("report_to: none", "report_to: wandb") + yaml.safe_dump({"log_config": log})
    )
    assert ready.trainkit("update").code == 0
    file = exp / "llamafactory_data" / "wandb_env.sh"
    assert "hush" not in file.read_text()
    script = f". '{file}'; python3 -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    for environ, key in (({"TEAM_KEY": "hush-key"}, "hush-key"), ({}, None), ({"WANDB_API_KEY": "mine"}, "mine")):
        env = {"PATH": os.environ["PATH"], **environ}
        done = subprocess.run(["bash", "-euc", script], env=env, capture_output=True, text=True, check=True)
        shown = json.loads(done.stdout)
        assert {name: value for name, value in shown.items() if name.startswith("WANDB_")} == {
            **WANDB,
            "WANDB_NAME": WANDB["WANDB_RUN_NAME"],
            "WANDB_RESUME": "allow",
            "WANDB_RUN_ID": records(exp)[0]["wandb_run_id"],
            **({"WANDB_API_KEY": key} if key else {}),
        }
    assert not list(ready.folder.rglob("gone"))
    assert [name for name, content in ready.tree().items() if b"hush" in content] == []


def test_without_wandb_the_file_says_so(ready: Place, exp: Path) -> None:
    assert ready.trainkit("update").code == 0
    text = (exp / "llamafactory_data" / "wandb_env.sh").read_text()
    assert text == "# Written by trainkit. This update does not report to W&B.\n"


def test_paths_with_a_space_are_quoted_in_what_comes_next(ready: Place) -> None:
    ready.write("update.yaml", UPDATE.replace("save_path: exp", "save_path: it's mine"))
    add_iteration(ready.path("it's mine"), 0)
    done = ready.trainkit("update")
    command = done.err.splitlines()[-1].strip().replace("WORK", str(ready.folder)).partition(" && ")[0]
    subprocess.run(["bash", "-euc", command], check=True)


def test_evaluation_has_the_validation_rows(ready: Place, exp: Path) -> None:
    words = ("do_eval=true", "eval_steps=0.5", "save_steps=0.25", "eval_strategy=steps", "val_split_ratio=0.3")
    assert ready.trainkit("update", *(f"algorithm_config.{word}" for word in words)).code == 0
    values = yaml.safe_load((exp / "llamafactory_data" / "train_config.yaml").read_text())
    per_epoch = -(-len(rows_of(exp)) // 4)
    assert (values["eval_dataset"], values["eval_steps"], values["save_steps"]) == (
        "finetune_val", round(per_epoch / 2), round(per_epoch / 4),
    )  # fmt: skip


def test_another_file_and_keys_of_the_trainer(ready: Place, exp: Path) -> None:
    ready.path("update.yaml").rename(ready.path("mine.yaml"))
    done = ready.trainkit("update", "-c", "mine.yaml", "+algorithm_config.neftune_noise_alpha=5", "seed=3")
    assert done.code == 0
    values = yaml.safe_load((exp / "llamafactory_data" / "train_config.yaml").read_text())
    assert (values["neftune_noise_alpha"], values["seed"]) == (5, 3)


def nothing(place: Place) -> None:
    """Leave everything as it is."""


def no_rollouts(place: Place) -> None:
    for path in place.path("exp/train_trajectories").iterdir():
        path.unlink()


def nothing_eligible(place: Place) -> None:
    no_rollouts(place)
    write_iteration(place.path("exp"), 0, [rollout("a", reward=0), rollout("b", num_steps=1)])


def unknown_model(place: Place) -> None:
    place.write("model/config.json", '{"model_type": "unheard_of"}')


def bad_registry(place: Place) -> None:
    place.write("exp/llamafactory_data/dataset_info.json", "[]")


ERRORS: dict[str, tuple[Callable[[Place], None], list[str], int, str]] = {
    "no file": (
        nothing, ["-c", "nowhere.yaml"], 1,
        "error: WORK/nowhere.yaml: no such file\n    trainkit init --update writes one to start from\n",
    ),
    "a typo": (
        nothing, ["algorithm_config.learning_rat=1e-6", "sed=3"], 1,
        "error: command line algorithm_config.learning_rat: there is no such key\n"
        "    did you mean algorithm_config.learning_rate?\n"
        "error: command line sed: there is no such key\n    did you mean seed?\n"
        "error: WORK/update.yaml: the update cannot start\n",
    ),
    "no value": (
        nothing, ["seed"], 2,
        "error: 'seed' is not of the form key=value\n    for example learning_rate=2e-4\n",
    ),
    "no folder": (
        nothing, ["save_path=nowhere"], 1,
        "error: WORK/nowhere/train_trajectories: no such folder\n    name the folder that holds train_trajectories/\n",
    ),
    "no iterations": (
        no_rollouts, [], 1,
        "error: WORK/exp/train_trajectories: holds no iteration\n"
        "    a file is called train_trajectories.pt.iteration0 or .iteration0.jsonl\n",
    ),
    "nothing eligible": (
        nothing_eligible, [], 1,
        "error: WORK/exp: no step of the last iterations can be trained on; left out: "
        "1 trajectory: 1 fewer than 2 steps; 3 steps: 3 not successful\n"
        "    nothing was written\n",
    ),
    "no model is named": (
        nothing, ["model_path=null"], 1,
        "error: command line model_path: no model is named, and there is no WORK/exp/model.pt\n"
        "    add model_path=FOLDER\nerror: WORK/update.yaml: the update cannot start\n",
    ),
    "no model": (
        nothing, ["model_path=./nowhere"], 1,
        "error: model_path: WORK/nowhere: holds no model (config.json)\n    name the folder of a model\n",
    ),
    "an unknown model": (
        unknown_model, [], 1,
        "error: WORK/model: does not tell its chat template\n"
        "    name it: algorithm_config.template=qwen3_vl, for example\n",
    ),
    "a hub's model": (
        nothing, ["model_path=org/name"], 1,
        "error: org/name: does not tell its chat template\n"
        "    name it: algorithm_config.template=qwen3_vl, for example\n",
    ),
    "a hub's model has no tokenizer here": (
        nothing, ["model_path=org/name", "algorithm_config.min_token_length=3"], 1,
        "error: algorithm_config.min_token_length: org/name/tokenizer.json is needed to count tokens, and it is not "
        "there\n    algorithm_config.min_token_length=0 keeps answers of every length\n",
    ),
    "a checkpoint that is not there": (
        nothing, ["--resume", "nowhere"], 1,
        "error: resume_from_checkpoint: WORK/nowhere: no such folder\n    name a checkpoint-N folder\n",
    ),
    "another tracker": (
        nothing, ["--monitor", "paper"], 2, "error: --monitor paper: must be swanlab, wandb or none\n",
    ),
    "a registry that is none": (
        bad_registry, [], 1,
        "error: WORK/exp/llamafactory_data/dataset_info.json: is not a JSON object\n"
        "    each data set is an entry in it, by name\n",
    ),
    "watch without train": (
        nothing, ["--watch"], 2, "error: --watch: goes with --train, and not with --dry-run or --json\n",
    ),
    "watch and a dry run": (
        nothing, ["--watch", "--train", "--dry-run"], 2,
        "error: --watch: goes with --train, and not with --dry-run or --json\n",
    ),
    "watch for none": (
        nothing, ["--watch", "--train", "--every", "0"], 2, "error: --every and --poll: must be above 0\n",
    ),
    "watch all the time": (
        nothing, ["--watch", "--train", "--poll", "0"], 2, "error: --every and --poll: must be above 0\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_wrong_is_said(ready: Place, exp: Path, case: str) -> None:
    break_it, words, code, said = ERRORS[case]
    break_it(ready)
    before = ready.tree()
    done = ready.trainkit("update", *words)
    assert (done.code, done.out) == (code, "")
    errors = done.err[done.err.index("error: ") :]
    assert errors == said
    new = set(ready.tree()) - set(before)
    assert {name for name in new if "." not in name.rpartition("/")[2]} <= {"exp/llamafactory_data"}
    assert not ready.path("exp/llamafactory_data/train_config.yaml").exists()


def test_a_watch(ready: Place, exp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = iter([False, False, True])
    monkeypatch.setattr(Stop, "wait", lambda *_: next(waits))
    done = ready.trainkit("update", "--watch", "--train", "--poll", "9")
    assert done.code == 0
    assert done.out == f"{TABLE}model          WORK/exp/model.pt\n"
    assert done.err == (
        f"{WORDS}training ROUND; the log is WORK/exp/logs/DATE-ROUND/train.log\nstopped; nothing was under way\n"
    )


def test_watch_and_json(ready: Place, exp: Path) -> None:
    done = ready.trainkit("update", "--watch", "--train", "--json")
    assert done.code == 2
    assert done.json["error"] == "--watch: goes with --train, and not with --dry-run or --json"


def test_what_is_wrong_for_machines(ready: Place, exp: Path) -> None:
    done = ready.trainkit("update", "--json", "sed=3")
    report: dict[str, Any] = done.json
    assert (done.code, report["ok"], [problem["where"] for problem in report["problems"]]) == (
        1, False, ["command line sed"],
    )  # fmt: skip


def test_no_tokenizer(ready: Place, exp: Path) -> None:
    ready.path("model/tokenizer.json").unlink()
    done = ready.trainkit("update", "algorithm_config.min_token_length=10")
    assert (done.code, done.err) == (
        1,
        "error: algorithm_config.min_token_length: WORK/model/tokenizer.json is needed to count tokens, and it is not "
        "there\n    algorithm_config.min_token_length=0 keeps answers of every length\n",
    )


def test_a_strict_training_does_not_start_with_a_warning(ready: Place, exp: Path) -> None:
    """30 steps of warm-up of 12 in all are one."""
    assert ready.trainkit("update", "--train", "--strict").code == 1
    assert ready.calls("train") == []
    assert ready.trainkit("update", "--train", "--strict", "algorithm_config.warmup_steps=0").code == 0


@pytest.mark.parametrize(("word", "report_to"), [("none", "none"), ("wandb", ["wandb"])])
def test_another_tracker_than_the_configured_one(ready: Place, exp: Path, word: str, report_to: Any) -> None:
    assert ready.trainkit("update", "--train", "--monitor", word).code == 0
    assert ready.calls("train")[0]["values"]["report_to"] == report_to
