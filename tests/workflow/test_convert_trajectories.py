"""Properties of the conversion of rollouts; what it says on the command line is in tests/cli."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.dataset import stage as dataset_stage
from trainkit.dataset import write as dataset_write
from trainkit.dataset.registry import COLUMNS, TAGS, find_eval_name, load_registry
from trainkit.dataset.replay import StepTable, split_by_trajectory
from trainkit.datatypes import Problem, StepPlace
from trainkit.errors import InputError, ProblemsFound, TrainkitError, UsageProblem
from trainkit.sources.trajectories import IterationFile, read_trajectories
from trainkit.workflow.convert_trajectories import TrajectoriesResult, TrajectoryOptions, convert_trajectories
from trainkit.workflow.trajectories_jsonl import rewrite_as_jsonl

if TYPE_CHECKING:
    from collections.abc import Callable

FOREIGN = {"mine": {"file_name": "mine.json", "note": "任\u2028"}}
FULL = "No space left on device"


def step(prompt: str, answer: str, reward: float | None = None, image: Path | None = None, **more: Any) -> Any:
    """One step in plain values, as JSONL has it and a .pt may have it."""
    parts: list[Any] = [{"type": "text", "text": prompt}]
    if image is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": f"file://{image}"}})
    return {
        "action": "click(3)",
        "observation": {"image_path": None, "task": {"task_id": "shop_41"}},
        "response": {"raw_prompt": json.dumps([{"role": "user", "content": parts}]), "raw_response": answer},
        "reward": {"reward": reward},
        "same_as_next_screenshot": False,
    } | more


def rollout(name: str, num_steps: int = 2, image: Path | None = None, reward: float = 1) -> list[Any]:
    """A trajectory whose prompts say where they are: "a/0", "a/1"."""
    last = num_steps - 1
    return [step(f"{name}/{n}", f"Do {n}.", reward if n == last else None, image) for n in range(num_steps)]


def write_pt(save_path: Path, number: int, trajectories: list[Any]) -> Path:
    path = save_path / "train_trajectories" / f"train_trajectories.pt.iteration{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"trajectories": trajectories}, protocol=2))
    return path


def write_jsonl(save_path: Path, number: int, trajectories: list[Any], end: str = "") -> Path:
    path = save_path / "train_trajectories" / f"train_trajectories.iteration{number}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"steps": steps}) + "\n" for steps in trajectories) + end)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock, with its content, and every folder."""
    paths = (path for path in folder.rglob("*") if path.name != ".trainkit.lock")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in paths}


def rows(folder: Path, name: str = "train.jsonl") -> list[dict[str, Any]]:
    content = (folder / name).read_bytes()
    assert content.endswith(b"}\n")
    return [json.loads(line) for line in content.split(b"\n")[:-1]]


def prompts(folder: Path, name: str = "train.jsonl") -> list[str]:
    return [row["conversations"][-2]["value"] for row in rows(folder, name)]


def trajectories_of(folder: Path, name: str) -> set[tuple[int, int]]:
    found = (json.loads(row["metadata"]) for row in rows(folder, name))
    return {(metadata["iteration"], metadata["trajectory"]) for metadata in found}


@pytest.fixture
def shot(tmp_path: Path) -> Path:
    path = tmp_path / "7.png"
    path.write_bytes(b"png")
    return path


@pytest.fixture
def runs(tmp_path: Path, shot: Path) -> Path:
    """Two iterations, one of each form; each holds steps with and without images, and what cannot be trained on."""
    save_path = tmp_path / "runs"
    first = [[], rollout("a"), rollout("b", image=shot), rollout("c", reward=0), rollout("d", 1)]
    second = [rollout("e", 3, image=shot), rollout("f")]
    second[0][1]["same_as_next_screenshot"] = True
    write_pt(save_path, 2, first)
    write_jsonl(save_path, 11, second)
    return save_path


@pytest.fixture
def data(tmp_path: Path, runs: Path) -> Path:
    """A folder that holds somebody else's entry and an earlier conversion."""
    folder, earlier = tmp_path / "data", tmp_path / "earlier"
    folder.mkdir()
    (folder / "dataset_info.json").write_text(json.dumps(FOREIGN))
    write_jsonl(earlier, 0, [rollout("old")])
    convert_trajectories(earlier, folder, TrajectoryOptions())
    return folder


