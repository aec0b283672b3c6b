"""A trained model behind OpenAI's protocol: LLaMA-Factory's own server, or vLLM's; whether it answers, and why not.

Both listen on this machine only, unless another address is asked for: LLaMA-Factory's own default is every address,
without a key. A key goes through the environment, since a command line can be read by everybody on the machine.
"""

from __future__ import annotations

import errno
import http.client
import ipaddress
import os
import re
import shutil
import socket
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from trainkit.datatypes import Command
from trainkit.errors import EnvironmentProblem
from trainkit.launch.diagnosis import BY_EXIT_CODE, OUT_OF_MEMORY, Diagnosis, diagnose
from trainkit.launch.llamafactory import PROGRAM, base_env

if TYPE_CHECKING:
    from collections.abc import Mapping

VLLM = "vllm"
# LLaMA-Factory's template -> how a model that was trained with it writes tool calls, in vLLM's words
TOOL_PARSERS = {
    "qwen": "hermes",
    "qwen3": "hermes",
    "qwen3_nothink": "hermes",
    "llama3": "llama3_json",
    "mistral": "mistral",
}
HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # every address -> the one of this machine
MORE_MEMORY = "serve it on a machine with more memory"
# The rules of a training's log tell what happened to a server too; what they advise would not help it.
HINTS = {
    OUT_OF_MEMORY: "serve it on a GPU with more memory, or end what else runs on this one",
    "this machine is out of memory": MORE_MEMORY,
    BY_EXIT_CODE[137][0]: MORE_MEMORY,
    BY_EXIT_CODE[143][0]: "",
}
TAKEN = re.compile(r"address already in use|EADDRINUSE|\[Errno 98\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and as what: `Address("127.0.0.1", 8000, "rm-tools")`.

    `name` is what a client asks for as `model`; `key` is what it must know, empty for no key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "trainkit"
    key: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """The base URL for a client on this machine."""
        host = HERE.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"

    @property
    def is_private(self) -> bool:
        """Whether only programs of this machine can reach it."""
        if self.host == "localhost":
            return True
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter for vLLM to lay over the model: its folder and its rank."""

    folder: Path
    rank: int


def api_command(config_file: Path, address: Address, *, bin_dir: Path, cwd: Path, env: Mapping[str, str]) -> Command:
    """Return the command of LLaMA-Factory's server for the model, adapter and template that `config_file` names."""
    where = {"API_HOST": address.host, "API_PORT": str(address.port), "API_MODEL_NAME": address.name}
    # every request would be written into the log, whole
    quiet = {} if "API_VERBOSE" in env else {"API_VERBOSE": "0"}
    # a key that the user's shell still holds would lock out a client that was told of none
    added = {**base_env(bin_dir, env), **quiet, **where, "API_KEY": address.key or None}
    return Command((str(bin_dir / PROGRAM), "api", str(config_file)), cwd, added)


def vllm_command(
    model: Path,
    address: Address,
    *,
    program: Path,
    cwd: Path,
    env: Mapping[str, str],
    adapter: Adapter | None = None,
    chat_template: Path | None = None,
    tool_parser: str | None = None,
) -> Command:
    """Return the command of vLLM's server.

    Args:
        model: an exported model, or the base of `adapter`.
        address: where to listen; with an adapter the name is the adapter's, and the base is called `base`.
        program: vLLM's own program (see `find_vllm`).
        cwd: the folder to start in.
        env: the environment that the command will be laid over.
        adapter: a LoRA adapter to serve without merging it.
        chat_template: a file with a chat template; None: the one that the model's tokenizer carries.
        tool_parser: how the model writes tool calls, in vLLM's words: hermes, llama3_json, mistral; None: no tools.
    """
    words = ["serve", str(model), "--host", address.host, "--port", str(address.port)]
    if adapter is None:
        words += ["--served-model-name", address.name]
    else:
        words += ["--served-model-name", "base", "--enable-lora", "--max-lora-rank", str(lora_rank(adapter.rank))]
        words += ["--lora-modules", f"{address.name}={adapter.folder}"]
    if chat_template is not None:
        words += ["--chat-template", str(chat_template)]
    if tool_parser is not None:
        words += ["--enable-auto-tool-choice", "--tool-call-parser", tool_parser]
    added = {**base_env(program.parent, env), "VLLM_API_KEY": address.key or None}
    return Command((str(program), *words), cwd, added)


def lora_rank(rank: int) -> int:
    """Return the rank to ask vLLM for: it takes a few only, the smallest that holds the adapter's.

    Raises:
        EnvironmentProblem: the adapter's is larger than any of them.
    """
    for possible in (8, 16, 32, 64, 128, 256, 320, 512):
        if rank <= possible:
            return possible
    raise EnvironmentProblem(f"a LoRA adapter of rank {rank}: vLLM takes 512 at most", "merge it: trainkit export")


def find_vllm(python: Path, env: Mapping[str, str]) -> Path:
    """Return the program of vLLM beside `python`, or the first one on the PATH of `env`.

    Raises:
        EnvironmentProblem: there is none.
    """
    found = shutil.which(VLLM, path=os.pathsep.join((str(python.parent), env.get("PATH", ""))))
    if found is None:
        raise EnvironmentProblem(
            f"{VLLM}: not found beside {python} nor on the PATH",
            "install it in an environment of its own, whose bin folder is on the PATH: LLaMA-Factory's does not fit it",
        )
    return Path(found)


def is_ready(address: Address, timeout_seconds: float = 2.0) -> bool:
    """Return whether the server has loaded its model and answers; asked again and again while it starts."""
    request = urllib.request.Request(f"{address.url}/models")
    if address.key:
        request.add_header("Authorization", f"Bearer {address.key}")
    # a proxy of the environment has nothing to do with a server of our own
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_seconds):
            return True
    except urllib.error.HTTPError as answer:
        answer.close()
        return False
    except (OSError, http.client.HTTPException):
        return False


