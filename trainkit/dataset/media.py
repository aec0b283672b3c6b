"""Images, videos and audio of a row: whether a template takes them, the marks agree, and the files are there.

Modelled on llamafactory 0.9.5 (data/mm_plugin.py): a template for text alone ignores marks and stops on media; every
other one counts the marks of all three kinds in all turns and stops unless each kind has as many as there are media.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trainkit.dataset.chatform import ChatForm
    from trainkit.dataset.entry import Entry

KINDS = ("image", "video", "audio")
MARKS = {kind: f"<{kind}>" for kind in KINDS}


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


def media_of(row: Mapping[str, Any], entry: Entry) -> dict[str, list[Any]]:
    """Return the media of a row by kind, always as a list.

    Raises:
        Rejected: a list that mixes paths with something else, which the trainer cannot join to its folder.
    """
    columns = {"image": entry.images, "video": entry.videos, "audio": entry.audios}
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
    path = item.get("path") if isinstance(item, dict) and item.get("bytes") is None else item
    if isinstance(item, dict) and path is item:
        return
    if not isinstance(path, str):
        raise Rejected("wrong type", f"an {kind} is neither a path nor an object with one")
    file = media_dir / path
    file = file if file.is_file() else Path(path)
    if not file.is_file():
        raise Rejected(f"{kind} file", f"{path}: no such file in {media_dir}")
    if problem := image_problem(file) if kind == "image" else readable(file):
        raise Rejected(f"{kind} file", f"{path}: {problem}")


def readable(file: Path) -> str:
    """Return why a file cannot be read, empty when it can."""
    try:
        with file.open("rb") as stream:
            return "" if stream.read(1) else "is empty"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def image_problem(file: Path) -> str:
    """Return why a file is no image, empty when its head is that of one; without Pillow any content passes."""
    problem = readable(file)
    library = pillow()
    if problem or library is None:
        return problem
    try:
        with library.open(file):
            return ""
    except (OSError, ValueError, SyntaxError):
        return "is not an image that can be read"


@lru_cache(maxsize=1)
def pillow() -> Any:
    """Return Pillow's Image module, None where it is not installed."""
    return importlib.import_module("PIL.Image") if importlib.util.find_spec("PIL") else None
