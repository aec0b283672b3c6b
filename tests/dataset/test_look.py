"""A look at every row: what is counted, on one core or several, with either library."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.dataset import look
from trainkit.dataset.entry import entry_of
from trainkit.dataset.imagetokens import ImageForm
from trainkit.dataset.look import Lens, count_packs, evaluation_type, look_at_rows, stored_bytes
from trainkit.dataset.reader import plan_rows
from trainkit.dataset.rows import MediaRules
from trainkit.dataset.simulate import Flags
from trainkit.dataset.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainkit.dataset.chatform import ChatForm
    from trainkit.dataset.reader import RowPlan
    from trainkit.dataset.tally import Tally
    from trainkit.dataset.tokenizer import Tokenizer

SHAREGPT = {"formatting": "sharegpt"}
OPENAI = {
    "formatting": "openai",
    "columns": {"messages": "messages"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
             "system_tag": "system"},
}  # fmt: skip


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    turns = [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(texts)]
    return {"conversations": turns, **more}


def said(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


def judged(answer: str, kind: str = "clip") -> dict[str, Any]:
    return chat("Judge this.", answer, metadata=json.dumps({"evaluation_type": kind}))


def planned(folder: Path, rows: list[Any], file: str = "a.jsonl", most: int | None = None, **raw: Any) -> RowPlan:
    """Return the plan of a file with these rows, each a line; a text is a line as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    text = "[" + ",\n".join(lines) + "]" if file.endswith(".json") else "\n".join(lines) + "\n"
    (folder / file).write_text(text, encoding="utf-8")
    return plan_rows(folder, entry_of("a", {"file_name": file, **raw}), most)


def lens(folder: Path, form: ChatForm | None = None, flags: Flags | None = None, **more: Any) -> Lens:
    raw = {"file_name": "a.jsonl", **SHAREGPT} | more.pop("raw", {})
    return Lens(entry_of("a", raw), folder, MediaRules.of(form), flags or Flags(), form, **more)


def looked(folder: Path, rows: list[Any], form: ChatForm | None = None, **more: Any) -> Tally:
    raw = more.get("raw", SHAREGPT)
    return look_at_rows(planned(folder, rows, **raw), lens(folder, form, **more), 1, lambda _: None)


def places(tally: Tally) -> dict[str, list[tuple[int, str]]]:
    """Return what was found: the lines of the first places, and their details."""
    return {what: [(place.line, place.detail) for place in found] for what, found in tally.places.items()}


BAD_ROWS: list[tuple[dict[str, Any], Any, str, str]] = [
    (SHAREGPT, chat("a question"), "skipped: odd count", "1 turns: the last one has no answer"),
    (SHAREGPT, chat(), "skipped: no turns", "there are no turns"),
    (SHAREGPT, said(("gpt", "a"), ("human", "b")), "skipped: wrong alternation",
     "turn 1 (gpt) stands where human or observation belongs"),
    (SHAREGPT, said(("judge", "a"), ("gpt", "b")), "skipped: role not in tags",
     "turn 1 (judge): its role is none of human, gpt, observation, function_call, system"),
    (SHAREGPT, said(("human", "a"), ("gpt", 3)), "fatal: non-string content", "turn 2 (gpt) is a number"),
    (SHAREGPT, "{", "fatal: not JSON", "Input data was truncated"),
    (SHAREGPT, [1], "fatal: wrong type", "the row is a list, not an object"),
    (SHAREGPT | {"columns": {"messages": "conversations", "images": "pictures"}}, chat("a", "b", pictures=["cat.png"]),
     "fatal: media not taken", "there are 1 images, and the template takes none"),
    (SHAREGPT | {"columns": {"messages": "conversations", "tools": "tools"}}, chat("a", "b", tools="{"),
     "fatal: tools not JSON", "the tools cannot be parsed: Expecting property name enclosed in double quotes: line 1 "
     "column 2 (char 1)"),
    ({}, {"instruction": "say it", "input": ""}, "skipped: no answer", "output: missing or null"),
    ({}, {"instruction": "say it", "input": "", "output": 3}, "fatal: non-string content", "output is a number"),
    (OPENAI, {"messages": [{"role": "user", "content": "q"}]}, "skipped: odd count",
     "1 turns, with tool results joined: the last one has no answer"),
    (OPENAI, {"messages": [{"role": "bot", "content": "q"}, {"role": "assistant", "content": "a"}]},
     "fatal: unknown role", "turn 1 (bot): its role is none of user, assistant, system"),
]  # fmt: skip
GOOD_ROWS: dict[str, Any] = {
    "sharegpt": chat("How?", "Like this."),
    "alpaca": {"instruction": "say it", "input": "", "output": "said"},
    "openai": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "an answer"}]},
}