def is_ours(address: Address) -> bool:
    """Return whether a program that was started here listens there, and not one that took the port meanwhile."""
    return any(_listens(child, address.port) for child in psutil.Process().children(recursive=True))


def _listens(process: psutil.Process, port: int) -> bool:
    # a process that ended meanwhile listens no more
    with suppress(psutil.Error):
        found = process.net_connections(kind="tcp")
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in found)
    return False


def check_free(address: Address) -> None:
    """Check that a server can listen there, before it loads its model for minutes.

    Raises:
        EnvironmentProblem: another program listens there, or this machine has no such address.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        socket.create_server(where[:2], family=family).close()
    except socket.gaierror:
        raise EnvironmentProblem(f"--host {address.host}: no such host", "127.0.0.1 is this machine") from None
    except OSError as error:
        raise _not_free(address, error) from None


def _not_free(address: Address, error: OSError) -> EnvironmentProblem:
    if error.errno == errno.EADDRINUSE:
        hint = f"stop it, or choose another port: --port {address.port + 1}"
        return EnvironmentProblem(f"--port {address.port}: another program listens there", hint)
    if error.errno == errno.EADDRNOTAVAIL:
        message = f"--host {address.host}: is not an address of this machine"
        return EnvironmentProblem(message, "0.0.0.0 listens on every address that it has")
    words = f"--host {address.host} --port {address.port}: cannot be listened on: {error.strerror}"
    return EnvironmentProblem(words, "choose a port above 1024")


def diagnose_server(log_tail: str, exit_code: int, address: Address) -> Diagnosis:
    """Return why a server ended by itself, judged by the end of its log."""
    found = diagnose(log_tail, exit_code)
    if TAKEN.search(log_tail):
        title = f"another program took port {address.port} while the model was loading"
        return Diagnosis(title, found.lines, f"choose another port: --port {address.port + 1}")
    title = found.title.replace("the trainer", "the server")
    return Diagnosis(title, found.lines, HINTS.get(found.title, found.hint))
