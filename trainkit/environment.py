"""The one place where the process environment is read."""

from __future__ import annotations

import os


def get(name: str, default: str = "") -> str:
    """Return an environment variable, or `default` when it is not set."""
    return os.environ.get(name, default)


def snapshot() -> dict[str, str]:
    """Return a copy of the whole environment, to hand to a pure function or to a child process."""
    return dict(os.environ)
