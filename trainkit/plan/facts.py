"""What a rule about a configuration looks at, and the form of a rule. The table itself is in rules.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainkit.plan.arguments import INSTALL_HINT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trainkit.datatypes import Hardware, Level
    from trainkit.plan.arguments import TrainerSchema


@dataclass(frozen=True, slots=True)
class Facts:
    """What a rule looks at: the keys with the trainer's defaults behind them, the machine, the packages.

    `zero_stage` is the ZeRO stage of the DeepSpeed file, 0 without DeepSpeed.
    """

    values: Mapping[str, Any]
    schema: TrainerSchema
    hardware: Hardware
    zero_stage: int = 0

    def __getattr__(self, key: str) -> Any:
        """Return the value of a key, or the trainer's default for it."""
        return self.values.get(key, self.schema.default(key))

    @property
    def has_eval_data(self) -> bool:
        """Whether there are rows to evaluate on."""
        return bool(self.eval_dataset) or self.number("val_size") > 0

    @property
    def evaluates(self) -> bool:
        """Whether the trainer evaluates during training."""
        return self.eval_strategy not in (None, False, "no")

    @property
    def distributed(self) -> bool:
        """Whether torchrun starts the trainer."""
        return bool(self.deepspeed) or len(self.hardware.gpus) > 1

    def number(self, key: str) -> float:
        """Return a key's number; 0 when it has none (another check reports wrong types)."""
        value = getattr(self, key)
        return value if isinstance(value, int | float) else 0

    def names(self, key: str) -> list[str]:
        """Return the parts of a comma-separated value."""
        value = getattr(self, key)
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else []

    def misses(self, package: str) -> bool:
        """Whether the trainer's environment lacks a package."""
        return package not in self.schema.versions


@dataclass(frozen=True, slots=True)
class Rule:
    """One combination: when it applies, the key it is reported at, what is wrong, what to do."""

    applies: Callable[[Facts], bool]
    key: str
    message: str
    hint: str
    level: Level = "error"


def needs(package: str, key: str, applies: Callable[[Facts], bool]) -> Rule:
    """Return the rule that a key needs a package in the trainer's environment."""
    hint = INSTALL_HINT if package in ("deepspeed", "bitsandbytes", "liger-kernel", "matplotlib") else ""
    return Rule(
        lambda facts: facts.misses(package) and applies(facts),
        key,
        f"needs the package {package}, which the trainer's environment does not have",
        hint or f"pip install {package}",
    )


def each(keys: Iterable[str], applies: Callable[[Facts, str], bool], message: str, hint: str) -> tuple[Rule, ...]:
    """Return one rule for each of the keys that are alike."""

    def rule(key: str) -> Rule:
        return Rule(lambda facts: applies(facts, key), key, message, hint)

    return tuple(rule(key) for key in keys)
