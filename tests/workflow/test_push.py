"""`trainkit export --push` with the real huggingface_hub, against a hub of this machine."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.workflow.push import find_hub_name, model_card

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Place

TOKEN = "hf_" + "aSecretThatNobodyMaySee"
WEIGHTS = "model.safetensors"
CARD = """\
---
library_name: transformers
tags:
- llama-factory
---

# judge

This is a model after lora fine-tuning (stage sft) with LLaMA-Factory; an adapter is merged into it.
It holds 0 parameters in None.

It was trained in the form of LLaMA-Factory's template `qwen`; talk to it with its tokenizer's chat template.
"""
EXPORTED = "exported model WORK/exported\n"
CHECKED = "checked        14 of 27 tensors differ from the base model; it loads and answers\n"
AS_BEFORE = "checked        before; neither it nor what it was made of has changed\n"
NEW_CARD = "note: its model card is a start: add a licence and what it is for; a later push keeps the card\n"


@dataclass
class Hub:
    """What the hub of a test holds, how it answers, and what it was asked."""

    user: dict[str, Any] = field(
        default_factory=lambda: {
            "type": "user", "name": "me", "orgs": [{"name": "us"}], "auth": {"accessToken": {"role": "write"}},
        }
    )  # fmt: skip
    private: bool | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    calls: list[str] = field(default_factory=list)
    failing: dict[str, tuple[int, Any]] = field(default_factory=dict)
    slow: str = ""
    end: threading.Event = field(default_factory=threading.Event)

    def model(self, name: str, url: str) -> tuple[int, Any]:
        siblings = [{"rfilename": file} for file in sorted(self.files)]
        about = {"id": name, "sha": f"{self.commits:040x}", "private": self.private, "siblings": siblings}
        return (404, "RepoNotFound") if self.private is None else (200, about | {"url": url})

    def create(self, asked: dict[str, Any], url: str) -> tuple[int, Any]:
        status = 200 if self.private is None else 409
        if self.private is None:
            self.private = asked["visibility"] == "private"
        return status, {"url": f"{url}/{asked['organization']}/{asked['name']}"}

    def modes(self, asked: dict[str, Any]) -> tuple[int, Any]:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": self.oid(file["path"]),
            }
            for file in asked["files"]
        ]
        return 200, {"files": files}

    def oid(self, path: str) -> str | None:
        content = self.files.get(path)
        if content is None:
            return None
        if path.endswith(".safetensors"):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def batch(self, asked: dict[str, Any], url: str) -> tuple[int, Any]:
        objects = [
            file
            if file["oid"] in self.stored
            else file | {"actions": {"upload": {"href": f"{url}/lfs/{file['oid']}?X-Amz-Signature=mayWrite"}}}
            for file in asked["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def commit(self, lines: list[dict[str, Any]], url: str) -> tuple[int, Any]:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
        self.commits += 1
        oid = f"{self.commits:040x}"
        return 200, {"commitOid": oid, "commitUrl": f"{url}/me/judge/commit/{oid}"}


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers["Content-Length"])))

        def do_PUT(self) -> None:
            self.do_POST()

        def answer(self, body: bytes) -> None:
            path = self.path.partition("?")[0]
            if path != "/api/agent-harnesses":  # the library asks this of itself, now and then
                hub.calls.append(f"{self.command} {path}")
            if hub.slow and path.startswith(hub.slow):
                hub.end.wait(60)
            status, value = self.find(path, body)
            text = json.dumps({"error": value} if isinstance(value, str) else value).encode()
            with contextlib.suppress(BrokenPipeError):
                self.send_response(status)
                if isinstance(value, str):
                    self.send_header("X-Error-Code" if status == 404 else "X-Error-Message", value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        def find(self, path: str, body: bytes) -> tuple[int, Any]:
            url = f"http://{self.headers['Host']}"
            if failing := next((answer for part, answer in hub.failing.items() if re.search(part, path)), None):
                return failing
            if path.startswith("/lfs/"):
                hub.stored[path.removeprefix("/lfs/")] = body
                return 200, {}
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return 401, "Invalid credentials"
            return self.find_api(path, body, url)

        def find_api(self, path: str, body: bytes, url: str) -> tuple[int, Any]:
            if path == "/api/whoami-v2":
                return 200, hub.user
            if path.endswith("/commit/main"):
                return hub.commit([json.loads(line) for line in body.splitlines()], url)
            if self.command == "GET":
                return hub.model(path.removeprefix("/api/models/").partition("/revision")[0], url)
            asked = json.loads(body)
            if path == "/api/repos/create":
                return hub.create(asked, url)
            if path == "/api/validate-yaml":
                return 200, {"errors": [], "warnings": []}
            return hub.modes(asked) if path.endswith("/preupload/main") else hub.batch(asked, url)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub(trained: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that knows one login, and the environment that leads there."""
    shutil.rmtree(trained.path("exported"))
    found = Hub()
    monkeypatch.setattr("trainkit.workflow.push.trainer_python", lambda: trained.python)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(found)) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield found
        found.end.set()
        server.shutdown()


