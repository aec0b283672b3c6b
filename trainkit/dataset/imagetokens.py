"""How many tokens the trainer makes of an image: by its size alone, which stands in the head of its file.

Modelled on llamafactory 0.9.5 (`_preprocess_image` of MMPluginMixin and of Qwen2VLPlugin in data/mm_plugin.py) and on
`smart_resize` of transformers (models/qwen2_vl/image_processing_qwen2_vl.py): the trainer brings an image between
image_min_pixels and image_max_pixels, the model's processor brings that between its own bounds and to whole units, and
a unit is a token. So it is for Qwen2-VL, 2.5-VL and 3-VL; that it is so for the model at hand is checked on
`ImageForm.probes`, which the trainer's own code has counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainkit.errors import Rejected

SHORTEST_SIDE = 28
LONGEST_RATIO, RATIO_AFTER = 200, 180


@dataclass(frozen=True, slots=True)
class ImageForm:
    """How the trainer writes an image down: `begin`, then `token` as often as its size makes, then `end`.

    `unit` is the side in pixels of what becomes one token; `min_pixels` and `max_pixels` are the bounds of the model's
    processor, `image_min_pixels` and `image_max_pixels` the trainer's. `probes` are (width, height, tokens) of images
    that the trainer has counted.
    """

    begin: str
    token: str
    end: str
    token_id: int
    unit: int
    min_pixels: int
    max_pixels: int
    image_min_pixels: int
    image_max_pixels: int
    probes: tuple[tuple[int, int, int], ...]

    @property
    def holds(self) -> bool:
        """Whether the rule gives what the trainer has counted."""
        return all(count_image_tokens(width, height, self) == tokens for width, height, tokens in self.probes)

    def shorten(self, text: str) -> tuple[str, int]:
        """Return a text with one token of each run of image tokens, and how many there are fewer."""
        first, *parts = text.split(self.token)
        kept = [first, *filter(None, parts[:-1]), *parts[-1:]]
        return self.token.join(kept), len(parts) + 1 - len(kept)


def count_image_tokens(width: int, height: int, form: ImageForm) -> int:
    """Return the tokens of an image of so many pixels.

    Raises:
        Rejected: it is so thin that nothing is left when it is made smaller, on which the trainer stops.
    """
    width, height = trainer_size(width, height, form)
    width, height = processor_size(width, height, form)
    return (width // form.unit) * (height // form.unit)


def trainer_size(width: int, height: int, form: ImageForm) -> tuple[int, int]:
    """Return the size that the trainer gives an image before the model's processor gets it."""
    if width * height > form.image_max_pixels:
        width, height = scaled(width, height, form.image_max_pixels)
    if width * height < form.image_min_pixels:
        width, height = scaled(width, height, form.image_min_pixels)
    width, height = max(width, SHORTEST_SIDE), max(height, SHORTEST_SIDE)
    if width / height > LONGEST_RATIO:
        width = height * RATIO_AFTER
    if height / width > LONGEST_RATIO:
        height = width * RATIO_AFTER
    return width, height


def scaled(width: int, height: int, pixels: int) -> tuple[int, int]:
    factor = math.sqrt(pixels / (width * height))
    sides = int(width * factor), int(height * factor)
    if not all(sides):
        raise Rejected("image file", f"an image of {width} x {height} pixels cannot be made smaller")
    return sides


def processor_size(width: int, height: int, form: ImageForm) -> tuple[int, int]:
    """Return the size that the model's processor gives an image: whole units within its bounds (`smart_resize`)."""
    unit = form.unit
    wide, high = round(width / unit) * unit, round(height / unit) * unit
    if wide * high > form.max_pixels:
        factor = math.sqrt(width * height / form.max_pixels)
        wide = max(unit, math.floor(width / factor / unit) * unit)
        high = max(unit, math.floor(height / factor / unit) * unit)
    elif wide * high < form.min_pixels:
        factor = math.sqrt(form.min_pixels / (width * height))
        wide = math.ceil(width * factor / unit) * unit
        high = math.ceil(height * factor / unit) * unit
    return wide, high
