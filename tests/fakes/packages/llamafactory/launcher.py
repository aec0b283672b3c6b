from __future__ import annotations

import runpy
import sys
from pathlib import Path


def launch() -> None:
    """Train as torchrun's only worker would, with the file that torchrun would have started."""
    del sys.argv[1]
    runpy.run_path(str(Path(__file__)), run_name="__main__")
