"""`trainkit convert` as it is used: words in, whole outputs out."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from trainkit import lines
from trainkit.cli import main
from trainkit.dataset.registry import entry_for, load_registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Done, Place

    Run = Callable[..., tuple[int, str, str]]

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "finetune.jsonl"
JUDGES = ("deepseek-chat", "kimi-k2-0711-preview")


def evaluation(kind: str, judge: str, number: int, **metadata: object) -> dict[str, Any]:
    return {
        "conversations": [
            {"from": "human", "value": f'\nYou judge clip {number}: "任务" \\ \u2028 😀 \x01\n'},
            {"from": "gpt", "value": json.dumps({"score": number / 10, "why": "很好"}, ensure_ascii=False)},
        ],
        "metadata": {
            "evaluation_type": kind,
            "model_name": judge,
            "task_id": "webshaper_qa_0",
            "category": "tavily" if kind == "category" else None,
            "provider": "a" if number % 2 else "b",
            "timestamp": 1754.5,
            "nested": {"tools": ["x", None]},
        }
        | metadata,
    }


# The shape of the real file: two judges say the same number of things on each type.
SAMPLE = [
    evaluation(kind, judge, number)
    for number, (kind, judge) in enumerate(
        (kind, judge) for judge in JUDGES for kind in ("clip", "clip", "category", "final")
    )
]
COUNTS = {
    "reward_model_full": 8,
    "reward_model_clip": 4,
    "reward_model_category": 2,
    "reward_model_final": 2,
    "reward_model_deepseek_chat": 4,
    "reward_model_kimi_k2_0711_preview": 4,
    "reward_model_webshaper_qa_0": 8,
}
TABLE = """\
data set                           rows
reward_model_full                     8
reward_model_clip                     4
reward_model_category                 2
reward_model_final                    2
reward_model_deepseek_chat            4
reward_model_kimi_k2_0711_preview     4
reward_model_webshaper_qa_0           8
"""
BAD = {
    "not json": b"{broken",
    "empty": json.dumps({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": " "}]}).encode(),
}


def jsonl(records: list[Any]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `trainkit convert` in tmp_path; return exit code, stdout and stderr, the digest of the folder hidden."""
    monkeypatch.chdir(tmp_path)

    def ran(*words: str) -> tuple[int, str, str]:
        code = main(["convert", *words])
        out, err = capsys.readouterr()
        return code, out, re.sub(r"-[0-9a-f]{8}\b", "-#", err)

    return ran


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "finetune.jsonl"
    path.write_bytes(jsonl(SAMPLE))
    return path


def rows(name: str, data: Path = Path("data")) -> list[dict[str, Any]]:
    """The rows that the trainer takes for an entry."""
    entry = load_registry(data)[name]
    held = (data / entry["file_name"]).read_bytes().split(b"\n")[:-1]
    pieces = entry["split"].split("+") if "split" in entry else [f"train[0:{len(held)}]"]
    found = []
    for piece in pieces:
        bounds = re.fullmatch(r"train\[(\d+):(\d+)\]", piece)
        assert bounds is not None
        start, stop = map(int, bounds.groups())
        assert start < stop <= len(held)
        found += held[start:stop]
    return [json.loads(line) for line in found]


def prompts(name: str) -> list[str]:
    return [row["conversations"][0]["value"] for row in rows(name)]


def counts(data: Path = Path("data")) -> dict[str, int]:
    return {name: len(rows(name, data)) for name in load_registry(data)}


def everything() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def failed(message: str, hint: str = "") -> tuple[int, str, str]:
    return 1, "", f"error: {message}\n" + (f"    {hint}\n" if hint else "")


# -- the main way


@pytest.mark.usefixtures("sample")
def test_the_sample_with_all_its_variants(run: Run) -> None:
    words = (
        "8 rows written to data/reward_model-#, registered in data/dataset_info.json; prompts carry type, category\n"
    )
    assert run() == (0, TABLE, words)
    assert counts() == COUNTS
    assert sorted(path.name for path in Path("data").iterdir() if path.is_file()) == [
        ".trainkit.lock",
        "dataset_info.json",
    ]
    (folder,) = Path("data").glob("reward_model-*")
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "train.jsonl"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["metadata_form"] == ["type", "category"]
    assert manifest["split"] is None
    assert manifest["files"] == {"train.jsonl": {"rows": 8, "bytes": (folder / "train.jsonl").stat().st_size}}
    assert manifest["variants"] == {name: {"rows": count, "side": "train"} for name, count in COUNTS.items()}


