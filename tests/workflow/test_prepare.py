from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from trainkit.plan import arguments
from trainkit.workflow.prepare import cache_folder, trainer_python

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Place


def part(place: Place) -> Path:
    return next(place.path("data").glob("reward_model-*/train.jsonl"))


def test_a_sound_training_is_told_in_a_line_and_nothing_is_written(ready: Place) -> None:
    before = ready.tree()
    done = ready.trainkit("validate")
    ok = "ok: lora training of WORK/model on reward_model_full, 9 steps of 16 rows"
    assert (done.code, done.out.splitlines()[-1]) == (0, ok)
    assert {line.split(": ")[0] for line in done.err.splitlines() if not line.startswith("    ")} == {"note"}
    assert ready.tree() == before


def test_every_problem_is_told_at_once(ready: Place) -> None:
    ready.config(
        "learning_rat: 1.0e-4", "lora_rank: '8'", "template: llama3", "dataset: reward_model_clp", "bf16: false"
    )
    before = ready.tree()
    done = ready.trainkit("validate", "num_train_epochs=0", "output_dir=training_config.yaml", "val_size=0.1")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "error: training_config.yaml:9 lora_rank: is '8', not a whole number\n"
        "    write it without quotes\n"
        "error: command line num_train_epochs: is 0, but must be above 0\n"
        "error: training_config.yaml:8 learning_rat: LLaMA-Factory 0.9.5 has no such key\n"
        "    did you mean learning_rate?\n"
        "error: training_config.yaml:10 template: the template llama3 does not fit a model of type qwen2\n"
        "    fitting: qwen, chatml, deepseekr1, sailor, openchat; --force-template trains with it all the same\n"
        "error: command line output_dir: WORK/training_config.yaml is a file, not a folder\n"
        "    choose another output_dir\n"
        "error: dataset reward_model_clp: not in WORK/data/dataset_info.json\n"
        "    there are: reward_model_clip, reward_model_full, reward_model_clip_eval\n"
        "error: 6 problems found; nothing was started\n"
    )
    assert ready.tree() == before


def change_nothing(_: Place) -> None: ...


def forget_the_data(place: Place) -> None:
    shutil.rmtree(place.path("data"))


def empty_the_parts(place: Place) -> None:
    for file in place.path("data").glob("reward_model-*/*.jsonl"):
        file.write_bytes(b"")


def lose_a_part(place: Place) -> None:
    part(place).unlink()


def add_a_row(place: Place) -> None:
    with part(place).open("a") as rows:
        rows.write("{}\n")


def lose_the_conversion(place: Place) -> None:
    shutil.rmtree(part(place).parent)


def damage_the_registry(place: Place) -> None:
    place.write("data/dataset_info.json", "[]")


def damage_the_manifest(place: Place) -> None:
    (part(place).parent / "manifest.json").write_text("{")


def lose_the_model(place: Place) -> None:
    shutil.rmtree(place.path("model"))


def nest_the_model(place: Place) -> None:
    place.path("model").rename(place.path("x"))
    place.path("x").rename(place.folder / "Qwen")
    place.path("model").mkdir()
    place.path("Qwen").rename(place.path("model/Qwen"))


def lose_the_tokenizer(place: Place) -> None:
    place.path("model/tokenizer.json").unlink()


def damage_the_model(place: Place) -> None:
    place.write("model/config.json", "{")


def put_papers_into_the_output(place: Place) -> None:
    place.write("saves/rm/thesis.tex", "years of work")


