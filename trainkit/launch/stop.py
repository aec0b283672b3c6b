"""Being asked to stop while nothing runs that could be told so."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainkit.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
SLICE_SECONDS = 0.2


class Stop:
    """Whether SIGTERM or SIGHUP has arrived; `number` is the signal's, None before it."""

    def __init__(self) -> None:
        self.number: int | None = None

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until a signal arrives; return whether one has."""
        end = time.monotonic() + seconds
        while self.number is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, SLICE_SECONDS))
        return self.number is not None

    def check(self) -> None:
        """Check that no signal has arrived.

        Raises:
            Interrupted: one has.
        """
        if self.number is not None:
            raise Interrupted("stopped before the training; the next call goes on", self.number)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Yield what knows of SIGTERM and SIGHUP until the end of the block; Ctrl-C stays a KeyboardInterrupt.

    While a trainer runs, `process.run` has its own handlers over these. Outside the main thread there are none to set.
    """
    stop = Stop()

    def note(number: int, _frame: FrameType | None) -> None:
        stop.number = number

    previous = {}
    if threading.current_thread() is threading.main_thread():
        wanted = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, note) for number in wanted}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
