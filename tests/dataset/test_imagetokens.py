"""Tokens of images by their size; test_image_agreement.py compares them with the trainer's own."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.dataset import media
from trainkit.dataset.chatform import decode_form
from trainkit.dataset.entry import entry_of
from trainkit.dataset.imagetokens import ImageForm, count_image_tokens
from trainkit.dataset.pictures import Pictured, picture
from trainkit.datatypes import Conversation, Turn
from trainkit.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainkit.dataset.chatform import ChatForm

# The bounds of the published models, and the trainer's own.
QWEN2_VL = ImageForm("<s>", "<i>", "<e>", 5, 28, 56 * 56, 12_845_056, 32 * 32, 768 * 768, ())
QWEN3_VL = dataclasses.replace(QWEN2_VL, unit=32, min_pixels=65_536, max_pixels=16_777_216)
WIDE_OPEN = dataclasses.replace(QWEN2_VL, image_max_pixels=100_000_000)
SMALL = dataclasses.replace(QWEN2_VL, max_pixels=16 * 28 * 28)
COLUMNS = {"messages": "conversations", "images": "images", "videos": "videos"}
ENTRY = entry_of("a", {"file_name": "a.jsonl", "formatting": "sharegpt", "columns": COLUMNS})


@pytest.mark.parametrize(
    ("form", "size", "tokens"),
    [
        (QWEN2_VL, (56, 84), 2 * 3),
        (QWEN2_VL, (1280, 720), 37 * 21),  # 1024 x 576 within image_max_pixels
        (QWEN2_VL, (1, 1), 2 * 2),  # 32 x 32, and 56 x 56 in the processor
        (QWEN2_VL, (28, 8400), 180),  # too long a ratio: 28 x 5040
        (QWEN2_VL, (8400, 28), 180),
        (WIDE_OPEN, (1280, 720), 46 * 26),
        (WIDE_OPEN, (6000, 4000), 4389 // 28 * (2926 // 28)),
        (SMALL, (1280, 720), 5 * 3),
        (QWEN3_VL, (1280, 720), 32 * 18),
        (QWEN3_VL, (100, 100), 8 * 8),
    ],
)
def test_an_image_is_as_many_tokens_as_it_has_units(form: ImageForm, size: tuple[int, int], tokens: int) -> None:
    assert count_image_tokens(*size, form) == tokens


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([QWEN2_VL, QWEN3_VL, WIDE_OPEN, SMALL]))
def test_any_image_has_tokens_and_no_more_than_the_bounds_allow(width: int, height: int, form: ImageForm) -> None:
    most = min(form.max_pixels, 2 * form.image_max_pixels) // form.unit**2
    tokens = count_image_tokens(width, height, form)
    assert 1 <= tokens <= max(most, 200)
    assert tokens == count_image_tokens(height, width, form)


def test_an_image_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(Rejected) as caught:
        count_image_tokens(1, 700_000, QWEN2_VL)
    assert (caught.value.reason, caught.value.detail) == (
        "image file", "an image of 1 x 700000 pixels cannot be made smaller",
    )  # fmt: skip


@pytest.mark.parametrize(("tokens", "trusted"), [(777, True), (776, False)])
def test_a_rule_is_used_only_when_it_gives_what_the_trainer_counted(
    make_form: Callable[..., ChatForm], tokens: int, trusted: bool
) -> None:
    images = dataclasses.replace(QWEN2_VL, probes=((56, 84, 6), (1280, 720, tokens)))
    form = make_form(images=images)
    assert decode_form(msgspec.json.encode(form)) == (form if trusted else make_form())


@given(st.lists(st.sampled_from(["<i>", "<i>", "a", "<", ""])).map("".join))
def test_runs_of_tokens_are_shown_as_one(text: str) -> None:
    short, fewer = QWEN2_VL.shorten(text)
    assert "<i><i>" not in short
    assert short.replace("<i>", "") == text.replace("<i>", "")
    assert short.count("<i>") + fewer == text.count("<i>")
    assert short.split("<i>")[0] == text.split("<i>")[0]


def talk(*contents: str) -> Conversation:
    return Conversation(tuple(Turn(("user", "assistant")[index % 2], text) for index, text in enumerate(contents)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    library = pytest.importorskip("PIL.Image")
    library.new("RGB", (56, 84)).save(tmp_path / "a.png")
    library.new("L", (56, 56)).save(tmp_path / "b.png")
    return tmp_path


SMALL_IMAGE, TINY_IMAGE = "<s>" + 6 * "<i>" + "<e>", "<s>" + 4 * "<i>" + "<e>"


@pytest.mark.parametrize(
    ("turns", "media", "form", "expected"),
    [
        (("no", "image"), {}, QWEN2_VL, (("no", "image"), 0, "")),
        (("x<image><image>y", "<image>"), {"images": ["a.png", "b.png", "a.png"]}, QWEN2_VL,
         ((f"x{SMALL_IMAGE}{TINY_IMAGE}y", SMALL_IMAGE), 16, "")),
        (("<image>", "x"), {"images": [{"path": "a.png", "bytes": None}]}, QWEN2_VL, ((SMALL_IMAGE, "x"), 6, "")),
        (("<image>", "x"), {"images": "a.png"}, QWEN2_VL, ((SMALL_IMAGE, "x"), 6, "")),
        (("<image>", "x"), {"images": ["a.png"]}, None, (("<image>", "x"), 0, "images")),
        (("<image>", "<video>"), {"images": ["a.png"], "videos": ["v.mp4"]}, QWEN2_VL,
         ((SMALL_IMAGE, "<video>"), 6, "videos")),
        (("<image>", "<video>"), {"images": ["a.png"], "videos": ["v.mp4"]}, None,
         (("<image>", "<video>"), 0, "images and videos")),
        (("<audio>", "x"), {}, QWEN2_VL, (("<audio>", "x"), 0, "audio")),
        (("<image>", "x"), {"images": [{"path": None, "bytes": [1]}]}, QWEN2_VL, (("<image>", "x"), 0, "images")),
        (("<image>", "x"), {"images": [["a.png"]]}, QWEN2_VL, (("<image>", "x"), 0, "images")),
        (("<image>", "x"), {"images": ["gone.png"]}, QWEN2_VL, (("<image>", "x"), 0, "images")),
    ],
)  # fmt: skip
def test_images_are_written_down_where_they_can_be_counted(
    folder: Path, turns: tuple[str, ...], media: dict[str, Any], form: ImageForm | None, expected: Any
) -> None:
    contents, tokens, uncounted = expected
    row = {"conversations": [], **media}
    for given_row in (row, json.dumps(row).encode()):
        found = picture(talk(*turns), given_row, ENTRY, folder, form)
        assert found == Pictured(talk(*contents), tokens, uncounted)


def test_an_image_in_the_row_itself_is_measured(folder: Path) -> None:
    row = {"images": [{"path": None, "bytes": (folder / "a.png").read_bytes()}]}
    assert picture(talk("<image>", "x"), row, ENTRY, folder, QWEN2_VL).image_tokens == 6


def test_without_pillow_images_are_not_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "pillow", lambda: None)
    found = picture(talk("<image>", "x"), {"images": ["a.png"]}, ENTRY, folder, QWEN2_VL)
    assert (found.image_tokens, found.uncounted) == (0, "images")


def test_an_image_that_has_changed_is_measured_anew(folder: Path) -> None:
    library = pytest.importorskip("PIL.Image")
    for size, tokens in (((56, 84), 6), ((560, 560), 400)):
        library.new("RGB", size).save(folder / "a.png")
        assert picture(talk("<image>", "x"), {"images": ["a.png"]}, ENTRY, folder, QWEN2_VL).image_tokens == tokens
