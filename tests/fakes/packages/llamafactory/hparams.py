from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml


def read_args() -> dict[str, Any]:
    return dict(yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8")))
