from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.datatypes import Gpu, Hardware
from trainkit.errors import ConfigError, EnvironmentProblem, TrainkitError, UsageProblem
from trainkit.plan.architecture import architecture_of
from trainkit.plan.gpus import find_gpu
from trainkit.plan.padding import Lengths
from trainkit.plan.verdict import Machine
from trainkit.plan.yamlfile import load_yaml
from trainkit.workflow.prepare import Settings, build
from trainkit.workflow.suggest import SuggestOptions, find_machine, hardware_of, suggest
from trainkit.workflow.suggested_file import write_suggestion
from trainkit.workflow.suggestion_report import report
from trainkit.workflow.trace import config_of, run_traces

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Place
    from trainkit.plan.arguments import TrainerSchema
    from trainkit.workflow.suggestion import Suggestion

QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
LIGER = {"enable_liger_kernel": True}
FAST = {"disable_gradient_checkpointing": True, "enable_liger_kernel": True}
TRACER = "trainkit.workflow.trace.run_traces"


@pytest.fixture
def big(ready: Place, monkeypatch: pytest.MonkeyPatch, trainer_schema: TrainerSchema) -> Place:
    """A folder whose model is Qwen2.5-7B, of which there is the config.json only."""
    monkeypatch.setattr("trainkit.workflow.suggest.load_arguments", lambda *_: trainer_schema)
    for file in ready.path("model").iterdir():
        file.unlink()
    ready.write("model/config.json", json.dumps(QWEN_7B))
    return ready


def ask(place: Place, *words: str, lengths: Lengths | None = None, **options: Any) -> Suggestion:
    settings = Settings(overrides=words, base=place.folder)
    return suggest(settings, SuggestOptions(**({"gpu": "a100-80"} | options)), lengths)


def test_the_best_for_a_named_gpu_needs_neither_weights_nor_a_gpu(big: Place) -> None:
    before = big.tree()
    found = ask(big)
    assert found.task.machine == Machine(find_gpu("a100-80"))
    assert (found.task.effective_batch, found.task.cutoff_len) == (16, 4096)
    assert found.config.values["bf16"] is True
    assert found.advice.candidates[0].changes == FAST
    assert [note.where for note in found.notes] == ["cutoff_len"]
    assert big.tree() == before


@pytest.mark.parametrize(
    ("options", "words", "given"),
    [
        ({"gpus": 4}, (), (2, 8, 4, None, True)),
        ({}, ("per_device_train_batch_size=1",), (1, 8, 1, None, True)),
        ({}, ("deepspeed=ds_z3.json",), (2, 8, 1, 3, True)),
        ({"expandable_segments": False}, (), (2, 8, 1, None, False)),
    ],
)
def test_what_is_said_is_what_is_judged(
    big: Place, options: dict[str, Any], words: tuple[str, ...], given: tuple[Any, ...]
) -> None:
    setup = ask(big, *words, **options).advice.given.setup
    found = (setup.micro_batch, setup.accumulation, setup.world, setup.zero_stage, setup.expandable_segments)
    assert found == given


def test_the_target_of_a_step_can_be_set(big: Place) -> None:
    first = ask(big, effective_batch=32).advice.candidates[0].verdict.setup
    assert first.micro_batch * first.accumulation == 32


def test_a_model_can_be_named_as_on_the_hub(big: Place) -> None:
    found = ask(big, "model_name_or_path=Qwen/Qwen2.5-7B-Instruct")
    assert found.advice.candidates[0].changes == FAST
    assert found.task.architecture == architecture_of(QWEN_7B)


def test_a_model_of_unknown_size_is_refused(big: Place) -> None:
    with pytest.raises(ConfigError) as caught:
        ask(big, "model_name_or_path=./nowhere")
    assert caught.value.message == (
        f"model_name_or_path {big.folder}/nowhere: no config.json there, so its sizes are not known"
    )


