"""Filters by what is known of a row: its metadata, its number of turns, the tools it calls, its scores.

    success=true          the fact is this value; the same key again takes either value
    judge.provider=       the fact is absent or empty
    tools=search          for a list: it has this one
    tools!=buy            the fact is not this value; for a list: it does not have this one
    num_turns>=4          >=, <=, > and < compare numbers; an absent fact, or one that is no number, is left out
    score>=0.7

All conditions must hold, but for several values of one key, of which one must. A row is counted at the first condition
that leaves it out, so the counts add up to the rows that are missing.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

CONDITION = re.compile(r"([^=!<>]+)(>=|<=|!=|=|>|<)(.*)", re.DOTALL)
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
EXAMPLE = "for example success=true, tools!=search, num_turns>=4 or score>=0.7"


class Condition(NamedTuple):
    """One condition: `Condition("score>=0.7", "score", ">=", ("0.7",))`; several values only with `=`."""

    words: str
    key: str
    sign: str
    values: tuple[str, ...]

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """Whether a row with these facts passes."""
        fact = facts.get(self.key)
        if self.sign in COMPARISONS:
            number = as_number(fact)
            return number is not None and COMPARISONS[self.sign](number, float(self.values[0]))
        found = any(is_value(fact, value) for value in self.values)
        return found if self.sign == "=" else not found


@dataclass(slots=True)
class Filters:
    """Conditions, and the book of what they did.

    Attributes:
        left_out: how many rows each condition left out, by its words.
        missing: keys that no row has had so far; one that stays is most likely mistyped.
    """

    conditions: tuple[Condition, ...]
    left_out: Counter[str] = field(default_factory=Counter)
    missing: set[str] = field(default_factory=set)

    def keep(self, facts: Mapping[str, Any]) -> bool:
        """Whether a row with these facts stays."""
        if self.missing:
            self.missing -= facts.keys()
        for condition in self.conditions:
            if not condition.holds(facts):
                self.left_out[condition.words] += 1
                return False
        return True


def parse_filters(words: Iterable[str], option: str = "--where") -> Filters:
    """Return the filters that the words of a repeatable option name.

    Raises:
        UsageProblem: words that are no condition, a comparison with what is no number, a comparison of the tools.
    """
    conditions: list[Condition] = []
    for word in words:
        condition = parse_condition(word, option)
        same = [each for each in conditions if (each.key, each.sign) == (condition.key, "=")]
        if condition.sign == "=" and same:
            both = Condition(
                f"{same[0].words} or {condition.words}", condition.key, "=", same[0].values + condition.values
            )
            conditions[conditions.index(same[0])] = both
        else:
            conditions.append(condition)
    return Filters(tuple(conditions), missing={condition.key for condition in conditions})


def parse_condition(word: str, option: str) -> Condition:
    match = CONDITION.fullmatch(word)
    key, sign, value = (part.strip() for part in match.groups()) if match else ("", "", "")
    if not key:
        raise UsageProblem(f"{option} {word}: is no condition", EXAMPLE)
    if sign in COMPARISONS and as_number(value) is None:
        raise UsageProblem(f"{option} {word}: {value or 'nothing'} is not a number", EXAMPLE)
    if sign in COMPARISONS and key == "tools":
        raise UsageProblem(f"{option} {word}: the tools are names", "num_calls compares how many calls there are")
    return Condition(f"{key}{sign}{value}", key, sign, (value,))


def is_value(fact: Any, value: str) -> bool:
    """Whether a fact is the value, or a list that has it; an absent fact and an empty list are the empty value."""
    if isinstance(fact, list):
        return any(is_value(item, value) for item in fact) if fact else not value
    if isinstance(fact, bool):
        return value.lower() == str(fact).lower()
    if fact is None or isinstance(fact, str):
        return value == (fact or "")
    return value == str(fact) or as_number(value) == fact


def as_number(value: Any) -> float | None:
    """Return a number, a boolean (1 or 0) or the text of a number as a float, None for anything else."""
    if not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
