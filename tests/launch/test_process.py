from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from trainkit.datatypes import Command
from trainkit.errors import EnvironmentProblem, Interrupted
from trainkit.launch import leash, process

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Start = Callable[..., subprocess.Popen[str]]
    Wait = Callable[..., None]

ENV = dict(os.environ)
IGNORE_CTRL_C = "signal.signal(signal.SIGINT, lambda *_: Path('got_int').touch())"
IGNORE_BOTH = f"{IGNORE_CTRL_C}\nsignal.signal(signal.SIGTERM, lambda *_: Path('got_term').touch())"
# what the driver does before the run: the trainer is asked by a file, or cannot be asked
ASK = """
import functools
def ask(number):
    Path(sys.argv[1], "asked").write_text(str(number))
    return {can_be_asked}
process.ECHO_SECONDS = {echo_seconds}
process.run = functools.partial(process.run, ask=ask)
"""
OBEY = """
import threading
def obey():
    while not Path("asked").exists(): time.sleep(0.02)
    Path("saving").touch()
    while not Path("saved").exists(): time.sleep(0.02)
    os._exit(0)
threading.Thread(target=obey, daemon=True).start()
"""
# as torchrun does: a worker in a session of its own, which a signal to the trainer's group does not reach
WORKER = """
worker = subprocess.Popen(
    [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True);"
     "time.sleep(60)"], start_new_session=True, stdout=subprocess.PIPE)
worker.stdout.readline()
Path("worker").write_text(str(worker.pid))
"""


def python(folder: Path, code: str, **env: str | None) -> Command:
    return Command((sys.executable, "-c", code), folder, env)


def result(driver: subprocess.Popen[str]) -> list[object]:
    output, _ = driver.communicate(timeout=30)
    return list(json.loads(output))


def is_gone(pid_file: Path) -> bool:
    pid = int(pid_file.read_text())
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_trainer_gets_its_words_its_folder_and_its_environment(tmp_path: Path) -> None:
    code = (
        "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get('A'), os.environ.get('B'),"
        " os.environ.get('HOME'), sys.stdin.read()]))"
    )
    command = Command((sys.executable, "-c", code, "train", "a b"), tmp_path, {"A": "1", "B": None})
    log_file = tmp_path / "run" / "train.log"
    outcome = process.run(
        command, env={**ENV, "A": "0", "B": "2", "HOME": "/h"}, log_file=log_file, on_tick=lambda: None
    )
    assert (outcome.exit_code, outcome.signal) == (0, None)
    assert json.loads(log_file.read_text()) == [["train", "a b"], str(tmp_path), "1", None, "/h", ""]


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("pass", 0),
        ("import sys; sys.exit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os; os.kill(os.getpid(), 15)", 143),
    ],
)
def test_the_exit_code_is_the_trainers(tmp_path: Path, code: str, exit_code: int) -> None:
    outcome = process.run(python(tmp_path, code), env=ENV, log_file=tmp_path / "log", on_tick=lambda: None)
    assert (outcome.exit_code, outcome.signal) == (exit_code, None)


def test_the_log_holds_all_output_in_order_and_is_appended_to(tmp_path: Path) -> None:
    code = "import os\nfor i in range(20000): os.write(1 + i % 2, b'line %d\\n' % i)\nos.kill(os.getpid(), 9)"
    log_file = tmp_path / "log"
    log_file.write_text("before\n")
    process.run(python(tmp_path, code), env=ENV, log_file=log_file, on_tick=lambda: None)
    assert log_file.read_text() == "before\n" + "".join(f"line {number}\n" for number in range(20000))


def test_ticks_come_while_it_runs_and_once_after_the_end(tmp_path: Path) -> None:
    seen: list[bool] = []
    code = "import time; time.sleep(0.5); open('end', 'w')"
    process.run(
        python(tmp_path, code),
        env=ENV,
        log_file=tmp_path / "log",
        on_tick=lambda: seen.append((tmp_path / "end").exists()),
        tick_seconds=0.05,
    )
    assert len(seen) >= 4
    assert (seen[0], seen[-1]) == (False, True)


def test_a_failing_tick_ends_the_trainer_and_is_not_hidden(tmp_path: Path) -> None:
    def fail() -> None:
        if (tmp_path / "pid").exists():
            raise ZeroDivisionError

    code = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(ZeroDivisionError):
        process.run(python(tmp_path, code), env=ENV, log_file=tmp_path / "log", on_tick=fail, tick_seconds=0.3)
    assert is_gone(tmp_path / "pid")


