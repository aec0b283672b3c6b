from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.dataset.mix import Share, mix, parse_mix, read_rows
from trainkit.errors import UsageProblem
from trainkit.lines import open_sources

if TYPE_CHECKING:
    from trainkit.dataset.mix import Until

WEIGHTS = (0.7, 0.3, 0.05)


def chi_square(seen: Counter[int], weights: tuple[float, ...]) -> float:
    """Pearson's statistic of the rows seen of each source against their shares."""
    expected = [seen.total() * weight / sum(weights) for weight in weights]
    return sum((seen[number] - wanted) ** 2 / wanted for number, wanted in enumerate(expected))


@pytest.mark.parametrize("seed", range(20))
def test_the_shares_are_those_of_the_weights(seed: int) -> None:
    seen = Counter(number for number, _ in islice(mix([count()] * 3, WEIGHTS, seed, "first"), 20_000))
    # 2 degrees of freedom: more than 18.4 comes once in 10,000 times
    assert chi_square(seen, WEIGHTS) < 18.4


def test_draws_do_not_depend_on_the_ones_before() -> None:
    """As the chi-square test of the shares would also pass for rows that come in turn."""
    drawn = [number for number, _ in islice(mix([count()] * 2, (1, 1), 3, "first"), 20_000)]
    pairs = Counter(zip(drawn[::2], drawn[1::2], strict=True))
    assert sum((pairs[one, other] - 2500) ** 2 / 2500 for one in (0, 1) for other in (0, 1)) < 21.1  # 3 degrees


@pytest.mark.parametrize(("until", "rows"), [("first", False), ("all", True)])
def test_the_stream_ends_at_the_first_end_or_at_the_last(until: Until, rows: bool) -> None:
    sources = [list(range(1000)), list(range(5000)), list(range(300))]
    made = list(mix(sources, (1, 1, 1), 5, until))
    of_each = [[row for number, row in made if number == index] for index in range(3)]
    assert all(found == source[: len(found)] for found, source in zip(of_each, sources, strict=True))
    assert (of_each == sources) is rows
    if until == "first":
        assert len(of_each[2]) == 300
        assert all(230 < len(found) < 370 for found in of_each)


def test_after_the_first_end_the_others_keep_their_weights() -> None:
    made = list(mix([range(100), range(30_000), range(10_000)], (0.5, 0.3, 0.1), 1, "all"))
    last_of_first = max(at for at, (number, _) in enumerate(made) if number == 0)
    after = Counter(number - 1 for number, _ in made[last_of_first + 1 : last_of_first + 20_001])
    assert chi_square(after, (0.3, 0.1)) < 15.1  # 1 degree of freedom, 1 in 10,000


def test_a_seed_gives_the_same_stream() -> None:
    """Also on another machine and in another version: the draws are written down here."""
    streams = {seed: list(mix(["abcd", "xyz"], (2, 1), seed, "all")) for seed in (5, 6)}
    assert streams[5] == list(mix(["abcd", "xyz"], (2, 1), 5, "all"))
    assert "".join(row for _, row in streams[5]) == "axyzbcd"
    assert "".join(row for _, row in streams[6]) != "axyzbcd"


@given(st.lists(st.tuples(st.lists(st.integers()), st.floats(1e-6, 1e6)), max_size=5), st.integers())
def test_every_row_comes_out_once_in_its_order(parts: list[tuple[list[int], float]], seed: int) -> None:
    made = list(mix([rows for rows, _ in parts], [weight for _, weight in parts], seed, "all"))
    assert [[row for number, row in made if number == index] for index in range(len(parts))] == [
        rows for rows, _ in parts
    ]


def test_rows_are_only_read_when_they_are_drawn() -> None:
    numbers = count()
    list(islice(mix([numbers, count()], (0.5, 0.5), 0, "first"), 10))
    assert next(numbers) < 10


def test_words_name_paths_and_weights() -> None:
    assert parse_mix(["a.jsonl:0.7", "C:\\b:c.jsonl:3", "-:1e-3"]) == [
        Share(Path("a.jsonl"), 0.7),
        Share(Path("C:\\b:c.jsonl"), 3.0),
        Share(Path("-"), 0.001),
    ]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("a.jsonl", "--mix a.jsonl: has no weight behind a colon"),
        (":0.7", "--mix :0.7: has no weight behind a colon"),
        ("a:b.jsonl", "--mix a:b.jsonl: b.jsonl is not a number"),
        ("a.jsonl:", "--mix a.jsonl:: nothing is not a number"),
        ("a.jsonl:0", "--mix a.jsonl:0: the weight must be above 0"),
        ("a.jsonl:-1", "--mix a.jsonl:-1: the weight must be above 0"),
        ("a.jsonl:nan", "--mix a.jsonl:nan: the weight must be above 0"),
        ("a.jsonl:inf", "--mix a.jsonl:inf: the weight must be above 0"),
    ],
)
def test_wrong_words_are_told(word: str, message: str) -> None:
    with pytest.raises(UsageProblem) as problem:
        parse_mix([word])
    assert problem.value.message == message
    assert problem.value.hint == "for example --mix a.jsonl:0.7 --mix b.jsonl:0.3"


def test_files_of_any_kind_are_read_row_by_row(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(b'{"a": 1}\n\n  \n{"a": 2}\n')
    array = tmp_path / "array.json"
    array.write_text(json.dumps([{"a": 3}, {"a": 4}]))
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"a": 5}\n{"a": 6}'))
    sources = open_sources([lines, array, packed])
    assert [[(line, json.loads(row)["a"]) for line, row in read_rows(source)] for source in sources] == [
        [(1, 1), (4, 2)],
        [(1, 3), (1, 4)],
        [(1, 5), (2, 6)],
    ]
