"""A step of a trajectory as a training row: what the model was shown as the turns before, its answer as the last one.

The prompt's messages become turns that alternate, as the trainer skips any other row: the system message goes into its
own column, and several user messages in a row are joined by an empty line ("joined user messages" in the counts).

There is one `<image>` where an image was, and a mark that a page or the model has written is made ordinary text
("marks in text" in the counts): see `marks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from trainkit.errors import Rejected
from trainkit.sources.marks import IMAGE, check_images, escape, local_path

if TYPE_CHECKING:
    from collections import Counter

    from trainkit.sources.steps import Trajectory

ROLES = {"user": "human", "assistant": "gpt", "system": "system"}


class Part(msgspec.Struct, gc=False):
    """One part of a message: text, or an image as `{"image_url": {"url": "file:///shots/7.png"}}`."""

    type: str
    text: str | None = None
    image_url: str | dict[str, Any] | None = None
    image: str | None = None


class Spoken(msgspec.Struct, gc=False):
    """One chat message."""

    role: str
    content: str | list[Part]


decode_messages = msgspec.json.Decoder(list[Spoken]).decode
encode_json = msgspec.json.Encoder().encode


def to_example(trajectory: Trajectory, step: int, counts: Counter[str] | None = None) -> bytes:
    """Return the training row of one step as a line of JSON.

    Args:
        trajectory: the whole rollout.
        step: which of its steps, from 0.
        counts: added to for what had to be changed: "joined user messages", "marks in text".

    Raises:
        Rejected: "image file" (missing, or not a local one), "wrong order of turns", "unknown role", "empty turn",
            "unknown content", "prompt not messages".
    """
    chosen = trajectory.steps[step]
    images: list[str] = []
    changes = {"joined user messages": 0, "marks in text": 0}
    system, turns = turns_of(load_messages(chosen.prompt), images, changes)
    turns.append(("gpt", escape(chosen.response, changes)))
    check_turns(turns)
    check_images(images)
    place = {"iteration": trajectory.iteration, "trajectory": trajectory.index, "step": step, "task": trajectory.task}
    row = {
        "conversations": [{"from": role, "value": text} for role, text in turns],
        "system": system,
        "tools": "",
        "images": images,
        "loss_weight": 1.0,
        "metadata": encode_json(place).decode(),
    }
    if counts is not None:
        counts.update(changes)
    return encode_json(row) + b"\n"


def load_messages(prompt: str) -> list[Spoken]:
    try:
        return decode_messages(prompt)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Rejected("prompt not messages", str(error)) from None


def turns_of(messages: list[Spoken], images: list[str], changes: dict[str, int]) -> tuple[str, list[tuple[str, str]]]:
    """Return the system text and the turns of a prompt; its images are added to `images` in order."""
    system = ""
    turns: list[tuple[str, str]] = []
    for number, message in enumerate(messages, 1):
        role = ROLES.get(message.role)
        if role is None:
            raise Rejected("unknown role", f"message {number} is of {message.role!r}")
        if role == "system":
            if number > 1:
                raise Rejected(
                    "wrong order of turns", f"message {number} is a system message, which can only be the first"
                )
            if not isinstance(message.content, str) and any(part.type != "text" for part in message.content):
                raise Rejected("unknown content", "the system message is more than text")
            system = text_of(message, images, changes)
            continue
        text = text_of(message, images, changes)
        if role == "human" and turns and turns[-1][0] == "human":
            turns[-1] = ("human", f"{turns[-1][1]}\n\n{text}")
            changes["joined user messages"] += 1
        else:
            turns.append((role, text))
    return system, turns


def text_of(message: Spoken, images: list[str], changes: dict[str, int]) -> str:
    """Return a message as one text with a mark for each image; raises `Rejected`.

    Texts are joined before they are escaped, as a mark may be cut in two by the border of two parts.
    """
    if isinstance(message.content, str):
        return escape(message.content, changes)
    runs = [""]
    for part in message.content:
        if part.type == "text" and part.text is not None:
            runs[-1] += part.text
        elif part.type in ("image_url", "image"):
            images.append(local_path(url_of(part)))
            runs.append("")
        else:
            raise Rejected("unknown content", f"a part of type {part.type!r}")
    return IMAGE.join(escape(run, changes) for run in runs)


def url_of(part: Part) -> str:
    url = part.image_url.get("url") if isinstance(part.image_url, dict) else part.image_url or part.image
    if not isinstance(url, str):
        raise Rejected("unknown content", f"a part of type {part.type!r} without an address")
    return url


def check_turns(turns: list[tuple[str, str]]) -> None:
    """Check that user and model alternate from the user to the answer, and that no turn is empty; raises `Rejected`."""
    for number, (role, text) in enumerate(turns, 1):
        expected = "human" if number % 2 else "gpt"
        if role != expected:
            raise Rejected("wrong order of turns", f"turn {number} is {role}, not {expected}")
        if not text.strip():
            raise Rejected("empty turn", f"turn {number} ({role}) is empty")
