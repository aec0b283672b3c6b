"""Which answers are too short to be trained on, in the tokens of the model that is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainkit.errors import ConfigError, EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

KEY = "algorithm_config.min_token_length"


def make_is_short(model: str | Path, min_tokens: int) -> Callable[[Sequence[str]], list[bool]]:
    """Return a function that says of texts whether each has fewer than `min_tokens` tokens.

    Args:
        model: the folder of a model with its tokenizer.json.
        min_tokens: at least 1.

    Raises:
        ConfigError: the model has no such file, or it cannot be read.
        EnvironmentProblem: the tokenizers library, which comes with the trainer, is not installed.
    """
    from pathlib import Path

    hint = f"{KEY}=0 keeps answers of every length"
    file = Path(model) / "tokenizer.json"
    if not file.is_file():
        raise ConfigError(f"{KEY}: {file} is needed to count tokens, and it is not there", hint)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise EnvironmentProblem(f"{KEY}: the tokenizers library is needed to count tokens", hint) from None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more exact
        raise ConfigError(f"{file}: cannot be read: {error}", hint) from None

    def is_short(texts: Sequence[str]) -> list[bool]:
        found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(one.ids) < min_tokens for one in found]

    return is_short
