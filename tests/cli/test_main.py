from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from trainkit import __version__
from trainkit.cli import main
from trainkit.datatypes import Problem
from trainkit.errors import ConfigError, Interrupted, ProblemsFound, TrainerFailed, TrainkitError, UsageProblem

if TYPE_CHECKING:
    from tests.conftest import Place

COMMANDS = (
    "init",
    "convert",
    "validate",
    "suggest",
    "train",
    "export",
    "chat",
    "serve",
    "update",
    "doctor",
    "pipeline",
)


def test_the_version(place: Place) -> None:
    done = place.trainkit("--version")
    assert (done.code, done.out, done.err) == (0, f"trainkit {__version__}\n", "")


def test_help_shows_the_commands_in_the_order_of_use(place: Place) -> None:
    done = place.trainkit("--help")
    positions = [done.out.index(f" {name} ") for name in COMMANDS]
    assert (done.code, done.err, positions) == (0, "", sorted(positions))
    assert place.trainkit("-h").out == done.out
    alone = place.trainkit()
    assert alone.code == 2
    assert (alone.out.strip(), alone.err) == (done.out.strip(), "")


WRONG: list[tuple[list[str], str]] = [
    (["trian"], "No such command 'trian'"),
    (["train", "--epoch-count", "3"], "No such option: --epoch-count"),
    (["train", "-e", "many"], "Invalid value for '--epochs'"),
    (["train", "-bs", "1.5"], "Invalid value for '--batch-size'"),
    (["export", "--size", "big"], "Invalid value for '--size'"),
    (["validate", "-c"], "requires an argument"),
    (["chat", "a", "b"], "Got unexpected extra argument"),
]


@pytest.mark.parametrize(("words", "told"), WRONG)
def test_wrong_usage(place: Place, words: list[str], told: str) -> None:
    done = place.trainkit(*words)
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert "Traceback" not in done.err


PROBLEMS = (
    Problem("x.yaml:3 lora_rnk", "no such key", "did you mean lora_rank?"),
    Problem("", "a word without a place", level="warning"),
    Problem("dataset", "is old", level="warning"),
)
ERRORS: list[tuple[TrainkitError, int, str, list[dict[str, str]]]] = [
    (TrainkitError("it is bad", "make it good"), 1, "error: it is bad\n    make it good\n", []),
    (ConfigError("no hint"), 1, "error: no hint\n", []),
    (UsageProblem("wrong word", "right word"), 2, "error: wrong word\n    right word\n", []),
    (TrainerFailed("training failed", 77, "look"), 77, "error: training failed\n    look\n", []),
    (Interrupted("stopped", 2), 130, "error: stopped\n", []),
    (Interrupted("stopped", 15), 143, "error: stopped\n", []),
    (
        ProblemsFound("1 problem found", PROBLEMS), 1,
        "error: x.yaml:3 lora_rnk: no such key\n    did you mean lora_rank?\na word without a place\n"
        "warning: dataset: is old\nerror: 1 problem found\n",
        [
            {"level": "error", "where": "x.yaml:3 lora_rnk", "message": "no such key",
             "hint": "did you mean lora_rank?"},
            {"level": "warning", "where": "", "message": "a word without a place", "hint": ""},
            {"level": "warning", "where": "dataset", "message": "is old", "hint": ""},
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("error", "code", "text", "problems"), ERRORS)
def test_an_error_is_told_on_stderr_or_as_json_on_stdout(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    error: TrainkitError,
    code: int,
    text: str,
    problems: list[dict[str, str]],
) -> None:
    def raise_it(*_: Any) -> None:
        raise error

    monkeypatch.setattr("trainkit.workflow.validate.prepare", raise_it)
    done = place.trainkit("validate")
    assert (done.code, done.out, done.err) == (code, "", text)
    done = place.trainkit("validate", "--json")
    assert (done.code, done.err) == (code, "")
    assert done.json == {"ok": False, "error": error.message, "hint": error.hint, "problems": problems}


def test_a_bug_keeps_its_traceback(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainkit.workflow.validate.prepare", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        place.trainkit("validate")


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_in_trainkit_itself(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainkit.workflow.validate.prepare", interrupt)
    done = place.trainkit("validate")
    assert (done.code, done.out) == (130, "")
    assert "Traceback" not in done.err
    monkeypatch.setattr("trainkit.cli.app.app", interrupt)
    done = place.trainkit("validate")
    assert (done.code, done.out, done.err) == (130, "", "interrupted\n")


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (5, 5), ("words", 1)])
def test_an_end_of_the_application_is_an_exit_code(
    place: Place, monkeypatch: pytest.MonkeyPatch, code: Any, expected: int
) -> None:
    def end(**_: Any) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("trainkit.cli.app.app", end)
    assert main(["validate"]) == expected
    monkeypatch.setattr("trainkit.cli.app.app", lambda **_: None)
    assert main(["validate"]) == 0


def test_the_words_of_the_process_are_the_default(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["trainkit", "--version"])
    assert main() == 0


def test_a_reader_that_went_away_is_no_traceback(ready: Place) -> None:
    for words in (["validate"], ["--help"], ["train", "--dry-run"]):
        read, write = os.pipe()
        os.close(read)
        process = ready.start(*words, stdout=write)
        os.close(write)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 1, words
        assert "Traceback" not in err
        assert "BrokenPipe" not in err


# shell completion


@pytest.mark.parametrize(("shell", "sign"), [("bash", "complete -o default -F"), ("zsh", "#compdef trainkit"),
                                             ("fish", "complete --command trainkit")])  # fmt: skip
def test_completion_can_be_installed(place: Place, shell: str, sign: str) -> None:
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    process = place.start("--show-completion", shell, env=environment)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert sign in out
    assert "_TRAINKIT_COMPLETE=complete_" in out


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        ("trainkit ", list(COMMANDS)),
        ("trainkit tr", ["train"]),
        ("trainkit train --re", ["--resume"]),
        ("trainkit export --de", ["--device"]),
    ],
)
def test_completion_knows_commands_and_options(place: Place, words: str, answers: list[str]) -> None:
    number = str(len(words.split(" ")) - 1)
    asked = {"_TRAINKIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": number}
    process = place.start(env=os.environ | asked, stderr=subprocess.STDOUT)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out.split()) == (0, answers)
