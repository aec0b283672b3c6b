"""Work in processes: in order, errors come through, nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from trainkit.dataset.pool import map_in_processes
from trainkit.errors import InputError, TrainkitError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    table = {number: number**2 for number in range(40)}  # inherited, not sent

    def square(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return table[number]

    assert list(map_in_processes(square, range(40), workers)) == list(table.items())


@pytest.mark.parametrize(("workers", "ahead"), [(1, 0), (2, 4)])
def test_no_more_is_taken_than_is_worked_on(workers: int, ahead: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    for number, (item, square) in enumerate(map_in_processes(lambda item: item**2, items(), workers)):
        assert (item, square) == (number, number**2)
        assert len(taken) <= number + ahead + 1
    assert len(taken) == 1000


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_worker_comes_through_whole(workers: int) -> None:
    def refuse(number: int) -> int:
        raise InputError(f"a.jsonl:{number}: not UTF-8", "convert it")

    with pytest.raises(InputError) as caught:
        list(map_in_processes(refuse, [7, 8], workers))
    assert (caught.value.message, caught.value.hint) == ("a.jsonl:7: not UTF-8", "convert it")


def test_a_killed_worker_is_said() -> None:
    parent = os.getpid()

    def die(number: int) -> int:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(TrainkitError, match="a worker process was killed"):
        list(map_in_processes(die, [1, 2, 3], 2))


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time, os\n"
        "from trainkit.dataset.pool import map_in_processes\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "def wait(number):\n"
        "    (folder / str(os.getpid())).touch()\n"
        "    time.sleep(60)\n"
        "list(map_in_processes(wait, [1, 2], 2))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(psutil.pid_exists, workers)))


def wait_until(reached: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not reached():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)
