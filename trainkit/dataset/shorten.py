"""Rows of agents that are longer than cutoff_len lose their oldest turns, and these their images, before training.

The trainer, too, gives up the oldest turns first where only the last answer is trained (`mask_history`), with the first
question and its task among them. But it cuts inside of turns (`infer_seqlen`, llamafactory 0.9.5): the row begins with
a torn piece of the oldest turn that is left, without the system message unless it was the first one; a last turn that
is too long by itself loses the end of its question, with the words that open the answer; and all images stay, so that
it stops when tokens of one of them are gone. Here whole turns go, the system message stays, and a row of which not even
the last turn fits is left out; that holds for rows of text alone as well.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainkit.dataset.media import MARKS
from trainkit.dataset.pictures import find_image_tokens, write_images
from trainkit.dataset.simulate import Flags, cut, lengths_of
from trainkit.dataset.tokenizer import load_tokenizer
from trainkit.dataset.turns import write_pairs
from trainkit.datatypes import Conversation, Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.dataset.chatform import ChatForm
    from trainkit.dataset.tokenizer import Tokenizer

ROLES = {"human": "user", "gpt": "assistant"}
# The turns of a rollout come again in each of its steps.
REMEMBERED = 1024


class Said(msgspec.Struct, gc=False, rename={"role": "from", "text": "value"}):
    """One turn of a row."""

    role: str
    text: str


class StepRow(msgspec.Struct, gc=False):
    """What decides the length of a row: turns that alternate from human to gpt, and a path for each `<image>`."""

    conversations: list[Said]
    system: str = ""
    tools: str = ""
    images: list[str] = []

    def without(self, pairs: int) -> StepRow:
        """Return the row without its oldest questions and answers and their images."""
        gone, kept = self.conversations[: 2 * pairs], self.conversations[2 * pairs :]
        return StepRow(kept, self.system, self.tools, self.images[sum(map(count_marks, gone)) :])


def count_marks(said: Said) -> int:
    return said.text.count(MARKS["image"])


decode_row = msgspec.json.Decoder(StepRow).decode
encode_json = msgspec.json.Encoder().encode


def shorten(row: bytes, fits: Callable[[StepRow], bool]) -> tuple[bytes, int] | None:
    """Return a row with as many of its last turns as fit, and how many questions with their answers have gone.

    A row that fits comes back as it is, byte for byte. None says that not even the last question and answer fit.

    Args:
        row: a line of JSON as `trainkit.sources.steprows.to_example` makes it.
        fits: whether a row is short enough; a row that is does not become too long by losing a turn.
    """
    found = decode_row(row)
    if fits(found):
        return row, 0
    last = len(found.conversations) // 2 - 1
    pairs = bisect_left(range(1, last + 1), True, key=lambda pairs: fits(found.without(pairs))) + 1
    if pairs > last:
        return None
    left = found.without(pairs)
    whole: dict[str, Any] = msgspec.json.decode(row)
    whole["conversations"] = left.conversations
    if "images" in whole:
        whole["images"] = left.images
    return encode_json(whole) + b"\n", pairs


def make_shorten(form: ChatForm, cutoff_len: int) -> Callable[[bytes], tuple[bytes, int] | None]:
    """Return `shorten` for the tokens of a form, with mask_history: a row fits when the trainer cuts nothing of it.

    A row is left as it is when the tokens of its images cannot be counted (`form.images` is None). The function raises
    `Rejected` for an image on which the trainer stops.

    Args:
        form: how the trainer writes a conversation.
        cutoff_len: tokens; with packing one less than the configuration's.

    Raises:
        EnvironmentProblem: the form has no tokenizer that can be used outside of the trainer.
    """
    fits = Fits(form, load_tokenizer(form), Flags(cutoff_len, mask_history=True))
    return lambda row: shorten(row, fits)


class Fits:
    """Whether the trainer keeps a row whole: `Fits(form, tokenizer, Flags(4096, mask_history=True))(row)`."""

    def __init__(self, form: ChatForm, tokenizer: Tokenizer, flags: Flags) -> None:
        self.form = form
        self.flags = flags
        self.tokenizer = tokenizer
        self.count = lru_cache(maxsize=REMEMBERED)(tokenizer.count)

    def __call__(self, row: StepRow) -> bool:
        """Return whether nothing of a row is cut; True also when that cannot be told."""
        turns = tuple(Turn(ROLES[said.role], said.text) for said in row.conversations)
        conversation = Conversation(turns, row.system, row.tools)
        if row.images:
            form = self.form.images
            tokens = find_image_tokens(row.images, Path(), form) if form else None
            if form is None or tokens is None:
                return True
            conversation = write_images(conversation, tokens, form)
        written = write_pairs(conversation, self.form, self.flags.mask_history)
        lengths = lengths_of(written, self.form, self)
        kept = cut(lengths, self.form.efficient_eos, self.flags)
        return [(part.source, part.target) for part in reversed(kept)] == lengths
