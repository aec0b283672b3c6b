"""Two folders change places in one step, and the copies and flushes that go with it.

Linux exchanges two names atomically (renameat2 with RENAME_EXCHANGE; ext4, XFS, Btrfs, tmpfs and overlayfs know it).
Where the kernel or the file system does not, three renames do it, between which `one` has no folder for an instant.
The name of the folder that stands aside then is the journal: `complete_swap` reads from it how far a killed swap came.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

from trainkit.files import sync_folder

AT_FDCWD = -100
RENAME_EXCHANGE = 2  # <linux/fs.h>
# EPERM is what a container's filter of system calls answers; where it is the folder's own, the renames meet it too
NOT_OFFERED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


def swap(one: Path, other: Path) -> None:
    """Exchange two folders, files or links on one file system; links are exchanged, not followed.

    Both must exist. A swap of the two that was killed is completed first, so call `complete_swap` and look before
    you repeat one.

    Raises:
        OSError: a name is missing, the two are on different file systems, or the folder may not be written.
    """
    complete_swap(one, other)
    if not _exchange(one, other):
        one.rename(aside_of(other))
        sync_folder(one.parent)
        complete_swap(one, other)
    for parent in {one.parent, other.parent}:
        sync_folder(parent)


def complete_swap(one: Path, other: Path) -> None:
    """Complete a swap by renames that was killed halfway; do nothing when there is none."""
    aside = aside_of(other)
    if not is_there(aside):
        return
    if not is_there(one):
        other.rename(one)
        sync_folder(one.parent)
    aside.rename(other)
    sync_folder(other.parent)


def aside_of(other: Path) -> Path:
    """Return the name under which the first of two folders waits while they are swapped by renames."""
    return other.with_name(f"{other.name}.aside")


def is_there(path: Path) -> bool:
    """Return whether there is anything at `path`, be it a link that leads nowhere."""
    return os.path.lexists(path)


def link_or_copy(source: Path, target: Path) -> bool:
    """Make `target` a hard link to the file `source`, or a copy where that cannot be; return whether it is a link."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)
        return False
    return True


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(parent))


def remove(path: Path) -> None:
    """Remove a file, a folder with all below it, or a link (not what it leads to), if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one system call; return False where that is not offered."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # an older C library, or another system
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NOT_OFFERED:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