def test_what_is_written(tmp_path: Path, runs: Path, shot: Path) -> None:
    result = convert_trajectories(runs, tmp_path / "data", TrajectoryOptions())
    assert result.folder is not None
    # those with images first, then the others, each in the order of the input
    assert prompts(result.folder) == [
        "<image>b/0",
        "<image>b/1",
        "<image>e/0",
        "<image>e/2",
        "a/0",
        "a/1",
        "f/0",
        "f/1",
    ]
    assert rows(result.folder)[3] == {
        "conversations": [{"from": "human", "value": "<image>e/2"}, {"from": "gpt", "value": "Do 2."}],
        "system": "",
        "tools": "",
        "images": [str(shot)],
        "loss_weight": 1.0,
        "metadata": '{"iteration":11,"trajectory":0,"step":2,"task":"shop_41"}',
    }
    assert sorted(path.name for path in result.folder.iterdir()) == ["manifest.json", "train.jsonl"]
    size = (result.folder / "train.jsonl").stat().st_size
    assert json.loads((result.folder / "manifest.json").read_text()) == {
        "kind": "trajectories",
        "metadata_form": [],
        "split": None,
        "iterations": {
            "2": {
                "iteration": 2,
                "trajectories": 5,
                "unusable": {"empty": 1, "fewer than 2 steps": 1},
                "steps": 6,
                "usable": 4,
                "left_out": {"not successful": 2},
                "changes": {},
            },
            "11": {
                "iteration": 11,
                "trajectories": 2,
                "unusable": {},
                "steps": 5,
                "usable": 4,
                "left_out": {"same screenshot as the next step": 1},
                "changes": {},
            },
        },
        "files": {"train.jsonl": {"rows": 8, "bytes": size, "rows_with_images": 4}},
        "variants": {"trajectories": {"rows": 8, "side": "train"}},
    }
    assert load_registry(tmp_path / "data") == {
        "trajectories": {
            "file_name": f"{result.folder.name}/train.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "system": "system", "tools": "tools", "images": "images"},
            "tags": TAGS,
        }
    }


def test_without_images_there_is_no_column_for_them(tmp_path: Path) -> None:
    write_pt(tmp_path / "runs", 0, [rollout('"images":[],'), rollout("b")])
    result = convert_trajectories(tmp_path / "runs", tmp_path / "data", TrajectoryOptions(name="text-only"))
    assert result.folder is not None
    assert prompts(result.folder) == ['"images":[],/0', '"images":[],/1', "b/0", "b/1"]
    assert load_registry(tmp_path / "data")["text-only"]["columns"] == COLUMNS


def test_the_newest_iterations(tmp_path: Path) -> None:
    for number in (1, 2, 9, 10, 11):
        write_pt(tmp_path / "runs", number, [rollout(str(number))])
    told: list[tuple[int, int, int]] = []
    for last_n, expected in ((4, (2, 9, 10, 11)), (1, (11,)), (9, (1, 2, 9, 10, 11))):
        told.clear()
        result = convert_trajectories(
            tmp_path / "runs",
            tmp_path / "data",
            TrajectoryOptions(last_n=last_n),
            lambda file, *n: told.append((file.number, *n)),
        )
        assert [tally.iteration for tally in result.tallies] == list(expected)
        assert told == [(number, position, len(expected)) for position, number in enumerate(expected, 1)]
        assert result.num_rows == 2 * len(expected)


# -- the split


@pytest.fixture
def many(tmp_path: Path, shot: Path) -> Path:
    """Two iterations of 40 trajectories, every third with images."""
    for number in (3, 4):
        found = [rollout(f"{number}.{n}", image=None if n % 3 else shot) for n in range(40)]
        write_pt(tmp_path / "many", number, found)
    return tmp_path / "many"


