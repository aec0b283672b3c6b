"""Trajectories of a web agent, one file for each iteration of rollouts: reading them, and writing their training rows.

    <save_path>/train_trajectories/train_trajectories.pt.iteration7         what torch.save wrote, read by `pickles`
    <save_path>/train_trajectories/train_trajectories.iteration7.jsonl      or .jsonl.gz, .jsonl.zst: the same, open

The .pt holds {"trajectories": [[step, ...], ...], "metadata": {...}}. A line of the JSONL is one trajectory:

    {"trajectory": 12, "steps": [{"action": "click(3)", "observation": {...}, "response": {...}, ...}, ...]}

with the steps as `steps` describes them; "trajectory" is the number in the iteration, rising from line to line, by
default the number of the line from 0. A training row is one step, with all that the model was shown before it:

    {"conversations": [{"from": "human", "value": "<image>Task: ..."}, {"from": "gpt", "value": "Action: click(3)"}],
     "system": "You are a web agent ...", "tools": "", "images": ["/shots/7.png"], "loss_weight": 1.0,
     "metadata": "{\\"iteration\\": 7, \\"trajectory\\": 12, \\"step\\": 3, \\"task\\": \\"shop_41\\"}"}
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from trainkit.datatypes import Reject
from trainkit.errors import InputError, Rejected, UsageProblem
from trainkit.files import sync_folder, temporary_beside
from trainkit.lines import find_source, read_chunks
from trainkit.sources.pickles import load_archive
from trainkit.sources.steprows import to_example
from trainkit.sources.steps import eligible, trajectory_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trainkit.sources.steps import Trajectory

__all__ = ["IterationFile", "eligible", "find_iterations", "read_trajectories", "to_example", "write_jsonl"]

FOLDER = "train_trajectories"
NAMES = {
    "pt": re.compile(r"train_trajectories\.pt\.iteration([0-9]+)"),
    "jsonl": re.compile(r"train_trajectories\.iteration([0-9]+)\.jsonl(?:\.gz|\.zst)?"),
}


@dataclass(frozen=True, slots=True)
class IterationFile:
    """The rollouts of one iteration: `IterationFile(7, Path(".../train_trajectories.pt.iteration7"), "pt")`."""

    number: int
    path: Path
    kind: Literal["pt", "jsonl"]


class Shown(msgspec.Struct):
    """The response of a step in JSONL; the prompt stays as it was read."""

    raw_prompt: msgspec.Raw = msgspec.Raw(b"null")
    raw_response: Any = None


class LineStep(msgspec.Struct):
    """One step in JSONL, in the order in which it is written."""

    action: Any = None
    observation: Any = None
    response: Shown | None = None
    reward: Any = None
    same_as_next_screenshot: bool | None = None
    task: Any = None


class Line(msgspec.Struct):
    """One line of JSONL."""

    steps: list[LineStep]
    trajectory: int | None = None


decode_line = msgspec.json.Decoder(Line).decode
decode_text = msgspec.json.Decoder(str).decode
encode_json = msgspec.json.Encoder().encode


def find_iterations(save_path: Path, last_n: int) -> list[IterationFile]:
    """Return the newest `last_n` iterations below `save_path` by their numbers, the oldest of them first.

    Other files in the folder, such as those of single ranks, are not looked at.

    Raises:
        InputError: no folder, no iteration in it, or two files for one iteration.
        UsageProblem: `last_n` is below 1.
    """
    if last_n < 1:
        raise UsageProblem(f"--last-n-iterations {last_n}: at least one iteration is needed")
    folder = save_path / FOLDER
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", f"name the folder that holds {FOLDER}/")
    found: dict[int, IterationFile] = {}
    for path in sorted(folder.iterdir()):
        file = iteration_of(path)
        if file is None:
            continue
        if file.number in found:
            other = found[file.number].path.name
            raise InputError(f"{folder}: iteration {file.number} is there twice: {other} and {path.name}", "remove one")
        found[file.number] = file
    if not found:
        raise InputError(
            f"{folder}: holds no iteration", "a file is called train_trajectories.pt.iteration0 or .iteration0.jsonl"
        )
    return [found[number] for number in sorted(found)[-last_n:]]


def iteration_of(path: Path) -> IterationFile | None:
    """Return what a file's name says, None when it is not one of an iteration."""
    if match := NAMES["pt"].fullmatch(path.name):
        return IterationFile(int(match[1]), path, "pt")
    match = NAMES["jsonl"].fullmatch(path.name)
    return IterationFile(int(match[1]), path, "jsonl") if match else None


