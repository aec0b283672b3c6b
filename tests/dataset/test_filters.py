from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.dataset.filters import as_number, parse_filters
from trainkit.errors import UsageProblem

FACTS = {
    "num_turns": 4, "tools": ["search", "buy"], "success": True, "score": 0.7, "reward": "0.9", "judge.name": "a=b",
    "empty": "", "best": 1.0, "none": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ([], True),
        (["success=true"], True),
        (["success=True"], True),
        (["success=1"], False),
        (["success!=false"], True),
        (["success>=1"], True),
        (["judge.name=a=b"], True),
        (["judge.name=a"], False),
        (["judge.name=a", "judge.name=a=b"], True),
        (["judge.name!=a", "judge.name!=a=b"], False),
        (["tools=buy"], True),
        (["tools=sell"], False),
        (["tools=sell", "tools=search"], True),
        (["tools!=sell"], True),
        (["tools!=sell", "tools!=buy"], False),
        (["tools="], False),
        (["none="], True),
        (["none=search"], False),
        (["empty=", "absent="], True),
        (["absent!=x"], True),
        (["absent=x"], False),
        (["absent<1"], False),
        (["num_turns>=4", "num_turns<=4", "num_turns>3", "num_turns<5"], True),
        (["num_turns>4"], False),
        (["num_turns<4"], False),
        (["num_turns=4"], True),
        (["best=1"], True),
        (["best=1.0"], True),
        (["score>=0.7"], True),
        (["score >= 0.71"], False),
        (["reward>0.8"], True),
        (["judge.name>0"], False),
        (["tools=buy", "score>1"], False),
    ],
)
def test_a_row_stays_when_all_conditions_hold(words: list[str], kept: bool) -> None:
    assert parse_filters(words).keep(FACTS) is kept


def test_each_row_is_counted_at_the_first_condition_that_leaves_it_out() -> None:
    filters = parse_filters(["tools=search", "score>=0.5", "tools=buy", "scroe!=1"])
    rows: list[dict[str, Any]] = [
        {"tools": ["sell"], "score": 0.1},
        {"tools": ["buy"], "score": 0.1},
        {"tools": [], "score": 0.9},
        {"tools": ["buy"], "score": 0.9},
    ]
    assert [filters.keep(row) for row in rows] == [False, False, False, True]
    assert filters.left_out == {"tools=search or tools=buy": 2, "score>=0.5": 1}
    assert filters.missing == {"scroe"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("score", "--where score: is no condition"),
        ("", "--where : is no condition"),
        ("=3", "--where =3: is no condition"),
        ("score>=high", "--where score>=high: high is not a number"),
        ("score<", "--where score<: nothing is not a number"),
        ("score>=nan", "--where score>=nan: nan is not a number"),
        ("tools>2", "--where tools>2: the tools are names"),
    ],
)
def test_a_wrong_condition_is_told(word: str, message: str) -> None:
    with pytest.raises(UsageProblem) as problem:
        parse_filters([word])
    assert problem.value.message == message
    assert problem.value.hint


@given(st.text(st.characters(exclude_characters="=!<>"), min_size=1).filter(str.strip), st.text())
def test_any_text_can_be_asked_for(key: str, value: str) -> None:
    facts = {key.strip(): value.strip()}
    assert parse_filters([f"{key}={value}"]).keep(facts)
    assert not parse_filters([f"{key}!={value}"]).keep(facts)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False), st.integers(-5, 5))
def test_numbers_compare_as_numbers(number: float, bound: int) -> None:
    if as_number(number) is None:  # an integer that no float holds
        return
    facts = {"score": number}
    assert parse_filters([f"score>={bound}"]).keep(facts) is (float(number) >= bound)
    assert parse_filters([f"score<{bound}"]).keep(facts) is (float(number) < bound)
    assert parse_filters([f"score={number}"]).keep(facts)
