from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainkit.dataset.entry import Entry
from trainkit.dataset.media import MediaRules
from trainkit.dataset.rows import align
from trainkit.datatypes import Reject, StepPlace, Turn
from trainkit.errors import InputError, UsageProblem
from trainkit.sources.steps import Trajectory, TrajectoryStep
from trainkit.sources.trajectories import (
    IterationFile,
    eligible,
    find_iterations,
    line_of,
    read_trajectories,
    to_example,
    write_jsonl,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    Save = Callable[..., Path]

PROMPT = '[{"role": "user", "content": "Task: buy tea"}]'
PT, JSONL = "train_trajectories.pt.iteration", "train_trajectories.iteration"


def make_step(web: ModuleType, reward: float | None, **changes: Any) -> dict[str, Any]:
    """One step as the agent writes it."""
    task = web.Task(task_id=41, task_name="Buy tea", website="https://shop.example")
    step = {
        "action": web.Action(action={"key": "click"}, action_string="click(3)"),
        "observation": web.Observation(task=task, image_path="/shots/1.png", ac_tree="button"),
        "response": web.Response(raw_response="Action: click(3)", raw_prompt=PROMPT),
        "reward": None if reward is None else web.Reward(reward=reward, evaluation=[]),
        "same_as_next_screenshot": False,
    }
    return step | changes


def read(path: Path, number: int = 7) -> list[Trajectory | Reject]:
    return list(read_trajectories(IterationFile(number, path, "pt" if path.suffix != ".jsonl" else "jsonl")))


@pytest.fixture
def rollouts(web: ModuleType, save: Save, tmp_path: Path) -> Path:
    """An iteration with two trajectories that can be used, at 1 and 3, and four that cannot."""
    good = [make_step(web, None, same_as_next_screenshot=True), make_step(web, None), make_step(web, 1)]
    failed = [make_step(web, None), make_step(web, 0)]
    broken = [make_step(web, None), make_step(web, 1, action=None)]
    trajectories = [[], good, [make_step(web, 1)], failed, broken, None]
    return save(tmp_path / f"{PT}7", {"trajectories": trajectories, "metadata": {"iteration": 7}})


def test_an_iteration_is_read_in_order_with_its_rejects(rollouts: Path) -> None:
    usual = TrajectoryStep(PROMPT, "Action: click(3)", "click(3)", None, False, "/shots/1.png")
    same = TrajectoryStep(PROMPT, "Action: click(3)", "click(3)", None, True, "/shots/1.png")
    won = TrajectoryStep(PROMPT, "Action: click(3)", "click(3)", 1.0, False, "/shots/1.png")
    lost = TrajectoryStep(PROMPT, "Action: click(3)", "click(3)", 0.0, False, "/shots/1.png")
    found = read(rollouts)
    name = str(rollouts)
    assert found == [
        Reject(name, 1, "empty", "there are no steps", b""),
        Trajectory(7, 1, "41", (same, usual, won)),
        Reject(name, 3, "fewer than 2 steps", "there is 1 step", b""),
        Trajectory(7, 3, "41", (usual, lost)),
        Reject(name, 5, "no action", "step 2 has no action", b""),
        Reject(name, 6, "wrong type", "a trajectory is a list of steps, not NoneType", b""),
    ]
    counts: Counter[str] = Counter()
    places = [place for item in found if isinstance(item, Trajectory) for place in eligible(item, counts)]
    assert places == [StepPlace(7, 1, 1, "41"), StepPlace(7, 1, 2, "41")]
    assert counts == {"steps": 5, "eligible": 2, "same screenshot as the next step": 1, "not successful": 2}


def test_the_same_as_jsonl(rollouts: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / f"{JSONL}7.jsonl"
    counts = write_jsonl(IterationFile(7, rollouts, "pt"), target)
    assert counts == {"written": 2, "empty": 1, "fewer than 2 steps": 1, "no action": 1, "wrong type": 1}
    assert read(target) == [item for item in read(rollouts) if isinstance(item, Trajectory)]
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    first = json.loads(target.read_bytes().splitlines()[0])
    assert first["trajectory"] == 1
    assert first["steps"][2] == {
        "action": "click(3)",
        "observation": {"image_path": "/shots/1.png"},
        "response": {"raw_prompt": json.loads(PROMPT), "raw_response": "Action: click(3)"},
        "reward": {"reward": 1.0},
        "same_as_next_screenshot": False,
        "task": "41",
    }
    content = target.read_bytes()
    write_jsonl(IterationFile(7, target, "jsonl"), target)
    assert target.read_bytes() == content


def test_a_file_that_breaks_off_leaves_no_half_behind(tmp_path: Path, rollouts: Path) -> None:
    source, target = tmp_path / f"{JSONL}7.jsonl", tmp_path / "out.jsonl"
    write_jsonl(IterationFile(7, rollouts, "pt"), source)
    source.write_bytes(source.read_bytes()[:-30])
    target.write_bytes(b"old")
    with pytest.raises(InputError) as caught:
        write_jsonl(IterationFile(7, source, "jsonl"), target)
    assert caught.value.message == f"{source}:2: is not a trajectory: Input data was truncated"
    assert target.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == sorted([rollouts, source, target])


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_compressed_files_are_found_and_read(rollouts: Path, tmp_path: Path, kind: str) -> None:
    plain = tmp_path / "plain.jsonl"
    write_jsonl(IterationFile(7, rollouts, "pt"), plain)
    pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.ZstdCompressor().compress}[kind]
    path = tmp_path / "run" / "train_trajectories" / f"{JSONL}7.{kind}"
    path.parent.mkdir(parents=True)
    path.write_bytes(pack(plain.read_bytes()))
    (file,) = find_iterations(tmp_path / "run", 4)
    assert file == IterationFile(7, path, "jsonl")
    assert list(read_trajectories(file)) == read(plain)


texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\\u2028\x00\x7f\n😀任'), max_size=20)
trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
messages = st.lists(st.fixed_dictionaries({"role": texts, "content": trees}), min_size=1, max_size=3)
prompts = st.builds(lambda value, ascii_only: json.dumps(value, ensure_ascii=ascii_only), messages, st.booleans())
steps = st.builds(
    TrajectoryStep, prompts, texts, texts, st.none() | st.floats(-1e18, 1e18), st.booleans(), st.none() | texts
)
tasks = texts.filter(bool)
indices = st.lists(st.integers(0, 2**60), unique=True, max_size=3).map(sorted)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(indices, st.data())
def test_jsonl_reads_back_equal(tmp_path: Path, numbers: list[int], data: st.DataObject) -> None:
    made = [
        Trajectory(7, number, data.draw(tasks), tuple(data.draw(st.lists(steps, min_size=2, max_size=3))))
        for number in numbers
    ]
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_bytes(b"".join(map(line_of, made)) or b"\n")
    assert write_jsonl(IterationFile(7, first, "jsonl"), second)["written"] == len(made)
    assert second.read_bytes().strip() == first.read_bytes().strip()
    assert read(first) == made


def test_what_people_write_by_hand(tmp_path: Path) -> None:
    step = {"action": "a", "observation": {}, "response": {"raw_prompt": json.loads(PROMPT), "raw_response": "x"}}
    as_string = step | {"response": {"raw_prompt": PROMPT, "raw_response": "x"}}
    last = step | {"reward": 1}
    rows = [{"steps": [step, last]}, {"steps": [as_string, last], "note": 5}, {"trajectory": 9, "steps": []}]
    path = tmp_path / "t.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    found = read(path)
    one, two = (item for item in found if isinstance(item, Trajectory))
    assert (one.index, two.index, found[2]) == (0, 2, Reject(str(path), 5, "empty", "there are no steps", b""))
    assert one.steps == two.steps
    assert one.success
    assert one.task == "iteration 7, trajectory 0"


GOOD = '{"steps": []}'
NEXT = 'a line is {"steps": [step, ...]}'


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"{", ":1: is not a trajectory: Input data was truncated", NEXT),
        (f"{GOOD}\n[]".encode(), ":2: is not a trajectory: Expected `object`, got `array`", NEXT),
        (b'{"steps": 5}', ":1: is not a trajectory: Expected `array`, got `int` - at `$.steps`", NEXT),
        (b"{}", ":1: is not a trajectory: Object missing required field `steps`", NEXT),
        (b'{"steps": [], "x": "\xff"}', ":1: not UTF-8 at byte 20", ""),
        (b'{"trajectory": 1, "steps": []}\n{"steps": []}', ":2: trajectory 1 comes after 1", "number them rising"),
        (b'{"trajectory": -1, "steps": []}', ":1: trajectory -1 comes after -1", "number them rising"),
        (b"", ": is empty", "there is nothing to convert in it"),
        (gzip.compress(GOOD.encode() * 50)[:-5], ": the archive is damaged: Compressed file ended before the "
         "end-of-stream marker was reached", "fetch or pack it again"),
    ],
)  # fmt: skip
def test_a_jsonl_file_that_cannot_be_read(tmp_path: Path, content: bytes, message: str, hint: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(path)
    assert (caught.value.message, caught.value.hint) == (f"{path}{message}", hint)


@pytest.mark.parametrize("prompt", ["5", "{}", "null", '""'])
def test_a_prompt_of_another_type_is_rejected(tmp_path: Path, prompt: str) -> None:
    response = {"raw_prompt": json.loads(prompt), "raw_response": "x"}
    step = {"action": "a", "observation": {}, "response": response}
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"steps": [step, step]}))
    assert read(path) == [Reject(str(path), 1, "no prompt", "step 1 has no raw_prompt", b"")]


