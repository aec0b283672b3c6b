from __future__ import annotations

import collections
import datetime
import gc
import io
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainkit.errors import InputError
from trainkit.sources.pickles import ALLOWED, FETCH, NOT_DATA, SAVE_AGAIN, Maker, Unread, load_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    Save = Callable[..., Path]


@pytest.mark.parametrize("protocol", range(6))
def test_objects_are_read_as_their_attributes(web: ModuleType, save: Save, tmp_path: Path, protocol: int) -> None:
    task = web.Task(task_id=41, website="https://shop.example")
    shared = ["a", "b"]
    step = {
        "action": web.Action(action={"key": ("click", 3.5)}, action_string="click(3)"),
        "observation": web.Observation(task=task, image_path=pathlib.PurePosixPath("/a b/1.png"), ac_tree=shared),
        "response": web.Response(raw_prompt='[{"x": "任"}]', raw_response="\u2028", tokens={1, 2}, shared=shared),
        "reward": web.Reward(reward=1, evaluation=collections.OrderedDict(a=b"\x00\xff", b=bytearray(b"x"), c=b"")),
        "same_as_next_screenshot": False,
        "empty": web.Action(),
        "more": [None, -(2**70), frozenset("a"), collections.defaultdict(list, {"k": [1]})],
        "window": pathlib.PureWindowsPath("C:/a"),
    }
    expected = {
        "action": {"action": {"key": ("click", 3.5)}, "action_string": "click(3)"},
        "observation": {
            "task": {"task_id": 41, "website": "https://shop.example"},
            "image_path": "/a b/1.png",
            "ac_tree": ["a", "b"],
        },
        "response": {"raw_prompt": '[{"x": "任"}]', "raw_response": "\u2028", "tokens": {1, 2}, "shared": ["a", "b"]},
        "reward": {"reward": 1, "evaluation": {"a": b"\x00\xff", "b": b"x", "c": b""}},
        "same_as_next_screenshot": False,
        "empty": {},
        "more": [None, -(2**70), frozenset("a"), {"k": [1]}],
        "window": "C:\\a",
    }
    if protocol < 2:  # these write a set and a path with globals of their own, and no torch.save uses them
        for value in (step, expected):
            del value["more"], value["window"]
    path = save(tmp_path / "t.pt", {"trajectories": [[step]], "metadata": {}}, protocol)
    read = load_archive(path)
    assert read == {"trajectories": [[expected]], "metadata": {}}
    response, observation = (read["trajectories"][0][0][name] for name in ("response", "observation"))
    assert response["shared"] is observation["ac_tree"]


def test_slots_are_attributes_too(web: ModuleType, save: Save, tmp_path: Path) -> None:
    slotted = type("Task", (), {"__slots__": ("task_id", "__dict__"), "__module__": web.__name__})
    web.Task = slotted  # type: ignore[attr-defined]
    task: Any = slotted()
    task.task_id, task.website = 3, "w"
    assert load_archive(save(tmp_path / "t.pt", task)) == {"task_id": 3, "website": "w"}
    web.Task = type("Task", (), {"__slots__": ("task_id",), "__module__": web.__name__})  # type: ignore[attr-defined]
    bare: Any = web.Task()
    bare.task_id = 4
    assert load_archive(save(tmp_path / "t.pt", bare)) == {"task_id": 4}


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nBFloat16Storage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQ"
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x03\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
)


def test_a_tensor_is_there_but_not_read(save: Save, tmp_path: Path) -> None:
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + TENSOR + b"\x88ccollections\nOrderedDict\n)RtR"
    path = save(tmp_path / "t.pt", b"\x80\x02}(U\x06pixels" + TENSOR + b"}bU\x06weight" + parameter + b"U\x01nK\x05u.")
    read = load_archive(path)
    assert (type(read["pixels"]), type(read["weight"]), read["n"]) == (Unread, Unread, 5)
    with pytest.raises(InputError, match=r"refuses torch\.load: "):
        load_archive(save(path, b"\x80\x02ctorch\nload\n."))
    with pytest.raises(InputError, match=r"refuses torch\.hub\.Storage: "):
        load_archive(save(path, b"\x80\x02ctorch\nhub.Storage\n."))


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> Any:
        return self.parts


FORBIDDEN = [
    (Call(os.system, "touch MARKER"), "os.system"),
    (Call(eval, "open('MARKER', 'w')"), "builtins.eval"),
    (Call(getattr, [], "append"), "builtins.getattr"),
    (Call(shutil.rmtree, "."), "shutil.rmtree"),
    (Call(open, "MARKER", "w"), "io.open"),
    (datetime.date(2026, 1, 1), "datetime.date"),
    (datetime.timedelta(1), "datetime.timedelta"),
    (complex(1, 2), "builtins.complex"),
    ([1, {"deep": [Path]}], "pathlib.Path"),
]


