"""`train --auto`, and what is said and done when the GPU's memory was too small after all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.datatypes import Gpu, Hardware
from trainkit.errors import EnvironmentProblem, ProblemsFound
from trainkit.workflow.auto import choose_settings, predicted, smaller_hint, smaller_settings, with_changes, words_of
from trainkit.workflow.prepare import Settings, prepare

if TYPE_CHECKING:
    from tests.conftest import Place

QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
WHOLE = ("per_device_train_batch_size=16", "gradient_accumulation_steps=1")
KEYS = ("per_device_train_batch_size", "gradient_accumulation_steps", "enable_liger_kernel",
        "disable_gradient_checkpointing")  # fmt: skip


def with_gpu(monkeypatch: pytest.MonkeyPatch, memory_gib: float = 39.4) -> None:
    machine = Hardware((Gpu("NVIDIA A100-SXM4-40GB", memory_gib, (8, 0)),), 4, 16.0)
    for module in ("prepare", "suggest"):
        monkeypatch.setattr(f"trainkit.workflow.{module}.find_hardware", lambda _: machine)


@pytest.fixture
def big(ready: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder whose model is Qwen2.5-7B, on a machine with one A100 of 40 GB."""
    ready.write("model/config.json", json.dumps(QWEN_7B))
    with_gpu(monkeypatch)
    return ready


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, code: int = 1) -> None:
    log = f'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n{OOM}'
    monkeypatch.setenv("FAKE_TRAINER", json.dumps({"log": log, "exit": code, "stop_at": 0}))


def trained_with(place: Place) -> list[tuple[Any, ...]]:
    """Return what each start of the trainer was told of the keys that the memory depends on."""
    return [tuple(call["values"].get(key) for key in KEYS) for call in place.calls("train")]


def test_without_a_gpu_there_is_nothing_to_choose(ready: Place) -> None:
    done = ready.trainkit("train", "--auto")
    assert (done.code, done.out, ready.calls()) == (1, "", [])
    assert done.err == ("error: --auto: there is no NVIDIA GPU here to choose settings for\n    train without --auto\n")


def test_a_faulty_configuration_is_told_first(ready: Place) -> None:
    with pytest.raises(ProblemsFound, match="1 problem found; nothing was started"):
        choose_settings(Settings(base=ready.folder, overrides=["lora_rnk=8"]), lambda *_: None)


def test_the_trainer_gets_the_settings_that_are_put_first(big: Place) -> None:
    done = big.trainkit("train", "--auto", *WHOLE)
    assert done.code == 0
    assert done.err.startswith("--auto: disable_gradient_checkpointing=true enable_liger_kernel=true (1.")
    assert trained_with(big) == [(16, 1, True, True)]


def test_settings_that_cannot_be_better_stay(big: Place) -> None:
    words = ("disable_gradient_checkpointing=true", "enable_liger_kernel=true", *WHOLE)
    done = big.trainkit("train", "--auto", *words)
    assert done.code == 0
    assert done.err.startswith("--auto: the settings are the best already\n")
    assert trained_with(big) == [(16, 1, True, True)]


def test_nothing_that_fits_is_an_error(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, 4.0)
    with pytest.raises(EnvironmentProblem, match="--auto: no setting fits on ") as caught:
        choose_settings(Settings(base=big.folder), lambda *_: None)
    assert caught.value.hint == "trainkit suggest says what would"


def test_a_training_that_will_not_fit_is_warned_of_and_refused_when_strict(
    big: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, 18.0)
    strict = big.trainkit("train", "--strict", *WHOLE)
    assert (strict.code, big.calls()) == (1, [])
    assert strict.err.startswith("error: GPU memory: needs ")
    done = big.trainkit("train", *WHOLE)
    assert done.code == 0
    assert done.err.startswith("warning: GPU memory: needs ")


def test_out_of_memory_says_what_was_foreseen_and_what_needs_less(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out_of_memory(monkeypatch, 7)
    done = big.trainkit("train", *WHOLE)
    assert done.code == 7
    _, _, told = done.err.partition("error: ")
    title, line, log, foreseen, hint = told.splitlines()
    assert title == "training failed: the GPU is out of memory"
    assert line == f"    {OOM}"
    assert log == "    the whole log: WORK/logs/DATE-train/train.log"
    assert foreseen.startswith("    it was predicted to fit: ")
    assert foreseen.endswith(" of the 37.4 of a100-40 that can be filled")
    assert hint.startswith("    the same learning with ")
    _, _, words = hint.partition(": add ")
    values = prepare(Settings(base=big.folder, overrides=[*WHOLE, *words.split()])).config.values
    assert values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] == 16
    assert values["per_device_train_batch_size"] < 16 or values.get("enable_liger_kernel")


