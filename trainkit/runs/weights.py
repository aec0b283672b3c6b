"""Whether the weights in a folder are all there, without loading them.

A safetensors file starts with 8 bytes: the length N of its header, little-endian; then N bytes of JSON, which give each
tensor's begin and end in the data that follows. So its true size is known, and a file cut off by a kill is found.
"""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SINGLE_FILES = ("adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def find_weight_problems(folder: Path) -> Iterator[str]:
    """Yield what is wrong with the weights in `folder`: missing, or a file that is cut off."""
    files = [folder / name for name in SINGLE_FILES if (folder / name).exists()]
    for index in (folder / name for name in INDEX_FILES):
        if index.exists():
            shards = _find_shards(index)
            if not shards:
                yield f"{index.name} cannot be read"
            files.extend(shards)
    # under DeepSpeed ZeRO-3 and FSDP the weights may be in the optimizer's folder alone
    if not files and not any(folder.glob("global_step*")) and not any(folder.glob("pytorch_model_fsdp*")):
        yield "no weights"
    if any(file.name.startswith("adapter_model") for file in files) and not (folder / "adapter_config.json").exists():
        yield "no adapter_config.json"
    for file in files:
        if not file.exists():
            yield f"no {file.name}"
        elif not is_whole(file):
            yield f"{file.name} is cut off"


def is_whole(file: Path) -> bool:
    """Return whether a weights file, safetensors or torch.save's ZIP archive, has all of its bytes."""
    if file.suffix != ".safetensors":
        return zipfile.is_zipfile(file)
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if not 0 < length <= size - 8:
            return False
        try:
            header = json.loads(content.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return False
    return size == 8 + length + max(ends, default=0)


def _find_shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return [index.parent / name for name in sorted(names)]