@pytest.mark.parametrize(("value", "name"), FORBIDDEN, ids=lambda value: value if isinstance(value, str) else "")
def test_any_other_global_is_refused_by_name(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "t.pt", {"trajectories": [value]})
    with pytest.raises(InputError) as caught:
        load_archive(path)
    assert (caught.value.message, caught.value.hint) == (
        f"{path}: refuses {name}: a trajectory file holds data only",
        NOT_DATA,
    )
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_calls_in_this_test_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(FORBIDDEN[0][0], protocol=2))
    assert (tmp_path / "MARKER").exists()


RECORD = b"cwebgym.data.components\nAction\n"
SYSTEM = b"cos\nsystem\n(S'touch MARKER'\ntR"
HOSTILE = {
    "dotted name": b"\x80\x04\x8c\x06pickle\x8c\x09os.system\x93.",
    "dotted name of an allowed class": b"\x80\x04\x8c\x16webgym.data.components\x8c\x0fAction.__init__\x93.",
    "system in a state": b"\x80\x02" + RECORD + b")\x81}U\x01x" + SYSTEM + b"sb.",
    "system as a key": b"\x80\x02}" + SYSTEM + b"K\x01s.",
    "inst": b"(S'touch MARKER'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch MARKER'\no.",
    "state for the class": b"\x80\x02" + RECORD + b"}U\x01xK\x01sb.",
    "slots for the class": b"\x80\x02" + RECORD + b"N}U\x08__init__K\x01s\x86b.",
    "state for a function": b"\x80\x02c__builtin__\nset\n}U\x01xK\x01sb.",
    "slots for a function": b"\x80\x02ccopy_reg\n_reconstructor\nN}U\x04makeK\x01s\x86b.",
    "a state that is no mapping": b"\x80\x02" + RECORD + b")\x81K\x05b.",
    "a call of a record": b"\x80\x02" + RECORD + b")\x81)R.",
    "append to a record": b"\x80\x02" + RECORD + b")\x81(K\x01e.",
    "an entry of a class": b"\x80\x02" + RECORD + b"K\x01K\x02s.",
    "a new set that is no class": b"\x80\x02c__builtin__\nset\n)\x81.",
    "reconstruct something else": b"\x80\x02ccopy_reg\n_reconstructor\n(c__builtin__\nset\nc__builtin__\nobject\nNtR.",
    "many bytes": b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "many bytes in an array": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "bytes by another codec": b"\x80\x02c_codecs\nencode\nU\x01aU\x03hex\x86R.",
    "more bytes than there are": b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a next buffer": b"\x80\x05\x97.",
    "memo without an entry": b"\x80\x02h\x07.",
    "an empty stack": b"\x80\x02.",
    "no end": b"\x80\x02]",
    "nothing": b"\x80\x02",
    "a newer protocol": b"\x80\x63.",
    "no pickle": b"hello",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_tricks_end_in_an_error_and_leave_nothing(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    record = ALLOWED["webgym.data.components", "Action"]
    before = dict(vars(record)), [stand_in.make for stand_in in ALLOWED.values() if isinstance(stand_in, Maker)]
    path = save(tmp_path / "t.pt", content)
    with pytest.raises(InputError) as caught:
        load_archive(path)
    assert caught.value.message.startswith((f"{path}: refuses ", f"{path}: is damaged or cut off: "))
    assert not caught.value.message.endswith(" ")
    assert sorted(tmp_path.iterdir()) == [path]
    after = dict(vars(record)), [stand_in.make for stand_in in ALLOWED.values() if isinstance(stand_in, Maker)]
    assert before == after


def test_an_attribute_hides_no_method(web: ModuleType, save: Save, tmp_path: Path) -> None:
    action = web.Action(__setstate__=1, get=2, __class__name=3)
    read = load_archive(save(tmp_path / "t.pt", action))
    assert read.get("get") == 2
    assert read["__setstate__"] == 1


def not_files(folder: Path, save: Save) -> dict[str, tuple[Path, str, str]]:
    """Return files that are no archive, each with the message (after the path) and the hint."""
    whole = save(folder / "whole", {"trajectories": [[{"text": "x" * 500}]]}).read_bytes()
    middle = whole.index(b"xxx") + 100
    contents = {
        "empty": (b"", "is empty", FETCH),
        "text": (b'{"steps": []}\n', "is not a file of torch.save, which is a zip", SAVE_AGAIN),
        "bare pickle": (pickle.dumps([]), "is not a file of torch.save, which is a zip", SAVE_AGAIN),
        "old": (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2),
                "is in the format that torch.save had before torch 1.6", SAVE_AGAIN),
        "cut": (whole[:-40], "is damaged or cut off: File is not a zip file", FETCH),
        "head": (b"PK\x03\x04", "is damaged or cut off: File is not a zip file", FETCH),
        "bit": (whole[:middle] + b"y" + whole[middle + 1 :], "is damaged or cut off: Bad CRC-32 for file "
                "'archive/data.pkl'", FETCH),
    }  # fmt: skip
    files = {}
    for name, (content, message, hint) in contents.items():
        files[name] = folder / name, message, hint
        (folder / name).write_bytes(content)
    return files


@pytest.mark.parametrize("name", ["empty", "text", "bare pickle", "old", "cut", "head", "bit"])
def test_what_is_no_archive_is_said(save: Save, tmp_path: Path, name: str) -> None:
    path, message, hint = not_files(tmp_path, save)[name]
    with pytest.raises(InputError) as caught:
        load_archive(path)
    assert (caught.value.message, caught.value.hint) == (f"{path}: {message}", hint)


def zip_of(entries: list[str], compression: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name in entries:
            archive.writestr(name, b"\x80\x02" + b"N0" * 5000 + b"N.")
    return target.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zip_of(["a/version"]), "has 0 entries data.pkl, and a file of torch.save has one"),
        (zip_of(["a/data.pkl", "b/data.pkl"]), "has 2 entries data.pkl, and a file of torch.save has one"),
        (
            zip_of(["a/data.pkl"], zipfile.ZIP_DEFLATED),
            "a/data.pkl is compressed or encrypted, as torch.save does not do",
        ),
    ],
)
def test_a_zip_of_something_else_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.pt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_archive(path)
    assert (caught.value.message, caught.value.hint) == (f"{path}: {message}", SAVE_AGAIN)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.pt: no such file"):
        load_archive(tmp_path / "t.pt")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_archive(tmp_path)


