"""Run folders: `logs/20260301-142530-reward_model_full/` holds all that is known about one training.

    config.yaml         what the trainer read (written by the workflow)
    run.json            the manifest: command, versions, data digests, times, exit code
    train.log           the trainer's whole output
    trainer_log.jsonl   in `logs/` itself: a link to the progress rows of the newest run; `logs/latest` to its folder

The trained model's own folder gets a small marker, trainkit_run.json, from which export and chat learn what they need.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from trainkit.errors import InputError
from trainkit.files import load_json, temporary_beside, write_json_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from pathlib import Path

MANIFEST = "run.json"
MARKER = "trainkit_run.json"
PROGRESS_LOG = "trainer_log.jsonl"


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder."""

    path: Path

    @property
    def run_id(self) -> str:
        """The folder's name, unique among the runs of its log root."""
        return self.path.name

    @property
    def log_file(self) -> Path:
        """The trainer's whole output."""
        return self.path / "train.log"

    @property
    def config_file(self) -> Path:
        """The YAML that the trainer reads."""
        return self.path / "config.yaml"

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write run.json, all or nothing; the names of environment variables belong in it, never their values."""
        write_json_atomic(self.path / MANIFEST, dict(manifest))

    def load_manifest(self) -> dict[str, Any]:
        """Return what run.json holds.

        Raises:
            InputError: it is missing or damaged.
        """
        manifest = load_json(self.path / MANIFEST)
        if not isinstance(manifest, dict):
            raise InputError(f"{self.path / MANIFEST}: not a JSON object")
        return manifest


def create_run(log_root: Path, name: str, now: datetime) -> Run:
    """Make and return a new run folder `<log_root>/<YYYYmmdd-HHMMSS>-<name>`; a second one in a second gets `-2`."""
    # LLaMA-Factory cannot be given a path with a space
    cleaned = re.sub(r"[^\w.+-]+", "-", name)
    base = f"{now:%Y%m%d-%H%M%S}-{cleaned}"
    log_root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = log_root / (base if number == 1 else f"{base}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return Run(path)


def find_run(named: Path | None, log_root: Path) -> Run | None:
    """Return the run in the folder `named`, or, with None, the newest one with a manifest; None when there is none.

    `named` may be a path, or the name of a folder in `log_root` (`latest` too).
    """
    if named is not None:
        found = next((path for path in (named, log_root / named) if (path / MANIFEST).is_file()), None)
        return Run(found.resolve()) if found else None
    paths = [path for path in log_root.glob("*/") if not path.is_symlink() and (path / MANIFEST).is_file()]
    # of two runs that started in the same second, the one that wrote last
    newest = max(paths, key=lambda path: (path.name[:15], (path / MANIFEST).stat().st_mtime_ns), default=None)
    return Run(newest) if newest else None


def link_run(run: Run, output_dir: Path) -> list[str]:
    """Point `latest` and `trainer_log.jsonl` in the log root at this run.

    Returns:
        What could not be linked and why, for the manifest: a file system may have no symbolic links.
    """
    root = run.path.parent
    problems = []
    targets = {root / "latest": run.run_id, root / PROGRESS_LOG: str(output_dir.absolute() / PROGRESS_LOG)}
    for link, target in targets.items():
        temporary = temporary_beside(link)
        try:
            temporary.symlink_to(target)
            temporary.replace(link)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            problems.append(f"{link}: not linked to {target}: {error.strerror}")
    return problems


def find_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each package; None for one that is not installed."""
    return {package: _find_version(package) for package in packages}


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_data(path: Path) -> dict[str, Any]:
    """Return the digest, the size in bytes and the number of lines of a data file, in one pass."""
    digest, size, rows = hashlib.sha256(), 0, 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            size += len(piece)
            rows += piece.count(b"\n")
    return {"path": str(path), "sha256": digest.hexdigest(), "bytes": size, "rows": rows}


def find_commit(folder: Path) -> str | None:
    """Return the git commit that `folder` stands on, read from the repository's files; None outside a repository."""
    for parent in (folder.absolute(), *folder.absolute().parents):
        if (parent / ".git").exists():
            return _read_head(parent / ".git")
    return None


def _read_head(git: Path) -> str | None:
    try:
        if git.is_file():
            # a worktree or submodule: the file names the true folder
            git = git.parent / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        common = git / "commondir"
        shared = git / common.read_text(encoding="utf-8").strip() if common.exists() else git
        if (shared / name).exists():
            return (shared / name).read_text(encoding="utf-8").strip()
        packed = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((line.split(" ")[0] for line in packed if line.endswith(f" {name}")), None)


def write_marker(output_dir: Path, marker: Mapping[str, Any]) -> None:
    """Write trainkit_run.json into a trained model's folder: run id, template, model, finetuning type, data set."""
    write_json_atomic(output_dir / MARKER, dict(marker))


def find_marker(folder: Path) -> dict[str, Any] | None:
    """Return what trainkit_run.json in `folder` holds, for a checkpoint the one above it; None when there is none."""
    for path in (folder / MARKER, folder.parent / MARKER):
        if path.is_file() and (path.parent == folder or folder.name.startswith("checkpoint-")):
            marker = load_json(path)
            return marker if isinstance(marker, dict) else None
    return None
