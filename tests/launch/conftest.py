from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DRIVER = """
import json, os, signal, sys
from pathlib import Path
from trainkit.datatypes import Command
from trainkit.launch import process

# the test may itself run in the background, where Ctrl-C is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
exec(sys.argv[2])
folder = Path(sys.argv[1])
command = Command((sys.executable, str(folder / "trainer.py")), folder)
outcome = process.run(command, env=dict(os.environ), log_file=folder / "train.log", on_tick=lambda: None,
                      tick_seconds=0.05)
restored = signal.getsignal(signal.SIGINT) is signal.default_int_handler
print(json.dumps([outcome.exit_code, outcome.signal, restored]))
"""

TRAINER_HEAD = """
import os, signal, subprocess, sys, time
from pathlib import Path
"""

TRAINER_TAIL = """
Path("ready").write_text(str(os.getpid()))
for _ in range(600): time.sleep(0.05)
"""


def wait_for_it(condition: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Poll until a condition holds; fail the test when it does not within some seconds."""
    return wait_for_it


@pytest.fixture
def start_run(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that runs a fake trainer as trainkit does, and wait until the trainer has set itself up."""
    started: list[subprocess.Popen[str]] = []

    def start(trainer: str, before: str = "") -> subprocess.Popen[str]:
        (tmp_path / "trainer.py").write_text(TRAINER_HEAD + textwrap.dedent(trainer) + TRAINER_TAIL)
        (tmp_path / "driver.py").write_text(DRIVER)
        argv = [sys.executable, str(tmp_path / "driver.py"), str(tmp_path), before]
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True))
        wait_for_it((tmp_path / "ready").exists)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
