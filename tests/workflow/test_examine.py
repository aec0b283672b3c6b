"""What is found beyond the configuration: disks, the resume, the place on the GPU."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.datatypes import Problem
from trainkit.plan.disk import Volume
from trainkit.plan.versions import PINS
from trainkit.workflow.examine import Examination, ExamineOptions, examine
from trainkit.workflow.prepare import Settings, prepare

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Place

GIB = 2**30
QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip


def found(place: Place, *words: str, **options: Any) -> Examination:
    settings = Settings(base=place.folder, overrides=words)
    return examine(settings, prepare(settings), ExamineOptions(**options))


def told(examination: Examination) -> list[Problem]:
    return list(examination.problems)


@pytest.fixture
def big(ready: Place) -> Place:
    """A folder whose model is Qwen2.5-7B, without its weights."""
    ready.write("model/config.json", json.dumps(QWEN_7B))
    return ready


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The free GiB of the disks: a folder's disk is found by the folder's name."""
    free: dict[str, float] = {"rm": 1000.0, "exported": 1000.0}

    def volume(folder: Path) -> Volume:
        return Volume(list(free).index(folder.name), int(free[folder.name] * GIB))

    monkeypatch.setattr("trainkit.workflow.examine.find_volume", volume)
    return free


def test_room_enough_is_no_finding(big: Place, disks: dict[str, float]) -> None:
    result = found(big, export=True)
    assert told(result) == []
    assert result.steps is not None
    assert (result.steps.total, result.steps.rows_per_step) == (9, 16)
    assert result.fit is None


@pytest.mark.parametrize(
    ("free", "words", "level", "message"),
    [
        (2.6, [], "warning", "takes 2.4 GiB of the 2.6 GiB that are free on its disk"),
        (2.0, [], "error", "needs 2.4 GiB and 2.0 GiB are free on its disk"),
        (100.0, ["finetuning_type=full"], "error", "needs 113.5 GiB and 100.0 GiB are free on its disk"),
        (2.0, ["lora_target=q_proj,v_proj"], "", ""),
    ],
)
def test_a_disk_that_is_too_small_is_told(
    big: Place, disks: dict[str, float], free: float, words: list[str], level: str, message: str
) -> None:
    disks["rm"] = free
    problems = [(each.level, each.where, each.message.partition(" (")[0]) for each in told(found(big, *words))]
    assert problems == ([(level, "output_dir", message)] if level else [])


