"""Answers that are too short, counted by the tokenizer of the model that is trained."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from trainkit.dataset.short import make_is_short
from trainkit.errors import ConfigError, EnvironmentProblem

if TYPE_CHECKING:
    from pathlib import Path

TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "click": 1}, "unk_token": "[UNK]"},
}  # fmt: skip


def test_words_are_counted(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    is_short = make_is_short(str(tmp_path), 3)
    assert is_short(["click", "click here now", "", "click here", "one two three four"]) == [
        True, False, True, True, False,
    ]  # fmt: skip
    assert is_short([]) == []
    assert make_is_short(tmp_path, 1)(["", "click", "  \n"]) == [True, False, True]


def test_tokens_that_the_model_adds_itself_do_not_count(tmp_path: Path) -> None:
    around = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[S]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[S]": {"id": "[S]", "ids": [2], "tokens": ["[S]"]}},
    }
    vocab = {"type": "WordLevel", "vocab": {"[UNK]": 0, "click": 1, "[S]": 2}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER | {"post_processor": around, "model": vocab}))
    assert make_is_short(tmp_path, 2)(["click", "click click"]) == [True, False]


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '{"model": 3}', "\0\0"])
def test_a_damaged_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        make_is_short(tmp_path, 10)
    assert caught.value.message.startswith(f"{tmp_path}/tokenizer.json: cannot be read: ")
    assert caught.value.hint == "algorithm_config.min_token_length=0 keeps answers of every length"


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_is_short(tmp_path, 10)
    assert caught.value.message == (
        f"algorithm_config.min_token_length: {tmp_path}/tokenizer.json is needed to count tokens, and it is not there"
    )


def test_no_tokenizers_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EnvironmentProblem, match="the tokenizers library is needed to count tokens") as caught:
        make_is_short(tmp_path, 10)
    assert caught.value.hint == "algorithm_config.min_token_length=0 keeps answers of every length"
