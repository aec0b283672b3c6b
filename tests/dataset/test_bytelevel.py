"""Which tokenizers are rebuilt for tiktoken, and which are not because they could give other tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer as Library

from trainkit.dataset.bytelevel import NotByteLevel, convert_tokenizer
from trainkit.dataset.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    Edit = Callable[[dict[str, Any]], Any]

SPLIT = {"type": "Split", "pattern": {"Regex": r"\p{L}+|[^\p{L}]+"}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)}}


def renumber(tokenizer: dict[str, Any]) -> None:
    """Swap the numbers of the first and the last merged token."""
    model = tokenizer["model"]
    first, last = ("".join(model["merges"][index]) for index in (0, -1))
    vocab = model["vocab"]
    vocab[first], vocab[last] = vocab[last], vocab[first]


def add_word(word: str) -> Edit:
    def edit(tokenizer: dict[str, Any]) -> None:
        number = max(*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"]))
        tokenizer["model"]["vocab"][word] = number + 1

    return edit


def whole_pieces(word: str) -> Edit:
    def edit(tokenizer: dict[str, Any]) -> None:
        add_word(word)(tokenizer)
        tokenizer["model"]["ignore_merges"] = True

    return edit


REFUSED: list[tuple[Edit, str]] = [
    (lambda it: it.update(normalizer={"type": "NFKC"}), "its normaliser is NFKC"),
    (
        lambda it: it.update(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
        "its normaliser is Lowercase",
    ),
    (lambda it: it.update(pre_tokenizer=None), "its pre-tokenizer is none"),
    (lambda it: it.update(pre_tokenizer=BYTES | {"add_prefix_space": True}), "its pre-tokenizer is ByteLevel"),
    (lambda it: it.update(sequence(SPLIT, SPLIT, BYTES)), "its pre-tokenizer is Split and Split and ByteLevel"),
    (lambda it: it.update(pre_tokenizer=BYTES), "its pre-tokenizer cuts in another way"),
    (lambda it: it.update(sequence(SPLIT, BYTES | {"use_regex": True})), "its pre-tokenizer cuts in another way"),
    (lambda it: it.update(sequence({"type": "Digits"}, BYTES)), "its pre-tokenizer cuts in another way"),
    (lambda it: it.update(sequence(SPLIT | {"behavior": "Removed"}, BYTES)), "its split is Removed"),
    (lambda it: it.update(sequence(SPLIT | {"pattern": {"String": " "}}, BYTES)), "its split is Isolated"),
    (lambda it: it.update(sequence(SPLIT | {"pattern": {"Regex": "("}}, BYTES)), "its pattern does not"),
    (lambda it: it["model"].update(type="Unigram"), "its model is Unigram"),
    (lambda it: it["model"].update(dropout=0.1), "it uses dropout"),
    (lambda it: it["model"].update(byte_fallback=True), "it uses byte_fallback"),
    (lambda it: it["model"].update(end_of_word_suffix="</w>"), "it uses end_of_word_suffix"),
    (lambda it: it["model"]["vocab"].pop("Ā"), "its vocabulary lacks 1 of the 256 bytes"),
    (renumber, "its merges are not in the order of its tokens"),
    (
        lambda it: it["added_tokens"].append({**it["added_tokens"][0], "content": "e\u0301", "normalized": True}),
        "an added token is not in the form that the text is brought into",
    ),
    (whole_pieces("zq"), "it takes tokens whole that its merges do not make"),
]


@pytest.fixture
def tokenizer(make_tokenizer: Callable[[str], Any]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(make_tokenizer("qwen2").to_str())
    return made


@pytest.mark.parametrize(("edit", "reason"), REFUSED)
def test_what_could_give_other_tokens_is_not_rebuilt(tokenizer: dict[str, Any], edit: Edit, reason: str) -> None:
    edit(tokenizer)
    with pytest.raises(NotByteLevel) as caught:
        convert_tokenizer(json.dumps(tokenizer))
    assert str(caught.value).startswith(reason)


def test_a_token_must_come_after_what_it_is_made_of(tokenizer: dict[str, Any]) -> None:
    vocab = tokenizer["model"]["vocab"]
    merge = next(merge for merge in tokenizer["model"]["merges"] if len(merge[0]) > 1)
    vocab[merge[0]], vocab["".join(merge)] = vocab["".join(merge)], vocab[merge[0]]
    tokenizer["model"]["merges"] = [merge]
    with pytest.raises(NotByteLevel, match="a token comes before what it is made of"):
        convert_tokenizer(json.dumps(tokenizer))


@pytest.mark.parametrize(
    "edit",
    [
        lambda it: None,
        lambda it: it.update(normalizer=None),
        lambda it: it.update(normalizer={"type": "Sequence", "normalizers": []}),
        lambda it: it.update(pre_tokenizer=BYTES | {"use_regex": True}),
        lambda it: it.update(sequence(SPLIT, BYTES)),
        lambda it: it["model"].update(merges=[" ".join(merge) for merge in it["model"]["merges"]]),
        lambda it: it["model"].update(ignore_merges=True),
        add_word("zq"),
        whole_pieces("zqzq"),
        whole_pieces("z中"),
    ],
    ids=[
        "as it is",
        "no NFC",
        "empty NFC",
        "GPT-2",
        "unknown",
        "text merges",
        "ignore_merges",
        "unmade",
        "whole",
        "no bytes",
    ],
)
def test_what_is_rebuilt_gives_the_same_tokens(tokenizer: dict[str, Any], edit: Edit) -> None:
    edit(tokenizer)
    text = json.dumps(tokenizer)
    library = Library.from_str(text)
    rebuilt = Tokenizer(library, convert_tokenizer(text))
    for words in ("zq zqzq azqzq zqzqa", "The answer is 42.\r\n\r\n   Done. don't 中文", "e\u0301 ½ 12345 <|im_end|>"):
        assert rebuilt._encode_fast(words) == library.encode(words, add_special_tokens=False).ids or "\u0301" in words
        assert rebuilt.encode(words) == library.encode(words, add_special_tokens=False).ids
    assert rebuilt.route == "tiktoken"
