"""`trainkit convert --kind conversations`, pairs, labels and auto as they are used: words in, whole outputs out."""

from __future__ import annotations

import importlib
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.cli import main
from trainkit.dataset.registry import COLUMNS, TAGS, load_registry

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "glaive_toolcall_en_demo.json"


def sharegpt(number: int, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"Question {number}?"}, {"from": "gpt", "value": f"Answer {number}."}]
    return {"conversations": turns, "task_id": f"t{number % 4}", "score": number / 10} | more


def call(name: str, identity: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": identity, "type": "function", "function": function}


SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}
PARALLEL = {
    "messages": [
        {"role": "user", "content": "Tea and weather?"},
        {
            "role": "assistant",
            "content": "I look up both.",
            "tool_calls": [call("search", "a", q="tea"), call("weather", "b", city="Oslo")],
        },
        {"role": "tool", "tool_call_id": "b", "content": "rain"},
        {"role": "tool", "tool_call_id": "a", "content": "green tea"},
        {"role": "assistant", "content": "Green tea; it rains."},
        {"role": "user", "content": "Thanks."},
    ],
    "tools": [{"type": "function", "function": {"name": "search", "description": "Search.", "parameters": SCHEMA}}],
    "success": True,
}
PAIR = {"prompt": "Why?", "chosen": "As it is.", "rejected": "No.", "task_id": "t1"}
LABEL = {"prompt": "Why?", "completion": "As it is.", "label": True}
EVALUATION = {
    "conversations": [{"from": "human", "value": "Judge."}, {"from": "gpt", "value": '{"score": 0.9}'}],
    "metadata": {"evaluation_type": "clip", "model_name": "kimi-k2", "task_id": "qa_0"},
}
OTHER_EVALUATION = EVALUATION | {
    "conversations": [{"from": "human", "value": "Judge."}, {"from": "gpt", "value": '{"score": 0.2}'}]
}


