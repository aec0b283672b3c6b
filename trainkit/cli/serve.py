"""`trainkit serve`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainkit.cli.chat import KeyVariable
from trainkit.cli.options import AsJson
from trainkit.cli.output import Output

if TYPE_CHECKING:
    from trainkit.workflow.serve import ServePlan


def serve(
    model: Annotated[
        Path | None, typer.Argument(help="A training's output folder, an export, or a run; else the newest training.")
    ] = None,
    engine: Annotated[str, typer.Option(metavar="llamafactory|vllm", help="Whose server.")] = "llamafactory",
    host: Annotated[str, typer.Option(help="Where to listen; other machines reach it only with a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port there.")] = 8000,
    name: Annotated[str, typer.Option(help="What a client asks for as model.")] = "trainkit",
    key_env: KeyVariable = None,
    template: Annotated[str | None, typer.Option(help="LLaMA-Factory template; else the training's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a trained or exported model behind OpenAI's protocol, until Ctrl-C or SIGTERM.

    Example: trainkit serve --port 8001
    """
    from trainkit.workflow.serve import ServeOptions
    from trainkit.workflow.serve import serve as run

    output = Output(as_json=as_json)
    options = ServeOptions(engine, host, port, name, key_env, template)
    with ExitStack() as shown:

        def ready(plan: ServePlan) -> None:
            shown.close()
            show_server(output, plan, key_env)

        live = shown.enter_context(output.waiting("starting the server"))
        code = run(
            model,
            options,
            Path.cwd(),
            lambda plan: output.say(f"serving {plan.model.folder} with {plan.template}; the log is {plan.log_file}"),
            lambda seconds: live(f"loading the model, {seconds:.0f} s"),
            ready,
        )
    output.say("the server has ended")
    if code:
        raise typer.Exit(code)


def show_server(output: Output, plan: ServePlan, key_env: str | None) -> None:
    """Print where the server is and how to ask it."""
    from trainkit.workflow.serve import example_request

    example, url = example_request(plan, key_env), plan.address.url
    output.data(url)
    output.data(example)
    key = f" --key-env {key_env}" if key_env else ""
    output.say(f"or talk to it: trainkit chat --url {url}{key}")
    output.say("Ctrl-C stops it when the answers in progress are done, three times at once")
    output.json({"ok": True, "url": url, "model": plan.address.name, "example": example, "log": plan.log_file})
