"""Stands in for trainkit/inside/doctor.py: an environment in order, on a machine without a GPU."""

from __future__ import annotations

import json
import sys

request = json.load(sys.stdin)
assert set(request) == {"imports", "present", "folder"}
packages = (*request["imports"], *request["present"])
absent = {"version": None, "seconds": None, "error": None}
pins = {
    "llamafactory": "0.9.5", "torch": "2.11.0", "torchvision": "0.26.0", "torchaudio": "2.11.0",
    "transformers": "5.6.0", "tokenizers": "0.22.2", "peft": "0.18.1", "accelerate": "1.11.0", "datasets": "4.0.0",
    "trl": "0.24.0",
}  # fmt: skip
answer = {
    "python": "3.11.7",
    "packages": {name: {**absent, "version": pins.get(name)} for name in packages},
    "torch": {"version": "2.11.0", "cuda": None, "devices": 0, "why": None, "cudnn": None, "nccl": None, "error": None},
    "driver": {"error": "NVMLError: Driver Not Loaded"},
    "gpus": [],
    "deepspeed": None,
    "programs": dict.fromkeys(("torchrun", "llamafactory-cli", "deepspeed", "nvcc", "c++"), "/env/bin/program"),
    "machine": {
        "memory_bytes": 2**36, "available_bytes": 2**35, "memory_limit_bytes": None, "shared_memory_bytes": 2**34,
        "open_files": 4096, "open_files_most": 4096, "folder": {"path": request["folder"], "free_bytes": 2**40},
        "hub_cache": {"path": "/cache", "bytes": 0, "free_bytes": 2**40},
    },
}  # fmt: skip
print(json.dumps(answer))
