"""The floor of any converter in Python that looks at every row: one `orjson.loads` of each line and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

with Path(sys.argv[1]).open("rb", buffering=1 << 20) as lines:
    for line in lines:
        orjson.loads(line)
