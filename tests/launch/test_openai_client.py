from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.errors import EnvironmentProblem, UsageProblem
from trainkit.launch import openai_client
from trainkit.launch.openai_client import Server, list_models, parse_url, read_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "s3cret"
CRLF = "\r\n"
REQUEST = {"model": "rm", "messages": [{"role": "user", "content": "Judge."}]}


def chunk(text: str | None, finish: str | None = None) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish}]})


@dataclass
class Fake:
    """A server that answers everything in the same way, and keeps what it was asked."""

    url: str
    status: int = 200
    kind: str = "text/event-stream"
    body: str = ""
    more: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0
    asked: list[tuple[str, str | None, Any]] = field(default_factory=list)

    @property
    def server(self) -> Server:
        return Server(self.url, KEY)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers["Content-Length"] or 0)
            sent = json.loads(self.rfile.read(length)) if length else None
            told.asked.append((self.path, self.headers["Authorization"], sent))
            self.send_response(told.status)
            for name, value in {"Content-Type": told.kind, **told.more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(told.body.encode())
            self.wfile.flush()
            time.sleep(told.pause)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        told = Fake(f"http://127.0.0.1:{http.server_port}/v1")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield told
        http.shutdown()
        thread.join()


def events(*data: str, end: str = "\n") -> str:
    return "".join(f"data: {one}{end}{end}" for one in data)


STREAMS: dict[str, tuple[str, list[str]]] = {
    "pieces": (events(chunk(""), chunk("0."), chunk("5 ü"), chunk(None, "stop"), "[DONE]"), ["", "0.", "5 ü", ""]),
    "no [DONE]": (events(chunk("a"), chunk("b", "length")), ["a", "b"]),
    "nothing behind [DONE]": (events(chunk("a"), "[DONE]", chunk("b")), ["a"]),
    "comments and names": (f": ping - 1\r\n\r\nevent: x\r\n{events(chunk('a'), '[DONE]', end=CRLF)}", ["a"]),
    "figures at the end": (events(chunk("a", "stop"), '{"choices": [], "usage": {"total_tokens": 3}}'), ["a", ""]),
    "a refusal's null": (events('{"choices": [{"delta": null}]}', "[DONE]"), [""]),
}  # fmt: skip


@pytest.mark.parametrize("case", STREAMS)
def test_an_answer_comes_in_pieces(fake: Fake, case: str) -> None:
    fake.body, pieces = STREAMS[case]
    assert list(read_answer(fake.server, REQUEST)) == pieces
    assert fake.asked == [("/v1/chat/completions", f"Bearer {KEY}", {**REQUEST, "stream": True})]


def test_the_first_piece_does_not_wait_for_the_last(fake: Fake) -> None:
    fake.body, fake.pause = events(chunk("a")), 0.5
    began = time.monotonic()
    pieces = read_answer(fake.server, REQUEST)
    assert next(pieces) == "a"
    assert time.monotonic() - began < 0.4
    pieces.close()


def test_a_server_that_does_not_stream(fake: Fake) -> None:
    fake.kind, fake.body = "application/json", '{"choices": [{"message": {"content": "0.5"}}]}'
    assert list(read_answer(Server(fake.url), REQUEST)) == ["0.5"]
    assert fake.asked[0][1] is None, "no key, no header"


def test_the_models_of_a_server(fake: Fake) -> None:
    fake.body = '{"data": [{"id": "rm"}, {"id": "base"}]}'
    assert list_models(fake.server) == ("rm", "base")
    assert fake.asked == [("/v1/models", f"Bearer {KEY}", None)]
    for fake.status in (404, 405):
        assert list_models(fake.server) == ()


NO_PROTOCOL = "does not answer in OpenAI's protocol"
BROKEN = "the connection broke off before the end of the answer"
LOG = "see the server's log"
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a wrong key": ({"status": 401}, "the key is not accepted (401)", openai_client.KEY_HINT),
    "OpenAI's form": (
        {"status": 400, "body": '{"error": {"message": "too\\n long"}}'},
        "answered with error 400: too long",
        "",
    ),
    "vLLM's form": (
        {"status": 404, "body": '{"message": "no model rm"}'},
        "not found (404): no model rm",
        "does the URL end in /v1, as most servers want it?",
    ),
    "FastAPI's form": (
        {"status": 422, "body": '{"detail": [{"loc": 1}]}'},
        'answered with error 422: [{"loc": 1}]',
        "",
    ),
    "no words": ({"status": 500, "body": "<html>"}, "answered with error 500", LOG),
    "a key in the words": (
        {"status": 400, "body": f'{{"detail": "got {KEY} \\u001b[31m"}}'},
        "answered with error 400: got *** [31m",
        "",
    ),
    "elsewhere": (
        {"status": 302, "more": {"Location": "http://127.0.0.1:9/v1"}},
        "sends us to http://127.0.0.1:9/v1",
        "give --url the address that it means",
    ),
    "no JSON": ({"body": "data: {\n\n"}, NO_PROTOCOL, openai_client.URL_HINT),
    "other JSON": ({"body": events('{"a": 1}')}, NO_PROTOCOL, openai_client.URL_HINT),
    "a list": ({"body": events("[1]")}, NO_PROTOCOL, openai_client.URL_HINT),
    "a page": ({"kind": "text/html", "body": "<html>"}, NO_PROTOCOL, openai_client.URL_HINT),
    "an error on the way": (
        {"body": events(chunk("a"), '{"error": {"message": "out of memory"}}')},
        "out of memory",
        LOG,
    ),
    "broken off": ({"body": events(chunk("a"))}, BROKEN, "ask again"),
    "broken off in a part": (
        {"body": "ff\r\ndata: ", "more": {"Transfer-Encoding": "chunked"}},
        BROKEN,
        "ask again",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_server_that_does_not_answer_is_explained(fake: Fake, case: str) -> None:
    told, message, hint = REFUSED[case]
    for name, value in told.items():
        setattr(fake, name, value)
    with pytest.raises(EnvironmentProblem) as caught:
        list(read_answer(fake.server, REQUEST))
    assert (caught.value.message, caught.value.hint) == (f"{fake.url}: {message}", hint)


def test_a_server_that_asks_for_a_key(fake: Fake) -> None:
    fake.status = 401
    with pytest.raises(EnvironmentProblem, match=r"/v1: it asks for a key \(401\)"):
        list_models(Server(fake.url))


@pytest.mark.parametrize("body", ["<html>", "[]", '{"data": [1]}'])
def test_models_of_a_page_that_is_no_server(fake: Fake, body: str) -> None:
    fake.body = body
    with pytest.raises(EnvironmentProblem, match="does not answer in OpenAI's protocol"):
        list_models(fake.server)


def test_silence_is_not_waited_for_forever(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(openai_client, "LIST_SECONDS", 0.1)
    fake.body, fake.pause, fake.more = events(chunk("a")), 0.5, {"Content-Length": "9999"}
    for ask in (lambda: list(read_answer(fake.server, REQUEST)), lambda: list_models(fake.server)):
        with pytest.raises(EnvironmentProblem, match=r"/v1: no answer within 0\.1 s"):
            ask()


NO_WAY: list[tuple[Exception, str]] = [
    (ConnectionRefusedError(111, "Connection refused"), "nothing listens there"),
    (ConnectionResetError(104, "reset"), "it closed the connection without an answer"),
    (socket.gaierror(-2, "Name or service not known"), "no such host"),
    (TimeoutError("timed out"), "no answer within 10 s"),
    (ssl.SSLError(1, "wrong version number"), "no secure connection can be made"),
    (OSError(113, "No route to host"), "cannot be reached: No route to host"),
    (OSError("tunnel failed"), "cannot be reached: tunnel failed"),
]


@pytest.mark.parametrize(("error", "told"), NO_WAY)
def test_a_server_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    def connect(_: object) -> None:
        raise error

    monkeypatch.setattr("http.client.HTTPConnection.connect", connect)
    with pytest.raises(EnvironmentProblem) as caught:
        list_models(Server("http://localhost:8000/v1"))
    assert caught.value.message == f"http://localhost:8000/v1: {told}"


def test_a_program_that_speaks_something_else() -> None:
    def greet() -> None:
        connection, _ = door.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-OpenSSH\r\n")

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(EnvironmentProblem, match="does not answer in OpenAI's protocol"):
            list_models(Server(f"http://127.0.0.1:{door.getsockname()[1]}/v1"))
        thread.join()


def test_a_proxy_of_the_environment_is_used_for_other_machines(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", fake.url.removesuffix("/v1"))
    monkeypatch.delenv("no_proxy", raising=False)
    fake.body = '{"data": []}'
    assert list_models(Server("http://model.example/v1")) == ()
    assert fake.asked[0][0] == "http://model.example/v1/models"


def test_the_key_is_not_shown_with_the_server() -> None:
    assert repr(Server("http://a/v1", KEY)) == "Server(url='http://a/v1')"


@pytest.mark.parametrize(
    ("words", "url"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("https://model.example/openai/v1/", "https://model.example/openai/v1"),
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://[::1]:8000/", "http://[::1]:8000/v1"),
    ],
)
def test_an_address(words: str, url: str) -> None:
    assert parse_url(words) == url


@pytest.mark.parametrize(
    "words",
    ["", "127.0.0.1:8000", "ftp://a/v1", "http://", "http://a:b/v1", "http://a:0/v1", "http://[::1", "http://a b/v1",
     "http://a/\nv1", "http://ä/v1"],
)  # fmt: skip
def test_no_address(words: str) -> None:
    with pytest.raises(UsageProblem, match="--url: must be an address that begins with http:// or https://"):
        parse_url(words)


@pytest.mark.parametrize("words", ["http://me:s3cret@a/v1", "http://a/v1?key=s3cret", "http://a/v1#s3cret"])
def test_an_address_with_a_secret_is_not_repeated(words: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_url(words)
    assert caught.value.message == "--url: takes an address only, no password and no parameters"
