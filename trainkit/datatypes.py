"""The small frozen records that travel between rooms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding of a check: where it is, what it is, what to do.

    `Problem("training_config.yaml:12 learning_rat", "unknown key", "did you mean learning_rate?")`
    """

    where: str
    message: str
    hint: str = ""
    level: Level = "error"


def gravest_first(problems: Iterable[Problem]) -> list[Problem]:
    """Return errors, then warnings, then notes, each in the order in which they were found."""
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(problems, key=lambda problem: order[problem.level])


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator: `Gpu("NVIDIA A100-SXM4-40GB", 40.0, (8, 0))`; memory in GiB, CUDA compute capability."""

    name: str
    memory_gib: float
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What this machine offers to a trainer: `Hardware(gpus=(), cpu_count=2, memory_gib=23.4)`."""

    gpus: tuple[Gpu, ...]
    cpu_count: int
    memory_gib: float

    @property
    def supports_bf16(self) -> bool:
        """Whether every GPU computes in bfloat16 and TF32: compute capability 8.0 (Ampere) or newer."""
        return bool(self.gpus) and all(gpu.capability >= (8, 0) for gpu in self.gpus)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of the trainer, read from its own dataclasses.

    `Argument("learning_rate", "float", default=5e-05)`,
    `Argument("stage", "str", default="sft", choices=("pt", "sft", "rm", "ppo", "dpo", "kto"))`.
    `kind` is one of bool, int, float, str, list, dict, any; `optional` says whether null is allowed.
    """

    name: str
    kind: str
    default: Any = None
    choices: tuple[str, ...] = ()
    optional: bool = True


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A complete trainer configuration, with the origin of each key.

    `values` is what the trainer will read; `origin["learning_rate"]` is `template qwen/lora`,
    `training_config.yaml:31` or `--learning-rate`; `notes` are the words about keys that were translated,
    dropped or adapted to the machine.
    """

    values: Mapping[str, Any]
    origin: Mapping[str, str]
    notes: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """A program to start: what is run, where, with which additions to the environment.

    `env` holds additions only, never the whole environment; a value of None removes the name.
    """

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. `exit_code` is the program's own, or 128 + n when signal n ended it.

    `signal` is the signal that trainkit passed on (2 for Ctrl-C, 15 for SIGTERM), None when there was none.
    """

    exit_code: int
    seconds: float
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the trainer's log: `Step(step=40, total=120, loss=0.81, lr=9.1e-05, epoch=1.0, ...)`."""

    step: int
    total: int
    loss: float | None = None
    eval_loss: float | None = None
    lr: float | None = None
    epoch: float | None = None
    elapsed: str = ""
    remaining: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder of a run; `missing` names what a complete one would have.

    `Checkpoint(Path("saves/rm/checkpoint-500"), 500, total_steps=1200, missing=())`
    """

    path: Path
    step: int
    total_steps: int
    missing: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether a trainer can resume from it."""
        return not self.missing


# A training row as a line of JSON, with what selects it: (type, judge, task, split group, row), for example
# ("clip", "deepseek-chat", "qa_0", b"qa_0", b'{"conversations":[...]}\n'). A plain tuple, as there is one for each row.
Example = tuple[str, str, str, bytes, bytes]


class PartKey(NamedTuple):
    """What rows of a data set have in common; `task` is None where tasks are not kept apart.

    `PartKey("train", "clip", "deepseek-chat", "webshaper_qa_0")`
    """

    side: str
    kind: str
    judge: str
    task: str | None


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one key in the file of its side, as ranges [start, stop) of row numbers in rising order.

    `Part(PartKey("train", "clip", "deepseek-chat", None), ((0, 4), (9, 12)))` are seven rows.
    """

    key: PartKey
    ranges: tuple[tuple[int, int], ...]

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return sum(stop - start for start, stop in self.ranges)


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was left out: `Reject("finetune.jsonl", 17, "empty turn", "turn 2 (gpt) is empty", b"{...}")`."""

    file: str
    line: int
    reason: str
    detail: str
    row: bytes


class Turn(NamedTuple):
    """One message as the trainer aligns it: `Turn("user", "Judge step 3.")`.

    `role` is user, assistant, observation or function.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row as the trainer aligns it: turns that alternate (user or observation, assistant or function), system, tools.

    `tools` is JSON text, empty when there are none.
    """

    turns: tuple[Turn, ...]
    system: str = ""
    tools: str = ""


class StepPlace(NamedTuple):
    """A step that can be trained on: `StepPlace(iteration=7, trajectory=12, step=3, task="shop_41")`.

    `iteration` is the number in the file's name, `trajectory` and `step` count from 0 in that file.
    """

    iteration: int
    trajectory: int
    step: int
    task: str
