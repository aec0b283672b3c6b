from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.cli import main
from trainkit.cli.doctor import describe
from trainkit.workflow import doctor as workflow
from trainkit.workflow.doctor import Item, Report

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

LONG = Item("torchvision", "0.26.0 does not import: " + "word " * 20, "error", "install " + "it " * 40)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command with a report that is given; return its exit code, stdout and stderr."""

    def run_it(*words: str, items: tuple[Item, ...]) -> tuple[int, str, str]:
        monkeypatch.setattr(workflow, "doctor", lambda: Report(items, {"python": "3.11.7"}))
        return (main(["doctor", *words]), *capfd.readouterr())

    return run_it


def test_a_line_for_each_item_with_the_next_step(run: Run) -> None:
    items = (Item("python", "3.11.7"), Item("vllm", "not installed", "note", "for fast answers in serving"))
    assert run(items=items) == (
        0,
        "ok       python            3.11.7\n"
        "note     vllm              not installed\n"
        "                           for fast answers in serving\n",
        "",
    )


@pytest.mark.parametrize(("level", "code"), [(None, 0), ("note", 0), ("warning", 0), ("error", 1)])
def test_only_an_error_makes_the_exit_code_1(run: Run, level: Any, code: int) -> None:
    for words in ((), ("--json",)):
        assert run(*words, items=(Item("python", "3.11.7"), Item("torchrun", "x", level)))[0] == code


def test_the_json_has_the_lines_and_the_figures(run: Run) -> None:
    code, out, err = run("--json", items=(Item("python", "3.11.7"), Item("torchrun", "none", "error", "install it")))
    assert (code, err) == (1, "")
    assert json.loads(out) == {
        "ok": False,
        "items": [
            {"name": "python", "level": "ok", "value": "3.11.7", "hint": ""},
            {"name": "torchrun", "level": "error", "value": "none", "hint": "install it"},
        ],
        "facts": {"python": "3.11.7"},
    }


def test_a_long_line_is_folded_at_100_columns() -> None:
    lines = describe(LONG).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("error    torchvision       0.26.0 does not import: word")
    assert all(line.startswith(" " * 27) and line[27] != " " for line in lines[1:])
    assert " ".join("".join(f"{line} " for line in lines).split()) == (
        f"error torchvision {LONG.value} {LONG.hint}".replace("  ", " ").strip()
    )