def test_the_split_is_that_of_the_update(tmp_path: Path, many: Path) -> None:
    result = convert_trajectories(many, tmp_path / "data", TrajectoryOptions(eval_ratio=0.2, seed=5))
    assert result.folder is not None
    table = StepTable.of(StepPlace(i, t, s, "shop_41") for i in (3, 4) for t in range(40) for s in range(2))
    sides = zip(("train.jsonl", "eval.jsonl"), split_by_trajectory(table, 0.2, 5), strict=True)
    for name, side in sides:
        expected = set(zip(side.iteration.tolist(), side.trajectory.tolist(), strict=True))
        assert trajectories_of(result.folder, name) == expected
        assert len(rows(result.folder, name)) == 2 * len(expected)
        flags = [bool(row["images"]) for row in rows(result.folder, name)]
        assert flags == sorted(flags, reverse=True)
        assert Counter(flags).keys() == {True, False}
    registry = load_registry(tmp_path / "data")
    assert list(registry) == ["trajectories", "trajectories_eval"]
    assert all("split" not in entry and "images" in entry["columns"] for entry in registry.values())
    assert find_eval_name(tmp_path / "data", "trajectories") == "trajectories_eval"
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["split"] == {"eval_ratio": 0.2, "seed": 5, "group_by": "trajectory"}
    assert {name: variant["side"] for name, variant in manifest["variants"].items()} == {
        "trajectories": "train",
        "trajectories_eval": "eval",
    }


def test_each_side_has_the_column_when_it_has_an_image(tmp_path: Path, shot: Path) -> None:
    write_pt(tmp_path / "all", 0, [rollout(str(n)) for n in range(30)])
    held = convert_trajectories(tmp_path / "all", tmp_path / "data", TrajectoryOptions(eval_ratio=0.3))
    assert held.folder is not None
    (_, first), *_ = sorted(trajectories_of(held.folder, "eval.jsonl"))
    write_pt(tmp_path / "all", 0, [rollout(str(n), image=shot if n == first else None) for n in range(30)])
    convert_trajectories(tmp_path / "all", tmp_path / "data", TrajectoryOptions(eval_ratio=0.3))
    columns = {name: "images" in entry["columns"] for name, entry in load_registry(tmp_path / "data").items()}
    assert columns == {"trajectories": False, "trajectories_eval": True}


@pytest.mark.parametrize("ratio", [1e-9, 1 - 1e-9])
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_split_that_comes_to_nothing(tmp_path: Path, many: Path, ratio: float, dry_run: bool) -> None:
    options = TrajectoryOptions(eval_ratio=ratio, dry_run=dry_run)
    result = convert_trajectories(many, tmp_path / "data", options)
    assert result.notes == [
        "no eval split: every trajectory is on the same side, as there are too few of them; all rows are for training"
    ]
    assert [(variant.name, variant.num_rows, variant.side) for variant in result.variants] == [
        ("trajectories", 160, "train")
    ]
    if not dry_run:
        assert result.folder is not None
        flags = [bool(row["images"]) for row in rows(result.folder)]
        assert flags == [True] * 56 + [False] * 104
        assert sorted(path.name for path in result.folder.iterdir()) == ["manifest.json", "train.jsonl"]


# -- the same bytes


def test_a_rerun_gives_the_same_bytes(tmp_path: Path, many: Path) -> None:
    trees = []
    for folder, seed in (("one", 7), ("two", 7), ("two", 7), ("other", 8)):
        convert_trajectories(many, tmp_path / folder, TrajectoryOptions(eval_ratio=0.2, seed=seed))
        trees.append(tree(tmp_path / folder))
    assert trees[0] == trees[1] == trees[2]
    assert trees[0] != trees[3]


def test_what_was_there_before_makes_no_difference(tmp_path: Path) -> None:
    for text in ("one", "two"):  # as many bytes
        write_pt(tmp_path / "runs", 0, [rollout(text)])
        convert_trajectories(tmp_path / "runs", tmp_path / "data", TrajectoryOptions())
    convert_trajectories(tmp_path / "runs", tmp_path / "fresh", TrajectoryOptions())
    assert tree(tmp_path / "data") == tree(tmp_path / "fresh")


def test_the_same_rollouts_as_jsonl_give_the_same_bytes(tmp_path: Path, many: Path) -> None:
    rewrite_as_jsonl(many, tmp_path / "open", None)
    for source, folder in ((many, "one"), (tmp_path / "open", "two")):
        convert_trajectories(source, tmp_path / folder, TrajectoryOptions(eval_ratio=0.2))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_dry_run_counts_the_same_and_writes_nothing(tmp_path: Path, many: Path) -> None:
    options = {"eval_ratio": 0.2, "seed": 3}
    counted = convert_trajectories(many, tmp_path / "data", TrajectoryOptions(dry_run=True, **options))
    assert not (tmp_path / "data").exists()
    written = convert_trajectories(many, tmp_path / "data", TrajectoryOptions(**options))
    assert (counted.variants, counted.tallies) == (written.variants, written.tallies)


