"""`scheduler_lr.py`: a new learning rate takes effect from the first step on, and no linked file is written to."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.inside.scheduler_lr import find_member

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]

# A resumed training: the states are loaded as transformers does, then one step is taken from a weight of 1 with a
# gradient that makes AdamW without decay move by its learning rate.
TRAINING = """
import json, sys, torch
folder, rate, kind, action = sys.argv[1:]
weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
groups = [{"params": [weight]}]
if kind == "several":
    groups.append({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 16 * float(rate)})
optimizer = torch.optim.AdamW(groups, lr=float(rate), weight_decay=0.0, eps=1e-30)
if kind == "plateau":
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
else:
    warmup = 8 if kind == "warmup" else 1
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / warmup))
if action == "resume":
    optimizer.load_state_dict(torch.load(f"{folder}/optimizer.pt", weights_only=True))
    scheduler.load_state_dict(torch.load(f"{folder}/scheduler.pt", weights_only=True))
moved = []
for _ in range(2):
    before = weight.detach().clone()
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    moved.append(float((before - weight.detach())[0]))
    scheduler.step(*([1.0] if kind == "plateau" else []))
if action == "save":
    torch.save(optimizer.state_dict(), f"{folder}/optimizer.pt")
    torch.save(scheduler.state_dict(), f"{folder}/scheduler.pt")
