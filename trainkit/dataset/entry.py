"""One entry of `dataset_info.json` as LLaMA-Factory understands it, with its own defaults.

Modelled on `DatasetAttr` of llamafactory 0.9.5 (data/parser.py). Its rule that surprises: once an entry has `columns`,
each column that it does not list becomes None, the ones with a default too; the same holds for `tags`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trainkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

Source = Literal["file", "script", "cloud_file", "hf_hub", "ms_hub", "om_hub"]

# The key that names where the rows are, in the order in which the trainer looks (without USE_MODELSCOPE_HUB and the
# like, which put their hub first).
SOURCES: dict[str, Source] = {
    "hf_hub_url": "hf_hub",
    "ms_hub_url": "ms_hub",
    "om_hub_url": "om_hub",
    "script_url": "script",
    "cloud_file_name": "cloud_file",
    "file_name": "file",
}
FORMATTINGS = ("alpaca", "sharegpt", "openai")
SETTINGS = ("formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags")
COLUMNS = (
    "prompt", "query", "response", "history", "messages", "system", "tools",
    "images", "videos", "audios", "chosen", "rejected", "kto_tag",
)  # fmt: skip
TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")


@dataclass(frozen=True, slots=True)
class Entry:
    """What the trainer knows of a data set: `Entry("my_set", "file", "my_set.json", formatting="sharegpt")`.

    `path` is the file or folder below the data folder, or the name on a hub. A column or tag of None is not read.
    """

    name: str
    source: Source
    path: str
    formatting: str = "alpaca"
    ranking: bool = False
    split: str = "train"
    num_samples: int | None = None
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None
    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    role_tag: str | None = "from"
    content_tag: str | None = "value"
    user_tag: str | None = "human"
    assistant_tag: str | None = "gpt"
    observation_tag: str | None = "observation"
    function_tag: str | None = "function_call"
    system_tag: str | None = "system"


def entry_of(name: str, raw: Any) -> Entry:
    """Return the entry that the trainer makes of a registry's value.

    Raises:
        InputError: the value is one on which the trainer stops; `linter.check_registry` says where it stands.
    """
    mapping = as_mapping(raw, name)
    key = next((key for key in SOURCES if key in mapping), None)
    if key is None:
        raise InputError(f"{name}: names neither file_name, script_url nor a hub")
    columns = named(mapping, "columns", COLUMNS, name)
    tags = named(mapping, "tags", TAGS, name)
    num_samples = mapping.get("num_samples")
    if num_samples is not None and type(num_samples) is not int:
        raise InputError(f"{name}: num_samples: is not a whole number")
    return Entry(
        name=name,
        source=SOURCES[key],
        path=text_of(mapping, key, name),
        formatting=text_of(mapping, "formatting", name, "alpaca"),
        ranking=bool(mapping.get("ranking", False)),
        split=text_of(mapping, "split", name, "train"),
        num_samples=num_samples,
        **columns,
        **tags,
    )


def as_mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: is not a JSON object")
    return value


def named(mapping: Mapping[str, Any], key: str, names: tuple[str, ...], name: str) -> dict[str, Any]:
    """Return the columns or tags that an entry sets: none of them without `key`, all of them with it."""
    if key not in mapping:
        return {}
    given = as_mapping(mapping[key], f"{name}: {key}")
    for word in names:
        if not isinstance(given.get(word), str | None):
            raise InputError(f"{name}: {key}.{word}: is not a string")
    return {word: given.get(word) for word in names}


def text_of(mapping: Mapping[str, Any], key: str, name: str, default: str = "") -> str:
    value = mapping.get(key, default)
    if not isinstance(value, str):
        raise InputError(f"{name}: {key}: is not a string")
    return value