def load_or_error(path: Path) -> Any:
    try:
        return load_archive(path)
    except InputError as error:
        return error


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.data())
def test_a_damaged_file_gives_its_value_or_an_error(
    web: ModuleType, save: Save, tmp_path: Path, data: st.DataObject
) -> None:
    value = {"trajectories": [[{"action": web.Action(action_string="x" * 40)}]]}
    whole = save(tmp_path / "whole.pt", value).read_bytes()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "t.pt"
    path.write_bytes(content[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else content)
    read = load_or_error(path)
    if isinstance(read, InputError):
        assert read.message.startswith(f"{path}: ")
        assert read.hint
    else:
        assert read == {"trajectories": [[{"action": {"action_string": "x" * 40}}]]}


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(save: Save, tmp_path: Path, enabled: bool) -> None:
    path = save(tmp_path / "t.pt", b"\x80\x02")
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(InputError):
            load_archive(path)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


TORCH_PROGRAM = """
import sys, types
import torch
module = types.ModuleType("webgym.data.components")
for name in ("Action", "Observation", "Task", "Reward", "Response"):
    setattr(module, name, type(name, (), {"__module__": module.__name__}))
for name in ("webgym", "webgym.data"):
    sys.modules[name] = types.ModuleType(name)
sys.modules[module.__name__] = module
action, seen = module.Action(), module.Observation()
action.action_string = "click(3)"
seen.pixels, seen.weight = torch.ones(3, 4), torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
seen.image_path = "/shots/1.png"
step = {"action": action, "observation": seen, "same_as_next_screenshot": False}
data = {"trajectories": [[step]], "metadata": {"n": 1}}
for protocol in (2, 4):
    torch.save(data, f"{sys.argv[1]}/{protocol}.pt", pickle_protocol=protocol)
torch.save({"trajectories": []}, f"{sys.argv[1]}/old.pt", _use_new_zipfile_serialization=False)
torch.save({"trajectories": [torch.float32]}, f"{sys.argv[1]}/dtype.pt")
"""


@pytest.mark.slow
def test_files_of_the_real_torch_save(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    subprocess.run([sys.executable, "-c", TORCH_PROGRAM, str(tmp_path)], check=True, env=env)
    for name in ("2.pt", "4.pt"):
        read = load_archive(tmp_path / name)
        step = read["trajectories"][0][0]
        seen = step["observation"]
        assert read["metadata"] == {"n": 1}
        assert step["action"] == {"action_string": "click(3)"}
        assert (seen["image_path"], type(seen["pixels"]).__name__, type(seen["weight"]).__name__) == (
            "/shots/1.png",
            "Unread",
            "Unread",
        )
    with pytest.raises(InputError, match="is in the format that torch"):
        load_archive(tmp_path / "old.pt")
    with pytest.raises(InputError, match=r"refuses torch\.float32"):
        load_archive(tmp_path / "dtype.pt")
