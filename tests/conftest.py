"""A user's folder with a tiny model, converted data and a trainer that only pretends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import trainkit.inside
from trainkit.cli import main
from trainkit.datatypes import Argument, Hardware
from trainkit.plan import arguments
from trainkit.plan.arguments import TrainerSchema
from trainkit.workflow import form
from trainkit.workflow.prepare import Settings, prepare

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
FAKES = HERE / "fakes"
CONFIG = """\
model_name_or_path: ./model
finetuning_type: lora
dataset_dir: ./data
dataset: reward_model_full
template: qwen
num_train_epochs: 3.0
output_dir: ./saves/rm
report_to: none
export_dir: ./exported
"""
MODEL = {
    "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True,
}  # fmt: skip
PACKAGES = ("llamafactory", "transformers", "torch", "peft", "deepspeed", "bitsandbytes", "liger-kernel", "matplotlib")
OURS = ("WANDB_", "SWANLAB_", "TRAINKIT_", "FAKE_", "HF_", "MODELSCOPE_", "NPROC_", "FORCE_", "NNODES")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Place:
    """The working folder of a user, and what they can do in it."""

    folder: Path
    python: Path
    capture: pytest.CaptureFixture[str]

    def trainkit(self, *words: str) -> Done:
        """Run a command line in this process, in this folder."""
        self.capture.readouterr()
        code = main(list(words))
        return Done(code, *map(self.tidy, self.capture.readouterr()))

    def tidy(self, text: str) -> str:
        """Return a text with WORK for this folder, DATE for the time in the name of a run, ROUND for a round's name."""
        text = re.sub(r"\d{8}-\d{6}-", "DATE-", text.replace(str(self.folder), "WORK"))
        return re.sub(r"model_\d{8}_\d{6}(_\d+)?", "ROUND", text)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command line as a user does: a program of its own, in the fake trainer's environment."""
        argv = [str(self.python), "-m", "trainkit", *words]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen(argv, cwd=self.folder, text=True, **streams)

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def config(self, *lines: str) -> None:
        """Write training_config.yaml: the usual one, with these lines in the place of its own of the same key."""
        keys = {line.partition(":")[0] for line in lines}
        kept = [line for line in CONFIG.splitlines() if line.partition(":")[0] not in keys]
        self.write("training_config.yaml", "\n".join([*kept, *lines, ""]))

    def calls(self, program: str = "") -> list[dict[str, Any]]:
        """Return what the fakes were asked, the oldest first; how rows become tokens only when that is asked for."""
        file = Path(os.environ["FAKE_CALLS"])
        calls = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [
            call for call in calls if call["program"] == program or (not program and call["program"] != "chat_form")
        ]

    def run(self) -> Path:
        """Return the newest run folder."""
        return (self.folder / "logs" / "latest").resolve()

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.run() / "run.json").read_text()))

    def tree(self) -> dict[str, bytes]:
        """Return every file below the folder with its content, and every folder."""
        paths = sorted(self.folder.rglob("*"))
        return {str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else b"" for path in paths}


def evaluation(number: int, kind: str = "clip") -> str:
    turns = [{"from": "human", "value": f"Judge step {number}."}, {"from": "gpt", "value": f'{{"score": 0.{number}}}'}]
    metadata = {"evaluation_type": kind, "model_name": "kimi-k2", "task_id": f"qa_{number}", "category": "search"}
    return json.dumps({"conversations": turns, "metadata": metadata}) + "\n"


@pytest.fixture(scope="session")
def trainer_schema() -> TrainerSchema:
    stored = json.loads((HERE / "plan" / "schema.json").read_text())
    found = {
        name: Argument(name, **(fields | {"choices": tuple(fields["choices"])}))
        for name, fields in stored["arguments"].items()
    }
    return TrainerSchema(found, tuple(stored["templates"]), dict.fromkeys(PACKAGES, "1.0") | {"llamafactory": "0.9.5"})


