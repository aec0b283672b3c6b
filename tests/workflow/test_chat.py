from __future__ import annotations

import io
import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.workflow import chat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


class Served(BaseHTTPRequestHandler):
    """Answers with the number of the request, in two pieces; any model but `rm` is unknown to it."""

    models = ("rm",)
    asked: list[dict[str, Any]]

    def do_GET(self) -> None:
        self.answer(200, json.dumps({"data": [{"id": name} for name in self.models]}))

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(sent)
        if sent["model"] != "rm":
            self.answer(404, json.dumps({"error": {"message": f"The model {sent['model']} does not exist."}}))
            return
        pieces = [{"choices": [{"delta": {"content": piece}}]} for piece in ("answer ", str(len(self.asked)))]
        self.answer(
            200, "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n", "event-stream"
        )

    def answer(self, status: int, text: str, kind: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"text/{kind}" if kind else "application/json")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    """The address of a server; `Served.asked` is what it was asked."""
    Served.asked = []
    with HTTPServer(("127.0.0.1", 0), Served) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def said(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


def type_in(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))


def test_a_server_is_asked_one_message(place: Place, url: str) -> None:
    words = ["--evaluation-type", "clip", "--category", "search", "--model-name", "kimi", "--task-id", "qa_1"]
    how = ["--system", "Be brief.", "--max-new-tokens", "9", "--temperature", "0"]
    done = place.trainkit("chat", "--url", url, "-m", "Judge this.", *words, *how)
    assert (done.code, done.out, done.err) == (0, "answer 1\n", "")
    prompt = "[EVAL_TYPE: clip] [MODEL: kimi] [TASK: qa_1] [CATEGORY: search] Judge this."
    assert Served.asked == [
        {
            "model": "rm",
            "max_tokens": 9,
            "temperature": 0.0,
            "messages": [{"role": "system", "content": "Be brief."}, *said(prompt)],
            "stream": True,
        }
    ]


def test_a_conversation_with_a_server(place: Place, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, b"one\n\n  two \nclear\n\xff three\nexit\nfour\n")
    done = place.trainkit("chat", "--url", url, "--evaluation-type", "clip")
    assert (done.code, done.out, done.err) == (0, "answer 1\nanswer 2\nanswer 3\n", "")
    assert [asked["messages"] for asked in Served.asked] == [
        said("[EVAL_TYPE: clip] one"),
        said("[EVAL_TYPE: clip] one", "answer 1", "two"),
        said("[EVAL_TYPE: clip] \N{REPLACEMENT CHARACTER} three"),
    ]


def stop_at(monkeypatch: pytest.MonkeyPatch, text: str) -> list[Any]:
    """Let Ctrl-C come in the middle of the answer to a message; return what was asked."""
    asked: list[Any] = []

    def read_answer(_server: object, request: dict[str, Any]) -> Iterator[str]:
        asked.append(request["messages"])
        yield "half"
        if request["messages"][-1]["content"] == text:
            raise KeyboardInterrupt
        yield " whole"

    monkeypatch.setattr(chat, "read_answer", read_answer)
    return asked


def test_ctrl_c_stops_the_answer_and_not_the_conversation(
    place: Place, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stop_at(monkeypatch, "one")
    type_in(monkeypatch, b"one\ntwo\n")
    done = place.trainkit("chat", "--url", url)
    assert (done.code, done.out) == (0, "half\nhalf whole\n")
    assert asked == [said("one"), said("one", "half", "two")]


def test_ctrl_c_during_the_only_answer_ends_with_130(place: Place, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, "one")
    done = place.trainkit("chat", "--url", url, "-m", "one")
    assert (done.code, done.out.strip()) == (130, "half")


MODELS: list[tuple[tuple[str, ...], list[str], int, str]] = [
    (("rm", "base"), [], 2, "error: URL: has rm, base\n    choose one with --model NAME\n"),
    ((), [], 2, "error: URL: has models that it does not tell\n    choose one with --model NAME\n"),
    ((), ["--model", "rm"], 0, ""),
    (("rm",), ["--model", "x"], 1, "error: URL: not found (404): The model x does not exist.\n    does the URL end in"),
]


@pytest.mark.parametrize(("models", "words", "code", "told"), MODELS)
def test_which_model_of_a_server(
    place: Place, url: str, monkeypatch: pytest.MonkeyPatch, models: tuple[str, ...], words: list[str], code: int,
    told: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(Served, "models", models)
    done = place.trainkit("chat", "--url", url, "-m", "x", *words)
    assert (done.code, done.out) == (code, "" if code else "answer 1\n")
    assert done.err.replace(url, "URL").startswith(told)


HERE = "http://127.0.0.1:9/v1"
TOGETHER: list[tuple[list[str], int, str]] = [
    (["--model", "rm"], 2, "error: --model: it goes with --url\n"),
    (["--key-env", "HOME"], 2, "error: --key-env: it goes with --url\n"),
    (["saves/rm", "--url", HERE], 2, "error: MODEL: the server has loaded its model\n"),
    (["--url", HERE, "-c", "x.yaml"], 2, "error: --config: the server has loaded its model\n"),
    (["--url", HERE, "--template", "qwen"], 2, "error: --template: the server has loaded its model\n"),
    (["--url", "127.0.0.1:9"], 2, "error: --url: must be an address that begins with http:// or https://\n    for"),
    (["--url", HERE, "--key-env", "NO_KEY"], 2, "error: --key-env: the variable that it names is not set, or empty\n"),
    (["--url", HERE, "--key-env", "TWO_LINES"], 2, "error: --key-env: what the variable holds is no key\n"),
    (["--url", HERE], 1, f"error: {HERE}: nothing listens there\n    start it: trainkit serve; or is it still loading"),
]


@pytest.mark.parametrize(("words", "code", "told"), TOGETHER)
def test_words_about_a_server_that_do_not_do(
    place: Place, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, told: str
) -> None:
    monkeypatch.setenv("TWO_LINES", "s3cret\ns3cret")
    done = place.trainkit("chat", "-m", "x", *words)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(told)
    assert "s3cret" not in done.err


def test_a_server_that_is_gone_in_the_middle(place: Place, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, b"one\ntwo\n")
    monkeypatch.setattr(Served, "do_POST", lambda self: self.connection.close())
    done = place.trainkit("chat", "--url", url)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: {url}: it closed the connection without an answer\n    see the server's log\n"
