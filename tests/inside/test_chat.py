"""`chat.py`: answers on stdout, words on stderr, the form of the training."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.inside import chat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., subprocess.CompletedProcess[str]]


class FakeSpeaker(chat.Speaker):
    """Answers with what it was asked; Ctrl-C comes after the first piece when `interrupt` is set."""

    def __init__(self, interrupt: bool = False) -> None:
        self.stop = chat.threading.Event()
        self.interrupt = interrupt
        self.heard: list[list[str]] = []

    def answer(self, messages: list[dict[str, str]]) -> Iterator[str]:
        self.stop.clear()
        self.heard.append([message["content"] for message in messages])
        for piece in ("you said ", messages[-1]["content"]):
            if self.stop.is_set():
                return
            yield piece
            if self.interrupt:
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "request.json: [Errno 2] No such file or directory: 'request.json'"),
        ("{", "request.json: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "request.json: the request is not a JSON object"),
        ('{"model": "m"}', "request.json: the request has no template"),
        ("{}", "request.json: the request has no model and no template"),
        ('{"model": "/no/such", "template": "qwen"}', "/no/such is not a folder"),
        ('{"model": ".", "adapter": "./none", "template": "qwen"}', "./none is not a folder"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("request.json").write_text(content)
    done = run("chat", "request.json")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {error}\n")


def test_without_a_request_it_says_what_it_needs(run: Run) -> None:
    done = run("chat")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: give one JSON file with the request\n")


def test_arguments_are_llamafactorys_own_and_empty_ones_are_left_out() -> None:
    request = {"model": "m", "adapter": None, "template": "qwen", "generation": {"top_p": 0.8}, "message": "hi"}
    assert chat.engine_arguments(request) == {
        "model_name_or_path": "m",
        "template": "qwen",
        "finetuning_type": "lora",
        "trust_remote_code": False,
        "infer_dtype": "auto",
        "top_p": 0.8,
    }


def test_a_conversation_keeps_its_history_and_puts_the_prefix_before_its_first_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n two \nclear\nthree\nexit\nfour\n"))
    speaker, stdout = FakeSpeaker(), io.StringIO()
    assert chat.converse(speaker, "[EVAL_TYPE: clip]\n", stdout) == 0
    first = "[EVAL_TYPE: clip]\none"
    assert speaker.heard == [[first], [first, f"you said {first}", "two"], ["[EVAL_TYPE: clip]\nthree"]]
    assert stdout.getvalue() == f"you said {first}\nyou said two\nyou said [EVAL_TYPE: clip]\nthree\n"


def test_the_end_of_input_ends_a_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi"))
    stdout = io.StringIO()
    assert chat.converse(FakeSpeaker(), "", stdout) == 0
    assert stdout.getvalue() == "you said hi\n"


def test_ctrl_c_stops_the_answer_and_not_the_conversation() -> None:
    speaker, stdout = FakeSpeaker(interrupt=True), io.StringIO()
    messages = [{"role": "user", "content": "hi"}]
    before = signal.getsignal(signal.SIGINT)
    assert chat.say(speaker, messages, stdout) is False
    assert stdout.getvalue() == "you said \n"
    assert messages[1:] == [{"role": "assistant", "content": "you said "}]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_at_the_prompt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    assert chat.converse(FakeSpeaker(), "", io.StringIO()) == 130


class FakeEngine:
    """Refuses a mark in a message, as LLaMA-Factory does with a model that sees."""

    def stream_chat(self, messages: list[dict[str, str]], system: str | None) -> Iterator[str]:
        assert system is None
        raise ValueError(f"The number of images does not match the number of <image> tokens in {messages}.")
        yield ""


def test_a_mark_for_an_image_is_one_line() -> None:
    speaker = FakeSpeaker()
    speaker.system, speaker._chat = None, FakeEngine()  # type: ignore[assignment]
    with pytest.raises(chat.ChatError) as caught:
        list(chat.Speaker.answer(speaker, [{"role": "user", "content": "what is <image>?"}]))
    reason = "The number of images does not match the number of <image> tokens"
    assert str(caught.value) == f"the message cannot be used: {reason}"


def request_file(folder: Path, model: Path, **changes: Any) -> str:
    request = {"model": str(model), "template": "qwen", "prefix": "[EVAL_TYPE: clip]\n", "message": "Hi 世界"}
    request["generation"] = {"max_new_tokens": 8, "do_sample": False}
    path = folder / "request.json"
    path.write_text(json.dumps(request | changes))
    return str(path)


@pytest.mark.slow
def test_one_message_gets_one_answer_and_a_conversation_the_same(run: Run, tmp_path: Path, tiny: Path) -> None:
    one = run("chat", request_file(tmp_path, tiny))
    assert one.returncode == 0, one.stderr
    assert one.stdout.strip()
    talk = run("chat", request_file(tmp_path, tiny, message=None), stdin="Hi 世界\nclear\nHi 世界\n")
    assert (talk.returncode, talk.stdout) == (0, one.stdout * 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"finetuning_type": "full", "adapter": "x"}, "cannot be loaded: Adapter is only valid for the LoRA method."),
        ({"generation": {"num_beams": 2}}, "error: the answer failed: TextStreamer only supports batch size 1"),
    ],
)
def test_what_llamafactory_refuses_is_one_line(
    run: Run, tmp_path: Path, tiny: Path, changes: dict[str, Any], error: str
) -> None:
    done = run("chat", request_file(tmp_path, tiny, **changes))
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert error in last


@pytest.mark.slow
def test_ctrl_c_during_the_only_answer_ends_cleanly_with_130(tmp_path: Path, tiny: Path) -> None:
    generation = {"max_new_tokens": 8000, "do_sample": False, "repetition_penalty": 1.3}
    command = [sys.executable, chat.__file__, request_file(tmp_path, tiny, generation=generation)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        first = program.stdout.read(1)
        program.send_signal(signal.SIGINT)
        rest, words = program.communicate(timeout=60)
    assert program.returncode == 130, words.decode()
    assert (first + rest).endswith(b"\n")
    assert b"Traceback" not in words
