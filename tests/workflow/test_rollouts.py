from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from rollouts import rollout, write_iteration

from trainkit.errors import InputError
from trainkit.sources.trajectories import find_iterations
from trainkit.workflow.rollouts import Tally, read_steps, survey

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trainkit.datatypes import Reject
    from trainkit.sources.trajectories import IterationFile


def one_of_each() -> list[list[Any]]:
    """Rollouts of every fate."""
    same, marked, image, silent, dummy = (rollout(name) for name in ("same", "marked", "image", "silent", "dummy"))
    same[1]["same_as_next_screenshot"] = True
    parts = json.loads(marked[2]["response"]["raw_prompt"])
    parts[-1]["content"][0]["text"] = "A page with <video> and <image> in it."
    marked[2]["response"]["raw_prompt"] = json.dumps(parts)
    image[0]["response"]["raw_prompt"] = json.dumps(
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///nowhere/1.png"}}]}]
    )
    silent[1]["action"] = None
    dummy[0]["observation"]["task"]["website"] = "not an address"
    return [[], rollout("one", num_steps=1), same, marked, image, silent, dummy, rollout("lost", reward=0.0)]


def files_of(save_path: Path) -> list[IterationFile]:
    return find_iterations(save_path, 4)


def test_every_step_is_counted_where_it_ends(tmp_path: Path) -> None:
    write_iteration(tmp_path, 3, one_of_each())
    rejects: list[Reject] = []
    read: list[int] = []
    files = files_of(tmp_path)
    found = survey(files, on_file=lambda file: read.append(file.number))
    assert list(found.table) == [
        (3, 2, 0, "same"),
        (3, 2, 2, "same"),
        (3, 3, 0, "marked"),
        (3, 3, 1, "marked"),
        (3, 3, 2, "marked"),
        (3, 4, 1, "image"),
        (3, 4, 2, "image"),
    ]
    (tally,) = found.tallies
    assert tally.to_json() == {
        "iteration": 3,
        "trajectories": 8,
        "unusable": {"dummy": 1, "empty": 1, "fewer than 2 steps": 1, "no action": 1},
        "steps": 12,
        "usable": 7,
        "left_out": {"image file": 1, "not successful": 3, "same screenshot as the next step": 1},
        "changes": {"marks in text": 2},
    }
    assert tally.passed_over == {"not successful": 3, "same screenshot as the next step": 1}
    # whole trajectories are counted only
    assert len(list(read_steps(files[0], Tally(3), on_reject=rejects.append))) == 7
    told = [(reject.line, reject.reason, reject.detail.partition(":")[0]) for reject in rejects]
    assert told == [(5, "image file", "step 1")]
    assert (read, found.files, found.problems) == ([3], tuple(files), ())
    assert found.counts() == {3: 7}


def test_an_iteration_without_a_step_keeps_its_place(tmp_path: Path) -> None:
    write_iteration(tmp_path, 1, [rollout("a")])
    write_iteration(tmp_path, 2, [rollout("b", reward=0)])
    write_iteration(tmp_path, 5, [[]])
    found = survey(files_of(tmp_path))
    assert found.counts() == {1: 3, 2: 0, 5: 0}
    assert [tally.to_json()["left_out"] for tally in found.tallies] == [{}, {"not successful": 3}, {}]
    assert found.tallies[2].unusable == {"empty": 1}


def test_nothing_at_all() -> None:
    found = survey([])
    assert (len(found.table), found.counts(), found.tallies) == (0, {}, ())


def test_short_answers_are_asked_about_once_for_each_rollout(tmp_path: Path) -> None:
    first, second = rollout("a"), rollout("b")
    first[0]["response"]["raw_response"] = "x"
    second[2]["response"]["raw_response"] = "y"
    write_iteration(tmp_path, 0, [first, second, rollout("c", reward=0)])
    asked: list[list[str]] = []

    def is_short(texts: Sequence[str]) -> list[bool]:
        asked.append(list(texts))
        return [len(text) < 2 for text in texts]

    found = survey(files_of(tmp_path), is_short=is_short)
    assert [place[1:3] for place in found.table] == [(0, 1), (0, 2), (1, 0), (1, 1)]
    assert found.tallies[0].left_out == {"not successful": 3, "short answer": 2}
    assert [len(texts) for texts in asked] == [3, 3]


def broken(save_path: Path, number: int) -> Path:
    path = write_iteration(save_path, number, [rollout("a"), rollout("b")])
    path.write_bytes(path.read_bytes()[:-40])
    return path


def test_an_iteration_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    write_iteration(tmp_path, 0, [rollout("a")])
    path = broken(tmp_path, 1)
    with pytest.raises(InputError) as caught:
        survey(files_of(tmp_path))
    assert caught.value.message.startswith(f"{path}:2: is not a trajectory: ")
    assert caught.value.hint.endswith("; --skip-bad-iterations goes on without it")


def test_an_iteration_that_may_be_skipped_leaves_nothing(tmp_path: Path) -> None:
    """Not even the trajectories before the place where it is broken."""
    write_iteration(tmp_path, 0, [rollout("a")])
    path = broken(tmp_path, 1)
    write_iteration(tmp_path, 2, [rollout("c")])
    files = files_of(tmp_path)
    found = survey(files, skip_bad=True)
    assert found.files == (files[0], files[2])
    assert [tally.iteration for tally in found.tallies] == [0, 2]
    assert found.counts() == {0: 3, 2: 3}
    (problem,) = found.problems
    assert (problem.where, problem.level) == ("--skip-bad-iterations", "warning")
    assert problem.message.startswith(f"left out: {path}:2: is not a trajectory: ")


def test_only_the_wanted_rows_are_made(tmp_path: Path) -> None:
    write_iteration(tmp_path, 3, one_of_each())
    (file,) = files_of(tmp_path)
    tally = Tally(3)
    found = list(read_steps(file, tally, wanted={(2, 0), (3, 2), (4, 0), (99, 0)}))
    assert [place[:3] for place, _ in found] == [(3, 2, 0), (3, 3, 2)]
    assert [json.loads(row)["conversations"][-1]["from"] for _, row in found] == ["gpt", "gpt"]
    assert (tally.usable, tally.rejected) == (2, Counter({"image file": 1}))
