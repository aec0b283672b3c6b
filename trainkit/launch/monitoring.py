"""Which experiment tracker follows a run, and how it is told so.

A tracker is started by the trainer itself: SwanLab through the `use_swanlab` keys (`report_to: swanlab` is another code
path of LLaMA-Factory, which crashes with some versions), W&B through `report_to` and its own environment variables. A
tracker must never fail a run: without a login or a network it records offline, to be sent with `swanlab sync` or
`wandb sync` later; without its package there is a note.
"""

from __future__ import annotations

import netrc
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from trainkit.datatypes import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Tracker = Literal["swanlab", "wandb", "none"]

PROJECT = "reward_model_training"
# the package of a tracker, where it has another name than the tracker
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "flyte": ("flytekit",), "azure_ml": ("azureml",)}


@dataclass(frozen=True, slots=True)
class Monitoring:
    """What monitoring adds to a run: config keys, environment variables (no secret in either), and words."""

    config: Mapping[str, Any]
    env: Mapping[str, str]
    notes: tuple[Problem, ...] = ()


def plan_monitoring(
    requested: Tracker | None,
    values: Mapping[str, Any],
    env: Mapping[str, str],
    *,
    installed: Callable[[str], bool],
    home: Path,
    run_name: str,
    log_dir: Path,
    run_id: str | None = None,
    reachable: Callable[[str], bool] = lambda _url: True,
) -> Monitoring:
    """Decide on the trackers of a run.

    Args:
        requested: the user's word on the command line; None means what the config says, and where it says nothing,
            SwanLab when it is installed.
        values: the trainer's config so far.
        env: the environment; variables that the user set stay as they are.
        installed: whether the trainer's environment has a package of this name.
        home: the user's home folder, where logins are kept.
        run_name: shown by the tracker unless the config has `run_name`.
        log_dir: the run folder; offline records go to `swanlog/` and `wandb/` in it.
        run_id: the W&B run to start or, after a resume, to continue.
        reachable: whether the server at a URL answers (see `reach.can_reach`); asked only where there is a login.
    """
    plan = _Plan({}, {}, [])
    name = str(values.get("run_name") or run_name)
    chosen = _choose(requested, values, installed)
    trackers = [tracker for tracker in chosen if _check_package(tracker, installed, plan)]
    if "swanlab" in trackers:
        login = bool(env.get("SWANLAB_API_KEY") or values.get("swanlab_api_key")) or _has_swanlab_login(env, home)
        _plan_swanlab(plan, values, env, login, reachable, name, log_dir)
    else:
        plan.config["use_swanlab"] = False
    if "wandb" in trackers or "all" in trackers:
        _plan_wandb(plan, env, _has_wandb_login(env, home), reachable, name, log_dir)
        if run_id is not None and not env.get("WANDB_RUN_ID"):
            plan.env.update(WANDB_RUN_ID=run_id, WANDB_RESUME="allow")
    others = [tracker for tracker in trackers if tracker != "swanlab"]
    plan.config["report_to"] = "all" if "all" in others else others or "none"
    return Monitoring(plan.config, plan.env, tuple(plan.notes))


@dataclass(frozen=True, slots=True)
class _Plan:
    config: dict[str, Any]
    env: dict[str, str]
    notes: list[Problem]

    def note(self, where: str, message: str, hint: str) -> None:
        self.notes.append(Problem(where, message, hint, "note"))


def _choose(requested: Tracker | None, values: Mapping[str, Any], installed: Callable[[str], bool]) -> list[str]:
    listed = _listed(values.get("report_to"))
    if requested == "none":
        return []
    if requested is not None:
        return [requested, *(tracker for tracker in listed if tracker not in ("swanlab", "wandb", "all"))]
    silent = values.get("use_swanlab") is None and values.get("report_to") != "none" and "wandb" not in listed
    if values.get("use_swanlab") or "swanlab" in listed or (silent and installed("swanlab")):
        return ["swanlab", *(tracker for tracker in listed if tracker != "swanlab")]
    return listed


