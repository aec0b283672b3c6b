"""Synthetic rollouts of a web agent, as open JSONL."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

FAKES = Path(__file__).parent / "fakes"

SYSTEM = "You are a web agent. Think, then act."
WORDS = "the page shows a list of shops and a button that opens the basket of the user"


def rollout(name: str, *, num_steps: int = 3, reward: float | None = 1.0, images: Iterable[Path] = ()) -> list[Any]:
    """Return the steps of one rollout; each prompt holds the earlier ones, with a screenshot each when there are."""
    shots = [*images]
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    steps = []
    for number in range(num_steps):
        text = f"Task {name}, step {number}: {WORDS[: 40 + 4 * number]}."
        parts = [{"type": "text", "text": text}]
        if shots:
            parts.insert(0, {"type": "image_url", "image_url": {"url": f"file://{shots[number % len(shots)]}"}})
        messages.append({"role": "user", "content": parts})
        answer = f"The button of {name} is what I need, so I press it now. Action: click({number})"
        steps.append(
            {
                "action": f"click({number})",
                "observation": {"image_path": None, "task": {"task_id": name, "website": "https://shop.example"}},
                "response": {"raw_prompt": json.dumps(messages), "raw_response": answer},
                "reward": {"reward": reward if number == num_steps - 1 else 0.0},
                "same_as_next_screenshot": False,
            }
        )
        messages.append({"role": "assistant", "content": answer})
    return steps


def write_iteration(save_path: Path, number: int, rollouts: Iterable[list[Any]]) -> Path:
    """Write one iteration beside its place and rename it; return its file."""
    folder = save_path / "train_trajectories"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"trajectory": index, "steps": steps}) for index, steps in enumerate(rollouts)]
    target = folder / f"train_trajectories.iteration{number}.jsonl"
    temporary = folder / f"unfinished.{number}"
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return temporary.replace(target)


# as `python -m trainkit`, with what stands in for the programs of the trainer's environment
PROGRAM = """\
import sys
from pathlib import Path
from trainkit.cli import main
from trainkit.workflow import form, round

form.INSIDE = round.INSIDE = Path(sys.argv.pop(1))
sys.exit(main())
"""

UPDATE = """\
save_path: exp
model_path: ./model
algorithm_config:
  min_token_length: 0
  report_to: none
  num_train_epochs: 1
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 1
"""


def quick(patch: pytest.MonkeyPatch) -> None:
    """Leave out what each training asks other programs and packages, which these tests are not about."""
    form = json.loads((FAKES.parent / "data" / "chat_form.json").read_text())
    patch.setattr("trainkit.workflow.form.run_child_json", lambda *_: form)
    patch.setattr("trainkit.workflow.record.find_versions", lambda _: {})


def start_program(folder: Path, python: Path, *words: str) -> subprocess.Popen[str]:
    """Start a command line as a program of its own."""
    argv = [str(python), "-c", PROGRAM, str(FAKES / "inside"), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def add_iteration(save_path: Path, number: int, num_rollouts: int = 4) -> Path:
    """Write an iteration of successful rollouts of three steps."""
    return write_iteration(save_path, number, [rollout(f"i{number}t{index}") for index in range(num_rollouts)])


def records(save_path: Path) -> list[dict[str, Any]]:
    """Return the records of the rounds, the oldest first."""
    files = sorted((save_path / "updates").glob("*.json"), key=lambda file: file.stem)
    return [json.loads(file.read_text()) for file in files]


def data_files(save_path: Path) -> dict[str, bytes]:
    """Return what an update wrote for the trainer, without the names of rounds."""
    files = sorted((save_path / "llamafactory_data").iterdir())
    return {file.name: re.sub(rb"model_\d{8}_\d{6}(_\d+)?", b"ROUND", file.read_bytes()) for file in files}


def rows_of(save_path: Path, side: str = "train") -> list[dict[str, Any]]:
    """Return the rows of a side."""
    lines = (save_path / "llamafactory_data" / f"finetune_{side}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def places_of(save_path: Path, side: str = "train") -> list[tuple[int, int, int]]:
    """Return iteration, trajectory and step of the rows of a side."""
    found = (json.loads(row["metadata"]) for row in rows_of(save_path, side))
    return [(one["iteration"], one["trajectory"], one["step"]) for one in found]
