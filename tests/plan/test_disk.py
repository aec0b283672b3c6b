from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.datatypes import Problem
from trainkit.plan.disk import (
    GIB,
    TOKENIZER_BYTES,
    Training,
    Volume,
    check_disk,
    checkpoint_bytes,
    count_saves,
    export_bytes,
    find_volume,
    weights_bytes,
)

if TYPE_CHECKING:
    from pathlib import Path

SEVEN_B = Training(7_615_616_512, 7_615_616_512, "full")
LORA = Training(7_615_616_512, 161_480_704, "lora")
ONE = Training(GIB, GIB, "full")  # weights 4 GiB, a checkpoint 12 GiB, an export 2 GiB


@pytest.mark.parametrize(
    ("training", "each", "weights"),
    [
        (Training(10**9, 10**9, "full"), 12, 4),
        (Training(10**9, 10**9, "full", pure_bf16=True), 6, 2),
        (Training(10**9, 10**9, "full", zero_stage=2), 16, 2),
        (Training(10**9, 10**9, "full", zero_stage=3), 14, 2),
        (Training(10**9, 10**9, "full", optim="paged_adamw_8bit"), 6, 4),
        (Training(10**9, 10**9, "full", optim="adafactor"), 4, 4),
    ],
)
def test_bytes_of_a_parameter(training: Training, each: int, weights: int) -> None:
    assert checkpoint_bytes(training) == each * 10**9 + TOKENIZER_BYTES
    assert weights_bytes(training) == checkpoint_bytes(training, save_only_model=True)
    assert weights_bytes(training) == weights * 10**9 + TOKENIZER_BYTES


def test_an_adapter_is_saved_alone_and_frozen_layers_are_not() -> None:
    assert checkpoint_bytes(LORA) == 12 * LORA.trainable + TOKENIZER_BYTES
    frozen = Training(10**9, 10**8, "freeze")
    assert checkpoint_bytes(frozen) == 12 * 10**8 + 2 * 9 * 10**8 + TOKENIZER_BYTES


# Bytes of the weights and of the optimizer (with DeepSpeed its whole folder, of two processes) in checkpoints that
# LLaMA-Factory 0.9.5 wrote of a Qwen2 of 348,736 parameters.
REAL = [
    (Training(348_736, 348_736, "full"), 1_397_744, 2_812_574),
    (Training(348_736, 1_196_032, "lora"), 4_787_784, 9_591_899),
    (Training(348_736, 348_736, "full", zero_stage=2), 700_248, 4_904_239),
    (Training(348_736, 1_196_032, "lora", zero_stage=2), 2_395_736, 16_779_043),
]


@pytest.mark.parametrize(("training", "weights", "optimizer"), REAL)
def test_a_real_checkpoint_has_that_size(training: Training, weights: int, optimizer: int) -> None:
    assert weights_bytes(training) - TOKENIZER_BYTES == pytest.approx(weights, rel=0.01)
    assert checkpoint_bytes(training) - TOKENIZER_BYTES == pytest.approx(weights + optimizer, rel=0.01)


def test_zero_3_writes_the_weights_outside_of_its_folder_alone() -> None:
    training = Training(348_736, 348_736, "full", zero_stage=3)
    engine = checkpoint_bytes(training) - weights_bytes(training)
    assert engine == pytest.approx(2 * 2_097_855 + 2 * 14_801, rel=0.01)  # real optimizer and model states


@pytest.mark.parametrize(
    ("values", "total_steps", "saves"),
    [
        ({}, 1200, 3),
        ({"save_steps": 400}, 1200, 3),
        ({"save_steps": 400}, 1201, 4),
        ({"save_steps": 0.25}, 1201, 4),
        ({"save_steps": 400}, None, None),
        ({"save_strategy": "epoch", "num_train_epochs": 2.5}, None, 3),
        ({"save_strategy": "epoch"}, None, 3),
        ({"save_strategy": "best"}, 1200, None),
        ({"save_strategy": "no"}, 1200, 0),
        ({"save_strategy": False}, None, 0),
    ],
)
def test_how_many_checkpoints_are_written(values: dict[str, Any], total_steps: int | None, saves: int | None) -> None:
    assert count_saves(values, total_steps) == saves


def disk(free_gib: float, device: int = 1) -> Volume:
    return Volume(device, int(free_gib * GIB))


ELSEWHERE = "save_only_model: true saves no optimizer (no resume), or choose an output_dir on another disk"


