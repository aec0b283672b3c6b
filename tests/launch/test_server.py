from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainkit.datatypes import Command
from trainkit.errors import EnvironmentProblem
from trainkit.launch.server import Adapter, Address, api_command, find_vllm, is_ready, lora_rank, vllm_command

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
    assert command == Command(("/env/bin/llamafactory-cli", "api", "/place/logs/run/api.yaml"), RUN, {**BASE, **added})


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
    command = vllm_command(Path("/model"), Address(), program=BIN / "vllm", cwd=RUN, env=ENV, adapter=adapter)
    words = "serve /model --host 127.0.0.1 --port 8000 --served-model-name base"
    lora = "--enable-lora --max-lora-rank 32 --lora-modules trainkit=/saves/lora"
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
