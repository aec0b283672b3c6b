from __future__ import annotations

import json
import os
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.workflow.export import last_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Place


SOURCE = [
    "adapter_config.json", "adapter_model.safetensors", "all_results.json", "tokenizer.json", "trainer_log.jsonl",
    "trainer_state.json", "training_loss.png",
]  # fmt: skip


@pytest.fixture
def adapter(trained: Place) -> Place:
    """A folder with an adapter that was just trained, and not exported yet."""
    shutil.rmtree(trained.path("exported"))
    return trained


def test_an_adapter_is_merged_checked_and_put_in_its_place(adapter: Place) -> None:
    done = adapter.trainkit("export")
    assert (done.code, done.err) == (0, "warning: the answer is long\n")
    assert done.out == (
        "exported model WORK/exported\n"
        "checked        14 of 27 tensors differ from the base model; it loads and answers\n"
    )
    exported, verified = adapter.calls()
    values = dict(exported["values"])
    staged = values.pop("export_dir")
    assert values == {
        "model_name_or_path": str(adapter.path("model")),
        "adapter_name_or_path": str(adapter.path("saves/rm")),
        "finetuning_type": "lora",
        "template": "qwen",
        "trust_remote_code": True,
        "export_size": 5,
        "export_device": "cpu",
        "export_legacy_format": False,
    }
    assert verified == {
        "program": "verify",
        "base": str(adapter.path("model")),
        "exported": staged,
        "adapter": str(adapter.path("saves/rm")),
        "template": "qwen",
        "prompt": "Reply with one word: ready",
        "max_new_tokens": 16,
        "trust_remote_code": True,
    }
    assert sorted(path.name for path in adapter.path("exported").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "trainkit_run.json",
    ]  # fmt: skip
    marker = json.loads(adapter.path("exported/trainkit_run.json").read_text())
    trained_marker = json.loads(adapter.path("saves/rm/trainkit_run.json").read_text())
    source = {"kind": "export", "source": str(adapter.path("saves/rm"))}
    added = {key: marker[key] for key in ("report", "made", "files")}
    assert marker == {**trained_marker, **source, **added}
    assert marker["report"]["changed"] == 14
    values.pop("export_device")
    assert marker["made"]["values"] == values
    assert sorted(marker["made"]["source"]) == SOURCE
    assert sorted(marker["made"]["model"]) == ["config.json", "model.safetensors", "tokenizer.json"]
    stats = {name: adapter.path(f"exported/{name}").stat() for name in marker["files"]}
    assert marker["files"] == {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    assert sorted(stats) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert [path.name for path in adapter.folder.iterdir() if path.name.startswith(".")] == []


def test_a_fully_trained_model_is_exported_as_it_is(ready: Place) -> None:
    ready.config("finetuning_type: full", "learning_rate: 1.0e-5")
    assert ready.trainkit("train").code == 0
    assert ready.trainkit("export", "saves/rm").code == 0
    _, exported, verified = ready.calls()
    assert exported["values"]["model_name_or_path"] == str(ready.path("saves/rm"))
    assert exported["values"]["finetuning_type"] == "full"
    assert "adapter_name_or_path" not in exported["values"]
    assert (verified["base"], verified["adapter"]) == (str(ready.path("model")), None)


def test_a_checkpoint_can_be_exported(adapter: Place) -> None:
    assert adapter.trainkit("export", "saves/rm/checkpoint-2", "-o", "at-2").code == 0
    assert adapter.calls("export")[0]["values"]["adapter_name_or_path"] == str(adapter.path("saves/rm/checkpoint-2"))
    assert adapter.path("at-2/model.safetensors").exists()


SIZES: list[tuple[list[str], list[str], dict[str, Any]]] = [
    ([], ["--size", "2", "--device", "auto"], {"export_size": 2, "export_device": "auto"}),
    (["export_size: 3", "export_device: auto"], [], {"export_size": 3, "export_device": "auto"}),
    (["export_size: 3", "export_device: auto"], ["--size", "1", "--device", "cpu"], {"export_size": 1,
                                                                                    "export_device": "cpu"}),
    (["trust_remote_code: true"], [], {"trust_remote_code": True}),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "words", "values"), SIZES)