def test_checkpoints_that_are_there_need_no_room_twice(
    big: Place, disks: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("save_steps=1", "max_steps=3", "save_total_limit=8")
    stop_at(big, monkeypatch, 2, *words, total=3)
    disks["rm"] = 4.0
    assert told(found(big, *words)) == []
    (problem,) = told(found(big, *words, resume="never"))  # an earlier training is set aside, and its files stay
    assert (problem.level, problem.where) == ("error", "output_dir")


def test_an_export_needs_its_own_room(big: Place, disks: dict[str, float]) -> None:
    disks["exported"] = 10.0
    assert told(found(big)) == []
    (problem,) = told(found(big, export=True))
    assert (problem.level, problem.where) == ("error", "export_dir")
    big.config("export_dir:")
    disks["rm"] = 17.0  # the export goes to the same disk when no other place is named
    (problem,) = told(found(big, export=True))
    assert (problem.level, problem.where) == ("warning", "output_dir")


def stop_at(place: Place, monkeypatch: pytest.MonkeyPatch, step: int, *words: str, total: int = 9) -> None:
    monkeypatch.setenv("FAKE_TRAINER", json.dumps({"stop_at": step, "exit": 1, "total": total}))
    assert place.trainkit("train", *words).code == 1


def test_a_resume_is_checked_as_it_would_happen(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(ready, monkeypatch, 2)
    assert told(found(ready)) == []  # the eval data are no part of what is resumed
    assert told(found(ready, "eval_strategy=no")) == []
    longer = "checkpoint-2 was on its way to step 9, this training to 15"
    assert [(each.level, each.message) for each in told(found(ready, "num_train_epochs=5"))] == [("note", longer)]
    (end,) = told(found(ready, "max_steps=2"))
    assert (end.level, ready.tidy(end.message)) == ("warning", "WORK/saves/rm: already finished at step 2 of 9")
    assert told(found(ready, "max_steps=2", resume="never")) == []


def test_changed_data_under_a_resume_are_told(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(ready, monkeypatch, 2)
    file = next(ready.path("data").glob("reward_model-*/train.jsonl"))
    file.write_bytes(file.read_bytes().replace(b"Judge step 21", b"Judge stop 21"))
    (problem,) = told(found(ready))
    assert (problem.level, problem.where) == ("warning", "dataset")
    assert problem.message == f"not what checkpoint-2 was trained on: {file} has changed"


def test_what_the_training_is_planned_to_be_reaches_the_check(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(ready, monkeypatch, 2, "-d", "reward_model_clip")
    seen: list[Any] = []

    def check(checkpoint: Any, planned: Any, manifest: Any) -> list[Problem]:
        seen.append((checkpoint.step, planned, manifest["run_id"]))
        return [Problem("learning_rate", "has no effect", "", "warning")]

    monkeypatch.setattr("trainkit.workflow.examine.check_resume", check)
    result = found(ready, "dataset=reward_model_clip", "learning_rate=3e-5", "ignore_data_skip=true", gpus=2, gpu="24")
    assert Problem("learning_rate", "has no effect", "", "warning") in result.problems
    ((step, planned, run_id),) = seen
    assert step == 2
    assert run_id == ready.run().name
    file = next(ready.path("data").glob("reward_model-*/train.jsonl"))
    assert (planned.total_steps, planned.learning_rate, planned.processes) == (3, 3e-5, 2)
    assert (planned.batch_size, planned.accumulation) == (2, 8)
    assert (planned.deepspeed, planned.ignore_data_skip, planned.files) == (False, True, (file,))
    assert planned.splits == {"reward_model_clip": "train[0:16]"}


@pytest.mark.parametrize(
    ("words", "resume", "message"),
    [
        ([], None, "WORK/saves/rm: already finished at step 3 of 3"),
        (["dataset=reward_model_clip", "num_train_epochs=9"], None,
         "WORK/saves/rm: holds a training that is not this one (dataset was reward_model_full)"),
        ([], "nowhere", "resume_from_checkpoint: WORK/nowhere: no such folder"),
    ],
)  # fmt: skip
def test_a_resume_that_would_be_refused_is_a_warning(
    trained: Place, words: list[str], resume: str | None, message: str
) -> None:
    (problem,) = told(found(trained, *words, resume=resume))
    assert (problem.level, problem.where) == ("warning", "resume_from_checkpoint")
    assert trained.tidy(problem.message) == message
    assert problem.hint


def test_a_training_that_fits_is_no_finding(big: Place) -> None:
    result = found(big, gpu="a100-40")
    assert told(result) == []
    assert result.fit is not None
    assert result.fit.advice.given.fits
    assert result.fit.task.lengths == result.look.lengths  # the rows' own lengths, not the worst case


def test_one_that_does_not_is_a_warning_with_what_would(big: Place) -> None:
    (problem,) = told(found(big, "per_device_train_batch_size=16", "gradient_accumulation_steps=1", gpu="20"))
    assert (problem.level, problem.where) == ("warning", "GPU memory")
    needs = re.fullmatch(
        r"needs (\S+) GiB, and 19\.0 of 20 GiB can be filled \(the peak is at backward, loss\)", problem.message
    )
    would = re.fullmatch(r"(.*) needs (\S+) GiB: train --auto takes it, trainkit suggest shows more", problem.hint)
    assert needs
    assert would
    assert float(would[2]) < 19.0 < float(needs[1])
    better = found(big, *would[1].split(), gpu="20")
    assert told(better) == []
    assert better.fit is not None
    assert f"{better.fit.advice.given.memory.total / GIB:.1f}" == would[2]


def test_nothing_near_is_said_as_well(big: Place) -> None:
    (problem,) = told(found(big, gpu="4"))
    assert problem.level == "warning"
    assert problem.message.startswith("needs 18.0 GiB, and 3.8 of 4 GiB can be filled")
    assert problem.hint == "trainkit suggest shows what comes nearest"


def test_a_model_of_unknown_type_is_a_note(ready: Place) -> None:
    ready.write("model/config.json", '{"model_type": "zebra"}')
    result = found(ready, gpu="24")
    (problem,) = told(result)
    assert (problem.level, problem.where) == ("note", "GPU memory")
    assert problem.message.startswith("cannot be foreseen: ")
    assert "zebra" in problem.message
    assert result.fit is None


def test_a_model_that_is_not_here_has_no_sizes(ready: Place) -> None:
    assert told(found(ready, "model_name_or_path=somebody/some-model")) == []


def test_a_config_json_without_sizes_is_a_note(ready: Place) -> None:
    ready.write("model/config.json", '{"model_type": "qwen2"}')
    assert told(found(ready)) == []
    (problem,) = told(found(ready, gpu="24"))
    assert (problem.level, problem.where) == ("note", "GPU memory")


def test_without_a_registry_there_is_nothing_more_to_say(ready: Place) -> None:
    ready.path("data/dataset_info.json").unlink()
    assert told(found(ready)) == []


def test_the_registry_is_checked(ready: Place) -> None:
    registry = ready.path("data/dataset_info.json")
    entries = json.loads(registry.read_text())
    entries["reward_model_full"]["formating"] = "sharegpt"
    entries["reward_model_full"].pop("formatting")
    registry.write_text(json.dumps(entries))
    problems = told(found(ready))
    assert any("formating" in each.message and each.where.startswith("dataset_info.json") for each in problems)


def test_with_errors_only_the_data_are_looked_at(ready: Place) -> None:
    result = found(ready, "lora_rnk=8", "dataset=reward_model_clip", gpu="4")
    assert [each.name for each in result.look.sets] == ["reward_model_clip", "reward_model_clip_eval"]
    assert (result.steps, result.fit, told(result)) == (None, None, [])


def test_a_damaged_record_of_the_earlier_run_is_a_warning(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(ready, monkeypatch, 2)
    (ready.run() / "run.json").write_text("{")
    (problem,) = told(found(ready))
    assert (problem.level, problem.where) == ("warning", "resume_from_checkpoint")
    assert "run.json" in problem.message


def test_variants_that_share_a_file_are_no_change(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    both = "reward_model_clip,reward_model_final"
    stop_at(ready, monkeypatch, 2, "-d", both)
    assert told(found(ready, f"dataset={both}")) == []
    entries = json.loads(ready.path("data/dataset_info.json").read_text())
    entries["reward_model_clip"]["split"] = "train[0:8]"
    ready.write("data/dataset_info.json", json.dumps(entries))
    (problem,) = [each for each in told(found(ready, f"dataset={both}")) if each.level != "note"]
    assert problem.message == "not what checkpoint-2 was trained on: reward_model_clip takes other rows of its file"


def test_faults_of_entries_that_are_not_trained_on_are_named_in_a_note(ready: Place) -> None:
    registry = ready.path("data/dataset_info.json")
    entries = json.loads(registry.read_text())
    entries |= {"b": {"file_name": 3}, "a": {"file_name": "nowhere.jsonl", "colums": {}}}
    registry.write_text(json.dumps(entries))
    message, hint = "other entries have faults too: a, b", "trainkit validate -d NAME tells them"
    assert told(found(ready)) == [Problem("dataset_info.json", message, hint, "note")]


def test_packages_that_do_not_work_together_are_said(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict(PINS) | {"torchaudio": "2.10.0"}
    del found["deepspeed"]
    monkeypatch.setattr("trainkit.workflow.examine.installed_versions", lambda *_: found)
    done = ready.trainkit("validate")
    assert done.code == 1
    assert done.err.startswith(
        "error: torchaudio: 2.10.0 does not belong to torch 2.11.0, which goes with torchaudio 2.11\n"
    )
    assert "deepspeed" not in done.err


def test_the_disks_of_another_machine_are_not_judged(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainkit.workflow.examine.find_volume", lambda _: Volume(1, 2**20))
    assert ready.trainkit("validate").code == 1
    assert ready.trainkit("validate", "--gpu", "a100-40").code == 0
