"""Stands in for trainkit/inside/tiny_model.py; fails as $FAKE_TINY_MODEL says."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

request = json.load(sys.stdin)
output = Path(request["output"])
assert set(request) == {"output", "texts", "seed"}
assert Path(request["texts"]).read_text(encoding="utf-8").startswith('{"conversations"')
assert not output.exists()
output.mkdir()
(output / "config.json").write_text('{"model_type": "qwen2"}')
if told := os.environ.get("FAKE_TINY_MODEL"):
    print(told, file=sys.stdout if told.startswith("{") else sys.stderr)
    sys.exit(1)
(output / "tokenizer.json").write_text("{}")
(output / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
print("Loading ...\n" + json.dumps({"ok": True, "output": str(output)}))
