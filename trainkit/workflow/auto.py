"""`trainkit train --auto`: the suggested settings, and once more with less when the memory was too small after all."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from trainkit.errors import EnvironmentProblem
from trainkit.plan.hardware import GIB
from trainkit.plan.smaller import find_smaller
from trainkit.workflow.look import look_at_data
from trainkit.workflow.prepare import Settings, prepare, require_sound
from trainkit.workflow.suggest import SuggestOptions, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trainkit.workflow.suggestion import Suggestion


def choose_settings(settings: Settings, on_look: Callable[[int, int | None], None]) -> tuple[Settings, Suggestion]:
    """Return the settings with the changes of the first suggestion, and the suggestion.

    Raises:
        ProblemsFound: the configuration has errors.
        EnvironmentProblem: there is no GPU here.
        ConfigError: nothing fits, or no formula covers such a training.
    """
    prepared = prepare(settings)
    require_sound(prepared)
    if not prepared.hardware.gpus:
        raise EnvironmentProblem("--auto: there is no NVIDIA GPU here to choose settings for", "train without --auto")
    suggestion = suggest(settings, SuggestOptions(), look_at_data(prepared, report=on_look).lengths)
    best = next(iter(suggestion.advice.candidates), None)
    if best is None:
        raise EnvironmentProblem(
            f"--auto: no setting fits on {suggestion.task.machine.gpu.name}", "trainkit suggest says what would"
        )
    return with_changes(settings, best.changes), suggestion


def smaller_settings(settings: Settings) -> tuple[Settings, dict[str, Any]] | None:
    """Return the settings with what needs clearly less memory, and the changed keys; None when there is nothing."""
    prepared = prepare(settings)
    suggestion = suggest(settings, SuggestOptions(), look_at_data(prepared).lengths)
    smaller = find_smaller(suggestion.task)
    return (with_changes(settings, smaller.changes), smaller.changes) if smaller else None


def with_changes(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return settings that win over all others in these keys; None takes a key away."""
    return dataclasses.replace(settings, overrides=(*settings.overrides, *words_of(changes)))


def words_of(changes: Mapping[str, Any]) -> list[str]:
    """Return changes as a user would type them: `["enable_liger_kernel=true", "deepspeed=ds_z3.json"]`."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]


def predicted(fit: Suggestion | None) -> str:
    """Return what was foreseen for a training that ran out of memory, as a line of an error; empty when nothing was."""
    if fit is None:
        return ""
    given = fit.advice.given
    verdict = "fit" if given.fits else "not fit"
    return (
        f"\n    it was predicted to {verdict}: {given.memory.total / GIB:.1f} GiB of the {given.usable / GIB:.1f} "
        f"of {fit.task.machine.gpu.name} that can be filled"
    )


def smaller_hint(fit: Suggestion | None) -> str:
    """Return the next smaller setting as words to type; empty when none is known."""
    smaller = find_smaller(fit.task) if fit else None
    if smaller is None:
        return ""
    need = f"{smaller.verdict.memory.total / GIB:.1f} GiB"
    return f"the same learning with {need}: add {' '.join(words_of(smaller.changes))}"
