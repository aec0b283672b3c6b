"""Paths in a configuration: relative ones start from the working folder and are written out in full.

The rendered configuration lies in the run's folder and must mean the same from there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.plan.families import is_hub_name

if TYPE_CHECKING:
    from trainkit.plan.keys import Draft

# Folders of models and adapters; these can also be names on a hub. A comma separates several.
MODEL_KEYS = (
    "model_name_or_path",
    "adapter_name_or_path",
    "ref_model",
    "ref_model_adapters",
    "reward_model",
    "reward_model_adapters",
)
FILE_KEYS = (
    "adapter_folder",
    "cache_dir",
    "dataset_dir",
    "deepspeed",
    "export_dir",
    "fsdp_config",
    "hyper_parallel_args",
    "logging_dir",
    "media_dir",
    "new_special_tokens_config",
    "offload_folder",
    "output_dir",
    "profiler_output_dir",
    "resume_from_checkpoint",
    "swanlab_logdir",
    "tokenized_path",
)
NOT_A_PATH = ("{", "ONLINE", "REMOTE:", "s3://", "gs://")  # JSON text, and dataset_dir's names for hubs


def local_path(name: str, base: Path) -> Path:
    """Return the absolute path of a name as the user wrote it: relative to `base`, `~` expanded, `..` folded."""
    return Path(os.path.normpath(base / Path(name).expanduser()))


def absolute_paths(draft: Draft, base: Path, templates: Path) -> None:
    """Write the paths of a configuration out in full; model names of a hub stay as they are."""
    for key in MODEL_KEYS:
        value = draft.values.get(key)
        if isinstance(value, str):
            draft.values[key] = ",".join(_model_path(draft, key, name.strip(), base) for name in value.split(","))
    for key in FILE_KEYS:
        value = draft.values.get(key)
        if isinstance(value, str) and not value.startswith(NOT_A_PATH):
            draft.values[key] = str(local_path(value, base))
    _shipped_deepspeed(draft, templates / "deepspeed")


def _model_path(draft: Draft, key: str, name: str, base: Path) -> str:
    path = local_path(name, base)
    if name.startswith((".", "/", "~")) or path.exists() or not is_hub_name(name):
        return str(path)
    draft.say(key, f"{name} is no folder here, so it is taken as a hub's name and downloaded at the start")
    return name


def _shipped_deepspeed(draft: Draft, folder: Path) -> None:
    """`deepspeed: ds_z3.json` means trainkit's own file where the user has none of that name."""
    value = draft.values.get("deepspeed")
    if not isinstance(value, str) or value.startswith("{") or Path(value).exists():
        return
    shipped = folder / Path(value).name
    if shipped.is_file():
        draft.values["deepspeed"] = str(shipped)
        draft.say("deepspeed", f"trainkit's own {shipped.name}")