@pytest.mark.usefixtures("sample")
def test_what_the_trainer_reads_is_what_was_said(run: Run) -> None:
    assert run()[0] == 0
    expected = []
    for record in SAMPLE:
        ask, reply = record["conversations"]
        metadata = record["metadata"]
        category = f"[CATEGORY: {metadata['category']}] " if metadata["category"] else ""
        asked = {"from": "human", "value": f"[EVAL_TYPE: {metadata['evaluation_type']}] {category}{ask['value']}"}
        expected.append({"conversations": [asked, reply], "system": "", "tools": "", "metadata": metadata})
    found = [row | {"metadata": json.loads(row["metadata"])} for row in rows("reward_model_full")]
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.mark.usefixtures("sample")
def test_the_registry_names_the_rows_of_each_variant(run: Run) -> None:
    # sorted by type, then judge: two rows of each judge on clips, one on categories, one final
    assert run()[0] == 0
    (folder,) = Path("data").glob("reward_model-*")
    ranges = {
        "reward_model_full": [],
        "reward_model_clip": [(0, 4)],
        "reward_model_category": [(4, 6)],
        "reward_model_final": [(6, 8)],
        "reward_model_deepseek_chat": [(0, 2), (4, 5), (6, 7)],
        "reward_model_kimi_k2_0711_preview": [(2, 4), (5, 6), (7, 8)],
        "reward_model_webshaper_qa_0": [],
    }
    registry = load_registry(Path("data"))
    assert registry == {name: entry_for(f"{folder.name}/train.jsonl", pairs) for name, pairs in ranges.items()}
    assert list(registry) == list(ranges)
    assert registry["reward_model_deepseek_chat"]["split"] == "train[0:2]+train[4:5]+train[6:7]"


@pytest.mark.skipif(not REAL.exists(), reason="the real sample lies beside the repository")
def test_the_real_file(run: Run) -> None:
    assert run(str(REAL), "--json")[0] == 0
    assert counts() == COUNTS
    source = [json.loads(line) for line in REAL.read_bytes().splitlines()]
    answers = sorted(record["conversations"][1]["value"] for record in source)
    assert sorted(row["conversations"][1]["value"] for row in rows("reward_model_full")) == answers
    asked = sorted(record["conversations"][0]["value"] for record in source)
    assert sorted(re.sub(r"^(\[[A-Z_]+: [^]]*\] )+", "", prompt) for prompt in prompts("reward_model_full")) == asked


# -- what can be read

LINES = jsonl(SAMPLE)
FORMS: dict[str, bytes] = {
    "a.jsonl": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "crlf.jsonl": LINES.replace(b"\n", b"\r\n"),
    "no_last_newline.jsonl": LINES.rstrip(),
    "blank.jsonl": b"\n  \n" + LINES.replace(b"\n", b"\n\n\t\r\n"),
    "ascii.jsonl": b"".join(json.dumps(record).encode() + b"\n" for record in SAMPLE),
    "compact.json": json.dumps(SAMPLE, separators=(",", ":")).encode(),
    "one_line.json": json.dumps(SAMPLE, ensure_ascii=False).encode() + b"\n",
    "indented.json": json.dumps(SAMPLE, indent=4).encode(),
    "bom_crlf.json": b"\xef\xbb\xbf" + json.dumps(SAMPLE, indent=1).replace("\n", "\r\n").encode(),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.json.gz": gzip.compress(json.dumps(SAMPLE, indent=2).encode()),
    "a.jsonl.zst": zstandard.compress(LINES),
    "no_suffix": zstandard.compress(json.dumps(SAMPLE).encode()),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_rows(run: Run, sample: Path, name: str) -> None:
    assert run("-o", "expected")[0] == 0
    Path(name).write_bytes(FORMS[name])
    code, out, _ = run(name)
    assert (code, out) == (0, TABLE)
    for variant in COUNTS:
        found, expected = (
            [row | {"metadata": json.loads(row["metadata"])} for row in rows(variant, Path(folder))]
            for folder in ("data", "expected")
        )
        assert found == expected


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]) -> None:
    stdin = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(pack(LINES + b"{\n"))))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run("-", "--max-rejects", "20%")[:2] == (0, TABLE)
    assert json.loads(Path("data/rejected.jsonl").read_text())["file"] == "standard input"


@pytest.mark.usefixtures("sample")
def test_several_files(run: Run) -> None:
    Path("b.json").write_text(json.dumps([evaluation("clip", "third", 9)]))
    Path("c.jsonl.gz").write_bytes(gzip.compress(jsonl([evaluation("final", "third", 10)])))
    assert run("finetune.jsonl", "b.json", "--input", "c.jsonl.gz")[0] == 0
    assert counts() == COUNTS | {
        "reward_model_full": 10,
        "reward_model_clip": 5,
        "reward_model_final": 3,
        "reward_model_third": 2,
        "reward_model_webshaper_qa_0": 10,
    }


