"""What a resume would silently do otherwise than configured: no step at all, the old learning rate, other rows.

Read in transformers 5.6.0, `Trainer._init_training_state` (the checkpoint's state wins, batches are skipped by their
number) and `Trainer._load_optimizer_and_scheduler` (optimizer.pt and scheduler.pt win over the configuration), and in
DeepSpeed's `_load_zero_checkpoint` (one shard for each process). Whether a checkpoint is whole says checkpoints.py.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.datatypes import Problem
from trainkit.runs.store import file_digest, find_marker, find_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from trainkit.datatypes import Checkpoint

Scalar = int | float | bool | str | None

WHERE = "resume_from_checkpoint"
ARGUMENTS_FILE = "training_args.bin"
SCHEDULER_FILE = "scheduler.pt"
LARGEST_PICKLE = 2**20  # bytes; that of a scheduler or of arguments has a few thousand

MEMO = {"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"}
STRINGS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"}
NUMBERS = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT", "FLOAT"}
FIXED: dict[str, Scalar] = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None}


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A training that is to go on from a checkpoint; None stands for what is not known.

    Attributes:
        total_steps: the step at which it would end, counted from the very beginning.
        learning_rate: as configured.
        batch_size: rows of one process in one forward pass.
        accumulation: forward passes in one step.
        processes: how many will train; None when they are on machines that share no disk.
        deepspeed: whether DeepSpeed will hold the optimizer.
        ignore_data_skip: the trainer's key: start the epoch anew in the place of skipping the rows it has seen.
        files: the local files of the training data.
        splits: data set -> its `split` in dataset_info.json.
    """

    total_steps: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    accumulation: int | None = None
    processes: int | None = None
    deepspeed: bool = False
    ignore_data_skip: bool = False
    files: tuple[Path, ...] = ()
    splits: Mapping[str, str | None] = field(default_factory=dict)


def check_resume(checkpoint: Checkpoint, planned: PlannedRun, manifest: Mapping[str, Any]) -> list[Problem]:
    """Return what will not go as planned when `planned` goes on from `checkpoint`.

    Args:
        checkpoint: a complete one.
        planned: the training as it is configured now.
        manifest: the run.json of the training that wrote the checkpoint (see `find_earlier_manifest`), empty when it
            is not known.
    """
    return [
        *_check_steps(checkpoint, planned),
        *_check_deepspeed(checkpoint.path, planned),
        *_check_learning_rate(checkpoint, planned),
        *_check_data(checkpoint, planned, manifest),
        *_check_batch(checkpoint, planned),
    ]


def find_earlier_manifest(checkpoint: Path, log_root: Path) -> dict[str, Any]:
    """Return the run.json of the training that wrote a checkpoint, empty when there is none in `log_root`.

    Raises:
        InputError: it is damaged.
    """
    marker = find_marker(checkpoint) or {}
    run = find_run(Path(str(marker["run_id"])), log_root) if marker.get("run_id") else None
    return run.load_manifest() if run else {}


def _check_steps(checkpoint: Checkpoint, planned: PlannedRun) -> Iterator[Problem]:
    step, total = checkpoint.step, planned.total_steps
    if total is not None and total <= step:
        message = f"the training is planned to end at step {total}, and {checkpoint.path.name} is there already"
        hint = (
            f"the trainer would stop after one step or none, with exit code 0: set max_steps to {step} + the new steps "
            f"(max_steps={step + total} for {total} more), or raise num_train_epochs"
        )
        yield Problem(WHERE, message, hint)
    elif total is not None and checkpoint.total_steps and total != checkpoint.total_steps:
        message = f"{checkpoint.path.name} was on its way to step {checkpoint.total_steps}, this training to {total}"
        hint = "the learning rate schedule is laid over the new number, so the rate jumps at the resume"
        yield Problem(WHERE, message, hint, "note")


def _check_deepspeed(folder: Path, planned: PlannedRun) -> Iterator[Problem]:
    shards = count_shards(folder)
    if planned.deepspeed and not shards:
        hint = "resume without deepspeed, or start a new training from its weights"
        yield Problem(WHERE, f"{folder.name} was not written by DeepSpeed, which can read only its own", hint)
    elif shards and not planned.deepspeed:
        message = f"{folder.name} was written by DeepSpeed; without it the optimizer and the schedule start anew"
        yield Problem(WHERE, message, "resume with the same deepspeed file", "warning")
    elif shards and planned.processes and shards != planned.processes:
        message = f"{folder.name} holds the optimizer of {shards} processes, and {planned.processes} will train"
        yield Problem(WHERE, message, f"DeepSpeed reads as many as were written: train with {shards} (NPROC_PER_NODE)")


def _check_learning_rate(checkpoint: Checkpoint, planned: PlannedRun) -> Iterator[Problem]:
    rate, base_rates = planned.learning_rate, find_base_rates(checkpoint.path)
    starts_anew = count_shards(checkpoint.path) > 0 and not planned.deepspeed
    if rate is None or starts_anew or not base_rates:
        return
    if any(math.isclose(rate, base, rel_tol=1e-6) for base in base_rates):
        return
    key = "adapter_name_or_path" if (checkpoint.path / "adapter_config.json").exists() else "model_name_or_path"
    yield Problem(
        "learning_rate",
        f"{rate:g} has no effect: {checkpoint.path.name} was trained with {base_rates[0]:g}, and its scheduler.pt wins",
        f"to train on with {rate:g}: {key}={checkpoint.path} and a new output_dir, without a resume",
        "warning",
    )


