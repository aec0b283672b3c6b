"""The promise that only the real trainer can prove: rows with screenshots are loaded and trained as meant."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from trainkit.dataset.registry import COLUMNS, TAGS
from trainkit.runs.checkpoints import find_newest_complete
from trainkit.sources.steprows import to_example
from trainkit.sources.steps import Trajectory, TrajectoryStep

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
SIZES = ((56, 56, 4), (56, 84, 6))  # width and height in pixels, and the tokens of such an image
STEPS = 12
# The trainer types a column by the first 1000 rows it writes: were they all without an image, the next one would fail.
TEXT_STEPS = 1001
CONFIG = """\
model_name_or_path: model
stage: sft
do_train: true
finetuning_type: full
dataset_dir: data
dataset: steps
eval_dataset: text
template: qwen2_vl
mask_history: true
cutoff_len: 2048
preprocessing_num_workers: 1
disable_shuffling: true
output_dir: saves
logging_steps: 1
save_steps: 1
max_steps: 2
per_device_train_batch_size: 2
gradient_accumulation_steps: 1
learning_rate: 1.0e-4
report_to: none
use_cpu: true
"""
# In one process, as importing torch takes most of the time; the model is made twice to compare the bytes.
PROGRAM = """\
import sys
import tiny_vision_model
for name in ("model", "again"):
    print(tiny_vision_model.make({"output": name}), file=sys.stderr)
from llamafactory.cli import main
sys.argv = ["llamafactory-cli", "train", "training.yaml"]
main()
"""
PRINTED = re.compile(
    r"training example:\ninput_ids:\n(?P<input_ids>.*)\ninputs:\n(?P<inputs>.*)\n"
    r"label_ids:\n(?P<label_ids>.*)\nlabels:\n(?P<labels>.*)\neval example:",
    re.DOTALL,
)


def write_png(path: Path, width: int, height: int, colour: tuple[int, int, int]) -> None:
    """Write an image of one colour: 8 bits for each of red, green and blue."""
    lines = (b"\0" + bytes(colour) * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    written = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
               for kind, body in chunks]  # fmt: skip
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(written))


def rollout_with_images(folder: Path) -> Trajectory:
    """A rollout whose steps see all pages so far, each with its screenshot."""
    folder.mkdir()
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You are a web agent."}]
    steps = []
    for number in range(STEPS):
        path = folder / f"{number} 茶.png"
        width, height, _ = SIZES[number % 2]
        write_png(path, width, height, (20 * number, 255 - 20 * number, 90))
        content = [
            {"type": "text", "text": f"Page {number}: <video> "},
            {"type": "image_url", "image_url": {"url": path.as_uri()}},
            {"type": "text", "text": " What now?"},
        ]
        messages.append({"role": "user", "content": content})
        steps.append(TrajectoryStep(json.dumps(messages), f"Action: click({number})"))
        messages.append({"role": "assistant", "content": f"Action: click({number})"})
    return Trajectory(7, 0, "shop_41", tuple(steps))


def rollout_without_images() -> Trajectory:
    prompt = json.dumps([{"role": "user", "content": "What now?"}])
    return Trajectory(7, 1, "shop_42", (TrajectoryStep(prompt, "Action: wait()"),) * TEXT_STEPS)


def write_data(folder: Path) -> None:
    """Write a set whose rows with images come first, and one without any image and so without the column."""
    data = folder / "data"
    data.mkdir()
    seen, unseen = rollout_with_images(folder / "shots"), rollout_without_images()
    longest_first = [to_example(seen, step) for step in reversed(range(STEPS))]
    text = [to_example(unseen, step) for step in range(TEXT_STEPS)]
    (data / "steps.jsonl").write_bytes(b"".join(longest_first + text))
    (data / "text.jsonl").write_bytes(b"".join(text[:2]))
    common = {"formatting": "sharegpt", "tags": TAGS}
    registry = {
        "steps": {"file_name": "steps.jsonl", "columns": {**COLUMNS, "images": "images"}, **common},
        "text": {"file_name": "text.jsonl", "columns": COLUMNS, **common},
    }
    (data / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")


@pytest.mark.slow
def test_rows_with_screenshots_are_trained_on_their_last_turn(tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "training.yaml").write_text(CONFIG, encoding="utf-8")
    environment = ENVIRONMENT | {"PYTHONPATH": str(TESTS), "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert files_of(tmp_path / "model") == files_of(tmp_path / "again")

    printed = PRINTED.search(done.stdout)
    assert printed is not None, done.stdout
    answer = f"Action: click({STEPS - 1})<|im_end|>\n"
    assert (printed["inputs"], printed["labels"]) == (first_row_as_read(answer), answer)
    tokens, labels = json.loads(printed["input_ids"]), json.loads(printed["label_ids"])
    trained = sum(label != -100 for label in labels)
    assert labels == [-100] * (len(tokens) - trained) + tokens[-trained:], "the end of the row and nothing else"

    rows = [json.loads(line) for line in (tmp_path / "saves" / "trainer_log.jsonl").read_text().splitlines()]
    assert [row["current_steps"] for row in rows if "loss" in row] == [1, 2]
    assert all(0 < row["loss"] < 8 for row in rows if "loss" in row)
    checkpoint = find_newest_complete(tmp_path / "saves")
    assert checkpoint is not None
    assert checkpoint.step == 2
    assert (tmp_path / "saves" / "processor_config.json").exists(), "the model can be used as it is"


def first_row_as_read(answer: str) -> str:
    """The longest row in the form of the template: an image is as many tokens as its size makes."""
    images = ["<|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|>" for _, _, tokens in SIZES]
    pages = [
        f"<|im_start|>user\nPage {number}: < video> {images[number % 2]} What now?<|im_end|>\n<|im_start|>assistant\n"
        for number in range(STEPS)
    ]
    answers = [f"Action: click({number})<|im_end|>\n" for number in range(STEPS - 1)] + [answer]
    said = "".join(page + reply for page, reply in zip(pages, answers, strict=True))
    return f"<|im_start|>system\nYou are a web agent.<|im_end|>\n{said}"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
