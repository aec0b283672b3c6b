"""Tiny tokenizers of the real shapes: Qwen2's, Llama 3's, GPT-2's (byte-level BPE) and Mistral's (sentencepiece)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = [
    "You are a helpful assistant. The user asks, and I'll answer as well as I can; don't worry.",
    '<tool_call>\n{"name": "search", "arguments": {"query": "weather in Paris", "limit": 10}}\n</tool_call>',
    "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2345))\n\t# 100 %",
    "北京市的天气很好。 Москва, café, naïve, Ångström, 한국어, العربية 🙂🙂 ½ ② ①",
    "<think>\nFirst I look at the question.\n</think>\n\nThe answer is 42.\r\n\r\n   Done.",
] * 3

SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN2 = SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_ADDED = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
LLAMA_SPECIAL = [
    f"<|{name}|>" for name in ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id", "eom_id")
]
MISTRAL_SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]


def train_byte_level(
    pattern: str | None, special: list[str], *, texts: list[str] = TEXTS, vocab_size: int = 700
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level] if pattern else [byte_level]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if pattern else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return tokenizer


def make_qwen2() -> Tokenizer:
    tokenizer = train_byte_level(QWEN2, QWEN_SPECIAL)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in QWEN_ADDED])
    return tokenizer


def make_llama3() -> Tokenizer:
    tokenizer = train_byte_level(LLAMA3, LLAMA_SPECIAL)
    tokenizer.model.ignore_merges = True
    return tokenizer


def make_gpt2() -> Tokenizer:
    return train_byte_level(None, ["<|endoftext|>"])


def make_mistral() -> Tokenizer:
    """Sentencepiece as Mistral has it: a mark before the text and for each space, bytes for what is not known."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    alphabet = [*map(chr, range(33, 127)), "▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*MISTRAL_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in TEXTS], trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


MAKERS: dict[str, Callable[[], Any]] = {
    "qwen2": make_qwen2,
    "llama3": make_llama3,
    "gpt2": make_gpt2,
    "mistral": make_mistral,
}
# Their beginning, end and padding.
NAMED = {
    "qwen2": (None, "<|im_end|>", "<|endoftext|>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"),
    "gpt2": (None, "<|endoftext|>", None),
    "mistral": ("<s>", "</s>", None),
}
