"""Stands in for llamafactory-cli: checks the command and its configuration, then behaves as told.

Told by the JSON in $FAKE_TRAINER; every call is written down in $FAKE_CALLS. A wrong call ends with exit code 99.
`by_hand` says that a person calls it, for whom trainkit has prepared nothing but the configuration. `starts` lists what
is told only to the first start, only to the second, and so on.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import yaml

KNOWN = set(json.loads((Path(__file__).parent.parent / "plan" / "schema.json").read_text())["arguments"])
KEYS = ("SWANLAB_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "MODELSCOPE_API_TOKEN", "FORCE_TORCHRUN", "NPROC_PER_NODE")
SERVING = ("API_HOST", "API_PORT", "API_MODEL_NAME", "API_KEY", "API_VERBOSE")
TOLD = json.loads(os.environ.get("FAKE_TRAINER") or "{}")


def refuse(why: str) -> NoReturn:
    print(f"FakeRefusedError: {why}", flush=True)
    sys.exit(99)


def load_config() -> dict[str, Any]:
    if len(sys.argv) != 3 or sys.argv[1] not in ("train", "export", "api"):
        refuse(f"called with {sys.argv[1:]}")
    values = yaml.safe_load(Path(sys.argv[2]).read_text(encoding="utf-8"))
    if unknown := set(values) - KNOWN:
        refuse(f"unknown keys {sorted(unknown)}")
    if secret := [key for key in values if key.endswith(("_token", "api_key"))]:
        refuse(f"a secret in the file: {secret}")
    if sys.stdin.read():
        refuse("stdin is not empty")
    return values


def write_down(values: dict[str, Any]) -> None:
    known = SERVING if sys.argv[1] == "api" else KEYS
    call = {
        "program": sys.argv[1],
        "cwd": str(Path.cwd()),
        "file": sys.argv[2],
        "values": values,
        "env": {name: os.environ[name] for name in os.environ if name in known or name.startswith("WANDB_")},
    }
    with Path(os.environ["FAKE_CALLS"]).open("a") as file:
        file.write(json.dumps(call) + "\n")


def save_weights(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))


def save_archive(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)


def save_model(folder: Path, kind: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "lora":
        (folder / "adapter_config.json").write_text("{}")
        save_weights(folder / "adapter_model.safetensors")
    else:
        (folder / "config.json").write_text('{"model_type": "qwen2"}')
        save_weights(folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")


def save_checkpoint(folder: Path, values: dict[str, Any], step: int, total: int) -> None:
    save_model(folder, values["finetuning_type"])
    for name in ("optimizer.pt", "rng_state.pth"):
        save_archive(folder / name, b"x" * 50)
    state = {"base_lrs": [values["learning_rate"]], "last_epoch": step}
    save_archive(folder / "scheduler.pt", pickle.dumps(state, protocol=2))
    state = {"global_step": step, "max_steps": total, "epoch": TOLD.get("epochs", 3.0) * step / total}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def first_step(values: dict[str, Any]) -> int:
    checkpoint = values.get("resume_from_checkpoint")
    if checkpoint is None:
        if values.get("overwrite_output_dir") is not True and not TOLD.get("by_hand"):
            refuse("may resume by itself: neither resume_from_checkpoint nor overwrite_output_dir")
        return 0
    if not Path(checkpoint).is_absolute() or not (Path(checkpoint) / "trainer_state.json").exists():
        refuse(f"cannot resume from {checkpoint}")
    return int(json.loads((Path(checkpoint) / "trainer_state.json").read_text())["global_step"])


def check_prepared(output: Path) -> None:
    if not (output / "trainkit_run.json").exists():
        refuse(f"output_dir {output} was not prepared")
    if Path.cwd() != Path(sys.argv[2]).absolute().parent or not Path("run.json").exists():
        refuse(f"started in {Path.cwd()}, which is not the run's folder")


def train(values: dict[str, Any], callbacks: Any = ()) -> None:
    TOLD.update(next(iter(TOLD.get("starts", [])[count_starts() - 1 :]), {}))
    output = Path(values["output_dir"])
    if not output.is_absolute():
        refuse(f"output_dir {output} is relative")
    if TOLD.get("by_hand"):
        output.mkdir(parents=True, exist_ok=True)
    else:
        check_prepared(output)
    if not Path(values["model_name_or_path"]).is_absolute():
        refuse("the model's path is relative")
    start, total = first_step(values), TOLD.get("total", values.get("max_steps", 3))
    told = Listeners(callbacks, output, values, total)
    if TOLD.get("begin", True):
        told.call("on_train_begin", start)
    for step in range(start + 1, TOLD.get("stop_at", total) + 1):
        make_step(output, values, step, total)
        told.step_end(step)
    print(TOLD.get("log", ""), flush=True)
    if TOLD.get("wait"):
        (output / "ready").touch()
        for _ in range(1200):
            time.sleep(0.05)
            told.step_end(TOLD.get("stop_at", total))
    if TOLD.get("exit"):
        sys.exit(TOLD["exit"])
    if TOLD.get("linger"):
        (output / "ready").touch()
        time.sleep(TOLD["linger"])
    save_model(output, values["finetuning_type"])
    (output / "trainer_state.json").write_text(json.dumps({"global_step": total, "max_steps": total}))
    (output / "training_loss.png").write_bytes(b"PNG")
    (output / "all_results.json").write_text(
        TOLD.get("results", '{"train_loss": 0.51236, "eval_loss": 0.75, "epoch": 3.0}')
    )


def count_starts() -> int:
    calls = [json.loads(line) for line in Path(os.environ["FAKE_CALLS"]).read_text().splitlines()]
    return sum(call["program"] == "train" for call in calls)


class Listeners:
    """The callbacks of one process, called as transformers does."""

    def __init__(self, callbacks: Any, output: Path, values: dict[str, Any], total: int) -> None:
        self.callbacks, self.output, self.values, self.total = callbacks, output, values, total
        self.args = SimpleNamespace(local_process_index=0, world_size=1, save_only_model=values.get("save_only_model"))
        self.control = SimpleNamespace(should_save=False, should_training_stop=False, should_evaluate=False)

    def call(self, event: str, step: int) -> None:
        state = SimpleNamespace(global_step=step, max_steps=self.total)
        for callback in self.callbacks:
            getattr(callback, event)(self.args, state, self.control)

    def step_end(self, step: int) -> None:
        self.call("on_step_end", step)
        if self.control.should_save and TOLD.get("save", True):
            save_checkpoint(self.output / f"checkpoint-{step}", self.values, step, self.total)
            self.call("on_save", step)
        if self.control.should_training_stop:
            # a trainer that stops and saves nothing, as PPO's
            self.call("on_train_end", step)
            sys.exit(0)


def make_step(output: Path, values: dict[str, Any], step: int, total: int) -> None:
    row = {"current_steps": step, "total_steps": total, "loss": 1.0 / step, "lr": 1e-4, "elapsed_time": "0:00:30"}
    with (output / "trainer_log.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(f"{{'loss': {1.0 / step}}}", flush=True)
    if TOLD.get("save", True):
        save_checkpoint(output / f"checkpoint-{step}", values, step, total)
    time.sleep(TOLD.get("pause", 0))


def export(values: dict[str, Any]) -> None:
    adapter = values.get("adapter_name_or_path")
    if (values["finetuning_type"] == "lora") != (adapter is not None):
        refuse("an adapter goes with finetuning_type lora, and only with it")
    if adapter and not (Path(adapter) / "adapter_config.json").exists():
        refuse(f"{adapter} holds no adapter")
    if not (Path(values["model_name_or_path"]) / "config.json").exists() or Path(values["export_dir"]).exists():
        refuse("there is no model, or the export is there already")
    print(TOLD.get("log", ""), flush=True)
    save_model(Path(values["export_dir"]), "full")
    if TOLD.get("wait"):
        (Path(values["export_dir"]) / "ready").touch()
        time.sleep(60)
    if TOLD.get("export_exit"):
        sys.exit(TOLD["export_exit"])


def api(values: dict[str, Any]) -> None:
    """Serve until a signal (`wait`), or until a moment after the first one asked for its models."""
    if (values["finetuning_type"] == "lora") != ("adapter_name_or_path" in values):
        refuse("an adapter goes with finetuning_type lora, and only with it")
    print(TOLD.get("log", ""), flush=True)
    time.sleep(TOLD.get("load", 0))
    if TOLD.get("exit"):
        sys.exit(TOLD["exit"])
    where = (os.environ["API_HOST"], int(os.environ["API_PORT"]))
    with ThreadingHTTPServer(where, Api) as server:
        server.serve_forever(poll_interval=0.05)


class Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer("application/json", json.dumps({"data": [{"id": os.environ["API_MODEL_NAME"]}]}))
        if not TOLD.get("wait"):
            threading.Timer(0.7, self.server.shutdown).start()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = f"{len(asked['messages'])} {asked['messages'][-1]['content']}"
        chunks = [{"choices": [{"delta": {"content": piece}}]} for piece in text.partition(" ")]
        events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        self.answer("text/event-stream", events + "data: [DONE]\n\n")

    def answer(self, kind: str, text: str) -> None:
        key = os.environ.get("API_KEY")
        known = key is None or self.headers["Authorization"] == f"Bearer {key}"
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode() if known else b'{"detail": "Invalid API key."}')


if __name__ == "__main__":
    config = load_config()
    write_down(config)
    {"train": train, "export": export, "api": api}[sys.argv[1]](config)
