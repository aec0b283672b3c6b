"""Marks for media in a row's text, and the files that they stand for.

The trainer counts `<image>`, `<video>` and `<audio>` in every turn and stops unless there are as many media. So there
is one `<image>` where an image was, and where a text has such a mark of its own, a space makes it ordinary text:
`< image>`. So with `<|image_pad|>`, one token of an image in the tokenizers of the Qwen-VL family.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from trainkit.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

IMAGE = "<image>"
MARK = re.compile(r"<(image|video|audio|\|image_pad\||\|video_pad\|)>")


def escape(text: str, changes: MutableMapping[str, int], name: str = "marks in text") -> str:
    """Return a text in which nothing is taken for a mark: `<video>` becomes `< video>`, counted under `name`."""
    if "<" not in text:
        return text
    text, number = MARK.subn(r"< \1>", text)
    if number:
        changes[name] += number
    return text


def local_path(url: str) -> str:
    """Return the path that a `file://` address names; an absolute path is itself.

    Its %20 and the like are decoded, unless only the path as it is written is there: not every writer encodes.

    Raises:
        Rejected: the address is not that of a file of this machine.
    """
    if url.startswith("/"):
        return url
    path = url.removeprefix("file://").removeprefix("localhost")
    if not url.startswith("file://") or not path.startswith("/"):
        raise Rejected("image file", f"{url[:80]}: is not a file of this machine")
    decoded = unquote(path)
    return path if decoded != path and not Path(decoded).is_file() and Path(path).is_file() else decoded


def check_images(images: Iterable[str]) -> None:
    """Check that the images are there; raises `Rejected`."""
    for path in images:
        if not Path(path).is_file():
            raise Rejected("image file", f"{path}: no such file")
