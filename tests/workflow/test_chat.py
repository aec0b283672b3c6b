from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Place

FORM = (
    "note: the model was trained on prompts that begin with [EVAL_TYPE: ...] [CATEGORY: ...]: see --evaluation-type\n"
)


def request(place: Place, **different: Any) -> dict[str, Any]:
    usual = {
        "program": "chat",
        "model": str(place.path("model")),
        "adapter": str(place.path("saves/rm")),
        "template": "qwen",
        "finetuning_type": "lora",
        "system": None,
        "message": "Judge this.",
        "prefix": "",
        "generation": {"temperature": 0.2},
        "trust_remote_code": True,
        "verbosity": "error",
    }
    return usual | different


def exported(place: Place) -> dict[str, Any]:
    return request(place, model=str(place.path("exported")), adapter=None, finetuning_type="full")


REQUESTS: dict[str, tuple[list[str], Callable[[Place], dict[str, Any]], str]] = {
    "the configuration's model": ([], request, FORM),
    "named": (["saves/rm"], request, FORM),
    "a checkpoint": (
        ["saves/rm/checkpoint-2"],
        lambda place: request(place, adapter=str(place.path("saves/rm/checkpoint-2"))),
        FORM,
    ),
    "an export": (["exported"], exported, FORM),
    "a plain model": (
        ["model"],
        lambda place: request(
            place, model=str(place.path("model")), adapter=None, finetuning_type="full", generation={},
            trust_remote_code=False,
        ),
        "",
    ),
    "with its form": (
        ["--evaluation-type", "clip", "--category", "search"],
        lambda place: request(place, prefix="[EVAL_TYPE: clip] [CATEGORY: search] "),
        "",
    ),
    "without a category": (
        ["--evaluation-type", "final"], lambda place: request(place, prefix="[EVAL_TYPE: final] "), "",
    ),
    "words that it does not know": (
        ["--evaluation-type", "clip", "--model-name", "kimi", "--task-id", "qa_1"],
        lambda place: request(place, prefix="[EVAL_TYPE: clip] "),
        "note: --model-name is left out: the model was trained without it\n"
        "note: --task-id is left out: the model was trained without it\n",
    ),
    "how to answer": (
        ["--system", "Be brief.", "--template", "chatml", "--max-new-tokens", "9", "--temperature", "0"],
        lambda place: request(
            place, system="Be brief.", template="chatml", generation={"temperature": 0.0, "max_new_tokens": 9}
        ),
        FORM,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUESTS)
def test_a_model_is_asked_in_the_form_it_was_trained_with(trained: Place, case: str) -> None:
    words, asked, notes = REQUESTS[case]
    done = trained.trainkit("chat", *words, "-m", "Judge this.")
    assert (done.code, done.out, done.err) == (0, "the answer\n", notes)
    assert trained.calls("chat") == [asked(trained)]


def test_a_prompt_that_brings_its_prefix_needs_no_word(trained: Place) -> None:
    assert trained.trainkit("chat", "-m", "[EVAL_TYPE: clip] Judge this.").err == ""


def test_a_conversation_has_no_message(trained: Place) -> None:
    assert trained.trainkit("chat").code == 0
    assert trained.calls("chat") == [request(trained, message=None)]


def test_a_fully_trained_model_is_its_own_base(ready: Place) -> None:
    ready.config("finetuning_type: full", "learning_rate: 1.0e-5", "output_dir: ./saves/full")
    assert ready.trainkit("train").code == 0
    assert ready.trainkit("chat", "-m", "Judge this.").code == 0
    (asked,) = ready.calls("chat")
    assert (asked["model"], asked["adapter"], asked["finetuning_type"]) == (str(ready.path("saves/full")), None, "full")


def test_the_exit_code_is_the_chats(trained: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CHAT_EXIT", "3")
    assert trained.trainkit("chat", "-m", "Judge this.").code == 3


def test_a_user_can_hear_the_libraries(trained: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    assert trained.trainkit("chat", "-m", "x").code == 0
    assert trained.calls("chat")[0]["verbosity"] == "info"


def no_marker(place: Place) -> None:
    place.path("saves/rm/trainkit_run.json").unlink()


def no_adapter(place: Place) -> None:
    place.path("saves/rm/adapter_config.json").unlink()


def no_base(place: Place) -> None:
    shutil.rmtree(place.path("model"))


def unknown_family(place: Place) -> None:
    place.write("model/config.json", '{"model_type": "own"}')


def damaged(place: Place) -> None:
    place.write("model/config.json", "{")


REFUSED: dict[str, tuple[Callable[[Place], object] | None, list[str], str]] = {
    "no folder": (
        None, ["nowhere"],
        "error: WORK/nowhere: no such folder\n    name an output_dir, an exported model or a model folder\n",
    ),
    "no model": (None, ["data"], "error: WORK/data: holds neither a model nor an adapter\n    has its"),
    "not ended": (
        no_adapter, [], "error: WORK/saves/rm: holds neither a model nor an adapter\n    has its training ended?\n",
    ),
    "an adapter of unknown origin": (
        no_marker, [], "error: WORK/saves/rm: an adapter without trainkit_run.json\n    its base model is not known\n",
    ),
    "no base model": (
        no_base, [],
        "error: WORK/model: there is no such folder, and WORK/saves/rm is an adapter of it\n    put the model back\n",
    ),
    "an unknown family": (
        unknown_family, ["model"],
        "error: WORK/model: its config.json does not tell the template\n    name it with --template\n",
    ),
    "a damaged model": (damaged, ["model"], "error: WORK/model/config.json:1:2: not valid JSON: "),
    "no configuration": (None, ["-c", "x.yaml"], "error: x.yaml: no such file\n    trainkit init"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_answer_is_explained(trained: Place, case: str) -> None:
    prepare, words, told = REFUSED[case]
    if prepare:
        prepare(trained)
    done = trained.trainkit("chat", "-m", "x", *words)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(told)
    assert trained.calls("chat") == []


def test_an_unknown_family_answers_with_a_named_template(trained: Place) -> None:
    unknown_family(trained)
    assert trained.trainkit("chat", "model", "--template", "default", "-m", "x").code == 0
    assert trained.calls("chat")[0]["template"] == "default"


def test_output_dir_may_stand_on_the_command_line_of_the_training_only(ready: Place) -> None:
    marker = {"model_name_or_path": "a/hub-name", "template": "qwen", "metadata_form": ["type", "nonsense"]}
    ready.write("saves/rm/trainkit_run.json", json.dumps(marker))
    ready.write("saves/rm/adapter_config.json", "{}")
    assert ready.trainkit("chat", "-m", "x", "--evaluation-type", "clip").code == 0
    (asked,) = ready.calls("chat")
    assert (asked["model"], asked["prefix"]) == ("a/hub-name", "[EVAL_TYPE: clip] ")
