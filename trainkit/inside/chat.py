"""Talk with a model the way it was trained: LLaMA-Factory's own engine, template and adapter.

Run by path with the trainer's Python; the request is a JSON file, since stdin is the conversation:

    python trainkit/inside/chat.py request.json

    {"model": "Qwen2.5-7B-Instruct", "adapter": "saves/rm", "template": "qwen", "finetuning_type": "lora",
     "system": null, "message": null, "prefix": "[EVAL_TYPE: clip]\\n", "generation": {"max_new_tokens": 512}}

With `message`: one answer, then the end. Without: a conversation, one line of stdin a message; `clear` forgets what
was said, `exit` or the end of input ends it. `prefix` goes before the first message of each conversation, the form
the model was trained with. Messages are text: no image can be shown to a model that sees. Only answers go to stdout,
piece by piece; everything else goes to stderr.
Exit code 1 after `error: ...` on stderr, 130 after Ctrl-C (in a conversation it only stops the answer in progress).
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REQUIRED = ("model", "template")
INTERRUPTED = 130


class ChatError(Exception):
    """Something that keeps the model from answering, in words for the user."""


class Speaker:
    """A loaded model that answers conversations piece by piece; `stop` ends the answer in progress."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        from llamafactory.chat import ChatModel

        self.system = request.get("system")
        self.stop = threading.Event()
        self.failure: Exception | None = None
        self._thread: threading.Thread
        self._chat = ChatModel(engine_arguments(request))
        model = self._chat.engine.model
        model.generate = functools.partial(self._generate, model.generate)

    def _generate(self, generate: Any, **arguments: Any) -> None:
        import torch
        from transformers import StoppingCriteriaList

        def stopped(input_ids: Any, _scores: Any, **_: Any) -> Any:
            return torch.full((len(input_ids),), self.stop.is_set(), device=input_ids.device)

        self._thread = threading.current_thread()
        try:
            generate(**arguments, stopping_criteria=StoppingCriteriaList([stopped]))
        except Exception as error:
            # The engine runs this in a thread of its own and would wait forever for the next piece.
            self.failure = error
            arguments["streamer"].end()

    def answer(self, messages: list[dict[str, str]]) -> Iterator[str]:
        """Yield the pieces of the answer to the last of `messages` (role and content, user first).

        Raises:
            ChatError: the model failed while it was answering, or the template refused the messages.
        """
        self.stop.clear()
        try:
            yield from self._chat.stream_chat(messages, self.system)
        except ValueError as error:  # a model that sees takes <image> in a message for an image, and there is none
            reason = one_line(error).partition(" in [{")[0]  # what follows is the whole conversation
            raise ChatError(f"the message cannot be used: {reason}") from error
        self._thread.join()  # the last piece comes before torch is done: leaving now would abort the process
        if self.failure:
            raise ChatError(f"the answer failed: {one_line(self.failure)}")


def engine_arguments(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return LLaMA-Factory's own arguments for the request.

    >>> engine_arguments({"model": "m", "template": "qwen", "generation": {"top_p": 0.8}})["top_p"]
    0.8
    """
    arguments = {
        "model_name_or_path": request["model"],
        "adapter_name_or_path": request.get("adapter"),
        "template": request["template"],
        "finetuning_type": request.get("finetuning_type", "lora"),
        "trust_remote_code": request.get("trust_remote_code", False),
        "infer_dtype": request.get("infer_dtype", "auto"),
        **request.get("generation", {}),
    }
    return {name: value for name, value in arguments.items() if value is not None}


def load_request(arguments: list[str]) -> dict[str, Any]:
    """Load the request from the file that the command line names.

    Raises:
        ChatError: no file was named, it is not a complete request, or a folder that it names is not there.
    """
    if len(arguments) != 1:
        raise ChatError("give one JSON file with the request")
    path = Path(arguments[0])
    try:
        request = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ChatError(f"{path}: {one_line(error)}") from error
    if not isinstance(request, dict):
        raise ChatError(f"{path}: the request is not a JSON object")
    if missing := [key for key in REQUIRED if not request.get(key)]:
        raise ChatError(f"{path}: the request has no {' and no '.join(missing)}")
    for key in ("model", "adapter"):
        folder = request.get(key) or "."
        if folder.startswith(("/", ".")) and not Path(folder).is_dir():
            raise ChatError(f"{folder} is not a folder")
    return request


def load_speaker(request: Mapping[str, Any]) -> Speaker:
    """Load the model.

    Raises:
        ChatError: it cannot be loaded, for whatever reason.
    """
    try:
        return Speaker(request)
    except Exception as error:  # loading runs foreign code, a model's own among it: it may raise anything
        # LLaMA-Factory's own words for it ("Failed to load tokenizer.") say less than the cause.
        raise ChatError(f"{request['model']} cannot be loaded: {one_line(error.__cause__ or error)}") from error


def say(speaker: Speaker, messages: list[dict[str, str]], stdout: TextIO) -> bool:
    """Print the answer as it comes and add it to `messages`; return whether it was heard to its end."""
    pieces = []
    with stop_on_ctrl_c(speaker.stop):
        for piece in speaker.answer(messages):
            pieces.append(piece)
            print(piece, end="", file=stdout, flush=True)
        print(file=stdout, flush=True)
    messages.append({"role": "assistant", "content": "".join(pieces)})
    return not speaker.stop.is_set()


def converse(speaker: Speaker, prefix: str, stdout: TextIO) -> int:
    """Answer the lines of stdin until `exit` or the end of input; return the exit code."""
    import readline  # noqa: F401  gives input() line editing on a terminal

    messages: list[dict[str, str]] = []
    while True:
        try:
            line = input("You: " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            return INTERRUPTED
        if line == "exit":
            return 0
        if line == "clear":
            messages.clear()
        elif line:
            messages.append({"role": "user", "content": line if messages else prefix + line})
            say(speaker, messages, stdout)


def leave_at_once(*_: object) -> NoReturn:
    """Handle Ctrl-C where nothing is worth waiting for: torch does not end its threads on an exception."""
    os._exit(INTERRUPTED)


@contextmanager
def stop_on_ctrl_c(stop: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C set `stop`, so that the model ends after its next token, and a second one end all."""

    def handle(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, leave_at_once)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def one_line(error: BaseException) -> str:
    """Return an error's text on one line, or its name when it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def keep_stdout_clean() -> TextIO:
    """Send what libraries print to stderr, and return the real stdout for the answers."""
    real = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return real


def main() -> int:
    """Carry out the request that the command line names; return the exit code."""
    stdout = keep_stdout_clean()
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, leave_at_once)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, such as head, ends the answer
    try:
        request = load_request(sys.argv[1:])
        speaker = load_speaker(request)
        prefix = request.get("prefix", "")
        if request.get("message") is None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return converse(speaker, prefix, stdout)
        messages = [{"role": "user", "content": prefix + request["message"]}]
        return 0 if say(speaker, messages, stdout) else INTERRUPTED
    except ChatError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