@pytest.fixture(scope="session")
def fake_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has every package of this one, and a llamafactory-cli that pretends."""
    root = tmp_path_factory.mktemp("env")
    (root / "bin").mkdir()
    base = Path(sys.base_prefix) / "bin"
    (root / "pyvenv.cfg").write_text(f"home = {base}\n")
    python = root / "bin" / "python"
    python.symlink_to(Path(sys.executable).resolve())
    library = root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    library.mkdir(parents=True)
    (library / "site-packages").symlink_to(Path(yaml_folder()).parent)
    program = root / "bin" / "llamafactory-cli"
    # not as the interpreter in the first line of a program, where a path with a space would not do
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKES / "llamafactory_cli.py"}" "$@"\n')
    program.chmod(0o755)
    return python


def yaml_folder() -> str:
    return str(Path(msgspec.__file__).parent)


@pytest.fixture
def place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    trainer_schema: TrainerSchema,
    fake_python: Path,
) -> Place:
    """An empty folder to work in; no GPU, no network, nothing of this machine's user."""
    folder, home = tmp_path / "work", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls.jsonl"))
    # the trainer is started by a program of trainkit's own, which finds a LLaMA-Factory here that pretends
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKES / "packages"), os.environ.get("PYTHONPATH", "")]))
    for name in ("COLUMNS", "TERMINAL_WIDTH"):
        monkeypatch.setenv(name, "100")
    monkeypatch.chdir(folder)
    for module in (
        "prepare",
        "start",
        "train",
        "export",
        "chat",
        "serve",
        "init",
        "form",
        "validate",
        "doctor",
        "examine",
        "round_resume",
        "update",
    ):
        monkeypatch.setattr(f"trainkit.workflow.{module}.trainer_python", lambda: fake_python)
    for module in ("export", "chat", "init", "form", "validate", "doctor", "round_resume"):
        monkeypatch.setattr(f"trainkit.workflow.{module}.INSIDE", FAKES / "inside")
    for module in ("prepare", "suggest", "update"):
        monkeypatch.setattr(f"trainkit.workflow.{module}.load_arguments", lambda *_: trainer_schema)
        monkeypatch.setattr(f"trainkit.workflow.{module}.find_hardware", lambda _: Hardware((), 4, 16.0))
    monkeypatch.setattr("trainkit.workflow.start.can_reach", lambda _: False)
    keep_arguments(home / "cache" / "trainkit", fake_python, trainer_schema)
    return Place(folder, fake_python, capfd)


def keep_arguments(cache: Path, python: Path, schema: TrainerSchema) -> None:
    """Write down the trainer's arguments where a program of its own looks for them."""
    cache.mkdir(parents=True)
    key = arguments._cache_key(arguments.installed_versions(python))
    (cache / f"arguments-{key}.json").write_bytes(msgspec.json.encode(schema))


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The data folder that `trainkit convert --split-eval` makes of 40 evaluations."""
    folder = tmp_path_factory.mktemp("converted")
    rows = "".join(evaluation(number, "clip" if number % 2 else "final") for number in range(40))
    (folder / "finetune.jsonl").write_text(rows)
    words = ["convert", str(folder / "finetune.jsonl"), "-o", str(folder / "data"), "--split-eval", "-j", "1", "--json"]
    with contextlib.redirect_stdout(None):
        assert main(words) == 0
    paths = [path for path in (folder / "data").rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def ready(place: Place, converted: dict[str, bytes]) -> Iterator[Place]:
    """A folder in which `trainkit train` can start at once."""
    model = place.path("model")
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL))
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (model / "tokenizer.json").write_text("{}")
    for name, content in converted.items():
        path = place.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    place.config()
    keep_form(place)
    return place


def keep_form(place: Place) -> None:
    """Write down the tokenizer's form where a program of its own looks for it; a byte is a token."""
    prepared = prepare(Settings(base=place.folder))
    schema = dataclasses.replace(prepared.schema, versions=arguments.installed_versions(place.python))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(form, "INSIDE", Path(trainkit.inside.__file__).parent)
        key = form.form_key(dataclasses.replace(prepared, schema=schema), form.form_request(prepared))
    kept = Path(os.environ["XDG_CACHE_HOME"]) / "trainkit" / f"form-{key}.json"
    kept.write_bytes((HERE / "data" / "chat_form.json").read_bytes())


@pytest.fixture(scope="session")
def finished() -> dict[str, bytes]:
    """What a training with export leaves behind, filled in by the first test that asks for `trained`."""
    return {}


@pytest.fixture
def trained(ready: Place, finished: dict[str, bytes]) -> Place:
    """A folder with an adapter in saves/rm and its export in exported, as one real command made them."""
    here = str(ready.folder).encode()
    if not finished:
        ready.config("temperature: 0.2", "trust_remote_code: true")
        assert ready.trainkit("train", "--export").code == 0
        made = (path for name in ("saves", "exported") for path in ready.path(name).rglob("*") if path.is_file())
        finished |= {str(path.relative_to(ready.folder)): path.read_bytes().replace(here, b"@WORK@") for path in made}
        for name in ("saves", "exported", "logs"):
            shutil.rmtree(ready.path(name))
        ready.config()
        Path(os.environ["FAKE_CALLS"]).unlink()
    for name, content in finished.items():
        path = ready.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.replace(b"@WORK@", here))
    return ready