def test_size_and_device_reach_the_trainer(
    ready: Place, lines: list[str], words: list[str], values: dict[str, Any]
) -> None:
    ready.config(*lines)
    assert ready.trainkit("train").code == 0
    assert ready.trainkit("export", *words).code == 0
    assert {key: ready.calls("export")[0]["values"][key] for key in values} == values
    assert ready.calls("verify")[0]["trust_remote_code"] is ("trust_remote_code" in values)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--size", "0"], "error: --size 0: must be at least 1 (GB)\n"),
        (["--size", "-1"], "error: --size -1: must be at least 1 (GB)\n"),
        (["--device", "gpu"], "error: --device gpu: must be cpu or auto\n    auto uses the GPU\n"),
    ],
)
def test_sizes_and_devices_that_there_are_not(adapter: Place, words: list[str], told: str) -> None:
    done = adapter.trainkit("export", *words)
    assert (done.code, done.out, done.err) == (2, "", told)


def test_the_target_is_named_by_option_then_by_the_training_then_usual(ready: Place) -> None:
    text = ready.path("training_config.yaml").read_text().replace("export_dir: ./exported\n", "")
    ready.write("training_config.yaml", text)
    assert ready.trainkit("train").code == 0
    assert ready.trainkit("export", "--json").json["folder"] == "WORK/exported_model"
    assert ready.trainkit("export", "--json", "-o", "a/../b").json["folder"] == "WORK/b"
    report = ready.trainkit("export", "--json", "-o", "~/c").json
    assert report["folder"] == f"{os.environ['HOME']}/c"
    assert report["report"]["tensors"] == 27


def papers(place: Place) -> None:
    place.write("exported/thesis.tex", "years of work")


def a_file(place: Place) -> None:
    place.write("exported", "years of work")


def nothing(place: Place) -> None:
    shutil.rmtree(place.path("saves/rm"))


def no_marker(place: Place) -> None:
    place.path("saves/rm/trainkit_run.json").unlink()


def strange_marker(place: Place) -> None:
    place.write("saves/rm/trainkit_run.json", '{"kind": "training"}')


def damaged_marker(place: Place) -> None:
    place.write("saves/rm/trainkit_run.json", "{")


def not_ended(place: Place) -> None:
    place.path("saves/rm/adapter_config.json").unlink()


def no_base(place: Place) -> None:
    shutil.rmtree(place.path("model"))


def no_config(place: Place) -> None:
    place.path("training_config.yaml").unlink()