def _check_data(checkpoint: Checkpoint, planned: PlannedRun, manifest: Mapping[str, Any]) -> Iterator[Problem]:
    words = list(_data_changes(planned, manifest))
    if not words or planned.ignore_data_skip:
        return
    yield Problem(
        "dataset",
        f"not what {checkpoint.path.name} was trained on: {'; '.join(words)}",
        "the trainer skips as many batches as it has made, of whatever rows: set ignore_data_skip: true, and max_steps "
        f"to {checkpoint.step} + the new steps",
        "warning",
    )


def _data_changes(planned: PlannedRun, manifest: Mapping[str, Any]) -> Iterator[str]:
    before = {entry["path"]: entry for entry in manifest.get("data") or ()}
    if before and planned.files and _differ(planned.files, list(before.values())):
        after = {str(file) for file in planned.files}
        yield from (f"{path} is new" for path in sorted(after - set(before)))
        yield from (f"{path} is no longer used" for path in sorted(set(before) - after))
        same_name = sorted(after & set(before))
        yield from (f"{path} has changed" for path in same_name if _differ([Path(path)], [before[path]]))
        return
    splits = {name: entry.get("split") for name, entry in (manifest.get("datasets") or {}).items()}
    for name, split in sorted(planned.splits.items()):
        if name in splits and splits[name] != split:
            yield f"{name} takes other rows of its file"


def _differ(files: Iterable[Path], before: list[Mapping[str, Any]]) -> bool:
    """Return whether files hold other bytes than before; they are read only when their sizes do not tell."""
    files = list(files)
    if sorted(file.stat().st_size for file in files) != sorted(entry["bytes"] for entry in before):
        return True
    return sorted(map(file_digest, files)) != sorted(entry["sha256"] for entry in before)


def _check_batch(checkpoint: Checkpoint, planned: PlannedRun) -> Iterator[Problem]:
    before = _rows_of_step(*_batch_of(checkpoint.path), count_processes(checkpoint.path))
    after = _rows_of_step(planned.batch_size, planned.accumulation, planned.processes)
    if not before or not after or before == after or planned.ignore_data_skip:
        return
    yield Problem(
        "per_device_train_batch_size",
        f"a step was {before} rows (batch size x accumulation x processes) and is {after} now",
        "the trainer skips the rows it has seen by steps of the new size, so some are trained on twice or never: keep "
        f"the product at {before}, or set ignore_data_skip: true and max_steps",
        "warning",
    )


def _rows_of_step(*factors: int | None) -> int | None:
    known = [factor for factor in factors if factor]
    return math.prod(known) if len(known) == len(factors) else None


def _batch_of(folder: Path) -> tuple[int | None, int | None]:
    """Return batch size and accumulation of the training that wrote a checkpoint."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    found = scan_archive(folder / ARGUMENTS_FILE, names)
    batch_size, accumulation = (found.get(name) for name in names)
    return (
        batch_size if isinstance(batch_size, int) else None,
        accumulation if isinstance(accumulation, int) else None,
    )


def count_processes(folder: Path) -> int | None:
    """Return how many processes wrote a checkpoint, by their random states; None when it has none."""
    if (folder / "rng_state.pth").exists():
        return 1
    return len(list(folder.glob("rng_state_*.pth"))) or None


def count_shards(folder: Path) -> int:
    """Return how many processes' optimizers DeepSpeed has written into a checkpoint; 0 when it wrote none."""
    latest = folder / "latest"
    if not latest.is_file():
        return 0
    return len(list((folder / latest.read_text(encoding="utf-8").strip()).glob("*optim_states.pt")))


def find_base_rates(folder: Path) -> tuple[float, ...]:
    """Return the learning rates that the scheduler of a checkpoint starts from, empty when they cannot be read."""
    found = scan_archive(folder / SCHEDULER_FILE, ("base_lrs",)).get("base_lrs")
    return tuple(value for value in found if isinstance(value, float)) if isinstance(found, list) else ()


def scan_archive(file: Path, names: Sequence[str]) -> dict[str, Scalar | list[Scalar]]:
    """Return plain values by their names from what `torch.save` wrote; nothing of it is unpickled, so nothing runs.

    Made for the flat values of a scheduler and of the trainer's arguments: a name that is missing, or whose value is
    neither a number, true, false, none nor a list of those, is left out.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entry = next((entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")), None)
            if entry is None or entry.file_size > LARGEST_PICKLE:
                return {}
            return scan_pickle(archive.read(entry), names)
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile):
        return {}


def scan_pickle(content: bytes, names: Sequence[str]) -> dict[str, Scalar | list[Scalar]]:
    """Return what follows the given names in a pickle's list of operations.

    Raises:
        ValueError: it is not a pickle.
    """
    operations = [(code.name, value) for code, value, _ in pickletools.genops(content) if code.name not in MEMO]
    found: dict[str, Scalar | list[Scalar]] = {}
    for place, (name, word) in enumerate(operations[:-1], start=1):
        if name not in STRINGS or word not in names:
            continue
        if _is_plain(operations[place]):
            found.setdefault(str(word), _plain(operations[place]))
        elif operations[place][0] == "EMPTY_LIST":
            found.setdefault(str(word), _list_items(operations[place + 1 :]))
    return found


def _is_plain(operation: tuple[str, Any]) -> bool:
    return operation[0] in NUMBERS or operation[0] in FIXED


def _plain(operation: tuple[str, Any]) -> Scalar:
    name, value = operation
    return FIXED.get(name, value)


def _list_items(operations: list[tuple[str, Any]]) -> list[Scalar]:
    items = takewhile(lambda operation: _is_plain(operation) or operation[0] == "MARK", operations)
    return [_plain(operation) for operation in items if operation[0] != "MARK"]
