"""What keeps several nodes from training together, found before any of them waits for the others."""

from __future__ import annotations

import errno
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import xxhash

from trainkit.datatypes import Problem
from trainkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

CONNECT_SECONDS = 5.0
BLOCK_BYTES = 4 * 2**20


def check_port(host: str, port: int) -> list[Problem]:
    """Return what keeps the master, this node, from listening where the others will look for it.

    Nothing is kept open: the port can still be taken before the trainer asks for it.
    """
    try:
        _listen(host, port)
    except socket.gaierror:
        return [_unknown(host)]
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return [*_elsewhere(host), *check_port("", port)]
        return [_not_free(host, port, error)]
    return []


def check_master(host: str, port: int, seconds: float = CONNECT_SECONDS) -> list[Problem]:
    """Return what keeps this node from reaching the master.

    A refused connection is as good as an open one: the master answers, and its trainer has not come so far yet.

    Args:
        host: the master's name.
        port: the port that was agreed on.
        seconds: how long to wait for an answer.
    """
    where = f"--master {host}:{port}"
    hint = "is the name right, and does no firewall stand between the nodes?"
    try:
        with closing(socket.create_connection((host, port), timeout=seconds)):
            return []
    except ConnectionRefusedError:
        return []
    except socket.gaierror:
        return [_unknown(host)]
    except TimeoutError:
        return [Problem(where, f"does not answer within {seconds:g} s", hint)]
    except OSError as error:
        return [Problem(where, f"cannot be reached: {error.strerror or error}", hint)]


def node_digest(parts: Mapping[str, Sequence[Path]]) -> str:
    """Return what the files of a training are, to compare with other nodes: `data:5f0c2a91d3b84e67,model:...`.

    The digest is of each file's name and of all its bytes; where the files lie may differ from node to node. Every
    byte is read, which for a large model takes as long as loading it.

    Args:
        parts: the files by what they are, as `{"data": [...], "model": [...]}`.

    Raises:
        InputError: a file cannot be read.
    """
    return ",".join(f"{part}:{_digest(files)}" for part, files in sorted(parts.items()))


def check_digest(expected: str, found: str) -> list[Problem]:
    """Return the parts in which this node's digest is not the other's that was given with `--check-node`."""
    theirs, ours = (dict(_part(word) for word in digest.split(",")) for digest in (expected, found))
    if theirs.keys() != ours.keys():
        hint = "copy it whole, as `trainkit train --check-node print` shows it on another node"
        return [Problem(f"--check-node {expected}", f"is no digest of {' and '.join(sorted(ours))}", hint)]
    return [
        Problem(f"--check-node {part}", f"{ours[part]} on this node, {theirs[part]} on the other", _same_hint(part))
        for part in ours
        if ours[part] != theirs[part]
    ]


def _listen(host: str, port: int) -> None:
    family, kind, _, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind) as door:
        # as the trainer does: a port that was used a moment ago is free
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
        door.listen()


def _not_free(host: str, port: int, error: OSError) -> Problem:
    where = f"--master {host}:{port}" if host else f"port {port}"
    if error.errno == errno.EADDRINUSE:
        return Problem(where, "another program listens there", "choose another port, the same on every node")
    return Problem(where, f"cannot be listened on: {error.strerror}", "choose a port above 1024")


def _elsewhere(host: str) -> list[Problem]:
    message = "is not an address of this node, which has rank 0 and is the master"
    # in a cluster of containers the name may belong to a service in front of the node
    return [Problem(f"--master {host}", message, "name the node of --node-rank 0", "warning")]


def _unknown(host: str) -> Problem:
    return Problem(f"--master {host}", "no such host", "use the name or address by which the nodes know each other")


def _digest(files: Iterable[Path]) -> str:
    lines = sorted(f"{file.name}\0{_file_digest(file)}\n" for file in files)
    return str(xxhash.xxh3_64_hexdigest("".join(lines).encode()))


def _file_digest(file: Path) -> str:
    digest = xxhash.xxh3_128()
    try:
        with file.open("rb", buffering=0) as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _part(word: str) -> tuple[str, str]:
    part, _, digest = word.partition(":")
    return part.strip(), digest.strip()


def _same_hint(part: str) -> str:
    return f"the {part} must be the same on every node: copy it again, or put it where all nodes see it"
