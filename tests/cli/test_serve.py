from __future__ import annotations

import json
import shlex
import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Place


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


def test_what_is_shown(trained: Place, port: int) -> None:
    done = trained.trainkit("serve", "--port", str(port))
    url = f"http://127.0.0.1:{port}/v1"
    shown, example = done.out.splitlines()
    assert (done.code, shown) == (0, url)
    body = {"model": "trainkit", "messages": [{"role": "user", "content": "Hello"}]}
    words = ["curl", f"{url}/chat/completions", "-H", "Content-Type: application/json", "-d", json.dumps(body)]
    assert shlex.split(example) == words
    assert done.err == (
        "serving WORK/saves/rm with the template qwen; the log is WORK/logs/DATE-serve-rm/server.log\n"
        f"or talk to it: trainkit chat --url {url}\n"
        "Ctrl-C stops it when the answers in progress are done, three times at once\n"
        "the server has ended\n"
    )


def test_one_document_for_machines(trained: Place, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", "s3cret")
    done = trained.trainkit("serve", "--port", str(port), "--host", "0.0.0.0", "--key-env", "SERVER_KEY", "--json")
    url = f"http://127.0.0.1:{port}/v1"
    assert (done.code, done.err) == (0, "")
    report = done.json
    assert 'Bearer $SERVER_KEY"' in report.pop("example")
    log = "WORK/logs/DATE-serve-rm/server.log"
    assert report == {"ok": True, "url": url, "model": "trainkit", "log": log}
    assert "s3cret" not in done.out


@pytest.mark.parametrize("port", ["0", "65536", "x"])
def test_no_port(place: Place, port: str) -> None:
    done = place.trainkit("serve", "--port", port)
    assert (done.code, done.out) == (2, "")
    assert "Invalid value for '--port'" in done.err
