from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from trainkit.datatypes import Command
from trainkit.errors import EnvironmentProblem
from trainkit.launch.server import (
    Adapter,
    Address,
    api_command,
    check_free,
    diagnose_server,
    find_vllm,
    is_ours,
    is_ready,
    lora_rank,
    vllm_command,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN = Path("/env/bin")
RUN = Path("/place/logs/run")
BASE = {"PATH": "/env/bin:/usr/bin", "PYTHONUNBUFFERED": "1"}
ENV = {"PATH": "/usr/bin", "API_KEY": "old"}


@pytest.mark.parametrize(
    ("address", "added"),
    [
        (
            Address(),
            {"API_HOST": "127.0.0.1", "API_PORT": "8000", "API_MODEL_NAME": "trainkit", "API_KEY": None},
        ),
        (
            Address("0.0.0.0", 9000, "rm-tools", "s3cret"),
            {"API_HOST": "0.0.0.0", "API_PORT": "9000", "API_MODEL_NAME": "rm-tools", "API_KEY": "s3cret"},
        ),
    ],
)
def test_the_trainers_own_server(address: Address, added: dict[str, str | None]) -> None:
    command = api_command(RUN / "api.yaml", address, bin_dir=BIN, cwd=RUN, env=ENV)
    words = ("/env/bin/llamafactory-cli", "api", "/place/logs/run/api.yaml")
    assert command == Command(words, RUN, {**BASE, "API_VERBOSE": "0", **added})


def test_requests_are_logged_only_when_the_user_says_so() -> None:
    env = {**ENV, "API_VERBOSE": "1"}
    command = api_command(RUN / "api.yaml", Address(), bin_dir=BIN, cwd=RUN, env=env)
    assert "API_VERBOSE" not in command.env


def test_vllm_with_an_exported_model() -> None:
    address = Address("0.0.0.0", 9000, "rm-tools", "s3cret")
    command = vllm_command(Path("/exported"), address, program=BIN / "vllm", cwd=RUN, env=ENV, tool_parser="hermes")
    words = "serve /exported --host 0.0.0.0 --port 9000 --served-model-name rm-tools"
    tools = "--enable-auto-tool-choice --tool-call-parser hermes"
    argv = ("/env/bin/vllm", *words.split(), *tools.split())
    assert command == Command(argv, RUN, {**BASE, "VLLM_API_KEY": "s3cret"})
    assert "s3cret" not in " ".join(command.argv), "everybody on a machine can read a command line"


def test_vllm_with_an_adapter_on_its_base() -> None:
    adapter = Adapter(Path("/saves/lora"), 24)
    command = vllm_command(
        Path("/model"),
        Address(),
        program=BIN / "vllm",
        cwd=RUN,
        env=ENV,
        adapter=adapter,
        chat_template=Path("/saves/lora/chat_template.jinja"),
    )
    words = "serve /model --host 127.0.0.1 --port 8000 --served-model-name base"
    lora = "--enable-lora --max-lora-rank 32 --lora-modules trainkit=/saves/lora"
    lora += " --chat-template /saves/lora/chat_template.jinja"
    assert command.argv == ("/env/bin/vllm", *words.split(), *lora.split())


def test_the_rank_that_holds_an_adapter() -> None:
    assert [lora_rank(rank) for rank in (1, 8, 9, 64, 300, 512)] == [8, 8, 16, 64, 320, 512]
    with pytest.raises(EnvironmentProblem, match="rank 1024: vLLM takes 512 at most"):
        lora_rank(1024)


def test_find_vllm(tmp_path: Path) -> None:
    python, other = tmp_path / "env" / "python", tmp_path / "other" / "vllm"
    env = {"PATH": str(other.parent)}
    with pytest.raises(EnvironmentProblem, match=r"vllm: not found beside .*env/python nor on the PATH"):
        find_vllm(python, env)
    for program in (other, python.with_name("vllm")):
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        assert find_vllm(python, env) == program


class Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path == "/v1/models" and self.headers["Authorization"] in (None, "Bearer s3cret")
        self.send_response(200 if known else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server that lists its models, without a key or with the right one."""
    with HTTPServer(("127.0.0.1", 0), Models) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_server_that_answers(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert is_ready(Address(port=port))
    assert is_ready(Address("0.0.0.0", port, key="s3cret")), "every address is also this machine's"
    assert not is_ready(Address(port=port, key="wrong"))


def test_a_server_that_is_not_there_yet(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_ready(Address(port=9))
    monkeypatch.setattr(Models, "do_GET", lambda self: self.wfile.write(b"no HTTP\n"))
    assert not is_ready(Address(port=port))


@pytest.mark.parametrize(
    ("host", "url", "private"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/v1", True),
        ("127.0.1.9", "http://127.0.1.9:8000/v1", True),
        ("localhost", "http://localhost:8000/v1", True),
        ("::1", "http://[::1]:8000/v1", True),
        ("0.0.0.0", "http://127.0.0.1:8000/v1", False),
        ("::", "http://[::1]:8000/v1", False),
        ("10.0.0.7", "http://10.0.0.7:8000/v1", False),
        ("gpu7.example", "http://gpu7.example:8000/v1", False),
        ("", "http://:8000/v1", False),
    ],
)
def test_who_can_reach_an_address(host: str, url: str, private: bool) -> None:
    address = Address(host, key="s3cret")
    assert (address.url, address.is_private) == (url, private)
    assert "s3cret" not in repr(address)


LISTENER = """
import http.server, sys
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.BaseHTTPRequestHandler).serve_forever()
"""


def test_another_programs_server_is_not_ours(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        free = door.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", LISTENER, str(free)]) as child:
        deadline = time.monotonic() + 20
        while not is_ours(Address(port=free)):
            assert time.monotonic() < deadline
        assert not is_ours(Address(port=port)), "it answers, but no program that was started here listens"
        ended = psutil.Process(child.pid)
        child.kill()
    monkeypatch.setattr(psutil.Process, "children", lambda *_, **__: [ended])
    assert not is_ours(Address(port=free)), "it has ended since it was found"


def test_a_port_that_is_free_or_not(port: int) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        check_free(Address(port=port))
    told = (f"--port {port}: another program listens there", f"stop it, or choose another port: --port {port + 1}")
    assert (caught.value.message, caught.value.hint) == told
    with pytest.raises(EnvironmentProblem, match=r"--port \d+: another program listens there"):
        check_free(Address("0.0.0.0", port))
    with socket.create_server(("127.0.0.1", 0)) as door:
        free = door.getsockname()[1]
    check_free(Address(port=free))
    check_free(Address(port=free))


@pytest.mark.parametrize(
    ("host", "error", "told"),
    [
        ("192.0.2.1", None, "--host 192.0.2.1: is not an address of this machine"),
        ("no.such.example", socket.gaierror(-2, "unknown"), "--host no.such.example: no such host"),
        ("127.0.0.1", PermissionError(13, "Permission denied"), "--host 127.0.0.1 --port 80: cannot be listened on: "),
    ],
)
def test_an_address_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, host: str, error: OSError | None, told: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        assert error is not None
        raise error

    if error is not None:
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(EnvironmentProblem) as caught:
        check_free(Address(host, 80))
    assert caught.value.message.startswith(told)
    assert caught.value.hint


ENDS: dict[str, tuple[str, int, str, str]] = {
    "a taken port": (
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use", 1,
        "another program took port 8000 while the model was loading", "choose another port: --port 8001",
    ),
    "the GPU's memory": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", 1, "the GPU is out of memory",
        "serve it on a GPU with more memory, or end what else runs on this one",
    ),
    "the machine's memory": (
        "loading", 137, "the server was killed, most likely because this machine is out of memory",
        "serve it on a machine with more memory",
    ),
    "a signal of somebody else": ("loading", 143, "stopped by SIGTERM", ""),
    "a package": (
        "ModuleNotFoundError: No module named 'uvicorn'", 1, "the package uvicorn is missing", "pip install uvicorn"
    ),
    "something else": ("last words", 3, "the server ended with exit code 3", "see the log"),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_why_a_server_ended(case: str) -> None:
    log, code, title, hint = ENDS[case]
    found = diagnose_server(log, code, Address())
    assert (found.title, found.lines, found.hint) == (title, (log,), hint)
