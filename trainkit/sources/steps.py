"""The steps of a web agent's trajectories, and which of them can be trained on.

A trajectory is a list of steps. In the agent's own files a step is a dict of objects, and in JSONL each object is a
JSON object with the attributes as keys, so one description serves both:

    {"action":      anything but null; of an object its action_string, or its plain attributes
     "observation": {"image_path": "/shots/7.png" or null, "task": {"task_id": "shop_41", "website": "https://..."}}
     "response":    {"raw_prompt": "[{...}, ...]", the chat messages as JSON, in JSONL also as a list,
                     "raw_response": "Action: click(3)"}
     "reward":      {"reward": 1.0} or null; the last step's says whether the trajectory succeeded
     "same_as_next_screenshot": true, false or null (an older file: false)}

The task is `observation.task` of the first step, or else its `task`: the task_id, or the task_name, or the task itself
where it is text. Other keys and attributes are not read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from trainkit.datatypes import StepPlace
from trainkit.errors import Rejected

if TYPE_CHECKING:
    from collections import Counter

LARGEST = 2**63  # of a number that is read; Python refuses to write much larger ones


class Message(msgspec.Struct, gc=False):
    """One chat message; `content` is the JSON text of a string or of a list of parts."""

    role: str
    content: msgspec.Raw


@dataclass(frozen=True, slots=True)
class TrajectoryStep:
    """One step: what the model was shown, what it answered, and what came of it.

    `prompt` is the JSON text of the chat messages on one line; `screenshot` the path of the image after which it acted.
    """

    prompt: str
    response: str
    action: str = ""
    reward: float | None = None
    same_as_next: bool = False
    screenshot: str | None = None


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One rollout: `Trajectory(iteration=7, index=12, task="shop_41", steps=(...))`; `index` counts in its file."""

    iteration: int
    index: int
    task: str
    steps: tuple[TrajectoryStep, ...]

    @property
    def success(self) -> bool:
        """Whether the last step was rewarded."""
        return (self.steps[-1].reward or 0) > 0


decode_messages = msgspec.json.Decoder(list[Message]).decode


def trajectory_of(raw: object, iteration: int, index: int) -> Trajectory:
    """Return the trajectory that a list of raw steps is.

    Raises:
        Rejected: "empty", "fewer than 2 steps"; for any step "no action", "no observation", "no response", "no prompt",
            "prompt not messages", "wrong type", "not UTF-8"; "dummy" when the task's website is no address.
    """
    if not isinstance(raw, list):
        raise Rejected("wrong type", f"a trajectory is a list of steps, not {type(raw).__name__}")
    if not raw:
        raise Rejected("empty", "there are no steps")
    if len(raw) < 2:
        raise Rejected("fewer than 2 steps", "there is 1 step")
    for number, step in enumerate(raw, 1):
        check_parts(step, number)
    task = task_of(raw[0])
    check_website(task)
    name = task_name(task) or f"iteration {iteration}, trajectory {index}"
    return Trajectory(iteration, index, name, tuple(step_of(step, number) for number, step in enumerate(raw, 1)))


def check_parts(step: object, number: int) -> None:
    """Check that a step has what it needs; raises `Rejected`."""
    if not isinstance(step, dict):
        raise Rejected("wrong type", f"step {number} is not an object")
    for name in ("action", "observation", "response"):
        if step.get(name) is None:
            raise Rejected(f"no {name}", f"step {number} has no {name}")
    for name in ("observation", "response"):
        if not isinstance(step[name], dict):
            raise Rejected("wrong type", f"step {number}: the {name} is not an object")


def step_of(step: dict[str, Any], number: int) -> TrajectoryStep:
    """Return one step; raises `Rejected`."""
    where = f"step {number}"
    response = step["response"].get("raw_response")
    if response is None:
        raise Rejected("no response", f"{where} has no raw_response")
    screenshot = step["observation"].get("image_path")
    return TrajectoryStep(
        prompt=prompt_of(step["response"].get("raw_prompt"), where),
        response=checked_text(response, f"{where}: the response"),
        action=action_text(step["action"], where),
        reward=reward_of(step.get("reward"), where),
        same_as_next=step.get("same_as_next_screenshot") is True,
        screenshot=None if screenshot is None else checked_text(screenshot, f"{where}: the image_path"),
    )


