"""Every setup that leads to the same model as the given one, and the best of those that fit.

Only what leaves the learning as it is gets searched: how the rows of one optimizer step are divided, what is computed
twice, which kernels and which sharding are used. Anything else is an option, see options.py.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from trainkit.plan.setup import keys_of
from trainkit.plan.verdict import Candidate, judge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainkit.plan.recipe import Setup
    from trainkit.plan.verdict import Task, Verdict

EQUAL_SPEED = 0.02  # settings this close are equally fast, and the one with fewer changes wins
LARGEST_MICRO_BATCH = 64
NUM_CANDIDATES = 3


class Sharding(NamedTuple):
    """A ZeRO stage (None is plain data parallelism), and what waits in the host's memory."""

    zero_stage: int | None
    offload_optimizer: bool = False
    offload_params: bool = False


SHARDINGS = (Sharding(None), Sharding(2), Sharding(3), Sharding(3, offload_optimizer=True, offload_params=True))
LIGER_MODELS = frozenset((
    "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4", "glm4v", "granite", "llama", "llava", "mistral",
    "mixtral", "mllama", "olmo2", "paligemma", "phi3", "qwen2", "qwen2_vl", "qwen2_5_vl", "qwen3", "qwen3_moe",
    "qwen3_next", "qwen3_5", "gpt_oss",
))  # fmt: skip


def search(task: Task) -> list[Candidate]:
    """Return every setup that leads to the same model, whether it fits or not; the given one comes first."""
    given = judge(task, task.given)
    setups = dict.fromkeys([*([task.given] if _keeps_batch(task, task.given) else []), *_setups(task)])
    found = []
    for setup in setups:
        verdict = judge(task, setup)
        speedup = verdict.tokens_per_second / given.tokens_per_second
        found.append(Candidate(verdict, keys_of(setup, task.given), speedup))
    return found


def _setups(task: Task) -> Iterator[Setup]:
    given = task.given
    rows = max(task.effective_batch // given.world, 1)
    for micro_batch in _divisors(rows, 1 if _one_row_only(given) else LARGEST_MICRO_BATCH):
        for sharding in _shardings(task):
            for liger in _ligers(task):
                for checkpointing in (given.checkpointing, not given.checkpointing):
                    yield dataclasses.replace(
                        given,
                        micro_batch=micro_batch,
                        accumulation=rows // micro_batch,
                        checkpointing=checkpointing,
                        liger=liger,
                        **sharding._asdict(),
                    )


def _divisors(number: int, largest: int) -> list[int]:
    return [divisor for divisor in range(1, min(number, largest) + 1) if number % divisor == 0]


def _one_row_only(setup: Setup) -> bool:
    return setup.packing and not setup.masked


def _keeps_batch(task: Task, setup: Setup) -> bool:
    return setup.micro_batch * setup.accumulation * setup.world == task.effective_batch


def _shardings(task: Task) -> list[Sharding]:
    """Return the kinds of sharding worth a look; the given one always."""
    given = task.given
    own = _sharding(given)
    if "deepspeed" not in task.packages or (given.world == 1 and given.method != "full"):
        return [own]
    allowed = [kind for kind in SHARDINGS if kind.zero_stage != 3 or not (given.method == "qlora" or given.pure_bf16)]
    return list(dict.fromkeys([own, *allowed]))


def _sharding(setup: Setup) -> Sharding:
    return Sharding(setup.zero_stage, setup.offload_optimizer, setup.offload_params)


def _ligers(task: Task) -> list[bool]:
    given = task.given
    helps = given.stage in ("sft", "pt") and task.architecture.model_type in LIGER_MODELS
    return [True] if given.liger else [False, True] if helps else [False]


def choose(candidates: list[Candidate], given: Verdict) -> tuple[Candidate, ...]:
    """Return the fastest, at most three and of different kinds; of equally fast ones that with the fewest changes.

    A setup that is slower than the given one is no advice when that one fits.
    """
    kinds: dict[object, list[Candidate]] = {}
    for candidate in candidates:
        kinds.setdefault(_kind(candidate.verdict.setup), []).append(candidate)
    best = sorted((_best(group) for group in kinds.values()), key=lambda candidate: -candidate.speedup)
    if not best:
        return ()
    first = _best(best)
    others = [candidate for candidate in best if candidate is not first]
    if given.fits:
        others = [candidate for candidate in others if candidate.speedup > 1 + EQUAL_SPEED]
    return (first, *others[: NUM_CANDIDATES - 1])


def _kind(setup: Setup) -> object:
    return setup.checkpointing, setup.liger, _sharding(setup)


def _best(candidates: list[Candidate]) -> Candidate:
    fastest = max(candidate.speedup for candidate in candidates)
    near = [candidate for candidate in candidates if candidate.speedup >= fastest * (1 - EQUAL_SPEED)]
    return min(near, key=lambda candidate: (_num_changes(candidate), candidate.verdict.memory.total))


def _num_changes(candidate: Candidate) -> int:
    """Count the changes; the two keys that divide the rows of a step are one."""
    keys = candidate.changes.keys()
    return len(keys - {"gradient_accumulation_steps"})
