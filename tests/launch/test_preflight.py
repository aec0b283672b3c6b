from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from trainkit.datatypes import Problem
from trainkit.errors import InputError
from trainkit.launch.preflight import check_digest, check_master, check_port, node_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NO_HOST = Problem(
    "--master no-such-node.invalid", "no such host", "use the name or address by which the nodes know each other"
)
FIREWALL = "is the name right, and does no firewall stand between the nodes?"


@pytest.fixture
def door() -> Iterator[socket.socket]:
    """A socket that listens on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_free_port_can_be_used_at_once(door: socket.socket) -> None:
    port = door.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        served, _ = door.accept()
        served.close()  # the server's side closes first, and the port stays in TIME_WAIT
        client.recv(1)
    door.close()
    assert check_port("127.0.0.1", port) == []
    assert check_port("localhost", port) == []
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_port_that_is_taken(door: socket.socket) -> None:
    port = door.getsockname()[1]
    hint = "choose another port, the same on every node"
    assert check_port("127.0.0.1", port) == [
        Problem(f"--master 127.0.0.1:{port}", "another program listens there", hint)
    ]


def test_the_name_of_another_node(door: socket.socket) -> None:
    port = door.getsockname()[1]
    told = Problem(
        "--master 192.0.2.1",  # an address for examples: no machine has it
        "is not an address of this node, which has rank 0 and is the master",
        "name the node of --node-rank 0",
        "warning",
    )
    taken = Problem(f"port {port}", "another program listens there", "choose another port, the same on every node")
    assert check_port("192.0.2.1", port) == [told, taken]
    door.close()
    assert check_port("192.0.2.1", port) == [told]


def test_a_host_that_is_not_there() -> None:
    assert check_port("no-such-node.invalid", 29500) == [NO_HOST]
    assert check_master("no-such-node.invalid", 29500) == [NO_HOST]


def test_a_port_that_only_root_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.bind", refuse)
    message = "cannot be listened on: Permission denied"
    assert check_port("localhost", 80) == [Problem("--master localhost:80", message, "choose a port above 1024")]


def test_a_master_that_answers_is_reached_whether_it_listens_yet_or_not(door: socket.socket) -> None:
    port = door.getsockname()[1]
    assert check_master("127.0.0.1", port) == []
    door.close()
    assert check_master("127.0.0.1", port) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TimeoutError("timed out"), "does not answer within 2.5 s"),
        (OSError(113, "No route to host"), "cannot be reached: No route to host"),
    ],
)
def test_a_master_behind_a_wall(monkeypatch: pytest.MonkeyPatch, error: OSError, message: str) -> None:
    def fail(address: tuple[str, int], timeout: float) -> socket.socket:
        assert (address, timeout) == (("gpu01", 29500), 2.5)
        raise error

    monkeypatch.setattr("socket.create_connection", fail)
    assert check_master("gpu01", 29500, 2.5) == [Problem("--master gpu01:29500", message, FIREWALL)]


def write(folder: Path, **texts: str) -> list[Path]:
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return list(folder.iterdir())


def test_the_same_files_in_another_place_have_the_same_digest(tmp_path: Path) -> None:
    here = node_digest({"model": write(tmp_path / "a", config="{}", weights="1"), "data": write(tmp_path / "b", d="r")})
    there = node_digest(
        {"data": write(tmp_path / "y", d="r"), "model": write(tmp_path / "x", weights="1", config="{}")}
    )
    assert here == there
    assert check_digest(here, there) == []
    parts = dict(word.split(":") for word in here.split(","))
    assert list(parts) == ["data", "model"]
    assert {len(digest) for digest in parts.values()} == {16}


@pytest.mark.parametrize(
    "texts",
    [
        {"config": "{}", "weights": "2"},
        {"config": "{}", "weights": "11"},
        {"config": "{}", "weight": "1"},
        {"config": "{}"},
        {"config": "1", "weights": "{}"},
    ],
)
def test_other_files_have_another_digest(tmp_path: Path, texts: dict[str, str]) -> None:
    data = write(tmp_path / "data", rows="r")
    here = node_digest({"data": data, "model": write(tmp_path / "here", config="{}", weights="1")})
    there = node_digest({"data": data, "model": write(tmp_path / "there", **texts)})
    ours, theirs = (digest.partition("model:")[2] for digest in (here, there))
    assert check_digest(there, here) == [
        Problem(
            "--check-node model",
            f"{ours} on this node, {theirs} on the other",
            "the model must be the same on every node: copy it again, or put it where all nodes see it",
        )
    ]


@pytest.mark.parametrize("word", ["", "yes", "data:12", "data:1,model:2,more:3"])
def test_a_digest_that_was_not_copied_whole(word: str) -> None:
    hint = "copy it whole, as `trainkit train --check-node print` shows it on another node"
    assert check_digest(word, "data:1,model:2") == [
        Problem(f"--check-node {word}", "is no digest of data and model", hint)
    ]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.json: cannot be read: No such file or directory"):
        node_digest({"data": [tmp_path / "gone.json"]})
