from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from trainkit.errors import ConfigError
from trainkit.workflow.pipeline import pick_prompt

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Place

ROWS = "".join(
    json.dumps(
        {
            "conversations": [{"from": "human", "value": f"Judge {number}."}, {"from": "gpt", "value": "{}"}],
            "metadata": {"evaluation_type": "clip", "model_name": "kimi", "task_id": f"qa_{number}"},
        }
    )
    + "\n"
    for number in range(3)
)


def steps(err: str) -> list[str]:
    return [line.removeprefix("-- ") for line in err.splitlines() if line.startswith("-- ")]


def test_the_steps_come_one_after_another(ready: Place) -> None:
    ready.write("finetune.jsonl", ROWS)
    done = ready.trainkit("pipeline", "-d", "reward_model_full", "-e", "5", "--export")
    assert done.code == 0
    assert steps(done.err) == ["convert finetune.jsonl", "validate", "train"]
    headings = [
        "reward_model_full",
        "ok: lora training",
        "trained model  WORK/saves/rm",
        "exported model WORK/exported",
    ]
    positions = [done.out.index(words) for words in headings]
    assert positions == sorted(positions)
    assert [call["program"] for call in ready.calls()] == ["train", "export", "verify"]
    assert ready.calls()[0]["values"]["num_train_epochs"] == 5.0
    assert sum(file["rows"] for file in ready.manifest()["data"]) == 3
    # what validate has said is not said again by train
    assert done.err.count("use_cpu") == 1


def test_other_evaluations_can_be_named_and_data_goes_where_the_configuration_says(ready: Place) -> None:
    ready.write("mine.jsonl", ROWS)
    done = ready.trainkit("pipeline", "-i", "mine.jsonl", "dataset_dir=./elsewhere")
    assert done.code == 0
    assert steps(done.err)[0] == "convert mine.jsonl"
    assert ready.path("elsewhere/dataset_info.json").exists()


def test_a_named_model_must_not_be_converted_for(ready: Place) -> None:
    done = ready.trainkit("pipeline", "--no-convert")
    assert (done.code, steps(done.err)) == (0, ["validate", "train"])
    assert [call["program"] for call in ready.calls()] == ["train"]


@pytest.mark.parametrize("words", [["--validate-only"], ["--validate-only", "--export", "-i", "finetune.jsonl"]])
def test_validate_only_neither_converts_nor_trains(ready: Place, words: list[str]) -> None:
    ready.write("finetune.jsonl", "not JSON\n")
    before = ready.tree()
    done = ready.trainkit("pipeline", *words)
    ok = "ok: lora training of WORK/model on reward_model_full, 9 steps of 16 rows"
    assert (done.code, done.out.splitlines()[-1]) == (0, ok)
    assert (steps(done.err), ready.tree(), ready.calls()) == (["validate"], before, [])
    assert ready.trainkit("pipeline", *words, "lora_rnk=1").code == 1


def test_missing_evaluations_are_explained(ready: Place) -> None:
    before = ready.tree()
    for words, name in (([], "finetune.jsonl"), (["--input", "x/y.jsonl"], "x/y.jsonl")):
        done = ready.trainkit("pipeline", *words)
        assert (done.code, done.out, ready.tree()) == (1, "", before)
        assert done.err == (
            f"-- convert {name}\nerror: {name}: no such file\n"
            "    put your evaluations there, name them with --input, or --no-convert\n"
        )


def test_each_step_must_end_well(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ready.write("finetune.jsonl", "{}\n")
    done = ready.trainkit("pipeline")
    assert (done.code, steps(done.err)) == (1, ["convert finetune.jsonl"])
    done = ready.trainkit("pipeline", "--no-convert", "template=nope")
    assert (done.code, steps(done.err)) == (1, ["validate"])
    monkeypatch.setenv("FAKE_TRAINER", '{"exit": 5}')
    done = ready.trainkit("pipeline", "--no-convert", "--export")
    assert (done.code, [call["program"] for call in ready.calls()]) == (5, ["train"])


def test_wrong_words_end_it_before_the_conversion(ready: Place) -> None:
    ready.write("finetune.jsonl", ROWS)
    before = ready.tree()
    for words in (["epochs"], ["--monitor", "mlflow"]):
        assert ready.trainkit("pipeline", *words).code == 2
    assert ready.tree() == before


def test_resume_and_template_reach_the_training(ready: Place) -> None:
    assert ready.trainkit("pipeline", "--no-convert").code == 0
    assert ready.trainkit("pipeline", "--no-convert").code == 1
    done = ready.trainkit("pipeline", "--no-convert", "--resume", "never", "--force-template", "template=llama3")
    assert done.code == 0
    assert ready.path("saves/rm.previous").is_dir()


def test_the_demo_goes_the_whole_way_and_shows_where_everything_is(place: Place) -> None:
    for _ in range(2):  # the second time keeps the sample and the model
        done = place.trainkit("pipeline", "--demo", "--monitor", "none")
        assert done.code == 0
        assert steps(done.err) == [
            "init --demo", "convert finetune.jsonl", "validate", "train", "export",
            "one answer of the exported model (it is tiny: do not expect sense)",
        ]  # fmt: skip
        shown = dict(line.split(maxsplit=1) for line in done.out.replace("  ", " ").splitlines() if "WORK" in line)
        assert "trained model  WORK/demo/saves/reward_model_training\n" in done.out
        assert "exported model WORK/demo/exported_model\n" in done.out
        assert "loss curve     WORK/demo/saves/reward_model_training/training_loss.png\n" in done.out
        assert "log            WORK/demo/logs/DATE-train" in done.out
        assert shown
        assert done.out.endswith("the answer\n")
    assert sorted(path.name for path in place.folder.iterdir()) == ["demo"]
    train, _, _, chat = place.calls()[:4]
    assert train["values"]["eval_dataset"] == "reward_model_full_eval"
    assert (chat["model"], chat["adapter"]) == (str(place.path("demo/exported_model")), None)
    assert chat["generation"] == {"max_new_tokens": 60, "do_sample": False}
    assert chat["message"].startswith("[EVAL_TYPE: ")
    assert 0 < len(chat["message"]) <= 1500


def test_the_demo_ends_as_its_last_step(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CHAT_EXIT", "9")
    assert place.trainkit("pipeline", "--demo", "--monitor", "none").code == 9


def test_a_prompt_for_show_is_short(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"x": {"file_name": "x.jsonl"}}')
    rows = [{"conversations": [{"value": text}]} for text in ("long" * 500, "short", "shorter")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pick_prompt(tmp_path, "x") == "short"
    (tmp_path / "x.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(ConfigError, match="x: has no prompt of at most 1500 characters"):
        pick_prompt(tmp_path, "x")


def test_a_missing_configuration_is_written_and_used(ready: Place) -> None:
    ready.write("finetune.jsonl", ROWS)
    ready.path("training_config.yaml").unlink()
    assert ready.trainkit("pipeline", "--validate-only").code == 1
    assert not ready.path("training_config.yaml").exists(), "validate writes nothing"
    done = ready.trainkit("pipeline")
    assert done.code == 0
    assert "training_config.yaml: change it for your training" in done.err
    assert "lora_rank: 64" in ready.path("training_config.yaml").read_text(encoding="utf-8")
    assert ready.trainkit("pipeline", "-c", "mine.yaml").code == 1
    assert not ready.path("mine.yaml").exists(), "a named configuration is the user's"