print(json.dumps({"last": scheduler.get_last_lr(), "moved": moved}))
"""

# The file of one process under ZeRO, with the classes that DeepSpeed itself puts there.
ZERO_FILE = """
import sys, torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
groups = [{"lr": 1e-5, "betas": (0.9, 0.999), "params": [0]}]
inner = {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": groups}
state = {
    "loss_scaler": LossScaler(1.0), "zero_stage": ZeroStageEnum.gradients, "base_optimizer_state": inner,
    "param_slice_mappings": [{"weight": fragment_address(4, 0)}],
}
folder = sys.argv[1]
torch.save({"optimizer_state_dict": state}, f"{folder}/optim_states.pt")
torch.save({"module": {"weight": torch.ones(2)}, "optimizer": None, "lr_scheduler": None}, f"{folder}/model_states.pt")
lambdas = {"base_lrs": [2e-5], "_last_lr": [1e-5]}
torch.save({"optimizer": {"optimizer_state_dict": inner}, "lr_scheduler": lambdas}, f"{folder}/stage0_states.pt")
torch.save({"base_lrs": [2e-5], "_last_lr": [1e-5], "last_epoch": 1}, f"{folder}/scheduler.pt")
"""
READ_ZERO = """
import json, sys, torch
folder = sys.argv[1]
outer = torch.load(f"{folder}/optim_states.pt", weights_only=False)["optimizer_state_dict"]
stage0 = torch.load(f"{folder}/stage0_states.pt", weights_only=False)
inner = outer["base_optimizer_state"]
print(json.dumps({
    "lr": inner["param_groups"][0]["lr"], "scale": outer["loss_scaler"].cur_scale, "stage": int(outer["zero_stage"]),
    "numel": outer["param_slice_mappings"][0]["weight"].numel, "average": inner["state"][0]["exp_avg"].tolist(),
    "stage0": [stage0["optimizer"]["optimizer_state_dict"]["param_groups"][0]["lr"], stage0["lr_scheduler"]],
}))
"""


def python(script: str, *arguments: object) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return dict(json.loads(lines[-1])) if lines and lines[-1].startswith("{") else {}


def train(folder: Path, rate: float, kind: str, action: str) -> dict[str, Any]:
    return python(TRAINING, folder, rate, kind, action)


def request(folder: Path, *files: str, rate: float = 1e-6) -> dict[str, Any]:
    return {"folder": str(folder), "files": ["scheduler.pt", *(files or ("optimizer.pt",))], "learning_rate": rate}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "moved", "last"),
    [
        ("constant", [1e-6, 1e-6], 1e-6),
        ("warmup", [1e-6 * 2 / 8, 1e-6 * 3 / 8], 1e-6 * 4 / 8),
    ],
)
def test_the_next_step_and_all_later_ones_use_the_new_rate(
    run: Run, tmp_path: Path, kind: str, moved: list[float], last: float
) -> None:
    train(tmp_path, 2e-5, kind, "save")
    # without the copy, or with the scheduler's file alone, the old rate would rule
    stale = train(tmp_path, 1e-6, kind, "resume")
    assert stale["moved"] == pytest.approx([20 * step for step in moved])
    users = tmp_path / "users"
    users.mkdir()
    before = {}
    for name in ("optimizer.pt", "scheduler.pt"):
        os.link(tmp_path / name, users / name)
        before[name] = (users / name).read_bytes()

    done = run("scheduler_lr", stdin=request(tmp_path))
    answer = {"ok": True, "old": 2e-5, "rewritten": ["scheduler.pt", "optimizer.pt"]}
    assert (done.returncode, json.loads(done.stdout)) == (0, answer), done.stderr
    assert {name: (users / name).read_bytes() for name in before} == before
    assert {path.name for path in tmp_path.iterdir()} == {"optimizer.pt", "scheduler.pt", "users"}
    resumed = train(tmp_path, 1e-6, kind, "resume")
    assert resumed["moved"] == pytest.approx(moved, rel=1e-9)
    assert resumed["last"] == [pytest.approx(last, rel=1e-12)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("several", "scheduler.pt: several learning rates (2e-05, 0.00032): which of them to change is unknown"),
        ("plateau", "scheduler.pt: a scheduler without base_lrs (reduce_lr_on_plateau) cannot get a new learning rate"),
        ("zero", "scheduler.pt: the base learning rate is 0.0, a new one would have no ratio to it"),
    ],
)
def test_a_scheduler_whose_rate_cannot_be_changed(run: Run, tmp_path: Path, kind: str, error: str) -> None:
    train(tmp_path, 0.0 if kind == "zero" else 2e-5, kind, "save")
    before = (tmp_path / "scheduler.pt").read_bytes()
    done = run("scheduler_lr", stdin=request(tmp_path))
    assert (done.returncode, json.loads(done.stdout)) == (1, {"ok": False, "error": f"{tmp_path}/{error}"})
    assert (tmp_path / "scheduler.pt").read_bytes() == before


# how Python 3.11.0 to 3.11.3 pickle a member of an enumeration, and other ones do not
BY_NAME = "ZeroStageEnum.__reduce_ex__ = lambda self, protocol: (getattr, (type(self), self.name))\n"


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", BY_NAME])
def test_deepspeeds_files(run: Run, tmp_path: Path, before: str) -> None:
    python(ZERO_FILE.replace("\nstate = {", f"\n{before}state = {{", 1), tmp_path)
    untouched = (tmp_path / "model_states.pt").stat().st_ino
    files = ("optim_states.pt", "model_states.pt", "stage0_states.pt")
    done = run("scheduler_lr", stdin=request(tmp_path, *files))
    rewritten = ["scheduler.pt", "optim_states.pt", "stage0_states.pt"]
    assert json.loads(done.stdout) == {"ok": True, "old": 2e-5, "rewritten": rewritten}, done.stderr
    half = pytest.approx(5e-7, rel=1e-12)
    assert python(READ_ZERO, tmp_path) == {
        "lr": half, "scale": 1.0, "stage": 2, "numel": 4, "average": [1.0] * 4,
        "stage0": [half, {"base_lrs": [1e-6], "_last_lr": [half]}],
    }  # fmt: skip
    assert (tmp_path / "model_states.pt").stat().st_ino == untouched
    # files that hold no rate at all are no success
    done = run("scheduler_lr", stdin=request(tmp_path, "model_states.pt"))
    assert json.loads(done.stdout)["error"] == f"{tmp_path}: no learning rate found in model_states.pt"


HOSTILE = """
import os, sys, torch
class Call:
    def __reduce__(self):
        return (os.system, (f"touch {sys.argv[1]}/ran",))
torch.save({"base_lrs": Call()}, f"{sys.argv[1]}/scheduler.pt")
torch.save([1], f"{sys.argv[1]}/list.pt")
"""


@pytest.mark.slow
def test_files_that_are_no_state(run: Run, tmp_path: Path) -> None:
    def error_of(name: str) -> str:
        asked = {"folder": str(tmp_path), "files": [name], "learning_rate": 1e-6}
        done = run("scheduler_lr", stdin=asked)
        assert done.returncode == 1
        return str(json.loads(done.stdout)["error"]).removeprefix(f"{tmp_path}/")

    python(HOSTILE, tmp_path)
    assert error_of("scheduler.pt") == f"scheduler.pt: names {os.system.__module__}.system, which is not read"
    assert not (tmp_path / "ran").exists()
    assert error_of("list.pt") == "list.pt: holds a list, not a state"
    (tmp_path / "cut.pt").write_bytes((tmp_path / "list.pt").read_bytes()[:-30])
    assert error_of("cut.pt").startswith("cut.pt: cannot be read: ")


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ("{", "the request is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ([], "the request is not a JSON object"),
        ({"folder": "x"}, "the request has no files and no learning_rate"),
    ],
)
def test_a_request_that_cannot_be_carried_out(run: Run, asked: Any, error: str) -> None:
    done = run("scheduler_lr", stdin=asked)
    assert (done.returncode, json.loads(done.stdout)) == (1, {"ok": False, "error": error})


def test_getattr_finds_members_of_enumerations_alone() -> None:
    class Stage(Enum):
        gradients = 2

    assert find_member(Stage, "gradients") is Stage.gradients
    for owner, name in ((Stage, "__class__"), (os, "system"), (Stage.gradients, "value")):
        with pytest.raises(pickle.UnpicklingError, match="is not read"):
            find_member(owner, name)
