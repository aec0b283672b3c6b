from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from trainkit.errors import Interrupted
from trainkit.launch.stop import Stop, stoppable


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stoppable() as stop:
        stop.check()
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        began = time.monotonic()
        assert stop.wait(30)
        assert time.monotonic() - began < 5
        assert stop.number == number
        assert stop.wait(30)
        with pytest.raises(Interrupted) as caught:
            stop.check()
        assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_without_a_signal_the_wait_takes_its_time() -> None:
    with stoppable() as stop:
        began = time.monotonic()
        assert not stop.wait(0.3)
        assert 0.3 <= time.monotonic() - began < 5
        assert not stop.wait(0)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.wait(0.05)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_stays_what_it_is() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stoppable():
        assert signal.getsignal(signal.SIGINT) is before


def test_handlers_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="why"), stoppable():
        raise ValueError("why")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_has_no_handlers_to_set() -> None:
    seen: list[object] = []

    def work() -> None:
        with stoppable() as stop:
            seen.extend([isinstance(stop, Stop), signal.getsignal(signal.SIGTERM)])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, before]
