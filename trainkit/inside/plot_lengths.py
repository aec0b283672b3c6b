"""Draw the token lengths of data sets as one PNG, a panel for each.

Run by path with the trainer's Python, which has matplotlib; the request is one JSON object on stdin:

    {"output": "report/lengths.png", "cutoff_len": 4096,
     "panels": [{"title": "train data reward_model_full: 1,204 rows", "histogram": [[0, 500, 17], ...]}]}

The answer is the last line of stdout: `{"output": "report/lengths.png"}`. It must not import trainkit.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

INK, CUT, LINE = "#35608d", "#c8553d", "#222222"


def main() -> None:
    """Draw what stdin asks for; whatever matplotlib prints goes to stderr."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    draw(request["panels"], request["cutoff_len"], request["output"])
    json.dump({"output": request["output"]}, answer)
    answer.write("\n")
    answer.close()


def draw(panels: list[dict[str, Any]], cutoff_len: int, output: str) -> None:
    """Write the picture; rows that are longer than `cutoff_len` stand out."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(panels), 1, figsize=(8, 3.2 * len(panels)), squeeze=False, layout="constrained")
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        draw_panel(axis, panel["histogram"], cutoff_len)
        axis.set_title(panel["title"], loc="left", fontsize=10)
    figure.savefig(output, dpi=120, format="png")
    pyplot.close(figure)


def draw_panel(axis: Any, histogram: list[list[int]], cutoff_len: int) -> None:
    """Draw one histogram; its last bin may be open-ended and is drawn as wide as the others."""
    widths = [high - low for low, high, _ in histogram]
    usual = sorted(widths)[len(widths) // 2]
    open_ended = widths[-1] > usual
    widths[-1] = min(widths[-1], usual)
    lows = [low for low, _, _ in histogram]
    colours = [CUT if low >= cutoff_len else INK for low in lows]
    drawn = [0.97 * width for width in widths]
    axis.bar(lows, [count for _, _, count in histogram], drawn, align="edge", color=colours)
    right = lows[-1] + widths[-1]
    if open_ended:
        ticks = [tick for tick in axis.get_xticks() if lows[0] <= tick < lows[-1]] + [lows[-1]]
        axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks[:-1]] + [f"> {lows[-1]:,}"])
    else:
        axis.xaxis.set_major_formatter("{x:,.0f}")
    if lows[0] < cutoff_len <= right:
        axis.axvline(cutoff_len, color=LINE, linestyle="--", linewidth=1)
        axis.annotate(
            f" cutoff_len {cutoff_len:,}", (cutoff_len, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8
        )
    axis.set_xlim(lows[0], right)
    axis.set_xlabel("tokens in a row, before any cut")
    axis.set_ylabel("rows")
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
