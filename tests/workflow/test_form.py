"""How rows become tokens: asked of the trainer once, and kept for as long as nothing that decides it has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.workflow.form import find_form, form_cache, has_form
from trainkit.workflow.prepare import Settings, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Place

STORED = Path(__file__).parents[1] / "data" / "chat_form.json"


def asked(place: Place) -> list[dict[str, Any]]:
    """Return what the trainer's environment was asked, without the name of the program."""
    return [{key: call[key] for key in call if key != "program"} for call in place.calls("chat_form")]


def test_the_trainer_is_asked_once_for_what_the_configuration_says(ready: Place) -> None:
    ready.config("enable_thinking: false", "swanlab_project: x")
    for _ in range(2):
        assert ready.trainkit("validate").code == 0
    assert ready.trainkit("train").code == 0
    assert asked(ready) == [
        {"model_name_or_path": str(ready.path("model")), "template": "qwen", "enable_thinking": False}
    ]


def change_the_tokenizer(place: Place) -> None:
    place.write("model/tokenizer.json", '{"model": {}}')


def add_a_file(place: Place) -> None:
    place.write("model/added_tokens.json", "{}")


def change_the_images_bounds(place: Place) -> None:
    place.write("model/preprocessor_config.json", "{}")


def touch_the_weights(place: Place) -> None:
    place.path("model/model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


def change_nothing(_: Place) -> None: ...


@pytest.mark.parametrize(
    ("change", "words", "times"),
    [
        (change_nothing, [], 1),
        (touch_the_weights, [], 1),
        (change_nothing, ["learning_rate=1e-5", "cutoff_len=512", "mask_history=true"], 1),
        (change_the_tokenizer, [], 2),
        (add_a_file, [], 2),
        (change_nothing, ["template=chatml"], 2),
        (change_nothing, ["add_tokens=<a>"], 2),
        (change_nothing, ["image_max_pixels=1000000"], 2),
        (change_the_images_bounds, [], 2),
        (change_nothing, ["train_on_prompt=true"], 2),
    ],
)
def test_it_is_asked_again_only_for_what_decides_the_tokens(
    ready: Place, change: Callable[[Place], None], words: list[str], times: int
) -> None:
    assert ready.trainkit("validate").code == 0
    change(ready)
    assert ready.trainkit("validate", *words).code == 0
    assert len(asked(ready)) == times


def test_another_trainer_is_asked_again(ready: Place, monkeypatch: pytest.MonkeyPatch, trainer_schema: Any) -> None:
    assert ready.trainkit("validate").code == 0
    monkeypatch.setitem(trainer_schema.versions, "llamafactory", "0.9.6")
    assert ready.trainkit("validate").code == 0
    assert len(asked(ready)) == 2


def test_a_model_named_as_on_the_hub_is_asked_for_by_its_name(ready: Place) -> None:
    words = ["model_name_or_path=Qwen/Qwen2.5-7B-Instruct"]
    prepared = prepare(Settings(base=ready.folder, overrides=words))
    form, problems = find_form(prepared)
    assert form is not None
    assert problems == []
    assert asked(ready) == [{"model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "template": "qwen"}]


def test_whether_it_is_known_is_found_out_without_asking(ready: Place) -> None:
    prepared = prepare(Settings(base=ready.folder))
    assert not has_form(prepared)
    assert asked(ready) == []
    find_form(prepared)
    assert has_form(prepared)
    assert form_cache(prepared).parent == Path(os.environ["XDG_CACHE_HOME"]) / "trainkit"


def test_nothing_is_asked_while_the_configuration_has_errors(ready: Place) -> None:
    assert ready.trainkit("validate", "lora_rnk=8").code == 1
    assert asked(ready) == []


def test_what_keeps_the_trainer_from_answering_is_said_and_the_rest_is_reported(
    ready: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FORM", '{"error": "ValueError: no such tokenizer"}')
    done = ready.trainkit("validate")
    assert done.code == 0
    assert done.err.startswith(
        "warning: template: no lengths are counted: the trainer's tokenizer and template cannot be loaded: "
        "ValueError: no such tokenizer\n"
        "    check model_name_or_path and template, and that the trainer is installed: trainkit doctor\n"
    )
    assert done.out.startswith("train data reward_model_full: 35 rows\n  scores in the verdicts: ")
    assert done.out.endswith("ok: lora training of WORK/model on reward_model_full, 9 steps of 16 rows\n")
    strict = ready.trainkit("validate", "--strict")
    assert (strict.code, strict.err.splitlines()[-1]) == (1, "error: 1 problem found; nothing was started")
    monkeypatch.delenv("FAKE_FORM")
    assert "tokens a row" in ready.trainkit("validate").out  # a failure is not kept
    assert len(asked(ready)) == 3


def test_a_tokenizer_of_another_kind_is_a_note_and_nothing_is_counted(
    ready: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = json.loads(STORED.read_text()) | {"tokenizer": None, "tokenizer_reason": "it is written in Python"}
    monkeypatch.setenv("FAKE_FORM", json.dumps(form))
    done = ready.trainkit("validate", "--preview", "2")
    assert done.code == 0
    assert "it is written in Python" in done.err
    assert "tokens" not in done.out


def test_a_damaged_answer_is_asked_for_anew(ready: Place) -> None:
    first = ready.trainkit("validate")
    kept = form_cache(prepare(Settings(base=ready.folder)))
    kept.write_bytes(kept.read_bytes()[:100])
    assert ready.trainkit("validate").out == first.out
    assert ready.trainkit("validate").out == first.out
    assert len(asked(ready)) == 2


def test_an_answer_that_cannot_be_kept_is_used_all_the_same(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ready.write("occupied", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(ready.path("occupied")))
    for _ in range(2):
        assert "tokens a row" in ready.trainkit("validate").out
    assert len(asked(ready)) == 2


def test_a_model_of_the_hub_that_is_not_here_is_not_downloaded(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FORM", '{"error": "We could not connect to ... in offline mode"}')
    done = ready.trainkit("validate", "model_name_or_path=Qwen/Qwen2.5-7B-Instruct")
    assert done.code == 0
    assert (
        "warning: model_name_or_path: no lengths are counted: Qwen/Qwen2.5-7B-Instruct is not on this disk" in done.err
    )
    assert "connect" not in done.err
