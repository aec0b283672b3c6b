"""The callback by which several processes stop at one step, with a trainer and a torch that pretend."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.inside import train_together
from trainkit.inside.train_together import StopTogether

if TYPE_CHECKING:
    from collections.abc import Callable

FAKES = Path(__file__).parents[1] / "fakes" / "packages"


def args_of(rank: int = 0, world_size: int = 1) -> SimpleNamespace:
    return SimpleNamespace(local_process_index=rank, world_size=world_size, device="cpu", save_only_model=True)


def new_control() -> SimpleNamespace:
    return SimpleNamespace(should_save=False, should_training_stop=False, should_evaluate=True)


def state_of(step: int, max_steps: int = 10) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=max_steps)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A torch.distributed in which another process has said `number`; `called` lists what else was asked of it."""
    world: dict[str, Any] = {"number": 0, "called": []}
    torch, distributed = ModuleType("torch"), ModuleType("torch.distributed")

    def all_reduce(told: list[int], op: str) -> None:
        assert op == "max"
        told[0] = max(told[0], world["number"])

    class Tensor(list[int]):
        def item(self) -> int:
            return self[0]

    vars(torch).update(tensor=lambda values, device: Tensor(values), distributed=distributed)
    vars(distributed).update(
        all_reduce=all_reduce,
        ReduceOp=SimpleNamespace(MAX="max"),
        barrier=lambda: world["called"].append("barrier"),
        destroy_process_group=lambda: world["called"].append("destroy"),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.distributed", distributed)
    return world


def test_a_training_goes_on_until_it_is_asked(tmp_path: Path) -> None:
    callback, control = StopTogether(tmp_path / "stop"), new_control()
    callback.on_train_begin(args_of(), state_of(0), control)
    assert (tmp_path / "stop").read_text() == ""
    callback.on_step_end(args_of(), state_of(1), control)
    callback.on_save(args_of(), state_of(1), control)
    callback.on_train_end(args_of(), state_of(1), control)
    assert control == new_control()
    assert (tmp_path / "stop").read_text() == ""


def test_a_stop_saves_all_and_leaves_at_once(tmp_path: Path) -> None:
    callback, control, args = StopTogether(tmp_path / "stop"), new_control(), args_of()
    callback.on_train_begin(args, state_of(0), control)
    (tmp_path / "stop").write_text("15")
    callback.on_step_end(args, state_of(4), control)
    assert control == SimpleNamespace(should_save=True, should_training_stop=True, should_evaluate=False)
    assert args.save_only_model is False
    with pytest.raises(SystemExit) as caught:
        callback.on_save(args, state_of(4), control)
    assert caught.value.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["stop"]
    assert (tmp_path / "stop").read_text() == "15 4"


def test_the_last_step_ends_as_always(tmp_path: Path) -> None:
    callback, control = StopTogether(tmp_path / "stop"), new_control()
    (tmp_path / "stop").write_text("15")
    callback.on_step_end(args_of(), state_of(10), control)
    callback.on_save(args_of(), state_of(10), control)
    assert control == new_control()


def test_a_trainer_that_stops_without_a_save_says_so_too(tmp_path: Path) -> None:
    callback = StopTogether(tmp_path / "stop")
    (tmp_path / "stop").write_text("10")
    callback.on_step_end(args_of(), state_of(3), new_control())
    callback.on_train_end(args_of(), state_of(3), new_control())
    assert (tmp_path / "stop").read_text() == "10 3"


@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_stop_when_one_was_asked(tmp_path: Path, others: dict[str, Any], rank: int) -> None:
    """This one runs on a node that nobody asked: it takes the number of the others."""
    callback, control, args = StopTogether(tmp_path / "stop"), new_control(), args_of(rank, world_size=4)
    callback.on_train_begin(args, state_of(0), control)
    callback.on_step_end(args, state_of(1), control)
    assert not control.should_save
    others["number"] = 12
    callback.on_step_end(args, state_of(2), control)
    assert control.should_save
    with pytest.raises(SystemExit):
        callback.on_save(args, state_of(2), control)
    assert others["called"] == ["barrier", "destroy"]
    # only the first process of a node speaks to trainkit
    assert [path.read_text() for path in tmp_path.iterdir()] == (["12 2"] if rank == 0 else [])


# the program


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Any]]:
    """Run the program in this process; return what the trainer, or the launcher, was given."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("llamafactory", "transformers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(FAKES)
    for name in ("FORCE_TORCHRUN", "USE_MCA", "TRAINKIT_STOP_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words: str, launch: Callable[[], None] | None = None, **env: str) -> list[Any]:
        import llamafactory.launcher
        import llamafactory.train.tuner

        given: list[Any] = []
        monkeypatch.setattr(llamafactory.launcher, "launch", launch or (lambda: None))
        monkeypatch.setattr(llamafactory.launcher, "__file__", "")
        monkeypatch.setattr(llamafactory.train.tuner, "run_exp", lambda args=None, callbacks=(): given.append(
            [args, [(type(callback).__bases__, callback.stop_file) for callback in callbacks], sys.argv[1:]]
        ))  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["train_together.py", *words])
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", [*sys.path, str(Path(train_together.__file__).parent)])
            train_together.main()
            assert str(Path(train_together.__file__).parent) not in sys.path
        return given or [llamafactory.launcher.__file__, sys.argv[1:]]

    yield run
    for name in [name for name in sys.modules if name.partition(".")[0] in ("llamafactory", "transformers")]:
        del sys.modules[name]


def test_without_trainkit_it_is_the_trainer_alone(program: Callable[..., list[Any]]) -> None:
    assert program("train", "c.yaml") == [[None, [], ["c.yaml"]]]


@pytest.mark.parametrize("words", [["train", "c.yaml"], ["c.yaml"]])
def test_the_trainer_gets_the_callback(program: Callable[..., list[Any]], tmp_path: Path, words: list[str]) -> None:
    ((args, callbacks, seen),) = program(*words, TRAINKIT_STOP_FILE=str(tmp_path / "stop"))
    import transformers

    assert (args, seen) == (None, ["c.yaml"])
    assert callbacks == [((StopTogether, transformers.TrainerCallback), tmp_path / "stop")]


def test_torchrun_starts_this_program_as_its_workers(program: Callable[..., list[Any]]) -> None:
    assert program("train", "c.yaml", FORCE_TORCHRUN="1") == [train_together.__file__, ["train", "c.yaml"]]


def test_a_path_with_a_space_reaches_torchrun_by_another_name(
    program: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = tmp_path / "my trainkit" / "train_together.py"
    spaced.parent.mkdir()
    spaced.write_text("")
    monkeypatch.setattr(train_together, "__file__", str(spaced))
    seen = []
    launch = lambda: seen.append((tmp_path / "train_together.py").resolve())  # noqa: E731
    assert program("train", "c.yaml", launch=launch, USE_MCA="1")[0] == "train_together.py"
    assert seen == [spaced]
    assert not (tmp_path / "train_together.py").exists()


def test_a_worker_that_is_started_again_goes_on(program: Callable[..., list[Any]], tmp_path: Path) -> None:
    """Its configuration says overwrite_output_dir, as at the first start."""
    (tmp_path / "stop").touch()
    (tmp_path / "c.yaml").write_text(f"output_dir: {tmp_path}/saved\noverwrite_output_dir: true\nseed: 3\n")
    words = {"TRAINKIT_STOP_FILE": str(tmp_path / "stop")}
    assert program("c.yaml", **words)[0][0] is None
    for step, is_whole in ((2, True), (10, True), (12, False)):
        folder = tmp_path / "saved" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if is_whole:
            (folder / "trainer_state.json").touch()
    newest = str(tmp_path / "saved" / "checkpoint-10")
    assert program("c.yaml", **words)[0][0] == {
        "output_dir": f"{tmp_path}/saved", "seed": 3, "resume_from_checkpoint": newest,
    }  # fmt: skip
