from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.dataset.entry import entry_of
from trainkit.dataset.media import MediaRules
from trainkit.dataset.registry import TAGS
from trainkit.dataset.rows import align
from trainkit.errors import UsageProblem
from trainkit.sources import conversations, evaluations
from trainkit.sources.pairs import LABEL_COLUMNS, PAIR_COLUMNS, make_label_example, make_pair_example
from trainkit.sources.scored_pairs import PairRule, check_rule, make_fact_score, make_pairs, verdict_score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trainkit.datatypes import Example

PROGRAM = Path(__file__).parent / "trainer_pairs.py"
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "finetune.jsonl"
PAIR_ENTRY = {
    "file_name": "x.jsonl", "formatting": "sharegpt", "ranking": True, "columns": PAIR_COLUMNS, "tags": TAGS,
}  # fmt: skip
LABEL_ENTRY = {"file_name": "x.jsonl", "formatting": "sharegpt", "columns": LABEL_COLUMNS, "tags": TAGS}

reward = make_fact_score("reward")
evaluation = evaluations.make_to_example((), {}, "task_id", {})


def answer(prompt: str, text: str, score: object, task: str = "", group_by: str | None = "task_id") -> Example:
    row = {
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}],
        "reward": score,
        "task_id": task or None,
        "by": text.upper(),
    }
    form = conversations.Form("openai", "")
    example = conversations.make_to_example(form, group_by=group_by)(json.dumps(row).encode())
    assert example is not None
    return example


def judged(prompt: str, verdict: object, judge: str, task: str = "qa_0") -> Example:
    row = {
        "conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": json.dumps(verdict)}],
        "metadata": {"evaluation_type": "clip", "model_name": judge, "task_id": task, "category": None},
    }
    example = evaluation(json.dumps(row).encode())
    assert example is not None
    return example


def pairs_of(
    examples: Iterable[Example],
    score_of: Callable[[Any], Any] = reward,
    margin: float = 0.1,
    per_task: int | None = None,
    seed: int = 0,
    counts: Counter[str] | None = None,
) -> list[Example]:
    rule = PairRule(margin, per_task, seed)
    return list(make_pairs(examples, score_of, rule, BytesIO(), Counter() if counts is None else counts))


def texts(pairs: Iterable[Example]) -> list[tuple[str, str, str]]:
    rows = [json.loads(pair[4]) for pair in pairs]
    return [(row["conversations"][-1]["value"], row["chosen"]["value"], row["rejected"]["value"]) for row in rows]


def test_a_whole_pair() -> None:
    made = pairs_of([answer("Tea?", "no", 0.25, "t"), answer("Tea?", "yes", 0.75, "t")])
    assert [pair[:4] for pair in made] == [("", "", "t", b"t")]
    assert json.loads(made[0][4]) == {
        "conversations": [{"from": "human", "value": "Tea?"}],
        "chosen": {"from": "gpt", "value": "yes"},
        "rejected": {"from": "gpt", "value": "no"},
        "system": "",
        "tools": "",
        "images": [],
        "metadata": '{"chosen_score":0.75,"rejected_score":0.25,"chosen":{"reward":0.75,"by":"YES"},'
        '"rejected":{"reward":0.25,"by":"NO"},"task_id":"t"}',
    }
    assert made[0][4].endswith(b"}\n")


def test_verdicts_on_one_prompt_by_two_judges() -> None:
    counts: Counter[str] = Counter()
    examples = [
        judged("Judge step 1.", {"scores": {"use_score": 0.9, "goal_score": 0.7}, "steps": 5}, "kimi"),
        judged("Judge step 1.", {"scores": {"use_score": 0.5, "goal_score": 0.5}}, "deepseek"),
        judged("Judge step 1.", {"score": 0.1}, "llama"),  # scores something else
        judged("Judge step 2.", {"score": 0.9}, "llama"),
        judged("Judge step 2.", "no object", "kimi"),
        judged("Judge step 2.", {"rating": 3}, "kimi"),
    ]
    made = pairs_of(examples, verdict_score, 0.3, counts=counts)
    assert [pair[:4] for pair in made] == [("clip", "", "qa_0", b"qa_0")]
    metadata = json.loads(json.loads(made[0][4])["metadata"])
    assert metadata == {
        "chosen_score": pytest.approx(0.8),
        "rejected_score": 0.5,
        "chosen": {"model_name": "kimi"},
        "rejected": {"model_name": "deepseek"},
        "evaluation_type": "clip",
        "task_id": "qa_0",
        "category": None,
    }
    assert counts == Counter({
        "rows": 6, "no verdict": 1, "no score": 1, "prompts": 3, "prompts without a pair": 2, "pairs": 1,
    })  # fmt: skip


