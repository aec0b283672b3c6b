"""The form of the trainer's template: read as it was printed, or refused in words."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from trainkit.dataset.chatform import ChatForm, decode_form
from trainkit.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeForm = Callable[..., ChatForm]


def test_a_form_survives_json_and_pickle(make_form: MakeForm) -> None:
    form = make_form(slots={"prefix": (1, "<s>"), "user": (1, "[INST] {{content}}", 2)}, bos_token_id=1)
    assert decode_form(msgspec.json.encode(form)) == form
    assert pickle.loads(pickle.dumps(form)) == form


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"error": "no such model"}', "the trainer's tokenizer and template cannot be loaded: no such model"),
        (b"{", "the trainer's template is not as trainkit knows it: Input data was truncated"),
        (b"{}", "the trainer's template is not as trainkit knows it: Object missing required field `tokenizer`"),
        (b"[]", "the trainer's template is not as trainkit knows it: Expected `object`, got `array`"),
    ],
)
def test_what_is_no_form_is_refused(answer: bytes, message: str) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        decode_form(answer)
    assert caught.value.message == message
    assert caught.value.hint


def test_a_template_of_an_unknown_class_is_refused(make_form: MakeForm) -> None:
    answer = msgspec.json.encode(make_form()).replace(b'"Template"', b'"NewTemplate"')
    with pytest.raises(EnvironmentProblem, match="NewTemplate"):
        decode_form(answer)


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({}, ()),
        ({"tokenizer": None, "tokenizer_reason": "X is not fast"}, ("tokens cannot be counted: X is not fast",)),
        ({"plugin": "Qwen2VLPlugin", "media_tokens": ("<|image_pad|>",)}, ()),
    ],
)
def test_a_form_says_what_it_cannot_foresee(
    make_form: MakeForm, changes: dict[str, Any], limits: tuple[str, ...]
) -> None:
    assert make_form(**changes).limits == limits
