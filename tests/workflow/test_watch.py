"""`--watch`: a round for each new iteration. What it decides is tested poll by poll, its end with a program."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rollouts import UPDATE, add_iteration, quick, records, rollout, start_program, write_iteration

from trainkit.errors import InputError, Interrupted, TrainerFailed, UsageProblem
from trainkit.launch.stop import Stop
from trainkit.runs.rounds import Round, write_round
from trainkit.workflow import train as training
from trainkit.workflow.round_options import Told, UpdateOptions
from trainkit.workflow.update import UpdateResult
from trainkit.workflow.watch import WatchOptions, watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Place


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Tell the fake trainer how to behave."""
    return lambda **told: monkeypatch.setenv("FAKE_TRAINER", json.dumps(told))


@pytest.fixture
def exp(ready: Place, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment whose rollouts have not begun."""
    quick(monkeypatch)
    ready.write("update.yaml", UPDATE)
    return ready.path("exp")


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what happens in each wait between two looks; after the last one the watch is told to stop."""

    def script(*actions: Callable[[], object]) -> None:
        left = list(actions)

        def wait(stop: Stop, seconds: float) -> bool:
            assert seconds == 0.2
            if left:
                left.pop(0)()
            else:
                stop.number = signal.SIGTERM
            return stop.number is not None

        monkeypatch.setattr(Stop, "wait", wait)

    return script


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch, exp: Path) -> list[int]:
    """Run no round, but write down that it was handed over; the newest iteration of each."""
    found: list[int] = []

    def update(*words: Any) -> UpdateResult:
        files = (exp / "train_trajectories").glob("*.jsonl")
        newest = max(int(file.name.partition("iteration")[2].partition(".")[0]) for file in files)
        found.append(newest)
        name = f"model_20260301_1425{len(found):02}"
        record = Round(name, {}, "", "", newest_iteration=newest, state="handed over")
        write_round(exp, record)
        return UpdateResult("handed over", record, exp / "model.pt")

    monkeypatch.setattr("trainkit.workflow.watch.update", update)
    return found


def watching(place: Place, every: int = 1, told: Told | None = None, *words: str) -> list[UpdateResult]:
    results: list[UpdateResult] = []
    options = UpdateOptions(train=True)
    watch(None, words, options, WatchOptions(every, 0.2), place.folder, told or Told(), results.append)
    return results


def nothing() -> None:
    """Let time pass."""


def test_a_round_for_each_new_iteration(ready: Place, exp: Path, polls: Callable[..., None], rounds: list[int]) -> None:
    add_iteration(exp, 0)
    polls(nothing, nothing, lambda: add_iteration(exp, 1), nothing, nothing, lambda: add_iteration(exp, 2), nothing)
    said: list[str] = []
    results = watching(ready, 1, Told(stage=said.append))
    assert rounds == [0, 1, 2]
    assert [result.record.newest_iteration for result in results] == [0, 1, 2]
    assert {*said} == {"waiting for rollouts: 0 of 1 new iterations"}


def test_a_round_for_every_second_iteration(
    ready: Place, exp: Path, polls: Callable[..., None], rounds: list[int]
) -> None:
    actions = [lambda number=number: add_iteration(exp, number) for number in range(5)]
    polls(*(step for action in actions for step in (action, nothing, nothing)))
    said: list[str] = []
    watching(ready, 2, Told(stage=said.append))
    assert rounds == [1, 3]
    assert {*said} == {f"waiting for rollouts: {number} of 2 new iterations" for number in range(2)}


def test_an_iteration_that_still_grows_is_waited_for(
    ready: Place, exp: Path, polls: Callable[..., None], rounds: list[int]
) -> None:
    seen: list[int] = []

    def grow(number: int) -> None:
        write_iteration(exp, 0, [rollout(f"t{index}") for index in range(number)])
        seen.append(len(rounds))

    polls(lambda: grow(1), lambda: grow(2), lambda: grow(3), lambda: grow(4), nothing)
    watching(ready)
    assert (seen, rounds) == ([0, 0, 0, 0], [0])


def test_an_iteration_that_comes_with_another_one_is_waited_for_too(
    ready: Place, exp: Path, polls: Callable[..., None], rounds: list[int]
) -> None:
    polls(lambda: add_iteration(exp, 0), lambda: add_iteration(exp, 1), nothing, nothing)
    watching(ready)
    assert rounds == [1]


def test_files_of_single_ranks_are_waited_with(
    ready: Place, exp: Path, polls: Callable[..., None], rounds: list[int]
) -> None:
    """They are there before the first iteration is."""
    folder = exp / "train_trajectories"
    folder.mkdir(parents=True)
    (folder / "train_trajectories.pt.iteration0_rank_0").write_bytes(b"half")
    polls(nothing, lambda: add_iteration(exp, 0), nothing)
    watching(ready)
    assert rounds == [0]


@pytest.mark.parametrize("made", ["nothing", "exp", "exp/train_trajectories"])
def test_folders_that_are_not_there_yet(
    ready: Place, exp: Path, polls: Callable[..., None], rounds: list[int], made: str
) -> None:
    ready.path(made).mkdir(parents=True)
    polls(nothing, lambda: add_iteration(exp, 0), nothing)
    watching(ready)
    assert rounds == [0]