def test_where_nothing_is_foreseen_the_general_advice_stays(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out_of_memory(monkeypatch)
    done = ready.trainkit("train")
    assert done.code == 1
    assert done.err.endswith(
        "    the whole log: WORK/logs/DATE-train/train.log\n"
        "    halve per_device_train_batch_size and double gradient_accumulation_steps; then reduce cutoff_len, or use "
        "a DeepSpeed ZeRO config\n"
    )
    assert (predicted(None), smaller_hint(None)) == ("", "")


def test_a_training_that_was_foreseen_to_fail_says_so(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, 18.0)
    run_out_of_memory(monkeypatch)
    assert "    it was predicted to not fit: " in big.trainkit("train", *WHOLE).err


def test_auto_goes_on_once_with_less_and_the_same_rows_a_step(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out_of_memory(monkeypatch, 7)
    done = big.trainkit("train", "--auto", *WHOLE)
    assert done.code == 7  # the second failure is the end
    first, second = trained_with(big)
    assert first == (16, 1, True, True)
    assert second[0] * second[1] == 16
    assert second[0] < 16
    assert done.err.count("error: training failed: the GPU is out of memory") == 2
    assert (
        f"--auto: once more with per_device_train_batch_size={second[0]} gradient_accumulation_steps={second[1]}\n"
    ) in done.err


def test_the_second_training_may_end_well(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out_of_memory(monkeypatch)

    def only_once(*words: Any) -> Any:
        monkeypatch.delenv("FAKE_TRAINER")
        return smaller_settings(*words)

    monkeypatch.setattr("trainkit.workflow.auto.smaller_settings", only_once)
    done = big.trainkit("train", "--auto", *WHOLE)
    assert done.code == 0
    assert done.out.startswith("trained model  WORK/saves/rm\n")
    assert len(trained_with(big)) == 2


def test_where_nothing_needs_less_the_first_failure_is_the_end(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out_of_memory(monkeypatch, 7)
    monkeypatch.setattr("trainkit.workflow.auto.find_smaller", lambda _: None)
    done = big.trainkit("train", "--auto", *WHOLE)
    assert (done.code, len(trained_with(big))) == (7, 1)
    assert "once more" not in done.err
    assert done.err.endswith("or use a DeepSpeed ZeRO config\n")


def test_another_failure_is_not_tried_again(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRAINER", json.dumps({"log": "KeyError: 'x'", "exit": 3}))
    assert big.trainkit("train", "--auto", *WHOLE).code == 3
    assert len(trained_with(big)) == 1


def test_auto_in_json_is_one_document(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    done = big.trainkit("train", "--auto", "--json", *WHOLE)
    assert (done.code, done.err, done.json["ok"]) == (0, "", True)
    run_out_of_memory(monkeypatch, 7)
    failed = big.trainkit("train", "--auto", "--json", "--resume", "never", *WHOLE)
    assert (failed.code, failed.err, failed.json["ok"]) == (7, "", False)
    assert failed.json["error"].startswith("training failed: the GPU is out of memory\n")


def test_changes_are_words_that_win(ready: Place) -> None:
    changes = {"enable_liger_kernel": True, "deepspeed": "ds_z3.json", "per_device_train_batch_size": 4, "optim": None}
    assert words_of(changes) == [
        "enable_liger_kernel=true", "deepspeed=ds_z3.json", "per_device_train_batch_size=4", "optim=null",
    ]  # fmt: skip
    settings = Settings(
        options={"per_device_train_batch_size": ("--batch-size", 9)}, overrides=["enable_liger_kernel=false"]
    )
    changed = with_changes(settings, changes)
    assert tuple(changed.overrides) == ("enable_liger_kernel=false", *words_of(changes))
    values = prepare(with_changes(Settings(base=ready.folder, options=settings.options), changes)).config.values
    assert (values["per_device_train_batch_size"], values["enable_liger_kernel"]) == (4, True)
    assert values.get("optim") is None
