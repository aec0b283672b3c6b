"""The messages of a conversation before they become turns: content with images, calls, results.

What a message says is kept in the order in which it says it. Keys that nobody reads (`name`, `weight`, `cache_control`,
a thought's `signature`) are not lost: they are collected with their place and go into the row's metadata.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from trainkit.errors import Rejected
from trainkit.sources.marks import IMAGE, check_images, escape, local_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

decode_json = msgspec.json.Decoder().decode
ABSENT: tuple[object, ...] = (None, "", [], {})


class Call(NamedTuple):
    """One call of a tool: `Call("call_1", "search", {"q": "tea"})`."""

    id: str | None
    name: str
    arguments: dict[str, Any]


@dataclass(slots=True)
class Content:
    """Text with images in it: `runs` are the texts between the images, one more than there are images."""

    runs: list[str] = field(default_factory=lambda: [""])
    images: list[str] = field(default_factory=list)

    def add_image(self, path: str) -> None:
        """Put an image behind what is there."""
        self.images.append(path)
        self.runs.append("")

    def text(self, changes: Counter[str]) -> str:
        """Return it as one text with a mark for each image; other marks are made ordinary text.

        That is done here, where it is whole, as a mark may be cut in two by the border of two parts.
        """
        return IMAGE.join(escape(run, changes, "marks_in_text") for run in self.runs)


class Result(NamedTuple):
    """What a tool answered to the call of that id."""

    id: str | None
    content: Content


@dataclass(slots=True)
class Message:
    """One message; `role` is system, user, assistant or tool, `where` its place in the row: `messages[3]`."""

    role: str
    where: str
    content: Content = field(default_factory=Content)
    calls: list[Call] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)


class Draft:
    """What is gathered while the messages of one row are read.

    Args:
        images: the row's own list of images, which the marks in its texts stand for; empty when it has none.
        media_dir: the folder of images with a relative path; None when there is none.
    """

    def __init__(self, images: list[str], media_dir: Path | None) -> None:
        self.images = images
        self.media_dir = media_dir
        self.rest: Iterator[str] = iter(images)
        self.messages: list[Message] = []
        self.kept: dict[str, dict[str, Any]] = {}
        self.changes: Counter[str] = Counter()

    def say(self, content: Content, text: str) -> None:
        """Add text; where the row has images of its own, each mark in the text takes the next one."""
        first, *others = text.split(IMAGE) if self.images else [text]
        content.runs[-1] += first
        for run in others:
            path = next(self.rest, None)
            if path is None:
                raise Rejected("image count", f"more {IMAGE} in the texts than the {len(self.images)} images")
            content.add_image(self.path_of(path))
            content.runs[-1] = run

    def show(self, content: Content, address: str) -> None:
        """Add an image that is a part of a message."""
        if self.images:
            raise Rejected("image count", "there are image parts, and the row has a list of images too")
        content.add_image(self.path_of(address))

    def path_of(self, address: str) -> str:
        """Return the file that an address names, which must be there; raises `Rejected`."""
        relative = ":" not in address and not address.startswith("/")
        path = str(self.media_dir / address) if relative and self.media_dir is not None else local_path(address)
        check_images([path])
        return path

    def check_all_shown(self) -> None:
        """Check that each of the row's images has its mark; raises `Rejected`."""
        if left := len(list(self.rest)):
            raise Rejected("image count", f"{left} of {len(self.images)} images have no {IMAGE} in the texts")

    def keep(self, where: str, value: Mapping[str, Any], *used: str) -> None:
        """Note the keys of an object that nobody reads."""
        if rest := {key: item for key, item in value.items() if key not in used and item not in ABSENT}:
            self.kept[where] = rest


def list_of(value: Any, where: str) -> list[Any]:
    """Return a list, empty for null; raises `Rejected` for anything else."""
    if value is None or isinstance(value, list):
        return value or []
    raise Rejected("wrong type", f"{where}: is not a list")


def object_of(value: Any, where: str) -> dict[str, Any]:
    """Return an object; raises `Rejected` for anything else."""
    if isinstance(value, dict):
        return value
    raise Rejected("wrong type", f"{where}: is not an object")


def text_of(value: Any, where: str) -> str:
    """Return a text, empty for null; raises `Rejected` for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    raise Rejected("not text", f"{where}: is not a string")


def id_of(value: Any, where: str) -> str | None:
    return text_of(value, where) or None


def load_inner(text: str, where: str, reason: str) -> Any:
    """Return the value of JSON text that stands in a row; raises `Rejected` with that reason."""
    try:
        return decode_json(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Rejected(reason, f"{where}: {error}") from None


def call_of(value: Any, where: str, identity: Any, draft: Draft, arguments: str = "arguments") -> Call:
    """Return the call that an object with a name and arguments stands for.

    Arguments are an object, or JSON text of one; absent ones are an empty object.
    """
    call = object_of(value, where)
    name = text_of(call.get("name"), f"{where}.name")
    if not name:
        raise Rejected("call without a name", f"{where}: has no name")
    given = call.get(arguments)
    if isinstance(given, str) and given.strip():
        given = load_inner(given, f"{where}.{arguments}", "arguments not JSON")
    if given is None or isinstance(given, str):
        draft.changes["empty_arguments"] += 1
        given = {}
    if not isinstance(given, dict):
        raise Rejected("arguments not an object", f"{where}.{arguments}: is not an object with the arguments by name")
    return Call(id_of(identity, f"{where}.id"), name, given)
