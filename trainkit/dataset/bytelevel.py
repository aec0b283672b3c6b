"""A byte-level BPE tokenizer of the tokenizers library, rebuilt for tiktoken where both are sure to agree.

The two work alike: cut the text by a pattern, then merge the bytes of each piece. The tokenizers library merges the
pair that comes first in a list, tiktoken the pair whose token has the lowest number. Both give the same when the list
follows the numbers, when a token's parts have lower numbers than the token, and when each token is what its own bytes
are merged into: then a pair that tiktoken may merge is the pair that the list names, since what stands beside a token's
bytes has no part in how they are merged. All of it is checked here; what is left is only how the pattern reads.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tiktoken import Encoding

# Patterns that mean the same in both libraries' regular expressions: GPT-2's, Llama 3's, Qwen's, o200k's and Tekken's.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = WORDS % (SHORT + "?", SHORT + "?") + r"|\p{N}{1,3}" + REST
TEKKEN = WORDS % ("", "") + r"|\p{N}" + REST
KNOWN = frozenset({GPT2, LLAMA3, QWEN2, O200K, TEKKEN})

# `\s+(?!\S)` looks ahead, which makes the whole pattern slow to match. All it does is to leave the last of several
# spaces to the word behind them. A mark put in at that place does the same for a pattern without it, and is cut off as
# a piece of its own. That holds where a line's end closes a piece, so not for GPT-2's, and for spaces only.
LOOK_AHEAD = r"|\s+(?!\S)"
MARK = "\0"
MARKABLE = KNOWN - {GPT2}


class NotByteLevel(Exception):
    """This tokenizer cannot be rebuilt, or not for sure; the text says why."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in the text before anything else; `plain` ones are found wherever their text stands."""

    content: str
    number: int
    normalized: bool
    plain: bool


@dataclass(frozen=True, slots=True)
class ByteLevel:
    """A tokenizer in tiktoken's terms; `is_known` says whether its pattern is one that is known to read the same.

    `marked` is the same with a pattern that wants marks, `mark` the token that each mark becomes.
    """

    encoding: Encoding
    marked: Encoding | None
    mark: int
    added: tuple[AddedToken, ...]
    has_nfc: bool
    is_known: bool


def convert_tokenizer(text: str) -> ByteLevel:
    """Rebuild a tokenizer from its JSON.

    Raises:
        NotByteLevel: it is of another kind, or not sure to give the same tokens.
    """
    tokenizer = json.loads(text)
    pattern = find_pattern(tokenizer["pre_tokenizer"])
    added = tuple(read_added(token) for token in tokenizer["added_tokens"] if token["content"])
    has_nfc = uses_nfc(tokenizer["normalizer"])
    if has_nfc and any(not unicodedata.is_normalized("NFC", token.content) for token in added if token.normalized):
        raise NotByteLevel("an added token is not in the form that the text is brought into")
    ranks = convert_vocabulary(tokenizer["model"], {token.content for token in added})
    marked = make_encoding(mark_pattern(pattern), ranks) if pattern in MARKABLE else None
    return ByteLevel(make_encoding(pattern, ranks), marked, ranks[MARK.encode()], added, has_nfc, pattern in KNOWN)


