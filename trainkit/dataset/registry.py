"""`dataset_info.json`: what LLaMA-Factory knows of the data sets in a folder.

trainkit's entries name the file of a side and, unless it is all of them, ranges of its rows:

    "reward_model_clip": {"file_name": "reward_model-5f0c2d1e/train.jsonl", "split": "train[0:4]+train[9:12]",
                          "formatting": "sharegpt", "columns": {...}, "tags": {...}}
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from trainkit.errors import InputError
from trainkit.files import load_json, write_bytes_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

REGISTRY = "dataset_info.json"
MANIFEST = "manifest.json"

# Given in full: LLaMA-Factory turns each column or tag that a partial mapping leaves out into None.
COLUMNS = {"messages": "conversations", "system": "system", "tools": "tools"}
IMAGES = {"images": "images"}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
SPACE = re.compile(r"[ \t\n\r]*")


class Member(NamedTuple):
    """One entry as it stands in the file: `Member("mine", {"file_name": "a.json"}, '\\n  "mine": {...}')`.

    `text` has the white space before the name, and none behind the value.
    """

    name: str
    value: Any
    text: str


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


def entry_for(
    file_name: str,
    ranges: Iterable[tuple[int, int]],
    *,
    images: bool = False,
    columns: Mapping[str, str] = COLUMNS | IMAGES,
) -> dict[str, Any]:
    """Return the registry entry for ranges [start, stop) of the rows of a file; without ranges for all of them.

    `images` keeps the column of the images, which is only there for the trainer when some row has one. Columns with
    `chosen` are those of pairs.
    """
    split = "+".join(f"train[{start}:{stop}]" for start, stop in ranges)
    return {
        "file_name": file_name,
        **({"split": split} if split else {}),
        "formatting": "sharegpt",
        **({"ranking": True} if "chosen" in columns else {}),
        "columns": {name: column for name, column in columns.items() if images or name not in IMAGES},
        "tags": TAGS,
    }


def is_ours(entry: Any, base: str) -> bool:
    """Whether an entry was written by trainkit for the data set `base`."""
    name = entry.get("file_name") if isinstance(entry, dict) else None
    pattern = rf"{re.escape(base)}-[0-9a-f]{{8}}/(train|eval)\.jsonl"
    return isinstance(name, str) and re.fullmatch(pattern, name) is not None


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


def replace_entries(dataset_dir: Path, base: str, new: Mapping[str, Any]) -> None:
    """Put the variants of `base` into the registry in place of its earlier ones; all other entries stay."""
    put_entries(dataset_dir, new, lambda member: is_ours(member.value, base))


def put_entries(dataset_dir: Path, new: Mapping[str, Any], is_old: Callable[[Member], bool]) -> None:
    """Put entries into the registry behind those that are there, without the old ones.

    The others stay byte for byte, with their escapes, numbers and line breaks: a file that somebody keeps by hand shows
    no other change.
    """
    path = dataset_dir / REGISTRY
    content = path.read_bytes() if path.exists() else b"{}"
    text = content.decode(json.detect_encoding(content), "surrogatepass")
    kept = [member.text for member in read_members(text) if not is_old(member)]
    first = kept[0] if kept else ""
    before = first[: skip_space(first, 0)]
    lead = "\n" + (before.rpartition("\n")[2] if "\n" in before else "  ")
    for name, entry in new.items():
        value = json.dumps(entry, indent=2, ensure_ascii=False).replace("\n", lead)
        kept.append(f"{lead}{json.dumps(name, ensure_ascii=False)}: {value}")
    write_bytes_atomic(path, f"{{{','.join(kept)}\n}}\n".encode(errors="surrogatepass"))


def read_members(text: str) -> Iterator[Member]:
    """Yield the members of the JSON object in a text that is known to be one, a name as often as it is there."""
    decode = json.JSONDecoder().raw_decode
    start = text.index("{") + 1
    while (at := skip_space(text, start)) and text[at] != "}":
        name, at = decode(text, at)
        value, at = decode(text, skip_space(text, skip_space(text, at) + 1))  # behind the colon
        yield Member(name, value, text[start:at])
        start = skip_space(text, at)
        start += text[start] == ","


def skip_space(text: str, start: int) -> int:
    """Return where the white space from `start` on ends."""
    found = SPACE.match(text, start)
    return found.end() if found else start


def find_manifest(dataset_dir: Path, name: str) -> dict[str, Any] | None:
    """Return the manifest of the data set that the entry `name` belongs to, None for a foreign entry.

    Raises:
        InputError: the manifest is damaged.
    """
    path = find_file(dataset_dir, name)
    if path is None or not (path.parent / MANIFEST).is_file():
        return None
    manifest = load_json(path.parent / MANIFEST)
    return manifest if isinstance(manifest, dict) and "metadata_form" in manifest else None


def find_file(dataset_dir: Path, name: str) -> Path | None:
    """Return the file or folder that an entry names; None when it names none."""
    entry = load_registry(dataset_dir).get(name)
    file_name = entry.get("file_name") if isinstance(entry, dict) else None
    return dataset_dir / file_name if isinstance(file_name, str) else None


def find_files(dataset_dir: Path, name: str) -> list[Path]:
    """Return the files that hold the rows of an entry; empty when the entry does not name local files."""
    path = find_file(dataset_dir, name)
    if path is None:
        return []
    return sorted(path.iterdir()) if path.is_dir() else [path]


def find_eval_name(dataset_dir: Path, name: str) -> str | None:
    """Return the eval entry that belongs to a variant, when the data set was split."""
    manifest = find_manifest(dataset_dir, name)
    eval_name = f"{name}_eval"
    return eval_name if manifest and eval_name in manifest.get("variants", {}) else None
