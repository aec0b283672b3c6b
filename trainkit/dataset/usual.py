"""The short way for the usual row: sharegpt, every type as it should be, and roles that alternate.

Such a row is decoded in one typed step. Whatever else comes goes the long way, which knows what becomes of it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from trainkit.dataset.formats import Said, roles_of
from trainkit.dataset.media import media_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.dataset.entry import Entry

MEDIA = ("images", "videos", "audios")


class Usual(NamedTuple):
    """What a usual row holds."""

    said: list[Said]
    system: str | None
    tools: str | None
    media: dict[str, list[Any]]


@lru_cache(maxsize=8)
def usual_reader(entry: Entry) -> Callable[[bytes], Usual | None] | None:
    """Return a function that reads the usual rows of an entry and returns None for others; None if it has none."""
    columns = [name for name in (entry.messages, entry.system, entry.tools, *media_columns(entry).values()) if name]
    tags = [entry.user_tag, entry.assistant_tag, entry.observation_tag, entry.function_tag, entry.system_tag]
    if entry.formatting != "sharegpt" or entry.ranking or entry.kto_tag or not entry.messages:
        return None
    if not all(tags) or len(set(tags)) < len(tags) or len(set(columns)) < len(columns):
        return None
    if not entry.role_tag or not entry.content_tag or entry.role_tag == entry.content_tag:
        return None
    return UsualReader(entry)


def media_columns(entry: Entry) -> dict[str, str]:
    return {key: name for key in MEDIA if (name := getattr(entry, key))}


class UsualReader:
    """Reads usual rows: `UsualReader(entry)(b'{"conversations": [...]}')`."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        roles = roles_of(entry)
        self.wanted = [
            {tag: roles[tag] for tag in (entry.user_tag, entry.observation_tag)},
            {tag: roles[tag] for tag in (entry.assistant_tag, entry.function_tag)},
        ]
        self.media = media_columns(entry)
        self.decode = row_decoder(entry, self.media)

    def __call__(self, row: bytes) -> Usual | None:
        try:
            found = self.decode(row)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        messages, skip = found.messages, 0
        system = found.system if self.entry.system else None
        if messages and messages[0].role == self.entry.system_tag:
            system, skip = messages[0].content, 1
        if len(messages) == skip or (len(messages) - skip) % 2:
            return None
        said = []
        for number, message in enumerate(messages[skip:], skip + 1):
            role = self.wanted[(number - skip - 1) % 2].get(message.role)
            if role is None:
                return None
            said.append(Said(role, message.content, f"turn {number} ({message.role})"))
        tools = found.tools if self.entry.tools else None
        media = {name: getattr(found, key) for key, name in self.media.items()}
        return Usual(said, system, tools, media_of(media, self.entry) if media else {})


def row_decoder(entry: Entry, media: dict[str, str]) -> Callable[[bytes], Any]:
    """Return a decoder for the columns of an entry; what else a row has is passed over."""
    tags = {"role": str(entry.role_tag), "content": str(entry.content_tag)}
    message: Any = msgspec.defstruct("Message", [("role", str), ("content", str)], rename=tags, gc=False)
    names = {key: name for key in ("messages", "system", "tools") if (name := getattr(entry, key))} | media
    fields: list[Any] = [("messages", list[message])]
    fields += [(key, str | None if key in ("system", "tools") else Any, None) for key in names if key != "messages"]
    return msgspec.json.Decoder(msgspec.defstruct("Row", fields, rename=names, gc=False)).decode
