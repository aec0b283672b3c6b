"""`trainkit chat`: talk with a trained or exported model in the form it was trained with."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit import environment
from trainkit.errors import ConfigError
from trainkit.launch.llamafactory import program_command
from trainkit.launch.process import stream
from trainkit.plan.families import find_family
from trainkit.runs.store import find_marker
from trainkit.sources.evaluations import PREFIX_WORDS, metadata_prefix
from trainkit.workflow.export import INSIDE, check_base, is_adapter
from trainkit.workflow.prepare import trainer_python

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def plan_chat(model_dir: Path, options: ChatOptions) -> ChatPlan:
    """Return the request for a conversation with a trained model, an exported one, or any model folder.

    Raises:
        ConfigError: there is no model in the folder, or no way to tell its template.
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
    form = [word for word in marker.get("metadata_form", []) if word in PREFIX_WORDS]
    request = {
        "model": marker["model_name_or_path"] if lora else str(model_dir),
        "adapter": str(model_dir) if lora else None,
        "template": options.template or marker.get("template") or guess_template(model_dir),
        "finetuning_type": "lora" if lora else "full",
        "system": options.system,
        "message": options.message,
        "prefix": metadata_prefix(form, options.about),
        "generation": {**marker.get("generation", {}), **options.generation},
        "trust_remote_code": bool(marker.get("trust_remote_code")),
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
