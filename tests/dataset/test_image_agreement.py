"""Images against LLaMA-Factory's own processor: every token and label of rows with images of many sizes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from trainkit.dataset.chatform import decode_form
from trainkit.dataset.entry import entry_of
from trainkit.dataset.pictures import picture
from trainkit.dataset.simulate import Flags, encode, measure
from trainkit.dataset.tokenizer import load_tokenizer
from trainkit.datatypes import Conversation, Turn
from trainkit.errors import Rejected

if TYPE_CHECKING:
    from trainkit.dataset.pictures import Pictured

HERE = Path(__file__).parent
CHAT_FORM = HERE.parents[1] / "trainkit" / "inside" / "chat_form.py"
ENTRY = entry_of("a", {"file_name": "a.jsonl", "formatting": "sharegpt", "columns": {"images": "images"}})
CUTOFFS = (700, 100_000)
CASES: list[dict[str, Any]] = [
    {"family": "qwen2_vl", "keys": {"template": "qwen2_vl"}},
    {"family": "qwen2_vl", "keys": {"template": "qwen2_vl", "mask_history": True, "image_max_pixels": 50_000}},
    {
        "family": "qwen3_vl",
        "keys": {
            "template": "qwen3_vl",
            "mask_history": True,
            "image_min_pixels": 100_000,
            "image_max_pixels": 2_000_000,
        },
    },
]
SIZES = [(1280, 720), (1, 1), (27, 28), (14, 3000), (3000, 14), (999, 1001), (42, 70), (640, 1136)]
TOO_THIN = (1, 5_000_000)


def rows_with(images: list[Path], thin: Path) -> list[dict[str, Any]]:
    rng = random.Random(3)

    def row(*turns: str, system: str = "") -> dict[str, Any]:
        roles = ("user", "assistant")
        shown = rng.choices(images, k=sum(turn.count("<image>") for turn in turns))
        said = [(roles[number % 2], text) for number, text in enumerate(turns)]
        return {"turns": said, "system": system, "images": list(map(str, shown))}

    single = [row("<image>", "yes") | {"images": [str(image)]} for image in images]
    return [
        *single,
        row("no image", "at all"),
        row("  <image>  and\n<image>\n", "I see <image>.", system="You <image> are."),
        row("a<image><image>b", "1", "word " * 50 + "<image>", "2", "<image>3", "three " * 20),
        row(*(text for number in range(6) for text in (f"Page {number}: <image> now?", f"click({number})"))),
        row("hm", "<think>\n<image>\n</think>\n\nyes", "<image>", "<think>\nx\n</think>\n\nno"),
        row("a <|image_pad|><|image_pad|> b <|vision_end|> <image>", "c"),
        row("<image>", "thin") | {"images": [str(thin)]},
    ]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    library = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("shots")
    images = [folder / f"{width}x{height}.{'png' if width > height else 'jpg'}" for width, height in SIZES]
    for path, size in zip([*images, folder / "thin.png"], [*SIZES, TOO_THIN], strict=True):
        library.new("L", size).save(path)
    return rows_with(images, folder / "thin.png")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trainer")
    request = {"folder": str(folder), "program": str(CHAT_FORM), "cases": CASES, "rows": rows, "cutoffs": CUTOFFS}
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    env |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parent)}
    program = [sys.executable, str(HERE / "trainer_images.py")]
    done = subprocess.run(program, input=json.dumps(request), capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = msgspec.json.decode((folder / "answer.json").read_bytes())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)))
def test_every_token_and_label_is_the_trainers(
    answers: list[dict[str, Any]], rows: list[dict[str, Any]], number: int
) -> None:
    form = decode_form(msgspec.json.encode(answers[number]["form"]))
    assert form.images is not None
    tokenizer = load_tokenizer(form)
    expected = iter(answers[number]["encoded"])
    compared = 0
    for row in rows:
        for cutoff_len in CUTOFFS:
            wanted = next(expected)
            flags = Flags(cutoff_len, CASES[number]["keys"].get("mask_history", False))
            conversation = Conversation(tuple(Turn(*turn) for turn in row["turns"]), row["system"])
            if isinstance(wanted, str):
                assert (wanted, row["turns"][1][1]) == ("height and width must be > 0", "thin")
                with pytest.raises(Rejected, match="cannot be made smaller"):
                    picture(conversation, {"images": row["images"]}, ENTRY, Path(), form.images)
                continue
            seen: Pictured = picture(conversation, {"images": row["images"]}, ENTRY, Path(), form.images)
            encoded = encode(seen.conversation, form, tokenizer, flags)
            assert [encoded.input_ids, encoded.labels] == wanted, (row, cutoff_len)
            assert measure(seen.conversation, form, tokenizer, flags) == encoded.facts
            assert encoded.facts.image_tokens == wanted[0].count(form.images.token_id)
            compared += 1
    assert compared == len(CUTOFFS) * (len(rows) - 1)
