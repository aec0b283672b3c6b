"""The user's YAML with a suggested setup in it: their own text, with the changed keys and the reason for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainkit.errors import TrainkitError
from trainkit.files import write_text_atomic
from trainkit.plan.config import COMMAND_LINE, parse_override
from trainkit.plan.explain import GIB, explain
from trainkit.plan.secret import is_secret
from trainkit.plan.yamledit import with_keys
from trainkit.workflow.prepare import find_config, writing

if TYPE_CHECKING:
    from pathlib import Path

    from trainkit.plan.verdict import Candidate
    from trainkit.workflow.suggestion import Suggestion


def write_suggestion(suggestion: Suggestion, path: Path, *, force: bool = False) -> None:
    """Write the user's configuration with the keys of the first candidate, for `trainkit train --config`.

    Keys of the command line are written as well, secrets are not. A file that is there stays unless `force` is given.

    Raises:
        TrainkitError: the file is there, cannot be written, or nothing fits.
    """
    if not suggestion.advice.candidates:
        raise TrainkitError("nothing fits, so there is nothing to write", "the options above say what would fit")
    if path.exists() and not force:
        raise TrainkitError(f"{path}: is there already", "choose another name, or overwrite it with --force")
    candidate = suggestion.advice.candidates[0]
    with writing(path):
        write_text_atomic(path, suggested_text(suggestion, candidate))


def suggested_text(suggestion: Suggestion, candidate: Candidate) -> str:
    """Return the user's YAML with a candidate's keys and those of the command line, each with its reason.

    Keys that nobody changed, and the comments on them, stay as they are.
    """
    file = find_config(suggestion.settings)
    said = _from_command_line(suggestion)
    changes = {**said, **candidate.changes}
    comments = dict.fromkeys(said, "from the command line")
    comments |= {key: _comment(key, suggestion, candidate) for key in candidate.changes}
    text = file.read_text(encoding="utf-8-sig") if file else ""
    secrets = [key for key in suggestion.config.values if is_secret(key)]
    return _header(suggestion, candidate) + with_keys(text, changes, comments, without=secrets)


def _header(suggestion: Suggestion, candidate: Candidate) -> str:
    machine, verdict = suggestion.task.machine, candidate.verdict
    total, usable = verdict.memory.total / GIB, verdict.usable / GIB
    lines = (
        f"Suggested by trainkit for {machine.count} x {machine.gpu.name}: predicted {total:.1f} of {usable:.1f} GiB,",
        f"{candidate.speedup:.2f} times the speed of the configuration that it was made from.",
    )
    return "".join(f"# {line}\n" for line in lines) + "\n"


def _comment(key: str, suggestion: Suggestion, candidate: Candidate) -> str:
    reason = explain(key, candidate.changes[key], candidate.verdict, suggestion.advice.given, suggestion.task.packages)
    return "; ".join(part for part in (reason.does, reason.caveat) if part) + (
        f" ({reason.source})" if reason.source else "")  # fmt: skip


def _from_command_line(suggestion: Suggestion) -> dict[str, Any]:
    """Return what the options and the key=value words said; one that took a key away is kept as null."""
    config = suggestion.config
    words = dict(parse_override(word) for word in suggestion.settings.overrides)
    said: dict[str, Any] = {key: None for key, value in words.items() if value is None}
    said |= {
        key: config.values[key]
        for key, origin in config.origin.items()
        if (origin == COMMAND_LINE or origin.startswith("--")) and not is_secret(key)
    }
    return said