@pytest.mark.parametrize(
    ("gpus", "options", "machine"),
    [
        ((Gpu("NVIDIA H200", 140.4, (9, 0)),) * 4, SuggestOptions(), Machine(find_gpu("h200"), 4, here=True)),
        ((Gpu("NVIDIA H200", 140.4, (9, 0)),) * 4, SuggestOptions(gpus=2), Machine(find_gpu("h200"), 2, here=True)),
        (
            (Gpu("NVIDIA A100 80GB PCIe", 80.0, (8, 0)), Gpu("Tesla T4", 15.0, (7, 5))),
            SuggestOptions(),
            Machine(find_gpu("t4"), 2, here=True),
        ),
        ((), SuggestOptions(gpu="h100", gpus=8), Machine(find_gpu("h100"), 8)),
        ((), SuggestOptions(gpu="h100"), Machine(find_gpu("h100"), 1)),
    ],
)  # fmt: skip
def test_this_machine_counts_unless_another_is_named(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...], options: SuggestOptions, machine: Machine
) -> None:
    monkeypatch.setattr("trainkit.workflow.suggest.find_hardware", lambda _: Hardware(gpus, 8, 64.0))
    assert find_machine(options) == machine


def test_without_a_gpu_one_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainkit.workflow.suggest.find_hardware", lambda _: Hardware((), 8, 64.0))
    with pytest.raises(EnvironmentProblem) as caught:
        find_machine(SuggestOptions())
    assert (caught.value.message, caught.value.hint) == (
        "there is no NVIDIA GPU here", "name the one that is meant: --gpu a100-40",
    )  # fmt: skip
    with pytest.raises(UsageProblem, match="--gpus 0: must be 1 or more"):
        find_machine(SuggestOptions(gpu="h100", gpus=0))


def test_keys_outside_the_memory_model_are_named(big: Place) -> None:
    notes = [note for note in ask(big, "use_galore=true", "torch_compile=true").notes if note.level == "warning"]
    assert [(note.where, note.message) for note in notes] == [
        ("command line use_galore", "is not part of the memory model"),
        ("command line torch_compile", "is not part of the memory model"),
    ]


def test_lengths_of_the_rows_are_used(big: Place) -> None:
    found = ask(big, lengths=Lengths.of([504, 504, 900]))
    assert (found.advice.given.setup.seq_tokens, found.advice.given.setup.masked) == (904, True)
    assert found.advice.given.efficiency < 1
    equal = ask(big, lengths=Lengths.of([504, 504]))
    assert (equal.advice.given.setup.seq_tokens, equal.advice.given.setup.masked) == (504, False)
    grouped = ask(big, "train_sampling_strategy=group_by_length", lengths=Lengths.of([100, 900]))
    assert grouped.task.grouped


# --- the report


def test_the_report_is_json_with_every_figure(big: Place) -> None:
    found = report(ask(big))
    assert json.loads(json.dumps(found)) == found
    assert (found["ok"], found["given"]["fits"], found["nearest"]) == (True, True, None)
    assert found["machine"] == {
        "gpu": "a100-80",
        "gpus": 1,
        "memory": int(79.2 * 2**30),
        "usable": int(int(79.2 * 2**30) * 0.95),
    }
    first = found["candidates"][0]
    assert first["changes"] == FAST
    assert first["reasons"].keys() == FAST.keys()
    assert all(reason["does"] for reason in first["reasons"].values())
    assert first["terms"].keys() == first["why"].keys() == found["given"]["terms"].keys()
    assert first["margin"] == found["machine"]["usable"] - first["total"]
    assert found["options"][0]["gain"] >= 1.03
    assert found["given"]["setup"]["micro_batch"] == 2


def test_when_nothing_fits_the_nearest_is_reported(big: Place) -> None:
    found = report(ask(big, gpu="t4"))
    assert (found["ok"], found["candidates"]) == (False, [])
    assert found["nearest"]["fits"] is False
    assert found["nearest"]["reasons"]["per_device_train_batch_size"]["does"] == (
        "an optimizer step holds 16 rows as 1 x 16"
    )


