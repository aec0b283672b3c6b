from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from trainkit.datatypes import Problem
from trainkit.launch.monitoring import Monitoring, plan_monitoring

if TYPE_CHECKING:
    from pathlib import Path

ALL = ("swanlab", "wandb", "tensorboard")
SWAN = {
    "use_swanlab": True,
    "swanlab_project": "reward_model_training",
    "swanlab_run_name": "run-1",
    "swanlab_mode": "offline",
}
SWAN_NOTE = Problem(
    "swanlab",
    "no login found, so this run is recorded offline",
    "run `swanlab login`, or set SWANLAB_API_KEY; `swanlab sync` sends it later",
    "note",
)
WANDB = {"WANDB_MODE": "offline", "WANDB_PROJECT": "reward_model_training", "WANDB_NAME": "run-1"}
WANDB_NOTE = Problem(
    "wandb",
    "no login found, so this run is recorded offline",
    "run `wandb login`, or set WANDB_API_KEY; `wandb sync` sends it later",
    "note",
)


def plan(
    tmp_path: Path, requested: Any, values: dict[str, Any], env: dict[str, str] | None = None, **more: Any
) -> Monitoring:
    packages = more.pop("packages", ALL)
    return plan_monitoring(
        requested,
        values,
        env or {},
        installed=lambda name: name in packages,
        home=tmp_path,
        run_name="run-1",
        log_dir=tmp_path / "run",
        **more,
    )


@pytest.mark.parametrize(
    ("requested", "values", "packages", "use_swanlab", "report_to", "notes"),
    [
        (None, {}, ALL, True, "none", [SWAN_NOTE]),
        (None, {"report_to": []}, ALL, True, "none", [SWAN_NOTE]),
        (None, {}, (), False, "none", []),
        (None, {"report_to": "none"}, ALL, False, "none", []),
        (None, {"report_to": "none", "use_swanlab": True}, ALL, True, "none", [SWAN_NOTE]),
        (None, {"use_swanlab": False}, ALL, False, "none", []),
        (None, {"use_swanlab": False, "report_to": "wandb"}, ALL, False, ["wandb"], [WANDB_NOTE]),
        (None, {"report_to": "swanlab"}, ALL, True, "none", [SWAN_NOTE]),
        (None, {"report_to": "wandb"}, ALL, False, ["wandb"], [WANDB_NOTE]),
        (None, {"report_to": ["tensorboard"]}, ALL, True, ["tensorboard"], [SWAN_NOTE]),
        (None, {"report_to": "tensorboard, wandb"}, ALL, False, ["tensorboard", "wandb"], [WANDB_NOTE]),
        (None, {"report_to": "all"}, ALL, True, "all", [SWAN_NOTE, WANDB_NOTE]),
        ("swanlab", {"report_to": ["wandb", "tensorboard"]}, ALL, True, ["tensorboard"], [SWAN_NOTE]),
        ("wandb", {"use_swanlab": True}, ALL, False, ["wandb"], [WANDB_NOTE]),
        ("none", {"use_swanlab": True, "report_to": ["wandb", "tensorboard"]}, ALL, False, "none", []),
        (
            "swanlab",
            {},
            (),
            False,
            "none",
            [Problem("swanlab", "not installed, so this run is not tracked with it", "pip install swanlab", "note")],
        ),
        (
            None,
            {"report_to": ["tensorboard", "wandb"]},
            (),
            False,
            "none",
            [
                Problem(name, "not installed, so this run is not tracked with it", f"pip install {name}", "note")
                for name in ("tensorboard", "wandb")
            ],
        ),
    ],
)
def test_which_tracker_is_told(
    tmp_path: Path,
    requested: Any,
    values: dict[str, Any],
    packages: tuple[str, ...],
    use_swanlab: bool,
    report_to: Any,
    notes: list[Problem],
) -> None:
    monitoring = plan(tmp_path, requested, values, packages=packages)
    swanlab = {**SWAN, "swanlab_logdir": str(tmp_path / "run" / "swanlog")} if use_swanlab else {"use_swanlab": False}
    assert monitoring.config == {**swanlab, "report_to": report_to}
    env: dict[str, str] = {"SWANLAB_INTERACTIVE": "false"} if use_swanlab else {}
    if report_to == "all" or "wandb" in report_to:
        env |= {**WANDB, "WANDB_DIR": str(tmp_path / "run"), "WANDB_SILENT": "true"}
    assert monitoring.env == env
    assert list(monitoring.notes) == notes


