"""The live view of a training: the rows that LLaMA-Factory appends to trainer_log.jsonl, read as they come."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from trainkit.datatypes import Step

if TYPE_CHECKING:
    from pathlib import Path


class ProgressReader:
    """Follows a growing trainer_log.jsonl.

    Args:
        path: the file, which need not exist yet.
        from_end: skip what the file holds now, as a resumed run does, whose trainer appends to the old log.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0
        self._rest = b""

    def read_new(self) -> list[Step]:
        """Return the rows written since the last call; a last line without its end waits for the next one."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    # a new run deleted the old log and writes its own
                    self._offset, self._rest = 0, b""
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        steps = (_find_step(line) for line in lines)
        return [step for step in steps if step is not None]


def describe(step: Step, start_step: int = 0) -> str:
    """Return one line of text: `step 40/120  loss 0.81  lr 9.1e-05  2.3 steps/min  left 0:12:20`.

    `start_step` is the step that a resumed training went on from. The trainer's clock starts there, but its own time
    left counts the earlier steps as if they had been made since, so the time is worked out anew.
    """
    words = [f"step {step.step}/{step.total}"]
    if step.loss is not None:
        words.append(f"loss {step.loss:.4g}")
    if step.eval_loss is not None:
        words.append(f"eval loss {step.eval_loss:.4g}")
    if step.lr is not None:
        words.append(f"lr {step.lr:.2g}")
    seconds, made = duration_seconds(step.elapsed), step.step - start_step
    if seconds and made > 0:
        left = timedelta(seconds=round((step.total - step.step) * seconds / made))
        words += [f"{60 * made / seconds:.1f} steps/min", f"left {left}"]
    return "  ".join(words)


def duration_seconds(text: str) -> int:
    """Return the seconds of a duration as Python prints it, `1 day, 2:03:04`; 0 when it is none."""
    days, _, clock = text.rpartition(",")
    parts = clock.strip().split(":")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        return 0
    hours, minutes, seconds = map(int, parts)
    number = days.split(" ")[0]
    return (int(number) if number.isdigit() else 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def _find_step(line: bytes) -> Step | None:
    """Return the row in `line`; None for a line that a killed trainer left behind half-written."""
    try:
        row: dict[str, Any] = json.loads(line)
        return Step(
            step=int(row["current_steps"]),
            total=int(row["total_steps"]),
            loss=row.get("loss"),
            eval_loss=row.get("eval_loss"),
            lr=row.get("lr"),
            epoch=row.get("epoch"),
            elapsed=str(row.get("elapsed_time", "")),
            remaining=str(row.get("remaining_time", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