def tidy(text: str) -> str:
    return re.sub(r"http://127\.0\.0\.1:\d+", "HUB", text)


def test_an_export_is_pushed_once_and_only_its_checked_files(hub: Hub, trained: Place) -> None:
    done = trained.trainkit("export", "--push", "me/judge")
    assert (done.code, done.err) == (0, "warning: the answer is long\n" + NEW_CARD)
    assert tidy(done.out) == f"{EXPORTED}{CHECKED}pushed         HUB/me/judge (private)\n"
    names = ["config.json", WEIGHTS, "tokenizer.json"]
    assert hub.files == {name: trained.path(f"exported/{name}").read_bytes() for name in names} | {
        "README.md": CARD.encode()
    }
    assert hub.calls[:2] == ["GET /api/whoami-v2", "GET /api/models/me/judge"]
    assert not any(str(trained.folder).encode() in content for content in hub.files.values())

    trained.write("exported/.env", "mine")
    hub.calls.clear()
    again = trained.trainkit("export", "--push", "me/judge")
    assert (again.code, again.err) == (0, "")
    assert (
        tidy(again.out)
        == f"{EXPORTED}{AS_BEFORE}pushed         HUB/me/judge (private; the same files were there already)\n"
    )
    assert (hub.commits, len(trained.calls("export"))) == (1, 1)
    assert not [call for call in hub.calls if call.startswith("PUT") or "commit" in call]


