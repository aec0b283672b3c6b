"""Stands in for trainkit/inside/chat.py: writes its request down and answers; ends with $FAKE_CHAT_EXIT."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
with Path(os.environ["FAKE_CALLS"]).open("a") as file:
    file.write(json.dumps({"program": "chat", **request, "verbosity": os.environ["TRANSFORMERS_VERBOSITY"]}) + "\n")
print("the answer")
sys.exit(int(os.environ.get("FAKE_CHAT_EXIT") or 0))
