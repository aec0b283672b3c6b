"""Compare the reader of trajectory files with torch.load and a list; print a Markdown table.

    python benchmarks/trajectories.py --trajectories 2000 --steps 12 --rounds 5

Each run is a process of its own: `seconds` is the reading alone, imports left out, and `peak MB` what the process grew
by while reading, over what it held before (torch alone is some hundred MB). Every way finds the same successful steps,
which is checked. The input is what torch.save makes of a web agent's rollouts, with prompts that grow from step to
step; it is made here, from a seed. Linux only.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

from convert import describe_machine

WAYS = ("torch.load + a list", "trainkit, .pt", "trainkit, .jsonl")
NAMES = ("Action", "Observation", "Task", "Reward", "Response")


class Thing:
    """An object with the attributes that it is given."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def agent_module() -> types.ModuleType:
    """Return the agent's classes under the name by which its files know them."""
    module = types.ModuleType("webgym.data.components")
    for name in NAMES:
        setattr(module, name, type(name, (Thing,), {"__module__": module.__name__}))
    for name in ("webgym", "webgym.data"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[module.__name__] = module
    return module


def make_trajectory(web: Any, number: int, num_steps: int, source: random.Random) -> list[dict[str, Any]]:
    """Return a rollout: each prompt holds all turns before it, and a page of about 3 kB."""
    task = web.Task(task_id=number % 500, website="https://shop.example", task_name=f"Task {number}")
    messages = [{"role": "system", "content": "You are a web agent. " * 20}]
    steps = []
    for position in range(num_steps):
        page = " ".join(f"[{source.getrandbits(20)}] button" for _ in range(170))
        picture = {"type": "image_url", "image_url": {"url": f"file:///shots/{number}/{position}.png"}}
        messages.append({"role": "user", "content": [picture, {"type": "text", "text": page}]})
        answer = f"Thought: look at {source.getrandbits(20)}. Action: click({position})"
        step = {
            "action": web.Action(action={"key": "click"}, action_string=f"click({position})"),
            "observation": web.Observation(task=task, image_path=f"/shots/{number}/{position}.png", ac_tree=page),
            "response": web.Response(raw_prompt=json.dumps(messages), raw_response=answer, answering_tokens={}),
            "reward": web.Reward(reward=number % 2, evaluation=[]) if position == num_steps - 1 else None,
            "same_as_next_screenshot": position % 5 == 4,
        }
        steps.append(step)
        messages.append({"role": "assistant", "content": answer})
    return steps


def generate(folder: Path, num_trajectories: int, num_steps: int) -> None:
    """Write the same rollouts as a .pt and as JSONL."""
    import torch

    from trainkit.sources.trajectories import IterationFile, write_jsonl

    web, source = agent_module(), random.Random(7)
    made = [make_trajectory(web, number, num_steps, source) for number in range(num_trajectories)]
    torch.save({"trajectories": made, "metadata": {}}, folder / "t.pt")
    write_jsonl(IterationFile(0, folder / "t.pt", "pt"), folder / "t.jsonl")


def peak_mb() -> float:
    """Return the most memory that this process has had so far; getrusage would count the parent's before the exec."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def run(way: str, folder: Path) -> None:
    """Read the file in one way; print the successful steps, the seconds and the growth in MB."""
    if way == WAYS[0]:
        import torch

        agent_module()

        def read() -> int:
            data = torch.load(folder / "t.pt", weights_only=False)["trajectories"]
            kept = [steps for steps in data if len(steps) >= 2 and steps[-1]["reward"].reward > 0]
            return sum(not step["same_as_next_screenshot"] for steps in kept for step in steps)
    else:
        from trainkit.datatypes import Reject
        from trainkit.sources.trajectories import IterationFile, eligible, read_trajectories

        kind = "pt" if way.endswith(".pt") else "jsonl"

        def read() -> int:
            found = read_trajectories(IterationFile(0, folder / f"t.{kind}", kind))  # type: ignore[arg-type]
            return sum(len(eligible(item)) for item in found if not isinstance(item, Reject))

    before = peak_mb()
    started = time.perf_counter()
    number = read()
    seconds = time.perf_counter() - started
    print(number, seconds, peak_mb() - before)


def measure(way: str, folder: Path) -> tuple[int, float, float]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, "--run", way, "--folder", str(folder)]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(words[0]), float(words[1]), float(words[2])


def main() -> None:
    """Generate, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.run:
        run(words.run, words.folder)
        return
    runs: dict[str, list[tuple[int, float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder, words.trajectories, words.steps)
        size = (folder / "t.pt").stat().st_size / 1e6
        for _ in range(words.rounds):
            for way, found in runs.items():
                found.append(measure(way, folder))
    eligible_steps = {number for found in runs.values() for number, _, _ in found}
    assert len(eligible_steps) == 1, eligible_steps
    num_steps = words.trajectories * words.steps
    print(f"{num_steps} steps, {size:.0f} MB, {words.rounds} rounds; {describe_machine()}\n")
    print("| what | seconds: median (min to max) | steps/s | peak MB | torch.load / this |")
    print("|---|---|---|---|---|")
    for way, found in runs.items():
        print(row_of(way, found, runs[WAYS[0]], num_steps))


def row_of(
    way: str, found: list[tuple[int, float, float]], base: list[tuple[int, float, float]], num_steps: int
) -> str:
    """Return one row of the table; the ratio is the median of the rounds' ratios."""
    seconds = [run[1] for run in found]
    ratio = statistics.median(slow[1] / fast[1] for slow, fast in zip(base, found, strict=True))
    wall = statistics.median(seconds)
    shown = f"{wall:.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
    return f"| {way} | {shown} | {num_steps / wall:.0f} | {max(run[2] for run in found):.0f} | {ratio:.1f} |"


if __name__ == "__main__":
    main()
