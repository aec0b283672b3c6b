"""Work shared among processes that inherit what they need and end with their parent."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections import deque
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, TypeVar

from trainkit.errors import TrainkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

Item = TypeVar("Item")
Result = TypeVar("Result")

WATCH_SECONDS = 1.0
AHEAD = 2  # items for each worker that are under way; more would only fill the memory

# What each worker calls; inherited through the fork, so it needs no pickling and may hold large tables.
_task: Callable[[Any], Any] | None = None


def map_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its result, in the order of the items; `workers` of 1 stays in this process.

    Memory holds a few items and results for each worker, however many there are.

    Raises:
        TrainkitError: a worker process was killed. What `function` raises comes through.
    """
    if workers <= 1:
        for item in items:
            yield item, function(item)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, initializer=begin, initargs=(function, os.getpid()))
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            if len(waiting) == AHEAD * workers:
                yield finished(waiting)
            waiting.append((item, pool.submit(work, item)))
        while waiting:
            yield finished(waiting)
    except BrokenProcessPool:
        hint = "was the machine out of memory? --jobs 1 needs less"
        raise TrainkitError("a worker process was killed", hint) from None
    finally:
        pool.shutdown(cancel_futures=True)


def finished(waiting: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    """Take the first item away and return it with its result."""
    item, future = waiting.popleft()
    return item, future.result()


def begin(function: Callable[[Any], Any], parent: int) -> None:
    """Prepare a new worker."""
    global _task
    _task = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the workers
    gc.disable()  # rows make no cycles
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def end_with(parent: int) -> None:
    """End this process when its parent is gone: a killed parent tells nobody."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def work(item: Any) -> Any:
    """Do one item in a worker."""
    assert _task is not None
    return _task(item)
