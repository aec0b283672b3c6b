from __future__ import annotations

import hashlib
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from trainkit.errors import InputError
from trainkit.runs.store import (
    create_run,
    describe_data,
    file_digest,
    find_commit,
    find_marker,
    find_run,
    find_versions,
    link_run,
    write_marker,
)

NOW = datetime(2026, 3, 1, 14, 25, 30)


def test_run_folders_are_named_by_time_and_never_shared(tmp_path: Path) -> None:
    runs = [create_run(tmp_path / "logs", name, NOW) for name in ("rm full", "rm full", "任务/1")]
    assert [run.run_id for run in runs] == [
        "20260301-142530-rm-full",
        "20260301-142530-rm-full-2",
        "20260301-142530-任务-1",
    ]
    assert runs[0].config_file == tmp_path / "logs" / "20260301-142530-rm-full" / "config.yaml"
    assert runs[0].log_file.name == "train.log"


def test_the_manifest_comes_back(tmp_path: Path) -> None:
    run = create_run(tmp_path, "rm", NOW)
    manifest = {"command": ["llamafactory-cli", "train"], "exit_code": 0, "dataset": "任务"}
    run.write_manifest(manifest)
    assert run.load_manifest() == manifest
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


def test_a_damaged_manifest_is_explained(tmp_path: Path) -> None:
    run = create_run(tmp_path, "rm", NOW)
    with pytest.raises(InputError, match=r"run\.json: no such file"):
        run.load_manifest()
    (run.path / "run.json").write_text("[]")
    with pytest.raises(InputError, match=r"run\.json: not a JSON object"):
        run.load_manifest()


def test_find_run(tmp_path: Path) -> None:
    assert find_run(None, tmp_path / "none") is None
    old, new, unfinished = (create_run(tmp_path, "rm", NOW.replace(minute=minute)) for minute in (1, 2, 3))
    new.write_manifest({"n": 2})
    old.write_manifest({"n": 1})
    link_run(old, tmp_path / "out")
    assert find_run(None, tmp_path) == new
    assert find_run(old.path, tmp_path) == old
    assert find_run(Path(old.run_id), tmp_path) == old
    assert find_run(Path("latest"), tmp_path) == old
    assert find_run(unfinished.path, tmp_path) is None
    same_second = create_run(tmp_path, "rm", NOW.replace(minute=2))
    same_second.write_manifest({"n": 3})
    assert find_run(None, tmp_path) == same_second


def test_links_follow_the_newest_run(tmp_path: Path) -> None:
    for name in ("first", "second"):
        run = create_run(tmp_path / "logs", name, NOW)
        out = tmp_path / "saves" / name
        out.mkdir(parents=True)
        (out / "trainer_log.jsonl").write_text(f"{name}\n")
        assert link_run(run, out) == []
        assert (tmp_path / "logs" / "latest").resolve() == run.path
        assert (tmp_path / "logs" / "trainer_log.jsonl").read_text() == f"{name}\n"
    assert sorted(path.name for path in (tmp_path / "logs").iterdir() if path.is_symlink()) == [
        "latest",
        "trainer_log.jsonl",
    ]


def test_a_place_without_links_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    run = create_run(tmp_path, "rm", NOW)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert link_run(run, Path("/out")) == [
        f"{tmp_path}/latest: not linked to {run.run_id}: Operation not permitted",
        f"{tmp_path}/trainer_log.jsonl: not linked to /out/trainer_log.jsonl: Operation not permitted",
    ]
    assert [path.name for path in tmp_path.iterdir()] == [run.run_id]


def test_digests(tmp_path: Path) -> None:
    path, content = tmp_path / "data.jsonl", b"{}\n" * 500_000
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    assert file_digest(path) == digest
    assert describe_data(path) == {"path": str(path), "sha256": digest, "bytes": 1_500_000, "rows": 500_000}


def test_versions() -> None:
    versions = find_versions(["pytest", "no-such-package"])
    assert versions == {"pytest": pytest.__version__, "no-such-package": None}


def git(folder: Path, *words: str) -> str:
    names = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    return subprocess.run(
        ["git", "-C", str(folder), *names, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_is_read_from_the_repository(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "deep").mkdir(parents=True)
    assert find_commit(repository) is None
    git(repository, "init", "-q")
    assert find_commit(repository) is None
    git(repository, "commit", "-q", "--allow-empty", "-m", "one")
    commit = git(repository, "rev-parse", "HEAD")
    assert find_commit(repository / "deep") == commit
    git(repository, "worktree", "add", "-q", str(tmp_path / "tree"))
    assert find_commit(tmp_path / "tree") == commit
    git(repository, "pack-refs", "--all")
    assert find_commit(repository) == commit
    git(repository, "checkout", "-q", "--detach")
    assert find_commit(repository) == commit


def test_markers(tmp_path: Path) -> None:
    marker = {"run_id": "r", "template": "qwen", "model": "./model", "finetuning_type": "lora"}
    checkpoint = tmp_path / "out" / "checkpoint-40"
    checkpoint.mkdir(parents=True)
    assert find_marker(tmp_path / "out") is None
    write_marker(tmp_path / "out", marker)
    assert find_marker(tmp_path / "out") == marker
    assert find_marker(checkpoint) == marker
    (tmp_path / "out" / "other").mkdir()
    assert find_marker(tmp_path / "out" / "other") is None
    (tmp_path / "out" / "trainkit_run.json").write_text("3")
    assert find_marker(tmp_path / "out") is None
