from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.datatypes import Problem
from trainkit.runs.checkpoints import load_checkpoint
from trainkit.runs.resume_check import (
    WHERE,
    PlannedRun,
    check_resume,
    count_processes,
    find_base_rates,
    find_earlier_manifest,
    scan_archive,
    scan_pickle,
)
from trainkit.runs.store import Run, describe_data, write_marker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., Path]


class Arguments:
    """Stands in for the trainer's arguments, which are an object of a class of its own."""


def save(path: Path, value: object) -> None:
    """As torch.save does it: a pickle of protocol 2 in a ZIP archive."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/data.pkl", pickle.dumps(value, protocol=2))
        archive.writestr(f"{path.stem}/version", "3\n")


def arguments(**values: Any) -> Arguments:
    made = Arguments()
    made.__dict__.update({"output_dir": "saves/rm", "tf32": None, "bf16": True, **values})
    return made


def scheduler(*rates: float) -> dict[str, Any]:
    return {"base_lrs": list(rates), "last_epoch": 40, "_is_initial": False, "_last_lr": [1e-6], "lr_lambdas": [{}, {}]}


@pytest.fixture
def checkpoint(make_checkpoint: Make) -> Path:
    """checkpoint-40 of 120 of a LoRA training on one GPU: 2 x 8 rows a step, learning rate 1e-4."""
    folder = make_checkpoint(40)
    save(folder / "scheduler.pt", scheduler(1e-4, 1e-4))
    save(folder / "training_args.bin", arguments(per_device_train_batch_size=2, gradient_accumulation_steps=8))
    return folder


SAME = {"total_steps": 120, "learning_rate": 1e-4, "batch_size": 2, "accumulation": 8, "processes": 1}


def check(folder: Path, manifest: dict[str, Any] | None = None, **changes: Any) -> list[Problem]:
    return check_resume(load_checkpoint(folder), PlannedRun(**{**SAME, **changes}), manifest or {})


def test_the_same_training_goes_on_without_a_word(checkpoint: Path) -> None:
    assert check(checkpoint) == []
    assert check_resume(load_checkpoint(checkpoint), PlannedRun(), {}) == []


@pytest.mark.parametrize("total", [40, 39])
def test_a_training_that_would_make_no_step(checkpoint: Path, total: int) -> None:
    assert check(checkpoint, total_steps=total) == [
        Problem(
            WHERE,
            f"the training is planned to end at step {total}, and checkpoint-40 is there already",
            "the trainer would stop after one step or none, with exit code 0: set max_steps to 40 + the new steps "
            f"(max_steps={40 + total} for {total} more), or raise num_train_epochs",
        )
    ]


def test_another_number_of_steps_moves_the_schedule(checkpoint: Path) -> None:
    assert check(checkpoint, total_steps=200) == [
        Problem(
            WHERE,
            "checkpoint-40 was on its way to step 120, this training to 200",
            "the learning rate schedule is laid over the new number, so the rate jumps at the resume",
            "note",
        )
    ]


@pytest.mark.parametrize(("kind", "key"), [("lora", "adapter_name_or_path"), ("full", "model_name_or_path")])
def test_a_new_learning_rate_has_no_effect(make_checkpoint: Make, kind: str, key: str) -> None:
    folder = make_checkpoint(40, kind)
    save(folder / "scheduler.pt", scheduler(1e-4, 1e-4))
    assert check(folder, learning_rate=5e-5) == [
        Problem(
            "learning_rate",
            "5e-05 has no effect: checkpoint-40 was trained with 0.0001, and its scheduler.pt wins",
            f"to train on with 5e-05: {key}={folder} and a new output_dir, without a resume",
            "warning",
        )
    ]


@pytest.mark.parametrize(
    ("rates", "planned"),
    [((1e-4, 16e-4), 1e-4), ((16e-4, 1e-4), 1e-4), ((1e-4,), 1.0000000001e-4), ((), 3e-4)],
    ids=["LoRA+", "LoRA+ turned round", "rounded", "none"],
)
def test_the_same_learning_rate(checkpoint: Path, rates: tuple[float, ...], planned: float) -> None:
    save(checkpoint / "scheduler.pt", scheduler(*rates))
    assert check(checkpoint, learning_rate=planned) == []


def deepspeed(make_checkpoint: Make) -> Path:
    folder = make_checkpoint(40, "deepspeed")
    save(folder / "scheduler.pt", scheduler(1e-4))
    return folder


def test_deepspeed_reads_its_own_alone(make_checkpoint: Make) -> None:
    assert check(make_checkpoint(40), deepspeed=True, processes=None) == [
        Problem(
            WHERE,
            "checkpoint-40 was not written by DeepSpeed, which can read only its own",
            "resume without deepspeed, or start a new training from its weights",
        )
    ]


@pytest.mark.parametrize(
    ("planned", "message", "hint"),
    [
        ({"deepspeed": True, "processes": 2}, "", ""),
        ({"deepspeed": True, "processes": None}, "", ""),
        (
            {"deepspeed": True, "processes": 4},
            "checkpoint-40 holds the optimizer of 2 processes, and 4 will train",
            "DeepSpeed reads as many as were written: train with 2 (NPROC_PER_NODE)",
        ),
    ],
)
def test_deepspeeds_checkpoint(make_checkpoint: Make, planned: dict[str, Any], message: str, hint: str) -> None:
    problems = [Problem(WHERE, message, hint)] if message else []
    assert check(deepspeed(make_checkpoint), **planned) == problems


def test_without_deepspeed_its_checkpoint_gives_the_weights_alone(make_checkpoint: Make) -> None:
    assert check(deepspeed(make_checkpoint), processes=2, learning_rate=1.0) == [
        Problem(
            WHERE,
            "checkpoint-40 was written by DeepSpeed; without it the optimizer and the schedule start anew",
            "resume with the same deepspeed file",
            "warning",
        )
    ]


def data(folder: Path, **rows: str) -> tuple[Path, ...]:
    files = []
    for name, text in rows.items():
        files.append(folder / f"{name}.jsonl")
        files[-1].write_text(text)
    return tuple(files)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({"a": "1\n2\n", "b": "3\n"}, ""),
        ({"a": "1\n3\n", "b": "3\n"}, "DIR/a.jsonl has changed"),
        ({"a": "1\n2\n4\n", "b": "3\n"}, "DIR/a.jsonl has changed"),
        ({"a": "1\n2\n"}, "DIR/b.jsonl is no longer used"),
        ({"a": "1\n2\n", "b": "3\n", "c": "3\n"}, "DIR/c.jsonl is new"),
        ({"x": "1\n2\n", "y": "3\n"}, ""),  # other names for the same bytes
        ({"a": "", "z": "3\n"}, "DIR/z.jsonl is new; DIR/b.jsonl is no longer used; DIR/a.jsonl has changed"),
    ],
)
def test_changed_data(checkpoint: Path, tmp_path: Path, after: dict[str, str], words: str) -> None:
    manifest = {"data": [describe_data(file) for file in data(tmp_path, a="1\n2\n", b="3\n")]}
    files = data(tmp_path, **after)
    expected = [
        Problem(
            "dataset",
            f"not what checkpoint-40 was trained on: {words}".replace("DIR", str(tmp_path)),
            "the trainer skips as many batches as it has made, of whatever rows: set ignore_data_skip: true, and "
            "max_steps to 40 + the new steps",
            "warning",
        )
    ]
    assert check(checkpoint, manifest, files=files) == (expected if words else [])
    assert check(checkpoint, manifest, files=files, ignore_data_skip=True) == []


def test_other_rows_of_the_same_file(checkpoint: Path, tmp_path: Path) -> None:
    files = data(tmp_path, a="1\n2\n")
    manifest = {
        "data": [describe_data(files[0])],
        "datasets": {"rm_clip": {"file_name": "a.jsonl", "split": "train[0:1]"}, "rm_full": {"file_name": "a.jsonl"}},
    }
    same = {"rm_clip": "train[0:1]", "rm_full": None, "unknown": "train"}
    assert check(checkpoint, manifest, files=files, splits=same) == []
    (problem,) = check(checkpoint, manifest, files=files, splits={**same, "rm_clip": "train[1:2]"})
    assert problem.message == "not what checkpoint-40 was trained on: rm_clip takes other rows of its file"


@pytest.mark.parametrize(
    ("planned", "rows"),
    [
        ({"batch_size": 4, "accumulation": 4}, None),
        ({"accumulation": 4, "processes": 2}, None),
        ({"processes": None}, None),
        ({"batch_size": 4}, 32),
        ({"processes": 8}, 128),
    ],
)
def test_a_step_of_another_size(checkpoint: Path, planned: dict[str, Any], rows: int | None) -> None:
    expected = Problem(
        "per_device_train_batch_size",
        f"a step was 16 rows (batch size x accumulation x processes) and is {rows} now",
        "the trainer skips the rows it has seen by steps of the new size, so some are trained on twice or never: keep "
        "the product at 16, or set ignore_data_skip: true and max_steps",
        "warning",
    )
    assert check(checkpoint, **planned) == ([expected] if rows else [])
    assert check(checkpoint, ignore_data_skip=True, **planned) == []


def test_arguments_that_cannot_be_read_are_not_compared(checkpoint: Path) -> None:
    for broken in (arguments(per_device_train_batch_size="two"), {"gradient_accumulation_steps": None}):
        save(checkpoint / "training_args.bin", broken)
        assert check(checkpoint, batch_size=64) == []
    (checkpoint / "training_args.bin").unlink()
    assert check(checkpoint, batch_size=64) == []


def test_processes_are_counted_by_their_random_states(tmp_path: Path) -> None:
    assert count_processes(tmp_path) is None
    for rank in range(3):
        (tmp_path / f"rng_state_{rank}.pth").touch()
    assert count_processes(tmp_path) == 3
    (tmp_path / "rng_state.pth").touch()
    assert count_processes(tmp_path) == 1


def test_the_manifest_of_the_run_that_wrote_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    assert find_earlier_manifest(checkpoint, logs) == {}
    write_marker(checkpoint.parent, {"run_id": "20260301-142530-train"})
    assert find_earlier_manifest(checkpoint, logs) == {}
    run = Run(logs / "20260301-142530-train")
    run.write_manifest({"data": []})
    assert find_earlier_manifest(checkpoint, logs) == {"data": []}


class Trap:
    """Unpickling it would raise; nothing here may do that."""

    def __reduce__(self) -> tuple[object, ...]:
        return (int, ("a trap",))


def test_nothing_of_an_archive_is_run(tmp_path: Path) -> None:
    save(tmp_path / "scheduler.pt", {"trap": Trap(), **scheduler(3e-4)})
    assert find_base_rates(tmp_path) == (3e-4,)
    with pytest.raises(ValueError, match="a trap"):
        pickle.loads(pickle.dumps(Trap()))


def test_values_of_every_kind_are_found_by_name(tmp_path: Path) -> None:
    values = {
        "a": 1, "b": -70000, "c": 2**40, "d": 0.5, "e": True, "f": False, "g": None, "h": [1, 0.5, None], "i": [],
        "j": "text", "k": {"x": 1}, "l": ["text"],
    }  # fmt: skip
    expected = {**{name: values[name] for name in "abcdefghi"}, "l": []}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert scan_pickle(pickle.dumps(values, protocol=protocol), tuple(values)) == expected
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(values, protocol=2))
    assert scan_archive(tmp_path / "x.bin", tuple(values)) == expected
    assert scan_archive(tmp_path / "x.bin", ("x", "nothing")) == {"x": 1}


def test_a_file_that_is_no_archive_has_no_values(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.pt"
    assert find_base_rates(tmp_path) == ()
    file.write_bytes(b"PK")
    assert find_base_rates(tmp_path) == ()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("scheduler/version", "3")
    assert find_base_rates(tmp_path) == ()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("scheduler/data.pkl", b" " * (2**20 + 1))
    assert find_base_rates(tmp_path) == ()
    save(file, {"base_lrs": 3e-4})
    assert find_base_rates(tmp_path) == ()


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 255))
def test_damage_gives_no_value_or_a_plain_one(tail: bytes, place: int, byte: int) -> None:
    content = bytearray(pickle.dumps(scheduler(1e-4, 2e-4), protocol=2))
    content[place % len(content)] = byte
    for damaged in (bytes(content), bytes(content[:place]) + tail, tail):
        try:
            found = scan_pickle(damaged, ("base_lrs",))
        except ValueError:
            continue
        rates = found.get("base_lrs")
        assert rates is None or isinstance(rates, int | float | list)


def trainkit(folder: Path, *words: str) -> None:
    """Run the program in a folder; measuring the trainer's coverage too would take several times as long."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-m", "trainkit", *words], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_a_real_resume_goes_as_it_is_told(tmp_path: Path) -> None:
    trainkit(tmp_path, "init", "--demo")
    trainkit(tmp_path, "convert", "--split-eval")
    words = ["train", "--monitor", "none", "eval_strategy=no", "save_steps=2", "cutoff_len=256", "max_samples=12"]
    words += ["lr_scheduler_type=constant", "logging_steps=1", "gradient_accumulation_steps=3", "warmup_ratio=0"]
    trainkit(tmp_path, *words, "learning_rate=0.004", "max_steps=2")
    saved = tmp_path / "saves" / "reward_model_training"
    trained = load_checkpoint(saved / "checkpoint-2")
    manifest = find_earlier_manifest(trained.path, tmp_path / "logs")
    files = tuple(tmp_path / entry["path"] for entry in manifest["data"])
    planned = PlannedRun(2, 0.001, batch_size=4, accumulation=3, processes=1, files=files)
    found = check_resume(trained, planned, manifest)
    assert [(problem.where, problem.level) for problem in found] == [
        (WHERE, "error"),
        ("learning_rate", "warning"),
        ("per_device_train_batch_size", "warning"),
    ]
    assert "was trained with 0.004" in found[1].message
    assert found[2].message == "a step was 6 rows (batch size x accumulation x processes) and is 12 now"

    trainkit(tmp_path, *words, "learning_rate=0.001", "max_steps=4")
    log = map(json.loads, (saved / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines())
    rates = {row["current_steps"]: row["lr"] for row in log if "lr" in row}
    assert {step: rate for step, rate in rates.items() if step > 2} == {3: 0.004, 4: 0.004}
