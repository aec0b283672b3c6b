"""The error tree of trainkit.

Every error that a user can meet is one of these; anything else that escapes is a bug and keeps its traceback.

    TrainkitError               exit 1   a problem in the input or the environment, explained
    ├── InputError              exit 1   a data file: missing, unreadable, not what it should be
    ├── ConfigError             exit 1   a configuration file, key or value
    ├── EnvironmentProblem      exit 1   a program, package or machine that is not as needed
    ├── ProblemsFound           exit 1   several problems found together, each with its place
    ├── UsageProblem            exit 2   the command line itself
    ├── TrainerFailed           the trainer's own exit code
    │   └── OutOfMemory         the same, because the GPU's memory was too small
    └── Interrupted             exit 130 Ctrl-C (143 for SIGTERM)

`Rejected` stands apart: it speaks of one row of data and never ends a command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainkit.datatypes import Problem


class TrainkitError(Exception):
    """A problem that is explained to the user.

    Args:
        message: what is wrong, with the file, line or key it is about.
        hint: what to do next; empty when there is nothing better than the message.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Keep every field when a worker process hands the error to its parent."""
        return (type(self), self._fields())

    def _fields(self) -> tuple[object, ...]:
        return (self.message, self.hint)


class InputError(TrainkitError):
    """A data file that is missing, unreadable or not what it should be."""


class ConfigError(TrainkitError):
    """A configuration file, key or value that cannot be used."""


class EnvironmentProblem(TrainkitError):
    """A program, package or machine that is not as needed."""


class UsageProblem(TrainkitError):
    """A command line that cannot be carried out."""

    exit_code = 2


class ProblemsFound(TrainkitError):
    """Several problems found together; `problems` holds each with its place."""

    def __init__(self, message: str, problems: Sequence[Problem], hint: str = "") -> None:
        super().__init__(message, hint)
        self.problems = tuple(problems)

    def _fields(self) -> tuple[object, ...]:
        return (self.message, self.problems, self.hint)


class TrainerFailed(TrainkitError):
    """A trainer ended with a failure; the exit code is the trainer's own."""

    def __init__(self, message: str, exit_code: int, hint: str = "") -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code

    def _fields(self) -> tuple[object, ...]:
        return (self.message, self.exit_code, self.hint)


class OutOfMemory(TrainerFailed):
    """A trainer that failed because a GPU's memory was too small."""


class Interrupted(TrainkitError):
    """The user or the system asked to stop; the child was told and has ended."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number

    def _fields(self) -> tuple[object, ...]:
        return (self.message, self.signal_number)


class Rejected(Exception):
    """A row that cannot become a training example: an answer about the row, counted and written down by its reason.

    `Rejected("empty turn", "turn 2 (gpt) is empty")`
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
