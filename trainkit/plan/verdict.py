"""What a training on a machine needs and how fast it is: the records that the search works on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainkit.plan.memory import estimate
from trainkit.plan.padding import batch_lengths, packing_efficiency
from trainkit.plan.throughput import mean_speed, predict_speed

if TYPE_CHECKING:
    from collections.abc import Collection

    from trainkit.plan.architecture import Architecture
    from trainkit.plan.gpus import GpuModel
    from trainkit.plan.memory import Memory
    from trainkit.plan.padding import Lengths
    from trainkit.plan.recipe import Setup
    from trainkit.plan.throughput import Speed

# Shares of the memory that a prediction may fill: growing segments leave little between blocks.
FILL_EXPANDABLE = 0.95
FILL = 0.92
GROUPED_EFFICIENCY = 0.95  # what sorting rows by length leaves of a batch


@dataclass(frozen=True, slots=True)
class Machine:
    """What a training is meant for: `Machine(find_gpu("a100-80"), count=8)`; `here` says that it is this one."""

    gpu: GpuModel
    count: int = 1
    expandable_segments: bool = True
    here: bool = False

    @property
    def usable(self) -> int:
        """Bytes of one GPU that a prediction may fill."""
        return int(self.gpu.memory * (FILL_EXPANDABLE if self.expandable_segments else FILL))


@dataclass(frozen=True, slots=True)
class Task:
    """What is searched for: the model, the machine, the configuration as given, and the data.

    Attributes:
        given: the setup of the configuration.
        lengths: tokens of the rows, not truncated; None takes every row as long as cutoff_len.
        cutoff_len: the configuration's own.
        effective_batch: rows of one optimizer step on all GPUs together.
        packages: the packages of the trainer's environment.
        grouped: batches are made of rows of similar length.
    """

    architecture: Architecture
    machine: Machine
    given: Setup
    cutoff_len: int
    effective_batch: int
    lengths: Lengths | None = None
    packages: Collection[str] = ("deepspeed", "liger-kernel", "bitsandbytes")
    grouped: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A setup on a machine: its memory and its speed; `efficiency` is the share of tokens that are no padding."""

    setup: Setup
    memory: Memory
    speed: Speed
    usable: int
    efficiency: float
    num_parameters: int

    @property
    def fits(self) -> bool:
        """Whether it is predicted to run without running out of memory."""
        return self.memory.total <= self.usable

    @property
    def margin(self) -> int:
        """Bytes that are left, or lacking below 0."""
        return self.usable - self.memory.total

    @property
    def tokens_per_second(self) -> float:
        """Tokens of rows, not of padding, on all GPUs together."""
        return self.speed.tokens_per_second * self.efficiency * self.setup.world


@dataclass(frozen=True, slots=True)
class Candidate:
    """A setup that leads to the same model as the given one; `changes` are the trainer's keys that lead there.

    `speedup` is its speed over that of the given configuration, whether or not that one fits.
    """

    verdict: Verdict
    changes: dict[str, Any]
    speedup: float


def judge(task: Task, setup: Setup) -> Verdict:
    """Return what a setup needs, at its longest batch, and how fast it is, at an average one."""
    memory = estimate(task.architecture, setup)
    batches, efficiency = _batches(task, setup)
    gpu = task.machine.gpu
    speed = mean_speed(
        [(share, predict_speed(task.architecture, setup, gpu, seq_tokens=tokens)) for share, tokens in batches]
    )
    return Verdict(setup, memory, speed, task.machine.usable, efficiency, task.architecture.params)


def _batches(task: Task, setup: Setup) -> tuple[list[tuple[float, float]], float]:
    """Return (share, padded length) of the batches of an epoch, and the share of their tokens that are no padding."""
    if task.lengths is None:
        return [(1.0, setup.seq_tokens)], 1.0
    if setup.packing:
        return [(1.0, setup.seq_tokens)], _packed(task.lengths, task.cutoff_len)
    return _padded(task.lengths, task.cutoff_len, setup.micro_batch, task.grouped)


# A search asks for the same few batches hundreds of times.
_packed = functools.lru_cache(maxsize=8)(packing_efficiency)


@functools.lru_cache(maxsize=128)
def _padded(lengths: Lengths, cutoff_len: int, rows: int, grouped: bool) -> tuple[list[tuple[float, float]], float]:
    cut = lengths.cut(cutoff_len)
    batches = batch_lengths(cut, 1 if grouped else rows)
    if grouped:
        batches = [(share, tokens / GROUPED_EFFICIENCY) for share, tokens in batches]
    return batches, cut.num_tokens / cut.num_rows / sum(share * tokens for share, tokens in batches)