def test_a_step_without_a_response(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"steps": [{"action": "a", "observation": {}}] * 2}))
    assert read(path) == [Reject(str(path), 1, "no response", "step 1 has no response", b"")]


@pytest.mark.parametrize("value", [[], {}, {"trajectories": {}}, None])
def test_an_archive_of_something_else(save: Save, tmp_path: Path, value: object) -> None:
    path = save(tmp_path / "t.pt", value)
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.message == f"{path}: has no list of trajectories"


def test_the_newest_iterations_by_number(tmp_path: Path) -> None:
    folder = tmp_path / "train_trajectories"
    folder.mkdir()
    names = [f"{PT}{number}" for number in (2, 9, 10, 11)] + [f"{JSONL}3.jsonl", f"{JSONL}100.jsonl.zst"]
    others = [f"{PT}12_rank_0", f"{PT}12.tmp", f"{PT}", f"{PT}-1", "train_trajectories.pt", f"{JSONL}12.json",
              f"{JSONL}12.jsonl.bz2", f"x{PT}12", f"{PT}\u0661"]  # fmt: skip
    for name in names + others:
        (folder / name).touch()
    assert [(file.number, file.path.name, file.kind) for file in find_iterations(tmp_path, 4)] == [
        (9, f"{PT}9", "pt"),
        (10, f"{PT}10", "pt"),
        (11, f"{PT}11", "pt"),
        (100, f"{JSONL}100.jsonl.zst", "jsonl"),
    ]
    assert [file.number for file in find_iterations(tmp_path, 50)] == [2, 3, 9, 10, 11, 100]


