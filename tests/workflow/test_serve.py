from __future__ import annotations

import json
import signal
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.conftest import Place

KEY = "s3cret-of-the-test"
VLLM = """#!/bin/sh
printf '%s\\n' "$*" >> "$FAKE_CALLS.vllm"
echo "ValueError: no GPU"
exit 4
"""


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


def told(monkeypatch: pytest.MonkeyPatch, **words: Any) -> None:
    monkeypatch.setenv("FAKE_TRAINER", json.dumps(words))


def values(place: Place, **different: Any) -> dict[str, Any]:
    usual = {
        "model_name_or_path": str(place.path("model")),
        "adapter_name_or_path": str(place.path("saves/rm")),
        "finetuning_type": "lora",
        "template": "qwen",
        "temperature": 0.2,
        "trust_remote_code": True,
    }
    return {key: value for key, value in (usual | different).items() if value is not None}


def plain(place: Place) -> dict[str, Any]:
    return values(place, adapter_name_or_path=None, finetuning_type="full", temperature=None, trust_remote_code=None)


def a_run(place: Place) -> None:
    place.write("logs/20260301-142530-older/run.json", json.dumps({"output_dir": str(place.path("model"))}))
    place.write("logs/20260301-142531-newer/run.json", json.dumps({"output_dir": str(place.path("exported"))}))


def no_thinking(place: Place) -> None:
    marker = json.loads(place.path("saves/rm/trainkit_run.json").read_text())
    place.write("saves/rm/trainkit_run.json", json.dumps(marker | {"enable_thinking": False}))


SERVED: dict[str, tuple[Callable[[Place], object] | None, list[str], Callable[[Place], dict[str, Any]]]] = {
    "the configuration's model, before the first run": (None, [], values),
    "the newest training": (
        a_run,
        [],
        lambda place: values(
            place, model_name_or_path=str(place.path("exported")), adapter_name_or_path=None, finetuning_type="full"
        ),
    ),
    "a run by its name": (a_run, ["20260301-142530-older"], plain),
    "a folder with another template": (
        no_thinking,
        ["saves/rm/checkpoint-2", "--template", "chatml"],
        lambda place: values(
            place,
            adapter_name_or_path=str(place.path("saves/rm/checkpoint-2")),
            template="chatml",
            enable_thinking=False,
        ),
    ),
}


@pytest.mark.parametrize("case", SERVED)
def test_a_model_is_served_in_the_form_it_was_trained_with(trained: Place, port: int, case: str) -> None:
    prepare, words, asked = SERVED[case]
    if prepare:
        prepare(trained)
    done = trained.trainkit("serve", *words, "--port", str(port), "--name", "rm")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == f"http://127.0.0.1:{port}/v1"
    (call,) = trained.calls("api")
    assert call["values"] == asked(trained)
    assert call["env"] == {
        "API_HOST": "127.0.0.1", "API_PORT": str(port), "API_MODEL_NAME": "rm", "API_VERBOSE": "0",
    }  # fmt: skip
    assert Path(call["cwd"]).parent == trained.path("logs")
    assert Path(call["cwd"], "server.log").read_text().count("GET /v1/models") >= 1


@contextmanager
def start(place: Place, port: int, *words: str) -> Iterator[subprocess.Popen[str]]:
    # the test may itself run in the background, where Ctrl-C is ignored
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with place.start("serve", "--port", str(port), *words, start_new_session=True, **heard) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_server_that_is_told_to_stop_leaves_nothing_behind(
    trained: Place, port: int, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    told(monkeypatch, wait=True)
    with start(trained, port) as process:
        assert first_line(process) == f"http://127.0.0.1:{port}/v1"
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, len(family) >= 1) == (code, True)
    assert "the server has ended" in err
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_a_server_that_is_stopped_while_it_loads(trained: Place, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, load=60)
    with start(trained, port, "--json") as process:
        while not trained.calls("api"):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    report = {"ok": False, "error": "stopped while the model was loading", "hint": "", "problems": []}
    assert (process.returncode, json.loads(out)) == (143, report)


def test_the_key_goes_through_the_environment_only(trained: Place, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, wait=True)
    monkeypatch.setenv("SERVER_KEY", KEY)
    with start(trained, port, "--key-env", "SERVER_KEY") as process:
        url, example = first_line(process), first_line(process)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        seen = [word for one in family for word in one.cmdline()]
        chat = ["chat", "--url", url, "-m", "Judge this.", "--evaluation-type", "clip"]
        assert trained.trainkit(*chat, "--key-env", "SERVER_KEY").out == "1 [EVAL_TYPE: clip] Judge this.\n"
        refused = trained.trainkit(*chat)
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith(f"error: {url}: it asks for a key (401)\n    --key-env VARIABLE names")
    assert trained.calls("api")[0]["env"]["API_KEY"] == KEY
    assert '-H "Authorization: Bearer $SERVER_KEY"' in example
    kept = "".join(path.read_text() for path in trained.path("logs").rglob("*") if path.is_file())
    assert KEY not in "".join([*seen, example, err, refused.err, kept])


FAILED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "the GPU's memory": (
        {"log": "torch.OutOfMemoryError: CUDA out of memory.", "exit": 7}, 7,
        "the GPU is out of memory\n    torch.OutOfMemoryError: CUDA out of memory.",
        "serve it on a GPU with more memory, or end what else runs on this one",
    ),
    "no words": (
        {"log": "last words", "exit": 3}, 3, "the server ended with exit code 3\n    last words", "see the log"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILED)