PACKED_GZ, PACKED_ZST = gzip.compress(LINES), zstandard.compress(LINES)
BROKEN: dict[str, tuple[bytes, str, str]] = {
    "empty.jsonl": (b"", "empty.jsonl: is empty", "there is nothing to convert in it"),
    "blank.jsonl": (b"\n\n  \n", "there is no row in the input", "nothing was published"),
    "bom.jsonl": (b"\xef\xbb\xbf", "there is no row in the input", "nothing was published"),
    "none.json": (b"[]", "there is no row in the input", "nothing was published"),
    "empty.gz": (gzip.compress(b""), "there is no row in the input", "nothing was published"),
    "utf16.jsonl": (LINES.decode().encode("utf-16"), "utf16.jsonl: is UTF-16 text", "save it as UTF-8"),
    "open.json": (b"[\n{},\n{}", "open.json:3: the JSON array is not closed", "the file may be cut off"),
    "two.json": (b"[{}]\n[{}]", "two.json:2: text after the end of the array", ""),
    "cut.gz": (
        PACKED_GZ[:-20],
        "cut.gz: the archive is damaged: Compressed file ended before the end-of-stream marker was reached",
        "fetch or pack it again",
    ),
    "cut.zst": (
        PACKED_ZST[:-20],
        "cut.zst: the archive is damaged: it ends in the middle of a frame",
        "fetch or pack it again",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_input_that_cannot_be_used(run: Run, name: str) -> None:
    content, message, hint = BROKEN[name]
    Path(name).write_bytes(content)
    assert run(name) == failed(message, hint)
    assert set(everything()) <= {name, "data", "data/.trainkit.lock"}


@pytest.mark.usefixtures("sample")
def test_a_missing_input(run: Run) -> None:
    assert run("finetune.json") == failed("finetune.json: no such file", "did you mean finetune.jsonl?")
    Path("folder").mkdir()
    assert run("folder") == failed("folder: is a folder", "name the files in it, for example with *.jsonl")
    assert everything() == ["finetune.jsonl", "folder"]


# -- filters


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("words", "name", "num_rows"),
    [
        (["--evaluation-types", "clip"], "reward_model_custom", 4),
        (["--evaluation-types", "clip,final"], "reward_model_custom", 6),
        (["--evaluation-types", "clip", "--evaluation-types", " final "], "reward_model_custom", 6),
        (["--model-names", "deepseek-chat", "--evaluation-types", "category"], "reward_model_custom", 1),
        (["--task-ids", "webshaper_qa_0"], "reward_model_custom", 8),
        (["--where", "provider=a"], "reward_model_custom", 4),
        (["--where", "provider=a", "--where", "provider=b"], "reward_model_custom", 8),
        (["--where", "timestamp=1754.5", "--name", "my-rm"], "my-rm", 8),
        (["--where", "evaluation_type=final", "--evaluation-types", "clip"], "reward_model_custom", 6),
        (["--where", "category="], "reward_model_custom", 6),
        (["--name", "任务_2"], "任务_2", 8),
    ],
)
def test_a_filtered_run_is_one_data_set(run: Run, words: list[str], name: str, num_rows: int) -> None:
    code, out, err = run(*words)
    assert (code, out.splitlines()[1].split()) == (0, [name, str(num_rows)])
    assert counts() == {name: num_rows}
    assert (f"{8 - num_rows} rows left out by the filters\n" in err) == (num_rows < 8)
    assert f"{num_rows} rows written to data/{name}-#" in err


@pytest.mark.usefixtures("sample")
def test_a_filtered_run_lets_the_others_be(run: Run) -> None:
    assert run()[0] == run("--evaluation-types", "clip")[0] == run("--where", "provider=a", "--name", "a")[0] == 0
    assert counts() == COUNTS | {"reward_model_custom": 4, "a": 4}
    assert run("--evaluation-types", "final")[0] == 0
    assert counts() == COUNTS | {"reward_model_custom": 2, "a": 4}


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--evaluation-types", "clips"], "evaluation_type: no row has clips; there are: category, clip, final"),
        (
            ["--model-names", "gpt,kimi", "--task-ids", "x"],
            "model_name: no row has gpt, kimi; there are: deepseek-chat, kimi-k2-0711-preview; "
            "task_id: no row has x; there are: webshaper_qa_0",
        ),
        (["--where", "judge=x"], "judge: no row has x; there are: none"),
        (["--where", "provider="], "provider: no row has an empty value; there are: a, b"),
        (["--where", "category=x"], "category: no row has x; there are: tavily"),
        (["--evaluation-types", "final", "--where", "category=tavily"], "no row passes all the filters together"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_filter_that_leaves_nothing(run: Run, words: list[str], message: str, dry_run: bool) -> None:
    assert run(*words, *["--dry-run"] * dry_run) == failed(message, "nothing was published")
    assert set(everything()) <= {"finetune.jsonl", "data", "data/.trainkit.lock"}


def test_a_long_list_of_values_is_cut(run: Run, sample: Path) -> None:
    sample.write_bytes(jsonl([evaluation("clip", f"j{n:02}", n) for n in range(40)]))
    listed = ", ".join(f"j{n:02}" for n in range(30))
    message = f"model_name: no row has x; there are: {listed}, ..."
    assert run("--model-names", "x") == failed(message, "nothing was published")


# -- the prefix


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("words", "prefixes", "form"),
    [
        ([], ["[EVAL_TYPE: clip] ", "[EVAL_TYPE: category] [CATEGORY: tavily] "], ["type", "category"]),
        (
            ["--metadata", "all"],
            [
                "[EVAL_TYPE: clip] [MODEL: deepseek-chat] [TASK: webshaper_qa_0] ",
                "[EVAL_TYPE: category] [MODEL: deepseek-chat] [TASK: webshaper_qa_0] [CATEGORY: tavily] ",
            ],
            ["type", "model", "task", "category"],
        ),
        (["--metadata", "category,model"], ["[MODEL: deepseek-chat] "] * 2, ["model", "category"]),
        (["--metadata", "none"], ["", ""], []),
        (["--no-metadata"], ["", ""], []),
    ],
)
def test_what_the_prompt_carries(run: Run, words: list[str], prefixes: list[str], form: list[str]) -> None:
    code, _, err = run(*words)
    assert code == 0
    assert err.endswith(f"; prompts carry {', '.join(form) or 'nothing'}\n")
    found = [prompt.split("\nYou")[0] for prompt in prompts("reward_model_deepseek_chat")]
    if words == ["--metadata", "category,model"]:
        prefixes = [prefixes[0], "[MODEL: deepseek-chat] [CATEGORY: tavily] "]
    assert found == [prefixes[0], prefixes[0], prefixes[1], prefixes[0].replace("clip", "final")]
    (folder,) = Path("data").glob("reward_model-*")
    assert json.loads((folder / "manifest.json").read_text())["metadata_form"] == form


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            ["--metadata", "type,judge"],
            "--metadata: judge cannot be put into the prompt",
            "choose from type, model, task, category, or all, or none",
        ),
        (["--where", "provider"], "--where provider: must be key=value", "for example --where provider=openai"),
        (["--where", "=a"], "--where =a: must be key=value", "for example --where provider=openai"),
        (["--name", "a,b"], "--name a,b: use letters, digits, _ and -", "for example a_b"),
        (["--name", "../a"], "--name ../a: use letters, digits, _ and -", "for example a"),
        (["--name", ""], "--name : use letters, digits, _ and -", "for example unnamed"),
        (["--name", "x" * 200], f"--name {'x' * 200}: is too long", "at most 100 bytes"),
        (["--name", "reward_model"], "--name reward_model: is the name of all variants together",
         "for example reward_model_custom"),
        (["--by-task", "-1"], "--by-task -1: must be a number, all or none", ""),
        (["--by-task", "some"], "--by-task some: must be a number, all or none", ""),
        (["--split", "tasks"], "--split tasks: must be groups or rows", ""),
        (["--eval-ratio", "0.3"], "--eval-ratio 0.3: has no meaning without --split-eval", "add --split-eval"),
        (["--split-eval", "--eval-ratio", "1"], "--eval-ratio 1.0: must be at least 0 and below 1", ""),
        (["--split-eval", "--eval-ratio", "-0.1"], "--eval-ratio -0.1: must be at least 0 and below 1", ""),
        (["--split-eval", "--eval-ratio", "nan"], "--eval-ratio nan: must be at least 0 and below 1", ""),
        (["--min-samples", "1"], "--min-samples 1: must be at least 2", ""),
        (["--max-rejects", "101%"], "--max-rejects 1.01: must be between 0 and 1 (or 0% and 100%)", ""),
        (["--max-rejects", "few"], "--max-rejects few: must be a share such as 1% or 0.01", ""),
        (["--jobs", "0"], "--jobs 0: must be at least 1", ""),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_usage(run: Run, words: list[str], message: str, hint: str) -> None:
    assert run(*words) == (2, *failed(message, hint)[1:])
    assert everything() == ["finetune.jsonl"]


