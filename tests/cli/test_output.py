from __future__ import annotations

import json
import os
import pty
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.cli.output import Output, problem_json
from trainkit.datatypes import Problem
from trainkit.errors import ProblemsFound, TrainkitError

if TYPE_CHECKING:
    import pytest

    from tests.conftest import Place

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_on_a_terminal(place: Place, *words: str) -> tuple[int, str, str]:
    """Run a command whose stderr is a terminal; return its exit code, stdout, and what the terminal was sent."""
    master, slave = pty.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the last writer has gone
                return
            if not piece:
                return
            shown.extend(piece)

    environment = os.environ | {"TERM": "xterm-256color"}
    process = place.start(*words, stderr=slave, env=environment)
    os.close(slave)
    reader = threading.Thread(target=read)
    reader.start()
    assert process.stdout is not None
    with process:
        out = process.stdout.read()
    reader.join(20)
    os.close(master)
    return process.returncode, out, ESCAPES.sub("", shown.decode())


def test_text_goes_to_stdout_and_words_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.data("a result")
    output.say("a word")
    output.json({"never": "shown"})
    assert capsys.readouterr() == ("a result\n", "a word\n")


def test_json_is_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.data("a result")
    output.say("a word")
    output.table(("a",), [("1",)])
    output.problems([Problem("x", "y")])
    with output.progress("p") as report, output.waiting("w") as live:
        report(1, 2)
        live("now")
    output.json({"path": Path("a/b"), "text": "世界"})
    assert capsys.readouterr() == ('{\n  "path": "a/b",\n  "text": "世界"\n}\n', "")


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(("data set", "rows"), [("full", "1,234"), ("a_longer_name", "7"), ("x", "none")])
    assert capsys.readouterr().out == (
        "data set       rows\nfull           1,234\na_longer_name      7\nx              none\n"
    )
    Output().table(("empty",), [])
    assert capsys.readouterr().out == "empty\n"


def test_problems_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        Problem("a", "first", "do this"),
        Problem("", "placeless", level="note"),
        Problem("b", "third", level="warning"),
    ]
    Output().problems(found)
    assert capsys.readouterr().err == "error: a: first\n    do this\nplaceless\nwarning: b: third\n"
    Output().error(TrainkitError("all", "so"))
    assert capsys.readouterr() == ("", "error: all\n    so\n")
    Output(as_json=True).error(ProblemsFound("all", found))
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["problems"] == [problem_json(problem) for problem in found]
    assert problem_json(found[2]) == {"level": "warning", "where": "b", "message": "third", "hint": ""}


def test_no_live_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with Output().progress("converting") as report, Output().waiting("starting") as live:
        report(1, None)
        live("step 1/2")
    assert capsys.readouterr() == ("", "")


def test_the_step_line_of_a_training(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRAINER", json.dumps({"pause": 0.6}))
    code, out, shown = run_on_a_terminal(ready, "train")
    assert code == 0
    assert out.startswith("trained model  ")
    assert "starting the trainer" in shown
    assert "step 1/3  loss 1  lr 0.0001  2.0 steps/min  left 0:01:00" in shown
    assert "step 2/3  loss 0.5  lr 0.0001  4.0 steps/min  left 0:00:15" in shown
    assert "training reward_model_full; the log is " in shown
    # the path is whole, wherever the terminal's line ends
    assert str(ready.run() / "train.log") in shown.replace("\r\n", "")


def test_a_bar_for_the_conversion_on_a_terminal_only(place: Place) -> None:
    turns = [{"from": "human", "value": "Judge."}, {"from": "gpt", "value": "{}"}]
    row = {"conversations": turns, "metadata": {"evaluation_type": "clip", "model_name": "k", "task_id": "t"}}
    place.write("finetune.jsonl", (json.dumps(row) + "\n") * 200)
    code, out, shown = run_on_a_terminal(place, "convert", "finetune.jsonl", "-j", "1")
    assert code == 0
    assert "converting" in shown
    assert "bytes" in shown or "kB" in shown
    assert "\x1b" not in out
    assert "reward_model_full" in out
    piped = place.start("convert", "finetune.jsonl", "-j", "1")
    out, err = piped.communicate(timeout=20)
    assert piped.returncode == 0
    assert "converting" not in out + err
    assert "\x1b" not in out + err


def test_json_on_a_terminal_has_no_live_line(ready: Place) -> None:
    code, out, shown = run_on_a_terminal(ready, "train", "--json")
    assert (code, shown) == (0, "")
    assert json.loads(out)["ok"] is True
