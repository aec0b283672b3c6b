"""Split expressions, `train[0:9]+train[50:]+train[:10%]`, as the `datasets` library resolves them.

Modelled on datasets 4.0.0 (arrow_reader.py: ReadInstruction). Files of one's own have the one split `train`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

PLUS = re.compile(r"\s*\+\s*")
PIECE = re.compile(
    r"(?P<split>\w+(?:\.\w+)*)"
    r"(?:\[(?:(?P<start>-?[\d_]+)(?P<start_pct>%)?)?:(?:(?P<stop>-?[\d_]+)(?P<stop_pct>%)?)?\])?"
    r"(?:\((?P<rounding>[^)]*)\))?"
)
FEW_ROWS = 100


class Slice(NamedTuple):
    """One piece of an expression: `train[:10%]` is `Slice("train[:10%]", None, 10, percent=True, dropping=False)`.

    `dropping` is the rounding pct1_dropremainder, under which a percent is a whole number of rows.
    """

    text: str
    start: int | None
    stop: int | None
    percent: bool
    dropping: bool


def parse_split(expression: str) -> tuple[Slice, ...]:
    """Return the pieces of a split expression.

    Raises:
        ValueError: the trainer would stop on it; the message says why.
    """
    if expression == "all":
        return (Slice("all", None, None, percent=False, dropping=False),)
    slices = tuple(parse_piece(text) for text in PLUS.split(expression))
    if slices[0].percent and any(piece.percent and piece.dropping != slices[0].dropping for piece in slices):
        raise ValueError("percents of different rounding cannot be added")
    return slices


def parse_piece(text: str) -> Slice:
    match = PIECE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not of the form train, train[10:20] or train[:10%]")
    if match["split"] != "train":
        raise ValueError(f"there is no split {match['split']}: files have the one split train")
    start, stop = parse_bound(match["start"], text), parse_bound(match["stop"], text)
    percent = bool(match["start_pct"] or match["stop_pct"])
    check_rounding(match["rounding"], percent=percent)
    if percent and max(abs(start or 0), abs(stop or 0)) > 100:
        raise ValueError(f"{text!r} goes beyond 100 percent")
    return Slice(text, start, stop, percent, match["rounding"] == "pct1_dropremainder")


def parse_bound(digits: str | None, text: str) -> int | None:
    try:
        return int(digits) if digits else None
    except ValueError:
        raise ValueError(f"{text!r}: {digits} is not a number") from None


def check_rounding(rounding: str | None, *, percent: bool) -> None:
    if rounding is None:
        return
    if rounding not in ("closest", "pct1_dropremainder"):
        raise ValueError(f"the rounding is closest or pct1_dropremainder, not {rounding!r}")
    if not percent:
        raise ValueError(f"the rounding ({rounding}) goes with percents only")


def resolve(piece: Slice, num_rows: int) -> tuple[int, int]:
    """Return the rows [start, stop) that a piece takes of `num_rows`; what lies beyond them is cut off silently.

    Raises:
        ValueError: the trainer would stop: the piece ends before it starts, or rounds fewer than 100 rows downwards.
    """
    start, stop = piece.start, piece.stop
    if piece.percent:
        if piece.dropping and num_rows < FEW_ROWS and (start is not None or stop is not None):
            raise ValueError(f"{piece.text!r}: pct1_dropremainder needs 100 rows, and there are {num_rows}")
        start, stop = rows_of(start, piece, num_rows), rows_of(stop, piece, num_rows)
    first, end = place(start, num_rows, 0), place(stop, num_rows, num_rows)
    if first > end:
        raise ValueError(f"{piece.text!r} ends before it starts")
    return first, end


def rows_of(percent: int | None, piece: Slice, num_rows: int) -> int | None:
    if percent is None:
        return None
    return percent * (num_rows // 100) if piece.dropping else round(percent * num_rows / 100)


def place(bound: int | None, num_rows: int, default: int) -> int:
    if bound is None:
        return default
    return min(max(num_rows + bound, 0) if bound < 0 else bound, num_rows)