@pytest.mark.parametrize("other", [f"{JSONL}7.jsonl", f"{JSONL}7.jsonl.gz", f"{PT}07"])
def test_two_files_for_one_iteration(tmp_path: Path, other: str) -> None:
    folder = tmp_path / "train_trajectories"
    folder.mkdir()
    names = sorted([f"{PT}7", other])
    for name in names:
        (folder / name).touch()
    with pytest.raises(InputError) as caught:
        find_iterations(tmp_path, 4)
    assert caught.value.message == f"{folder}: iteration 7 is there twice: {names[0]} and {names[1]}"


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train_trajectories: no such folder"):
        find_iterations(tmp_path, 4)
    (tmp_path / "train_trajectories").mkdir()
    with pytest.raises(InputError, match="train_trajectories: holds no iteration"):
        find_iterations(tmp_path, 4)
    with pytest.raises(UsageProblem, match="--last-n-iterations 0: at least one"):
        find_iterations(tmp_path, 0)


def test_the_trainer_takes_the_rows(web: ModuleType, save: Save, tmp_path: Path) -> None:
    image = tmp_path / "a shot.png"
    image.write_bytes(PNG)
    content = [{"type": "text", "text": "a <video> of "}, {"type": "image_url", "image_url": {"url": image.as_uri()}}]
    prompt = json.dumps([{"role": "system", "content": "Act."}, {"role": "user", "content": content}])
    step = make_step(web, 1, response=web.Response(raw_prompt=prompt, raw_response="click(<image>)"))
    path = save(tmp_path / f"{PT}0", {"trajectories": [[step, step]]})
    (found,) = read(path, 0)
    assert isinstance(found, Trajectory)
    entry = Entry("web", "file", "x.jsonl", formatting="sharegpt", system="system", tools="tools", images="images")
    aligned = align(to_example(found, 1), entry, tmp_path / "elsewhere", MediaRules(image=True))
    assert aligned.turns == (Turn("user", "a < video> of <image>"), Turn("assistant", "click(< image>)"))
    assert aligned.system == "Act."


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92ef"
    "0000000049454e44ae426082"
)
