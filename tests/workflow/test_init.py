from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainkit.plan.templates import templates_folder

if TYPE_CHECKING:
    from tests.conftest import Place

NEXT = "next: put your evaluations into finetune.jsonl and your model into ./model\n"


def test_a_new_folder_has_a_configuration_and_places_for_results(place: Place) -> None:
    done = place.trainkit("init", "new/place")
    assert (done.code, done.err) == (0, NEXT)
    names = ("training_config.yaml", "data", "saves", "logs")
    assert done.out == "".join(f"made  new/place/{name}\n" for name in names)
    shipped = (templates_folder() / "training_config.yaml").read_bytes()
    assert place.tree() == {
        "new": b"", "new/place": b"", "new/place/data": b"", "new/place/logs": b"", "new/place/saves": b"",
        "new/place/training_config.yaml": shipped,
    }  # fmt: skip


def test_what_is_there_stays(place: Place) -> None:
    place.write("training_config.yaml", "mine: 1\n")
    place.write("data/rows", "mine")
    done = place.trainkit("init")
    assert (done.code, done.out) == (0, "made  saves\nmade  logs\nkept  training_config.yaml\nkept  data\n")
    before = place.tree()
    assert before["training_config.yaml"] == b"mine: 1\n"
    assert before["data/rows"] == b"mine"
    assert place.trainkit("init").out == "".join(
        f"kept  {name}\n" for name in ("training_config.yaml", "data", "saves", "logs")
    )
    assert place.tree() == before


def test_the_demo_brings_evaluations_and_a_tiny_model(place: Place) -> None:
    done = place.trainkit("init", "--demo", "d")
    assert (done.code, done.err) == (0, "next: trainkit convert finetune.jsonl --split-eval\n")
    names = ("training_config.yaml", "finetune.jsonl", "data", "saves", "logs", "model")
    assert done.out == "".join(f"made  d/{name}\n" for name in names)
    shipped = templates_folder() / "demo"
    assert place.path("d/finetune.jsonl").read_bytes() == (shipped / "evaluations.jsonl").read_bytes()
    assert place.path("d/training_config.yaml").read_bytes() == (shipped / "training_config.yaml").read_bytes()
    before = place.tree()
    place.write("d/model/config.json", '{"mine": 1}')
    assert place.trainkit("init", "--demo", "d").out == "".join(f"kept  d/{name}\n" for name in names)
    assert place.tree() == {**before, "d/model/config.json": b'{"mine": 1}'}


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ('{"ok": false, "error": "no text in the sample"}', "no text in the sample"),
        ("one\ntwo\nImportError: torch\nlast", "two\n    ImportError: torch\n    last"),
    ],
)
def test_a_model_that_cannot_be_made_is_explained_and_not_left_half(
    place: Place, monkeypatch: pytest.MonkeyPatch, told: str, reason: str
) -> None:
    monkeypatch.setenv("FAKE_TINY_MODEL", told)
    done = place.trainkit("init", "--demo")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"error: the tiny model could not be made: {reason}\n    is the trainer installed? --install-deps\n"
    )
    assert not place.path("model").exists()
    monkeypatch.delenv("FAKE_TINY_MODEL")
    assert place.trainkit("init", "--demo").out.startswith("made  model\nkept  training_config.yaml\n")


@pytest.mark.parametrize(
    ("file", "words", "told"),
    [
        ("data", [], "error: data: File exists\n"),
        ("here", ["here"], "error: here: File exists\n"),
        ("here", ["here/deeper"], "error: here/deeper: Not a directory\n"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_explained(place: Place, file: str, words: list[str], told: str) -> None:
    place.write(file, "mine")
    done = place.trainkit("init", *words)
    assert (done.code, done.out) == (1, "")
    assert done.err == told + "    is there space on the disk, and may you write there?\n"
    assert Path(file).read_text() == "mine"


def test_the_configuration_of_an_update(place: Place) -> None:
    done = place.trainkit("init", "--update", "loop")
    shipped = (templates_folder() / "update.yaml").read_bytes()
    assert (done.code, done.out) == (0, "made  loop/update.yaml\n")
    assert done.err == "next: trainkit update save_path=FOLDER, where FOLDER holds train_trajectories/\n"
    assert place.tree() == {"loop": b"", "loop/update.yaml": shipped}
    assert place.trainkit("init", "--update", "--demo").code == 2
