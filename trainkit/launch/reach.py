"""Whether a server answers, asked before a tracker is told to depend on it."""

from __future__ import annotations

import urllib.error
import urllib.request


def can_reach(url: str, timeout_seconds: float = 3.0) -> bool:
    """Return whether an HTTP server answers at `url`, whatever it answers; a proxy of the environment is used."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_seconds):
            return True
    except urllib.error.HTTPError as answer:
        answer.close()
        return True
    except OSError:
        return False