@pytest.mark.parametrize(("raw", "row", "what", "detail"), BAD_ROWS, ids=[f"{row[2]}-{row[3]}" for row in BAD_ROWS])
def test_a_row_that_the_trainer_does_not_take_is_counted_with_its_line(
    tmp_path: Path, raw: dict[str, Any], row: Any, what: str, detail: str
) -> None:
    good = GOOD_ROWS[raw.get("formatting", "alpaca")]
    tally = looked(tmp_path, [good, row, good], raw={"formatting": "alpaca"} | raw)
    assert places(tally) == {what: [(2, detail)]}
    assert dict(tally.found) == {what: 1}
    assert tally.places[what][0].file == str(tmp_path / "a.jsonl")
    assert (tally.rows, tally.counts["trained_rows"], list(tally.row_numbers)) == (3, 2, [0, 2])


ANSWERS: list[tuple[dict[str, Any], dict[str, list[tuple[int, str]]], dict[str, float]]] = [
    (chat("How?", "Like this."), {}, {}),
    (chat("How many?", "7"), {}, {}),  # short, and an answer all the same
    (chat("How?", " ."), {"near-empty answer": [(1, "' .'")]}, {}),
    (chat("How?", ""), {"near-empty answer": [(1, "''")]}, {}),
    (judged('{"score": 0.4, "notes": "?"}'), {}, {"score": 0.4}),
    (judged("..."), {"broken verdict": [(1, "no JSON object in it")]}, {}),
    (judged("{'score': 1,}"), {"verdict with single quotes": [(1, "")], "verdict with trailing comma": [(1, "")]},
     {"score": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "found", "scores"), ANSWERS)
def test_answers_are_judged_by_what_they_are_for(
    tmp_path: Path, row: dict[str, Any], found: dict[str, list[tuple[int, str]]], scores: dict[str, float]
) -> None:
    tally = looked(tmp_path, [row])
    assert places(tally) == found
    assert {name: numbers.total for (_, name), numbers in tally.scores.items()} == scores
    assert tally.counts["verdicts"] == ("metadata" in row)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (b'{"metadata": "{\\"evaluation_type\\": \\"clip\\"}"}', "clip"),
        (b'{"metadata": {"evaluation_type": "final"}}', "final"),
        (b'{"metadata": {"evaluation_type": 3}}', None),
        (b'{"metadata": {"model_name": "k"}}', None),
        (b'{"metadata": "no JSON"}', None),
        (b'{"metadata": [1]}', None),
        (b'{"metadata": null}', None),
        (b"[1]", None),
        ({"metadata": {"evaluation_type": "clip"}}, "clip"),
        ({"metadata": '{"evaluation_type": "clip"}'}, "clip"),
        ({"metadata": 7}, None),
    ],
)
def test_an_evaluation_is_known_by_its_metadata(row: Any, kind: str | None) -> None:
    assert evaluation_type(row) == kind


def test_tokens_are_those_of_the_trainers_form(tmp_path: Path, make_form: Callable[..., ChatForm]) -> None:
    form = make_form()
    rows = [chat("How?", "Like this."), chat("How?", "So.", "And then?", "Then so.")]
    tokenizer = load_tokenizer(form, route="tokenizers")

    def size(question: str, answer: str) -> tuple[int, int]:
        asked = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        return tokenizer.count(asked), tokenizer.count(f"{answer}<|im_end|>\n")

    turns = [[size("How?", "Like this.")], [size("How?", "So."), size("And then?", "Then so.")]]
    tally = looked(tmp_path, rows, form)
    full = [sum(map(sum, row)) for row in turns]
    assert dict(tally.lengths) == dict(tally.kept) == dict.fromkeys(full, 1)
    assert tally.counts == {
        "trained_rows": 2,
        "full_tokens": sum(full),
        "kept_tokens": sum(full),
        "trained_tokens": sum(answer for row in turns for _, answer in row),
        "turns": 3,
    }
    assert dict(tally.thoughts) == {"none": 2}
    assert not tally.found
    last = looked(tmp_path, rows, form, flags=Flags(mask_history=True))
    assert last.counts["trained_tokens"] == turns[0][0][1] + turns[1][1][1]


def test_what_a_cut_takes_away_is_counted(tmp_path: Path, make_form: Callable[..., ChatForm]) -> None:
    rows = [chat("a " * 40, "Yes."), chat("Why?", "b " * 40), chat("Why?", "So.", "c " * 40, "No."), chat("?", "!!!")]
    full = [next(iter(looked(tmp_path, [row], make_form()).lengths)) for row in rows]
    tally = looked(tmp_path, rows, make_form(), flags=Flags(cutoff_len=24))
    kept = [f"{tokens} tokens, 24 kept" for tokens in full]
    assert places(tally) == {
        "cut": [(1, kept[0]), (2, kept[1]), (3, kept[2])],
        "answer cut": [(2, ""), (3, "")],
    }
    assert tally.kept == {24: 3, full[3]: 1}
    assert (tally.counts["full_tokens"], tally.counts["kept_tokens"]) == (sum(full), 72 + full[3])
    nothing = looked(tmp_path, rows, make_form(), flags=Flags(cutoff_len=1))
    assert nothing.found["nothing trained"] == 4
    assert (nothing.counts["turns"], nothing.counts["turns_lost"]) == (5, 1)