# -- rejected rows


def test_rejected_rows_are_written_down_and_counted(run: Run, sample: Path) -> None:
    first = jsonl(SAMPLE)[:-1] + b"\r\n" + BAD["not json"] + b"\r\n\n" + BAD["empty"]
    sample.write_bytes(first)
    Path("b.json").write_bytes(b'[\n\n"text",\n{"conversations": [5]}]')
    reasons = "1 empty turn, 1 not JSON, 1 not an object, 1 wrong type"
    code, out, err = run("finetune.jsonl", "b.json", "--max-rejects", "0.34")
    assert (code, out) == (0, TABLE)
    assert err.splitlines()[0] == f"4 rows rejected: {reasons}; see data/rejected.jsonl"
    assert [json.loads(line) for line in Path("data/rejected.jsonl").read_text().splitlines()] == [
        {
            "file": "finetune.jsonl",
            "line": 9,
            "reason": "not JSON",
            "detail": "JSON is malformed: object keys must be strings (byte 1)",
            "row": "{broken",
        },
        {
            "file": "finetune.jsonl",
            "line": 11,
            "reason": "empty turn",
            "detail": "turn 2 (gpt) is empty",
            "row": BAD["empty"].decode(),
        },
        {
            "file": "b.json",
            "line": 3,
            "reason": "not an object",
            "detail": "Expected `object`, got `str`",
            "row": '"text"',
        },
        {
            "file": "b.json",
            "line": 4,
            "reason": "wrong type",
            "detail": "Expected `object`, got `int` - at `$.conversations[0]`",
            "row": '{"conversations": [5]}',
        },
    ]
    assert counts() == COUNTS
    sample.write_bytes(LINES)
    assert run()[0] == 0
    assert not Path("data/rejected.jsonl").exists()