def write(name: str, rows: list[Any]) -> Path:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path(name)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `trainkit convert` in tmp_path; return exit code, stdout and stderr, the digest of the folder hidden."""
    monkeypatch.chdir(tmp_path)

    def ran(*words: str) -> tuple[int, str, str]:
        code = main(["convert", *words])
        out, err = (re.sub(r"-[0-9a-f]{8}\b", "-#", text) for text in capsys.readouterr())
        return code, out, err

    return ran


def folder(name: str) -> Path:
    (found,) = Path("data").glob(f"{name}-*")
    return found


def rows(name: str, side: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder(name) / f"{side}.jsonl").read_bytes().splitlines()]


def manifest(name: str) -> Any:
    return json.loads((folder(name) / "manifest.json").read_text())


def entry(name: str) -> Any:
    return load_registry(Path("data"))[name]


def table(**counts: int) -> str:
    width = max(len("data set"), *map(len, counts))
    lines = [("data set", "rows"), *((name, str(count)) for name, count in counts.items())]
    last = max(len(count) for _, count in lines)
    return "".join(
        f"{name:<{width}}  {count:>{last}}\n" if count.isdigit() else f"{name:<{width}}  {count}\n"
        for name, count in lines
    )


def test_text_beside_two_parallel_calls_survives(run: Run) -> None:
    write("a.jsonl", [PARALLEL])
    assert run("a.jsonl", "--kind", "conversations") == (
        0,
        table(conversations=1),
        "read as openai (messages with tool_calls, tool_call_id or OpenAI's content parts): a.jsonl\n"
        "3 repairs in the rows: 1 merged_results, 1 results_put_in_order, 1 trailing_user_dropped\n"
        "1 rows written to data/conversations-#, registered in data/dataset_info.json\n",
    )
    assert rows("conversations") == [
        {
            "conversations": [
                {"from": "human", "value": "Tea and weather?"},
                {
                    "from": "function_call",
                    "value": 'I look up both.\n<tool_call>[{"name":"search","arguments":{"q":"tea"}},'
                    '{"name":"weather","arguments":{"city":"Oslo"}}]</tool_call>',
                },
                {"from": "observation", "value": '["green tea","rain"]'},
                {"from": "gpt", "value": "Green tea; it rains."},
            ],
            "system": "",
            "tools": '[{"type":"function","function":{"name":"search","description":"Search.",'
            '"parameters":{"type":"object","properties":{"q":{"type":"string"}}}}}]',
            "images": [],
            "metadata": '{"dropped_turn":{"from":"human","value":"Thanks."},"success":true}',
        }
    ]
    assert entry("conversations") == {
        "file_name": f"{folder('conversations').name}/train.jsonl",
        "formatting": "sharegpt",
        "columns": COLUMNS,
        "tags": TAGS,
    }


def test_filters_repeats_a_split_and_rejects(run: Run) -> None:
    bad = {"conversations": [{"from": "gpt", "value": "I begin."}]}
    given = [sharegpt(number % 20) for number in range(40)] + [sharegpt(3, task_id="t9"), bad]
    write("a.jsonl", given)
    words = ("--kind", "conversations", "--where", "score>=0.5", "--where", "num_turns<=2", "--max-rejects", "5%")
    code, out, err = run("a.jsonl", *words, "--dedup", "exact", "--split-eval", "--eval-ratio", "0.4", "--name", "mine")
    sides = {name: len(rows("mine", name)) for name in ("train", "eval")}
    assert (code, out) == (0, table(mine=sides["train"], mine_eval=sides["eval"]))
    assert err == (
        "read as sharegpt (turns with from and value): a.jsonl\n"
        "11 rows left out by --where: 11 score>=0.5\n"
        "15 rows left out as repeats of one before them (--dedup exact)\n"
        "1 rows rejected: 1 wrong order of turns; see data/rejected.jsonl\n"
        "15 rows written to data/mine-#, registered in data/dataset_info.json\n"
    )
    tasks = {side: {json.loads(row["metadata"])["task_id"] for row in rows("mine", side)} for side in sides}
    assert tasks["train"] | tasks["eval"] == {"t0", "t1", "t2", "t3"}
    assert not tasks["train"] & tasks["eval"]
    assert json.loads(Path("data/rejected.jsonl").read_text())["line"] == 42
    assert manifest("mine") == {
        "kind": "conversations",
        "made_from": "conversations",
        "metadata_form": [],
        "split": {"eval_ratio": 0.4, "seed": 42, "group_by": "task_id"},
        "num_read": 42,
        "forms": ["sharegpt"],
        "repairs": {},
        "filters": {"score>=0.5": 11, "num_turns<=2": 0},
        "rejected": {"wrong order of turns": 1},
        "dedup": {"how": "exact", "repeats": 15},
        "mix": None,
        "pairs": None,
        "files": {
            f"{side}.jsonl": {
                "rows": number,
                "bytes": (folder("mine") / f"{side}.jsonl").stat().st_size,
                "rows_with_images": 0,
            }
            for side, number in sides.items()
        },
        "variants": {
            "mine": {"rows": sides["train"], "side": "train"},
            "mine_eval": {"rows": sides["eval"], "side": "eval"},
        },
    }
    before = {path.name: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
    assert run("a.jsonl", *words, "--dedup", "exact", "--split-eval", "--eval-ratio", "0.4", "--name", "mine")[0] == 0
    assert {path.name: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()} == before


def test_for_machines(run: Run) -> None:
    write("a.jsonl", [PARALLEL, PARALLEL | {"success": False}])
    write("b.jsonl", [sharegpt(1, success=True)])
    words = ("a.jsonl", "b.jsonl", "--kind", "conversations", "--where", "success=true", "--json", "--dry-run")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "ok": True,
        "kind": "conversations",
        "made_from": "conversations",
        "folder": None,
        "rows": 2,
        "read": 3,
        "forms": {
            "openai (messages with tool_calls, tool_call_id or OpenAI's content parts)": ["a.jsonl"],
            "sharegpt (turns with from and value)": ["b.jsonl"],
        },
        "repairs": {"merged_results": 1, "results_put_in_order": 1, "trailing_user_dropped": 1},
        "left_out": {"success=true": 1},
        "repeats": 0,
        "mixed": None,
        "rejected": 0,
        "reasons": {},
        "rejected_file": None,
        "pairs": None,
        "variants": {"conversations": {"rows": 2, "side": "train"}},
        "notes": [],
    }
    assert not Path("data").exists()


def test_a_mix(run: Run) -> None:
    write("a:1.jsonl", [sharegpt(number) for number in range(300)])
    write("b.jsonl", [PARALLEL] * 90)
    words = ("--kind", "conversations", "--mix", "a:1.jsonl:0.7", "--mix", "b.jsonl:0.3")
    code, out, err = run(*words)
    drawn = manifest("conversations")["mix"]
    numbers = [one["rows"] for one in drawn["inputs"]]
    assert drawn == {
        "until": "first",
        "seed": 42,
        "inputs": [{"weight": 0.7, "rows": numbers[0]}, {"weight": 0.3, "rows": numbers[1]}],
    }
    assert (code, out) == (0, table(conversations=sum(numbers)))
    assert f"\nmixed: {numbers[0]} of a:1.jsonl, {numbers[1]} of b.jsonl\n" in err
    assert 0.6 < numbers[0] / sum(numbers) < 0.8
    order = ["answer" in str(row["conversations"]).lower() for row in rows("conversations")]
    assert order.count(True) == numbers[0]
    assert len(set(order[:20])) == 2, "they are mixed, not put one behind the other"
    code, out, err = run(*words, "--mix-until", "all", "--seed", "1", "--dedup", "exact")
    assert (code, out) == (0, table(conversations=301))
    assert "\nmixed: 300 of a:1.jsonl, 1 of b.jsonl\n" in err


def test_pairs_and_labels(run: Run) -> None:
    write("p.jsonl", [PAIR])
    write("l.jsonl", [LABEL, LABEL | {"label": False, "completion": "No."}])
    written = "rows written to data/{0}-#, registered in data/dataset_info.json\n"
    assert run("p.jsonl", "--kind", "pairs") == (
        0, table(pairs=1), f"1 {written.format('pairs')}train with stage: dpo, or rm\n",
    )  # fmt: skip
    assert run("l.jsonl", "--kind", "auto") == (
        0,
        table(labels=2),
        "taken for labels: rows with a kto_tag, or with a label that is true or false\n"
        f"2 {written.format('labels')}train with stage: kto\n",
    )
    assert entry("pairs") == {
        "file_name": f"{folder('pairs').name}/train.jsonl",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": COLUMNS | {"chosen": "chosen", "rejected": "rejected"},
        "tags": TAGS,
    }
    assert "ranking" not in entry("labels")
    assert entry("labels")["columns"] == COLUMNS | {"kto_tag": "kto_tag"}
    assert [row["kto_tag"] for row in rows("labels")] == [True, False]


def test_pairs_from_scores(run: Run) -> None:
    write("finetune.jsonl", [EVALUATION, OTHER_EVALUATION])
    counted = "made into pairs: 1 pairs, 1 prompts, 2 rows\n"
    end = "1 rows written to data/pairs-#, registered in data/dataset_info.json\ntrain with stage: dpo, or rm\n"
    assert run("--pairs") == (0, table(pairs=1), counted + end)
    assert rows("pairs")[0]["conversations"][0]["value"] == "[EVAL_TYPE: clip] Judge."
    assert (rows("pairs")[0]["chosen"]["value"], manifest("pairs")["metadata_form"]) == (
        '{"score": 0.9}', ["type", "category"],
    )  # fmt: skip
    assert manifest("pairs")["pairs"] == {
        "margin": 0.1, "per_task": 8, "seed": 42, "score": "verdict", "counts": {"pairs": 1, "prompts": 1, "rows": 2},
    }  # fmt: skip
    assert run("--pairs", "--margin", "0.8") == (
        1,
        "",
        "error: no pair can be made of 2 rows (1 prompts, 1 prompts without a pair)\n"
        "    a pair needs two answers to one prompt whose scores are --margin apart; nothing was published\n",
    )
    assert run("--pairs", "--model-names", "nobody", "--dry-run") == (
        1,
        "",
        "error: none of 2 rows is left (2 model_name=nobody)\n    nothing was published\n",
    )
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    other = [turns[0], {"from": "gpt", "value": "No."}]
    write("c.jsonl", [{"conversations": turns, "reward": 1}, {"conversations": other, "reward": 0}])
    words = ("c.jsonl", "--kind", "conversations", "--pairs", "--score", "reward", "--per-task", "all", "-j", "1")
    assert run(*words) == (
        0, table(pairs=1), f"read as sharegpt (turns with from and value): c.jsonl\n{counted}{end}",
    )  # fmt: skip
    assert manifest("pairs")["pairs"]["per_task"] is None


SHAREGPT = "taken for conversations: turns with from and value\n"


@pytest.mark.parametrize(
    ("given", "kind", "why"),
    [
        ([sharegpt(1)], "conversations", "turns with from and value"),
        ([PARALLEL], "conversations", "messages with tool_calls, tool_call_id or OpenAI's content parts"),
        ([PAIR, PAIR | {"rejected": "Not."}], "pairs", "rows with chosen and rejected"),
        ([sharegpt(1) | {"kto_tag": False}], "labels", "rows with a kto_tag, or with a label that is true or false"),
        ([sharegpt(1, label=3)], "conversations", "turns with from and value"),
    ],
)
def test_what_auto_takes_a_file_for(run: Run, given: list[Any], kind: str, why: str) -> None:
    write("a.jsonl", given)
    code, out, err = run("a.jsonl", "--kind", "auto")
    assert (code, out) == (0, table(**{kind: len(given)}))
    assert err.startswith(f"taken for {kind}: {why}\n")


def test_auto_knows_evaluations(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.jsonl", [EVALUATION, OTHER_EVALUATION])
    taken = "taken for evaluations: conversations whose metadata has an evaluation_type\n"
    code, out, err = run("a.jsonl", "--kind", "auto", "--by-task", "none", "--dry-run")
    assert (code, out) == (0, table(reward_model_full=2, reward_model_clip=2, reward_model_kimi_k2=2))
    assert err == f"{taken}2 rows counted, nothing written; prompts carry type, category\n"
    code, out, err = run("a.jsonl", "--kind", "auto", "--pairs")
    assert (code, out, err.splitlines()[0] + "\n") == (0, table(pairs=1), taken)
    wrong = "error: --dedup: has no meaning with --kind evaluations\n    add --kind conversations, pairs or labels\n"
    assert run("a.jsonl", "--kind", "auto", "--dedup", "exact") == (2, "", taken + wrong)
    monkeypatch.setattr(
        sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(Path("a.jsonl").read_bytes())))
    )  # type: ignore[arg-type]
    assert run("-", "--kind", "auto") == (
        2, "", f"{taken}error: --kind auto: standard input can be read only once\n    add --kind evaluations\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("files", "message", "hint"),
    [
        (
            {"a.jsonl": [PAIR, sharegpt(1)]},
            "a.jsonl: the rows are of several kinds: row 1: pairs; row 2: conversations",
            "name one with --kind",
        ),
        (
            {"a.jsonl": [PAIR], "b.jsonl": [LABEL]},
            "the inputs are of several kinds: a.jsonl: pairs; b.jsonl: labels",
            "convert each kind by itself",
        ),
        (
            {"a.jsonl": [{"text": "Once."}]},
            "no conversation in the first 1 rows: the first has text",
            "a row has conversations (from, value) or messages (role, content)",
        ),
    ],
)
def test_what_auto_cannot_take(run: Run, files: dict[str, list[Any]], message: str, hint: str) -> None:
    for name, given in files.items():
        write(name, given)
    assert run(*files, "--kind", "auto") == (1, "", f"error: {message}\n    {hint}\n")


def test_standard_input_and_an_array(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps([sharegpt(number) for number in range(3)], indent=1).encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(text))))  # type: ignore[arg-type]
    code, out, err = run("-", "--kind", "auto")
    assert (code, out) == (0, table(conversations=3))
    assert err == (
        f"{SHAREGPT}read as sharegpt (turns with from and value): standard input\n"
        "3 rows written to data/conversations-#, registered in data/dataset_info.json\n"
    )


def test_parquet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow.parquet")
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    given = [PARALLEL, {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}]
    parquet.write_table(arrow.Table.from_pylist(given * 1200), "a.parquet")
    code, out, err = run("a.parquet", "--kind", "auto")
    assert (code, out.splitlines()[1], err.splitlines()[0]) == (
        0, "conversations  2,400", "taken for conversations: messages with tool_calls, tool_call_id or OpenAI's content parts",  # noqa: E501
    )  # fmt: skip
    write("a.jsonl", given * 1200)
    made = (folder("conversations") / "train.jsonl").read_bytes()
    assert run("a.jsonl", "--kind", "conversations")[0] == 0
    assert (folder("conversations") / "train.jsonl").read_bytes() == made, "as the same rows in JSON"
    Path("b.parquet").write_bytes(b"PAR1 and no more")
    code, out, err = run("b.parquet", "--kind", "conversations")
    assert (code, err.split(": ")[1:3]) == (1, ["b.parquet", "cannot be read as Parquet"])
    parquet.write_table(arrow.Table.from_pylist([EVALUATION]), "e.parquet")
    assert run("e.parquet", "--kind", "auto")[2].endswith(
        "error: e.parquet: evaluations are not read from Parquet\n    write them as JSONL\n"
    )
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert run("a.parquet", "--kind", "conversations") == (
        1,
        "",
        "error: a.parquet: reading Parquet needs pyarrow\n"
        "    pip install pyarrow; the trainer brings it along, so its environment has it\n",
    )


@pytest.mark.skipif(not REAL.exists(), reason="the real sample lies beside the repository")
def test_the_real_tool_conversations(run: Run) -> None:
    code, out, err = run(str(REAL), "--kind", "auto")
    assert (code, out) == (0, table(conversations=300))
    assert err == (
        f"{SHAREGPT}read as sharegpt (turns with from and value): {REAL}\n"
        "300 rows written to data/conversations-#, registered in data/dataset_info.json\n"
    )


CONVERSATIONS = "--kind conversations"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("--kind conversations", "--kind conversations: there is no INPUT",
         "name the files to convert, or - for standard input"),
        *(
            (f"a.jsonl {CONVERSATIONS} {option}", f"{option.split()[0]}: has no meaning with {CONVERSATIONS}",
             "leave it out")
            for option in ("--evaluation-types a", "--model-names a", "--task-ids a", "--metadata none",
                           "--no-metadata", "--by-task 2", "--min-samples 2")
        ),
        *(
            (f"a.jsonl {CONVERSATIONS} {option}", f"{option.split()[0]}: has no meaning without --pairs", "add --pairs")
            for option in ("--margin 0.1", "--per-task 2", "--score reward")
        ),
        *(
            (f"a.jsonl {option}", f"{option.split()[0]}: has no meaning with --kind evaluations",
             "add --kind conversations, pairs or labels")
            for option in ("--dedup exact", "--mix b.jsonl:1", "--mix-until all")
        ),
        *(
            (f"a.jsonl {CONVERSATIONS} {option}",
             f"{option.split()[0]}: has no meaning without --kind trajectories", "add --kind trajectories")
            for option in ("--to jsonl", "--last-n-iterations 2", "--skip-bad-iterations")
        ),
        *(
            (f"a --kind trajectories {option}", f"{option.split()[0]}: has no meaning with --kind trajectories",
             "leave it out")
            for option in ("--pairs", "--dedup exact", "--mix a:1", "--margin 1")
        ),
        *(
            (f"a.jsonl --pairs --kind {kind}", f"--pairs: has no meaning with --kind {kind}",
             "it makes pairs of evaluations or conversations")
            for kind in ("pairs", "labels")
        ),
        ("a.jsonl --pairs --by-task 1", "--by-task: has no meaning with --pairs, which makes one data set",
         "leave it out"),
        *(
            (f"a.jsonl --pairs {option}", f"{option.split()[0]}: has no meaning with --pairs",
             "convert the pairs once more: --kind pairs")
            for option in ("--dedup exact", "--mix b:1")
        ),
        (f"{CONVERSATIONS} --mix a.jsonl:1 -j 2", "--jobs: has no meaning with --mix, which draws row by row",
         "leave it out"),
        (f"a.jsonl {CONVERSATIONS} --mix-until all", "--mix-until: has no meaning without --mix", "add --mix"),
        (f"{CONVERSATIONS} --mix a.jsonl:1 --mix-until any", "--mix-until any: must be first or all", ""),
        (f"{CONVERSATIONS} --mix a.jsonl:x", "--mix a.jsonl:x: x is not a number",
         "for example --mix a.jsonl:0.7 --mix b.jsonl:0.3"),
        (f"a.jsonl {CONVERSATIONS} --mix a.jsonl:1", "--mix: stands in the place of INPUT",
         "for example --mix a.jsonl:0.7"),
        (f"a.jsonl {CONVERSATIONS} --pairs", "--pairs: which fact of the conversations has their score?",
         "for example --score reward, or --score judge.score for one that is inside another"),
        ("a.jsonl --pairs --margin 0", "--margin 0: must be above 0", "scores from 0 to 1 are often 0.1 apart"),
        ("a.jsonl --pairs --per-task few", "--per-task few: must be a number, or all", ""),
        ("a.jsonl --pairs --per-task 0", "--per-task 0: must be at least 1", ""),
        *(
            (f"a.jsonl {CONVERSATIONS} --dedup {how}",
             f"--dedup {how}: must be exact, or near:SIMILARITY from 0.5 to 1",
             "for example --dedup exact, or --dedup near:0.8")
            for how in ("all", "near:0.2", "near:x", "exact:1", "near:nan")
        ),
        (f"a.jsonl {CONVERSATIONS} --where score", "--where score: is no condition",
         "for example success=true, tools!=search, num_turns>=4 or score>=0.7"),
        (f"a.jsonl {CONVERSATIONS} --name reward_model",
         "--name reward_model: is the name of the evaluations' variants together", "for example conversations"),
        (f"a.jsonl {CONVERSATIONS} --name a/b", "--name a/b: use letters, digits, _ and -", "for example a_b"),
        (f"a.jsonl {CONVERSATIONS} --split-eval --eval-ratio 1",
         "--eval-ratio 1.0: must be at least 0 and below 1", ""),
        (f"a.jsonl {CONVERSATIONS} --max-rejects 200%",
         "--max-rejects 2.0: must be between 0 and 1 (or 0% and 100%)", ""),
        (f"a.jsonl {CONVERSATIONS} --jobs 0", "--jobs 0: must be at least 1", ""),
    ],
)  # fmt: skip
def test_wrong_usage(run: Run, words: str, message: str, hint: str) -> None:
    write("a.jsonl", [sharegpt(1)])
    assert run(*words.split()) == (2, "", f"error: {message}\n" + (f"    {hint}\n" if hint else ""))
    assert [path.name for path in Path().iterdir()] == ["a.jsonl"]