def test_thoughts_that_contradict_each_other_are_found(tmp_path: Path, make_form: Callable[..., ChatForm]) -> None:
    form = make_form(template_class="ReasoningTemplate")
    thought = "<think>\nhm\n</think>\n\nSo."
    rows = [chat("?", thought, "And?", "No thought."), chat("?", thought), chat("?", "So."), chat("?", "Use <think>.")]
    tally = looked(tmp_path, rows, form)
    assert places(tally) == {"mixed thought": [(1, ""), (4, "")]}
    assert dict(tally.thoughts) == {"mixed": 2, "present": 1, "added": 1}


def test_without_a_form_rows_are_checked_and_no_tokens_counted(tmp_path: Path) -> None:
    tally = looked(tmp_path, [chat("How?", "Like this."), chat("How?")])
    assert (tally.rows, dict(tally.counts), dict(tally.found)) == (2, {"trained_rows": 1}, {"skipped: odd count": 1})
    assert not tally.lengths
    assert tally.text_bytes == sum(len(json.dumps(row)) for row in [chat("How?", "Like this."), chat("How?")])


def test_packing_is_counted_in_sequences(tmp_path: Path, make_form: Callable[..., ChatForm]) -> None:
    rows = [chat("How?", "Like this.")] * 7
    length = looked(tmp_path, rows, make_form()).lengths
    (tokens,) = length
    flags = Flags(cutoff_len=3 * tokens)
    assert looked(tmp_path, rows, make_form(), flags=flags, packing=True).packs == 3
    assert looked(tmp_path, rows, make_form(), flags=flags).packs == 0
    assert count_packs([10] * 1001, 20) == 501  # the last row is in a batch of its own, and there are 500 pairs


PAD = "<|endoftext|>"  # a token by itself, which stands for images here


def vision_form(make_form: Callable[..., ChatForm], *, counted: bool = True) -> ChatForm:
    (number,) = load_tokenizer(make_form()).encode(PAD)
    rule = ImageForm("<s>", PAD, "<e>", number, 28, 28 * 28, 100 * 28 * 28, 1, 10**9, ())
    return make_form(plugin="Qwen2VLPlugin", media_tokens=(PAD, "<|video_pad|>"), images=rule if counted else None)


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """A folder with an image of 4 tokens and one of 100."""
    library = pytest.importorskip("PIL.Image")
    for name, size in (("a.png", (56, 56)), ("b.png", (280, 280))):
        library.new("RGB", size).save(tmp_path / name)
    (tmp_path / "v.mp4").write_bytes(b"video")
    return tmp_path


@pytest.mark.parametrize("packing", [False, True])
def test_rows_that_lose_tokens_of_images_are_found_and_what_they_would_need(
    shots: Path, make_form: Callable[..., ChatForm], packing: bool
) -> None:
    form = vision_form(make_form)
    rows = [
        chat("<image>", "short", images=["a.png"]),
        chat("<image>", "one", "<image>", "two", images=["b.png", "b.png"]),
        chat("<image> " + "word " * 200, "only text of it is cut", images=["a.png"]),
        chat("word " * 200, "no image"),
        chat("<image>" * 3, "more", images=["b.png"] * 3),
        chat(f"the text says {PAD}", "in text"),
    ]
    raw = {**SHAREGPT, "columns": {"messages": "conversations", "images": "images"}}
    tally = looked(shots, rows, form, flags=Flags(cutoff_len=160), packing=packing, raw=raw)
    longest = max(tally.needed)
    assert {what: [line for line, _ in found] for what, found in places(tally).items()} == {
        "cut": [2, 3, 4],
        "images cut": [2, 5],
        "fatal: image mark in text": [6],
    }
    assert places(tally)["images cut"][1] == (5, f"{longest - packing:,} tokens, 300 of them for images")
    assert places(tally)["fatal: image mark in text"] == [(6, f"1 times {PAD}, and 0 of the images")]
    assert (len(tally.needed), tally.needed.total()) == (2, 2)
    enough = looked(shots, rows, form, flags=Flags(cutoff_len=longest - packing), packing=packing, raw=raw)
    assert "images cut" not in enough.found


