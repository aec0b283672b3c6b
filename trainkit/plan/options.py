"""What could be gained by a change that is not made unasked: it touches the learning, or needs what is not here."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainkit.plan.padding import PAD_TO, packed_tokens, padded
from trainkit.plan.search import choose, search
from trainkit.plan.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trainkit.plan.verdict import Candidate, Task, Verdict

LEAST_GAIN = 1.03
SHORTEST_CUTOFF = 512


@dataclass(frozen=True, slots=True)
class Option:
    """A change to the learning, or one that needs what is not here: shown, never made unasked.

    `keys` is the change itself, `changes` every key of the best setup with it; `gain` its speed over the first
    candidate's, 1.0 when there is none, and `caveat` what it costs.
    """

    keys: dict[str, Any]
    changes: dict[str, Any]
    verdict: Verdict
    gain: float
    caveat: str


@dataclass(frozen=True, slots=True)
class _Change:
    """A change to a task: when it makes sense, the keys to write, the task after it, and what it costs."""

    applies: Callable[[Task], bool]
    keys: Callable[[Task], dict[str, Any]]
    apply: Callable[[Task], Task]
    caveat: str


def _with(task: Task, **fields: Any) -> Task:
    return dataclasses.replace(task, given=dataclasses.replace(task.given, **fields))


def _packed(task: Task, *, masked: bool, one_row: bool) -> Task:
    rows = max(task.effective_batch // task.given.world, 1)
    fields: dict[str, Any] = {"packing": True, "masked": masked, "seq_tokens": packed_tokens(task.cutoff_len)}
    if one_row:
        fields |= {"micro_batch": 1, "accumulation": rows}
    return _with(task, **fields)


def _autocasts(task: Task) -> bool:
    return task.given.method == "lora" and task.given.zero_stage is None and not task.given.pure_bf16


FLASH = _Change(
    lambda task: task.given.masked,
    lambda _: {"flash_attn": "fa2"},
    lambda task: _with(task, masked=False),
    "the same results without a padding mask; needs the package flash-attn, for which this torch has no official"
    " wheel; without it the trainer only warns and stays as it is",
)
NO_DROPOUT = _Change(
    lambda task: task.given.method != "full" and task.given.dropout > 0,
    lambda _: {"lora_dropout": 0.0},
    lambda task: _with(task, dropout=0.0),
    "less regularisation: it can overfit sooner on little data",
)
ENGINE = _Change(
    lambda task: _autocasts(task) and task.given.world == 1 and "deepspeed" in task.packages,
    lambda _: {"deepspeed": "ds_z2.json"},
    lambda task: _with(task, zero_stage=2),
    "on one GPU DeepSpeed shares nothing out, but computes in bf16 without autocast's copies; the adapter is bf16"
    " with an fp32 master copy",
)
CHANGES = (
    FLASH,
    NO_DROPOUT,
    _Change(
        lambda task: task.lengths is not None and task.given.stage == "sft" and not task.given.packing,
        lambda _: {"neat_packing": True, "flash_attn": "fa2"},
        lambda task: _packed(task, masked=False, one_row=True),
        "packs whole examples into rows of cutoff_len, kept apart by flash-attn (needed): an optimizer step holds more"
        " examples, so there are fewer steps; examples longer than cutoff_len are left out",
    ),
    _Change(
        lambda task: task.lengths is not None and task.given.stage == "sft" and not task.given.packing,
        lambda _: {"packing": True},
        lambda task: _packed(task, masked=(task.cutoff_len + 1) % PAD_TO != 0, one_row=False),
        "examples that share a row see each other: not for step rewards or labels; fewer steps; examples longer than"
        " cutoff_len are left out; only a cutoff_len one below a multiple of 8 goes without a mask",
    ),
    _Change(
        lambda task: task.lengths is not None and not task.given.packing and not task.grouped,
        lambda _: {"train_sampling_strategy": "group_by_length"},
        lambda task: dataclasses.replace(task, grouped=True),
        "batches are made of rows of similar length, so their order is less random",
    ),
    ENGINE,
    _Change(
        lambda task: task.given.method == "full" and not task.given.pure_bf16 and task.given.zero_stage is None,
        lambda _: {"pure_bf16": True},
        lambda task: _with(task, pure_bf16=True),
        "weights and Adam's moments in bf16: at learning rates near 1e-6 updates round to nothing",
    ),
    _Change(
        lambda task: task.given.method == "full" and task.given.optimizer == "adamw" and task.given.zero_stage is None,
        lambda _: {"optim": "adamw_bnb_8bit"},
        lambda task: _with(task, optimizer="adamw_8bit"),
        "Adam's moments in 8 bit (needs bitsandbytes): close to, but not the same as, the full ones",
    ),
    _Change(
        lambda task: task.given.method == "lora" and task.given.zero_stage != 3,
        lambda _: {"quantization_bit": 4},
        lambda task: _with(task, method="qlora"),
        "the frozen model in 4 bit (needs bitsandbytes): a little less exact, and unpacked again for each product",
    ),
)  # fmt: skip


def find_options(task: Task, first: Candidate | None) -> tuple[Option, ...]:
    """Return the changes that make the best setup faster by 3 % or more, or that fit when nothing does.

    Args:
        task: what is searched for.
        first: the best setup without any of them; None when nothing fits.
    """
    found = [_try(task, change, first) for change in CHANGES if change.applies(task)]
    options = [option for option in found if option is not None]
    together = [change for change in (FLASH, NO_DROPOUT, ENGINE) if change.applies(task)]
    if len(together) > 1:
        options += _listed([_try(task, functools.reduce(_both, together), first)])
    if first is None:
        options += _listed([_shorter(task)])
    return tuple(sorted(options, key=lambda option: -option.gain))


def _try(task: Task, change: _Change, first: Candidate | None) -> Option | None:
    """Search with a change made; None when it neither fits nor helps."""
    changed = change.apply(task)
    fitting = [candidate for candidate in search(changed) if candidate.verdict.fits]
    best = choose(fitting, judge(changed, changed.given))
    if not best:
        return None
    verdict = best[0].verdict
    gain = verdict.tokens_per_second / first.verdict.tokens_per_second if first else 1.0
    if first and gain < LEAST_GAIN:
        return None
    keys = change.keys(task)
    return Option(keys, keys | best[0].changes, verdict, gain, change.caveat)


def _both(one: _Change, other: _Change) -> _Change:
    return _Change(
        lambda task: one.applies(task) and other.applies(task),
        lambda task: one.keys(task) | other.keys(task),
        lambda task: other.apply(one.apply(task)),
        "all of these together, with what each of them costs",
    )


def _shorter(task: Task) -> Option | None:
    """Return the longest halving of cutoff_len that fits."""
    cutoff_len = task.cutoff_len // 2
    while cutoff_len >= SHORTEST_CUTOFF:
        option = _try(task, _cut(cutoff_len), None)
        if option:
            return option
        cutoff_len //= 2
    return None


def _cut(cutoff_len: int) -> _Change:
    def apply(task: Task) -> Task:
        shorter = packed_tokens(cutoff_len) if task.given.packing else padded(cutoff_len)
        return dataclasses.replace(_with(task, seq_tokens=shorter), cutoff_len=cutoff_len)

    return _Change(
        lambda _: True,
        lambda _: {"cutoff_len": cutoff_len},
        apply,
        "longer rows are cut; `trainkit validate` counts how many",
    )


def _listed(options: Iterable[Option | None]) -> list[Option]:
    return [option for option in options if option is not None]