def test_a_model_that_changed_is_exported_again_and_takes_the_place_of_the_old_one(hub: Hub, trained: Place) -> None:
    assert trained.trainkit("export", "--push", "me/judge").code == 0
    hub.files |= {"README.md": b"my words", "model-00001-of-00002.safetensors": b"old", "notes.txt": b"mine"}
    hub.files["model.safetensors.index.json"] = b"{}"
    weights = trained.path("saves/rm/adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes())
    done = trained.trainkit("export", "--push", "me/judge", "--json")
    assert tidy(json.dumps(done.json["pushed"])) == json.dumps(
        {"url": "HUB/me/judge", "private": True, "changed": True, "new_card": False}
    )
    assert len(trained.calls("export")) == 2
    assert sorted(hub.files) == ["README.md", "config.json", WEIGHTS, "notes.txt", "tokenizer.json"]
    assert hub.files["README.md"] == b"my words"


CHANGES: dict[str, tuple[Callable[[Place], object], list[str]]] = {
    "another size": (lambda place: place.path("model"), ["--size", "1"]),
    "the base model": (lambda place: place.write("model/config.json", '{"model_type": "qwen2", "a": 1}'), []),
    "the export": (lambda place: place.write("exported/config.json", "{}"), []),
    "a file of the export": (lambda place: place.write("exported/extra.json", "{}"), []),
    "no export": (lambda place: shutil.rmtree(place.path("exported")), []),
    "an export of before": (
        lambda place: place.write("exported/trainkit_run.json", '{"kind": "export", "report": {}}'), [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_what_is_not_the_checked_export_of_this_model_is_exported_again(
    hub: Hub, trained: Place, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    change, words = CHANGES[case]
    assert trained.trainkit("export").code == 0
    change(trained)
    monkeypatch.setattr("trainkit.workflow.push.ask_hub", lambda *_: ANSWER)
    for exports in (2, 2):
        assert trained.trainkit("export", "--push", "me/judge", *words).code == 0
        assert len(trained.calls("export")) == exports
    assert hub.calls == []


ANSWER = {"private": None, "url": "HUB/me/judge", "changed": True, "new_card": True}
LOG_IN = (
    "    log in with: hf auth login, or set HF_TOKEN; a token that may write: https://huggingface.co/settings/tokens\n"
)
GO_ON = "    the same command goes on: what is exported or sent already is not done again\n"
FORM = "    for example --push me/my-judge\n"


def other_role(hub: Hub, role: str) -> None:
    hub.user["auth"]["accessToken"]["role"] = role


REFUSED: dict[str, tuple[Any, list[str], int, str]] = {
    "no owner": (None, ["judge"], 2, f"error: --push judge: must be owner/model\n{FORM}"),
    "a path": (None, ["./me/judge"], 2, f"error: --push ./me/judge: must be owner/model\n{FORM}"),
    "no name of the hub": (None, ["me/a--b"], 1, "error: me/a--b: not a name for a model: Cannot have -- or .. in"),
    "no login": (
        lambda _, patch: patch.delenv("HF_TOKEN"), ["me/judge"], 1,
        f"error: me/judge: nobody is logged in to the Hugging Face Hub here\n{LOG_IN}",
    ),
    "a wrong login": (
        lambda _, patch: patch.setenv("HF_TOKEN", TOKEN + "x"), ["me/judge"], 1,
        "error: me/judge: the Hugging Face Hub does not know this login: ",
    ),
    "a login that reads": (
        lambda hub, _: other_role(hub, "read"), ["me/judge"], 1,
        f"error: me/judge: the token of me may only read\n{LOG_IN}",
    ),
    "somebody else's name": (
        None, ["you/judge"], 1,
        "error: you/judge: me may write to me, us, not to you\n"
        "    name one of these owners, or log in as another: hf auth login\n",
    ),
    "a public model": (
        lambda hub, _: setattr(hub, "private", False), ["us/judge"], 1,
        "error: us/judge is public on the Hugging Face Hub, and the model would be too\n"
        "    --public if that is what you want; else make it private in its settings there, or choose another name\n",
    ),
    "offline": (
        lambda _, patch: patch.setenv("HF_HUB_OFFLINE", "1"), ["me/judge"], 1,
        "error: me/judge: HF_HUB_OFFLINE is set, so nothing can be pushed\n    unset HF_HUB_OFFLINE\n",
    ),
    "no network": (
        lambda _, patch: patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9"), ["me/judge"], 1,
        "error: me/judge: the Hugging Face Hub does not answer: [Errno 111] Connection refused\n"
        "    is there a network here? a proxy goes into HTTPS_PROXY, a mirror into HF_ENDPOINT\n",
    ),
    "too often": (
        lambda hub, _: hub.failing.update({"whoami": (429, "slow down")}), ["me/judge"], 1,
        "error: me/judge: the Hugging Face Hub asks to wait: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hub_would_refuse_is_said_before_the_export(
    hub: Hub, trained: Place, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    change, words, code, told = REFUSED[case]
    if change:
        change(hub, monkeypatch)
    before = trained.tree()
    done = trained.trainkit("export", "--push", *words)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(told)
    assert TOKEN not in done.err
    assert (trained.tree(), trained.calls("export"), hub.commits) == (before, [], 0)


def test_the_disk_is_looked_at_before_the_hub(hub: Hub, trained: Place) -> None:
    trained.write("exported/thesis.tex", "years of work")
    done = trained.trainkit("export", "--push", "me/judge")
    assert (done.code, hub.calls) == (1, [])
    assert done.err.startswith("error: WORK/exported: exists and was not written by trainkit export\n")


def test_public_needs_a_push(trained: Place) -> None:
    done = trained.trainkit("export", "--public")
    assert (done.code, done.err) == (2, "error: --public: goes with --push OWNER/MODEL\n")


def test_who_may_see_a_model_is_the_users_word_for_a_new_one_and_the_hubs_for_an_old_one(
    hub: Hub, trained: Place
) -> None:
    other_role(hub, "fineGrained")
    done = trained.trainkit("export", "--push", "them/judge", "--public")
    assert (done.code, tidy(done.out.splitlines()[-1])) == (0, "pushed         HUB/them/judge (public)")
    hub.private = True
    done = trained.trainkit("export", "--push", "them/judge", "--public")
    assert tidy(done.out.splitlines()[-1]) == (
        "pushed         HUB/them/judge (private; the same files were there already)"
    )
    assert done.err == "note: it was private before and stays so: make it public in its settings there\n"


FAILING: dict[str, tuple[dict[str, tuple[int, Any]], str]] = {
    "no right": (
        {"/commit/": (403, "this token may not write to me/judge")},
        "error: me/judge: the Hugging Face Hub refuses it: this token may not write to me/judge\n"
        f"    may this login write there? {LOG_IN.strip()}\n",
    ),
    "no space": (
        {"/lfs/objects/batch": (400, "no space left for me")},
        f"error: me/judge: the push failed: no space left for me\n{GO_ON}",
    ),
    "a line that breaks": (
        {"^/lfs/": (410, {})},
        "error: me/judge: the push failed: Client error '410 Gone' for url 'HUB/lfs/OID?...",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_push_that_failed_goes_on_where_it_stopped(hub: Hub, trained: Place, case: str) -> None:
    failing, told = FAILING[case]
    hub.failing.update(failing)
    done = trained.trainkit("export", "--push", "me/judge")
    assert (done.code, done.out) == (1, EXPORTED + CHECKED)
    err = re.sub(r"\b[0-9a-f]{64}\b", "OID", tidy(done.err)).removeprefix("warning: the answer is long\n")
    assert err.startswith(told)
    assert "mayWrite" not in done.err
    hub.failing.clear()
    sent = len(hub.stored)
    hub.calls.clear()
    assert trained.trainkit("export", "--push", "me/judge").code == 0
    assert (len(trained.calls("export")), hub.commits) == (1, 1)
    assert len([call for call in hub.calls if call.startswith("PUT")]) == 1 - sent


def test_a_model_that_became_public_meanwhile_gets_nothing(
    hub: Hub, trained: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainkit.workflow.push.check_push", lambda *_: setattr(hub, "private", False))
    done = trained.trainkit("export", "--push", "me/judge")
    assert (done.code, hub.files) == (1, {})
    assert "error: me/judge is public on the Hugging Face Hub, and the model would be too\n" in done.err


def test_a_library_that_falls_over_is_said_in_a_line(hub: Hub, trained: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    trained.write("programs/push.py", "raise MemoryError('no more')")
    monkeypatch.setattr("trainkit.workflow.push.INSIDE", trained.path("programs"))
    done = trained.trainkit("export", "--push", "me/judge")
    told = "error: me/judge: the push failed: MemoryError: no more\n"
    assert (done.code, done.out, done.err, hub.calls) == (1, "", told + GO_ON, [])


def test_a_stopped_push_keeps_the_export(hub: Hub, trained: Place) -> None:
    hub.slow = "/lfs/"
    main_thread = os.getpid()

    def stop_when_sending() -> None:
        while not any(call.startswith("PUT") for call in hub.calls):
            time.sleep(0.02)
        os.kill(main_thread, signal.SIGTERM)

    threading.Thread(target=stop_when_sending, daemon=True).start()
    done = trained.trainkit("export", "--push", "me/judge")
    assert (done.code, done.out) == (143, EXPORTED + CHECKED)
    assert done.err.endswith("error: push stopped; the export is in WORK/exported, and the same command goes on\n")
    assert trained.path("exported/model.safetensors").exists()
    assert hub.files == {}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("/cache/hub/models--Qwen--Qwen2.5-7B-Instruct/snapshots/a09a3545", "Qwen/Qwen2.5-7B-Instruct"),
        ("/cache/hub/models--Qwen--Qwen2.5-7B-Instruct", None),
        ("/home/me/secret-client/model", None),
    ],
)
def test_the_card_names_only_what_the_hub_knows(model: str, name: str | None) -> None:
    assert find_hub_name(model) == name
    marker = {
        "model_name_or_path": model, "template": "qwen", "stage": "sft", "finetuning_type": "lora",
        "dataset": "secret_rows", "source": "/home/me/saves", "report": {"parameters": 1234567, "dtype": "bfloat16"},
    }  # fmt: skip
    card = model_card(marker, "me/judge")
    assert (f"base_model: {name}\n" in card) is (name is not None)
    assert "1,234,567 parameters in bfloat16" in card
    assert not [word for word in ("secret", "/home", "/cache", "saves") if word in card]
