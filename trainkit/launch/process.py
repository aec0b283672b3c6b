"""The only place that starts programs: signals passed on, the log kept, nothing left behind.

    run      a trainer: in its own session, its output in a log file, a tick for the live line
    capture  a short program: text in, exit code and texts out
    stream   a program that talks to the user: it shares the terminal

While a child runs, Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP go to the child and trainkit waits for its end: the first
signal is passed on as it is, the second becomes SIGTERM, the third SIGKILL. SIGUSR1 is a scheduler's word to trainkit
and is passed on as SIGTERM. A trainer that can save before it stops is asked to instead of the first SIGTERM or
SIGUSR1. A signal that was ignored when trainkit started (nohup) stays ignored. When trainkit itself is killed, its
leash (launch/leash.py) ends the child.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trainkit.datatypes import Outcome
from trainkit.errors import EnvironmentProblem, Interrupted
from trainkit.launch import leash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

    from trainkit.datatypes import Command

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# with these a system asks for its machine back; a person who is in a hurry uses Ctrl-C
PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1)
# `timeout` and others signal a process and then its group, which is one request and not two
ECHO_SECONDS = 2.0


def run(
    command: Command,
    *,
    env: Mapping[str, str],
    log_file: Path,
    on_tick: Callable[[], None],
    tick_seconds: float = 0.5,
    ask: Callable[[int], bool] | None = None,
) -> Outcome:
    """Run a trainer to its end, with standard output and error appended to `log_file` by the child itself.

    Args:
        command: what to run; its environment additions are laid over `env`.
        env: the whole environment to start from.
        log_file: complete whatever happens to trainkit; its folder is made.
        on_tick: called about every `tick_seconds` while the child runs, and once after its end.
        tick_seconds: seconds between two calls of `on_tick`.
        ask: told of a SIGTERM or SIGUSR1 that is the first signal; whether it has asked the trainer to stop, so that
            no signal is needed.

    Raises:
        EnvironmentProblem: the program or its working folder is missing, or the program cannot be executed.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab", buffering=0) as log:
        files = (subprocess.DEVNULL, log, subprocess.STDOUT)
        outcome = _supervise(command, env, files, on_tick, tick_seconds, ask=ask)
    on_tick()
    return outcome


def capture(command: Command, *, env: Mapping[str, str], stdin: str = "") -> tuple[int, str, str]:
    """Run a short program with `stdin` as its input; return its exit code, standard output and standard error.

    Raises:
        EnvironmentProblem: as for `run`.
        Interrupted: the user or the system asked to stop.
    """
    # files instead of pipes: no reader thread, and no program that blocks on a full pipe
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        outcome = _supervise(command, env, (given, out, err))
        if outcome.signal is not None:
            raise Interrupted(f"{Path(command.argv[0]).name} was stopped", outcome.signal)
        return outcome.exit_code, _load_text(out), _load_text(err)


def stream(command: Command, *, env: Mapping[str, str]) -> Outcome:
    """Run a program that shares the terminal with trainkit, and return how it ended.

    The terminal itself sends Ctrl-C to both, as often as the user stops an answer; trainkit leaves it to the child and
    passes on only the others.

    Raises:
        EnvironmentProblem: as for `run`.
    """
    return _supervise(command, env, (None, None, None), share_terminal=True)


def _supervise(
    command: Command,
    env: Mapping[str, str],
    files: tuple[Any, Any, Any],
    on_tick: Callable[[], None] | None = None,
    tick_seconds: float = 3600.0,
    *,
    share_terminal: bool = False,
    ask: Callable[[int], bool] | None = None,
) -> Outcome:
    started = time.monotonic()
    mark = secrets.token_hex(8)
    with _Relay(pass_ctrl_c=not share_terminal, ask=ask) as relay, _leash(mark):
        child = _start(command, env, mark, files, own_session=not share_terminal)
        relay.attach(lambda number: _pass_on(child, mark, number, share_terminal))
        try:
            code = _wait(child, on_tick, tick_seconds)
        finally:
            leash.end_family(mark)
            child.wait()
    return Outcome(code if code >= 0 else 128 - code, time.monotonic() - started, relay.first)


def _wait(child: subprocess.Popen[bytes], on_tick: Callable[[], None] | None, tick_seconds: float) -> int:
    while True:
        try:
            return child.wait(timeout=tick_seconds)
        except subprocess.TimeoutExpired:
            if on_tick is not None:
                on_tick()


def _start(
    command: Command, env: Mapping[str, str], mark: str, files: tuple[Any, Any, Any], *, own_session: bool
) -> subprocess.Popen[bytes]:
    program = command.argv[0]
    merged = {**env, leash.MARK_NAME: mark, **command.env}
    environment = {name: value for name, value in merged.items() if value is not None}
    stdin, stdout, stderr = files
    try:
        return subprocess.Popen(
            command.argv,
            cwd=command.cwd,
            env=environment,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=own_session,
        )
    except OSError as error:
        if not command.cwd.is_dir():
            raise EnvironmentProblem(f"{command.cwd}: no such folder to run {program} in") from None
        hint = "check the file's permissions and the interpreter that its first line names"
        raise EnvironmentProblem(f"{program}: cannot be started: {error.strerror}", hint) from None


def _pass_on(child: subprocess.Popen[bytes], mark: str, number: int, share_terminal: bool) -> None:
    if number == signal.SIGKILL:
        # workers live in sessions of their own, where a signal to the group does not reach them
        leash.kill_family(mark)
    elif child.returncode is None:
        send = os.kill if share_terminal else os.killpg
        with suppress(ProcessLookupError):
            send(child.pid, number)


def _load_text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


@contextmanager
def _leash(mark: str) -> Iterator[None]:
    """Hold a pipe to a small process that ends the run when this process dies without letting go of it."""
    program = [sys.executable, "-I", leash.__file__, mark]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True) as holder:
        try:
            yield
        finally:
            holder.communicate(leash.DONE)


class _Relay:
    """Signal handlers that hand each signal to the running child; outside the main thread there are none to set."""

    def __init__(self, *, pass_ctrl_c: bool, ask: Callable[[int], bool] | None = None) -> None:
        self._pass_ctrl_c = pass_ctrl_c
        self._ask = ask
        self._asked = float("-inf")
        self._received: list[int] = []
        self._send: Callable[[int], None] | None = None
        self._previous: dict[int, Any] = {}

    @property
    def first(self) -> int | None:
        """The first signal that arrived, or None."""
        return self._received[0] if self._received else None

    def attach(self, send: Callable[[int], None]) -> None:
        """Pass signals to `send` from now on; one that came while the child was starting goes there at once."""
        self._send = send
        if self._received:
            send(_passed_on(self._received[0]))

    def __enter__(self) -> _Relay:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and not self._pass_ctrl_c:
            return
        if number == self.first and time.monotonic() - self._asked < ECHO_SECONDS:
            return
        self._received.append(number)
        if self._ask and number in PREEMPTIONS and len(self._received) == 1 and self._ask(number):
            self._asked = time.monotonic()
            return
        escalation = (_passed_on(number), signal.SIGTERM, signal.SIGKILL)
        if self._send is not None:
            self._send(escalation[min(len(self._received), len(escalation)) - 1])


def _passed_on(number: int) -> int:
    return signal.SIGTERM if number == signal.SIGUSR1 else number
