"""A trained model is put in its place, and a complete model is there whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainkit.errors import ConfigError, TrainkitError
from trainkit.runs import exchange
from trainkit.runs.handover import MARKER, Handover, hand_over, recover

HERE = Path(__file__).parent
MODEL_FILES = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "model.safetensors", "additional_chat_templates/tools.jinja", "modeling_own.py",
}  # fmt: skip
OTHER_FILES = {
    "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "trainer_state.json", "training_args.bin",
    "trainer_log.jsonl", "all_results.json", "training_loss.png", "checkpoint-4/model.safetensors", "latest",
    "global_step4/mp_rank_00_model_states.pt", "optimizer_0/.metadata", "runs/events", ".trainkit.lock",
}  # fmt: skip


def write_model(folder: Path, text: str, extra: frozenset[str] = frozenset()) -> Path:
    for name in MODEL_FILES | extra:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            header = json.dumps({"w": {"data_offsets": [0, len(text)]}}).encode()
            file.write_bytes(len(header).to_bytes(8, "little") + header + text.encode())
        else:
            file.write_text(json.dumps({"model": text}))
    return folder


def model_in(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_bytes())["model"])


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def models_in(root: Path) -> dict[str, str]:
    return {path.name: model_in(path) for path in root.iterdir()}


def states_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return what a write, a hard link or a replacement would change of each file."""
    states = {name: (folder / name).stat() for name in names_in(folder)}
    return {
        name: (state.st_ino, state.st_nlink, state.st_mtime_ns, state.st_ctime_ns) for name, state in states.items()
    }


def only(*problems: str) -> list[str]:
    return list(problems)


def test_the_first_model(tmp_path: Path) -> None:
    new = write_model(tmp_path / "out", "1", frozenset(OTHER_FILES))
    place = tmp_path / "exp" / "model.pt"
    assert hand_over(new, place) == Handover(place, None, num_linked=1, num_copied=7)
    assert names_in(place) == MODEL_FILES | {MARKER}
    assert models_in(tmp_path / "exp") == {"model.pt": "1"}
    assert (place / "model.safetensors").samefile(new / "model.safetensors")
    assert not (place / "config.json").samefile(new / "config.json")
    assert names_in(new) == MODEL_FILES | OTHER_FILES


def test_each_round_keeps_the_model_of_the_one_before(tmp_path: Path) -> None:
    root = tmp_path / "exp"
    place, previous = root / "model.pt", root / "model.pt.previous"
    for number in "123":
        hand_over(write_model(tmp_path / number, number), place)
    assert models_in(root) == {"model.pt": "3", "model.pt.previous": "2"}
    # and the same model again is there already
    assert hand_over(tmp_path / "3", place) == Handover(place, previous)
    assert models_in(root) == {"model.pt": "3", "model.pt.previous": "2"}
    # from a model that was itself handed over
    assert hand_over(previous, root / "again").num_linked == 1
    assert model_in(root / "again") == "2"


def test_a_model_that_was_damaged_in_its_place_is_put_there_again(tmp_path: Path) -> None:
    new, place = write_model(tmp_path / "1", "1"), tmp_path / "exp" / "model.pt"
    hand_over(new, place)
    (place / "config.json").write_text("[")
    assert hand_over(new, place).num_linked == 1
    assert model_in(place) == "1"


def test_a_link_is_replaced_and_its_target_is_not_touched(tmp_path: Path) -> None:
    base, root = write_model(tmp_path / "base", "base"), tmp_path / "exp"
    root.mkdir()
    (root / "model.pt").symlink_to(base)
    before = states_in(base)
    for number in "12":
        hand_over(write_model(tmp_path / number, number), root / "model.pt")
        assert not (root / "model.pt").is_symlink()
        assert (root / "model.pt.previous").is_symlink() == (number == "1")
    assert models_in(root) == {"model.pt": "2", "model.pt.previous": "1"}
    assert states_in(base) == before


def test_a_link_that_leads_nowhere_and_a_file_are_replaced(tmp_path: Path) -> None:
    new = write_model(tmp_path / "1", "1")
    (tmp_path / "a").symlink_to("none")
    (tmp_path / "b").write_text("torch.save's")
    for name in "ab":
        hand_over(new, tmp_path / name)
        assert model_in(tmp_path / name) == "1"
    assert (tmp_path / "a.previous").is_symlink()
    assert (tmp_path / "b.previous").read_text() == "torch.save's"


