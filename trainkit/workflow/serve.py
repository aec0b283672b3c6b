"""`trainkit serve`: a trained model behind OpenAI's protocol, until it is told to stop."""

from __future__ import annotations

import json
import shlex
import signal
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit import environment
from trainkit.datatypes import TrainConfig
from trainkit.errors import ConfigError, Interrupted, TrainerFailed, TrainkitError, UsageProblem
from trainkit.files import load_json, write_text_atomic
from trainkit.launch.diagnosis import load_tail
from trainkit.launch.llamafactory import find_trainer
from trainkit.launch.process import run
from trainkit.launch.server import (
    TOOL_PARSERS,
    Adapter,
    Address,
    api_command,
    check_free,
    diagnose_server,
    find_vllm,
    is_ours,
    is_ready,
    vllm_command,
)
from trainkit.plan.render import render_yaml
from trainkit.runs.store import Run, create_run, find_run
from trainkit.workflow.chat import find_model, load_key
from trainkit.workflow.export import ADAPTER_FILE
from trainkit.workflow.prepare import Settings, output_dir_of, trainer_python, writing
from trainkit.workflow.start import LOG_ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.datatypes import Command, Outcome
    from trainkit.workflow.chat import ModelPlace

ENGINES = ("llamafactory", "vllm")
# How a server ends that was asked to by SIGTERM: by itself, or by the signal.
STOPPED = (0, 128 + signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How a model is served.

    Attributes:
        engine: llamafactory, its own server; or vllm, which must be installed.
        host: where to listen; everything but this machine alone needs a key.
        port: the port there.
        name: what a client asks for as `model`.
        key_variable: the environment variable that holds the key; None for no key.
        template: LLaMA-Factory's template; None means the one of the training.
    """

    engine: str = ENGINES[0]
    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "trainkit"
    key_variable: str | None = None
    template: str | None = None


@dataclass(frozen=True, slots=True)
class ServePlan:
    """A server as it is started; `config` is what LLaMA-Factory reads, empty for vLLM; `template` is a word on it."""

    model: ModelPlace
    address: Address
    run_folder: Run
    command: Command
    template: str
    config: str = ""

    @property
    def log_file(self) -> Path:
        """The server's whole output."""
        return self.run_folder.path / "server.log"


def serve(
    named: Path | None,
    options: ServeOptions,
    base: Path,
    on_start: Callable[[ServePlan], None],
    on_wait: Callable[[float], None],
    on_ready: Callable[[ServePlan], None],
) -> int:
    """Serve a model until Ctrl-C, SIGTERM or its own end; return the exit code.

    The code is 0 after SIGTERM: that is how a service is ended, and one that ends as it was told to has not failed.
    After Ctrl-C it is 130, as with every command, so that a script does not go on behind it.

    Args:
        named: see `find_served`.
        options: how it is served.
        base: the folder that `logs` is in.
        on_start: told once, before the server starts.
        on_wait: told of the seconds that it has been loading for.
        on_ready: told once, when the server answers.

    Raises:
        UsageProblem: options that do not fit together; nothing was started.
        ConfigError: there is no model to serve.
        EnvironmentProblem: the port is taken, or the engine is not installed.
        TrainerFailed: the server ended by itself; the message says why as far as its log tells.
        Interrupted: it was stopped before it answered.
    """
    address = check_options(options)
    model = find_model(find_served(named, base))
    check_free(address)
    with writing(base):
        run_folder = create_run(base / LOG_ROOT, f"serve-{model.folder.name}", datetime.now().astimezone())
        try:
            plan = lay_out(model, options, address, run_folder)
        except TrainkitError:
            run_folder.path.rmdir()
            raise
        if plan.config:
            write_text_atomic(run_folder.config_file, plan.config)
    on_start(plan)
    started, ready = time.monotonic(), False

    def tick() -> None:
        nonlocal ready
        if ready:
            return
        on_wait(time.monotonic() - started)
        ready = is_ready(address) and is_ours(address)
        if ready:
            on_ready(plan)

    outcome = run(plan.command, env=environment.snapshot(), log_file=plan.log_file, on_tick=tick)
    return check_end(outcome, plan, ready=ready)


def check_options(options: ServeOptions) -> Address:
    """Return where the server will listen.

    Raises:
        UsageProblem: the options do not fit together, or everybody could use the model.
    """
    if options.engine not in ENGINES:
        raise UsageProblem(f"--engine {options.engine}: must be {' or '.join(ENGINES)}")
    if options.engine == "vllm" and options.template:
        hint = "--engine llamafactory takes it"
        raise UsageProblem(f"--template {options.template}: vLLM uses the model's own chat template", hint)
    if not options.name.isprintable() or set(options.name) & set(" =,") or not options.name:
        raise UsageProblem(f"--name {options.name!r}: must be one word, without = and commas")
    address = Address(options.host, options.port, options.name, load_key(options.key_variable))
    if not address.is_private and not address.key:
        raise UsageProblem(
            f"--host {options.host}: whoever reaches this machine could use the model",
            "choose a key: export SERVER_KEY=...; then --key-env SERVER_KEY",
        )
    return address


def find_served(named: Path | None, base: Path) -> Path:
    """Return the folder of the model to serve.

    Args:
        named: a model's folder, or a run by its folder or name in logs; None for the model of the newest training, or,
            before the first one, the output folder of the configuration.
        base: the folder that `logs` is in.

    Raises:
        ConfigError: nothing is named and there is neither a training nor a configuration.
    """
    run_folder = find_run(named, base / LOG_ROOT)
    trained = run_folder.load_manifest().get("output_dir") if run_folder else named
    return (base / str(trained)).absolute() if trained else output_dir_of(Settings(base=base))


def lay_out(model: ModelPlace, options: ServeOptions, address: Address, run_folder: Run) -> ServePlan:
    """Return the server as it will be started; nothing is written.

    Raises:
        ConfigError: the template is not known.
        EnvironmentProblem: the engine is not installed.
    """
    env, cwd = environment.snapshot(), run_folder.path
    if options.engine == "vllm":
        program = find_vllm(trainer_python(), env)
        adapter, form = adapter_of(model), find_chat_template(model)
        command = vllm_command(
            Path(model.base),
            address,
            program=program,
            cwd=cwd,
            env=env,
            adapter=adapter,
            chat_template=form,
            tool_parser=TOOL_PARSERS.get(str(model.marker.get("template"))),
        )
        return ServePlan(model, address, run_folder, command, "the model's own chat template")
    template = options.template or model.template
    bin_dir = find_trainer(trainer_python())
    command = api_command(run_folder.config_file, address, bin_dir=bin_dir, cwd=cwd, env=env)
    config = render_yaml(TrainConfig(api_values(model, template), {}))
    return ServePlan(model, address, run_folder, command, f"the template {template}", config)


def api_values(model: ModelPlace, template: str) -> dict[str, Any]:
    """Return what LLaMA-Factory's server reads: the model, its template, how it answers."""
    values = {
        "model_name_or_path": model.base,
        "adapter_name_or_path": str(model.folder) if model.lora else None,
        "finetuning_type": "lora" if model.lora else "full",
        "template": template,
        "trust_remote_code": model.marker.get("trust_remote_code"),
        **model.generation,
    }
    return {key: value for key, value in values.items() if value is not None}


def adapter_of(model: ModelPlace) -> Adapter | None:
    """Return the adapter with its rank, None for a whole model.

    Raises:
        ConfigError: its configuration does not tell the rank.
    """
    if not model.lora:
        return None
    rank = load_json(model.folder / ADAPTER_FILE).get("r")
    if not isinstance(rank, int):
        raise ConfigError(f"{model.folder / ADAPTER_FILE}: tells no rank (r)", "export the model and serve that")
    return Adapter(model.folder, rank)


def find_chat_template(model: ModelPlace) -> Path | None:
    """Return the chat template that a training left beside an adapter: vLLM would take its base model's."""
    file = model.folder / "chat_template.jinja"
    return file if model.lora and file.exists() else None


def check_end(outcome: Outcome, plan: ServePlan, *, ready: bool) -> int:
    """Return the exit code of a server that has ended, or raise what its end means for the user."""
    if outcome.signal is not None:
        if not ready:
            raise Interrupted("stopped while the model was loading", outcome.signal)
        asked = outcome.signal == signal.SIGTERM and outcome.exit_code in STOPPED
        return 0 if asked else 128 + outcome.signal
    if ready and outcome.exit_code == 0:
        return 0
    found = diagnose_server(load_tail(plan.log_file), outcome.exit_code, plan.address)
    lines = "".join(f"\n    {line}" for line in found.lines)
    message = f"the server failed: {found.title}{lines}\n    the whole log: {plan.log_file}"
    raise TrainerFailed(message, outcome.exit_code or 1, found.hint)


def example_request(plan: ServePlan, key_variable: str | None) -> str:
    """Return a command line that asks the server; the key stays in its variable."""
    body = json.dumps({"model": plan.address.name, "messages": [{"role": "user", "content": "Hello"}]})
    key = f' -H "Authorization: Bearer ${key_variable}"' if key_variable else ""
    url = f"{plan.address.url}/chat/completions"
    return f"curl {shlex.quote(url)} -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}"