def test_a_missing_package_is_said(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ask(big)
    without = replace(found, task=replace(found.task, packages=()))
    reasons = report(without)["candidates"][0]["reasons"]
    assert reasons["enable_liger_kernel"]["caveat"] == "needs the package liger-kernel, which the trainer does not have"


@pytest.mark.parametrize(
    ("gpu", "gpus", "words", "said"),
    [
        ("h100", 8, ("finetuning_type=full",), "DeepSpeed ZeRO"),
        ("h100", 1, ("finetuning_type=full",), "GiB of host memory"),
        ("l40s", 1, ("disable_gradient_checkpointing=true",), "computes each layer twice"),
        ("h200", 2, ("deepspeed=ds_z3_offload.json",), "DeepSpeed ZeRO"),
        ("h200", 8, ("finetuning_type=full", "deepspeed=ds_z3_offload.json"), "DeepSpeed ZeRO-"),
    ],
)  # fmt: skip
def test_every_change_is_explained(big: Place, gpu: str, gpus: int, words: tuple[str, ...], said: str) -> None:
    found = report(ask(big, *words, gpu=gpu, gpus=gpus))
    reasons = [reason for candidate in found["candidates"] for reason in candidate["reasons"].values()]
    assert said in json.dumps(reasons)


# --- the file


def written(place: Place, suggestion: Suggestion, name: str = "fast.yaml") -> Path:
    path = place.path(name)
    write_suggestion(suggestion, path)
    return path


def test_the_written_file_is_the_users_own_with_the_changes(big: Place) -> None:
    users = big.path("training_config.yaml").read_text()
    text = written(big, ask(big)).read_text()
    head, _, rest = text.partition("\n\n")
    assert head.startswith("# Suggested by trainkit for 1 x a100-80: predicted ")
    assert rest.startswith(users)
    assert [line for line in rest.removeprefix(users).splitlines() if line and not line.startswith("#")] == [
        "disable_gradient_checkpointing: true", "enable_liger_kernel: true",
    ]  # fmt: skip
    assert "# keeps what each layer computed (" in rest


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("learning_rate=2e-4", "output_dir=saves/other", "report_to="),
        ("per_device_train_batch_size=16", "gradient_accumulation_steps=1"),
    ],
)
def test_a_training_with_it_differs_in_the_changed_keys_only(
    big: Place, trainer_schema: TrainerSchema, words: tuple[str, ...]
) -> None:
    suggestion = ask(big, *words)
    path = written(big, suggestion)
    found = build(Settings(path, base=big.folder), trainer_schema, hardware_of(suggestion.task.machine))
    assert found.values == dict(suggestion.config.values) | suggestion.advice.candidates[0].changes


def test_a_file_that_is_there_stays(big: Place) -> None:
    suggestion = ask(big)
    big.write("fast.yaml", "mine")
    with pytest.raises(TrainkitError) as caught:
        written(big, suggestion)
    assert (caught.value.message, caught.value.hint) == (
        f"{big.folder}/fast.yaml: is there already", "choose another name, or overwrite it with --force",
    )  # fmt: skip
    assert big.path("fast.yaml").read_text() == "mine"
    write_suggestion(suggestion, big.path("fast.yaml"), force=True)
    assert load_yaml(big.path("fast.yaml")).values["enable_liger_kernel"] is True


def test_nothing_is_written_when_nothing_fits(big: Place) -> None:
    with pytest.raises(TrainkitError, match="nothing fits"):
        written(big, ask(big, gpu="t4"))
    assert not big.path("fast.yaml").exists()


def test_secrets_are_not_written(big: Place) -> None:
    big.config("hf_hub_token: hf_abc")
    text = written(big, ask(big, "wandb_api_key=wk_abc")).read_text()
    assert "_abc" not in text
    assert "hf_hub_token" not in text


# --- the exact trace


def answer_with(monkeypatch: pytest.MonkeyPatch, *answers: dict[str, Any]) -> list[Any]:
    asked: list[Any] = []

    def run(cases: list[Any], env: dict[str, str]) -> Any:
        asked.append({"cases": cases})
        return list(answers)

    monkeypatch.setattr(TRACER, run)
    return asked