def checked_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise Rejected("wrong type", f"{where} is not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Rejected("not UTF-8", f"{where}: {error.reason} at character {error.start}") from None
    return value


def prompt_of(value: object, where: str) -> str:
    """Return the JSON text of the chat messages, on one line; raises `Rejected`."""
    if not value:
        raise Rejected("no prompt", f"{where} has no raw_prompt")
    text = checked_text(value, f"{where}: the prompt").strip(" \n\r\t")
    try:
        if not decode_messages(text):
            raise Rejected("no prompt", f"{where}: the prompt has no messages")
        if "\n" in text or "\r" in text:
            text = msgspec.json.format(text, indent=-1)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Rejected("prompt not messages", f"{where}: {error}") from None
    return text


def reward_of(value: object, where: str) -> float | None:
    """Return the number of a reward, None where there is none; raises `Rejected`."""
    number = value.get("reward") if isinstance(value, dict) else value
    if number is None:
        return None
    if not isinstance(number, int | float) or not -LARGEST < number < LARGEST:
        raise Rejected("wrong type", f"{where}: the reward is not a number")
    return float(number)


def action_text(action: object, where: str) -> str:
    """Return an action as text for people to read: its own words, or its plain attributes as JSON."""
    words = action.get("action_string") if isinstance(action, dict) else action
    if isinstance(words, str):
        return checked_text(words, f"{where}: the action")
    attributes = action.items() if isinstance(action, dict) else ()
    return json.dumps({key: value for key, value in attributes if isinstance(key, str) and is_plain(value)})


def is_plain(value: object) -> bool:
    return isinstance(value, str | float | bool | None) or (isinstance(value, int) and -LARGEST < value < LARGEST)


def task_of(step: dict[str, Any]) -> object:
    task = step["observation"].get("task")
    return step.get("task") if task is None else task


def task_name(task: object) -> str:
    """Return the name by which a task is counted, empty when it has none."""
    if not isinstance(task, dict):
        return checked_text(task, "the task") if isinstance(task, str) else ""
    for key in ("task_id", "task_name"):
        value = task.get(key)
        if isinstance(value, str) and value:
            return checked_text(value, f"the {key}")
        if isinstance(value, int) and -LARGEST < value < LARGEST:
            return str(value)
    return ""


def check_website(task: object) -> None:
    """Reject a dummy: a rollout that stands in for a task whose address is not valid."""
    website = task.get("website") if isinstance(task, dict) else None
    if isinstance(website, str) and not is_address(website):
        raise Rejected("dummy", f"the task's website {website[:80]!r} is not an address")


def is_address(website: str) -> bool:
    """Whether a browser could go there: `https://shop.example`, `shop.example/page`, `localhost:8000`."""
    try:
        parts = urlsplit(website if "://" in website else f"https://{website}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or any(letter.isspace() for letter in website):
        return parts.scheme == "file"
    return bool(host) and (host == "localhost" or port is not None or "." in host.strip("."))


def eligible(trajectory: Trajectory, counts: Counter[str] | None = None) -> list[StepPlace]:
    """Return the steps that can be trained on: those of a success whose screenshot is not the next one's as well.

    `counts` is added to: "steps", "eligible", and what was left out by reason, in steps.
    """
    number = len(trajectory.steps)
    places = [
        StepPlace(trajectory.iteration, trajectory.index, position, trajectory.task)
        for position, step in enumerate(trajectory.steps)
        if trajectory.success and not step.same_as_next
    ]
    if counts is not None:
        reason = "same screenshot as the next step" if trajectory.success else "not successful"
        counts.update({"steps": number, "eligible": len(places), reason: number - len(places)})
    return places
