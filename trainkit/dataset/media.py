"""Images, videos and audio of a row: whether a template takes them, the marks agree, and the files are there.

Modelled on llamafactory 0.9.5 (data/mm_plugin.py): a template for text alone ignores marks and stops on media; every
other one counts the marks of all three kinds in all turns and stops unless each kind has as many as there are media.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from trainkit.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trainkit.dataset.chatform import ChatForm
    from trainkit.dataset.entry import Entry

KINDS = ("image", "video", "audio")
MARKS = {kind: f"<{kind}>" for kind in KINDS}
# Images of which what was found is remembered: the rows of a rollout share their screenshots.
REMEMBERED = 1 << 16


@dataclass(frozen=True, slots=True)
class MediaRules:
    """What a template takes besides text, and the words around thoughts and tool calls in its function turns."""

    image: bool = False
    video: bool = False
    audio: bool = False
    thought_words: tuple[str, str] = ("<think>\n", "\n</think>\n\n")
    tool_call_words: tuple[str, str] = ("<tool_call>", "</tool_call>")

    @classmethod
    def of(cls, form: ChatForm | None) -> MediaRules:
        """Return the rules of a chat template, those of a plain text template when it is not known."""
        if form is None:
            return cls()
        kinds = {kind_of_token(token) for token in form.media_tokens}
        first, last = form.tool_call_words if len(form.tool_call_words) == 2 else ("", "")
        return cls("image" in kinds, "video" in kinds, "audio" in kinds, form.thought_words, (first, last))

    @property
    def any(self) -> bool:
        """Whether marks are counted at all."""
        return self.image or self.video or self.audio


def kind_of_token(token: str) -> str:
    """Return the kind that a plugin's token stands for, by its name; images have the ones without."""
    return next((kind for kind in ("video", "audio") if kind in token.lower()), "image")


def columns_of(entry: Entry) -> dict[str, str | None]:
    """Return the column of each kind; None for a kind without."""
    return {"image": entry.images, "video": entry.videos, "audio": entry.audios}


def read_media(row: bytes | Mapping[str, Any], entry: Entry) -> dict[str, list[Any]]:
    """Return the media of a row that has been aligned before, without reading the rest of its JSON."""
    if isinstance(row, bytes):
        names = columns_of(entry)
        found = media_decoder(entry)(row)
        row = {name: getattr(found, kind) for kind, name in names.items() if name}
    return media_of(row, entry)


@lru_cache(maxsize=8)
def media_decoder(entry: Entry) -> Callable[[bytes], Any]:
    """Return a decoder of JSON that passes over everything but the columns of media."""
    names = {kind: name for kind, name in columns_of(entry).items() if name}
    fields: list[Any] = [(kind, Any, None) for kind in names]
    return msgspec.json.Decoder(msgspec.defstruct("Media", fields, rename=names, gc=False)).decode


def media_of(row: Mapping[str, Any], entry: Entry) -> dict[str, list[Any]]:
    """Return the media of a row by kind, always as a list.

    Raises:
        Rejected: a list that mixes paths with something else, which the trainer cannot join to its folder.
    """
    columns = columns_of(entry)
    found = {}
    for kind, name in columns.items():
        value = row.get(name) if name else None
        items = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, str | dict | list | None) for item in items):
            raise Rejected("wrong type", f"{name} has something in it that is neither a path nor an object")
        if items:
            found[kind] = items
    for kind, media in found.items():
        if isinstance(media[0], str) and not all(isinstance(item, str) for item in media):
            raise Rejected("wrong type", f"{columns[kind]}: not all of its {len(media)} items are paths")
    return found


def check_media(media: Mapping[str, list[Any]], texts: Iterable[str], rules: MediaRules, media_dir: Path) -> None:
    """Check a row's media against the template and the marks in its turns.

    Raises:
        Rejected: the trainer would stop on the row.
    """
    for kind in media:
        if not getattr(rules, kind):
            raise Rejected("media not taken", f"there are {len(media[kind])} {kind}s, and the template takes none")
    texts = list(texts)
    for kind, mark in MARKS.items():
        marks, given = sum(text.count(mark) for text in texts), len(media.get(kind, ()))
        if marks != given:
            reason = f"{kind} count" if getattr(rules, kind) else f"{kind} mark in text"
            raise Rejected(reason, f"{marks} times {mark} in the turns, and {given} in the row")
    for kind, items in media.items():
        for item in items:
            check_file(kind, item, media_dir)


def check_file(kind: str, item: Any, media_dir: Path) -> None:
    """Check that the files of one medium are there, and for an image that it is one."""
    if isinstance(item, list):  # a video as a list of frames
        for frame in item:
            check_file("image", frame, media_dir)
        return
    if isinstance(item, dict) and item.get("bytes") is not None:
        return
    path = item.get("path") if isinstance(item, dict) else item
    if not isinstance(path, str):
        raise Rejected("wrong type", f"an {kind} is neither a path nor an object with one")
    file = find_file(path, media_dir)
    if file is None:
        raise Rejected(f"{kind} file", f"{path}: no such file in {media_dir}")
    if problem := look_at_image(file).problem if kind == "image" else readable(file):
        raise Rejected(f"{kind} file", f"{path}: {problem}")


def find_file(path: str, media_dir: Path) -> Path | None:
    """Return the file that the trainer takes for a path: in its folder, else from the working folder."""
    return next((file for file in (media_dir / path, Path(path)) if file.is_file()), None)


def image_size(item: Any, media_dir: Path) -> tuple[int, int] | None:
    """Return the width and height of an image that a row names or holds, None when it cannot be told."""
    content = item.get("bytes") if isinstance(item, dict) else None
    if isinstance(content, bytes):
        return measure_image(BytesIO(content)).size
    path = item.get("path") if isinstance(item, dict) and content is None else item
    file = find_file(path, media_dir) if isinstance(path, str) else None
    return look_at_image(file).size if file else None


class Image(NamedTuple):
    """What the head of a file says: why it is no image, empty when it is one, and its width and height in pixels."""

    problem: str
    size: tuple[int, int] | None = None


def look_at_image(file: Path) -> Image:
    """Return what the head of an image's file says; without Pillow any content passes, and no size is known."""
    found = file.stat()
    return look_at_file(file, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=REMEMBERED)
def look_at_file(file: Path, changed: int, size: int) -> Image:  # noqa: ARG001
    problem = readable(file)
    return Image(problem) if problem else measure_image(file)


def measure_image(file: Path | BytesIO) -> Image:
    library = pillow()
    if library is None:
        return Image("")
    try:
        with library.open(file) as image:
            return Image("", image.size)
    except (OSError, ValueError, SyntaxError, library.DecompressionBombError):
        return Image("is not an image that can be read")


def readable(file: Path) -> str:
    """Return why a file cannot be read, empty when it can."""
    try:
        with file.open("rb") as stream:
            return "" if stream.read(1) else "is empty"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


@lru_cache(maxsize=1)
def pillow() -> Any:
    """Return Pillow's Image module, None where it is not installed."""
    return importlib.import_module("PIL.Image") if importlib.util.find_spec("PIL") else None