@pytest.mark.parametrize(
    ("bad", "good", "limit", "passes"),
    [
        (1, 99, None, True),
        (1, 98, None, False),
        (1, 99, "0.99%", False),
        (29, 71, "29%", True),
        (29, 70, "29%", False),
        (7, 993, "0.7%", True),
        (7, 992, "0.7%", False),
        (1, 0, "100%", False),
        (1, 1, "1", True),
        (1, 999, "0", False),
        (0, 1, "0", True),
        (2, 148, None, False),
        (2, 1, None, False),
    ],
)
def test_the_limit_of_rejected_rows(
    run: Run, sample: Path, bad: int, good: int, limit: str | None, passes: bool
) -> None:
    record = {"conversations": SAMPLE[0]["conversations"]}
    sample.write_bytes(b"{\n" * bad + jsonl([record] * good))
    code, out, err = run(*(["--max-rejects", limit] if limit else []))
    if passes:
        assert (code, counts()) == (0, {"reward_model_full": good})
        return
    assert (code, out) == (1, "")
    assert sorted(path.name for path in Path("data").iterdir()) == [".trainkit.lock", "rejected.jsonl"]
    assert len(Path("data/rejected.jsonl").read_text().splitlines()) == bad
    if not good:
        assert err == "error: there is no usable row in the input\n    nothing was published\n"
        return
    message, hint = err.splitlines()
    assert message == (f"error: {bad} of {bad + good} rows cannot be used ({bad} not JSON): nothing was published")
    found = re.fullmatch(r"    see data/rejected\.jsonl; --max-rejects ([0-9.]+%) would accept that", hint)
    assert found is not None
    assert run("--max-rejects", found[1])[0] == 0  # what the hint says is true


def test_too_many_rejects_leave_the_old_data_set(run: Run, sample: Path) -> None:
    assert run()[0] == 0
    before = counts(), everything()
    sample.write_bytes(LINES + b"{\n")
    code, out, err = run()
    assert (code, out) == (1, "")
    assert err == (
        "error: 1 of 9 rows cannot be used (1 not JSON): nothing was published\n"
        "    see data/rejected.jsonl; --max-rejects 11.12% would accept that\n"
    )
    assert (counts(), everything()) == (before[0], sorted([*before[1], "data/rejected.jsonl"]))


def test_a_file_name_that_is_not_utf8(run: Run) -> None:
    name = os.fsdecode(b"\xff.jsonl")
    Path(name).write_bytes(LINES + b"{\n")
    assert run(name, "--max-rejects", "20%")[0] == 0
    assert json.loads(Path("data/rejected.jsonl").read_text(encoding="utf-8"))["line"] == 9


# -- names, split, tasks