def test_media_that_cannot_be_counted_are_noted(shots: Path, make_form: Callable[..., ChatForm]) -> None:
    raw = {**SHAREGPT, "columns": {"messages": "conversations", "images": "images", "videos": "videos"}}
    rows = [
        chat("How?", "Like this."),
        chat("<image>", "seen", images=["a.png"]),
        chat("<video>", "seen", videos=["v.mp4"]),
        chat("<image><video>", "seen", images=["a.png"], videos=["v.mp4"]),
    ]

    def noted(form: ChatForm) -> dict[str, list[int]]:
        tally = looked(shots, rows, form, raw=raw)
        return {what: [line for line, _ in found] for what, found in places(tally).items()}

    assert noted(vision_form(make_form, counted=False)) == {
        "not counted: images": [2], "not counted: videos": [3], "not counted: images and videos": [4],
    }  # fmt: skip
    assert noted(vision_form(make_form)) == {"not counted: videos": [3, 4]}


@pytest.mark.parametrize(
    ("file", "most", "raw", "lines"),
    [
        ("a.jsonl", None, {}, [1, 2, 3, 4]),
        ("a.jsonl", 2, {}, [1, 2]),
        ("a.jsonl", None, {"split": "train[1:3]"}, [2, 3]),
        ("a.jsonl", 1, {"split": "train[50%:]"}, [3]),
        ("a.json", None, {}, [1, 2, 3, 4]),
    ],
)
def test_only_the_rows_that_are_trained_on_count(
    tmp_path: Path, file: str, most: int | None, raw: dict[str, Any], lines: list[int]
) -> None:
    rows = [chat(f"only question {number}") for number in range(4)]
    plan = planned(tmp_path, rows, file, most, **raw)
    tally = look_at_rows(plan, lens(tmp_path), 1, lambda _: None)
    assert [place.line for place in tally.places["skipped: odd count"]] == lines[:3]
    assert tally.rows == tally.found["skipped: odd count"] == len(lines)


def test_any_number_of_processes_counts_the_same(tmp_path: Path, make_form: Callable[..., ChatForm]) -> None:
    long = chat("only a question, " * 5000)
    rows = [chat("Why? " * 50, "Because."), long, judged('{"score": 0.5}'), chat("How?", "."), "{"] * 200
    plan = planned(tmp_path, rows, **SHAREGPT)
    assert stored_bytes(plan) > 2 * look.BYTES_PER_WORKER
    made: dict[int, Tally] = {}
    for workers in (1, 2, 3):
        told: list[int] = []
        made[workers] = look_at_rows(plan, lens(tmp_path, make_form(), Flags(cutoff_len=64)), workers, told.append)
        assert sum(told) == stored_bytes(plan)
        assert len(told) > 1
    assert made[1] == made[2] == made[3]
    assert made[1].rows == 1000
    assert dict(made[1].found) == dict.fromkeys(
        ("cut", "skipped: odd count", "near-empty answer", "fatal: not JSON"), 200
    )
    assert [place.line for place in made[3].places["fatal: not JSON"]] == [5, 10, 15]


def test_processes_are_not_started_for_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def in_this_process(function: Any, items: Any, workers: int) -> Any:
        asked.append(workers)
        return [(item, function(item)) for item in items]

    monkeypatch.setattr(look, "map_in_processes", in_this_process)
    plan = planned(tmp_path, [chat("How?", "Like this.")], **SHAREGPT)
    look_at_rows(plan, lens(tmp_path), 64, lambda _: None)
    monkeypatch.setattr(look, "BYTES_PER_WORKER", stored_bytes(plan) // 3)
    look_at_rows(plan, lens(tmp_path), 64, lambda _: None)
    assert asked == [1, 3]


def test_one_doubt_and_every_row_is_counted_anew(
    tmp_path: Path, make_form: Callable[..., ChatForm], monkeypatch: pytest.MonkeyPatch
) -> None:
    """tiktoken is wrong about one word: the look is done again as if tokenizers had been the only library."""
    form = make_form()
    rows = [chat("How?", "Like this."), chat("How?", "As the zebra does."), chat("How?", "Well.")]
    load, routes = look.load_tokenizer, []

    def wrong(form: ChatForm, route: Any = "tiktoken") -> Tokenizer:
        routes.append(route)
        tokenizer = load(form, route)
        encode = tokenizer._encode_fast
        monkeypatch.setattr(tokenizer, "_encode_fast", lambda text: encode(text) + [7] * ("zebra" in text))
        return tokenizer

    expected = looked(tmp_path, rows, form)
    assert expected.doubt == ""
    monkeypatch.setattr(look, "load_tokenizer", wrong)
    found = looked(tmp_path, rows, form)
    assert routes == ["tiktoken", "tokenizers"]
    assert found.doubt == "tiktoken gives other tokens for 'As the zebra does.<|im_end|>\\n'"
    found.doubt = ""
    assert found == expected
