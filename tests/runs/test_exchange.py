"""Two folders change places, by one system call or by renames, and a killed swap is completed."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.runs import exchange
from trainkit.runs.exchange import aside_of, complete_swap, link_or_copy, remove, swap, sync_tree

if TYPE_CHECKING:
    from pathlib import Path


def lay_out(root: Path, **texts: str) -> None:
    for name, text in texts.items():
        (root / name).mkdir()
        (root / name / "text").write_text(text)


def texts_in(root: Path) -> dict[str, str]:
    return {path.name: (path / "text").read_text() for path in root.iterdir()}


def answer(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the system call fail with an error number."""

    class Library:
        class Call:
            argtypes: tuple[Any, ...] = ()

            def __call__(self, *arguments: object) -> int:
                assert len(arguments) == len(self.argtypes)
                ctypes.set_errno(number)
                return -1

        renameat2 = Call()

    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: Library())


def test_two_folders_change_places_without_a_third_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, one="1", other="2")
    monkeypatch.setattr(os, "rename", None)
    swap(tmp_path / "one", tmp_path / "other")
    assert texts_in(tmp_path) == {"one": "2", "other": "1"}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_renames_do_it_where_the_kernel_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    answer(monkeypatch, number)
    lay_out(tmp_path, one="1", other="2")
    swap(tmp_path / "one", tmp_path / "other")
    assert texts_in(tmp_path) == {"one": "2", "other": "1"}


def test_renames_do_it_where_the_library_has_no_such_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: object())
    lay_out(tmp_path, one="1", other="2")
    swap(tmp_path / "one", tmp_path / "other")
    assert texts_in(tmp_path) == {"one": "2", "other": "1"}


def test_links_and_files_are_exchanged_as_they_are(tmp_path: Path) -> None:
    lay_out(tmp_path, base="1", other="2")
    (tmp_path / "one").symlink_to("base")
    swap(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "other").readlink().name == "base"
    assert texts_in(tmp_path) == {"base": "1", "one": "2", "other": "1"}


def test_another_failure_is_not_hidden(tmp_path: Path) -> None:
    lay_out(tmp_path, one="1")
    with pytest.raises(FileNotFoundError, match=r"one' -> '.*other"):
        swap(tmp_path / "one", tmp_path / "other")
    assert texts_in(tmp_path) == {"one": "1"}


@pytest.mark.parametrize(
    "left",
    [
        {"one": "2", "other": "1"},  # killed before the start, or after the end
        {"other.aside": "1", "other": "2"},  # after the first rename
        {"other.aside": "1", "one": "2"},  # after the second
    ],
)
def test_a_killed_swap_is_completed(tmp_path: Path, left: dict[str, str]) -> None:
    lay_out(tmp_path, **left)
    complete_swap(tmp_path / "one", tmp_path / "other")
    assert texts_in(tmp_path) == {"one": "2", "other": "1"}
    assert aside_of(tmp_path / "other").name == "other.aside"


def test_a_file_is_linked_through_links(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("1")
    (tmp_path / "named").symlink_to("blob")
    assert link_or_copy(tmp_path / "named", tmp_path / "target")
    assert (tmp_path / "target").samefile(tmp_path / "blob")
    assert not (tmp_path / "target").is_symlink()


def test_a_file_is_copied_from_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "file").write_text("1")
    assert not link_or_copy(tmp_path / "file", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "1"
    assert not (tmp_path / "target").samefile(tmp_path / "file")


def test_every_file_and_folder_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, one="1", other="2")
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    sync_tree(tmp_path)
    assert sorted(flushed) == sorted(path.stat().st_ino for path in (tmp_path, *tmp_path.rglob("*")))


def test_a_link_is_removed_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    lay_out(tmp_path, base="1", folder="2")
    (tmp_path / "link").symlink_to("base")
    (tmp_path / "nowhere").symlink_to("none")
    for name in ("link", "nowhere", "folder", "missing"):
        remove(tmp_path / name)
    assert texts_in(tmp_path) == {"base": "1"}


def test_the_kernel_here_exchanges(tmp_path: Path) -> None:
    """Or all the rest would be about renames only."""
    lay_out(tmp_path, one="1", other="2")
    assert exchange._exchange(tmp_path / "one", tmp_path / "other")
