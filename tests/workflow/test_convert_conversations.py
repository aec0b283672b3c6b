"""Properties of the conversion of conversations; what it says on the command line is in tests/cli."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit import lines
from trainkit.dataset import write as dataset_write
from trainkit.dataset.registry import COLUMNS, IMAGES, load_registry
from trainkit.errors import InputError, TrainkitError
from trainkit.sources.scored_pairs import PairRule
from trainkit.workflow import convert_rows
from trainkit.workflow.convert_conversations import ConversationOptions, convert_conversations
from trainkit.workflow.convert_inputs import find_kind, open_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trainkit.workflow.convert_outcome import ConversationsResult

FOREIGN = b'{\n    "mine": {"file_name":  "mine.json", "n": 1.0}\n}'


def sharegpt(number: int, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"Question {number}?"}, {"from": "gpt", "value": f"Answer {number}."}]
    return {"conversations": turns, "number": number} | more


def openai(number: int, answer: str = "Hello.") -> dict[str, Any]:
    said = [{"role": "user", "content": f"Question {number}?"}, {"role": "user", "content": "Well?"}]
    return {"messages": [*said, {"role": "assistant", "content": answer}], "number": number}


BAD = {"conversations": [{"from": "gpt", "value": "I begin."}], "number": -1}


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def convert(data: Path, *paths: Path, **options: Any) -> ConversationsResult:
    return convert_conversations(open_inputs(paths), data, ConversationOptions(**options))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock, with its content."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".trainkit.lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def numbers(result: ConversationsResult, side: str = "train") -> list[int]:
    assert result.folder is not None
    rows = (result.folder / f"{side}.jsonl").read_bytes().splitlines()
    return [json.loads(json.loads(row)["metadata"])["number"] for row in rows]


def told(seen: list[int], total: int) -> Callable[[int, int | None], None]:
    """A progress function that writes down what it is told."""

    def tell(done: int, of: int | None) -> None:
        assert of == total
        seen.append(done)

    return tell


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of some kB in many blocks, each enough for a process."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(convert_rows, "BYTES_PER_WORKER", 100)


def with_image(number: int) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": "1.png"}}, {"type": "text", "text": "What?"}]
    said = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A."}]
    return {"messages": said, "number": number}


@pytest.mark.usefixtures("small_blocks")
def test_the_same_bytes_for_any_number_of_processes(tmp_path: Path) -> None:
    image = tmp_path / "1.png"
    image.write_bytes(b"png")
    given = [openai(number) for number in range(300)]
    given[::3] = [with_image(number) for number in range(0, 300, 3)]
    given[7::50] = [{"messages": "x", "number": number} for number in range(7, 300, 50)]
    plain = write(tmp_path / "a.jsonl", [*given[:100], "\n \n", *given[100:]])
    packed = tmp_path / "b.json.gz"
    packed.write_bytes(gzip.compress(("[\n" + ",\n".join(map(json.dumps, given)) + "]").encode()))
    total = plain.stat().st_size + packed.stat().st_size
    found = []
    for jobs in (1, 3):
        options = ConversationOptions(
            where=("number>=20",), max_rejects=0.1, eval_ratio=0.3, group_by="number", jobs=jobs
        )
        data = tmp_path / f"data-{jobs}"
        seen: list[int] = []
        result = convert_conversations(open_inputs([plain, packed]), data, options, told(seen, total))
        found.append(tree(data))
        assert seen[-1] == total
        assert seen == sorted(seen)
        assert (result.book.num_read, result.book.rejected) == (600, Counter({"wrong type": 12}))
        assert result.book.left_out == Counter({"number>=20": 38})
        kept = [row for row in given[20:] if len(row["messages"]) == 3]
        assert result.book.repairs == Counter({"joined_user_messages": 2 * len(kept)})
        assert result.num_rows == 600 - 12 - 38
        rejected = [json.loads(line) for line in (data / "rejected.jsonl").read_text().splitlines()]
        expected = [number + 1 + (2 if number >= 100 else 0) for number in range(7, 300, 50)]
        assert [(row["file"], row["line"]) for row in rejected] == [
            *((str(plain), line) for line in expected), *((str(packed), number + 2) for number in range(7, 300, 50)),
        ]  # fmt: skip
        assert load_registry(data)["conversations"]["columns"] == COLUMNS | IMAGES
        sides = [numbers(result, side) for side in ("train", "eval")]
        assert sum(map(len, sides)) == result.num_rows
        assert not set(sides[0]) & set(sides[1])
        assert result.folder is not None
        images = [b'"images":[]' not in row for row in (result.folder / "train.jsonl").read_bytes().splitlines()]
        assert images == sorted(images, reverse=True)
        assert images[0]
    assert found[0] == found[1]


kinds = st.sampled_from(["good", "bad", "blank", "left out", "again"])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(kinds, min_size=1, max_size=8), min_size=1, max_size=3),
    st.sampled_from(["", "exact"]),
    st.sampled_from([None, "first", "all"]),
    st.integers(0, 3),
)
def test_no_row_vanishes(files: list[list[str]], dedup: str, until: Any, seed: int) -> None:
    """Every row that was read is in the data set, or was counted."""
    with tempfile.TemporaryDirectory() as name:
        folder, count, paths = Path(name), 0, []
        given: Counter[str] = Counter()
        for number, kinds in enumerate(files):
            rows: list[Any] = [sharegpt(10**6 + number)]
            for kind in kinds:
                count += 1
                good = sharegpt(0 if kind == "again" else count, drop=kind == "left out")
                rows.append({"bad": {"conversations": "x"}, "blank": "  \n"}.get(kind, good))
                given[kind] += 1
            paths.append(write(folder / f"{number}.jsonl", rows))
        more = {"weights": (1.0,) * len(paths), "until": until} if until else {}
        options = {"dedup": dedup, "where": ("drop!=true",), "max_rejects": 1, "seed": seed, "group_by": None, **more}
        result = convert(folder / "data", *paths, **options)
        kept = numbers(result)
        read = result.num_rows + result.repeats + result.book.left_out.total() + result.book.rejected.total()
        # a mix that stops at the first end has read some rows ahead
        assert read <= result.book.num_read if until == "first" else read == result.book.num_read
        if until != "first":
            assert result.book.num_read == count - given["blank"] + len(files)
            assert result.book.left_out.total() == given["left out"]
            assert result.book.rejected.total() == given["bad"]
            assert result.repeats == (max(0, given["again"] - 1) if dedup else 0)
            assert len(kept) == given["good"] + given["again"] - result.repeats + len(files)
        again = convert(folder / "data", *paths, **options)
        assert (numbers(again), again.folder) == (kept, result.folder)


def test_a_mix_has_its_shares_of_what_stays(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", (sharegpt(number) for number in range(3000)))
    other = write(tmp_path / "b.jsonl", (openai(10_000 + number // 2) for number in range(3000)))
    options = {"weights": (3.0, 1.0), "where": ("number!=5",), "dedup": "exact"}
    result = convert(tmp_path / "data", one, other, **options)
    kept = numbers(result)
    of_one = [number for number in kept if number < 10_000]
    assert of_one == sorted(of_one)
    assert len(of_one) == 2999, "it ends first"
    assert abs(len(of_one) / len(kept) - 0.75) < 0.03
    assert result.drawn == Counter({0: len(of_one), 1: len(kept) - len(of_one)})
    other_seed = convert(tmp_path / "data", one, other, **options, seed=1)
    assert numbers(other_seed) != kept


def test_what_was_there_stays_when_something_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "dataset_info.json").write_bytes(FOREIGN)
    good = write(tmp_path / "a.jsonl", [sharegpt(1)])
    convert(data, good)
    assert (data / "dataset_info.json").read_bytes().startswith(FOREIGN[:-2] + b',\n    "conversations": {\n')
    before = tree(data)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(data))

    for place in ("write_json_atomic", "replace_entries", "settle_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(dataset_write, place, full)
            with pytest.raises(TrainkitError, match="No space left on device"):
                convert(data, write(tmp_path / "b.jsonl", [sharegpt(2)]))
        assert tree(data) == before
    with pytest.raises(InputError, match="mine: already there, and not from this conversion"):
        convert(data, good, name="mine")
    many = write(tmp_path / "c.jsonl", [sharegpt(1), BAD])
    with pytest.raises(InputError) as caught:
        convert(data, many)
    assert (caught.value.message, caught.value.hint) == (
        "1 of 2 rows cannot be used (1 wrong order of turns): nothing was published",
        f"see {data / 'rejected.jsonl'}; --max-rejects 50% would accept that",
    )
    (data / "rejected.jsonl").unlink()
    assert tree(data) == before


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"text": "Once."}], {}, "a.jsonl: no conversation in the first 1 rows: the first has text"),
        ([BAD], {"max_rejects": 1}, "none of 1 rows is left (1 wrong order of turns)"),
        (
            [sharegpt(1), BAD],
            {"max_rejects": 1, "where": ("scroe>=1",)},
            "none of 2 rows is left (1 scroe>=1, 1 wrong order of turns); no row has scroe",
        ),
        (
            [sharegpt(1, score=1), sharegpt(1)],
            {"pairs": PairRule(0.1, 8, 42), "score": "score"},
            "no pair can be made of 2 rows (1 no score, 1 prompts, 1 prompts without a pair)",
        ),
        (["\n \n"], {}, "a.jsonl: there is no row in it"),
        (["[]"], {}, "a.jsonl: there is no row in it"),
        (
            [openai(1, "A") | {"tool_calls": 1}, sharegpt(1)],
            {},
            "a.jsonl: the rows are of several forms: row 1: messages with role and content that are text alone; "
            "row 2: turns with from and value",
        ),
    ],
)
def test_nothing_to_publish(tmp_path: Path, rows: list[Any], options: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError) as caught:
        convert(tmp_path / "data", path, **options)
    assert caught.value.message.replace(f"{tmp_path}/", "") == message
    assert not [name for name in tree(tmp_path / "data") if name != "rejected.jsonl"]


def test_a_broken_row_does_not_hide_what_a_file_holds(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["{broken\n", "5\n", sharegpt(1), *[sharegpt(2)] * 300])
    (one,) = open_inputs([path])
    assert len(one.head) == 100
    assert find_kind([one]) == ("conversations", "turns with from and value")
    result = convert(tmp_path / "data", path, max_rejects=0.1)
    assert (result.num_rows, result.book.rejected) == (301, Counter({"not JSON": 1, "not an object": 1}))


def test_notes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [sharegpt(number, task_id="one") for number in range(20)])
    options = {"where": ("jugde!=mean",), "eval_ratio": 0.3}
    note = "no eval split: every task_id is on the same side, as there are too few of them; all rows are for training"
    for seed in range(8):
        result = convert(tmp_path / "data", path, **options, seed=seed)
        assert result.notes == ["no row has jugde, which --where asks for", note]
        assert numbers(result) == list(range(20))
    assert list(load_registry(tmp_path / "data")) == ["conversations"]
    by_row = convert(tmp_path / "data", path, eval_ratio=0.3, group_by=None)
    assert by_row.notes == []
    assert sorted(numbers(by_row) + numbers(by_row, "eval")) == list(range(20))


def test_evaluations_are_filtered_by_their_metadata_and_turns(tmp_path: Path) -> None:
    def judged(number: int, score: float, last: str = "gpt") -> dict[str, Any]:
        answer = {"from": last, "value": json.dumps({"score": score})}
        turns = [{"from": "human", "value": f"Judge {number // 2}."}, answer]
        return {"conversations": turns, "metadata": {"evaluation_type": "clip", "number": number}}

    given = [judged(number, number % 2) for number in range(8)] + [judged(8, 0, "function_call"), judged(9, 1)]
    path = write(tmp_path / "a.jsonl", given)
    assert find_kind(open_inputs([path])).name == "evaluations"
    options = {"kind": "evaluations", "pairs": PairRule(0.1, None, 1), "metadata_form": ("type",)}
    result = convert(tmp_path / "data", path, **options, where=("number>=2", "num_turns=2", "tools="))
    assert result.book.left_out == Counter({"number>=2": 2})
    assert result.paired == Counter({"rows": 8, "pairs": 4, "prompts": 4}) + Counter()
    assert result.folder is not None
    row = json.loads((result.folder / "train.jsonl").read_bytes().splitlines()[0])
    assert row["conversations"] == [{"from": "human", "value": "[EVAL_TYPE: clip] Judge 1."}]


@pytest.mark.parametrize("words", ["near", "near:0.7"])
def test_near_repeats(tmp_path: Path, words: str) -> None:
    pytest.importorskip("datasketch")
    text = " ".join(f"word{number}" for number in range(100))
    rows = [openai(1, text), openai(1, text), openai(1, f"{text} more"), openai(1, text[::-1]), openai(1, "Short.")]
    result = convert(tmp_path / "data", write(tmp_path / "a.jsonl", [*rows, rows[4]]), dedup=words)
    assert (result.num_rows, result.repeats) == (3, 3)
    assert result.folder is not None
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["dedup"] == {"how": words, "repeats": 3}
