"""The first rows of a training as the trainer sees them, and which of their tokens it trains on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.dataset.pictures import picture
from trainkit.dataset.reader import plan_rows, read_block
from trainkit.dataset.rows import align
from trainkit.dataset.simulate import encode
from trainkit.dataset.tokenizer import load_tokenizer
from trainkit.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainkit.dataset.imagetokens import ImageForm
    from trainkit.dataset.look import Lens
    from trainkit.dataset.simulate import Encoded
    from trainkit.dataset.tokenizer import Tokenizer
    from trainkit.workflow.look import LookResult
    from trainkit.workflow.prepare import Prepared

IGNORED = -100  # the label of a token that is not trained on


@dataclass(frozen=True, slots=True)
class Segment:
    """Text of tokens that follow each other and are all trained on, or none of them."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """One row: where it is (file:line), its tokens after the cut, how many are trained on, and its text."""

    place: str
    tokens: int
    trained: int
    segments: tuple[Segment, ...]


def preview(prepared: Prepared, look: LookResult, count: int) -> list[Preview]:
    """Return the first `count` rows of the training data that the trainer keeps; none when it has no tokenizer."""
    found: list[Preview] = []
    for each in look.side("train"):
        if each.lens.form is None:
            continue
        rows = read_previews(prepared, each.lens, load_tokenizer(each.lens.form))
        found += islice(rows, count - len(found))
    return found


def read_previews(prepared: Prepared, lens: Lens, tokenizer: Tokenizer) -> Iterator[Preview]:
    """Yield the rows of a data set that the trainer keeps."""
    assert lens.form is not None
    plan = plan_rows(prepared.dataset_dir, lens.entry, prepared.config.values.get("max_samples"))
    for block in plan.blocks:
        for file, line, _, row in read_block(plan, block):
            try:
                conversation = align(row, lens.entry, lens.media_dir, lens.media)
                if lens.media.any:
                    conversation = picture(conversation, row, lens.entry, lens.media_dir, lens.form.images).conversation
                encoded = encode(conversation, lens.form, tokenizer, lens.flags)
            except Rejected:
                continue
            yield preview_of(encoded, f"{relative(file)}:{line}", tokenizer, lens.form.images)


def relative(file: str) -> str:
    """Return a path from the working folder when it is below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def preview_of(encoded: Encoded, place: str, tokenizer: Tokenizer, images: ImageForm | None) -> Preview:
    """Return a row as text, in segments; of an image's many tokens one is shown."""
    marked = [label != IGNORED for label in encoded.labels]
    segments, start = [], 0
    for trained, group in groupby(marked):
        stop = start + sum(1 for _ in group)
        text = tokenizer.decode(encoded.input_ids[start:stop])
        segments.append(Segment(images.shorten(text)[0] if images else text, trained))
        start = stop
    return Preview(place, len(marked), sum(marked), tuple(segments))