def test_names_that_collide(run: Run, sample: Path) -> None:
    judges = ["a-b", "a.b", "A_B", "clip", "full", "clip_eval", "///", "任务集"]
    sample.write_bytes(jsonl([evaluation("clip", judge, n, task_id="clip") for n, judge in enumerate(judges * 3)]))
    assert run("--split-eval", "--split", "rows", "--eval-ratio", "0.4", "--min-samples", "2")[0] == 0
    registry = load_registry(Path("data"))
    (folder,) = Path("data").glob("reward_model-*")
    variants = json.loads((folder / "manifest.json").read_text())["variants"]
    assert len({name.casefold() for name in registry}) == len(registry) == len(variants)
    seen: dict[str, set[tuple[str, ...]]] = {}
    for name in registry:
        if 0 < len(rows(name)) <= 3:
            found = {json.loads(row["metadata"])["model_name"] for row in rows(name)}
            assert len(found) == 1
            seen.setdefault(found.pop(), set()).add((variants[name]["side"],))
    assert set(seen) == set(judges)
    assert sum(len(path.read_bytes().splitlines()) for path in folder.glob("*.jsonl")) == 3 * len(judges)


def test_a_split(run: Run, sample: Path) -> None:
    records = [evaluation("clip", JUDGES[n % 2], n, task_id=f"qa_{n // 4}") for n in range(120)]
    sample.write_bytes(jsonl(records))
    code, out, err = run("--split-eval")
    assert code == 0
    assert (
        out
        == """\
data set                                rows
reward_model_full                        108
reward_model_full_eval                    12
reward_model_clip                        108
reward_model_clip_eval                    12
reward_model_deepseek_chat                54
reward_model_deepseek_chat_eval            6
reward_model_kimi_k2_0711_preview         54
reward_model_kimi_k2_0711_preview_eval     6
"""
    )
    assert err == (
        "120 rows written to data/reward_model-#, registered in data/dataset_info.json; prompts carry type, category\n"
    )
    train, held = (
        {json.loads(row["metadata"])["task_id"] for row in rows(name)}
        for name in ("reward_model_full", "reward_model_full_eval")
    )
    assert not train & held
    assert len(held) == 3
    manifest = json.loads(next(Path("data").glob("reward_model-*/manifest.json")).read_text())
    assert manifest["split"] == {"eval_ratio": 0.15, "seed": 42, "group_by": "task_id"}


def test_other_ways_to_split(run: Run, sample: Path) -> None:
    sample.write_bytes(jsonl([evaluation("clip", "j", n, task_id="one", source=f"s{n % 30}") for n in range(300)]))
    code, _, err = run("--split-eval")
    assert code == 0
    assert err.splitlines()[0] == (
        "note: no eval split: every task_id is on the same side, as there are too few of them; "
        "all rows are for training"
    )
    assert counts()["reward_model_full"] == 300
    assert run("--split-eval", "--split", "rows")[0] == 0
    assert 25 < counts()["reward_model_full_eval"] < 65
    assert run("--split-eval", "--group-by", "source", "--eval-ratio", "0.3")[0] == 0
    found = counts()
    assert found["reward_model_full_eval"] % 10 == 0
    assert found["reward_model_full"] + found["reward_model_full_eval"] == 300
    assert run("--split-eval", "--min-samples", "301")[2].splitlines()[0] == (
        "note: no eval split: 300 rows are fewer than --min-samples 301; all rows are for training"
    )
    assert set(counts()) == {"reward_model_full", "reward_model_clip", "reward_model_j", "reward_model_one"}


def test_a_variant_that_is_too_small_for_an_eval_entry(run: Run, sample: Path) -> None:
    records = [evaluation("clip", "j", n, task_id=f"t{n}") for n in range(100)]
    records += [evaluation("final", "j", n, task_id=f"t{n}") for n in range(4)]
    sample.write_bytes(jsonl(records))
    code, _, err = run("--split-eval", "--eval-ratio", "0.5", "--min-samples", "5")
    assert code == 0
    assert err.splitlines()[0] == "note: too small for an eval entry (--min-samples 5): reward_model_final_eval"
    assert {"reward_model_clip_eval", "reward_model_full_eval"} < set(counts())
    assert "reward_model_final_eval" not in counts()


@pytest.mark.parametrize(("words", "num_tasks"), [([], 0), (["21"], 21), (["20"], 0), (["all"], 21), (["none"], 0)])
def test_one_variant_per_task(run: Run, sample: Path, words: list[str], num_tasks: int) -> None:
    sample.write_bytes(jsonl([evaluation("clip", "j", n, task_id=f"t{n % 21}") for n in range(42)]))
    assert run(*["--by-task", *words] if words else [])[0] == 0
    tasks = {name: number for name, number in counts().items() if name.startswith("reward_model_t")}
    assert tasks == {f"reward_model_t{n}": 2 for n in range(num_tasks)}


