from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.datatypes import StepPlace
from trainkit.errors import Rejected
from trainkit.sources.steps import Trajectory, TrajectoryStep, eligible, is_address, trajectory_of

PROMPT = '[{"role": "user", "content": "Task: buy tea"}]'


def step(**changes: Any) -> dict[str, Any]:
    """A step that can be used, with some of its parts replaced; `response__raw_prompt` is within the response."""
    made: dict[str, Any] = {
        "action": {"action_string": "click(3)", "action": {"key": "click"}},
        "observation": {"image_path": "/shots/1.png", "task": {"task_id": 41, "website": "https://shop.example/a?b"}},
        "response": {"raw_prompt": PROMPT, "raw_response": "Action: click(3)", "answering_tokens": {}},
        "reward": {"reward": 1, "evaluation": ["good"]},
        "same_as_next_screenshot": False,
    }
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        if inner:
            made[outer] = made[outer] | {inner: value}
        else:
            made[outer] = value
    return made


def test_a_trajectory_as_the_agent_writes_it() -> None:
    raw = [step(reward=None, same_as_next_screenshot=True), step()]
    expected = TrajectoryStep(PROMPT, "Action: click(3)", "click(3)", 1.0, False, "/shots/1.png")
    first = TrajectoryStep(PROMPT, "Action: click(3)", "click(3)", None, True, "/shots/1.png")
    found = trajectory_of(raw, 7, 12)
    assert found == Trajectory(7, 12, "41", (first, expected))
    assert found.success


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"action": "type(1, 茶)"}, "action", "type(1, 茶)"),
        ({"action": {"x": 3, "y": 1.5, "ok": True, "to": None, "deep": [1], 5: 6, "far": 2**64}}, "action",
         '{"x": 3, "y": 1.5, "ok": true, "to": null}'),
        ({"action": [1, 2]}, "action", "{}"),
        ({"reward": 0.5}, "reward", 0.5),
        ({"reward": {"reward": True}}, "reward", 1.0),
        ({"reward": {}}, "reward", None),
        ({"observation": {}}, "screenshot", None),
        ({"same_as_next_screenshot": None}, "same_as_next", False),
        ({"same_as_next_screenshot": True}, "same_as_next", True),
        ({"response__raw_response": ""}, "response", ""),
        ({"response__raw_prompt": "\n" + PROMPT + " "}, "prompt", PROMPT),
        ({"response__raw_prompt": json.dumps(json.loads(PROMPT), indent=2)}, "prompt",
         '[{"role":"user","content":"Task: buy tea"}]'),
    ],
)  # fmt: skip
def test_what_a_step_may_hold(changes: dict[str, Any], name: str, value: object) -> None:
    found = trajectory_of([step(), step(**changes)], 0, 0).steps[1]
    assert getattr(found, name) == value


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ({"task_id": "shop_41", "task_name": "Buy"}, "shop_41"),
        ({"task_id": 0}, "0"),
        ({"task_id": None, "task_name": "Buy"}, "Buy"),
        ({"task_id": "", "task_name": ""}, "iteration 7, trajectory 12"),
        ({"task_id": 10**5000}, "iteration 7, trajectory 12"),
        ("Buy tea", "Buy tea"),
        (None, "beside it"),
        (5, "iteration 7, trajectory 12"),
    ],
)
def test_the_name_of_the_task(task: object, name: str) -> None:
    raw = [step(observation__task=task, task={"task_id": "beside it"}), step()]
    assert trajectory_of(raw, 7, 12).task == name