FOREIGN = "error: WORK/exported: exists and was not written by trainkit export\n    choose another --output-dir\n"
NO_MARKER = (
    "error: WORK/saves/rm: there is no trainkit_run.json of a training, so this is not the output of trainkit train\n"
    "    name the output_dir of a training\n"
)
REFUSED: dict[str, tuple[Callable[[Place], object], list[str], str]] = {
    "somebody's folder": (papers, [], FOREIGN),
    "somebody's file": (a_file, [], FOREIGN),
    "the data": (
        papers, ["-o", "data"],
        "error: WORK/data: exists and was not written by trainkit export\n    choose another --output-dir\n",
    ),
    "the adapter": (
        papers, ["-o", "saves/rm"],
        "error: WORK/saves/rm: is the trained model itself, or holds it\n    choose another --output-dir\n",
    ),
    "the adapter's folder": (
        papers, ["-o", "saves"],
        "error: WORK/saves: is the trained model itself, or holds it\n    choose another --output-dir\n",
    ),
    "the base model": (
        papers, ["-o", "model"],
        "error: WORK/model: is the model that was trained, or holds it\n    choose another --output-dir\n",
    ),
    "below a file": (
        papers, ["-o", "training_config.yaml/x"],
        "error: WORK/training_config.yaml: File exists\n    is there space on the disk, and may you write there?\n",
    ),
    "no folder": (
        nothing, [],
        "error: WORK/saves/rm: no such folder\n    train first, or name the output_dir of a training\n",
    ),
    "no marker": (no_marker, [], NO_MARKER),
    "a strange marker": (strange_marker, [], NO_MARKER),
    "a damaged marker": (damaged_marker, [], "error: WORK/saves/rm/trainkit_run.json:1:2: not valid JSON: "),
    "not ended": (
        not_ended, [],
        "error: WORK/saves/rm: holds no model yet\n    the training has not ended; a checkpoint-N can be named\n",
    ),
    "no base model": (
        no_base, [],
        "error: WORK/model: there is no such folder, and WORK/saves/rm is an adapter of it\n    put the model back\n",
    ),
    "no configuration": (
        no_config, [], "error: training_config.yaml: no such file\n    trainkit init writes one to start from\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(adapter: Place, case: str) -> None:
    prepare, words, told = REFUSED[case]
    prepare(adapter)
    before = adapter.tree()
    done = adapter.trainkit("export", *words)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(told)
    assert (adapter.tree(), adapter.calls("export")) == (before, [])


def test_an_empty_folder_and_an_earlier_export_are_replaced(adapter: Place) -> None:
    adapter.path("exported").mkdir()
    for _ in range(2):
        assert adapter.trainkit("export").code == 0
        assert not adapter.path("exported/old").exists()
        adapter.write("exported/old", "")
    names = sorted(path.name for path in adapter.folder.iterdir())
    assert names == ["data", "exported", "model", "saves", "training_config.yaml"]


FAILURES: dict[str, tuple[dict[str, str], int, str]] = {
    "trainer": (
        {"FAKE_TRAINER": '{"export_exit": 3, "log": "OSError: [Errno 28] No space left on device"}'}, 3,
        "error: export failed: the disk is full\n    OSError: [Errno 28] No space left on device\n    free some",
    ),
    "check": (
        {"FAKE_VERIFY": '{"ok": false, "problems": ["no tensor differs from the base", "there is no tokenizer"]}'}, 1,
        "error: the exported model is not good:\n    no tensor differs from the base\n    there is no tokenizer\n"
        "    nothing was written\n",
    ),
    "check's request": (
        {"FAKE_VERIFY": '{"ok": false, "error": "the request has no base"}'}, 1,
        "error: the exported model is not good:\n    the request has no base\n    nothing was written\n",
    ),
    "check's program": (
        {"FAKE_VERIFY": "crash"}, 1,
        "error: the exported model could not be checked:\n    Segmentation fault\n    of some library\n"
        "    nothing was written\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_export_leaves_the_old_one(adapter: Place, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    environment, code, told = FAILURES[case]
    assert adapter.trainkit("export").code == 0
    before = adapter.tree()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = adapter.trainkit("export")
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(told)
    assert adapter.tree() == before
    report = adapter.trainkit("export", "--json")
    assert (report.code, report.err, report.json["ok"]) == (code, "", False)


def test_a_failed_export_does_not_hide_the_training(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VERIFY", '{"ok": false, "problems": ["bad"]}')
    done = ready.trainkit("train", "--export")
    assert done.code == 1
    assert done.out.startswith("trained model  WORK/saves/rm\n")
    assert done.err.endswith("error: the exported model is not good:\n    bad\n    nothing was written\n")
    assert ready.manifest()["exit_code"] == 0


def test_a_stopped_export_leaves_nothing(adapter: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = adapter.tree()
    monkeypatch.setenv("FAKE_TRAINER", '{"wait": true}')
    process = adapter.start("export")
    try:
        for _ in range(400):
            if any(adapter.folder.glob(".exported*/ready")):
                break
            time.sleep(0.025)
        os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (143, "", "error: export stopped; nothing was written\n")
    assert adapter.tree() == before


@pytest.mark.parametrize(
    ("text", "value"), [("", None), ("[1]", None), ("noise", None), ('talk\n{"a": 1}\n', {"a": 1}), ("{", None)]
)
def test_a_report_is_the_last_line(text: str, value: dict[str, int] | None) -> None:
    assert last_json(text) == value
