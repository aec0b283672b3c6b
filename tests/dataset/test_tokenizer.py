"""Tokens as the trainer's tokenizer makes them, on either route."""

from __future__ import annotations

import random
import re
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from trainkit.dataset import tokenizer as module
from trainkit.dataset.bytelevel import LLAMA3, O200K, QWEN2, TEKKEN, convert_tokenizer
from trainkit.dataset.tokenizer import UNSETTLED, Tokenizer, load_tokenizer
from trainkit.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.dataset.chatform import ChatForm

    MakeForm = Callable[..., ChatForm]
    MakeTokenizer = Callable[[str], Any]

PIECES = [
    *"aZ1. '/\n\r\t\0", "  ", "   ", "\n\n", "'s", "'LL", "'\u017f", " the", "answer", "é", "e\u0301",
    "Å", "\u1112\u1161", "中", "한", "🙂",
    "½", "१", "\xa0", "\u3000", "\u2003", "\u2028", "\x85", "\x1c", "\u200d", "\ufeff", "𐐀", "\U0001e900",
    "<|im_start|>", "<|im_end|>", "<think>", "<|eot_id|>", "<|im_", "end|>", ">\u0338", "[INST]", "<s>", "</s>", "▁",
]  # fmt: skip
TEXTS = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
BLANKS = [*"    \n\r\t\xa0\u3000\u2028\x0b\0", "a", "Word", "1", ".", "/", "'s", "é", "🙂"]
KINDS = ("qwen2", "llama3", "gpt2", "mistral")


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No comparison while it runs: a difference must show, not be mended."""
    monkeypatch.setattr(module, "FIRST", 0)
    monkeypatch.setattr(module, "EVERY", 10**9)
    monkeypatch.setattr(module, "UNSETTLED", re.compile(r"(?!)"))


@pytest.fixture
def retrain(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("tiny", request.path.parent / "tiny_tokenizers.py")
    assert spec
    assert spec.loader
    tiny = module_from_spec(spec)
    spec.loader.exec_module(tiny)
    # With tokens of many blanks and what stands beside them, so that a piece cut wrongly gives other tokens.
    rng = random.Random(1)
    texts = ["".join(rng.choices(BLANKS, k=12)) for _ in range(4000)]
    return lambda pattern: tiny.train_byte_level(pattern, ["<|endoftext|>"], texts=texts, vocab_size=4000)


def build(library: Any) -> Tokenizer:
    return Tokenizer(library, convert_tokenizer(library.to_str()))


def exact(library: Any, text: str) -> list[int]:
    ids: list[int] = library.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("unchecked")
def test_tokens_are_the_librarys(make_form: MakeForm, make_tokenizer: MakeTokenizer, kind: str) -> None:
    tokenizer, library = load_tokenizer(make_form(kind)), make_tokenizer(kind)
    assert tokenizer.route == ("tokenizers" if kind == "mistral" else "tiktoken")

    @settings(max_examples=300, deadline=None)
    @given(TEXTS)
    def check(text: str) -> None:
        expected = exact(library, text)
        assert tokenizer.encode(text) == expected
        assert tokenizer.count(text) == len(expected)

    check()
    assert not tokenizer.doubt


@pytest.mark.parametrize("pattern", [QWEN2, LLAMA3, O200K, TEKKEN], ids=["qwen2", "llama3", "o200k", "tekken"])
@pytest.mark.usefixtures("unchecked")
def test_marks_stand_for_the_look_ahead(retrain: Callable[[str], Any], pattern: str) -> None:
    library = retrain(pattern)
    tokenizer = build(library)

    rng = random.Random(2)
    for _ in range(4000):
        text = "".join(rng.choices(BLANKS, k=rng.randint(1, 20)))
        expected = exact(library, text)
        assert tokenizer.encode(text) == expected
        assert tokenizer.count(text) == len(expected)


ADDED = {
    "strips": AddedToken("<a>", lstrip=True, rstrip=True),
    "single word": AddedToken("dog", single_word=True),
    "normalized": AddedToken("fox", normalized=True),
    "longer": AddedToken("fox trot", normalized=False),
    "spaces": AddedToken("    ", normalized=False),
    "not NFC": AddedToken("e\u0301<", normalized=False),
}


@pytest.mark.parametrize("names", [[name] for name in ADDED] + [["normalized", "longer"], list(ADDED)], ids="+".join)
@pytest.mark.usefixtures("unchecked")
def test_added_tokens_keep_their_rules(make_tokenizer: MakeTokenizer, names: list[str]) -> None:
    library = make_tokenizer("qwen2")
    library.add_tokens([ADDED[name] for name in names])
    tokenizer = build(library)
    pieces = ["<a>", " ", "dog", "s", "fox", " trot", "fox trot", "e\u0301<", "é<", "\n", "<|im_end|>", "x", "\u0338"]

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.sampled_from(pieces), max_size=12).map("".join))
    def check(text: str) -> None:
        assert tokenizer.encode(text) == exact(library, text)
        assert tokenizer.count(text) == len(exact(library, text))

    check()
    assert tokenizer.route == "tiktoken"


@pytest.mark.parametrize("method", ["encode", "count"])
def test_a_difference_is_found_and_the_library_takes_over(make_tokenizer: MakeTokenizer, method: str) -> None:
    library = make_tokenizer("qwen2")
    tokenizer = Tokenizer(library, convert_tokenizer(make_tokenizer("llama3").to_str()))
    assert (tokenizer.route, tokenizer.reason, tokenizer.doubt) == ("tiktoken", "", "")
    expected = exact(library, "the answer is <|im_end|> 12345")
    for _ in range(2):
        found = getattr(tokenizer, method)("the answer is <|im_end|> 12345")
        assert found == (expected if method == "encode" else len(expected))
        assert tokenizer.route == "tokenizers"
        assert tokenizer.reason == tokenizer.doubt == "tiktoken gives other tokens for 'the answer is <|im_end|> 12345'"


def test_texts_are_checked_at_first_then_now_and_then_and_for_each_new_character(
    make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST", 2)
    monkeypatch.setattr(module, "EVERY", 10)
    tokenizer = build(make_tokenizer("qwen2"))
    checked: list[str] = []
    encode_exactly = tokenizer._encode_exactly
    monkeypatch.setattr(tokenizer, "_encode_exactly", lambda text: checked.append(text) or encode_exactly(text))
    texts = ["1", "2", "3", "é", "\ua7f2", "中\ua7f2", "\ua7f2\u0870", "8", "9", "10", "11"]
    for text in texts:
        tokenizer.count(text)
    assert checked == ["1", "2", "\ua7f2", "\ua7f2\u0870", "10"]


def test_settled_characters_have_been_of_one_kind_since_unicode_3() -> None:
    def kind(database: Any, char: str) -> str:
        category: str = database.category(char)
        return category if category[0] in "LMNZ" else "neither"

    old = unicodedata.ucd_3_2_0
    chars = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    settled = [char for char in chars if not UNSETTLED.match(char)]
    assert len(settled) > 35_000
    assert [char for char in settled if kind(old, char) != kind(unicodedata, char)] == []


def test_tokens_are_written_out_again(make_form: MakeForm) -> None:
    tokenizer = load_tokenizer(make_form())
    text = "<|im_start|>user\n  naïve 🙂<|im_end|>\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("changes", "route", "reason"),
    [
        ({}, "tokenizers", "asked for"),
        ({"encode_special_tokens": True}, "tiktoken", "special tokens are encoded as text (split_special_tokens)"),
        ({"kind": "mistral"}, "tiktoken", "its pre-tokenizer is none"),
    ],
)
def test_the_slower_route_says_why(make_form: MakeForm, changes: dict[str, Any], route: Any, reason: str) -> None:
    tokenizer = load_tokenizer(make_form(**changes), route)
    assert (tokenizer.route, tokenizer.reason, tokenizer.doubt) == ("tokenizers", reason, "")


def test_special_tokens_can_be_text(make_form: MakeForm) -> None:
    plain, split = load_tokenizer(make_form()), load_tokenizer(make_form(encode_special_tokens=True))
    assert plain.count("<|im_end|>") == 1
    assert split.count("<|im_end|>") > 1


def test_without_a_fast_tokenizer_nothing_is_counted(make_form: MakeForm) -> None:
    with pytest.raises(EnvironmentProblem, match="tokens cannot be counted: Odd is not a fast tokenizer"):
        load_tokenizer(make_form(tokenizer=None, tokenizer_reason="Odd is not a fast tokenizer"))
