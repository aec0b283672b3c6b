"""A tiny model behind LLaMA-Factory's real server: it answers clients of OpenAI's protocol, and stops when told to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
# Measuring the coverage of the server too would make it several times slower.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
TRAINKIT = (sys.executable, "-m", "trainkit")
KEY = "s3cret-of-the-test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model in it; its path holds a space."""
    folder = tmp_path_factory.mktemp("a place")
    request = {"output": str(folder / "model"), "texts": str(ROOT / "templates" / "demo" / "evaluations.jsonl")}
    program = [sys.executable, str(ROOT / "trainkit" / "inside" / "tiny_model.py")]
    subprocess.run(program, input=json.dumps(request), text=True, check=True, env=ENVIRONMENT, capture_output=True)
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


def post(url: str, body: dict[str, object]) -> dict[str, object]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return dict(json.load(answer))


def test_a_served_model_answers_and_stops(folder: Path) -> None:
    port, env = free_port(), {**ENVIRONMENT, "SERVER_KEY": KEY}
    words = ["serve", "model", "--port", str(port), "--key-env", "SERVER_KEY", "--name", "tiny"]
    with subprocess.Popen(
        [*TRAINKIT, *words], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url == f"http://127.0.0.1:{port}/v1", server.stderr and server.stderr.read()
            family = psutil.Process(server.pid).children(recursive=True)
            talk = ["chat", "--url", url, "--key-env", "SERVER_KEY", "--max-new-tokens", "8", "--temperature", "0"]
            chat = subprocess.run(
                [*TRAINKIT, *talk], cwd=folder, env=env, input="Judge.\nAgain.\n", capture_output=True, text=True
            )
            user = [{"role": "user", "content": "Judge."}]
            answer = post(url, {"model": "tiny", "messages": user, "max_tokens": 8, "temperature": 0})
            server.terminate()
            _, said = server.communicate(timeout=30)
        finally:
            server.kill()
    assert (chat.returncode, chat.stderr) == (0, "")
    text = answer["choices"][0]["message"]["content"].strip()  # type: ignore[index]
    assert text
    assert text in chat.stdout
    assert (server.returncode, said.splitlines()[-1]) == (0, "the server has ended")
    assert psutil.wait_procs(family, timeout=10)[1] == []
    kept = "".join(path.read_text(encoding="utf-8") for path in folder.glob("logs/*/*"))
    assert "POST /v1/chat/completions" in kept
    assert KEY not in kept
