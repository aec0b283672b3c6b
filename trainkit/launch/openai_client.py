"""A client of OpenAI's protocol, for any server that speaks it: which models there are, and an answer as it comes.

The key goes into one header and nowhere else: not to another address that a server sends us to, and not into a message.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trainkit.errors import EnvironmentProblem, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIST_SECONDS = 10.0
ANSWER_SECONDS = 300.0  # a long prompt can take a large model minutes before the first word
MOST_WORDS = 300  # characters of what a server says about an error
KEY_HINT = "--key-env VARIABLE names the environment variable that holds the key"
URL_HINT = "for example --url http://127.0.0.1:8000/v1"


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is: `Server("http://127.0.0.1:8000/v1")`; `key` is empty for a server that asks for none."""

    url: str
    key: str = field(default="", repr=False)


class Answered(EnvironmentProblem):
    """A server that answered with an error; `status` is the number of it."""

    status = 0


def parse_url(words: str) -> str:
    """Return the base URL of a server as requests are made from it; without a path it is the usual `/v1`.

    Raises:
        UsageProblem: it is no HTTP address, or holds what belongs into --key-env; the message does not repeat it.
    """
    with suppress(ValueError):  # a port that is no number, a bracket that does not close
        parts = urlsplit(words)
        plain = words.isascii() and words.isprintable() and " " not in words
        if plain and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            if "@" in parts.netloc or parts.query or parts.fragment:
                raise UsageProblem("--url: takes an address only, no password and no parameters", KEY_HINT)
            return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"
    raise UsageProblem("--url: must be an address that begins with http:// or https://", URL_HINT)


def list_models(server: Server) -> tuple[str, ...]:
    """Return the names of the models that the server has; empty when it does not tell.

    Raises:
        EnvironmentProblem: the server cannot be reached, or refuses to answer.
    """
    try:
        with _open(server, "models", LIST_SECONDS) as response:
            listed = json.loads(response.read())["data"]
            return tuple(str(model["id"]) for model in listed)
    except Answered as error:
        if error.status in (404, 405):
            return ()
        raise
    except (ValueError, KeyError, TypeError):
        raise _not_the_protocol(server) from None
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(server, error, LIST_SECONDS) from None


def read_answer(server: Server, request: Mapping[str, Any]) -> Iterator[str]:
    """Yield the pieces of the answer to a request of OpenAI's chat completions (model, messages, temperature, ...).

    Raises:
        EnvironmentProblem: the server cannot be reached, refuses the request, or stops before the end of the answer.
    """
    with _open(server, "chat/completions", ANSWER_SECONDS, {**request, "stream": True}) as response:
        try:
            if response.headers.get_content_type() in ("application/json", "text/html"):
                # a server that does not stream, or a page of something else
                yield _text_of(json.loads(response.read()), "message")
            else:
                yield from _read_events(server, response)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _not_the_protocol(server) from None
        except TimeoutError as error:
            raise _unreachable(server, error, ANSWER_SECONDS) from None
        except (OSError, http.client.HTTPException):
            raise _broken_off(server) from None


def _read_events(server: Server, response: http.client.HTTPResponse) -> Iterator[str]:
    ended = False
    for line in response:
        name, _, data = line.decode(errors="replace").strip().partition(":")
        # other lines are comments, which keep the connection alive, and the names of events
        if name != "data":
            continue
        if data.strip() == "[DONE]":
            return
        chunk = json.loads(data)
        if chunk.get("error"):
            raise EnvironmentProblem(f"{server.url}: {_words_of(chunk, server)}", "see the server's log")
        yield _text_of(chunk, "delta")
        ended = ended or any(choice.get("finish_reason") for choice in chunk["choices"])
    if not ended:
        raise _broken_off(server)


def _text_of(answer: Any, part: str) -> str:
    return "".join((choice.get(part) or {}).get("content") or "" for choice in answer["choices"])


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: the request, key and all, was meant for one address."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _open(server: Server, path: str, seconds: float, body: Mapping[str, Any] | None = None) -> http.client.HTTPResponse:
    headers = {"Content-Type": "application/json", "User-Agent": "trainkit"}
    if server.key:
        headers["Authorization"] = f"Bearer {server.key}"
    data = None if body is None else json.dumps(body).encode()
    # a proxy of the environment has nothing to do with a server on this machine
    handlers = [urllib.request.ProxyHandler({})] if _is_here(server) else []
    opener = urllib.request.build_opener(_NoRedirect, *handlers)
    try:
        request = urllib.request.Request(f"{server.url}/{path}", data, headers)
        response: http.client.HTTPResponse = opener.open(request, timeout=seconds)
    except urllib.error.HTTPError as answer:
        with answer:
            raise _refused(server, answer) from None
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(server, error, seconds) from None
    return response


def _is_here(server: Server) -> bool:
    host = urlsplit(server.url).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _refused(server: Server, answer: urllib.error.HTTPError) -> Answered:
    code = answer.code
    try:
        said = _words_of(json.loads(answer.read(65536)), server)
    except (ValueError, OSError, http.client.HTTPException):
        said = ""
    told = f": {said}" if said else ""
    if code in (401, 403):
        message = f"the key is not accepted ({code})" if server.key else f"it asks for a key ({code})"
        problem = Answered(f"{server.url}: {message}", KEY_HINT)
    elif code == 404:
        problem = Answered(f"{server.url}: not found (404){told}", "does the URL end in /v1, as most servers want it?")
    elif 300 <= code < 400:
        place = answer.headers.get("Location", "somewhere else")
        problem = Answered(f"{server.url}: sends us to {place}", "give --url the address that it means")
    else:
        hint = "see the server's log" if code >= 500 else ""
        problem = Answered(f"{server.url}: answered with error {code}{told}", hint)
    problem.status = code
    return problem


def _words_of(answer: Any, server: Server) -> str:
    """Return what a server says about an error, in the forms of OpenAI, vLLM and FastAPI, on one line."""
    said = answer
    for name in ("error", "message", "detail"):
        said = said.get(name, said) if isinstance(said, dict) else said
    words = said if isinstance(said, str) else json.dumps(said)
    # some servers repeat what they were sent
    hidden = words.replace(server.key, "***") if server.key else words
    return " ".join("".join(sign if sign.isprintable() else " " for sign in hidden).split())[:MOST_WORDS]


def _unreachable(server: Server, error: Exception, seconds: float) -> EnvironmentProblem:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    match reason:
        case ConnectionRefusedError():
            words, hint = "nothing listens there", "start it: trainkit serve; or is it still loading its model?"
        case ConnectionError():
            words, hint = "it closed the connection without an answer", "see the server's log"
        case socket.gaierror():
            words, hint = "no such host", "is the name right?"
        case TimeoutError():
            words, hint = f"no answer within {seconds:g} s", "is it busy, or does a firewall stand between?"
        case ssl.SSLError():
            words, hint = "no secure connection can be made", "is it http:// instead, or is its certificate not known?"
        case http.client.HTTPException():
            return _not_the_protocol(server)
        case _:
            words, hint = f"cannot be reached: {getattr(reason, 'strerror', None) or reason}", ""
    return EnvironmentProblem(f"{server.url}: {words}", hint)


def _not_the_protocol(server: Server) -> EnvironmentProblem:
    return EnvironmentProblem(f"{server.url}: does not answer in OpenAI's protocol", URL_HINT)


def _broken_off(server: Server) -> EnvironmentProblem:
    return EnvironmentProblem(f"{server.url}: the connection broke off before the end of the answer", "ask again")
