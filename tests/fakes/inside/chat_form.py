"""Stands in for trainkit/inside/chat_form.py: a byte is a token; answers $FAKE_FORM when that is set."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

request = json.load(sys.stdin)
with Path(os.environ["FAKE_CALLS"]).open("a") as file:
    file.write(json.dumps({"program": "chat_form", **request}) + "\n")
stored = Path(__file__).parent.parent.parent / "data" / "chat_form.json"
print(os.environ.get("FAKE_FORM") or json.dumps(json.loads(stored.read_text())))
