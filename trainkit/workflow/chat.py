"""`trainkit chat`: talk with a trained or exported model in the form it was trained with, or with a server."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit import environment
from trainkit.errors import ConfigError, UsageProblem
from trainkit.launch.llamafactory import program_command
from trainkit.launch.openai_client import Server, list_models, parse_url, read_answer
from trainkit.launch.process import stream
from trainkit.plan.families import find_family
from trainkit.runs.store import find_marker
from trainkit.sources.evaluations import PREFIX_WORDS, metadata_prefix
from trainkit.workflow.export import INSIDE, check_base, is_adapter
from trainkit.workflow.prepare import trainer_python

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

# The trainer's libraries talk a lot while they load; a user who wants to hear it can set these otherwise.
QUIET = {
    "LLAMAFACTORY_VERBOSITY": "WARN",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How a conversation is held.

    Attributes:
        message: one message to answer; None for a conversation on stdin.
        system: the system text.
        about: words of the metadata form (type, model, task, category) -> what the prompt is about.
        template: LLaMA-Factory's template; None means the one of the training.
        generation: keys such as max_new_tokens and temperature.
    """

    message: str | None = None
    system: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """What the chat program is asked for, and words for the user."""

    request: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """Where a model is: its folder or an adapter's, what is loaded for it, and what its training left to know.

    `base` is the folder itself, or the model that the adapter in `folder` was trained on.
    """

    folder: Path
    base: str
    lora: bool
    marker: Mapping[str, Any]

    @property
    def template(self) -> str:
        """LLaMA-Factory's template: the training's, else the usual one of the model's family.

        Raises:
            ConfigError: neither is known.
        """
        return str(self.marker.get("template") or guess_template(self.folder))

    @property
    def generation(self) -> dict[str, Any]:
        """How the training's configuration says that answers are made."""
        thinking = self.marker.get("enable_thinking")
        return {**self.marker.get("generation", {}), **({} if thinking is None else {"enable_thinking": thinking})}


def find_model(model_dir: Path) -> ModelPlace:
    """Return what is loaded for a trained model, an exported one, or any model folder.

    Raises:
        ConfigError: there is no model in the folder, or its base model is missing.
    """
    if not model_dir.is_dir():
        raise ConfigError(f"{model_dir}: no such folder", "name an output_dir, an exported model or a model folder")
    lora = is_adapter(model_dir)
    if not lora and not (model_dir / "config.json").exists():
        raise ConfigError(f"{model_dir}: holds neither a model nor an adapter", "has its training ended?")
    marker = find_marker(model_dir) or {}
    if lora and not marker.get("model_name_or_path"):
        raise ConfigError(f"{model_dir}: an adapter without trainkit_run.json", "its base model is not known")
    if lora:
        check_base(model_dir, marker)
    return ModelPlace(model_dir, str(marker["model_name_or_path"] if lora else model_dir), lora, marker)


def plan_chat(model_dir: Path, options: ChatOptions) -> ChatPlan:
    """Return the request for a conversation with a trained model, an exported one, or any model folder.

    Raises:
        ConfigError: there is no model in the folder, or no way to tell its template.
    """
    model = find_model(model_dir)
    form = [word for word in model.marker.get("metadata_form", []) if word in PREFIX_WORDS]
    request = {
        "model": model.base,
        "adapter": str(model_dir) if model.lora else None,
        "template": options.template or model.template,
        "finetuning_type": "lora" if model.lora else "full",
        "system": options.system,
        "message": options.message,
        "prefix": metadata_prefix(form, options.about),
        "generation": {**model.generation, **options.generation},
        "trust_remote_code": bool(model.marker.get("trust_remote_code")),
    }
    return ChatPlan(request, form_notes(form, options))


def guess_template(model_dir: Path) -> str:
    """Return the usual template of a model's family.

    Raises:
        ConfigError: the family is not known.
    """
    family = find_family(model_dir)
    if family is None:
        raise ConfigError(f"{model_dir}: its config.json does not tell the template", "name it with --template")
    return family.templates[0]


