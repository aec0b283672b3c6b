from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from rollouts import UPDATE, add_iteration, records

from trainkit.datatypes import Gpu, Hardware, Outcome, TrainConfig
from trainkit.errors import ConfigError, Interrupted
from trainkit.plan.update import load_update
from trainkit.runs.rounds import load_rounds, write_round
from trainkit.sources.trajectories import find_iterations
from trainkit.workflow.round import (
    digest_of,
    draft_round,
    inputs_of,
    model_of,
    template_of,
)
from trainkit.workflow.round_resume import resuming, rewrite_rates

if TYPE_CHECKING:
    from tests.conftest import Place
    from trainkit.plan.update import UpdateConfig
    from trainkit.runs.rounds import Round


@pytest.fixture
def exp(ready: Place) -> Path:
    ready.write("update.yaml", UPDATE)
    add_iteration(ready.path("exp"), 3)
    return ready.path("exp")


def configured(place: Place, *words: str) -> UpdateConfig:
    return load_update(place.path("update.yaml"), words, base=place.folder)


def drafted(place: Place, *words: str, resume: str | None = None) -> Round:
    """Draft a round and write its record down."""
    config = configured(place, *words)
    files = tuple(find_iterations(config.save_path, 4))
    record, _ = draft_round(config, files, load_rounds(config.save_path), resume, place.folder)
    write_round(config.save_path, record)
    return record


def test_a_round_that_was_not_trained_keeps_its_name(ready: Place, exp: Path) -> None:
    first = drafted(ready)
    assert drafted(ready) == first
    assert datetime.strptime(first.name[:21], "model_%Y%m%d_%H%M%S").astimezone() <= datetime.now().astimezone()
    assert (first.newest_iteration, list(first.inputs)) == (3, ["train_trajectories.iteration3.jsonl"])
    other = drafted(ready, "seed=5")
    assert other.name != first.name
    add_iteration(exp, 4)
    assert drafted(ready, "seed=5").name not in (first.name, other.name)


def test_what_makes_another_round(ready: Place, exp: Path) -> None:
    before = digest_of(configured(ready))
    assert digest_of(configured(ready, "seed=42")) == before
    ready.write("update.yaml", f"# where keys stand is of no matter\n\n{UPDATE}")
    assert digest_of(configured(ready)) == before
    others = ["seed=43", "last_n_iterations=2", "algorithm_config.learning_rate=2e-6", "algorithm_config.cutoff_len=99"]
    assert len({before, *(digest_of(configured(ready, word)) for word in others)}) == 5
    files = tuple(find_iterations(exp, 4))
    inputs = inputs_of(files)
    add_iteration(exp, 3)  # the same bytes at another time
    assert inputs_of(files) != inputs


@pytest.mark.parametrize(
    ("run_name", "start"),
    [("shop agent's", "shop-agent-s-"), ("名 a/b", "-a-b-"), ("x" * 200, f"{'x' * 106}-"), (None, "exp-")],
)
def test_the_run_at_wandb_has_a_name_that_it_takes(ready: Place, exp: Path, run_name: str | None, start: str) -> None:
    ready.write("update.yaml", UPDATE + yaml.safe_dump({"log_config": {"run_name": run_name}}))
    record = drafted(ready)
    assert record.wandb_run_id == f"{start}{record.name}"
    assert len(record.wandb_run_id) <= 128
    assert record.wandb_run_id.isascii()


def test_the_model_of_a_round(ready: Place, exp: Path) -> None:
    config = configured(ready)
    assert model_of(config) == str(ready.path("model"))
    assert model_of(configured(ready, "model_path=org/name")) == "org/name"
    with pytest.raises(ConfigError, match=r"model\.pt: there is no model"):
        model_of(dataclasses.replace(config, model=None))
    (exp / "model.pt").mkdir()
    assert model_of(config) == str(exp / "model.pt")
    assert model_of(dataclasses.replace(config, model=None)) == str(exp / "model.pt")


@pytest.mark.parametrize(
    ("model_type", "template"), [("qwen2", "qwen"), ("qwen3_vl", "qwen3_vl"), ("qwen2_5_vl", "qwen2_vl")]
)
def test_the_chat_template_is_that_of_the_model(ready: Place, exp: Path, model_type: str, template: str) -> None:
    ready.write("model/config.json", json.dumps({"model_type": model_type}))
    assert template_of(str(ready.path("model"))) == template


def test_a_named_template_wins(ready: Place, exp: Path) -> None:
    ready.write("model/config.json", '{"model_type": "unheard_of"}')
    assert ready.trainkit("update", "algorithm_config.template=llama3").code == 0
    values = yaml.safe_load((exp / "llamafactory_data" / "train_config.yaml").read_text())
    assert values["template"] == "llama3"


def test_a_configuration_that_goes_on() -> None:
    config = TrainConfig({"seed": 1}, {"seed": "update.yaml:3"}, ())
    assert resuming(config, None) is config
    changed = resuming(config, Path("/c/checkpoint-3"))
    assert changed.values == {"seed": 1, "resume_from_checkpoint": "/c/checkpoint-3"}
    assert changed.origin == {"seed": "update.yaml:3", "resume_from_checkpoint": "trainkit update"}


def test_a_machine_with_gpus(ready: Place, exp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are used; their number decides on the steps."""
    hardware = Hardware((Gpu("NVIDIA H100", 80.0, (9, 0)),) * 2, 64, 512.0)
    monkeypatch.setattr("trainkit.workflow.update.find_hardware", lambda _: hardware)
    steps = []
    for words in ((), ("num_gpus=1",), ("num_gpus=0",)):
        words = (*words, "algorithm_config.val_split_ratio=0")
        assert ready.trainkit("update", *words).code == 0
        values = yaml.safe_load((exp / "llamafactory_data" / "train_config.yaml").read_text())
        assert (values["bf16"], values["preprocessing_num_workers"]) == (True, 16)
        steps.append(records(exp)[-1]["total_steps"])
    assert steps == [2, 3, 3]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((1, "", "Traceback\n  line\nImportError: torch\n"), "Traceback\n      line\n    ImportError: torch"),
        ((0, "no report\n", ""), ""),
        ((1, '{"ok": false, "error": "two rates"}\n', "noise"), "two rates"),
        ((0, '{"ok": false, "error": "two rates"}\n', "noise"), "two rates"),
        ((1, '{"ok": true}\n', "killed\n"), "killed"),
    ],
)
def test_why_a_learning_rate_could_not_be_changed(
    ready: Place, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str, str], said: str
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "trainkit.workflow.round_resume.capture", lambda *words, **more: asked.append(more["stdin"]) or answer
    )
    with pytest.raises(ConfigError) as caught:
        rewrite_rates(ready.folder, ["scheduler.pt"], 2e-6)
    assert caught.value.message == f"{ready.folder}: the learning rate could not be changed: {said}"
    (request,) = asked
    assert json.loads(request) == {"folder": str(ready.folder), "files": ["scheduler.pt"], "learning_rate": 2e-6}


def test_a_stop_while_the_learning_rate_is_changed(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainkit.launch.process._supervise", lambda *_: Outcome(143, 0.1, 15))
    with pytest.raises(Interrupted) as caught:
        rewrite_rates(ready.folder, ["scheduler.pt"], 2e-6)
    assert caught.value.exit_code == 143


def test_a_named_checkpoint_must_be_whole(ready: Place, exp: Path) -> None:
    (exp / "half" / "checkpoint-7").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=r"half/checkpoint-7: cannot be resumed from: no readable trainer_state\.json"
    ):
        drafted(ready, resume="exp/half/checkpoint-7")
    assert records(exp) == []