def make_encoding(pattern: str, ranks: dict[bytes, int]) -> Encoding:
    from tiktoken import Encoding

    try:
        return Encoding("trainkit", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError as error:
        raise NotByteLevel(f"its pattern does not compile: {error}") from None


def mark_pattern(pattern: str) -> str:
    """Return a pattern that cuts a marked text as `pattern` cuts the text."""
    for chars in (r"[^\r\n\p{L}\p{N}", r"[^\s\p{L}\p{N}"):
        pattern = pattern.replace(chars, chars + r"\x00")
    return r"\x00|" + pattern.replace(LOOK_AHEAD, "")


def find_pattern(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """Return the pattern by which the text is cut, of a byte-level pre-tokenizer with at most one split before it."""
    steps = [pre_tokenizer] if pre_tokenizer else []
    if steps and steps[0]["type"] == "Sequence":
        steps = steps[0]["pretokenizers"]
    *before, last = steps or [{"type": "none"}]
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or len(before) > 1:
        raise NotByteLevel(f"its pre-tokenizer is {' and '.join(step['type'] for step in steps) or 'none'}")
    if not before and last["use_regex"]:
        return GPT2
    if not before or last["use_regex"] or before[0]["type"] != "Split":
        raise NotByteLevel("its pre-tokenizer cuts in another way")
    split = before[0]
    if (split["behavior"], split["invert"]) != ("Isolated", False) or "Regex" not in split["pattern"]:
        raise NotByteLevel(f"its split is {split['behavior']}")
    return str(split["pattern"]["Regex"])


def uses_nfc(normalizer: Mapping[str, Any] | None) -> bool:
    """Return whether the text is brought into Unicode's form NFC; any other normaliser is refused."""
    if normalizer is None:
        return False
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    if others := [step["type"] for step in steps if step["type"] != "NFC"]:
        raise NotByteLevel(f"its normaliser is {others[0]}")
    return bool(steps)


def read_added(token: Mapping[str, Any]) -> AddedToken:
    plain = not (token["lstrip"] or token["rstrip"] or token["single_word"])
    return AddedToken(token["content"], token["id"], token["normalized"], plain)


def convert_vocabulary(model: Mapping[str, Any], added: set[str]) -> dict[bytes, int]:
    """Return the number of each byte string that merging can make, as tiktoken wants it."""
    check_model(model)
    vocabulary: dict[str, int] = model["vocab"]
    letters = byte_letters()
    if missing := [letter for letter in letters if letter not in vocabulary]:
        raise NotByteLevel(f"its vocabulary lacks {len(missing)} of the 256 bytes")
    merged = check_merges(model["merges"], vocabulary)
    unmade = find_unmade(model)
    kept = set(letters) | merged - unmade.keys()
    if model.get("ignore_merges"):
        # A piece that is a token is taken whole, even one that merging does not make. With three or more parts left
        # over, no pair of tokens can be merged into it by chance; with two, one could.
        others = {token: parts for token, parts in unmade.items() if token not in added}
        if any(parts < 3 for parts in others.values()):
            raise NotByteLevel("it takes tokens whole that its merges do not make")
        kept |= others.keys()
    return {
        bytes(letters[letter] for letter in token): vocabulary[token] for token in kept if letters.keys() >= {*token}
    }


def check_model(model: Mapping[str, Any]) -> None:
    if model["type"] != "BPE":
        raise NotByteLevel(f"its model is {model['type']}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise NotByteLevel(f"it uses {key}")


def check_merges(merges: list[Any], vocabulary: Mapping[str, int]) -> set[str]:
    """Return the tokens that the merges make, after a look at their order."""
    made: set[str] = set()
    before = -1
    for merge in merges:
        first, second = merge if isinstance(merge, list) else merge.split(" ")
        token = first + second
        number = vocabulary[token]
        if number < before:
            raise NotByteLevel("its merges are not in the order of its tokens")
        if any(len(part) > 1 and vocabulary[part] >= number for part in (first, second)):
            raise NotByteLevel("a token comes before what it is made of")
        before = number
        made.add(token)
    return made


def find_unmade(model: Mapping[str, Any]) -> dict[str, int]:
    """Return the tokens that are not what their own bytes are merged into, and into how many parts those are.

    Tokens of other letters than those for bytes are left out: they cannot come up.
    """
    from tokenizers import models

    letters = byte_letters().keys()
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    bpe = models.BPE(vocab=model["vocab"], merges=merges, cache_capacity=0)
    parts = {token: len(bpe.tokenize(token)) for token in model["vocab"] if letters >= {*token}}
    return {token: number for token, number in parts.items() if number != 1}


def byte_letters() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for.

    Printable bytes of Latin-1 stand for themselves, the 68 others for U+0100 onwards, in order (GPT-2's table).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