def read_trajectories(file: IterationFile) -> Iterator[Trajectory | Reject]:
    """Yield each trajectory of an iteration in order, a `Reject` for one that cannot be used.

    A reject's `line` counts from 1, and its `row` is empty: a trajectory is large, and the file is still there.

    Raises:
        InputError: the file cannot be read to its end.
    """
    for line, index, steps in read_lines(file) if file.kind == "jsonl" else read_archive(file):
        try:
            yield trajectory_of(steps, file.number, index)
        except Rejected as rejected:
            yield Reject(str(file.path), line, rejected.reason, rejected.detail, b"")


def read_archive(file: IterationFile) -> Iterator[tuple[int, int, object]]:
    data = load_archive(file.path)
    found = data.get("trajectories") if isinstance(data, dict) else None
    if not isinstance(found, list):
        raise InputError(
            f"{file.path}: has no list of trajectories", 'it should hold {"trajectories": [[step, ...], ...]}'
        )
    for index, steps in enumerate(found):
        found[index] = None  # so that its memory is free as soon as the caller is done with it
        yield index + 1, index, steps


def read_lines(file: IterationFile) -> Iterator[tuple[int, int, object]]:
    last = -1
    for chunk in read_chunks(find_source(file.path)):
        for number, text in chunk.records:
            if not text.strip():
                continue
            line = load_line(text, f"{file.path}:{number}")
            index = number - 1 if line.trajectory is None else line.trajectory
            if index <= last:
                raise InputError(f"{file.path}:{number}: trajectory {index} comes after {last}", "number them rising")
            last = index
            yield number, index, [raw_step(step) for step in line.steps]


def load_line(text: bytes, where: str) -> Line:
    try:
        if not text.isascii():
            text.decode()  # msgspec does not look inside the prompts that it passes on
        return decode_line(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 at byte {error.start}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{where}: is not a trajectory: {error}", 'a line is {"steps": [step, ...]}') from None


def raw_step(step: LineStep) -> dict[str, Any]:
    """Return a step of JSONL in the form in which the .pt has it."""
    response = None
    if step.response is not None:
        prompt = bytes(step.response.raw_prompt)
        text = prompt.decode() if prompt.startswith(b"[") else decode_text(prompt) if prompt.startswith(b'"') else None
        response = {"raw_prompt": text, "raw_response": step.response.raw_response}
    return {name: getattr(step, name) for name in LineStep.__struct_fields__} | {"response": response}


def write_jsonl(source: IterationFile, target: Path) -> Counter[str]:
    """Write the trajectories of an iteration as JSONL, all or nothing.

    Returns:
        How many trajectories were written, under "written", and how many were left out by reason.
    """
    counts: Counter[str] = Counter()
    temporary = temporary_beside(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            for found in read_trajectories(source):
                if isinstance(found, Reject):
                    counts[found.reason] += 1
                    continue
                file.write(line_of(found))
                counts["written"] += 1
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
    return counts


def line_of(trajectory: Trajectory) -> bytes:
    """Return a trajectory as a line of JSON."""
    steps = [
        LineStep(
            action=step.action,
            observation={"image_path": step.screenshot},
            response=Shown(msgspec.Raw(step.prompt.encode()), step.response),
            reward={"reward": step.reward},
            same_as_next_screenshot=step.same_as_next,
            task=trajectory.task,
        )
        for step in trajectory.steps
    ]
    return encode_json({"trajectory": trajectory.index, "steps": steps}) + b"\n"