def test_a_model_on_another_file_system_is_copied(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    new = write_model(memory / f"trainkit-{os.getpid()}", "1")
    try:
        assert hand_over(new, tmp_path / "model.pt") == Handover(tmp_path / "model.pt", None, 0, 8)
    finally:
        shutil.rmtree(new)
    assert model_in(tmp_path / "model.pt") == "1"


@pytest.mark.parametrize(
    ("spoil", "message", "hint"),
    [
        ("model.safetensors", "no weights", "the model in place is the one that was there"),
        ("config.json", "no config.json", "an adapter is merged into its base model first: trainkit export"),
        ("tokenizer*.json", "no tokenizer", "the model in place is the one that was there"),
        ("", "the caller's reason", "the model in place is the one that was there"),
    ],
)
def test_a_model_that_is_not_good_is_not_put_in_place(tmp_path: Path, spoil: str, message: str, hint: str) -> None:
    root = tmp_path / "exp"
    hand_over(write_model(tmp_path / "1", "1"), root / "model.pt")
    new = write_model(tmp_path / "2", "2")
    for file in new.glob(spoil) if spoil else ():
        file.unlink()
    with pytest.raises(TrainkitError) as caught:
        hand_over(new, root / "model.pt", lambda folder: only(*([] if spoil else ["the caller's reason"])))
    assert (caught.value.message, caught.value.hint) == (f"{new}: not handed over: {message}", hint)
    assert models_in(root) == {"model.pt": "1"}


@pytest.mark.parametrize("text", ["[]", "{"])
def test_a_config_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (write_model(tmp_path / "1", "1") / "config.json").write_text(text)
    with pytest.raises(TrainkitError, match=r"config\.json cannot be read"):
        hand_over(tmp_path / "1", tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_model_that_fails_in_its_place_is_taken_back(tmp_path: Path) -> None:
    root = tmp_path / "exp"
    for number in "12":
        hand_over(write_model(tmp_path / number, number), root / "model.pt")
    asked = []

    def verify(folder: Path) -> list[str]:
        asked.append((folder.name.startswith("."), model_in(folder)))
        return only("does not answer") if folder.name == "model.pt" else []

    with pytest.raises(TrainkitError) as caught:
        hand_over(write_model(tmp_path / "3", "3"), root / "model.pt", verify)
    assert caught.value.message == f"{root}/model.pt: the new model is not good in its place: does not answer"
    assert caught.value.hint == "the old model is in place again"
    assert asked == [(True, "3"), (False, "3")]
    assert models_in(root) == {"model.pt": "2", "model.pt.previous": "1"}


def test_what_cannot_be_handed_over(tmp_path: Path) -> None:
    place = write_model(tmp_path / "model.pt", "1")
    for folder, message in ((tmp_path / "none", "no such folder"), (place, "is the model in place already")):
        with pytest.raises(ConfigError, match=message):
            hand_over(folder, place)


def test_a_disk_that_refuses_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "exp"
    hand_over(write_model(tmp_path / "1", "1"), root / "model.pt")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(TrainkitError, match=r"the hand-over stopped: .*No space left") as caught:
        hand_over(write_model(tmp_path / "2", "2"), root / "model.pt")
    assert caught.value.hint == "the model that was there is kept; run it again to go on"
    assert models_in(root) == {"model.pt": "1"}


def test_recover_where_there_is_nothing_to_do(tmp_path: Path) -> None:
    place = tmp_path / "exp" / "model.pt"
    assert recover(place) is None
    hand_over(write_model(tmp_path / "1", "1"), place)
    assert recover(place) == Handover(place, None)


def leave(root: Path, moment: str) -> Path:
    """Lay out what a killed hand-over of model 3 leaves; the one in place is 2, the one before it 1."""
    place, hidden = root / "model.pt", ".model.pt.01234567."
    for number in "123":
        hand_over(write_model(root.parent / number, number), place)
    marker = json.loads((place / MARKER).read_bytes()) | {"token": "01234567"}
    (place / MARKER).write_text(json.dumps(marker))
    if moment == "exchanged":
        (root / "model.pt.previous").rename(root / f"{hidden}new")
    else:
        place.rename(root / f"{hidden}new")
        (root / "model.pt.previous").rename(place)
    write_model(root / "model.pt.previous", "1")
    for ending in ("part", "old"):
        (root / f"{hidden}{ending}").mkdir()
    return place


@pytest.mark.parametrize("moment", ["verified", "exchanged"])
@pytest.mark.parametrize("by_recover", [True, False])
def test_a_killed_hand_over_is_finished(tmp_path: Path, moment: str, by_recover: bool) -> None:
    place = leave(tmp_path / "exp", moment)
    found = recover(place) if by_recover else hand_over(tmp_path / "3", place)
    assert (found and found.place, found and found.previous) == (place, place.with_name("model.pt.previous"))
    assert models_in(tmp_path / "exp") == {"model.pt": "3", "model.pt.previous": "2"}


def test_recover_asks_about_the_model_in_its_place(tmp_path: Path) -> None:
    place = leave(tmp_path / "exp", "exchanged")
    with pytest.raises(TrainkitError, match="not good in its place: no answer"):
        recover(place, lambda folder: only("no answer"))
    assert model_in(place) == "2"
    assert recover(place) is not None
    assert models_in(tmp_path / "exp") == {"model.pt": "2", "model.pt.previous": "1"}


def test_files_with_similar_names_are_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "exp" / "model.pt"
    names = {".model.pt.0123.new", ".modelxpt.01234567.new", ".model.pt.01234567.newer", "model.pt.01234567.new"}
    for name in names:
        write_model(place.with_name(name), "theirs")
    hand_over(write_model(tmp_path / "1", "1"), place)
    assert models_in(place.parent) == {"model.pt": "1", **dict.fromkeys(names, "theirs")}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange", "renames"])
@pytest.mark.parametrize("first", ["folder", "link", "nothing"])
def test_killed_anywhere_a_complete_model_is_there_and_the_next_call_finishes(
    tmp_path: Path, way: str, first: str
) -> None:
    """`folder` and `link` with an older model as well; by renames the place is empty for an instant."""
    command = [sys.executable, str(HERE / "handover_kills.py"), str(tmp_path), way, first]
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    env["PYTHONPATH"] = str(Path(exchange.__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["kills"] > 50
