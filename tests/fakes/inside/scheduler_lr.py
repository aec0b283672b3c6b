"""Stands in for trainkit/inside/scheduler_lr.py: writes the learning rate as the fake trainer does."""

from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

request = json.loads(sys.stdin.read())
with Path(os.environ["FAKE_CALLS"]).open("a") as file:
    file.write(json.dumps({"program": "scheduler_lr", "request": request}) + "\n")
if os.environ.get("FAKE_RATE") == "fail":
    print(json.dumps({"ok": False, "error": "several learning rates (1e-05, 2e-05)"}))
    sys.exit(1)
target = Path(request["folder"]) / "scheduler.pt"
target.unlink()
with zipfile.ZipFile(target, "w") as archive:
    archive.writestr("archive/data.pkl", pickle.dumps({"base_lrs": [request["learning_rate"]]}, protocol=2))
print(json.dumps({"ok": True, "old": 0.0001, "rewritten": ["scheduler.pt"]}))
