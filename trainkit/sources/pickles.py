"""Reading what torch.save wrote, without torch and without running anything.

Such a file is a zip with one pickle in it, `<name>/data.pkl`, and the tensors' numbers beside that, which are not read.
A pickle is a small program: it may name any function and have it called. Here it can name what stands in `ALLOWED` and
nothing else, and what it gets for a name is never the thing itself:

    webgym.data.components.Response   a `Record`, a dict of the object's attributes
    collections.OrderedDict, set ...  a `Maker`, which makes a plain dict, set ... and cannot be changed
    tensors and their storages        `UNREAD`, which holds nothing
    os.system                         refused by its name

This keeps a file from running code. It does not keep a file that was made for it from using up the memory.
"""

from __future__ import annotations

import gc
import os
import pickle
import struct
import zipfile
from contextlib import contextmanager
from pathlib import PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any, NoReturn

from trainkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RECORDS = ("Action", "Observation", "Task", "Reward", "Response")
OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number with which torch.save began before its 1.6
ZIP_START = b"PK"
READ_BYTES = 1 << 20
LOCAL_HEADER_BYTES = 30  # before an entry; the last 4 are the lengths of its name and of what follows the name
FETCH = "copy it again from where it was written, or leave this iteration out"
SAVE_AGAIN = "load it with torch where it can be trusted and torch.save it again, or write it as JSONL"
NOT_DATA = "where you did not write it yourself, do not load it with torch, which would run it; JSONL holds data only"
# What a damaged or forged pickle makes the reader raise (the manual of pickle: "not necessarily limited to").
DAMAGED = (
    pickle.UnpicklingError, EOFError, zipfile.BadZipFile, AttributeError, LookupError, TypeError, ValueError,
    OverflowError, MemoryError, RuntimeError, struct.error,
)  # fmt: skip


class Refused(Exception):
    """A global that no trajectory file needs; the text is its name."""


class Record(dict[str, Any]):
    """The attributes of an object whose class is not installed here."""

    def __setstate__(self, state: object) -> None:
        """Take the attributes over as entries, so that none of them can hide a method."""
        for part in state if isinstance(state, tuple) else (state,):
            if part is not None:
                self.update(part)  # raises where it is no mapping


class Maker:
    """Stands for a class or function of the pickle: can be called and nothing else."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self.make = make

    def __call__(self, *arguments: object) -> object:
        """Make the plain value."""
        return self.make(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        """Refuse what a pickle would set on it, as it is there for all files."""
        raise pickle.UnpicklingError("a state for a class")


class Unread:
    """A value that is not read, such as a tensor."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Take no state."""


UNREAD = Unread()


def make_record(kind: object, base: object, state: object) -> Record:
    """Do what copyreg._reconstructor does for a plain object."""
    if kind is not Record or base is not PLAIN_OBJECT or state is not None:
        raise pickle.UnpicklingError("an object of another kind")
    return Record()


def make_bytes(content: bytes = b"", encoding: str = "latin1") -> bytes:
    """Return bytes, which the older protocols write as text in Latin-1; a number would ask for that many zeros."""
    if isinstance(content, str) and encoding in ("latin1", "latin-1"):
        return content.encode("latin-1")
    if isinstance(content, bytes):
        return content
    raise pickle.UnpicklingError("bytes of another kind")


