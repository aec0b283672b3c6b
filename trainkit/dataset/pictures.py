"""The images of a conversation, written down as the trainer does it: each as so many tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from trainkit.dataset.imagetokens import count_image_tokens
from trainkit.dataset.media import MARKS, image_size, read_media

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from trainkit.dataset.entry import Entry
    from trainkit.dataset.imagetokens import ImageForm
    from trainkit.datatypes import Conversation


class Pictured(NamedTuple):
    """A conversation with its images written down, the tokens of these, and the kinds of media that are not counted."""

    conversation: Conversation
    image_tokens: int
    uncounted: str


def write_images(conversation: Conversation, tokens: Sequence[int], form: ImageForm) -> Conversation:
    """Return a conversation in which each `<image>` is written as the trainer does; `tokens` has them in order."""
    number = iter(tokens)
    turns = []
    for turn in conversation.turns:
        written, *rest = turn.content.split(MARKS["image"])
        for text in rest:
            written += f"{form.begin}{form.token * next(number)}{form.end}{text}"
        turns.append(turn._replace(content=written))
    return replace(conversation, turns=tuple(turns))


def picture(
    conversation: Conversation, row: bytes | Mapping[str, Any], entry: Entry, media_dir: Path, form: ImageForm | None
) -> Pictured:
    """Return a conversation that was made of a row with its images written down, where their tokens can be counted.

    Raises:
        Rejected: an image cannot be brought to a size that the trainer takes.
    """
    kinds = [kind for kind, mark in MARKS.items() if any(mark in turn.content for turn in conversation.turns)]
    if not kinds:
        return Pictured(conversation, 0, "")
    if form and "image" in kinds:
        tokens = find_image_tokens(read_media(row, entry)["image"], media_dir, form)
        if tokens is not None:
            return Pictured(write_images(conversation, tokens, form), sum(tokens), in_words(kinds[1:]))
    return Pictured(conversation, 0, in_words(kinds))


def find_image_tokens(images: Sequence[Any], media_dir: Path, form: ImageForm) -> list[int] | None:
    """Return the tokens of each image of a row, None when the size of one cannot be told.

    Raises:
        Rejected: an image cannot be brought to a size that the trainer takes.
    """
    sizes = [image_size(item, media_dir) for item in images]
    tokens = [count_image_tokens(*size, form) for size in sizes if size]
    return tokens if len(tokens) == len(sizes) else None


def in_words(kinds: Sequence[str]) -> str:
    """`in_words(["image", "video"])` is `images and videos`."""
    return " and ".join(f"{kind}s" if kind != "audio" else kind for kind in kinds)
