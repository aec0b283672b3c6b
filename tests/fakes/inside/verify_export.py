"""Stands in for trainkit/inside/verify_export.py: checks the request, answers $FAKE_VERIFY or that all is well."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

request = json.load(sys.stdin)
with Path(os.environ["FAKE_CALLS"]).open("a") as file:
    file.write(json.dumps({"program": "verify", **request}) + "\n")
assert (Path(request["exported"]) / "config.json").exists()
assert request["base"] is None or (Path(request["base"]) / "config.json").exists()
assert request["adapter"] is None or (Path(request["adapter"]) / "adapter_config.json").exists()
good = {"ok": True, "problems": [], "warnings": ["the answer is long"], "tensors": 27, "changed": 14}
print("some library talks")
if os.environ.get("FAKE_VERIFY") == "crash":
    sys.exit("Segmentation fault\nof some library")
answer = json.loads(os.environ.get("FAKE_VERIFY") or json.dumps(good))
print(json.dumps(answer))
sys.exit(not answer["ok"])