def test_what_both_rows_say_is_there_once() -> None:
    examples = [judged("Judge.", {"score": score}, "kimi") for score in (0.25, 0.5)]
    (made,) = pairs_of(examples, verdict_score)
    assert made[:4] == ("clip", "kimi", "qa_0", b"qa_0")
    assert json.loads(json.loads(made[4])["metadata"]) == {
        "chosen_score": 0.5, "rejected_score": 0.25, "evaluation_type": "clip", "model_name": "kimi",
        "task_id": "qa_0", "category": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "margin", "number"),
    [(0.9, 0.95, 0.05, 1), (0.9, 0.95, 0.06, 0), (0.3, 0.4, 0.1, 1), (1, 1, 0.1, 0), (False, True, 1, 1)],
)
def test_the_margin_is_the_least_difference(low: float, high: float, margin: float, number: int) -> None:
    made = pairs_of([answer("Tea?", "yes", high), answer("Tea?", "no", low)], margin=margin)
    assert texts(made) == [("Tea?", "yes", "no")] * number


def test_only_answers_to_one_prompt_of_one_task_are_paired() -> None:
    system = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tea?"}]}
    other = system | {"messages": [*system["messages"], {"role": "assistant", "content": "d"}], "reward": 4}
    form = conversations.Form("openai", "")
    with_system = conversations.make_to_example(form)(json.dumps(other).encode())
    assert with_system is not None
    examples = [
        answer("Tea?", "a", 1), answer("Tea? ", "b", 2), answer("Tea?", "c", 3, "t1"), with_system,
        answer("Tea?", "e", 5, "t2"), answer("Now?", "f", 6, "t2"),
    ]  # fmt: skip
    counts: Counter[str] = Counter()
    assert pairs_of(examples, counts=counts) == []
    assert counts == Counter({"rows": 6, "prompts": 6, "prompts without a pair": 6})


def test_prompts_with_the_same_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [answer("Tea?", "a", 1), answer("Now?", "b", 2), answer("Tea?", "c", 3)]
    counts: Counter[str] = Counter()
    digest = xxhash.xxh3_64_intdigest
    same = b'["reward"'
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", lambda data: 7 if data.startswith(same) else digest(data))
    assert texts(pairs_of(examples, counts=counts)) == [("Tea?", "c", "a")]
    assert counts["other prompt with the same hash"] == 2


def test_an_answer_that_is_there_again_counts_once_with_its_mean() -> None:
    examples = [answer("Tea?", "a", 1), answer("Tea?", "b", 2), answer("Tea?", "a", 4), answer("Tea?", "b", 2)]
    counts: Counter[str] = Counter()
    made = pairs_of(examples, counts=counts)
    assert texts(made) == [("Tea?", "a", "b")]
    metadata = json.loads(json.loads(made[0][4])["metadata"])
    assert (metadata["chosen_score"], metadata["rejected_score"]) == (2.5, 2.0)
    assert counts["same answer again"] == 2


def test_the_cap_is_of_a_task_and_drawn_by_the_seed() -> None:
    examples = [
        answer(prompt, f"{prompt}{number}", number, task)
        for task, prompts in (("t1", "ab"), ("t2", "c"), ("t3", "d"))
        for prompt in prompts
        for number in range(2 if task == "t3" else 12)
    ]
    counts: Counter[str] = Counter()
    made = pairs_of(examples, margin=1, per_task=5, counts=counts)
    assert Counter(pair[2] for pair in made) == {"t1": 5, "t2": 5, "t3": 1}
    assert counts["pairs over the cap"] == 2 * 66 - 5 + 66 - 5
    assert len(set(made)) == 11
    assert pairs_of(examples, margin=1, per_task=5) == made
    assert pairs_of(examples, margin=1, per_task=5, seed=1) != made
    drawn = Counter(
        pair for seed in range(400) for pair in texts(pairs_of(examples[24:36], margin=1, per_task=5, seed=seed))
    )
    assert len(drawn) == 66
    assert sum((number - 2000 / 66) ** 2 / (2000 / 66) for number in drawn.values()) < 113  # 65 degrees, 1 in 5,000