# -- reports


@pytest.mark.usefixtures("sample")
def test_a_dry_run_writes_nothing(run: Run) -> None:
    words = "8 rows counted, nothing written; prompts carry type, category\n"
    assert run("--dry-run") == (0, TABLE, words)
    assert everything() == ["finetune.jsonl"]
    assert run()[0] == 0
    before = everything(), Path("data/dataset_info.json").stat().st_mtime_ns
    assert run("--dry-run", "--evaluation-types", "clip")[0] == 0
    assert (everything(), Path("data/dataset_info.json").stat().st_mtime_ns) == before


def test_a_dry_run_with_rejected_rows(run: Run, sample: Path) -> None:
    sample.write_bytes(LINES + b"{\n")
    message = "1 of 9 rows cannot be used (1 not JSON): nothing was published"
    assert run("--dry-run") == failed(message, "--max-rejects 11.12% would accept that")
    assert run("--dry-run", "--max-rejects", "20%") == (
        0,
        TABLE,
        "1 rows rejected: 1 not JSON\n8 rows counted, nothing written; prompts carry type, category\n",
    )
    assert everything() == ["finetune.jsonl"]


def test_a_report_for_machines(run: Run, sample: Path) -> None:
    sample.write_bytes(LINES + b"{\n{}\n{}\n")
    code, out, err = run("--json", "--max-rejects", "0.5", "--where", "provider=a")
    report = json.loads(out)
    folder = report.pop("folder")
    assert re.fullmatch(r"data/reward_model_custom-[0-9a-f]{8}", folder)
    assert (code, err) == (0, "")
    assert report == {
        "ok": True,
        "rows": 4,
        "filtered": 4,
        "rejected": 3,
        "reasons": {"no conversations": 2, "not JSON": 1},
        "rejected_file": "data/rejected.jsonl",
        "metadata": ["type", "category"],
        "variants": {"reward_model_custom": {"rows": 4, "side": "train"}},
        "notes": [],
    }
    code, out, err = run("--json", "--dry-run", "--max-rejects", "0.5", "--split-eval", "--min-samples", "99")
    report = json.loads(out)
    assert (code, err, report["folder"], report["rejected_file"]) == (0, "", None, None)
    assert report["notes"] == ["no eval split: 8 rows are fewer than --min-samples 99; all rows are for training"]
    assert {name: variant["rows"] for name, variant in report["variants"].items()} == COUNTS
    code, out, err = run("--json")
    assert (code, err) == (1, "")
    assert json.loads(out) == {
        "ok": False,
        "error": "3 of 11 rows cannot be used (2 no conversations, 1 not JSON): nothing was published",
        "hint": "see data/rejected.jsonl; --max-rejects 27.28% would accept that",
        "problems": [],
    }


