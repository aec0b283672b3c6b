from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from rollouts import rollout, write_iteration

from trainkit.cli import reference
from trainkit.cli.app import app
from trainkit.cli.options import parse_share, parse_where, split_words
from trainkit.cli.training import make_settings
from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from tests.conftest import Place

GROUP: Any = typer.main.get_command(app)
COMMANDS = dict(GROUP.commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_and_every_option(place: Place, name: str) -> None:
    done = place.trainkit(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert "Example: trainkit " + name in " ".join(done.out.split())
    for param in COMMANDS[name].params:
        if param.param_type_name == "option":
            assert max(param.opts, key=len) in done.out
            assert param.help


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_in_the_help_works(trained: Place, name: str) -> None:
    example = inspect.getdoc(COMMANDS[name].callback).partition("Example: ")[2].splitlines()[0]
    trained.write("prompt.txt", "Judge this.")
    turns = '[{"from": "human", "value": "Judge."}, {"from": "gpt", "value": "{}"}]'
    row = f'{{"conversations": {turns}, "metadata": {{"evaluation_type": "clip", "task_id": "a"}}}}\n'
    trained.write("finetune.jsonl", row * 3)
    trained.write("update.yaml", "algorithm_config: {min_token_length: 0, report_to: none}\nmodel_path: ./model\n")
    write_iteration(trained.path("exp1"), 0, [rollout(f"shop_{number}") for number in range(9)])
    words = shlex.split(example.replace("$(cat prompt.txt)", "Judge this.").replace("/data/exp1", "exp1"))
    assert words[:2] == ["trainkit", name]
    if name in ("train", "pipeline"):
        words += ["--resume", "never"]
    done = trained.trainkit(*words[1:])
    assert done.code == 0, done.err


def test_the_seeds_words_are_all_there(ready: Place) -> None:
    words = ["--dataset", "reward_model_clip", "--epochs", "5", "--learning-rate", "2e-4", "--batch-size", "4"]
    ready.write("conf.yaml", ready.path("training_config.yaml").read_text())
    report = ready.trainkit("train", "--config", "conf.yaml", "--dry-run", "--json", *words).json
    wanted = {
        "dataset": ("reward_model_clip", "--dataset"),
        "num_train_epochs": (5.0, "--epochs"),
        "learning_rate": (2e-4, "--learning-rate"),
        "per_device_train_batch_size": (4, "--batch-size"),
    }
    assert {key: (report["config"][key], report["origin"][key]) for key in wanted} == wanted


def test_words_win_over_options(ready: Place) -> None:
    report = ready.trainkit("validate", "--json", "-e", "5", "num_train_epochs=7").json
    assert (report["config"]["num_train_epochs"], report["origin"]["num_train_epochs"]) == (7, "command line")


def test_settings_are_what_was_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = make_settings(Path("x.yaml"), ["a=1"], dataset="d", epochs=2.0, force_template=True)
    assert (settings.config_file, settings.overrides, settings.base) == (Path("x.yaml"), ("a=1",), tmp_path)
    assert settings.force_template is True
    assert settings.options == {
        "dataset": ("--dataset", "d"),
        "num_train_epochs": ("--epochs", 2.0),
        "learning_rate": ("--learning-rate", None),
        "per_device_train_batch_size": ("--batch-size", None),
    }


def test_words_are_split_at_commas() -> None:
    assert split_words(["clip, final", "", "category,"]) == {"clip", "final", "category"}


def test_where_takes_keys_and_values() -> None:
    assert parse_where(["a=1", " a = 2", "b=x=y", "c="]) == {
        "a": frozenset({"1", "2"}), "b": frozenset({"x=y"}), "c": frozenset({""}),
    }  # fmt: skip


@pytest.mark.parametrize("word", ["a", "=1", ""])
def test_where_refuses_other_words(word: str) -> None:
    with pytest.raises(UsageProblem, match="must be key=value"):
        parse_where([word])


@pytest.mark.parametrize(("words", "share"), [("1%", 0.01), ("0.5", 0.5), ("100%", 1.0), ("0", 0.0)])
def test_a_share(words: str, share: float) -> None:
    assert parse_share(words, "--max-rejects") == share


@pytest.mark.parametrize("words", ["", "%", "many", "1%%"])
def test_no_share(words: str) -> None:
    with pytest.raises(UsageProblem, match=r"--max-rejects .*: must be a share such as 1% or 0\.01"):
        parse_share(words, "--max-rejects")


def test_the_reference_describes_every_command() -> None:
    text = reference.insert(f"before\n{reference.BEGIN}\nsomething stale\n{reference.END}\nafter\n")
    assert text.startswith(f"before\n{reference.BEGIN}\n\n### trainkit init\n")
    assert text.endswith(f"{reference.END}\nafter\n")
    assert "stale" not in text
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("### ")] == list(COMMANDS)
    assert reference.insert(text) == text