def test_tasks_come_in_the_order_of_the_input() -> None:
    order = ["t5", "t1", "t9", "t3"]
    examples = [answer("Tea?", f"{task}{number}", number, task) for number in range(2) for task in order]
    assert [pair[2] for pair in pairs_of(examples)] == order


def test_a_prompt_stays_on_one_side_when_rows_are_split_one_by_one() -> None:
    examples = [answer("Tea?", text, score, "t", group_by=None) for score, text in enumerate("abc")]
    assert len({example[3] for example in examples}) == 3
    assert {pair[3] for pair in pairs_of(examples)} == {b'[[{"from":"human","value":"Tea?"}],"","",""]'}


def test_scores_one_level_down_and_metadata_that_is_no_object() -> None:
    rows = [{"metadata": '{"judge":{"score":0.5}}'}, {"metadata": '{"judge.score":true}'}]
    assert [make_fact_score("judge.score")(row).value for row in rows] == [0.5, 1.0]
    counts: Counter[str] = Counter()
    examples = [answer("Tea?", "a", "0.7"), answer("Tea?", "b", None), answer("Tea?", "c", {"reward": 1})]
    assert pairs_of(examples, counts=counts) == []
    assert counts == Counter({"rows": 3, "no score": 3})


def test_an_image_in_an_answer_leaves_the_row_out() -> None:
    row = {
        "conversations": [{"from": "human", "value": "Draw."}, {"from": "gpt", "value": "<image>"}],
        "images": ["a.png"],
        "metadata": '{"reward":1}',
    }
    counts: Counter[str] = Counter()
    assert pairs_of([("", "", "", b"", json.dumps(row).encode())], counts=counts) == []
    assert counts == Counter({"rows": 1, "image in an answer": 1})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (PairRule(0, None, 0), "--margin 0: must be above 0"),
        (PairRule(float("nan"), None, 0), "--margin nan: must be above 0"),
        (PairRule(float("inf"), None, 0), "--margin inf: must be above 0"),
        (PairRule(0.1, 0, 0), "--per-task 0: must be at least 1"),
    ],
)
def test_a_wrong_rule_is_told(rule: PairRule, message: str) -> None:
    with pytest.raises(UsageProblem) as problem:
        check_rule(rule)
    assert problem.value.message == message


def test_a_right_rule_is_taken() -> None:
    check_rule(PairRule(0.1, 1, 0))
    check_rule(PairRule(0.1, None, 0))


said = st.tuples(st.sampled_from("pqr"), st.sampled_from("abcdef"), st.integers(0, 8), st.sampled_from(["", "t", "u"]))


@settings(max_examples=150, deadline=None)
@given(st.lists(said, max_size=25), st.sampled_from([1, 4, 12]), st.none() | st.integers(1, 4), st.randoms())
def test_the_pairs_are_those_that_a_plain_search_finds(
    rows: list[tuple[str, str, int, str]], quarters: int, per_task: int | None, shuffle: Any
) -> None:
    given_scores: dict[tuple[str, str, str], list[int]] = {}
    for prompt, text, score, task in rows:
        given_scores.setdefault((task, prompt, text), []).append(score)
    means = {key: sum(values) / len(values) for key, values in given_scores.items()}
    wanted = set()
    for one, other in combinations(sorted(means), 2):
        low, high = sorted((one, other), key=means.__getitem__)
        if one[:2] == other[:2] and means[high] - means[low] >= quarters / 4 - 1e-9:
            wanted.add((low[0], low[1], high[2], low[2]))
    examples = [answer(prompt, text, score, task) for prompt, text, score, task in rows]
    made = pairs_of(examples, margin=quarters / 4, per_task=per_task)
    found = [(pair[2], *text) for pair, text in zip(made, texts(made), strict=True)]
    assert len(set(found)) == len(found)
    assert set(found) <= wanted
    if per_task is None:
        assert set(found) == wanted
    shuffle.shuffle(examples)
    again = pairs_of(examples, margin=quarters / 4, per_task=per_task)
    assert sorted((pair[2], *text) for pair, text in zip(again, texts(again), strict=True)) == sorted(found)


