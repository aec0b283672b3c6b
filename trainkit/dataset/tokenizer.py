"""Tokens exactly as the trainer's tokenizer makes them, several times as fast where its kind allows it.

A byte-level BPE tokenizer (Qwen, Llama 3, GPT-2, Mistral-Nemo) is rebuilt for tiktoken, see bytelevel.py. That the two
agree is checked on the texts at hand all the while: on the first ones, on one in 200 after that, and on every
text with a character whose class could depend on the version of Unicode that a library knows. One difference, and the
tokenizers library does all the rest.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any, Literal

from trainkit.dataset.bytelevel import MARK, ByteLevel, NotByteLevel, convert_tokenizer
from trainkit.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trainkit.dataset.chatform import ChatForm

# How many texts are checked before the first is trusted, and which of those after.
FIRST = 64
EVERY, EVERY_UNKNOWN = 200, 20

# Characters that are the letters, marks, digits and blanks, or none of these, that they were in Unicode 3.2 (2002), so
# that no version of any library takes them for something else: Latin, Greek, Cyrillic, Hebrew, Arabic, punctuation,
# symbols, kana, ideographs, Hangul, full-width forms and pictographs.
SETTLED = (
    "\0-\x7f\xa0-\xa9\xab-\xb9\xbb-\u0220\u0222-\u0233\u0250-\u0293\u0295-\u02ad\u0391-\u03a1\u03a3-\u03ce"
    "\u0400-\u0481\u048a-\u04ce\u04d0-\u04f5\u05d0-\u05ea\u060c\u0621-\u063a\u0641-\u0652\u0660-\u0669"
    "\u2010-\u2027\u2030-\u205e\u20a0-\u20bf\u2190-\u249b\u2500-\u27bf\u3001-\u3029\u3041-\u3094\u30a1-\u30fe"
    "\u4e00-\u9fa5\uac00-\ud7a3\uff01-\uff5e\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f900-\U0001f9ff"
)
UNSETTLED = re.compile(f"[^{SETTLED}]")

# White space as Unicode has it, without lines' ends and the space.
OTHER = "\t\x0b\x0c\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
INK = f"(?=[^{OTHER} \r\n{MARK}])"
OTHERS = re.compile(f"[{OTHER}]")
# Where the last of several blanks of a line begins: when both are spaces, when the one before is none, when it is none.
SPACES = re.compile(f"  {INK}")
AFTER = re.compile(f"[{OTHER}](?=[{OTHER} ]{INK})")
BEFORE = re.compile(f"[{OTHER}](?<=[{OTHER} ].){INK}")

Route = Literal["tiktoken", "tokenizers"]


class Tokenizer:
    """`encode` and `count` as `tokenizer.encode(text, add_special_tokens=False)` of the trainer's tokenizer.

    `route` is the library in use, `reason` why it is tokenizers, empty with tiktoken. `doubt` is empty until both gave
    different tokens for a text: from there on the route is tokenizers, and what was counted before is to be done again.
    """

    def __init__(self, exact: Any, fast: ByteLevel | None, reason: str = "") -> None:
        self.route: Route = "tokenizers" if fast is None else "tiktoken"
        self.reason = reason
        self.doubt = ""
        self._exact = exact
        self._seen = 0
        self._verified: set[str] = set()
        if fast is not None:
            self._prepare(fast)

    def _prepare(self, fast: ByteLevel) -> None:
        self._plain = fast.encoding.encode_ordinary
        self._marked = fast.marked.encode_ordinary if fast.marked else None
        self._mark = fast.mark
        self._has_nfc = fast.has_nfc
        self._every = EVERY if fast.is_known else EVERY_UNKNOWN
        self._numbers = {token.content: token.number for token in fast.added}
        # Tokens that are found in the text as it is come before those that are found in its normal form.
        plain = [token for token in fast.added if token.plain]
        self._splits = [
            pattern
            for normalized in (False, True)
            if (pattern := one_of(token.content for token in plain if token.normalized == normalized))
        ]
        self._odd = one_of(token.content for token in fast.added if not token.plain)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, no special tokens added; special tokens that it spells out are theirs."""
        if self.route == "tokenizers" or self._is_special_case(text):
            return self._encode_exactly(text)
        tokens = self._encode_fast(text)
        return self._checked(text, tokens) if self._is_due(text) else tokens

    def count(self, text: str) -> int:
        """Return the number of tokens of a text: `len(encode(text))`."""
        if self.route == "tokenizers" or self._is_special_case(text):
            return len(self._encode_exactly(text))
        if self._is_due(text):
            return len(self._checked(text, self._encode_fast(text)))
        total = 0
        for piece in self._split(text):
            if piece in self._numbers:
                total += 1
            else:
                found, marks = self._encode_piece(piece)
                total += len(found) - marks
        return total

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens, special ones written out."""
        text: str = self._exact.decode(tokens, skip_special_tokens=False)
        return text

    def _encode_fast(self, text: str) -> list[int]:
        tokens: list[int] = []
        for piece in self._split(text):
            number = self._numbers.get(piece)
            if number is None:
                found, marks = self._encode_piece(piece)
                tokens += [token for token in found if token != self._mark] if marks else found
            else:
                tokens.append(number)
        return tokens

    def _encode_piece(self, piece: str) -> tuple[list[int], int]:
        """Return the tokens of a piece without added tokens, and how many of them are marks."""
        if self._marked is None or MARK in piece:
            return self._plain(piece), 0
        piece, marks = SPACES.subn(f" {MARK} ", piece)
        if OTHERS.search(piece):
            piece, after = AFTER.subn(rf"\g<0>{MARK}", piece)
            piece, before = BEFORE.subn(rf"{MARK}\g<0>", piece)
            marks += after + before
        return self._marked(piece), marks

    def _encode_exactly(self, text: str) -> list[int]:
        ids: list[int] = self._exact.encode(text, add_special_tokens=False).ids
        return ids

    def _is_special_case(self, text: str) -> bool:
        """Whether a text needs what is rare and left to the tokenizers library: NFC, or a token with its own rules."""
        if self._odd is not None and self._odd.search(text):
            return True
        return self._has_nfc and not text.isascii() and not unicodedata.is_normalized("NFC", text)

    def _split(self, text: str) -> list[str]:
        """Part a text into added tokens and what stands between them."""
        pieces = [text]
        for pattern in self._splits:
            pieces = [
                part
                for piece in pieces
                for part in ([piece] if piece in self._numbers else pattern.split(piece))
                if part
            ]
        return pieces

    def _is_due(self, text: str) -> bool:
        self._seen += 1
        if self._seen <= FIRST or self._seen % self._every == 0:
            return True
        return not text.isascii() and not self._verified.issuperset(UNSETTLED.findall(text))

    def _checked(self, text: str, tokens: list[int]) -> list[int]:
        exact = self._encode_exactly(text)
        if tokens != exact:
            self.route = "tokenizers"
            self.reason = self.doubt = f"tiktoken gives other tokens for {text[:60]!r}"
        elif not text.isascii():
            self._verified.update(UNSETTLED.findall(text))
        return exact


def one_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern for any of the texts, the longest first, as a group; None when there are none."""
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None


def load_tokenizer(form: ChatForm, route: Route = "tiktoken") -> Tokenizer:
    """Return the tokenizer of a form; `route` is the library to use where it is sure to give its tokens.

    Raises:
        EnvironmentProblem: the form has no tokenizer that can be used outside of the trainer.
    """
    from tokenizers import Tokenizer as Library

    if form.tokenizer is None:
        raise EnvironmentProblem(f"tokens cannot be counted: {form.tokenizer_reason}", "use a fast tokenizer")
    exact = Library.from_str(form.tokenizer)
    exact.no_truncation()
    exact.no_padding()
    exact.encode_special_tokens = form.encode_special_tokens
    if route == "tokenizers":
        return Tokenizer(exact, None, "asked for")
    if form.encode_special_tokens:
        return Tokenizer(exact, None, "special tokens are encoded as text (split_special_tokens)")
    try:
        return Tokenizer(exact, convert_tokenizer(form.tokenizer))
    except NotByteLevel as error:
        return Tokenizer(exact, None, str(error))