@pytest.mark.parametrize("count", [1, 2, 5])
def test_two_programs_share_the_traces(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    started = []

    def run(python: Path, script: Path, payload: Any, env: dict[str, str]) -> Any:
        assert script.is_file()
        started.append(payload["cases"])
        return {"results": [case["number"] for case in payload["cases"]]}

    monkeypatch.setattr("trainkit.workflow.trace.run_child_json", run)
    assert run_traces([{"number": number} for number in range(count)], {}) == list(range(count))
    assert len(started) == min(count, 2)


def test_exact_traces_the_given_setup_and_the_best(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = ask(big)
    verdicts = [closed.advice.given, *(candidate.verdict for candidate in closed.advice.candidates)]
    tensors = [int(verdict.memory.allocated - verdict.memory.workspace) for verdict in verdicts]
    answers = [{"allocated": size * 100 // 101, "phase": "backward"} for size in tensors]
    asked = answer_with(monkeypatch, *answers)
    found = ask(big, exact=True)
    assert len(asked) == 1
    assert [case["config"] for case in asked[0]["cases"]] == [QWEN_7B] * len(verdicts)
    assert asked[0]["cases"][0]["setup"] == {
        "method": "lora", "stage": "sft", "micro_batch": 2, "seq_tokens": 4096, "rank": 64, "lora_targets": "all",
        "dropout": 0.1, "checkpointing": True, "liger": False, "masked": True, "zero_stage": None,
        "pure_bf16": False, "accumulation": 8, "optimizer": "adamw",
    }  # fmt: skip
    assert json.loads(json.dumps(asked)) == asked
    assert found.advice == closed.advice
    assert [traced.difference for traced in found.traced] == [pytest.approx(0.01, abs=1e-6)] * len(verdicts)
    for traced, verdict, size in zip(found.traced, verdicts, tensors, strict=True):
        assert traced.total == pytest.approx(verdict.memory.total - size / 101, abs=16)
    values = report(found)
    assert values["given"]["traced"]["phase"] == "backward"


def test_a_candidate_that_does_not_fit_after_all_is_taken_out(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = ask(big)
    answers = [{"allocated": 30 * 2**30, "phase": "backward"} for _ in range(1 + len(closed.advice.candidates))]
    answers[1]["allocated"] = 90 * 2**30
    answer_with(monkeypatch, *answers)
    found = ask(big, exact=True)
    assert found.advice.candidates == closed.advice.candidates[1:]
    assert [note.message for note in found.notes if note.where == "--exact"] == [
        "taken out: disable_gradient_checkpointing: true, enable_liger_kernel: true needs more than predicted"
    ]
    answers[0]["allocated"] = 90 * 2**30
    answer_with(monkeypatch, *answers)
    assert report(ask(big, exact=True))["given"]["fits"] is False


def test_what_cannot_be_traced_is_said_once(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 1 + len(ask(big).advice.candidates)
    answer_with(monkeypatch, *[{"error": "stage ppo"}] * count)
    found = ask(big, exact=True)
    assert found.advice == ask(big).advice
    assert [note.message for note in found.notes if note.where == "--exact"] == ["not traced: stage ppo"]
    assert report(found)["given"]["fits"] is True


def test_shards_are_not_traced(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(monkeypatch)
    found = ask(big, "deepspeed=ds_z3.json", "finetuning_type=full", "quantization_bit=", gpus=8, exact=True)
    whole = [verdict for verdict in found.traced if not verdict.error]
    assert (asked, whole) == ([], [])


def test_a_model_known_by_name_is_traced_by_its_sizes() -> None:
    architecture = architecture_of(QWEN_7B)
    assert architecture_of(config_of(architecture)) == architecture


@pytest.mark.slow
def test_the_real_trace_agrees_with_the_closed_form(big: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH")  # the pretended packages of the other tests
    small = QWEN_7B | {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
                       "num_key_value_heads": 2, "num_hidden_layers": 24, "tie_word_embeddings": True}  # fmt: skip
    big.write("model/config.json", json.dumps(small))
    found = ask(big, exact=True)
    assert found.traced
    assert all(abs(traced.difference) < 0.05 for traced in found.traced), found.traced
