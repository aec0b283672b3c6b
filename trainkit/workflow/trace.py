"""The exact memory of suggested setups: the real model class on tensors without content, in a child process."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.datatypes import Problem
from trainkit.files import load_json
from trainkit.plan.hardware import run_child_json
from trainkit.workflow.prepare import trainer_python
from trainkit.workflow.suggestion import Traced

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainkit.plan.architecture import Architecture
    from trainkit.plan.verdict import Verdict
    from trainkit.workflow.suggestion import Suggestion

TRACE = Path(__file__).parent.parent / "inside" / "memory_trace.py"
TRACED_FIELDS = (
    "method", "stage", "micro_batch", "seq_tokens", "rank", "lora_targets", "dropout", "checkpointing", "liger",
    "masked", "zero_stage", "pure_bf16", "accumulation", "optimizer",
)  # fmt: skip


def with_trace(suggestion: Suggestion, env: Mapping[str, str]) -> Suggestion:
    """Trace the given setup and the candidates; a candidate that does not fit after all is taken out, with a note.

    Raises:
        EnvironmentProblem: the trainer's packages cannot be imported.
    """
    advice = suggestion.advice
    first, *others = trace(suggestion, [advice.given, *(candidate.verdict for candidate in advice.candidates)], env)
    pairs = list(zip(advice.candidates, others, strict=True))
    kept = [(candidate, found) for candidate, found in pairs if found.fits(candidate.verdict.usable)]
    notes = [
        Problem(
            "--exact",
            f"taken out: {_words(candidate.changes)} needs more than predicted",
            level="warning",
        )
        for candidate, found in pairs
        if not found.fits(candidate.verdict.usable)
    ]
    notes += [Problem("--exact", found.error, level="note") for found in dict.fromkeys((first, *others)) if found.error]
    return dataclasses.replace(
        suggestion,
        advice=dataclasses.replace(advice, candidates=tuple(candidate for candidate, _ in kept)),
        notes=(*suggestion.notes, *notes),
        traced=(first, *(found for _, found in kept)),
    )


def trace(suggestion: Suggestion, verdicts: list[Verdict], env: Mapping[str, str]) -> list[Traced]:
    """Return the trace of each setup; those that are sharded among GPUs are not traced."""
    config = model_config(suggestion)
    whole = [verdict for verdict in verdicts if not is_sharded(verdict)]
    cases = [{"config": config, "setup": setup_words(verdict), "extrapolate": True} for verdict in whole]
    answers = run_traces(cases, env) if cases else []
    found = iter([traced(verdict, answer) for verdict, answer in zip(whole, answers, strict=True)])
    sharded = Traced(error="not traced: the trace knows one GPU that holds everything, not ZeRO's shards")
    return [sharded if is_sharded(verdict) else next(found) for verdict in verdicts]


def run_traces(cases: list[dict[str, Any]], env: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the answer to each case, from two programs at a time: each takes every other case and one core."""
    shares = [share for share in (cases[0::2], cases[1::2]) if share]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda share: run_child_json(trainer_python(), TRACE, {"cases": share}, env), shares))
    found = [iter(answer["results"]) for answer in answers]
    return [next(found[number % 2]) for number in range(len(cases))]


def _words(changes: Mapping[str, Any]) -> str:
    """Return changed keys as they stand in YAML."""
    return ", ".join(f"{key}: {json.dumps(value)}" for key, value in changes.items()) or "the configuration as given"


def is_sharded(verdict: Verdict) -> bool:
    """Whether a setup is spread over GPUs or over the host's memory."""
    setup = verdict.setup
    return bool(setup.zero_stage) and (setup.world > 1 or setup.offload_optimizer or setup.offload_params)


def setup_words(verdict: Verdict) -> dict[str, Any]:
    """Return a setup in the words of inside/memory_trace.py."""
    fields = dataclasses.asdict(verdict.setup)
    return {name: fields[name] for name in TRACED_FIELDS}


def traced(verdict: Verdict, answer: Mapping[str, Any]) -> Traced:
    """Return what the trace says of a setup."""
    if "error" in answer:
        return Traced(error=f"not traced: {answer['error']}")
    memory, allocated = verdict.memory, int(answer["allocated"])
    tensors = memory.allocated - memory.workspace
    return Traced(allocated, int(allocated + memory.total - tensors), tensors / allocated - 1, str(answer["phase"]))


def model_config(suggestion: Suggestion) -> Any:
    """Return the model's config.json, or the sizes that it would hold for a model that is known by its name only."""
    file = Path(str(suggestion.config.values["model_name_or_path"])) / "config.json"
    return load_json(file) if file.is_file() else config_of(suggestion.task.architecture)


def config_of(architecture: Architecture) -> dict[str, Any]:
    """Return an architecture in the words of a config.json."""
    return {
        "model_type": architecture.model_type,
        "hidden_size": architecture.hidden,
        "intermediate_size": architecture.intermediate,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "num_key_value_heads": architecture.kv_heads,
        "head_dim": architecture.head_dim,
        "vocab_size": architecture.vocab,
        "tie_word_embeddings": architecture.tied,
    }
