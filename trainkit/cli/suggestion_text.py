"""A suggestion as lines of text, at most 100 columns wide."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 2**30
WIDTH = 100
LEAST_SHARE = 0.05  # of the time, to be worth a word
LEAST_TERM = 0.05 * GIB  # a smaller term would show as 0.0 GiB


def text_of(found: dict[str, Any]) -> Iterator[str]:
    """Return the lines for the report of a suggestion."""
    yield from _head(found)
    yield from _given(found["given"])
    if found["candidates"]:
        yield from _candidates(found["candidates"])
    else:
        yield from _nearest(found["nearest"])
    if found["options"]:
        yield from _options(found["options"], found["candidates"])


def _head(found: dict[str, Any]) -> Iterator[str]:
    machine, setup = found["machine"], found["given"]["setup"]
    yield f"{found['model']}: {setup['method']}, {setup['stage']}, rows of up to {setup['seq_tokens']:,} tokens"
    count = f"{machine['gpus']} x " if machine["gpus"] > 1 else ""
    usable = f"{gib(machine['usable'])} of {gib(machine['memory'])} GiB may be filled"
    yield f"{count}{machine['gpu']}: {usable}; {found['effective_batch']} rows in an optimizer step"
    yield ""


def _given(given: dict[str, Any]) -> Iterator[str]:
    setup = given["setup"]
    rows = f"{setup['micro_batch']} x {setup['accumulation']}"
    if given["fits"]:
        said = f"fits, {gib(given['margin'])} GiB to spare; about {rounded(given['tokens_per_second']):,} tokens/s"
    else:
        said = f"does not fit: {gib(-given['margin'])} GiB are lacking"
    yield f"as given ({rows}): {said}"
    yield from _terms(given)
    yield ""


def _terms(verdict: dict[str, Any]) -> Iterator[str]:
    """Each term of the memory with its formula; the peak is one moment, so that not all of them add up."""
    for name, size in verdict["terms"].items():
        if size < LEAST_TERM:
            continue
        line = f"  {name.replace('_', ' '):<17}{gib(size):>6} GiB  {verdict['why'][name]}"
        yield from textwrap.wrap(line, WIDTH, subsequent_indent=" " * 31)
    yield f"  {'total':<17}{gib(verdict['total']):>6} GiB  at its peak: {verdict['phase']}"
    if traced := verdict.get("traced"):
        yield from _traced(traced)


def _traced(traced: dict[str, Any]) -> Iterator[str]:
    if traced["error"]:
        return
    off = f"the closed form is {100 * traced['difference']:+.1f} % off"
    yield f"  {'traced exactly':<17}{gib(traced['total']):>6} GiB  at its peak: {traced['phase']}; {off}"


def _candidates(candidates: list[dict[str, Any]]) -> Iterator[str]:
    yield "the best that fit" if len(candidates) > 1 else "the best that fits"
    yield "     GiB   left  tokens/s  speed  where the time goes; where memory peaks"
    for number, candidate in enumerate(candidates, 1):
        yield _row(number, candidate)
        yield from _changes(candidate)
    yield ""


def _row(number: int, candidate: dict[str, Any]) -> str:
    total, left = gib(candidate["total"]), gib(candidate["margin"])
    speed = f"{rounded(candidate['tokens_per_second']):>9,}  {candidate['speedup']:.2f}x"
    return f"{number}  {total:>5}  {left:>5} {speed}  {_time(candidate)}"


def _time(verdict: dict[str, Any]) -> str:
    """`matrix products 50 %, attention 29 %; backward, loss`."""
    shares = [f"{name} {100 * share:.0f} %" for name, share in verdict["time"].items() if share >= LEAST_SHARE]
    return f"{', '.join(shares[:2])}; {verdict['phase']}"


def _changes(candidate: dict[str, Any]) -> Iterator[str]:
    if not candidate["changes"]:
        yield "   the configuration as it is"
    told = set()
    for key, value in candidate["changes"].items():
        reason = candidate["reasons"][key]
        words = "; ".join(part for part in (reason["does"], reason["caveat"]) if part)
        yield f"   {key}: {yaml_word(value)}"
        if words not in told:
            yield from textwrap.wrap(words, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
        told.add(words)
    if (traced := candidate.get("traced")) and not traced["error"]:
        yield f"      traced exactly: {gib(traced['total'])} GiB"


def _nearest(nearest: dict[str, Any]) -> Iterator[str]:
    yield f"nothing fits; the nearest needs {gib(nearest['total'])} GiB, {gib(-nearest['margin'])} more than there are"
    yield from _changes(nearest)
    yield from _terms(nearest)
    yield ""


def _options(options: list[dict[str, Any]], candidates: list[dict[str, Any]]) -> Iterator[str]:
    """Each option with its gain, and the other keys that go with it where they are not those of the first setup."""
    usual = candidates[0]["changes"] if candidates else {}
    yield "not done unasked, as it changes the learning or needs something more"
    for option in options:
        gain = f"{option['gain']:.2f}x the first" if candidates else f"fits, {gib(option['total'])} GiB"
        keys = _listed(option["keys"])
        yield f"   {gain:<15}  {keys}"
        others = {key: value for key, value in option["changes"].items() if key not in option["keys"]}
        words = option["caveat"]
        if others != usual:
            words += "; here with " + (_listed(others) or "nothing else")
        yield from textwrap.wrap(words, WIDTH, initial_indent=" " * 20, subsequent_indent=" " * 20)


def _listed(keys: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {yaml_word(value)}" for key, value in keys.items())


def gib(size: float) -> str:
    """Return bytes as GiB with one decimal."""
    return f"{size / GIB:.1f}"


def rounded(speed: float) -> float:
    """Return a speed with two digits, which is as much as a prediction knows."""
    return round(speed, 1 - math.floor(math.log10(speed))) if speed >= 1 else round(speed)


def yaml_word(value: object) -> str:
    """Return a value as it stands in YAML."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else "null" if value is None else str(value)