# -- all or nothing


def at_call(number: int, error: BaseException, target: Any, name: str, patch: pytest.MonkeyPatch) -> None:
    """Let the call of that number fail."""
    real, calls = getattr(target, name), Counter[str]()

    def failing(*args: Any, **words: Any) -> Any:
        calls[name] += 1
        if calls[name] == number:
            raise error
        return real(*args, **words)

    patch.setattr(target, name, failing)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug"), OSError(28, FULL)], ids=repr)
@pytest.mark.parametrize(
    ("target", "name", "number"),
    [
        (dataset_stage.Stage, "add", 5),
        (dataset_stage.Stage, "settle", 1),
        (dataset_stage, "append_file", 1),
        (dataset_write, "write_json_atomic", 1),
        (dataset_write, "replace_entries", 1),
        (Path, "rename", 1),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_a_kill_on_the_way_leaves_the_old_data_set(
    runs: Path, data: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, target: Any, name: str, number: int
) -> None:
    before = tree(data)
    with monkeypatch.context() as patch:
        at_call(number, error, target, name, patch)
        with pytest.raises((KeyboardInterrupt, RuntimeError, TrainkitError)) as caught:
            convert_trajectories(runs, data, TrajectoryOptions())
    assert tree(data) == before
    if isinstance(error, OSError):
        assert isinstance(caught.value, TrainkitError)
        assert caught.value.message.endswith(f": {FULL}")
        assert "What was there before is untouched" in caught.value.hint
    result = convert_trajectories(runs, data, TrajectoryOptions())
    assert result.folder is not None
    assert load_registry(data) | FOREIGN == load_registry(data)
    assert [path.name for path in data.glob("trajectories-*")] == [result.folder.name]


def test_a_name_that_is_taken_is_told_before_the_work(runs: Path, data: Path) -> None:
    before = tree(data)
    told: list[int] = []
    with pytest.raises(InputError, match=r"dataset_info\.json: mine: already there"):
        convert_trajectories(runs, data, TrajectoryOptions(name="mine"), lambda *_: told.append(1))
    (data / "dataset_info.json").write_text(json.dumps({"a_eval": {"file_name": "x.json"}}))
    with pytest.raises(InputError, match=r"dataset_info\.json: a_eval: already there"):
        convert_trajectories(runs, data, TrajectoryOptions(name="a", eval_ratio=0.1), lambda *_: told.append(1))
    assert told == []
    assert tree(data).keys() == before.keys()
    convert_trajectories(runs, data, TrajectoryOptions(name="a"))
    (data / "dataset_info.json").write_text("[1]")
    with pytest.raises(InputError, match=r"dataset_info\.json: is not a JSON object"):
        convert_trajectories(runs, data, TrajectoryOptions(), lambda *_: told.append(1))
    assert told == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            TrajectoryOptions(name="reward_model"),
            "--name reward_model: is the name of the evaluations' variants together",
        ),
        (TrajectoryOptions(eval_ratio=1), "--eval-ratio 1: must be at least 0 and below 1"),
        (TrajectoryOptions(eval_ratio=float("nan")), "--eval-ratio nan: must be at least 0 and below 1"),
        (TrajectoryOptions(max_rejects=1.5), "--max-rejects 1.5: must be between 0 and 1 (or 0% and 100%)"),
        (TrajectoryOptions(last_n=0), "--last-n-iterations 0: at least one iteration is needed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_that_cannot_be(runs: Path, tmp_path: Path, options: TrajectoryOptions, message: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        convert_trajectories(runs, tmp_path / "data", options)
    assert caught.value.message == message
    assert not (tmp_path / "data").exists()


# -- what cannot be used


@pytest.fixture
def broken(tmp_path: Path, shot: Path) -> tuple[Path, Path]:
    """Three iterations of which the second breaks off after rows and rejects; the same without the second."""
    gone = tmp_path / "gone.png"
    for name in ("broken", "without"):
        write_jsonl(tmp_path / name, 1, [rollout(f"a{n}", image=None if n % 2 else shot) for n in range(60)])
        write_jsonl(tmp_path / name, 3, [rollout("c", image=shot), rollout("d")])
    found = [rollout("b", image=shot), rollout("x", image=gone), *(rollout(f"b{n}") for n in range(10))]
    write_jsonl(tmp_path / "broken", 2, found, end='{"steps": [{"act')
    return tmp_path / "broken", tmp_path / "without"


def test_an_unreadable_iteration_is_an_error(tmp_path: Path, broken: tuple[Path, Path]) -> None:
    path = broken[0] / "train_trajectories" / "train_trajectories.iteration2.jsonl"
    with pytest.raises(InputError) as caught:
        convert_trajectories(broken[0], tmp_path / "data", TrajectoryOptions())
    assert caught.value.message == f"{path}:13: is not a trajectory: Input data was truncated"
    assert caught.value.hint == 'a line is {"steps": [step, ...]}; --skip-bad-iterations goes on without it'
    assert tree(tmp_path / "data") == {}


@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_an_iteration_is_left_out_whole(tmp_path: Path, broken: tuple[Path, Path], ratio: float) -> None:
    found: list[TrajectoriesResult] = []
    for source, folder in zip(broken, ("one", "two"), strict=True):
        options = TrajectoryOptions(skip_bad=True, eval_ratio=ratio, max_rejects=0)
        found.append(convert_trajectories(source, tmp_path / folder, options))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    path = broken[0] / "train_trajectories" / "train_trajectories.iteration2.jsonl"
    message = f"left out: {path}:13: is not a trajectory: Input data was truncated"
    assert found[0].problems == [
        Problem("--skip-bad-iterations", message, 'a line is {"steps": [step, ...]}', "warning")
    ]
    assert found[1].problems == []
    assert found[0].tallies == found[1].tallies
    assert found[0].rejected_file is None


@pytest.mark.parametrize("kind", ["pt", "jsonl"])
def test_only_the_unreadable_one_has_rows(tmp_path: Path, shot: Path, kind: str) -> None:
    """The files that were made for it are empty, and are not published."""
    write_jsonl(tmp_path / "runs", 1, [rollout("b", image=shot), rollout("c")], end="{")
    write_pt(tmp_path / "runs", 2, [rollout("d", image=None if kind == "pt" else shot)])
    result = convert_trajectories(tmp_path / "runs", tmp_path / "data", TrajectoryOptions(skip_bad=True))
    assert result.folder is not None
    mark = "" if kind == "pt" else "<image>"
    assert prompts(result.folder) == [f"{mark}d/0", f"{mark}d/1"]
    assert sorted(path.name for path in result.folder.iterdir()) == ["manifest.json", "train.jsonl"]


CONVERT: dict[str, Callable[[Path, Path], object]] = {
    "data set": lambda path, out: convert_trajectories(path, out, TrajectoryOptions(skip_bad=True)),
    "jsonl": lambda path, out: rewrite_as_jsonl(path, out, None, skip_bad=True),
}


@pytest.mark.parametrize("way", CONVERT)
def test_no_iteration_can_be_read(tmp_path: Path, way: str) -> None:
    for number in (1, 2):
        write_pt(tmp_path / "runs", number, []).write_bytes(b"")
    with pytest.raises(ProblemsFound) as caught:
        CONVERT[way](tmp_path / "runs", tmp_path / "out")
    assert caught.value.message == "none of 2 iterations can be read"
    path = tmp_path / "runs" / "train_trajectories" / "train_trajectories.pt.iteration"
    assert [problem.message for problem in caught.value.problems] == [
        f"left out: {path}{number}: is empty" for number in (1, 2)
    ]
    assert tree(tmp_path / "out").keys() <= {"train_trajectories"}


def test_rejected_steps_are_written_down(tmp_path: Path, data: Path, shot: Path) -> None:
    gone = tmp_path / "gone.png"
    wrong = rollout("w", 3)
    wrong[1]["response"]["raw_prompt"] = '[{"role": "assistant", "content": "x"}]'
    found = [[], rollout("a", 60), rollout("x", image=gone), wrong, rollout("l", image=gone, reward=0)]
    path = write_pt(tmp_path / "bad", 5, found)
    before = tree(data)
    with pytest.raises(InputError) as caught:
        convert_trajectories(tmp_path / "bad", data, TrajectoryOptions())
    # 60 + 2 + 3 steps are eligible
    assert caught.value.message == (
        "3 of 65 eligible steps cannot be used (2 image file, 1 wrong order of turns): nothing was published"
    )
    assert caught.value.hint == f"see {data / 'rejected.jsonl'}; --max-rejects 4.62% would accept that"
    assert {name: content for name, content in tree(data).items() if name != "rejected.jsonl"} == before
    result = convert_trajectories(tmp_path / "bad", data, TrajectoryOptions(max_rejects=0.0462))
    assert (result.num_rows, result.rejected_file) == (62, data / "rejected.jsonl")
    assert result.rejected == {"image file": 2, "wrong order of turns": 1}
    assert result.left_out == {"not successful": 2}
    assert result.unusable == {"empty": 1}
    missing = f"{gone}: no such file"
    place = {"file": str(path), "row": ""}
    assert [json.loads(line) for line in (data / "rejected.jsonl").read_text().splitlines()] == [
        place | {"line": 3, "reason": "image file", "detail": f"step 1: {missing}"},
        place | {"line": 3, "reason": "image file", "detail": f"step 2: {missing}"},
        place | {"line": 4, "reason": "wrong order of turns", "detail": "step 2: turn 1 is gpt, not human"},
    ]
    gone.write_bytes(b"")
    wrong[1]["same_as_next_screenshot"] = True
    write_pt(tmp_path / "bad", 5, found)
    assert convert_trajectories(tmp_path / "bad", data, TrajectoryOptions()).num_rows == 64
    assert not (data / "rejected.jsonl").exists()


@pytest.mark.parametrize(
    ("trajectories", "message"),
    [
        ([], "0 trajectories, 0 steps in those that can be used"),
        (
            [[], [], rollout("d", 1)],
            "3 trajectories (2 empty, 1 fewer than 2 steps), 0 steps in those that can be used",
        ),
        ([rollout("c", 5, reward=0)], "1 trajectories, 5 steps in those that can be used (5 not successful)"),
        (
            [rollout("c", 3, reward=0), rollout("x", image=Path("/nowhere/1.png"))],
            "2 trajectories, 5 steps in those that can be used (3 not successful, 2 image file)",
        ),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_no_usable_step(tmp_path: Path, trajectories: list[Any], message: str, dry_run: bool) -> None:
    write_pt(tmp_path / "runs", 5, trajectories)
    data = tmp_path / "data"
    with pytest.raises(InputError) as caught:
        convert_trajectories(tmp_path / "runs", data, TrajectoryOptions(max_rejects=1, dry_run=dry_run))
    assert caught.value.message == f"there is no usable step in 1 iterations: {message}"
    rejected = {"rejected.jsonl"} if "image" in message and not dry_run else set()
    assert caught.value.hint == f"see {data / 'rejected.jsonl'}; " * len(rejected) + "nothing was published"
    assert tree(data).keys() == rejected


def test_paths_that_are_not_there(tmp_path: Path, runs: Path, shot: Path) -> None:
    holds = "name the folder that holds train_trajectories/"
    (tmp_path / "none").mkdir()
    cases = [
        ("rusn", f"{tmp_path / 'rusn'}: no such folder", f"did you mean {runs}?"),
        ("qqqqqqqqqq", f"{tmp_path / 'qqqqqqqqqq'}: no such folder", holds),
        ("x/y", f"{tmp_path / 'x/y'}: no such folder", f"the folder {tmp_path / 'x'} does not exist"),
        ("7.png", f"{shot}: is not a folder", holds),
        ("none", f"{tmp_path / 'none' / 'train_trajectories'}: no such folder", holds),
    ]
    for name, message, hint in cases:
        for convert in CONVERT.values():
            with pytest.raises(InputError) as caught:
                convert(tmp_path / name, tmp_path / "data")
            assert (caught.value.message, caught.value.hint) == (message, hint)
    assert not (tmp_path / "data").exists()


# -- as JSONL


def test_rollouts_as_jsonl(tmp_path: Path, runs: Path) -> None:
    told: list[tuple[int, int, int]] = []
    result = rewrite_as_jsonl(runs, tmp_path / "out", None, on_file=lambda file, *n: told.append((file.number, *n)))
    folder = tmp_path / "out" / "train_trajectories"
    assert (result.folder, result.notes, result.problems) == (folder, [], [])
    assert result.counts == {2: {"written": 3, "empty": 1, "fewer than 2 steps": 1}, 11: {"written": 2}}
    assert result.left_out == {"empty": 1, "fewer than 2 steps": 1}
    assert told == [(2, 1, 2), (11, 2, 2)]
    files = [folder / f"train_trajectories.iteration{number}.jsonl" for number in (2, 11)]
    assert sorted(folder.iterdir()) == sorted(files)
    assert [len(list(read_trajectories(IterationFile(2, path, "jsonl")))) for path in files] == [3, 2]
    before = tree(tmp_path / "out")
    files[1].write_text("old")
    assert rewrite_as_jsonl(runs, tmp_path / "out", 1).counts == {11: {"written": 2}}
    assert tree(tmp_path / "out") == before


def test_nothing_is_written_over_or_beside_another_file_of_an_iteration(tmp_path: Path, runs: Path) -> None:
    write_pt(tmp_path / "out", 11, [])
    write_pt(tmp_path / "out", 12, [])
    before = tree(tmp_path)
    with pytest.raises(InputError) as caught:
        rewrite_as_jsonl(runs, tmp_path / "out", None)
    assert caught.value.message == (
        f"{tmp_path / 'out' / 'train_trajectories'}: holds iteration 11 already, as train_trajectories.pt.iteration11"
    )
    assert caught.value.hint.startswith("choose another folder with -o")
    with pytest.raises(InputError, match=r"holds iteration 2 already, as train_trajectories\.pt\.iteration2$"):
        rewrite_as_jsonl(runs, runs, None)
    own = runs / "train_trajectories" / "train_trajectories.iteration11.jsonl"
    with pytest.raises(InputError) as caught:
        rewrite_as_jsonl(runs, runs, 1)
    assert caught.value.message == f"{own}: is JSONL already, and would be read and written"
    assert tree(tmp_path) == before


def test_jsonl_of_what_cannot_be_read_or_used(tmp_path: Path, broken: tuple[Path, Path]) -> None:
    write_pt(broken[0], 4, [[]])
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"iteration2\.jsonl:13: .*truncated") as caught:
        rewrite_as_jsonl(broken[0], out, None)
    assert caught.value.hint.endswith("; --skip-bad-iterations goes on without it")
    result = rewrite_as_jsonl(broken[0], out, None, skip_bad=True)
    assert result.notes == ["iteration 4 has no usable trajectory, so no file was written for it"]
    assert [problem.level for problem in result.problems] == ["warning"]
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "train_trajectories.iteration1.jsonl",
        "train_trajectories.iteration3.jsonl",
    ]
    assert convert_trajectories(out, tmp_path / "data", TrajectoryOptions()).num_rows == 124
    with pytest.raises(InputError) as caught:
        rewrite_as_jsonl(broken[0], tmp_path / "none", 1)
    assert caught.value.message == f"{broken[0]}: there is no usable trajectory (1 empty)"
    assert tree(tmp_path / "none") == {"train_trajectories": b""}


def test_a_full_disk_while_jsonl_is_written(tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_call(2, OSError(28, FULL), os, "fsync", monkeypatch)
    at_call(1, OSError(28, FULL), Path, "replace", monkeypatch)
    folder = tmp_path / "out" / "train_trajectories"
    with pytest.raises(TrainkitError) as caught:
        rewrite_as_jsonl(runs, tmp_path / "out", None)
    assert caught.value.message == f"{folder}: {FULL}"
    assert list(folder.iterdir()) == []


# -- memory

MEASURED = """
import sys
from pathlib import Path
from trainkit.workflow.convert_trajectories import TrajectoryOptions, convert_trajectories

convert_trajectories(Path(sys.argv[1]), Path(sys.argv[1]) / "data", TrajectoryOptions(eval_ratio=0.1))
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, shot: Path) -> None:
    peaks = []
    text = "0123456789" * 2000
    for count in (100, 900):
        found = [rollout(f"{text}{n}", 3, None if n % 2 else shot) for n in range(count)]
        write_jsonl(tmp_path / str(count), 0, found)
        argv = [sys.executable, "-c", MEASURED, str(tmp_path / str(count))]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, env=environment)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.15 * peaks[0]
