"""How many optimizer steps a training will take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a training: `Steps(rows_per_step=16, per_epoch=76, total=228)`."""

    rows_per_step: int
    per_epoch: int
    total: int


def plan_steps(rows: int, value: Callable[[str], Any], world: int) -> Steps:
    """Return the steps over `rows` rows (or packed sequences), as transformers' Trainer counts them.

    Args:
        rows: rows of the training set that the trainer keeps.
        value: a key's value, or the trainer's default for it.
        world: processes that share the rows.
    """
    micro_batch = int(value("per_device_train_batch_size") or 8)
    accumulation = int(value("gradient_accumulation_steps") or 1)
    batches = math.ceil(rows / (micro_batch * max(1, world)))
    if value("dataloader_drop_last"):
        batches = rows // (micro_batch * max(1, world))
    per_epoch = max(1, math.ceil(batches / accumulation))
    max_steps = int(value("max_steps") or -1)
    total = max_steps if max_steps > 0 else math.ceil(float(value("num_train_epochs") or 3) * per_epoch)
    return Steps(micro_batch * accumulation * max(1, world), per_epoch, total)
