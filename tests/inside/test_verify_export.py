"""`verify_export.py`: an export that holds no training, lacks a file or computes nonsense is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., subprocess.CompletedProcess[str]]
    Tensors = dict[str, Any]

TESTS = Path(__file__).parents[1]
INSIDE = TESTS.parent / "trainkit" / "inside"
EMPTY = {
    "ok": False,
    "problems": [],
    "warnings": [],
    "tensors": 0,
    "changed": 0,
    "largest_change": 0.0,
    "parameters": 0,
    "dtype": "",
    "answer": "",
    "chat_template": False,
}
BASE = {"a.weight": [1.0, 2.0, 3.0], "lm_head.weight": [4.0, 5.0]}


@pytest.fixture(autouse=True)
def beside_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program find its other half, as it does when it is run by path."""
    monkeypatch.syspath_prepend(str(INSIDE))


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ({}, "the request has no exported"),
        ([], "the request has no exported"),
        ({"exported": "/no/such"}, "/no/such is not a folder"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_a_problem(run: Run, request_: Any, problem: str) -> None:
    done = run("verify_export", stdin=request_)
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (1, EMPTY | {"problems": [problem]}, "")


def write_model(folder: Path, tensors: dict[str, Any], dtype: str = "float32", name: str = "model") -> Path:
    """Write a folder with the files of an export, complete but for being loadable."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    values = {key: torch.tensor(value).to(getattr(torch, dtype)) for key, value in tensors.items()}
    save_file(values, folder / f"{name}.safetensors")
    return folder


def compare(tmp_path: Path, tensors: Tensors, dtype: str = "float32", base: Tensors = BASE) -> dict[str, Any]:
    """Return what a comparison of tensors reports, without loading a model."""
    from trainkit.inside import verify_export

    report = verify_export.Report()
    original = write_model(tmp_path / "base", base)
    exported = write_model(tmp_path / "exported", tensors, dtype)
    verify_export.check_files(exported, report)
    verify_export.check_tensors(exported, original, None, report)
    found = verify_export.asdict(report)
    text = json.dumps([found["problems"], found["warnings"]]).replace(f"{tmp_path}/", "")
    found["problems"], found["warnings"] = json.loads(text)
    return {key: value for key, value in found.items() if value not in ([], "", 0, 0.0)}


NO_TRAINING = "no tensor differs from base: the export holds no training"


@pytest.mark.parametrize(
    ("tensors", "dtype", "found"),
    [
        (BASE, "float32", {"tensors": 2, "problems": [NO_TRAINING], "parameters": 5, "dtype": "float32"}),
        (BASE, "bfloat16", {"tensors": 2, "problems": [NO_TRAINING], "parameters": 5, "dtype": "bfloat16"}),
        (
            BASE | {"a.weight": [1.0, 2.0, 3.5]},
            "bfloat16",
            {"tensors": 2, "changed": 1, "largest_change": 0.5, "parameters": 5, "dtype": "bfloat16"},
        ),
        (
            {"a.weight": [1.0, 2.5, 3.0]},
            "float32",
            {"tensors": 1, "changed": 1, "largest_change": 0.5, "parameters": 3, "dtype": "float32"},
        ),
        (
            {"b.weight": [0.0], "lm_head.weight": [4.0, 6.0]},
            "float32",
            {
                "tensors": 2,
                "changed": 1,
                "largest_change": 1.0,
                "parameters": 3,
                "dtype": "float32",
                "problems": [
                    "1 tensors of the base are missing, first a.weight",
                    "1 tensors are not in the base, first b.weight",
                ],
            },
        ),
        (
            {"a.weight": [1.0, float("nan"), 3.0], "lm_head.weight": [float("inf"), 5.0]},
            "float32",
            {
                "tensors": 2,
                "parameters": 5,
                "dtype": "float32",
                "problems": [
                    "a.weight holds NaN or infinite values",
                    "lm_head.weight holds NaN or infinite values",
                    NO_TRAINING,
                ],
            },
        ),
        (
            {"a.weight": [1.0, 2.0], "lm_head.weight": [4.0, 5.0, 6.0]},
            "float32",
            {
                "tensors": 2,
                "parameters": 5,
                "dtype": "float32",
                "problems": ["a.weight has shape (2,), in the base (3,)", NO_TRAINING],
                "warnings": ["lm_head.weight has shape (3,), in the base (2,)"],
            },
        ),
    ],
)
def test_tensors_are_compared_with_the_base(
    tmp_path: Path, tensors: dict[str, Any], dtype: str, found: dict[str, Any]
) -> None:
    assert compare(tmp_path, tensors, dtype) == {"chat_template": True} | found


def test_a_long_tensor_is_compared_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainkit.inside.verify_export.ELEMENTS_AT_ONCE", 3)
    long = {"a": [float(number) for number in range(10)]}
    found = compare(tmp_path, {"a": [*long["a"][:9], 9.25]}, base=long)
    assert (found["changed"], found["largest_change"]) == (1, 0.25)


def test_an_adapter_of_zeros_explains_why_nothing_changed(tmp_path: Path) -> None:
    from trainkit.inside import verify_export

    zero = write_model(tmp_path / "zero", {"q.lora_A.weight": [1.0], "q.lora_B.weight": [0.0]}, name="adapter_model")
    trained = write_model(tmp_path / "trained", {"q.lora_B.weight": [0.1]}, name="adapter_model")
    assert verify_export.explanation(zero) == f" (every B matrix of {zero} is zero: it was never trained)"
    assert verify_export.explanation(trained) == ""
    assert verify_export.explanation(None) == ""


def test_what_is_missing_is_named_and_nothing_is_loaded(run: Run, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    exported.mkdir()
    done = run("verify_export", stdin={"exported": str(exported)})
    assert json.loads(done.stdout)["problems"] == [
        f"{exported}/config.json is missing",
        f"{exported}/generation_config.json is missing",
        f"{exported}/tokenizer_config.json is missing",
        f"{exported} has no tokenizer: none of tokenizer.json, tokenizer.model, vocab.json, vocab.txt, spiece.model",
        f"{exported} has no chat template",
        f"{exported} has no model.safetensors",
    ]
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("model.safetensors", "short", "model.safetensors: Error while deserializing header"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: Expecting property name"),
    ],
)
def test_a_damaged_file_is_named(run: Run, tmp_path: Path, file: str, content: str, problem: str) -> None:
    exported = write_model(tmp_path / "exported", BASE)
    (exported / file).write_text(content)
    done = run("verify_export", stdin={"exported": str(exported)})
    report = json.loads(done.stdout)
    assert (done.returncode, len(report["problems"])) == (1, 1)
    assert problem in report["problems"][0]


def test_shards_are_found_through_their_index(tmp_path: Path) -> None:
    from trainkit.inside import verify_export

    model = write_model(tmp_path / "model", {"a": [1.0]}, name="model-00001-of-00002")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="model-00002-of-00002"):
        verify_export.find_tensors(model)
    index["weight_map"].pop("b")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert verify_export.find_tensors(model) == {"a": model / "model-00001-of-00002.safetensors"}


def test_a_base_that_cannot_be_compared_is_a_warning(tmp_path: Path) -> None:
    from trainkit.inside import verify_export

    report = verify_export.Report()
    assert verify_export.find_base_tensors(tmp_path / "none", report) == {}
    assert report.warnings == [f"{tmp_path}/none is not a model with safetensors: tensors were not compared"]


@pytest.mark.slow
def test_a_copy_is_refused_and_a_changed_model_answers(run: Run, tmp_path: Path, tiny: Path) -> None:
    from safetensors.torch import load_file, save_file

    exported = shutil.copytree(tiny, tmp_path / "exported")
    request = {"base": str(tiny), "exported": str(exported), "template": "qwen", "prompt": "Hi", "max_new_tokens": 4}
    copied = json.loads(run("verify_export", stdin=request).stdout)
    assert copied["problems"] == [f"no tensor differs from {tiny}: the export holds no training"]

    tensors = load_file(exported / "model.safetensors")
    tensors["model.norm.weight"] += 0.5
    save_file(tensors, exported / "model.safetensors", metadata={"format": "pt"})
    done = run("verify_export", stdin=request)
    report = json.loads(done.stdout)
    assert report["answer"].strip()
    assert (done.returncode, report) == (
        0,
        EMPTY
        | {"ok": True, "tensors": 27, "changed": 1, "largest_change": 0.5}
        | {"parameters": 348736, "dtype": "float32", "chat_template": True, "answer": report["answer"]},
    )


@pytest.mark.slow
def test_a_model_that_does_not_load_or_answer_is_found(run: Run, tmp_path: Path, tiny: Path) -> None:
    exported = shutil.copytree(tiny, tmp_path / "exported")
    (exported / "chat_template.jinja").write_text("{% if %}")
    report = json.loads(run("verify_export", stdin={"exported": str(exported)}).stdout)
    assert len(report["problems"]) == 1
    assert report["problems"][0].startswith(f"{exported} does not load and answer: TemplateSyntaxError: ")


SEES: dict[str, Any] = {"config.json": {"vision_config": {}}}
OLD_FORM: dict[str, Any] = {"preprocessor_config.json": {}}
NEW_FORM: dict[str, Any] = {"processor_config.json": {"image_processor": {}}}


@pytest.mark.parametrize(
    ("exported", "base", "found"),
    [
        ({"config.json": {}}, OLD_FORM, []),
        ({}, OLD_FORM, []),
        (SEES | OLD_FORM, {}, []),
        (SEES | NEW_FORM, {}, []),
        (SEES, OLD_FORM, ["problems"]),
        (SEES | {"processor_config.json": {}}, NEW_FORM, ["problems"]),
        (SEES, None, ["problems"]),
        (SEES | {"processor_config.json": {}}, {"processor_config.json": {}}, ["warnings"]),
    ],
)
def test_a_model_that_sees_needs_an_image_processor(
    tmp_path: Path, exported: dict[str, Any], base: dict[str, Any] | None, found: list[str]
) -> None:
    from trainkit.inside import verify_export

    for name, files in (("exported", exported), ("base", base or {})):
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_text(json.dumps(content))
    report = verify_export.Report()
    verify_export.check_processor(tmp_path / "exported", None if base is None else tmp_path / "base", report)
    files = "neither in preprocessor_config.json nor in processor_config.json"
    said = [f"{tmp_path}/exported has no image processor, {files}"]
    assert {"problems": report.problems, "warnings": report.warnings} == {
        level: said if level in found else [] for level in ("problems", "warnings")
    }


VISION_PROGRAM = """\
import json, runpy, sys
import tiny_vision_model
from safetensors.torch import load_file, save_file
tiny_vision_model.make({"output": "model"})
tiny_vision_model.make({"output": "exported"})
tensors = load_file("exported/model.safetensors")
tensors["lm_head.weight"] += 0.5
save_file(tensors, "exported/model.safetensors", metadata={"format": "pt"})
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.slow
def test_a_model_that_sees_is_loaded_and_answers(tmp_path: Path) -> None:
    request = {"base": "model", "exported": "exported", "template": "qwen2_vl", "prompt": "Hi", "max_new_tokens": 2}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment["PYTHONPATH"] = f"{TESTS}:{INSIDE}"
    command = [sys.executable, "-c", VISION_PROGRAM, str(INSIDE / "verify_export.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, input=json.dumps(request), capture_output=True, encoding="utf-8"
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == EMPTY | {"ok": True, "tensors": 57, "changed": 1, "largest_change": 0.5} | {
        "parameters": 191584, "dtype": "float32", "chat_template": True, "answer": report["answer"]
    }  # fmt: skip


class FakeTokenizer:
    """Renders a conversation as one token for each character of its first message."""

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> list[int]:
        return [ord(character) for character in messages[0]["content"]]

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


class FakeTemplate:
    """A template of LLaMA-Factory that ends its prompts in another way after `at` tokens."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def encode_oneturn(self, tokenizer: FakeTokenizer, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
        tokens = tokenizer.apply_chat_template(messages)
        return tokens if self.at is None else [*tokens[: self.at], ord("!")], []


@pytest.mark.parametrize(
    ("name", "problems", "warnings"),
    [
        ("same", [], []),
        (
            "other",
            [],
            [
                "the chat template differs from LLaMA-Factory's other template after 4 tokens of a probe: "
                "'reasonab' instead of '!'"
            ],
        ),
        ("none", ["LLaMA-Factory has no template none"], []),
    ],
)
def test_the_chat_template_is_compared_with_llamafactorys(
    monkeypatch: pytest.MonkeyPatch, name: str, problems: list[str], warnings: list[str]
) -> None:
    from trainkit.inside import verify_answer, verify_export

    module = types.ModuleType("llamafactory.data.template")
    module.TEMPLATES = {"same": FakeTemplate(None), "other": FakeTemplate(4)}  # type: ignore[attr-defined]
    for package in ("llamafactory", "llamafactory.data"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    report = verify_export.Report()
    verify_answer.compare_templates(FakeTokenizer(), name, report)
    assert (report.problems, report.warnings) == (problems, warnings)