PLAIN_OBJECT = Maker(lambda: UNREAD)
ALLOWED: dict[tuple[str, str], object] = {
    **{("webgym.data.components", name): Record for name in RECORDS},
    ("copyreg", "_reconstructor"): Maker(make_record),
    ("builtins", "object"): PLAIN_OBJECT,
    ("_codecs", "encode"): Maker(make_bytes),
    ("builtins", "bytes"): Maker(make_bytes),
    ("builtins", "bytearray"): Maker(make_bytes),
    ("builtins", "set"): Maker(set),
    ("builtins", "frozenset"): Maker(frozenset),
    ("builtins", "list"): Maker(list),
    ("builtins", "dict"): Maker(dict),
    ("collections", "OrderedDict"): Maker(dict),
    ("collections", "defaultdict"): Maker(lambda *_: {}),
    **{("pathlib", name): Maker(lambda *parts: str(PurePosixPath(*parts))) for name in ("PosixPath", "PurePosixPath")},
    **{
        ("pathlib", name): Maker(lambda *parts: str(PureWindowsPath(*parts)))
        for name in ("WindowsPath", "PureWindowsPath")
    },
    ("torch._utils", "_rebuild_tensor_v2"): Maker(lambda *_: UNREAD),
    ("torch._utils", "_rebuild_parameter"): Maker(lambda *_: UNREAD),
    ("torch.storage", "UntypedStorage"): UNREAD,
}
# Pickles name modules as Python 2 did, up to protocol 2, and os by the part of it for the system.
OTHER_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg", "posix": "os", "nt": "os"}


class Reader(pickle.Unpickler):
    """Reads a pickle that names nothing but what is in `ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global; raises `Refused` with its name."""
        module = OTHER_NAMES.get(module, module)
        found = ALLOWED.get((module, name))
        if found is None and module == "torch" and name.isidentifier() and name.endswith("Storage"):
            return UNREAD
        if found is None:
            raise Refused(f"{module}.{name}")
        return found

    def persistent_load(self, pid: object) -> Unread:  # noqa: ARG002  # which of the storages it is
        """Return what stands for a tensor's numbers."""
        return UNREAD


def load_archive(path: Path) -> Any:
    """Return what torch.save wrote into `path`: dicts, lists and scalars, each object a `Record` of its attributes.

    Raises:
        InputError: the file is missing, not of torch.save's zip format, damaged, or names anything but data.
    """
    try:
        with path.open("rb", buffering=READ_BYTES) as file:
            check_start(path, file.read(len(OLD_FORMAT)))
            with zipfile.ZipFile(file) as archive, without_gc():
                return load_pickle(file, archive, find_pickle(path, archive))
    except Refused as refused:
        raise InputError(f"{path}: refuses {refused}: a trajectory file holds data only", NOT_DATA) from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}", FETCH) from None
    except DAMAGED as error:
        raise InputError(f"{path}: is damaged or cut off: {str(error) or type(error).__name__}", FETCH) from None


def check_start(path: Path, start: bytes) -> None:
    """Check by its first bytes that a file is a zip; raises `InputError`."""
    if not start:
        raise InputError(f"{path}: is empty", FETCH)
    if start == OLD_FORMAT:
        raise InputError(f"{path}: is in the format that torch.save had before torch 1.6", SAVE_AGAIN)
    if not start.startswith(ZIP_START):
        raise InputError(f"{path}: is not a file of torch.save, which is a zip", SAVE_AGAIN)


def find_pickle(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """Return the entry that holds the pickle.

    torch.save stores it as it is. So nothing is unpacked here, and no small file grows into one that fills the memory.

    Raises:
        InputError: there is none or more than one, or it is packed.
    """
    found = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
    if len(found) != 1:
        raise InputError(f"{path}: has {len(found)} entries data.pkl, and a file of torch.save has one", SAVE_AGAIN)
    entry = found[0]
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise InputError(f"{path}: {entry.filename} is compressed or encrypted, as torch.save does not do", SAVE_AGAIN)
    return entry


def load_pickle(file: IO[bytes], archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Any:
    """Return the value of the pickle in an entry.

    It is read twice, first for zipfile to compare the checksum: one bit that turned can ask for a table of many GB.
    Then it is read from the file itself, which takes a third of the time that zipfile's stream takes.
    """
    with archive.open(entry) as stream:
        while stream.read(READ_BYTES):
            pass
    file.seek(entry.header_offset + LOCAL_HEADER_BYTES - 4)
    name_length, extra_length = struct.unpack("<HH", file.read(4))
    file.seek(name_length + extra_length, os.SEEK_CUR)
    return Reader(file).load()


@contextmanager
def without_gc() -> Iterator[None]:
    """Keep the collector of cycles off: it would walk again and again over a growing heap of plain data."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
