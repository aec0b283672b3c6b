"""The number of steps is the one that the trainer announces."""

from __future__ import annotations

from typing import Any

import pytest

from trainkit.plan.steps import Steps, plan_steps


@pytest.mark.parametrize(
    ("rows", "world", "values", "steps"),
    [
        (100, 1, {}, Steps(8, 13, 39)),
        (100, 1, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}, Steps(16, 7, 21)),
        (100, 4, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}, Steps(64, 2, 6)),
        (100, 1, {"num_train_epochs": 0.5}, Steps(8, 13, 7)),
        (100, 1, {"max_steps": 5}, Steps(8, 13, 5)),
        (100, 1, {"max_steps": -1, "dataloader_drop_last": True}, Steps(8, 12, 36)),
        (3, 8, {"gradient_accumulation_steps": 8}, Steps(512, 1, 3)),
    ],
)
def test_steps(rows: int, world: int, values: dict[str, Any], steps: Steps) -> None:
    assert plan_steps(rows, values.get, world) == steps
