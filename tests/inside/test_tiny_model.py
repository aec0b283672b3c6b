"""`tiny_model.py`: a model for the demo and the tests, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.inside import tiny_model

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    Run = Callable[..., subprocess.CompletedProcess[str]]

DEMO = Path(__file__).parents[2] / "templates" / "demo" / "evaluations.jsonl"
ROW = json.dumps({"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "{}"}]})


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ("no json", "the request is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ([1], "the request is not a JSON object"),
        ({}, "the request has no output and no texts"),
        ({"output": "new"}, "the request has no texts"),
        ({"output": "here", "texts": "texts.jsonl"}, "here exists already and is left as it is"),
        (
            {"output": "new", "texts": "texts.jsonl", "architecture": "gpt2"},
            "architecture 'gpt2' is not one of qwen2, llama, mistral",
        ),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_explained(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: Any, error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    done = run("tiny_model", stdin=request_)
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (1, {"ok": False, "error": error}, "")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"conversations": [1]}', '{"conversations": [{"from": "gpt"}]}'])
def test_a_line_that_is_no_evaluation_is_named(tmp_path: Path, line: str) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(f"{ROW}\n{line}\n", encoding="utf-8")
    reader = tiny_model.read_texts(texts)
    assert [next(reader), next(reader)] == ["问", "{}"]
    with pytest.raises(tiny_model.BadRequest, match=r"texts\.jsonl:2: not an evaluation with conversations"):
        next(reader)


def test_a_missing_file_of_texts_is_named(tmp_path: Path) -> None:
    with pytest.raises(tiny_model.BadRequest, match=r"none\.jsonl: cannot be read: .*No such file"):
        list(tiny_model.read_texts(tmp_path / "none.jsonl"))


@pytest.mark.slow
def test_the_same_request_gives_the_same_bytes_in_a_complete_folder(run: Run, tmp_path: Path, tiny: Path) -> None:
    again = tmp_path / "deep" / "model"
    done = run("tiny_model", stdin={"output": str(again), "texts": str(DEMO)})
    assert json.loads(done.stdout) == {
        "ok": True,
        "output": str(again),
        "architecture": "qwen2",
        "parameters": 348736,
        "vocab_size": 2000,
    }
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in tiny.iterdir()
    }
    assert [path.name for path in again.parent.iterdir()] == ["model"]
    config = json.loads((again / "config.json").read_text())
    assert (config["model_type"], config["max_position_embeddings"], config["dtype"]) == ("qwen2", 8192, "float32")


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "template"), [("llama", "llama3"), ("mistral", "mistral")])
def test_the_other_families_speak_the_template_of_llamafactory(
    run: Run, tmp_path: Path, architecture: str, template: str
) -> None:
    model = tmp_path / "model"
    made = run("tiny_model", stdin={"output": str(model), "texts": str(DEMO), "architecture": architecture})
    assert made.returncode == 0, made.stderr
    done = run("verify_export", stdin={"exported": str(model), "template": template})
    report = json.loads(done.stdout)
    assert (report["problems"], report["warnings"], done.returncode) == ([], [], 0)