@pytest.mark.parametrize(
    ("values", "free_gib", "problems"),
    [
        # four checkpoints at a time, as the oldest of three goes only when the next one is there
        ({"save_total_limit": 3}, 61, []),
        (
            {"save_total_limit": 3},
            60,
            [
                Problem(
                    "output_dir",
                    "takes 48.1 GiB of the 60.0 GiB that are free on its disk (4 x 12.0 GiB of checkpoints, "
                    "the model 4.0 GiB)",
                    "save_total_limit: 2 fits",
                    "warning",
                )
            ],
        ),
        (
            {"save_total_limit": 3},
            40,
            [
                Problem(
                    "output_dir",
                    "needs 48.1 GiB and 40.0 GiB are free on its disk (4 x 12.0 GiB of checkpoints, the model 4.0 GiB)",
                    "save_total_limit: 1 fits",
                )
            ],
        ),
        (
            {"save_total_limit": 3},
            20,
            [
                Problem(
                    "output_dir",
                    "needs 48.1 GiB and 20.0 GiB are free on its disk (4 x 12.0 GiB of checkpoints, the model 4.0 GiB)",
                    ELSEWHERE,
                )
            ],
        ),
        # without a limit every one of the 10 is kept
        (
            {},
            100,
            [
                Problem(
                    "output_dir",
                    "needs 124.2 GiB and 100.0 GiB are free on its disk (10 x 12.0 GiB of checkpoints, "
                    "the model 4.0 GiB)",
                    "save_total_limit: 5 fits",
                )
            ],
        ),
        # fewer saves than the limit
        ({"save_total_limit": 10, "save_steps": 4000}, 40, []),
        (
            {"save_strategy": "no"},
            3,
            [Problem("output_dir", "needs 4.0 GiB and 3.0 GiB are free on its disk (the model 4.0 GiB)", ELSEWHERE)],
        ),
        (
            {"save_only_model": True, "save_total_limit": 1},
            8,
            [
                Problem(
                    "output_dir",
                    "needs 8.0 GiB and 8.0 GiB are free on its disk (2 x 4.0 GiB of checkpoints, the model 4.0 GiB)",
                    "choose an output_dir on another disk",
                )
            ],
        ),
    ],
)
def test_one_disk(values: dict[str, Any], free_gib: float, problems: list[Problem]) -> None:
    assert check_disk(values, ONE, {"output_dir": disk(free_gib)}, total_steps=5000) == problems


def test_one_checkpoint_is_sure_when_nothing_else_is_known() -> None:
    found = check_disk({}, ONE, {"output_dir": disk(10)})
    words = "needs 16.0 GiB and 10.0 GiB are free on its disk (1 x 12.0 GiB of checkpoints, the model 4.0 GiB)"
    assert found == [Problem("output_dir", words, ELSEWHERE)]


def test_an_export_counts_on_its_own_disk() -> None:
    values = {"save_total_limit": 1, "save_strategy": "epoch", "num_train_epochs": 1}
    # one checkpoint and the model: 16.03 GiB, and its export of 2.02
    fits = {"output_dir": disk(25), "export_dir": disk(25)}
    assert check_disk(values, ONE, fits) == []
    together = check_disk(values, ONE, {"output_dir": disk(17), "export_dir": disk(17)})
    assert [problem.message for problem in together] == [
        "needs 18.0 GiB and 17.0 GiB are free on its disk (1 x 12.0 GiB of checkpoints, the model 4.0 GiB, "
        "its export 2.0 GiB)"
    ]
    apart = check_disk(values, ONE, {"output_dir": disk(25), "export_dir": disk(1.5, device=2)})
    assert apart == [
        Problem(
            "export_dir",
            "needs 2.0 GiB and 1.5 GiB are free on its disk (the exported model takes 2.0 GiB)",
            "choose an export_dir on another disk",
        )
    ]


def test_checkpoints_that_are_there_need_no_more_space() -> None:
    values, volumes = {"save_total_limit": 3}, {"output_dir": disk(14)}
    assert check_disk(values, ONE, volumes, total_steps=5000, existing=3) == [
        Problem(
            "output_dir",
            "takes 12.0 GiB of the 14.0 GiB that are free on its disk (1 x 12.0 GiB of checkpoints, the model 4.0 GiB)",
            "save_total_limit: 2 fits",
            "warning",
        )
    ]
    assert len(check_disk(values, ONE, volumes, total_steps=5000)) == 1


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    found = find_volume(tmp_path / "not" / "yet")
    assert found.device == tmp_path.stat().st_dev
    assert 0 < found.free_bytes < 2**60
    assert find_volume(tmp_path).device == found.device


def test_a_seven_b_model_as_people_know_it() -> None:
    assert round(checkpoint_bytes(SEVEN_B) / GIB) == 85
    assert round(checkpoint_bytes(LORA) / GIB, 1) == 1.8
    assert round(export_bytes(SEVEN_B.params) / GIB, 1) == 14.2


@pytest.mark.slow
def test_a_checkpoint_made_now_has_that_size(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    words = ["finetuning_type=full", "max_steps=1", "eval_strategy=no", "cutoff_len=256", "max_samples=6"]
    for command in (["init", "--demo"], ["convert"], ["train", "--monitor", "none", "save_steps=1", *words]):
        argv = [sys.executable, "-m", "trainkit", *command]
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    saved = tmp_path / "saves" / "reward_model_training"
    sizes = {path.name: path.stat().st_size for path in (saved / "checkpoint-1").iterdir()}
    training = Training(348_736, 348_736, "full")
    assert sizes["model.safetensors"] == pytest.approx(weights_bytes(training) - TOKENIZER_BYTES, rel=0.01)
    both = sizes["model.safetensors"] + sizes["optimizer.pt"]
    assert both == pytest.approx(checkpoint_bytes(training) - TOKENIZER_BYTES, rel=0.01)
    assert sum(sizes.values()) < checkpoint_bytes(training)
    assert (saved / "model.safetensors").stat().st_size == sizes["model.safetensors"]
