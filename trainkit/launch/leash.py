"""The processes of one run: found by a mark in their environment, ended when nobody watches over them any more.

A process group is not enough to hold a trainer: torchrun starts each worker in a session of its own, and a worker whose
torchrun was killed belongs to init. The environment is inherited by all of them and cannot be lost on the way.

Run as a program (`python leash.py MARK`, with a pipe from trainkit as its standard input) this file is the leash
itself: when the pipe closes without the word "done", trainkit has died, even by SIGKILL, and the leash ends the run's
processes, so that no trainer holds a GPU unseen. It imports nothing of trainkit, because it is started by path.
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import suppress

import psutil

MARK_NAME = "TRAINKIT_PROCESS_MARK"
GRACE_SECONDS = 10.0
DONE = b"done"


def find_family(mark: str) -> list[psutil.Process]:
    """Return the living processes that carry `mark` in their environment, in the order of their ids."""
    return [process for process in psutil.process_iter() if _carries(process, mark)]


def _carries(process: psutil.Process, mark: str) -> bool:
    # a process that ended meanwhile, or that belongs to somebody else, is not ours
    with suppress(psutil.Error, OSError):
        return _is_alive(process) and process.environ().get(MARK_NAME) == mark
    return False


def _is_alive(process: psutil.Process) -> bool:
    # a zombie has ended and only waits for its parent to notice
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _wait_for(family: list[psutil.Process], seconds: float) -> None:
    # not psutil.wait_procs: it would take the exit code of a child away from the subprocess module
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(_is_alive, family)):
        time.sleep(0.05)


def kill_family(mark: str) -> None:
    """Send SIGKILL to every process of the run; repeated, since a process may start another meanwhile."""
    for _ in range(3):
        family = find_family(mark)
        if not family:
            return
        for process in family:
            _send(process, signal.SIGKILL)
        _wait_for(family, 2.0)


def end_family(mark: str) -> int:
    """Ask every process of the run to end, wait, and kill what is left; return how many there were."""
    family = find_family(mark)
    for process in family:
        _send(process, signal.SIGTERM)
    if family:
        _wait_for(family, GRACE_SECONDS)
        kill_family(mark)
    return len(family)


def _send(process: psutil.Process, number: int) -> None:
    # it may have ended by itself since it was found
    with suppress(psutil.Error):
        process.send_signal(number)


def main() -> None:
    """Wait on standard input; end the run's processes unless trainkit said that it is done."""
    if DONE not in sys.stdin.buffer.read():
        end_family(sys.argv[1])


if __name__ == "__main__":
    main()
