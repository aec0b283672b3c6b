"""The picture of the lengths: a real PNG, with the rows in it that were asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow

INK, CUT = (0x35, 0x60, 0x8D), (0xC8, 0x55, 0x3D)
EVEN = {"title": "train data a: 30 rows", "histogram": [[0, 50, 10], [50, 100, 0], [100, 150, 20]]}
OPEN = {"title": "eval data b: 9 rows", "histogram": [[0, 10, 3], [10, 20, 3], [20, 30, 2], [30, 4000, 1]]}
ODD = {"title": "eval data c: 6 rows", "histogram": [[0, 10, 3], [10, 20, 2], [20, 900, 1]]}


def count(image: Image.Image, colour: tuple[int, int, int]) -> int:
    """Return how many pixels have a colour."""
    return sum(number for number, found in image.getcolors(1 << 20) or [] if found == colour)


def draw(run: Run, folder: Path, panels: list[dict[str, Any]], cutoff_len: int) -> Path:
    picture = folder / "lengths.png"
    done = run("plot_lengths", stdin={"output": str(picture), "cutoff_len": cutoff_len, "panels": panels})
    assert done.returncode == 0, done.stderr
    assert done.stdout == json.dumps({"output": str(picture)}) + "\n"
    return picture


@pytest.mark.parametrize(
    ("panels", "cutoff_len", "is_cut"),
    [
        ([EVEN], 100, True),
        ([EVEN], 4096, False),  # a cut far to the right is not drawn
        ([EVEN, OPEN, ODD], 30, True),
    ],
)
def test_each_data_set_has_a_panel_and_long_rows_stand_out(
    run: Run, tmp_path: Path, panels: list[dict[str, Any]], cutoff_len: int, is_cut: bool
) -> None:
    with Image.open(draw(run, tmp_path, panels, cutoff_len)) as picture:
        assert (picture.format, picture.size) == ("PNG", (960, 384 * len(panels)))
        image = picture.convert("RGB")
    for number in range(len(panels)):
        assert count(image.crop((0, 384 * number, 960, 384 * (number + 1))), INK) > 1000
    assert (count(image, CUT) > 1000) is is_cut


def test_what_cannot_be_written_is_no_picture(run: Run, tmp_path: Path) -> None:
    done = run("plot_lengths", stdin={"output": str(tmp_path / "no" / "x.png"), "cutoff_len": 1, "panels": [EVEN]})
    assert done.returncode != 0
    assert done.stdout == ""
