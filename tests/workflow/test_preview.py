"""Rows as the trainer sees them, with what it trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.dataset.registry import TAGS
from trainkit.workflow.look import look_at_data
from trainkit.workflow.prepare import Settings, prepare
from trainkit.workflow.preview import Segment, preview

if TYPE_CHECKING:
    from tests.conftest import Place
    from trainkit.workflow.preview import Preview

PAD = "<|endoftext|>"
SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"


def chat(*texts: Any) -> dict[str, Any]:
    turns = [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(texts)]
    return {"conversations": turns}


def give(place: Place, **sets: list[Any]) -> None:
    for name, rows in sets.items():
        place.write(f"data/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    entries = {name: {"file_name": f"{name}.jsonl", "formatting": "sharegpt"} for name in sets}
    place.write("data/dataset_info.json", json.dumps(entries))


def shown(place: Place, count: int, *words: str) -> list[Preview]:
    prepared = prepare(Settings(base=place.folder, overrides=words))
    return preview(prepared, look_at_data(prepared), count)


def ask(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


HISTORY = [chat("One?", "1.", "Two?", "2.")]
SEGMENTS: list[tuple[list[str], list[Segment]]] = [
    (
        [],
        [Segment(SYSTEM + ask("One?"), False), Segment("1.<|im_end|>\n", True),
         Segment(ask("Two?"), False), Segment("2.<|im_end|>\n", True)],
    ),
    (
        ["mask_history=true"],
        [Segment(f"{SYSTEM}{ask('One?')}1.<|im_end|>\n{ask('Two?')}", False), Segment("2.<|im_end|>\n", True)],
    ),
    (
        ["train_on_prompt=true"],
        [Segment(f"{SYSTEM}{ask('One?')}1.<|im_end|>\n{ask('Two?')}2.<|im_end|>\n", True)],
    ),
    (["cutoff_len=5"], [Segment("<|im_start|>syst", False)]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "segments"), SEGMENTS)
def test_what_is_trained_on_is_marked(ready: Place, words: list[str], segments: list[Segment]) -> None:
    give(ready, own=HISTORY)
    (row,) = shown(ready, 9, "dataset=own", *words)
    assert list(row.segments) == segments
    assert row.place == "data/own.jsonl:1"
    assert row.trained <= row.tokens
    tokens = sum(len(part.text) - 11 * part.text.count("<|im_start|>") - 9 * part.text.count("<|im_end|>")
                 for part in row.segments)  # fmt: skip
    assert row.tokens == tokens  # a byte is a token, and so is a special token


def test_rows_that_are_left_out_are_passed_over(ready: Place) -> None:
    give(ready, one=[chat("How?"), chat("How?", "A."), chat("How?", 3)], two=[chat("Why?", "B."), chat("Who?", "C.")])

    def places(count: int, *words: str) -> list[str]:
        found = shown(ready, count, "dataset=one,two", "eval_dataset=two", *words)
        return [row.place for row in found]

    assert places(1) == ["data/one.jsonl:2"]
    assert places(2) == ["data/one.jsonl:2", "data/two.jsonl:1"]
    assert places(9) == ["data/one.jsonl:2", "data/two.jsonl:1", "data/two.jsonl:2"]
    assert places(9, "max_samples=1") == ["data/two.jsonl:1"]
    assert places(0) == []


def test_data_of_another_place_have_their_whole_path(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    give(ready, own=HISTORY)
    ready.path("elsewhere").mkdir()
    monkeypatch.chdir(ready.path("elsewhere"))
    assert [row.place for row in shown(ready, 1, "dataset=own")] == [f"{ready.path('data/own.jsonl')}:1"]


def test_an_image_counts_with_all_its_tokens_and_is_shown_as_one(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (56, 84)).save(ready.path("data") / "shot.png")
    rule = {
        "begin": "[", "token": PAD, "end": "]", "token_id": 256, "unit": 28, "min_pixels": 784,
        "max_pixels": 100_000, "image_min_pixels": 784, "image_max_pixels": 100_000, "probes": [[56, 84, 6]],
    }  # fmt: skip
    stored = json.loads((Path(__file__).parents[1] / "data" / "chat_form.json").read_text())
    seeing = {"plugin": "Qwen2VLPlugin", "media_tokens": [PAD], "images": rule}
    monkeypatch.setenv("FAKE_FORM", json.dumps(stored | seeing))
    give(ready, reward_model_full=[chat("<image> now?", "Go.") | {"images": ["shot.png"]}])
    columns = {"messages": "conversations", "images": "images"}
    entry = {"file_name": "reward_model_full.jsonl", "formatting": "sharegpt", "columns": columns, "tags": TAGS}
    ready.write("data/dataset_info.json", json.dumps({"reward_model_full": entry}))
    (found,) = shown(ready, 1)
    text = SYSTEM + ask(f"[{PAD}] now?")
    assert found.segments == (Segment(text, False), Segment("Go.<|im_end|>\n", True))
    specials = 3 * 2  # around each of the three turns
    plain = (text + "Go.<|im_end|>\n").replace("<|im_start|>", "").replace("<|im_end|>", "").replace(PAD, "")
    assert found.tokens == len(plain) + specials + 6


def test_without_a_tokenizer_nothing_is_shown(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FORM", '{"error": "no"}')
    assert shown(ready, 2) == []
