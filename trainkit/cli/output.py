"""The only printer: data goes to stdout, words to stderr, one JSON document in place of both with `--json`."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainkit.errors import ProblemsFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from trainkit.datatypes import Problem
    from trainkit.errors import TrainkitError


class Output:
    """Shows results; `as_json` turns every report into one JSON document on stdout."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    def data(self, text: str) -> None:
        """Print a line of data."""
        if not self.as_json:
            print(text, flush=True)  # noqa: T201

    def say(self, text: str) -> None:
        """Print a line of words for a person."""
        if not self.as_json:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def json(self, value: Any) -> None:
        """Print the JSON document, when that is what was asked for."""
        if self.as_json:
            print(json.dumps(value, indent=2, ensure_ascii=False, default=str), flush=True)  # noqa: T201

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print aligned columns; numbers to the right."""
        cells = [[str(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        for row in [list(head), *cells]:
            padded = [
                cell.rjust(width) if cell.replace(",", "").isdigit() else cell.ljust(width)
                for cell, width in zip(row, widths, strict=True)
            ]
            self.data("  ".join(padded).rstrip())

    def problems(self, problems: Iterable[Problem]) -> None:
        """Print findings, one to three lines each: the place, what it is, what to do."""
        for problem in problems:
            self.say(f"{problem.level}: {problem.where}: {problem.message}" if problem.where else problem.message)
            if problem.hint:
                self.say(f"    {problem.hint}")

    def error(self, error: TrainkitError) -> None:
        """Print why a command ended."""
        found = error.problems if isinstance(error, ProblemsFound) else ()
        self.problems(problem for problem in found if problem.level != "note")
        self.say(f"error: {error.message}")
        if error.hint:
            self.say(f"    {error.hint}")
        listed = [problem_json(problem) for problem in found]
        self.json({"ok": False, "error": error.message, "hint": error.hint, "problems": listed})

    @contextmanager
    def progress(self, words: str) -> Iterator[Callable[[int, int | None], None]]:
        """Yield a function that takes bytes done and in all: a bar on a terminal, else nothing."""
        if self.as_json or not sys.stderr.isatty():
            yield lambda done, total: None  # noqa: ARG005
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
        task = bar.add_task(words, total=None)

        def report(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)
            bar.refresh()

        with bar:
            bar.refresh()
            yield report

    @contextmanager
    def waiting(self, words: str) -> Iterator[Callable[[str], None]]:
        """Yield a function that changes the one live line; a line on a terminal, else nothing."""
        if self.as_json or not sys.stderr.isatty():
            yield lambda text: None  # noqa: ARG005
            return
        from rich.console import Console
        from rich.markup import escape

        with Console(stderr=True).status(escape(words)) as status:
            yield lambda text: status.update(escape(text))


def problem_json(problem: Problem) -> dict[str, str]:
    """Return a problem as it stands in a JSON report."""
    return {"level": problem.level, "where": problem.where, "message": problem.message, "hint": problem.hint}