@pytest.mark.usefixtures("sample")
def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    argv = [sys.executable, "-m", "trainkit", "convert"]
    done = subprocess.run(argv, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode in (1, 141)
    assert "Traceback" not in done.stderr
    assert counts(tmp_path / "data") == COUNTS  # what was published stays


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize("output", ["taken", "taken/data"])
def test_a_file_in_the_place_of_the_folder(run: Run, output: str) -> None:
    Path("taken").write_text("mine")
    code, out, err = run("-o", output)
    assert (code, out) == (1, "")
    reason = "File exists" if output == "taken" else "Not a directory"
    assert err == (
        f"error: {output}: {reason}\n"
        "    is there space on the disk, and may you write there? The data set of before is untouched\n"
    )
    assert Path("taken").read_text() == "mine"


@pytest.mark.usefixtures("sample")
def test_an_entry_of_somebody_else(run: Run) -> None:
    Path("data").mkdir()
    foreign = {"reward_model_clip": {"file_name": "mine.json"}}
    Path("data/dataset_info.json").write_text(json.dumps(foreign))
    assert run() == failed(
        "data/dataset_info.json: reward_model_clip: already there, and not from this conversion",
        "choose another --name, or another output folder, or remove the entry",
    )
    assert load_registry(Path("data")) == foreign
    assert run("--name", "own")[0] == 0
    assert set(load_registry(Path("data"))) == {"reward_model_clip", "own"}


# -- what the other commands say of a file that was edited


def test_an_edited_file_is_told_before_the_training(ready: Place) -> None:
    (file,) = ready.path("data").glob("reward_model-*/train.jsonl")
    name = f"data/{file.parent.name}/train.jsonl"
    content = file.read_bytes()
    count = content.count(b"\n")
    assert "edited" not in ready.trainkit("validate", "-d", "reward_model_clip").err

    file.write_bytes(content.replace(b"Judge step", b"Judge the step"))
    done = ready.trainkit("validate", "-d", "reward_model_clip")
    assert done.code == 0
    assert f"dataset reward_model_clip: {name} was edited since the conversion: {count} rows" in tidy(done)

    file.write_bytes(content + content.splitlines(keepends=True)[0])
    for verb in ("validate", "train"):
        done = ready.trainkit(verb, "-d", "reward_model_clip")
        assert done.code == 1
        assert (
            f"dataset reward_model_clip: {name} has {count + 1} rows, and {count} when it was written: "
            "the entry's ranges do not hold any more"
        ) in tidy(done)
        assert "run trainkit convert again, or train on the variant that holds all rows" in tidy(done)
    assert ready.calls("llamafactory-cli") == []
    done = ready.trainkit("validate", "-d", "reward_model_full")
    assert done.code == 0
    assert f"dataset reward_model_full: {name} was edited since the conversion: {count + 1} rows" in tidy(done)


def tidy(done: Done) -> str:
    """What a command said, in one line and with paths relative to its folder."""
    return " ".join((done.out + done.err).split()).replace("WORK/", "")


# -- the trainer itself

LOADER = """
import json, sys
from types import SimpleNamespace
from pathlib import Path
from llamafactory.data.loader import _get_merged_dataset
from llamafactory.hparams import DataArguments

data, cache, files, names = sys.argv[1], sys.argv[2], sys.argv[3].split(","), sys.argv[4:]
training = SimpleNamespace(seed=0, dataloader_num_workers=1, local_process_index=0)
model = SimpleNamespace(cache_dir=cache, hf_hub_token=None, ms_hub_token=None, om_hub_token=None)
found = {}

def load(when, workers):
    for name in names:
        arguments = DataArguments(dataset=name, dataset_dir=data, template="qwen", preprocessing_num_workers=workers)
        rows = _get_merged_dataset(arguments.dataset, model, arguments, training, "sft")
        found[f"{when} {workers} {name}"] = [[row["_" + key] for key in KEYS] for row in rows]

KEYS = ("prompt", "response", "system", "tools")
for workers in (1, 2):
    load("written", workers)
for file in map(Path, files):
    content = file.read_bytes().split(b"\\n")
    content[1] = content[1].replace(b"You judge", b"You grade")  # not a byte longer
    file.write_bytes(b"\\n".join(content))
for workers in (1, 2):
    load("edited", workers)
print("FOUND" + json.dumps(found))
"""
ROLES = {"human": "user", "gpt": "assistant", "function_call": "function", "observation": "observation"}


def as_loaded(row: dict[str, Any]) -> list[Any]:
    """What the trainer makes of a row: the turns but the last, the last, the system text, the tools."""
    turns = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    return [turns[:-1], turns[-1:], row["system"], row["tools"]]


@pytest.mark.slow
def test_the_trainer_loads_every_entry(run: Run, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 4000)
    kinds = ("clip", "clip", "category", "final")
    records = [evaluation(kinds[n * 7 % 4], JUDGES[n % 2], n, task_id=f"任务/{n % 6}") for n in range(60)]
    asked = {"from": "human", "value": "q"}
    turns = [asked, {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]
    turns += [{"from": "observation", "value": "[1]"}, {"from": "gpt", "value": "a"}]
    metadata = {"evaluation_type": "tool"}
    records += [{"conversations": turns, "system": "Be fair.", "tools": '[{"name": "f"}]', "metadata": metadata}]
    sample.write_bytes(jsonl(records))
    assert run("--split-eval", "--eval-ratio", "0.4", "--min-samples", "2")[0] == 0
    registry = load_registry(Path("data"))
    assert sum(entry.get("split", "").count("+") > 2 for entry in registry.values()) > 4
    names = [*registry, "reward_model_full,reward_model_clip"]

    def expected(when: str) -> dict[str, list[Any]]:
        wanted = {name: [as_loaded(row) for one in name.split(",") for row in rows(one)] for name in names}
        return {f"{when} {workers} {name}": found for workers in (1, 2) for name, found in wanted.items()}

    written = expected("written")
    files = [str(path) for path in Path("data").glob("reward_model-*/*.jsonl")]
    assert len(files) == 2
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "USE_MODELSCOPE_HUB": "0"}
    argv = [sys.executable, "-c", LOADER, "data", str(tmp_path / "cache"), ",".join(files), *names]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.split("FOUND")[1])
    edited = expected("edited")
    assert sum("You grade" in str(loaded) for loaded in edited.values()) >= 6
    assert found == written | edited