def test_a_server_that_dies_while_it_loads(
    trained: Place, port: int, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    words, code, why, hint = FAILED[case]
    told(monkeypatch, **words)
    done = trained.trainkit("serve", "--port", str(port))
    log = "WORK/logs/DATE-serve-rm/server.log"
    start = f"serving WORK/saves/rm with the template qwen; the log is {log}\n"
    failed = f"error: the server failed: {why}\n    the whole log: {log}\n    {hint}\n"
    assert (done.code, done.out, done.err) == (code, "", start + failed)


def no_trainer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainkit.workflow.serve.trainer_python", lambda: place.path("env/bin/python"))


def no_base(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.path("model").rename(place.path("moved"))


def damaged_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("logs/20260301-142530-x/run.json", "{")


def add_vllm(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    program = place.write("other env/bin/vllm", VLLM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


REFUSED: dict[str, tuple[Callable[[Place, pytest.MonkeyPatch], object] | None, list[str], int, str]] = {
    "no such folder": (None, ["nowhere"], 1, "error: WORK/nowhere: no such folder\n"),
    "no model": (None, ["data"], 1, "error: WORK/data: holds neither a model nor an adapter\n"),
    "no base model": (no_base, [], 1, "error: WORK/model: there is no such folder, and WORK/saves/rm is an adapter"),
    "a damaged run": (damaged_run, [], 1, "error: WORK/logs/DATE-x/run.json:1:2: not valid JSON: "),
    "no trainer": (no_trainer, [], 1, "error: llamafactory-cli not found in WORK/env/bin: LLaMA-Factory is not"),
    "no vLLM": (no_trainer, ["--engine", "vllm"], 1, "error: vllm: not found beside WORK/env/bin/python nor on"),
    "an adapter without a rank": (
        add_vllm, ["--engine", "vllm"], 1,
        "error: WORK/saves/rm/adapter_config.json: tells no rank (r)\n    export the model and serve that\n",
    ),
    "an unknown engine": (None, ["--engine", "x"], 2, "error: --engine x: must be llamafactory or vllm\n"),
    "a template for vLLM": (
        None, ["--engine", "vllm", "--template", "qwen"], 2,
        "error: --template qwen: vLLM uses the model's own chat template\n    --engine llamafactory takes it\n",
    ),
    "everybody": (
        None, ["--host", "0.0.0.0"], 2,
        "error: --host 0.0.0.0: whoever reaches this machine could use the model\n"
        "    choose a key: export SERVER_KEY=...; then --key-env SERVER_KEY\n",
    ),
    "a name of two words": (None, ["--name", "a b"], 2, "error: --name 'a b': must be one word"),
    "a key that is not there": (None, ["--key-env", "NO_KEY"], 2, "error: --key-env: the variable that it names is"),
    "a key instead of its variable": (
        None, ["--key-env", "sk-" + KEY], 2,
        "error: --key-env: takes the name of an environment variable, not the key itself\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_explained(
    trained: Place, port: int, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    prepare, words, code, told = REFUSED[case]
    if prepare:
        prepare(trained, monkeypatch)
    done = trained.trainkit("serve", "--port", str(port), *words)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(told)
    assert KEY not in done.err
    assert trained.calls("api") == []
    assert not list(trained.path("logs").glob("*-serve-*")), "no folder is left for a server that did not start"


def test_a_taken_port_is_found_before_the_model_is_loaded(trained: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        taken = door.getsockname()[1]
        done = trained.trainkit("serve", "--port", str(taken))
    assert (done.code, trained.calls("api")) == (1, [])
    assert done.err == (
        f"error: --port {taken}: another program listens there\n"
        f"    stop it, or choose another port: --port {taken + 1}\n"
    )


def test_vllm_serves_an_adapter_and_a_model(trained: Place, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    add_vllm(trained, monkeypatch)
    trained.write("saves/rm/adapter_config.json", '{"r": 24}')
    trained.write("saves/rm/chat_template.jinja", "")
    done = trained.trainkit("serve", "--engine", "vllm", "--port", str(port))
    assert (done.code, done.out) == (4, "")
    assert "serving WORK/saves/rm with the model's own chat template" in done.err
    assert "error: the server failed: the server ended with exit code 4\n    ValueError: no GPU\n" in done.err
    assert trained.trainkit("serve", "exported", "--engine", "vllm", "--port", str(port)).code == 4
    work, tools = trained.folder, "--enable-auto-tool-choice --tool-call-parser hermes"
    where = f"--host 127.0.0.1 --port {port} --served-model-name"
    lora = f"--enable-lora --max-lora-rank 32 --lora-modules trainkit={work}/saves/rm"
    form = f"--chat-template {work}/saves/rm/chat_template.jinja"
    assert (trained.folder.parent / "calls.jsonl.vllm").read_text().splitlines() == [
        f"serve {work}/model {where} base {lora} {form} {tools}",
        f"serve {work}/exported {where} trainkit {tools}",
    ]


def test_an_answering_server_that_fails_later(trained: Place, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, wait=True)
    with start(trained, port) as process:
        first_line(process)
        (server,) = [child for child in psutil.Process(process.pid).children() if "api" in child.cmdline()]
        server.kill()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 137
    assert "the server failed: the server was killed, most likely because this machine is out of memory" in err