def _listed(report_to: Any) -> list[str]:
    names = report_to.split(",") if isinstance(report_to, str) else report_to or []
    cleaned = (str(name).strip() for name in names)
    return [name for name in dict.fromkeys(cleaned) if name not in ("", "none")]


def _check_package(tracker: str, installed: Callable[[str], bool], plan: _Plan) -> bool:
    packages = PACKAGES.get(tracker, (tracker,))
    if tracker in ("all", "kubeflow") or any(map(installed, packages)):
        return True
    plan.note(tracker, "not installed, so this run is not tracked with it", f"pip install {packages[0]}")
    return False


def _plan_swanlab(
    plan: _Plan,
    values: Mapping[str, Any],
    env: Mapping[str, str],
    login: bool,
    reachable: Callable[[str], bool],
    name: str,
    log_dir: Path,
) -> None:
    mode = str(values.get("swanlab_mode") or env.get("SWANLAB_MODE") or "cloud").replace("online", "cloud")
    url = env.get("SWANLAB_API_HOST") or "https://api.swanlab.cn"
    if mode == "cloud" and _must_be_offline(plan, "swanlab", "SWANLAB_API_KEY", login, url, reachable):
        mode = "offline"
    plan.config.update(
        use_swanlab=True,
        swanlab_project=_project_name(plan, str(values.get("swanlab_project") or PROJECT)),
        swanlab_run_name=values.get("swanlab_run_name") or name,
        swanlab_mode=mode,
        swanlab_logdir=values.get("swanlab_logdir") or str(log_dir / "swanlog"),
    )
    # no question on a terminal that nobody watches
    _default(plan, env, "SWANLAB_INTERACTIVE", "false")


def _project_name(plan: _Plan, project: str) -> str:
    # swanlab stops the run over any other character
    cleaned = re.sub(r"[^0-9a-zA-Z_\-+.]", "-", project)[:100]
    if cleaned != project:
        plan.note("swanlab_project", f"SwanLab does not take {project!r}, so the project is {cleaned}", "")
    return cleaned


def _plan_wandb(
    plan: _Plan, env: Mapping[str, str], login: bool, reachable: Callable[[str], bool], name: str, log_dir: Path
) -> None:
    online = (env.get("WANDB_MODE") or "online") == "online"
    if online and _must_be_offline(plan, "wandb", "WANDB_API_KEY", login, _wandb_url(env), reachable):
        plan.env["WANDB_MODE"] = "offline"
    _default(plan, env, "WANDB_PROJECT", PROJECT)
    _default(plan, env, "WANDB_NAME", name)
    _default(plan, env, "WANDB_DIR", str(log_dir))
    _default(plan, env, "WANDB_SILENT", "true")


def _must_be_offline(
    plan: _Plan, tracker: str, key: str, login: bool, url: str, reachable: Callable[[str], bool]
) -> bool:
    if login and reachable(url):
        return False
    why = f"{url} does not answer" if login else "no login found"
    hint = "check the network" if login else f"run `{tracker} login`, or set {key}"
    plan.note(tracker, f"{why}, so this run is recorded offline", f"{hint}; `{tracker} sync` sends it later")
    return True


def _wandb_url(env: Mapping[str, str]) -> str:
    return env.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _has_swanlab_login(env: Mapping[str, str], home: Path) -> bool:
    root = env.get("SWANLAB_ROOT") or env.get("SWANLAB_SAVE_DIR") or home / ".swanlab"
    logins = _find_logins(Path(root) / ".netrc")
    return logins is not None and bool(logins.hosts)


def _has_wandb_login(env: Mapping[str, str], home: Path) -> bool:
    if env.get("WANDB_API_KEY") or env.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    logins = _find_logins(Path(env.get("NETRC") or home / ".netrc"))
    return logins is not None and logins.authenticators(urlsplit(_wandb_url(env)).netloc) is not None


def _find_logins(file: Path) -> netrc.netrc | None:
    try:
        return netrc.netrc(str(file))
    except (OSError, netrc.NetrcParseError):
        return None


def _default(plan: _Plan, env: Mapping[str, str], name: str, value: str) -> None:
    if not env.get(name):
        plan.env[name] = value
