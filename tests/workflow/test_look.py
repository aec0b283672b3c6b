"""The look at the data as the user of `trainkit validate` meets it: hand-written data sets, whole reports."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.plan.padding import Lengths
from trainkit.workflow.look import LookResult, Progress, find_kept_lengths, look_at_data
from trainkit.workflow.prepare import Settings, prepare

if TYPE_CHECKING:
    from tests.conftest import Place

SHAREGPT = {"formatting": "sharegpt"}
OPENAI = {
    "formatting": "openai",
    "columns": {"messages": "messages"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
             "system_tag": "system"},
}  # fmt: skip
ODD = "1 turns: the last one has no answer"


def chat(*texts: Any, **more: Any) -> dict[str, Any]:
    turns = [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(texts)]
    return {"conversations": turns, **more}


def said(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def give(place: Place, name: str, rows: list[Any], **entry: Any) -> None:
    """Register a data set of these rows; a text is a line as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    place.write(f"data/{name}.jsonl", "\n".join(lines) + "\n")
    registry = place.path("data/dataset_info.json")
    known = json.loads(registry.read_text())
    registry.write_text(json.dumps(known | {name: {"file_name": f"{name}.jsonl"} | entry}))


def look(place: Place, *words: str, jobs: int | None = None) -> LookResult:
    return look_at_data(prepare(Settings(base=place.folder, overrides=words)), jobs)


def findings(result: LookResult) -> list[tuple[str, str, str, str]]:
    return [(problem.level, problem.where, problem.message, problem.hint) for problem in result.problems]


def test_rows_that_the_trainer_leaves_out_are_told_with_their_lines(ready: Place) -> None:
    rows = [chat("How?", "Like this."), chat("How?"), chat("How?", "So.", "And?"), chat(),
            chat("How?", "Like this."), chat("Well?", "?"), chat("a"), chat("a")]  # fmt: skip
    give(ready, "own", rows, **SHAREGPT)
    done = ready.trainkit("validate", "-d", "own")
    assert done.code == 0
    assert done.err == (
        "warning: train data own: the trainer leaves out 4 of 8 rows (50.0 %): odd count\n"
        f"    correct them, or accept the loss; data/own.jsonl:2 ({ODD}), :3 (3 turns: the last one has no answer), "
        f":7 ({ODD})\n"
        "warning: train data own: the trainer leaves out 1 of 8 rows (12.5 %): no turns\n"
        "    correct them, or accept the loss; data/own.jsonl:4 (there are no turns)\n"
        "warning: train data own: 1 of 8 rows (12.5 %) with a nearly empty answer\n"
        "    data/own.jsonl:6 ('?')\n"
        "warning: train data own: 1 of 8 rows (12.5 %) that are there already: row 5 like 1\n"
        "    a repeated row counts double\n"
        "note: template qwen/lora bf16: switched off: there is no GPU here\n"
        "note: this machine use_cpu: there is no GPU here: training on the CPU, slow for any real model\n"
    )


