"""A trained model behind OpenAI's protocol: LLaMA-Factory's own server, or vLLM's; and whether it answers.

Both listen on this machine only, unless another address is asked for: LLaMA-Factory's own default is every address,
without a key. A key goes through the environment, since a command line can be read by everybody on the machine.
"""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.datatypes import Command
from trainkit.errors import EnvironmentProblem
from trainkit.launch.llamafactory import PROGRAM, base_env

if TYPE_CHECKING:
    from collections.abc import Mapping

VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and as what: `Address("127.0.0.1", 8000, "rm-tools")`.

    `name` is what a client asks for as `model`; `key` is what it must know, empty for no key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "trainkit"
    key: str = ""

    @property
    def url(self) -> str:
        """The base URL for a client on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{host}:{self.port}/v1"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter for vLLM to lay over the model: its folder and its rank."""

    folder: Path
    rank: int


def api_command(config_file: Path, address: Address, *, bin_dir: Path, cwd: Path, env: Mapping[str, str]) -> Command:
    """Return the command of LLaMA-Factory's server for the model, adapter and template that `config_file` names."""
    where = {"API_HOST": address.host, "API_PORT": str(address.port), "API_MODEL_NAME": address.name}
    # a key that the user's shell still holds would lock out a client that was told of none
    added = {**base_env(bin_dir, env), **where, "API_KEY": address.key or None}
    return Command((str(bin_dir / PROGRAM), "api", str(config_file)), cwd, added)


def vllm_command(
    model: Path,
    address: Address,
    *,
    program: Path,
    cwd: Path,
    env: Mapping[str, str],
    adapter: Adapter | None = None,
    tool_parser: str | None = None,
) -> Command:
    """Return the command of vLLM's server; the chat template is the one that the model's tokenizer carries.

    Args:
        model: an exported model, or the base of `adapter`.
        address: where to listen; with an adapter the name is the adapter's, and the base is called `base`.
        program: vLLM's own program (see `find_vllm`).
        cwd: the folder to start in.
        env: the environment that the command will be laid over.
        adapter: a LoRA adapter to serve without merging it.
        tool_parser: how the model writes tool calls, in vLLM's words: hermes, llama3_json, mistral; None: no tools.
    """
    words = ["serve", str(model), "--host", address.host, "--port", str(address.port)]
    if adapter is None:
        words += ["--served-model-name", address.name]
    else:
        words += ["--served-model-name", "base", "--enable-lora", "--max-lora-rank", str(lora_rank(adapter.rank))]
        words += ["--lora-modules", f"{address.name}={adapter.folder}"]
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
