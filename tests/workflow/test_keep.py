"""What a look found is kept: found again by content and settings, and by nothing else."""

from __future__ import annotations

import dataclasses
import os
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainkit.dataset.tally import Place as Spot
from trainkit.dataset.tally import Scores, Tally
from trainkit.workflow import keep, look
from trainkit.workflow.keep import MOST_KEPT, find_tally, keep_tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Place


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The data sets that were really looked at, one after another."""
    seen: list[str] = []
    real = look.look_at_rows

    def counted(plan: object, lens: look.Lens, *rest: object) -> Tally:
        seen.append(lens.entry.name)
        return real(plan, lens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(look, "look_at_rows", counted)
    return seen


BOTH = ["reward_model_full", "reward_model_full_eval"]


def train_file(place: Place) -> Path:
    return next(place.path("data").glob("reward_model-*/train.jsonl"))


def kept_files() -> list[Path]:
    return sorted((Path(os.environ["XDG_CACHE_HOME"]) / "trainkit" / "looks").glob("*"))


def touch(place: Place) -> None:
    os.utime(train_file(place), (1, 1))


def write_it_again(place: Place) -> None:
    file, content = train_file(place), train_file(place).read_bytes()
    file.unlink()
    file.write_bytes(content)


def edit_in_place(place: Place) -> None:
    """Change one letter: the size stays, and so does the time."""
    file, times = train_file(place), train_file(place).stat()
    file.write_bytes(file.read_bytes().replace(b"Judge step 21", b"Judge stop 21"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def change_nothing(_: Place) -> None: ...


@pytest.mark.parametrize(
    ("change", "words", "again"),
    [
        (change_nothing, [], []),
        (touch, [], []),
        (write_it_again, [], []),
        (change_nothing, ["learning_rate=1e-5", "num_train_epochs=1"], []),
        (edit_in_place, [], BOTH[:1]),
        (change_nothing, ["cutoff_len=100"], BOTH),
        (change_nothing, ["template=chatml"], []),  # the fake answers the same form for every template
        (change_nothing, ["mask_history=true"], BOTH),
        (change_nothing, ["packing=true"], BOTH),
        (change_nothing, ["max_samples=3"], BOTH),
        (change_nothing, ["-d", "reward_model_clip"], ["reward_model_clip", "reward_model_clip_eval"]),
    ],
)
def test_a_second_look_is_taken_only_when_something_has_changed(
    ready: Place, looks: list[str], change: Callable[[Place], None], words: list[str], again: list[str]
) -> None:
    first = ready.trainkit("validate", "--json")
    assert (first.code, looks) == (0, BOTH)
    looks.clear()
    change(ready)
    second = ready.trainkit("validate", "--json", *words)
    assert (second.code, looks) == (0, again)
    if not again:
        assert second.json["data"] == first.json["data"]


def test_another_form_needs_another_look(ready: Place, looks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FORM", '{"error": "not now"}')
    assert ready.trainkit("validate").code == 0
    monkeypatch.delenv("FAKE_FORM")
    assert "tokens a row" in ready.trainkit("validate").out
    assert looks == BOTH * 2


def test_train_does_not_repeat_what_validate_has_done(ready: Place, looks: list[str]) -> None:
    assert ready.trainkit("validate").code == 0
    assert ready.trainkit("train").code == 0
    assert looks == BOTH


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"\x80", b"\x90", b"\xa1x"])
def test_a_damaged_file_is_looked_at_anew(ready: Place, looks: list[str], damage: bytes) -> None:
    first = ready.trainkit("validate")
    for file in kept_files():
        file.write_bytes(damage)
    assert ready.trainkit("validate").out == first.out
    assert looks == BOTH * 2
    assert ready.trainkit("validate").out == first.out
    assert looks == BOTH * 2


def test_a_file_cut_short_is_looked_at_anew(ready: Place, looks: list[str]) -> None:
    first = ready.trainkit("validate")
    for file in kept_files():
        file.write_bytes(file.read_bytes()[:-3])
    assert ready.trainkit("validate").out == first.out
    assert looks == BOTH * 2


def full_tally() -> Tally:
    tally = Tally(rows=3, text_bytes=400, packs=2, doubt="a difference")
    tally.counts["trained_rows"] = 2
    tally.lengths.update({10: 1, 20: 1})
    tally.kept.update({10: 2})
    tally.needed[20] = 1
    tally.thoughts["added"] = 2
    tally.note("skipped: odd count", Spot("a.jsonl", 3, "1 turns"))
    tally.score("clip", "score", 0.5)
    tally.prompts, tally.twins = array("Q", [1, 2**64 - 1]), array("Q", [3, 4])
    tally.row_numbers = array("Q", [0, 1])
    return tally


@pytest.mark.parametrize("tally", [Tally(), full_tally()])
def test_what_is_kept_comes_back_whole(place: Place, tally: Tally) -> None:
    keep_tally("k", tally)
    assert find_tally("k") == tally
    assert find_tally("other") is None


def test_every_part_of_a_tally_is_kept(place: Place) -> None:
    full = full_tally()
    assert all(getattr(full, part.name) for part in dataclasses.fields(Tally))
    assert all(getattr(full.scores["clip", "score"], part.name) is not None for part in dataclasses.fields(Scores))


def test_the_oldest_are_let_go(place: Place) -> None:
    for number in range(MOST_KEPT + 3):
        keep_tally(f"k{number}", Tally(rows=number))
        os.utime(kept_file(f"k{number}"), (time.time() - 1000 + number,) * 2)
    keep_tally("last", Tally())
    names = {file.stem for file in kept_files()}
    assert len(names) == MOST_KEPT
    assert "last" in names
    assert {"k0", "k1", "k2", "k3"}.isdisjoint(names)


def kept_file(key: str) -> Path:
    return keep.folder() / f"{key}.msgpack"


def test_what_cannot_be_kept_is_looked_at_again(ready: Place, looks: list[str]) -> None:
    keep.folder().write_text("in the way")
    for _ in range(2):
        assert ready.trainkit("validate").code == 0
    assert looks == BOTH * 2
