"""How the figures of a look at the data are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trainkit.cli.output import Output
    from trainkit.workflow.look import SetLook
    from trainkit.workflow.preview import Preview

BAR_WIDTH = 40
LEVELS = " ._-=+*#%@"


def show_sets(output: Output, sets: Iterable[SetLook]) -> None:
    """Print each data set: its rows, its tokens with a histogram, its scores."""
    for each in sets:
        figures = each.figures
        output.data(f"{each.side} data {each.name}: {rows_line(figures)}")
        if figures["tokens"]:
            show_tokens(output, figures, each.lens.flags.cutoff_len)
        show_scores(output, figures["verdicts"])
        output.data("")


def rows_line(figures: dict[str, Any]) -> str:
    """`1,204 rows, 2,100,345 tokens, 31 % of them trained, packed into about 612`."""
    parts = [f"{figures['rows']:,} rows"]
    if figures["full_tokens"]:
        parts += [f"{figures['kept_tokens']:,} tokens", f"{100 * figures['trained_share']:.0f} % of them trained"]
    if figures["sequences_packed"]:
        parts.append(f"packed into about {figures['sequences_packed']:,}")
    return ", ".join(parts)


def show_tokens(output: Output, figures: dict[str, Any], cutoff_len: int) -> None:
    tokens = figures["tokens"]
    listed = "  ".join(f"{name} {tokens[name]:,}" for name in ("min", "median", "p95", "p99", "max"))
    output.data(f"  tokens a row: {listed}  (cutoff_len {cutoff_len:,})")
    for line in text_histogram(figures["histogram"]):
        output.data(f"    {line}")


def text_histogram(histogram: list[list[int]]) -> list[str]:
    """Return lines such as `1 - 500   1,204  ########`, one for each bin."""
    most = max(count for _, _, count in histogram)
    digits, numbers = len(f"{histogram[-1][1]:,}"), len(f"{most:,}")
    lines = []
    for low, high, count in histogram:
        bar = "#" * round(BAR_WIDTH * count / most) or ("." if count else "")
        lines.append(f"{low + 1:>{digits},} - {high:>{digits},}  {count:>{numbers},}  {bar}".rstrip())
    return lines


def show_scores(output: Output, verdicts: dict[str, Any]) -> None:
    """Print the range and the distribution over tenths of each score field, by evaluation type."""
    rows = verdicts["scores"]
    if not rows:
        return
    kinds = max(len(row["evaluation_type"]) for row in rows)
    names = max(len(row["field"]) for row in rows)
    output.data("  scores in the verdicts: lowest, mean, highest, and how they spread from 0 to 1")
    for row in rows:
        spread = sparkline(row["tenths"])
        numbers = f"{row['min']:6.2f} {row['mean']:6.2f} {row['max']:6.2f}"
        output.data(f"    {row['evaluation_type']:<{kinds}}  {row['field']:<{names}}  {numbers}  [{spread}]")


def sparkline(counts: list[int]) -> str:
    """Return one character for each count, darker for more: `sparkline([0, 1, 9])` is ` .@`."""
    most = max(counts) or 1
    return "".join(LEVELS[0 if not count else max(1, round(count / most * (len(LEVELS) - 1)))] for count in counts)


def show_previews(output: Output, previews: Iterable[Preview]) -> None:
    """Print rows as the trainer sees them; lines that are trained on are marked."""
    for each in previews:
        output.data(f"{each.place}  {each.tokens:,} tokens, {each.trained:,} trained (marked >)")
        for segment in each.segments:
            for line in segment.text.splitlines() or [""]:
                output.data(f"  {'>' if segment.trained else ' '} {line}".rstrip())
        output.data("")