@pytest.mark.parametrize(
    ("trainer", "signals", "expected"),
    [
        ("", [(signal.SIGINT, None)], [130, 2, True]),
        ("", [(signal.SIGTERM, None)], [143, 15, True]),
        ("", [(signal.SIGHUP, None)], [129, 1, True]),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))", [(signal.SIGTERM, None)], [5, 15, True]),
        (IGNORE_CTRL_C, [(signal.SIGINT, "got_int"), (signal.SIGINT, None)], [143, 2, True]),
        (
            IGNORE_BOTH,
            [(signal.SIGINT, "got_int"), (signal.SIGINT, "got_term"), (signal.SIGINT, None)],
            [137, 2, True],
        ),
        (
            IGNORE_BOTH,
            [(signal.SIGTERM, "got_term"), (signal.SIGINT, "got_term"), (signal.SIGTERM, None)],
            [137, 15, True],
        ),
    ],
    ids=["ctrl-c", "term", "hup", "trainer-exits", "second-ctrl-c", "third-ctrl-c", "mixed"],
)
def test_signals_reach_the_trainer_and_grow_stronger(
    start_run: Start,
    tmp_path: Path,
    wait_for: Wait,
    trainer: str,
    signals: list[tuple[int, str | None]],
    expected: list[object],
) -> None:
    driver = start_run(trainer)
    for number, file in signals:
        driver.send_signal(number)
        if file is not None:
            wait_for((tmp_path / file).exists)
            (tmp_path / file).unlink()
    assert result(driver) == expected


@pytest.mark.parametrize(
    ("number", "can_be_asked", "expected", "asked"),
    [
        (signal.SIGTERM, True, [0, 15, True], "15"),
        (signal.SIGUSR1, True, [0, 10, True], "10"),
        (signal.SIGTERM, False, [143, 15, True], "15"),
        (signal.SIGUSR1, False, [143, 10, True], "10"),
        (signal.SIGINT, True, [130, 2, True], ""),
        (signal.SIGHUP, True, [129, 1, True], ""),
    ],
)
def test_a_preempted_trainer_is_asked_first(
    start_run: Start, tmp_path: Path, number: int, can_be_asked: bool, expected: list[object], asked: str
) -> None:
    (tmp_path / "saved").touch()
    obey = OBEY if can_be_asked else ""
    driver = start_run(obey, before=ASK.format(can_be_asked=can_be_asked, echo_seconds=2))
    driver.send_signal(number)
    assert result(driver) == expected
    assert ((tmp_path / "asked").read_text() if asked else "") == asked
    assert (tmp_path / "asked").exists() == bool(asked)


def test_a_request_that_comes_twice_at_once_is_one(start_run: Start, tmp_path: Path, wait_for: Wait) -> None:
    """`timeout` signals the program, and then its whole group."""
    driver = start_run(OBEY, before=ASK.format(can_be_asked=True, echo_seconds=60))
    driver.send_signal(signal.SIGTERM)
    wait_for((tmp_path / "saving").exists)
    driver.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    (tmp_path / "saved").touch()
    assert result(driver) == [0, 15, True]


@pytest.mark.parametrize(
    ("trainer", "signals", "expected"),
    [
        ("", [signal.SIGUSR1, signal.SIGUSR1], [143, 10, True]),
        ("", [signal.SIGUSR1, signal.SIGTERM], [143, 10, True]),
        ("", [signal.SIGTERM, signal.SIGINT], [143, 15, True]),
        (IGNORE_BOTH, [signal.SIGTERM, signal.SIGTERM, signal.SIGTERM], [137, 15, True]),
    ],
)
def test_a_second_signal_ends_a_trainer_that_was_asked(
    start_run: Start, tmp_path: Path, wait_for: Wait, trainer: str, signals: list[int], expected: list[object]
) -> None:
    driver = start_run(trainer + OBEY, before=ASK.format(can_be_asked=True, echo_seconds=0))
    for number, sign in zip(signals, ("saving", "got_term", ""), strict=False):
        driver.send_signal(number)
        if sign == "saving" or (sign and trainer):
            wait_for((tmp_path / sign).exists)
    assert result(driver) == expected


def test_a_trainer_that_ignores_ctrl_c_is_waited_for(start_run: Start, tmp_path: Path, wait_for: Wait) -> None:
    driver = start_run(IGNORE_CTRL_C)
    driver.send_signal(signal.SIGINT)
    wait_for((tmp_path / "got_int").exists)
    time.sleep(0.5)
    assert driver.poll() is None
    os.kill(int((tmp_path / "ready").read_text()), signal.SIGTERM)
    assert result(driver) == [143, 2, True]


def test_an_ignored_hangup_stays_ignored(start_run: Start, tmp_path: Path) -> None:
    driver = start_run("", before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    driver.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert driver.poll() is None
    os.kill(int((tmp_path / "ready").read_text()), signal.SIGKILL)
    assert result(driver) == [137, None, True]


def test_the_trainer_itself_does_not_inherit_ignored_signals(start_run: Start, tmp_path: Path) -> None:
    start_run("Path('kept').write_text(str(signal.getsignal(signal.SIGINT) is signal.default_int_handler))")
    assert (tmp_path / "kept").read_text() == "True"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "trainer-killed"])
