"""Kill a hand-over before and after every call that changes names, and report how each kill and its repair ended.

Run by path; the arguments are a scratch folder, `exchange` or `renames` (as on a file system that cannot exchange), and
what is at the place first: `folder`, `link` or `nothing`. Each hand-over runs in a fork, which kills itself.
The answer is one JSON line: `{"kills": 70, "failures": [...]}`.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.runs import exchange
from trainkit.runs.handover import hand_over, recover

if TYPE_CHECKING:
    from collections.abc import Callable

WATCHED = ("rename", "replace", "unlink", "rmdir", "link", "symlink", "mkdir", "fsync")


def write_model(folder: Path, text: str) -> Path:
    folder.mkdir()
    header = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + text[:1].encode())
    for name in ("config.json", "tokenizer.json", "optimizer.pt"):
        (folder / name).write_text(json.dumps({"model": text}))
    return folder


def name_of(folder: Path) -> str:
    """Return which model is in a folder; fail if it is not a complete one."""
    data = (folder / "model.safetensors").read_bytes()
    names = {json.loads((folder / name).read_bytes())["model"] for name in ("config.json", "tokenizer.json")}
    (name,) = names
    assert data.endswith(name[:1].encode()), (data, name)
    return name


def prepare(root: Path, first: str) -> None:
    """Lay out a new model, and, but for `nothing`, the current one and the one before it."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    write_model(root / "new", "new")
    if first != "nothing":
        write_model(root / "base", "current")
        if first == "link":
            (root / "model.pt").symlink_to("base")
        else:
            (root / "base").rename(root / "model.pt")
        write_model(root / "model.pt.previous", "older")


class Killer:
    """Counts the moments before and after the watched calls, and ends the process at one of them."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def moment(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self.moment()
            result = function(*arguments, **options)
            self.moment()
            return result

        return watched

    def install(self) -> None:
        for name in WATCHED:
            setattr(os, name, self.watch(getattr(os, name)))
        shutil.copyfile = self.watch(shutil.copyfile)
        exchange._exchange = self.watch(exchange._exchange)


def in_fork(act: Callable[[], object]) -> int:
    """Return how a forked process that acts has ended; -9 for SIGKILL."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at(moment: int, root: Path) -> int:
    def act() -> None:
        Killer(moment).install()
        hand_over(root / "new", root / "model.pt")

    return in_fork(act)


def check(root: Path, first: str, *, gap: bool, by_recover: bool) -> None:
    """Look at what a kill left, repair it, and look again."""
    place, old = root / "model.pt", "current"
    if first != "nothing" and not gap:
        assert name_of(place) in ("new", old)
    if by_recover:
        found = recover(place)
        assert first == "nothing" or found, "no model after recover"
        if found:
            assert name_of(place) in ("new", old)
        left = {path.name for path in root.iterdir()} - {"new", "base", "model.pt", "model.pt.previous"}
        assert not left, f"left by recover: {left}"
    hand_over(root / "new", place)
    assert name_of(place) == "new"
    expected = {"new", "model.pt"} | ({"model.pt.previous"} if first != "nothing" else set())
    if first == "link":
        expected.add("base")
        assert (root / "model.pt.previous").readlink() == Path("base")
        assert name_of(root / "base") == "current"
    assert {path.name for path in root.iterdir()} == expected
    if first != "nothing":
        assert name_of(root / "model.pt.previous") == old


def kill_everywhere(root: Path, first: str, failures: list[str], *, gap: bool, by_recover: bool) -> int:
    """Kill at each moment until a hand-over comes to its end; return how many kills that were."""
    for moment in itertools.count(1):
        prepare(root, first)
        ended = kill_at(moment, root)
        note_failure(failures, f"{moment}", root, first, ended, gap=gap, by_recover=by_recover)
        if ended == 0:
            return moment - 1
    return 0


def kill_twice(root: Path, first: str, failures: list[str]) -> int:
    """Kill the call after a killed one too, where the first has left a verified model or the old one."""
    kills = 0
    for moment in itertools.count(1):
        prepare(root, first)
        if kill_at(moment, root) == 0:
            return kills
        if not any(path.name.endswith(".new") for path in root.iterdir()):
            continue
        for second in itertools.count(1, 2):
            prepare(root, first)
            kill_at(moment, root)
            ended = kill_at(second, root)
            note_failure(failures, f"{moment} and {second}", root, first, ended, gap=False, by_recover=False)
            if ended == 0:
                break
            kills += 1
    return kills


def note_failure(
    failures: list[str], moment: str, root: Path, first: str, ended: int, *, gap: bool, by_recover: bool
) -> None:
    try:
        assert ended in (0, -signal.SIGKILL), f"ended with {ended}"
        check(root, first, gap=gap, by_recover=by_recover)
    except Exception as error:
        tree = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        failures.append(f"moment {moment} (recover: {by_recover}): {error!r}; {tree}")


def main() -> None:
    root, way, first = Path(sys.argv[1]) / "work", sys.argv[2], sys.argv[3]
    if way == "renames":
        exchange._exchange = lambda one, other: False
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written, so there is nothing to wait for
    failures: list[str] = []
    gap = way == "renames"
    kills = sum(kill_everywhere(root, first, failures, gap=gap, by_recover=again) for again in (False, True))
    if not gap:
        kills += kill_twice(root, first, failures)
    print(json.dumps({"kills": kills, "failures": failures}))


if __name__ == "__main__":
    main()