FATAL: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "sharegpt": (
        [chat("How?", "So."), chat("How?", 3), "{", [1]], SHAREGPT,
        "error: train data own: the trainer fails on 1 of 4 rows (25.0 %): non-string content\n"
        "    correct or remove them; data/own.jsonl:2 (turn 2 (gpt) is a number)\n"
        "error: train data own: the trainer fails on 1 of 4 rows (25.0 %): not JSON\n"
        "    correct or remove them; data/own.jsonl:3 (Input data was truncated)\n"
        "error: train data own: the trainer fails on 1 of 4 rows (25.0 %): wrong type\n"
        "    correct or remove them; data/own.jsonl:4 (the row is a list, not an object)\n"
        "error: 3 problems found; nothing was started\n",
    ),
    "alpaca": (
        [{"instruction": "Say.", "input": "", "output": "Said."}, {"instruction": "Say.", "output": 3},
         {"instruction": "Say."}], {},
        "error: train data own: the trainer fails on 1 of 3 rows (33.3 %): non-string content\n"
        "    correct or remove them; data/own.jsonl:2 (output is a number)\n"
        "warning: train data own: the trainer leaves out 1 of 3 rows (33.3 %): no answer\n"
        "    correct them, or accept the loss; data/own.jsonl:3 (output: missing or null)\n"
        "error: 1 problem found; nothing was started\n",
    ),
    "openai": (
        [said(("user", "How?"), ("assistant", "So.")), said(("bot", "How?"), ("assistant", "So.")),
         said(("user", "How?"))], OPENAI,
        "error: train data own: the trainer fails on 1 of 3 rows (33.3 %): unknown role\n"
        "    correct or remove them; data/own.jsonl:2 (turn 1 (bot): its role is none of user, assistant, system)\n"
        "warning: train data own: the trainer leaves out 1 of 3 rows (33.3 %): odd count\n"
        "    correct them, or accept the loss; data/own.jsonl:3 (1 turns, with tool results joined: the last one has "
        "no answer)\n"
        "error: 1 problem found; nothing was started\n",
    ),
    "all rows left out": (
        [chat("How?"), chat("Why?")], SHAREGPT,
        "error: train data own: the trainer can use none of its 2 rows\n"
        "    see the reasons below\n"
        "warning: train data own: the trainer leaves out 2 of 2 rows (100.0 %): odd count\n"
        f"    correct them, or accept the loss; data/own.jsonl:1 ({ODD}), :2 ({ODD})\n"
        "error: 1 problem found; nothing was started\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FATAL)
def test_rows_that_stop_the_trainer_stop_the_validation(ready: Place, case: str) -> None:
    rows, entry, told = FATAL[case]
    give(ready, "own", rows, **entry)
    done = ready.trainkit("validate", "-d", "own")
    assert done.code == 1
    assert done.err == told
    assert "ok:" not in done.out
    assert done.out.startswith(f"train data own: {len(rows)} rows")


def test_a_prompt_on_both_sides_is_a_leak(ready: Place) -> None:
    give(ready, "one", [chat("[EVAL_TYPE: clip] How?", "So."), chat("Why?", "Because of it.")], **SHAREGPT)
    give(ready, "two", [chat("Where?", "Over there.")], **SHAREGPT)
    give(ready, "test", [chat("Who?", "She did."), chat("Where?", "Here."), chat("[EVAL_TYPE: final] How?", "No so.")],
         **SHAREGPT)  # fmt: skip
    result = look(ready, "dataset=one,two", "eval_dataset=test")
    leak = (
        "warning", "eval data test", "2 of 3 rows (66.7 %) with a prompt that is trained on too (row 2)",
        "trainkit convert --split-eval keeps them apart",
    )  # fmt: skip
    assert [(each.side, each.name, each.figures["rows"]) for each in result.sets] == [
        ("train", "one", 2), ("train", "two", 1), ("eval", "test", 3),
    ]  # fmt: skip
    assert result.sets[2].figures["leaks"] == 2
    assert [finding[:2] for finding in findings(result)] == [leak[:2]]
    assert findings(result)[0][3] == leak[3]


MULTI = [chat("one", "1 1 1", "two", "2 2 2", "three", "3 3 3"), chat("one", "1 1 1", "two", "2 2 2", "a" * 100, "3 3")]
TRUNCATION: list[tuple[list[str], dict[str, int], list[tuple[str, str]]]] = [
    ([], {"rows_cut": 0, "turns": 6, "turns_lost": 0, "answers_cut": 0, "nothing_trained": 0}, []),
    (
        ["cutoff_len=170"], {"rows_cut": 1, "turns": 6, "turns_lost": 0, "answers_cut": 0, "nothing_trained": 0},
        [("warning", "1 of 2 rows (50.0 %) cut at cutoff_len")],
    ),
    (
        ["cutoff_len=110"], {"rows_cut": 2, "turns": 6, "turns_lost": 2, "answers_cut": 2, "nothing_trained": 0},
        [("warning", "2 of 2 rows (100.0 %) whose answer is cut: its end is not learnt"),
         ("warning", "2 of 2 rows (100.0 %) cut at cutoff_len")],
    ),
    (
        ["cutoff_len=110", "mask_history=true"],
        {"rows_cut": 2, "turns": 6, "turns_lost": 2, "answers_cut": 0, "nothing_trained": 0},
        [("warning", "2 of 2 rows (100.0 %) cut at cutoff_len")],
    ),
    (
        ["cutoff_len=4"], {"rows_cut": 2, "turns": 6, "turns_lost": 4, "answers_cut": 2, "nothing_trained": 2},
        [("error", "no row has a trained token: the loss would be 0"),
         ("warning", "2 of 2 rows (100.0 %) without a trained token: the answer is cut off"),
         ("warning", "2 of 2 rows (100.0 %) whose answer is cut: its end is not learnt"),
         ("warning", "2 of 2 rows (100.0 %) cut at cutoff_len")],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "figures", "told"), TRUNCATION)
def test_what_cutoff_len_takes_away_is_told(
    ready: Place, words: list[str], figures: dict[str, int], told: list[tuple[str, str]]
) -> None:
    give(ready, "own", MULTI, **SHAREGPT)
    result = look(ready, "dataset=own", *words)
    assert result.sets[0].figures["truncation"] == figures
    assert [(level, message) for level, _, message, _ in findings(result)] == told


def test_one_row_without_a_trained_token_is_a_warning(ready: Place) -> None:
    give(ready, "own", [chat("a" * 500, "A."), chat("How?", "Like this.")], **SHAREGPT)
    result = look(ready, "dataset=own", "cutoff_len=130")
    assert result.sets[0].figures["truncation"]["nothing_trained"] == 0  # the answer is short, so it is kept whole
    give(ready, "long", [chat("a" * 9000, "b" * 60), chat("How?", "Like this.")], **SHAREGPT)
    (cut, *_) = findings(look(ready, "dataset=long", "cutoff_len=100"))
    assert cut[:3] == (
        "warning", "train data long", "1 of 2 rows (50.0 %) without a trained token: the answer is cut off",
    )  # fmt: skip


def test_packed_rows_are_counted_as_sequences(ready: Place) -> None:
    give(ready, "own", [chat("How?", "Like this.")] * 9, **SHAREGPT)
    plain = look(ready, "dataset=own")
    (tokens,) = plain.sets[0].tally.lengths
    assert plain.train_rows == 9
    packed = look(ready, "dataset=own", "packing=true", f"cutoff_len={2 * tokens + 1}")
    assert packed.train_rows == 5
    one_less = look(ready, "dataset=own", "neat_packing=true", f"cutoff_len={2 * tokens}")
    assert one_less.train_rows == 9  # the trainer keeps one token of a packed sequence free
    done = ready.trainkit("validate", "-d", "own", "packing=true", f"cutoff_len={2 * tokens + 1}")
    assert done.out.splitlines()[0].endswith(", packed into about 5")


def test_the_rows_of_a_variant_are_those_of_its_range(ready: Place) -> None:
    whole = look(ready)
    parts = look(ready, "dataset=reward_model_clip,reward_model_final", "eval_strategy=no")
    assert [each.figures["rows"] for each in parts.sets] == [16, 19]
    assert parts.lengths == whole.lengths
    assert {kind for kind, _ in parts.sets[0].tally.scores} == {"clip"}
    few = look(ready, "dataset=reward_model_clip,reward_model_final", "max_samples=3", "eval_strategy=no")
    assert [each.figures["rows"] for each in few.sets] == [3, 3]
    assert few.lengths == Lengths(((165, 3), (166, 3)))


def test_any_number_of_jobs_gives_the_same_report(ready: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [chat("a question without an answer. " * 3000), chat("How?", "Like this."), chat("Why?", "?")] * 120
    give(ready, "own", rows, **SHAREGPT)
    made = []
    for jobs in ("1", "2", "3"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(ready.folder.parent / f"cache-{jobs}"))
        made.append(ready.trainkit("validate", "-d", "own", "--jobs", jobs, "--json"))
    assert made[0] == made[1] == made[2]
    assert made[0].json["data"]["own"]["skipped_rows"] == 120


def test_other_stages_are_checked_and_not_counted(ready: Place) -> None:
    give(ready, "own", [chat("How?", "Like this."), chat("How?", 3)], **SHAREGPT)
    result = look(ready, "dataset=own", "stage=pt")
    assert findings(result)[0] == ("note", "stage", "lengths are counted for sft, not for pt", "")
    assert result.lengths is None
    assert result.sets[0].figures["tokens"] == {}


def test_a_file_that_cannot_be_read_keeps_no_other_from_being_looked_at(ready: Place) -> None:
    give(ready, "own", [chat("How?", "Like this.")], **SHAREGPT)
    give(ready, "odd", [], file_name="odd.docx", **SHAREGPT)
    ready.write("data/odd.docx", "x")
    result = look(ready, "dataset=own,odd")
    assert [each.name for each in result.sets] == ["own"]
    assert findings(result) == [
        ("error", "train data odd", "WORK/data/odd.docx: not a type that the trainer reads".replace(
            "WORK", str(ready.folder)), "it reads arrow, csv, json, jsonl, parquet, txt"),
    ]  # fmt: skip


@pytest.mark.parametrize("registry", ["[]", '{"reward_model_full": 3}', '{"reward_model_full": {"hf_hub_url": "a/b"}}'])
def test_without_a_file_there_is_nothing_to_look_at(ready: Place, registry: str) -> None:
    ready.write("data/dataset_info.json", registry)
    assert look(ready) == LookResult()
    assert look(ready).lengths is None
    assert look(ready).train_rows == 0


def test_lengths_are_found_again_without_counting(ready: Place) -> None:
    prepared = prepare(Settings(base=ready.folder))
    assert find_kept_lengths(prepared) is None  # the form is not known
    counted = look_at_data(prepared).lengths
    assert counted is not None
    assert find_kept_lengths(prepared) == counted
    for words in (["cutoff_len=99"], ["dataset=reward_model_clip"], ["dataset=nope"], ["dataset=reward_model_full,x"]):
        assert find_kept_lengths(prepare(Settings(base=ready.folder, overrides=words))) is None
    next(ready.path("data").glob("reward_model-*/train.jsonl")).unlink()
    assert find_kept_lengths(prepared) is None


def test_lengths_that_could_not_be_counted_are_not_found(ready: Place) -> None:
    give(ready, "own", [chat("How?")], **SHAREGPT)
    prepared = prepare(Settings(base=ready.folder, overrides=["dataset=own"]))
    assert look_at_data(prepared).lengths is None
    assert find_kept_lengths(prepared) is None


def test_progress_adds_up_to_all_bytes(ready: Place) -> None:
    told: list[tuple[int, int | None]] = []
    prepared = prepare(Settings(base=ready.folder))
    size = sum(file.stat().st_size for file in ready.path("data").glob("reward_model-*/*.jsonl"))
    for _ in range(2):  # the second time both looks are known
        told.clear()
        look_at_data(prepared, 1, lambda done, total: told.append((done, total)))
        assert told[-1] == (size, size)
    progress = Progress(lambda done, total: told.append((done, total)), 10)
    progress(4)
    progress(6)
    assert told[-2:] == [(4, 10), (10, 10)]


def test_the_trainers_own_split_by_rows_is_said_to_leak(ready: Place) -> None:
    rows = [chat("How?", "So."), chat("How?", "Not so."), chat("Why?", "Because of it.")]
    give(ready, "own", rows, **SHAREGPT)
    assert [finding[:3] for finding in findings(look(ready, "dataset=own", "val_size=0.3"))] == [
        ("warning", "command line val_size",
         "splits row by row, and 1 of them repeat a prompt: the same one comes to both sides"),
    ]  # fmt: skip
    assert findings(look(ready, "dataset=own")) == []
    give(ready, "own", rows[1:], **SHAREGPT)
    assert findings(look(ready, "dataset=own", "val_size=0.3")) == []
