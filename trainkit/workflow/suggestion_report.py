"""A suggestion as plain values: what `--json` prints and what the table is made of."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from trainkit.plan.explain import explain

if TYPE_CHECKING:
    from trainkit.plan.options import Option
    from trainkit.plan.verdict import Candidate, Verdict
    from trainkit.workflow.suggestion import Suggestion, Traced


def report(suggestion: Suggestion) -> dict[str, Any]:
    """Return a suggestion for machines: bytes for memory, tokens per second of all GPUs together for speed."""
    advice, task = suggestion.advice, suggestion.task
    traced: list[Traced | None] = [*suggestion.traced] or [None] * (1 + len(advice.candidates))
    gpu = task.machine.gpu
    return {
        "ok": advice.something_fits,
        "model": suggestion.config.values.get("model_name_or_path"),
        "machine": {"gpu": gpu.name, "gpus": task.machine.count, "memory": gpu.memory, "usable": task.machine.usable},
        "effective_batch": task.effective_batch,
        "given": verdict_values(advice.given, traced[0]),
        "candidates": [
            candidate_values(candidate, suggestion, found)
            for candidate, found in zip(advice.candidates, traced[1:], strict=True)
        ],
        "nearest": candidate_values(advice.nearest, suggestion) if advice.nearest else None,
        "options": [option_values(option, advice.given) for option in advice.options],
        "notes": [dataclasses.asdict(note) for note in suggestion.notes],
    }


def verdict_values(verdict: Verdict, traced: Traced | None = None) -> dict[str, Any]:
    """Return a setup's memory, term by term, and its speed."""
    memory, setup = verdict.memory, verdict.setup
    values: dict[str, Any] = {
        "fits": verdict.fits,
        "total": memory.total,
        "margin": verdict.margin,
        "phase": memory.phase,
        "terms": {name.replace(" ", "_"): size for name, size, _ in memory.terms()},
        "why": {name.replace(" ", "_"): why for name, _, why in memory.terms()},
        "tokens_per_second": round(verdict.tokens_per_second),
        "efficiency": round(verdict.efficiency, 3),
        "time": {name: round(share, 3) for name, share in verdict.speed.shares.items()},
        "setup": dataclasses.asdict(setup),
    }
    if traced:
        values["traced"] = dataclasses.asdict(traced)
        if not traced.error:
            values["fits"] = traced.fits(verdict.usable)
    return values


def candidate_values(candidate: Candidate, suggestion: Suggestion, traced: Traced | None = None) -> dict[str, Any]:
    """Return a candidate: the keys that change, why, and what comes of it."""
    given, packages = suggestion.advice.given, suggestion.task.packages
    return {
        "changes": candidate.changes,
        "speedup": round(candidate.speedup, 3),
        "reasons": {
            key: dataclasses.asdict(explain(key, value, candidate.verdict, given, packages))
            for key, value in candidate.changes.items()
        },
        **verdict_values(candidate.verdict, traced),
    }


def option_values(option: Option, given: Verdict) -> dict[str, Any]:
    """Return an option: the keys that it is about, all keys that go with it, and its gain over the first candidate."""
    return {
        "keys": option.keys,
        "changes": option.changes,
        "gain": round(option.gain, 3),
        "speedup": round(option.verdict.tokens_per_second / given.tokens_per_second, 3),
        "caveat": option.caveat,
        **verdict_values(option.verdict),
    }
