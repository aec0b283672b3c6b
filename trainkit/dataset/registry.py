"""`dataset_info.json`: what LLaMA-Factory knows of the data sets in a folder.

trainkit's entries name a data set folder and one of its configurations:

    "reward_model_clip": {"script_url": "reward_model-5f0c2d1e", "subset": "reward_model_clip",
                          "formatting": "sharegpt", "columns": {...}, "tags": {...}}

`script_url` is LLaMA-Factory's word for "load this folder as a Hugging Face data set"; no script is involved.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from trainkit.datatypes import Problem
from trainkit.errors import InputError
from trainkit.files import load_json, write_json_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

REGISTRY = "dataset_info.json"
MANIFEST = "manifest.json"

# Given in full: LLaMA-Factory turns each column or tag that a partial mapping leaves out into None.
COLUMNS = {"messages": "conversations", "system": "system", "tools": "tools"}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}


def load_registry(dataset_dir: Path) -> dict[str, Any]:
    """Return the entries of a folder's registry, empty when there is none.

    Raises:
        InputError: the file is not a JSON object.
    """
    path = dataset_dir / REGISTRY
    if not path.exists():
        return {}
    entries = load_json(path)
    if not isinstance(entries, dict):
        raise InputError(f"{path}: is not a JSON object", "each data set is an entry in it, by name")
    return entries


def entry_for(folder: str, name: str) -> dict[str, Any]:
    """Return the registry entry of one variant in a data set folder."""
    return {"script_url": folder, "subset": name, "formatting": "sharegpt", "columns": COLUMNS, "tags": TAGS}


def is_ours(entry: Any, base: str) -> bool:
    """Whether an entry was written by trainkit for the data set `base`."""
    folder = entry.get("script_url") if isinstance(entry, dict) else None
    return isinstance(folder, str) and re.fullmatch(rf"{re.escape(base)}-[0-9a-f]{{8}}", folder) is not None


def check_free(entries: Mapping[str, Any], base: str, names: Iterable[str], dataset_dir: Path) -> None:
    """Check that none of `names` is the entry of somebody else.

    Raises:
        InputError: an entry of that name was not written by trainkit for this data set.
    """
    if taken := [name for name in names if name in entries and not is_ours(entries[name], base)]:
        raise InputError(
            f"{dataset_dir / REGISTRY}: {', '.join(taken)}: already there, and not from this conversion",
            "choose another --name, or another output folder, or remove the entry",
        )


def replace_entries(dataset_dir: Path, base: str, folder: str, names: Iterable[str]) -> None:
    """Put the variants of `base` into the registry in place of its earlier ones; all other entries stay."""
    entries = {name: entry for name, entry in load_registry(dataset_dir).items() if not is_ours(entry, base)}
    entries |= {name: entry_for(folder, name) for name in names}
    write_json_atomic(dataset_dir / REGISTRY, entries)


def find_manifest(dataset_dir: Path, name: str) -> dict[str, Any] | None:
    """Return the manifest of the data set that the entry `name` belongs to, None for a foreign entry.

    Raises:
        InputError: the manifest of one of trainkit's own data sets is missing or damaged.
    """
    entry = load_registry(dataset_dir).get(name)
    if not isinstance(entry, dict) or not isinstance(entry.get("script_url"), str):
        return None
    path = dataset_dir / entry["script_url"] / MANIFEST
    if not path.exists():
        return None
    manifest = load_json(path)
    return manifest if isinstance(manifest, dict) else None


def find_files(dataset_dir: Path, name: str) -> list[Path]:
    """Return the files that hold the rows of an entry; empty when the entry does not name local files."""
    entry = load_registry(dataset_dir).get(name)
    if not isinstance(entry, dict):
        return []
    if manifest := find_manifest(dataset_dir, name):
        variant = manifest.get("variants", {}).get(entry.get("subset"), {})
        return [dataset_dir / entry["script_url"] / file for file in variant.get("files", [])]
    file_name = entry.get("file_name")
    if not isinstance(file_name, str):
        return []
    path = dataset_dir / file_name
    return sorted(path.iterdir()) if path.is_dir() else [path]


def find_eval_name(dataset_dir: Path, name: str) -> str | None:
    """Return the eval entry that belongs to a variant, when the data set was split."""
    manifest = find_manifest(dataset_dir, name)
    eval_name = f"{name}_eval"
    return eval_name if manifest and eval_name in manifest.get("variants", {}) else None


def check_datasets(dataset_dir: Path, names: Iterable[str], key: str) -> list[Problem]:
    """Check that each named data set is registered, readable and not empty."""
    path = dataset_dir / REGISTRY
    if not path.exists():
        hint = "convert your data first: trainkit convert finetune.jsonl"
        return [Problem(f"{key}", f"{path}: no such file", hint)]
    try:
        entries = load_registry(dataset_dir)
    except InputError as error:
        return [Problem(key, error.message, error.hint)]
    return [problem for name in names for problem in check_dataset(dataset_dir, entries, name, key)]


def check_dataset(dataset_dir: Path, entries: Mapping[str, Any], name: str, key: str) -> list[Problem]:
    where = f"{key} {name}"
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=3, cutoff=0.5) or list(entries)[:10]
        return [Problem(where, f"not in {dataset_dir / REGISTRY}", f"there are: {', '.join(close) or 'none'}")]
    try:
        files = find_files(dataset_dir, name)
    except InputError as error:
        return [Problem(where, error.message, "run trainkit convert again")]
    if not files:
        return check_remote(entries[name], dataset_dir, where)
    problems = [problem for file in files for problem in check_file(file, where)]
    if not problems and not any(file.stat().st_size for file in files):
        return [Problem(where, "has no rows", "check the filters of trainkit convert")]
    return problems


def check_remote(entry: Any, dataset_dir: Path, where: str) -> list[Problem]:
    if isinstance(entry, dict) and any(key in entry for key in ("hf_hub_url", "ms_hub_url", "om_hub_url")):
        return [Problem(where, "comes from a hub and was not looked at", level="note")]
    folder = entry.get("script_url") if isinstance(entry, dict) else None
    if isinstance(folder, str) and not (dataset_dir / folder).is_dir():
        return [Problem(where, f"{dataset_dir / folder}: no such folder", "run trainkit convert again")]
    if isinstance(folder, str):
        return [Problem(where, "is a folder that trainkit did not write and was not looked at", level="note")]
    return [Problem(where, "names neither file_name, script_url nor a hub", "see the README, section Data")]


def check_file(path: Path, where: str) -> list[Problem]:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return [Problem(where, f"{path}: cannot be read: {error.strerror}", "run trainkit convert again")]
    return []