@pytest.mark.parametrize(
    ("values", "env", "login", "mode"),
    [
        ({}, {"SWANLAB_API_KEY": "k"}, False, "cloud"),
        ({"swanlab_api_key": "k"}, {}, False, "cloud"),
        ({}, {}, True, "cloud"),
        ({"swanlab_mode": "online"}, {}, True, "cloud"),
        ({"swanlab_mode": "local"}, {}, False, "local"),
        ({}, {"SWANLAB_MODE": "disabled"}, True, "disabled"),
        ({"swanlab_mode": "cloud"}, {"SWANLAB_MODE": "local"}, True, "cloud"),
        ({}, {"SWANLAB_ROOT": "/nowhere"}, True, "offline"),
    ],
)
def test_swanlab_mode(tmp_path: Path, values: dict[str, Any], env: dict[str, str], login: bool, mode: str) -> None:
    if login:
        (tmp_path / ".swanlab").mkdir()
        (tmp_path / ".swanlab" / ".netrc").write_text("machine https://api.swanlab.cn login w password secret\n")
    monitoring = plan(tmp_path, "swanlab", values, env)
    assert monitoring.config["swanlab_mode"] == mode
    assert "secret" not in str(monitoring)


@pytest.mark.parametrize(
    ("env", "login", "mode"),
    [
        ({"WANDB_API_KEY": "k"}, None, None),
        ({"WANDB_IDENTITY_TOKEN_FILE": "f"}, None, None),
        ({}, "api.wandb.ai", None),
        ({}, "api.other.org", "offline"),
        ({"WANDB_BASE_URL": "https://api.other.org"}, "api.other.org", None),
        ({"WANDB_MODE": "disabled"}, None, None),
        ({"WANDB_MODE": "online"}, None, "offline"),
    ],
)
def test_wandb_mode(tmp_path: Path, env: dict[str, str], login: str | None, mode: str | None) -> None:
    if login:
        (tmp_path / ".netrc").write_text(f"machine {login} login user password secret\n")
    monitoring = plan(tmp_path, "wandb", {}, env)
    assert monitoring.env.get("WANDB_MODE") == mode
    assert "secret" not in str(monitoring)


def test_a_server_that_does_not_answer_means_offline(tmp_path: Path) -> None:
    env = {"SWANLAB_API_KEY": "k", "WANDB_API_KEY": "k"}
    asked: list[str] = []

    def reachable(url: str) -> bool:
        asked.append(url)
        return False

    monitoring = plan(tmp_path, None, {"report_to": "all"}, env, reachable=reachable)
    assert asked == ["https://api.swanlab.cn", "https://api.wandb.ai"]
    assert (monitoring.config["swanlab_mode"], monitoring.env["WANDB_MODE"]) == ("offline", "offline")
    assert [note.message for note in monitoring.notes] == [
        "https://api.swanlab.cn does not answer, so this run is recorded offline",
        "https://api.wandb.ai does not answer, so this run is recorded offline",
    ]


def test_what_the_user_set_stays(tmp_path: Path) -> None:
    values = {
        "run_name": "mine",
        "swanlab_project": "p",
        "swanlab_run_name": "s",
        "swanlab_logdir": "/l",
        "report_to": ["wandb", "swanlab"],
    }
    env = {"WANDB_PROJECT": "q", "WANDB_DIR": "/d", "WANDB_MODE": "offline", "WANDB_SILENT": "false"}
    monitoring = plan(tmp_path, None, values, {**env, "SWANLAB_INTERACTIVE": "true"}, run_id="r1")
    assert monitoring.config == {
        "use_swanlab": True,
        "swanlab_project": "p",
        "swanlab_run_name": "s",
        "swanlab_mode": "offline",
        "swanlab_logdir": "/l",
        "report_to": ["wandb"],
    }
    assert monitoring.env == {"WANDB_NAME": "mine", "WANDB_RUN_ID": "r1", "WANDB_RESUME": "allow"}


def test_a_project_name_that_swanlab_refuses_is_cleaned(tmp_path: Path) -> None:
    monitoring = plan(tmp_path, "swanlab", {"swanlab_project": "my project/1"}, {"SWANLAB_API_KEY": "k"})
    assert monitoring.config["swanlab_project"] == "my-project-1"
    assert monitoring.notes == (
        Problem(
            "swanlab_project", "SwanLab does not take 'my project/1', so the project is my-project-1", level="note"
        ),
    )


def test_a_damaged_login_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine\n")
    assert plan(tmp_path, "wandb", {}).env["WANDB_MODE"] == "offline"
