"""`trainkit export --push`: an exported and checked model on the Hugging Face Hub, for whom the user says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import trainkit.inside
from trainkit import environment
from trainkit.errors import EnvironmentProblem, Interrupted, TrainkitError, UsageProblem
from trainkit.files import load_json
from trainkit.launch.llamafactory import program_command
from trainkit.launch.process import capture
from trainkit.plan.families import is_hub_name
from trainkit.runs.store import MARKER
from trainkit.workflow.export import last_json
from trainkit.workflow.prepare import trainer_python

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

INSIDE = Path(trainkit.inside.__file__).parent
CACHED = re.compile(r".*/models--([^/]+?)--([^/]+)/snapshots/[^/]+")
LOG_IN = "log in with: hf auth login, or set HF_TOKEN; a token that may write: https://huggingface.co/settings/tokens"
GO_ON = "the same command goes on: what is exported or sent already is not done again"
# What the user reads for each kind of failure: what it is, where {error} is the hub's own word, and the next step.
WORDS: dict[str, tuple[str, str]] = {
    "login": ("{name}: nobody is logged in to the Hugging Face Hub here", LOG_IN),
    "token": ("{name}: the Hugging Face Hub does not know this login: {error}", LOG_IN),
    "role": ("{name}: {error}", LOG_IN),
    "owner": ("{name}: {error}", "name one of these owners, or log in as another: hf auth login"),
    "refused": ("{name}: the Hugging Face Hub refuses it: {error}", "may this login write there? " + LOG_IN),
    "name": ("{name}: not a name for a model: {error}", "--push me/my-judge"),
    "offline": ("{name}: HF_HUB_OFFLINE is set, so nothing can be pushed", "unset HF_HUB_OFFLINE"),
    "unreachable": (
        "{name}: the Hugging Face Hub does not answer: {error}",
        "is there a network here? a proxy goes into HTTPS_PROXY, a mirror into HF_ENDPOINT",
    ),
    "busy": ("{name}: the Hugging Face Hub asks to wait: {error}", GO_ON),
    "public": (
        "{name} is public on the Hugging Face Hub, and the model would be too",
        "--public if that is what you want; else make it private in its settings there, or choose another name",
    ),
    "failed": ("{name}: the push failed: {error}", GO_ON),
}


@dataclass(frozen=True, slots=True)
class PushOptions:
    """Where a model is pushed.

    Attributes:
        name: owner/model on the hub.
        public: a model that is not there yet becomes visible to everybody.
    """

    name: str
    public: bool = False


@dataclass(frozen=True, slots=True)
class PushResult:
    """A model on the hub.

    Attributes:
        url: its page.
        private: whether only its owner sees it.
        changed: False when the hub had the same files already.
        new_card: whether it got a model card; one that was there is kept.
    """

    url: str
    private: bool
    changed: bool
    new_card: bool


def check_push(options: PushOptions, cwd: Path) -> None:
    """Check, before an export takes its time, that the hub answers, who is logged in, and the name.

    Raises:
        UsageProblem: the name is not owner/model.
        EnvironmentProblem: no login, no network, or a login that may not write there.
        TrainkitError: the model is public already, and that was not asked for.
    """
    if not is_hub_name(options.name):
        raise UsageProblem(f"--push {options.name}: must be owner/model", "for example --push me/my-judge")
    found = ask_hub(options, {"name": options.name}, cwd)
    if found["private"] is False and not options.public:
        raise_words("public", options.name)


def push(folder: Path, options: PushOptions, on_stage: Callable[[str], None] = lambda _: None) -> PushResult:
    """Upload the files of an export that were checked, and no others; the marker with its paths stays here.

    Args:
        folder: an export of `trainkit export`, as it was written.
        options: where to.
        on_stage: told what is being done.

    Raises:
        EnvironmentProblem, TrainkitError: as for `check_push`, and when the upload fails; the export stays.
        Interrupted: the user or the system asked to stop.
    """
    marker = load_json(folder / MARKER)
    files: dict[str, list[int]] = marker["files"]
    on_stage(f"uploading {sum(size for size, _ in files.values()) / 2**30:.1f} GiB to {options.name}")
    card = model_card(marker, options.name)
    request = {"private": not options.public, "folder": str(folder), "files": sorted(files), "card": card}
    try:
        answer = ask_hub(options, {"name": options.name, **request}, folder.parent)
    except Interrupted as error:
        words = f"push stopped; the export is in {folder}, and the same command goes on"
        raise Interrupted(words, error.signal_number) from None
    return PushResult(**{key: answer[key] for key in ("url", "private", "changed", "new_card")})


def ask_hub(options: PushOptions, request: Mapping[str, Any], cwd: Path) -> dict[str, Any]:
    """Let huggingface_hub, in the trainer's environment, carry out a request; return its answer.

    Raises:
        EnvironmentProblem, TrainkitError: it failed, or could not be started.
    """
    # a bar is nothing to read in an error's last lines
    env = {**environment.snapshot(), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = program_command(trainer_python(), INSIDE / "push.py", cwd=cwd, env=env)
    _, out, err = capture(command, env=env, stdin=json.dumps(request))
    answer = last_json(out)
    if answer is None:
        last = err.strip().splitlines()[-1:] or ["it said nothing"]
        raise_words("failed", options.name, last[0])
    if not answer["ok"]:
        raise_words(answer["kind"], options.name, answer["error"])
    return answer


def raise_words(kind: str, name: str, error: str = "") -> NoReturn:
    """Raise what the user is to read."""
    message, hint = WORDS[kind]
    error_type = TrainkitError if kind in ("public", "failed", "busy", "name") else EnvironmentProblem
    raise error_type(message.format(name=name, error=error), hint)


def model_card(marker: Mapping[str, Any], name: str) -> str:
    """Return the README.md of a model on the hub: what it is made of, without a path or a data set's name."""
    base, report = find_hub_name(str(marker["model_name_or_path"])), marker["report"]
    head = ["library_name: transformers", *([f"base_model: {base}"] if base else []), "tags:", "- llama-factory"]
    origin = f"[{base}](https://huggingface.co/{base})" if base else "a model"
    text = (
        f"This is {origin} after {marker.get('finetuning_type')} fine-tuning (stage {marker.get('stage')}) with"
        f" LLaMA-Factory; an adapter is merged into it.\nIt holds {report.get('parameters', 0):,} parameters in"
        f" {report.get('dtype')}.\n\n"
        f"It was trained in the form of LLaMA-Factory's template `{marker['template']}`; talk to it with its"
        " tokenizer's chat template.\n"
    )
    return "\n".join(["---", *head, "---", "", f"# {name.partition('/')[2]}", "", text])


def find_hub_name(model: str) -> str | None:
    """Return the name that a model has on the hub, also a folder of its cache; None for other folders."""
    if cached := CACHED.fullmatch(model):
        return "/".join(cached.groups())
    return model if is_hub_name(model) else None
