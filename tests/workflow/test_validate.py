"""What `validate` reports and when it fails, and that the training holds to the same findings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.dataset.findings import parse_limit
from trainkit.errors import ProblemsFound
from trainkit.workflow.examine import ExamineOptions
from trainkit.workflow.prepare import Settings
from trainkit.workflow.validate import ValidateOptions, Validation, require_valid, validate, write_report

if TYPE_CHECKING:
    from tests.conftest import Place

CUT = "cutoff_len=100"  # every row is longer
NOTES = (
    "note: the eval split of reward_model_full eval_strategy: evaluates every 500 steps and at the end\n"
    "note: template qwen/lora bf16: switched off: there is no GPU here\n"
    "note: this machine use_cpu: there is no GPU here: training on the CPU, slow for any real model\n"
)


def validated(place: Place, *words: str, **options: Any) -> Validation:
    return validate(Settings(base=place.folder, overrides=words), ValidateOptions(**options), lambda *_: None)


def bad_row(place: Place) -> None:
    rows = [{"conversations": [{"from": "human", "value": "How?"}, {"from": "gpt", "value": answer}]}
            for answer in ("Like this.", 3)]  # fmt: skip
    place.write("data/own.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    place.write("data/dataset_info.json", '{"own": {"file_name": "own.jsonl", "formatting": "sharegpt"}}')
    place.config("dataset: own")


def test_errors_come_first_then_warnings_then_notes(ready: Place) -> None:
    found = validated(ready, CUT, limits=[parse_limit("truncation>99%")])
    levels = [problem.level for problem in found.problems]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert set(levels) == {"error", "warning", "note"}
    with pytest.raises(ProblemsFound) as caught:
        require_valid(found)
    assert caught.value.message == "2 problems found; nothing was started"
    assert tuple(caught.value.problems) == found.problems
    require_valid(validated(ready, CUT))


def test_a_named_gpu_is_the_machine_that_is_meant(ready: Place) -> None:
    here, there = validated(ready), validated(ready, examine=ExamineOptions(gpu="a100-40", gpus=2))
    assert (here.prepared.config.values["bf16"], there.prepared.config.values["bf16"]) == (False, True)
    assert there.found.steps is not None
    assert there.found.steps.rows_per_step == 32
    assert here.found.fit is None
    assert there.found.fit is not None


def test_without_lengths_there_is_no_picture(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FORM", '{"error": "no"}')
    write_report(ready.path("r"), validated(ready).found.look, {"ok": True})
    assert {path.name: path.read_text() for path in ready.path("r").iterdir()} == {
        "validate.json": '{\n  "ok": true\n}\n'
    }


def test_train_refuses_rows_on_which_the_trainer_would_stop(ready: Place) -> None:
    bad_row(ready)
    before = ready.tree()
    done = ready.trainkit("train")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "error: train data own: the trainer fails on 1 of 2 rows (50.0 %): non-string content\n"
        "    correct or remove them; data/own.jsonl:2 (turn 2 (gpt) is a number)\n"
        "error: 1 problem found; nothing was started\n"
    )
    assert ready.calls() == []
    assert ready.tree() == before


def test_train_tells_its_warnings_and_goes_on(ready: Place) -> None:
    done = ready.trainkit("train", CUT)
    assert done.code == 0
    assert done.err.startswith("warning: train data reward_model_full: 35 of 35 rows (100.0 %) cut at cutoff_len\n")
    assert done.err.count("warning: eval data reward_model_full_eval: 5 of 5 rows") == 1
    assert [call["program"] for call in ready.calls()] == ["train"]


def test_train_refuses_warnings_when_it_is_told_to(ready: Place) -> None:
    before = ready.tree()
    done = ready.trainkit("train", CUT, "--strict")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: train data reward_model_full: 35 of 35 rows (100.0 %) cut at cutoff_len\n")
    assert done.err.splitlines()[-1] == "error: 2 problems found; nothing was started"
    assert ready.calls() == []
    assert ready.tree() == before
    assert ready.trainkit("train", "--strict").code == 0


def test_a_pipeline_tells_each_finding_once(ready: Place) -> None:
    done = ready.trainkit("pipeline", "--no-convert", CUT)
    assert done.code == 0
    before, _, after = done.err.partition("-- train\n")
    assert before.startswith("-- validate\nwarning: train data reward_model_full: 35 of 35 rows (100.0 %) cut")
    assert before.endswith(NOTES)
    assert after == "training reward_model_full; the log is WORK/logs/DATE-train/train.log\n"