def test_workers_in_sessions_of_their_own_are_not_left_behind(start_run: Start, tmp_path: Path, end: int) -> None:
    driver = start_run(WORKER, before="from trainkit.launch import leash; leash.GRACE_SECONDS = 0.3")
    if end == signal.SIGINT:
        driver.send_signal(end)
    else:
        os.kill(int((tmp_path / "ready").read_text()), end)
    assert result(driver)[0] == 128 + end
    assert is_gone(tmp_path / "worker")


def test_when_trainkit_is_killed_the_trainer_ends_too(start_run: Start, tmp_path: Path, wait_for: Wait) -> None:
    driver = start_run("signal.signal(signal.SIGTERM, lambda *_: (Path('asked').touch(), sys.exit(0)))")
    driver.kill()
    wait_for((tmp_path / "asked").exists)
    wait_for(lambda: is_gone(tmp_path / "ready"))


def test_a_signal_that_comes_while_the_program_starts_is_not_lost() -> None:
    sent: list[int] = []
    with process._Relay(pass_ctrl_c=True) as relay:
        os.kill(os.getpid(), signal.SIGTERM)
        relay.attach(sent.append)
        assert sent == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
    assert (sent, relay.first) == ([signal.SIGTERM, signal.SIGTERM], signal.SIGTERM)


def test_the_leash_lets_a_run_go_that_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(leash, "end_family", ended.append)
    monkeypatch.setattr(sys, "argv", ["leash.py", "mark"])
    for said in (leash.DONE, b""):
        read, write = os.pipe()
        os.write(write, said)
        os.close(write)
        with open(read) as stdin:  # noqa: PTH123
            monkeypatch.setattr(sys, "stdin", stdin)
            leash.main()
    assert ended == ["mark"]


def test_run_works_outside_the_main_thread(tmp_path: Path) -> None:
    codes: list[int] = []
    command = python(tmp_path, "raise SystemExit(3)")
    thread = threading.Thread(
        target=lambda: codes.append(
            process.run(command, env=ENV, log_file=tmp_path / "log", on_tick=lambda: None).exit_code
        )
    )
    thread.start()
    thread.join()
    assert codes == [3]


@pytest.mark.parametrize(
    ("program", "content", "message"),
    [
        ("missing", None, "cannot be started: No such file or directory"),
        ("plain", "#!/bin/sh\n", "cannot be started: Permission denied"),
        ("binary", "\x7fELF nonsense", "cannot be started: Exec format error"),
    ],
)
def test_a_program_that_cannot_run_is_explained(
    tmp_path: Path, program: str, content: str | None, message: str
) -> None:
    path = tmp_path / program
    if content is not None:
        path.write_text(content)
        path.chmod(0o644 if program == "plain" else 0o755)
    with pytest.raises(EnvironmentProblem) as caught:
        process.run(Command((str(path),), tmp_path), env=ENV, log_file=tmp_path / "log", on_tick=lambda: None)
    assert caught.value.message == f"{path}: {message}"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_missing_working_folder_is_explained(tmp_path: Path) -> None:
    command = Command((sys.executable, "-c", ""), tmp_path / "no")
    with pytest.raises(EnvironmentProblem) as caught:
        process.run(command, env=ENV, log_file=tmp_path / "log", on_tick=lambda: None)
    assert caught.value.message == f"{tmp_path / 'no'}: no such folder to run {sys.executable} in"


def test_capture_returns_code_and_texts(tmp_path: Path) -> None:
    code = "import sys; print(sys.stdin.read()[::-1]); sys.stderr.write('x' * 200000); sys.exit(4)"
    captured = process.capture(python(tmp_path, code, PYTHONIOENCODING="utf-8"), env=ENV, stdin="héllo")
    assert captured == (4, "olléh\n", "x" * 200000)


def test_capture_raises_when_it_was_interrupted(tmp_path: Path) -> None:
    command = python(tmp_path, "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)")
    with pytest.raises(Interrupted) as caught:
        process.capture(command, env=ENV)
    assert caught.value.exit_code == 143


def test_stream_shares_output_and_leaves_ctrl_c_to_the_child(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(0.2); print('answer');"
        "print(os.getpgrp() == os.getpgid(os.getppid())); raise SystemExit(6)"
    )
    outcome = process.stream(python(tmp_path, code), env=ENV)
    assert (outcome.exit_code, outcome.signal) == (6, None)
    assert capfd.readouterr().out == "answer\nTrue\n"


def test_stream_passes_sigterm_on(tmp_path: Path) -> None:
    command = python(tmp_path, "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)")
    outcome = process.stream(command, env=ENV)
    assert (outcome.exit_code, outcome.signal) == (143, 15)