def test_an_iteration_that_is_there_twice(
    ready: Place, exp: Path, polls: Callable[..., None], rounds: list[int]
) -> None:
    add_iteration(exp, 0)
    (exp / "train_trajectories" / "train_trajectories.pt.iteration0").write_bytes(b"x")
    polls(nothing)
    with pytest.raises(InputError, match="iteration 0 is there twice"):
        watching(ready)
    assert rounds == []


@pytest.mark.parametrize(("every", "seconds"), [(0, 0.2), (-1, 0.2), (1, 0), (1, -3)])
def test_wrong_numbers(ready: Place, exp: Path, every: int, seconds: float) -> None:
    with pytest.raises(UsageProblem, match="--every and --poll: must be above 0"):
        watch(None, [], UpdateOptions(), WatchOptions(every, seconds), ready.folder, Told(), lambda _: None)


def test_the_trainers_own_keys(ready: Place, exp: Path, polls: Callable[..., None], rounds: list[int]) -> None:
    """What `update` takes, `update --watch` takes too."""
    add_iteration(exp, 0)
    polls(nothing)
    watching(ready, 1, None, "algorithm_config.neftune_noise_alpha=5")
    assert rounds == [0]


# with real rounds


def test_a_round_that_was_interrupted_goes_on_at_once(
    ready: Place, exp: Path, polls: Callable[..., None], tell: Callable[..., None]
) -> None:
    add_iteration(exp, 0)
    tell(stop_at=2, exit=3)
    polls(nothing)
    with pytest.raises(TrainerFailed) as caught:
        watching(ready)
    assert caught.value.exit_code == 3
    tell()
    polls(nothing, nothing)
    (result,) = watching(ready)
    assert result.outcome == "handed over"
    checkpoint = ready.calls("train")[1]["values"]["resume_from_checkpoint"]
    assert Path(checkpoint).parts[-2:] == (result.record.name, "checkpoint-2")


def stop_me(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("words", ["reading iteration 0", "writing the data", "checking the training"])
def test_stopped_before_the_training(ready: Place, exp: Path, polls: Callable[..., None], words: str) -> None:
    add_iteration(exp, 0)
    polls(nothing)
    with pytest.raises(Interrupted) as caught:
        watching(ready, 1, Told(stage=lambda said: stop_me() if said == words else None))
    assert (caught.value.exit_code, caught.value.message) == (143, "stopped before the training; the next call goes on")
    assert ready.calls("train") == []
    polls(nothing)
    assert len(watching(ready)) == 1


def test_stopped_while_the_training_is_checked(
    ready: Place, exp: Path, polls: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training may take hours: it must not begin any more."""
    add_iteration(exp, 0)
    polls(nothing)
    real = training.lay_out

    def lay_out(*words: Any) -> Any:
        stop_me()
        return real(*words)

    monkeypatch.setattr("trainkit.workflow.train.lay_out", lay_out)
    with pytest.raises(Interrupted):
        watching(ready)
    assert ready.calls("train") == []


def test_stopped_while_the_model_is_handed_over(ready: Place, exp: Path, polls: Callable[..., None]) -> None:
    add_iteration(exp, 0)
    polls(nothing)
    results = watching(ready, 1, Told(stage=lambda said: stop_me() if said == "handing the model over" else None))
    assert [result.outcome for result in results] == ["handed over"]


def test_the_handlers_are_as_before(ready: Place, exp: Path, polls: Callable[..., None], rounds: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    polls()
    watching(ready)
    assert signal.getsignal(signal.SIGTERM) is before


# a program of its own


def wait_for(pattern: str, folder: Path, number: int = 1) -> None:
    for _ in range(600):
        if len([*folder.glob(pattern)]) >= number:
            return
        time.sleep(0.02)
    raise AssertionError(f"{pattern} did not appear")


def wait_for_states(exp: Path, *states: str) -> None:
    for _ in range(600):
        if [record["state"] for record in records(exp)] == [*states]:
            return
        time.sleep(0.02)
    raise AssertionError(f"the rounds did not become {states}: {records(exp)}")


def test_two_rounds_and_a_stop_in_between(ready: Place, exp: Path) -> None:
    add_iteration(exp, 0)
    process = start_program(ready.folder, ready.python, "update", "--watch", "--train", "--poll", "0.2")
    try:
        wait_for_states(exp, "handed over")
        add_iteration(exp, 1)
        wait_for_states(exp, "handed over", "handed over")
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
        out, err = (ready.tidy(text) for text in process.communicate(timeout=20))
    finally:
        process.kill()
    assert (process.returncode, err.splitlines()[-1]) == (0, "stopped; nothing was under way")
    assert [line for line in out.splitlines() if line.startswith("model")] == ["model          WORK/exp/model.pt"] * 2
    steps = [call["values"].get("max_steps") for call in ready.calls("train")]
    assert steps == [None, 9]


def test_a_stop_in_a_training(ready: Place, exp: Path, tell: Callable[..., None]) -> None:
    add_iteration(exp, 0)
    tell(stop_at=2, wait=True)
    process = start_program(ready.folder, ready.python, "update", "--watch", "--train", "--poll", "0.2")
    try:
        wait_for("checkpoints/*/ready", exp)
        os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 143
    assert err.splitlines()[-1].startswith("error: stopped; the log is ")
    assert "Traceback" not in err + out
    assert [record["state"] for record in records(exp)] == ["prepared"]
    tell()
    assert ready.trainkit("update", "--train").code == 0
    assert ready.calls("train")[1]["values"]["resume_from_checkpoint"].endswith("/checkpoint-2")