@pytest.mark.skipif(not REAL.exists(), reason="the real evaluations are not here")
def test_real_evaluations() -> None:
    counts: Counter[str] = Counter()
    to_example = evaluations.make_to_example(evaluations.DEFAULT_FORM, {}, "task_id", {})
    examples = [example for line in REAL.read_bytes().splitlines() if (example := to_example(line))]
    made = pairs_of(examples, verdict_score, 0.03, counts=counts)
    metadata = [json.loads(json.loads(pair[4])["metadata"]) for pair in made]
    assert sorted(pair[0] for pair in made) == ["category", "clip"]
    judges = [{"model_name": "kimi-k2-0711-preview"}, {"model_name": "deepseek-chat"}]
    assert [[each["chosen"], each["rejected"]] for each in metadata] == [judges, judges]
    assert counts == Counter({"rows": 8, "prompts": 4, "prompts without a pair": 2, "pairs": 2})


def rows_for_the_trainer() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pairs and labels of every origin, with calls, tools and a system text."""
    call = {"role": "assistant", "content": "I look.", "tool_calls": [{"function": {"name": "s", "arguments": "{}"}}]}
    tools = [{"name": "s", "description": "Search", "parameters": {"type": "object", "properties": {}}}]
    user = {"role": "user", "content": "Tea?"}
    pair_rows: list[dict[str, Any]] = [
        {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "system": "Be brief."},
        {"messages": [user], "chosen": call, "rejected": "No.", "tools": tools},
        {
            "messages": [user, call, {"role": "tool", "content": "green"}],
            "chosen": "A",
            "rejected": call,
            "tools": tools,
        },
    ]
    label_rows: list[dict[str, Any]] = [
        {"prompt": "Tea?", "completion": "Yes.", "label": True, "system": "Be brief."},
        {"messages": [user, call], "label": False, "tools": tools},
    ]
    scored = pairs_of([answer("Tea?", "no", 0), answer("Tea?", "yes", 1)])
    scored += pairs_of([judged("Judge.", {"score": 0.1}, "a"), judged("Judge.", {"score": 0.9}, "b")], verdict_score)
    made = [make_pair_example()(json.dumps(row).encode()) for row in pair_rows] + scored
    labelled = [make_label_example()(json.dumps(row).encode()) for row in label_rows]
    return [json.loads(each[4]) for each in made if each], [json.loads(each[4]) for each in labelled if each]


def test_our_model_of_the_trainer_takes_the_rows() -> None:
    pairs, labels = rows_for_the_trainer()
    for stage, entry, rows in (("rm", PAIR_ENTRY, pairs), ("dpo", PAIR_ENTRY, pairs), ("kto", LABEL_ENTRY, labels)):
        for row in rows:
            aligned = align(json.dumps(row).encode(), entry_of("x", entry), Path(), MediaRules(image=True), stage)
            answer_turn = row["chosen"] if "chosen" in row else row["conversations"][-1]
            assert aligned.turns[-1].content == answer_turn["value"]


@pytest.mark.slow
def test_the_trainer_takes_the_rows() -> None:
    pairs, labels = rows_for_the_trainer()
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    request = json.dumps([{"entry": PAIR_ENTRY, "rows": pairs}, {"entry": LABEL_ENTRY, "rows": labels}])
    done = subprocess.run([sys.executable, str(PROGRAM)], input=request, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    roles = {"human": "user", "gpt": "assistant", "observation": "observation", "function_call": "function"}

    def turns(*said: dict[str, str]) -> list[list[str]]:
        return [[roles[turn["from"]], turn["value"]] for turn in said]

    for row, aligned in zip(pairs, theirs[0], strict=True):
        assert aligned == {
            "prompt": turns(*row["conversations"]),
            "response": turns(row["chosen"], row["rejected"]),
            "system": row["system"],
            "tools": row["tools"],
        }
    for row, aligned in zip(labels, theirs[1], strict=True):
        last = turns(row["conversations"][-1])
        assert aligned["prompt"] == turns(*row["conversations"][:-1])
        empty = [["assistant", ""]]
        assert aligned["response"] == (last + empty if row["kto_tag"] else empty + last)
