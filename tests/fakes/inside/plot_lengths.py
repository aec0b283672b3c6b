"""Stands in for trainkit/inside/plot_lengths.py: writes the request where the picture would be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

request = json.load(sys.stdin)
assert request["panels"]
Path(request["output"]).write_text(json.dumps(request))
print(json.dumps({"output": request["output"]}))