REJECTS: list[tuple[object, str, str]] = [
    (None, "wrong type", "a trajectory is a list of steps, not NoneType"),
    ({}, "wrong type", "a trajectory is a list of steps, not dict"),
    ([], "empty", "there are no steps"),
    ([step()], "fewer than 2 steps", "there is 1 step"),
    ([step(), None], "wrong type", "step 2 is not an object"),
    ([step(action=None), step()], "no action", "step 1 has no action"),
    ([step(), {}], "no action", "step 2 has no action"),
    ([step(), step(observation=None)], "no observation", "step 2 has no observation"),
    ([step(), step(response=None)], "no response", "step 2 has no response"),
    ([step(), step(response__raw_response=None)], "no response", "step 2 has no raw_response"),
    ([step(), step(response__raw_response=5)], "wrong type", "step 2: the response is not text"),
    ([step(), step(response__raw_response="a\ud800")], "not UTF-8",
     "step 2: the response: surrogates not allowed at character 1"),
    ([step(), step(response="text")], "wrong type", "step 2: the response is not an object"),
    ([step(), step(observation="text")], "wrong type", "step 2: the observation is not an object"),
    ([step(), step(observation__image_path=5)], "wrong type", "step 2: the image_path is not text"),
    ([step(), step(response__raw_prompt="")], "no prompt", "step 2 has no raw_prompt"),
    ([step(), step(response={"raw_response": "x"})], "no prompt", "step 2 has no raw_prompt"),
    ([step(), step(response__raw_prompt=[5])], "wrong type", "step 2: the prompt is not text"),
    ([step(), step(response__raw_prompt="[]")], "no prompt", "step 2: the prompt has no messages"),
    ([step(), step(response__raw_prompt="Task: buy")], "prompt not messages",
     "step 2: JSON is malformed: invalid character (byte 0)"),
    ([step(), step(response__raw_prompt="[" * 100_000)], "prompt not messages",
     "step 2: Expected `object`, got `array` - at `$[0]`"),
    ([step(), step(response__raw_prompt='[{"role": "user"}]')], "prompt not messages",
     "step 2: Object missing required field `content` - at `$[0]`"),
    ([step(), step(reward="good")], "wrong type", "step 2: the reward is not a number"),
    ([step(), step(reward={"reward": float("nan")})], "wrong type", "step 2: the reward is not a number"),
    ([step(), step(reward={"reward": 10**400})], "wrong type", "step 2: the reward is not a number"),
    ([step(observation__task={"website": "invalid_url"}), step()], "dummy",
     "the task's website 'invalid_url' is not an address"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "reason", "detail"), REJECTS, ids=lambda value: str(value)[-40:])
def test_a_trajectory_that_cannot_be_used(raw: object, reason: str, detail: str) -> None:
    with pytest.raises(Rejected) as caught:
        trajectory_of(raw, 0, 0)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


@pytest.mark.parametrize(
    ("website", "valid"),
    [
        ("https://shop.example", True), ("http://localhost:8000/x", True), ("shop.example/a b?q=1", False),
        ("shop.example/page?q=1", True), ("localhost", True), ("10.0.0.1:80", True), ("server:8080", True),
        ("file:///pages/a.html", True), ("https://[::1]/", False), ("https://[::1]:80/", True),
        ("", False), ("invalid", False), ("about:blank", False), ("https://", False), ("http://.", False),
        ("N/A", False), ("ftp://shop.example", False), ("https://[::1", False), ("https://a.b:port", False),
    ],
)  # fmt: skip
def test_addresses(website: str, valid: bool) -> None:
    assert is_address(website) is valid


def trajectory(reward: float | None, same: list[bool]) -> Trajectory:
    steps = [TrajectoryStep(PROMPT, "x", reward=1.0, same_as_next=value) for value in same]
    steps[-1] = TrajectoryStep(PROMPT, "x", reward=reward, same_as_next=same[-1])
    return Trajectory(7, 12, "shop_41", tuple(steps))


@pytest.mark.parametrize(
    ("reward", "same", "positions", "counted"),
    [
        (1.0, [False, True, False], [0, 2], {"steps": 3, "eligible": 2, "same screenshot as the next step": 1}),
        (0.5, [False, False], [0, 1], {"steps": 2, "eligible": 2, "same screenshot as the next step": 0}),
        (0.0, [False, False], [], {"steps": 2, "eligible": 0, "not successful": 2}),
        (-1.0, [False, True], [], {"steps": 2, "eligible": 0, "not successful": 2}),
        (None, [False, True], [], {"steps": 2, "eligible": 0, "not successful": 2}),
    ],
)
def test_steps_that_can_be_trained_on(
    reward: float | None, same: list[bool], positions: list[int], counted: dict[str, int]
) -> None:
    counts: Counter[str] = Counter()
    places = eligible(trajectory(reward, same), counts)
    assert places == [StepPlace(7, 12, position, "shop_41") for position in positions]
    assert dict(counts) == counted
    assert eligible(trajectory(reward, same)) == places


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(PROMPT)
names = st.sampled_from(
    ["action", "observation", "response", "reward", "raw_prompt", "raw_response", "image_path", "task", "task_id",
     "website", "same_as_next_screenshot", "action_string"]
)  # fmt: skip
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(), inner, max_size=6),
    max_leaves=20,
)  # fmt: skip


raw_steps = st.dictionaries(names, trees) | st.builds(step, observation=trees, response=trees, reward=trees)


def read_or_reject(raw: list[Any]) -> Any:
    try:
        return trajectory_of(raw, 0, 0)
    except Rejected as rejected:
        return rejected


@settings(deadline=None, max_examples=50)
@given(st.lists(raw_steps, max_size=3))
def test_anything_is_taken_or_rejected(raw: list[Any]) -> None:
    found = read_or_reject(raw)
    if isinstance(found, Rejected):
        assert found.reason
        assert found.detail
    else:
        assert len(found.steps) == len(raw)