MODEL = "error: training_config.yaml:1 model_name_or_path: "
PROBLEMS: dict[str, tuple[Callable[[Place], None], list[str], str]] = {
    "not converted yet": (
        forget_the_data, [],
        "error: dataset: WORK/data/dataset_info.json: no such file\n"
        "    convert your data first: trainkit convert finetune.jsonl\n",
    ),
    "misspelt data set": (
        change_nothing, ["-d", "reward_model_fnal"],
        "error: dataset reward_model_fnal: not in WORK/data/dataset_info.json\n"
        "    there are: reward_model_final, reward_model_full, reward_model_final_eval\n",
    ),
    "misspelt eval set": (
        change_nothing, ["eval_dataset=qqq"],
        "error: eval_dataset qqq: not in WORK/data/dataset_info.json\n    there are: reward_model_full,",
    ),
    "no data set": (
        change_nothing, ["dataset="],
        "error: dataset: no data set is named\n    name one: --dataset reward_model_full\n",
    ),
    "only a comma": (change_nothing, ["-d", ","], "error: dataset: no data set is named\n    -d NAME, or"),
    "no rows": (
        empty_the_parts, ["-d", "reward_model_clip", "eval_strategy=no"],
        "error: dataset reward_model_clip: has no rows\n    check the filters of trainkit convert\n",
    ),
    "part deleted": (
        lose_a_part, ["-d", "reward_model_clip"],
        "error: dataset reward_model_clip: WORK/data/reward_model-DIGEST/train.jsonl: cannot be read: No such "
        "file or directory\n    run trainkit convert again\n",
    ),
    "row added": (
        add_a_row,
        ["-d", "reward_model_clip"],
        "error: dataset reward_model_clip: WORK/data/reward_model-DIGEST/train.jsonl has ",
    ),
    "conversion deleted": (
        lose_the_conversion, [],
        "error: dataset reward_model_full: WORK/data/reward_model-DIGEST/train.jsonl: cannot be read: No such ",
    ),
    "registry damaged": (damage_the_registry, [], "error: dataset: WORK/data/dataset_info.json: is not a JSON"),
    "manifest damaged": (
        damage_the_manifest, [],
        "error: dataset reward_model_full: WORK/data/reward_model-DIGEST/manifest.json:1:2: not valid JSON",
    ),
    "no model": (
        lose_the_model, [],
        MODEL + "model folder WORK/model: there is no such folder\n"
        "    download the model there, or set model_name_or_path\n",
    ),
    "model one folder deeper": (
        nest_the_model, [],
        MODEL + "WORK/model: the model's files are in the sub-folder Qwen\n"
        "    move the files up into WORK/model, or set model_name_or_path: WORK/model/Qwen\n",
    ),
    "no tokenizer": (lose_the_tokenizer, [], MODEL + "WORK/model: there is no tokenizer (tokenizer.json)\n"),
    "model damaged": (damage_the_model, [], MODEL + "WORK/model/config.json:1:2: not valid JSON"),
    "template": (
        change_nothing, ["template=mistral"],
        "error: command line template: the template mistral does not fit a model of type qwen2\n",
    ),
    "unknown template": (
        change_nothing, ["template=qwenn"], "error: command line template: LLaMA-Factory has no template 'qwenn'\n",
    ),
    "misspelt key": (
        change_nothing, ["gradient_accumulation_step=2"],
        "error: command line gradient_accumulation_step: LLaMA-Factory 0.9.5 has no such key\n"
        "    did you mean gradient_accumulation_steps?\n",
    ),
    "epochs": (change_nothing, ["-e", "-1"], "error: --epochs num_train_epochs: is -1.0, but must be above 0\n"),
    "batch size": (
        change_nothing, ["-bs", "0"],
        "error: --batch-size per_device_train_batch_size: is 0, but must be above 0\n",
    ),
    "refused together": (
        change_nothing, ["finetuning_type=full", "quantization_bit=4"],
        "error: command line quantization_bit: a quantized model can be trained with lora or oft only\n",
    ),
    "somebody's output": (
        put_papers_into_the_output, [],
        "error: training_config.yaml:7 output_dir: WORK/saves/rm: is not empty and holds no training\n"
        "    choose an empty or new folder\n",
    ),
    "output is the working folder": (
        change_nothing, ["output_dir=."],
        "error: command line output_dir: WORK: is or holds what this training reads (model_name_or_path, dataset_dir)",
    ),
    "output is the model": (
        change_nothing, ["output_dir=model"],
        "error: command line output_dir: WORK/model: is or holds what this training reads (model_name_or_path)\n"
        "    choose an empty or new folder\n",
    ),
    "output holds the data": (
        change_nothing, ["output_dir=data"],
        "error: command line output_dir: WORK/data: is or holds what this training reads (dataset_dir)\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_problem_is_told_with_its_place_and_the_next_step(ready: Place, case: str) -> None:
    prepare, words, told = PROBLEMS[case]
    digest = part(ready).parent.name.rpartition("-")[2]
    prepare(ready)
    before = ready.tree()
    done = ready.trainkit("validate", *words)
    errors = done.err.replace(digest, "DIGEST").partition("note: ")[0].partition("warning: ")[0]
    assert (done.code, done.out) == (1, "")
    assert errors.startswith(told)
    assert done.err.splitlines()[-1] == "error: 1 problem found; nothing was started"
    assert ready.tree() == before


def broken_yaml(place: Place) -> None:
    place.write("training_config.yaml", "a: [1\nb: 2\n")


@pytest.mark.parametrize(
    ("prepare", "words", "code", "told"),
    [
        (
            lambda place: place.path("training_config.yaml").unlink(), [], 1,
            "error: training_config.yaml: no such file\n    trainkit init writes one to start from\n",
        ),
        (change_nothing, ["-c", "other.yaml"], 1, "error: other.yaml: no such file\n    trainkit init"),
        (change_nothing, ["-c", "data"], 1, "error: WORK/data: cannot be read: Is a directory\n"),
        (broken_yaml, [], 1, "error: WORK/training_config.yaml:2:2: not valid YAML: expected ',' or ']'"),
        (
            change_nothing, ["learning_rate"], 2,
            "error: 'learning_rate' is not of the form key=value\n    for example learning_rate=2e-4\n",
        ),
        (change_nothing, ["=3"], 2, "error: '=3' is not of the form key=value\n"),
        (change_nothing, ["lora_rank=[1"], 2, "error: 'lora_rank=[1': the value cannot be read: "),
    ],
)  # fmt: skip
def test_what_cannot_be_read_ends_the_check(
    ready: Place, prepare: Callable[[Place], None], words: list[str], code: int, told: str
) -> None:
    prepare(ready)
    done = ready.trainkit("validate", *words)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(told)


def test_a_template_can_be_forced(ready: Place) -> None:
    done = ready.trainkit("validate", "--force-template", "template=mistral")
    assert done.code == 0
    assert done.err.startswith(
        "warning: command line template: the template mistral does not fit a model of type qwen2\n"
    )


def test_json_holds_all_and_is_alone(ready: Place) -> None:
    done = ready.trainkit("validate", "--json", "-d", "reward_model_clip")
    assert (done.code, done.err) == (0, "")
    assert done.json["ok"] is True
    assert done.json["config"]["dataset"] == "reward_model_clip"
    assert done.json["origin"]["dataset"] == "--dataset"
    assert {problem["level"] for problem in done.json["problems"]} == {"note"}
    refused = ready.trainkit("validate", "--json", "lora_rnk=8")
    assert (refused.code, refused.err) == (1, "")
    assert refused.json["problems"][0] == {
        "level": "error",
        "where": "command line lora_rnk",
        "message": "LLaMA-Factory 0.9.5 has no such key",
        "hint": "did you mean lora_rank?",
    }
    assert (refused.json["ok"], refused.json["error"]) == (False, "1 problem found; nothing was started")


def test_no_report_shows_a_secret(ready: Place) -> None:
    ready.config("swanlab_api_key: hush-1", "hf_hub_token: hush-2", "hub_token: hush-3")
    for words in (["validate"], ["validate", "--json"], ["validate", "--json", "x=1"], ["train", "--dry-run"],
                  ["train", "--dry-run", "--json"]):  # fmt: skip
        done = ready.trainkit(*words)
        assert "hush" not in done.out + done.err


EVAL_CHOICES: list[tuple[list[str], list[str], str | None, str | None]] = [
    ([], [], "reward_model_full_eval", "steps"),
    ([], ["-d", "reward_model_clip,reward_model_final"], "reward_model_clip_eval,reward_model_final_eval", "steps"),
    ([], ["-d", "reward_model_qa_1"], None, None),  # one task is on one side
    (["eval_strategy: epoch"], [], "reward_model_full_eval", "epoch"),
    (["eval_strategy: no"], [], None, "no"),
    (["eval_strategy: 'no'"], [], None, "no"),
    (["val_size: 0.1"], [], None, "steps"),
    (["eval_dataset: reward_model_clip_eval"], [], "reward_model_clip_eval", "steps"),
    ([], ["eval_strategy=no"], None, "no"),
]


@pytest.mark.parametrize(("lines", "words", "dataset", "strategy"), EVAL_CHOICES)
def test_the_eval_side_is_used_unless_the_user_says_otherwise(
    ready: Place, lines: list[str], words: list[str], dataset: str | None, strategy: str | None
) -> None:
    ready.config(*lines)
    registered = json.loads(ready.path("data/dataset_info.json").read_text())
    if "reward_model_qa_1" in words and "reward_model_qa_1" not in registered:
        words = ["-d", "other"]
        ready.write("data/other.jsonl", "{}\n")
        registered["other"] = {"file_name": "other.jsonl"}
        ready.write("data/dataset_info.json", json.dumps(registered))
    config = ready.trainkit("validate", "--json", *words).json["config"]
    assert (config.get("eval_dataset"), str(config.get("eval_strategy") or "no")) == (dataset, strategy or "no")


def test_a_data_set_of_somewhere_else_is_left_to_the_trainer(ready: Place) -> None:
    ready.write("data/dataset_info.json", '{"far": {"hf_hub_url": "a/b"}}')
    assert "note: dataset far: comes from a hub and was not looked at" in ready.trainkit("validate", "-d", "far").err
    shutil.rmtree(ready.path("data"))
    assert ready.trainkit("validate", "dataset_dir=REMOTE:a/b", "dataset=[x, y]").code == 0


def test_without_the_trainer_the_way_to_get_it_is_told(
    ready: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("trainkit.workflow.prepare.load_arguments", arguments.load_arguments)
    monkeypatch.setattr("trainkit.workflow.prepare.trainer_python", lambda: tmp_path / "bin" / "python")
    done = ready.trainkit("validate")
    assert done.code == 1
    assert done.err == (
        f"error: LLaMA-Factory is not installed for {tmp_path / 'bin' / 'python'}\n"
        "    ./run_training.sh --install-deps   or   pip install 'trainkit[train]'\n"
    )


def test_the_trainer_is_this_environment_and_its_answers_are_kept_outside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    assert str(trainer_python()) == sys.executable
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" / "trainkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "trainkit"


def test_a_template_that_follows_the_data(ready: Place) -> None:
    model = ready.path("model/config.json")
    model.write_text(json.dumps({**json.loads(model.read_text()), "model_type": "qwen3", "head_dim": 16}))
    config = ready.path("training_config.yaml").read_text()
    ready.write("training_config.yaml", config.replace("template: qwen\n", ""))
    report = ready.trainkit("train", "--dry-run", "--json").json
    assert (report["config"]["template"], report["origin"]["template"]) == ("qwen3_nothink", "the training data")
    data = part(ready)
    answer = json.dumps("<think>\nIt is near.\n</think>\n\n{}")
    data.write_text(data.read_text().replace('"from":"gpt","value":', f'"from":"gpt","value":{answer},"was":', 1))
    assert ready.trainkit("train", "--dry-run", "--json").json["config"]["template"] == "qwen3"
    ready.config("template: qwen3_nothink")
    assert ready.trainkit("train", "--dry-run", "--json").json["config"]["template"] == "qwen3_nothink"
