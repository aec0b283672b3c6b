"""Rows that are too long lose their oldest turns, and with them their images; what is left is a row as it was."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.dataset import shorten as module
from trainkit.dataset.entry import entry_of
from trainkit.dataset.imagetokens import ImageForm
from trainkit.dataset.pictures import picture
from trainkit.dataset.registry import COLUMNS, TAGS
from trainkit.dataset.rows import MediaRules, align
from trainkit.dataset.shorten import StepRow, make_shorten, shorten
from trainkit.dataset.simulate import Flags, measure
from trainkit.dataset.tokenizer import load_tokenizer
from trainkit.errors import EnvironmentProblem, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainkit.dataset.chatform import ChatForm

    MakeForm = Callable[..., ChatForm]

RULE = ImageForm("<s>", "<i>", "<e>", 5, 28, 28 * 28, 100 * 28 * 28, 1, 10**9, ())
RAW = {"file_name": "a.jsonl", "formatting": "sharegpt", "columns": {**COLUMNS, "images": "images"}, "tags": TAGS}


load_once = functools.cache(load_tokenizer)


def step(*pages: str, images: list[str] | None = None, system: str = "Act.") -> bytes:
    """The row of the last of some steps: a page each, and a short answer to it."""
    turns = []
    for number, page in enumerate(pages):
        turns += [{"from": "human", "value": page}, {"from": "gpt", "value": f"click({number})"}]
    more = {"images": images or [], "loss_weight": 1.0, "metadata": '{"step": 3}'}
    return json.dumps({"conversations": turns, "system": system, "tools": "", **more}).encode() + b"\n"


def words_of(row: StepRow) -> int:
    return sum(len(said.text.split()) for said in row.conversations)


@pytest.mark.parametrize(
    ("most", "kept"),
    [
        (99, ("one <image>", "two", "three <image> <image>")),
        (9, ("one <image>", "two", "three <image> <image>")),
        (8, ("two", "three <image> <image>")),
        (6, ("two", "three <image> <image>")),
        (5, ("three <image> <image>",)),
        (4, ("three <image> <image>",)),
        (3, None),
    ],
)
def test_the_oldest_turns_go_with_their_images(most: int, kept: tuple[str, ...] | None) -> None:
    row = step("one <image>", "two", "three <image> <image>", images=["/a.png", "/b.png", "/c.png"])
    found = shorten(row, lambda row: words_of(row) <= most)
    if kept is None:
        assert found is None
        return
    assert found is not None
    assert found[1] == 3 - len(kept)
    if len(kept) == 3:
        assert found[0] == row
    left, whole = json.loads(found[0]), json.loads(row)
    assert [turn["value"] for turn in left["conversations"][::2]] == list(kept)
    assert left["images"] == (["/a.png", "/b.png", "/c.png"] if len(kept) == 3 else ["/b.png", "/c.png"])
    assert list(left) == list(whole)
    assert {key: left[key] for key in left if key not in ("conversations", "images")} == {
        key: whole[key] for key in whole if key not in ("conversations", "images")
    }


def test_a_row_without_the_column_of_images_stays_one() -> None:
    row = b'{"conversations":[{"from":"human","value":"a b"},{"from":"gpt","value":"c"},'
    row += b'{"from":"human","value":"d"},{"from":"gpt","value":"e"}]}\n'
    expected = b'{"conversations":[{"from":"human","value":"d"},{"from":"gpt","value":"e"}]}\n'
    assert shorten(row, lambda row: words_of(row) <= 2) == (expected, 1)


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    library = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("shots")
    sizes = [(28, 28), (56, 56), (56, 84)]
    for number, size in enumerate(sizes):
        library.new("RGB", size).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(len(sizes))]


def form_with_images(make_form: MakeForm, **changes: Any) -> ChatForm:
    return make_form(images=RULE, plugin="Qwen2VLPlugin", media_tokens=("<i>",), **changes)


def measured(row: bytes, form: ChatForm, cutoff_len: int, folder: Path) -> Any:
    """The row as validate measures it."""
    conversation = align(row, entry_of("a", RAW), folder, MediaRules.of(form))
    seen = picture(conversation, row, entry_of("a", RAW), folder, form.images)
    return measure(seen.conversation, form, load_once(form), Flags(cutoff_len, mask_history=True))


PAGES = st.lists(
    st.lists(st.sampled_from(["word ", "<image>", "Seite\n", "<think>\nhm\n</think>\n\n"]), max_size=8).map("".join),
    min_size=1,
    max_size=7,
)
KINDS: list[dict[str, Any]] = [
    {},
    {"template_class": "ReasoningTemplate"},
    {"efficient_eos": True},
    {"default_system": "Default."},
]


@pytest.mark.parametrize("changes", KINDS, ids=lambda changes: next(iter(changes), "plain"))
def test_what_stays_is_the_longest_end_that_the_trainer_keeps_whole(
    make_form: MakeForm, shots: list[str], tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_tokenizer", load_once)
    form = form_with_images(make_form, **changes)

    @settings(deadline=None)
    @given(PAGES, st.integers(1, 250), st.data())
    def check(pages: list[str], cutoff_len: int, data: st.DataObject) -> None:
        number = sum(page.count("<image>") for page in pages)
        images = data.draw(st.lists(st.sampled_from(shots), min_size=number, max_size=number))
        row = step(*pages, images=images)
        found = make_shorten(form, cutoff_len)(row)
        left, pairs = found or (b"", len(pages))
        if pairs:
            assert measured(end_of(row, pairs - 1), form, cutoff_len, tmp_path).is_cut, "it could have kept one more"
        if found is None:
            return
        assert json.loads(left) == json.loads(end_of(row, pairs))
        facts = measured(left, form, cutoff_len, tmp_path)
        assert not facts.is_cut
        assert facts.full_tokens <= cutoff_len
        assert pairs or left == row

    check()


def end_of(line: bytes, pairs: int) -> bytes:
    """The row without its first pairs, its images by their marks."""
    row = json.loads(line)
    turns = row["conversations"]
    gone = sum(turn["value"].count("<image>") for turn in turns[: 2 * pairs])
    return json.dumps({**row, "conversations": turns[2 * pairs :], "images": row["images"][gone:]}).encode()


def test_rows_of_text_are_shortened_as_well_and_keep_their_system_message(make_form: MakeForm, tmp_path: Path) -> None:
    """The trainer itself would begin with a torn turn and without the system message."""
    form = make_form()
    row = step("word " * 30, "word " * 20, "What now?")
    whole = measured(row, form, 10_000, tmp_path).full_tokens
    found = make_shorten(form, whole - 1)(row)
    assert found is not None
    assert found[1] == 1
    assert json.loads(found[0])["system"] == "Act."
    assert not measured(found[0], form, whole - 1, tmp_path).is_cut


def test_images_that_cannot_be_counted_are_left_as_they_are(make_form: MakeForm, shots: list[str]) -> None:
    row = step("<image>", "word " * 500, images=shots[:1])
    other_rule = make_form(plugin="LlavaPlugin", media_tokens=("<image>",))
    assert make_shorten(other_rule, 10)(row) == (row, 0)
    gone = step("<image>", "word " * 500, images=["/gone.png"])
    assert make_shorten(form_with_images(make_form), 10)(gone) == (gone, 0)
    assert make_shorten(form_with_images(make_form), 10)(row) is None


def test_an_image_that_stops_the_trainer_is_refused(make_form: MakeForm, tmp_path: Path) -> None:
    library = pytest.importorskip("PIL.Image")
    library.new("L", (1, 70_000)).save(tmp_path / "thin.png")
    rule = dataclasses.replace(RULE, image_max_pixels=10_000)
    form = make_form(images=rule, plugin="Qwen2VLPlugin", media_tokens=("<i>",))
    with pytest.raises(Rejected, match="1 x 70000 pixels cannot be made smaller"):
        make_shorten(form, 100)(step("<image>", images=[str(tmp_path / "thin.png")]))


def test_without_a_tokenizer_nothing_can_be_shortened(make_form: MakeForm) -> None:
    with pytest.raises(EnvironmentProblem, match="tokens cannot be counted"):
        make_shorten(make_form(tokenizer=None, tokenizer_reason="it is written in Python"), 100)