def form_notes(form: list[str], options: ChatOptions) -> tuple[str, ...]:
    """Return what the user should know about the prefix that the model was trained with."""
    option = {"type": "--evaluation-type", "model": "--model-name", "task": "--task-id", "category": "--category"}
    missing = [word for word in form if word not in options.about]
    unused = [word for word in options.about if word not in form]
    message = options.message or ""
    notes = []
    # A category is part of some prompts only, so its absence says nothing.
    if any(word != "category" for word in missing) and not message.startswith("["):
        words = " ".join(f"[{PREFIX_WORDS[word]}: ...]" for word in form)
        notes.append(f"the model was trained on prompts that begin with {words}: see {option[missing[0]]}")
    notes += [f"{option[word]} is left out: the model was trained without it" for word in unused]
    return tuple(notes)


def chat(plan: ChatPlan) -> int:
    """Hold the conversation on this process's stdin and stdout; return the exit code."""
    env = QUIET | environment.snapshot()
    with tempfile.TemporaryDirectory(prefix="trainkit-chat-") as folder:
        request = Path(folder) / "request.json"
        request.write_text(json.dumps(plan.request), encoding="utf-8")
        command = program_command(trainer_python(), INSIDE / "chat.py", str(request), cwd=Path.cwd(), env=env)
        return stream(command, env=env).exit_code


class Talk:
    """A conversation with a server; the words about the prompt go before the first message, as in training."""

    def __init__(self, server: Server, model: str, options: ChatOptions) -> None:
        words = {"max_tokens": "max_new_tokens", "temperature": "temperature"}
        given = {name: options.generation.get(key) for name, key in words.items()}
        self._server = server
        self._request = {"model": model, **{name: value for name, value in given.items() if value is not None}}
        self._system = [{"role": "system", "content": options.system}] if options.system else []
        # a server does not tell what its model was trained with, so every word that was given is used
        self._prefix = metadata_prefix(PREFIX_WORDS, options.about)
        self._messages: list[dict[str, str]] = []

    def clear(self) -> None:
        """Forget what was said."""
        self._messages.clear()

    def say(self, message: str) -> Generator[str, None, None]:
        """Yield the pieces of the answer to a message; one that is left before its end counts as far as it came.

        Raises:
            EnvironmentProblem: the server does not answer, in whatever way.
        """
        content = message if self._messages else self._prefix + message
        self._messages.append({"role": "user", "content": content})
        pieces: list[str] = []
        try:
            for piece in read_answer(self._server, {**self._request, "messages": [*self._system, *self._messages]}):
                pieces.append(piece)
                yield piece
        finally:
            self._messages.append({"role": "assistant", "content": "".join(pieces)})


def start_talk(url: str, model: str | None, key_variable: str | None, options: ChatOptions) -> Talk:
    """Return a conversation with the model of a server; it is asked for its models first.

    Raises:
        UsageProblem: the address or the variable cannot be used, or the server has more than one model.
        EnvironmentProblem: the server cannot be reached, or does not accept the key.
    """
    server = Server(parse_url(url), load_key(key_variable))
    models = list_models(server)
    if model is None and len(models) != 1:
        names = ", ".join(models) or "models that it does not tell"
        raise UsageProblem(f"{server.url}: has {names}", "choose one with --model NAME")
    return Talk(server, model or models[0], options)


def load_key(variable: str | None) -> str:
    """Return the key that an environment variable holds; empty for None.

    Raises:
        UsageProblem: there is no such variable, or it holds no key; the message repeats neither, since a user who
            wrote the key in the place of the variable would find it in a log.
    """
    if variable is None:
        return ""
    hint = "export it first: `export SERVER_KEY=...`, then --key-env SERVER_KEY"
    if not re.fullmatch(r"[A-Za-z_]\w*", variable, re.ASCII):
        raise UsageProblem("--key-env: takes the name of an environment variable, not the key itself", hint)
    key = environment.get(variable)
    if not key:
        raise UsageProblem("--key-env: the variable that it names is not set, or empty", hint)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageProblem("--key-env: what the variable holds is no key", "a key has no spaces and no line breaks")
    return key
