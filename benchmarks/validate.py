"""Compare the whole `trainkit validate` with the tokenizers library, which only counts; print a Markdown table.

    python benchmarks/validate.py --megabytes 100 --rounds 3

The data is converted once. In each round: `encode_batch_fast` in two threads over the same turns in the same template
(reading the rows and loading the tokenizer included, nothing else); `trainkit validate` with the tokenizer's form known
and no look kept: start-up, every row read, aligned, simulated, hashed, its verdict read; and again with the look kept,
as `train` after it. The model is the demo's tiny one with a tokenizer of Qwen2's shape of 30,000 tokens. `peak MB` is
the largest single process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from convert import Measured, describe_machine, measure

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
COUNT = """
import json, sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file("model/tokenizer.json")
head = "<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n"
total = 0
for name in sys.argv[1:]:
    texts = []
    for line in open(name, "rb"):
        turns = json.loads(line)["conversations"]
        texts.append(f"{head}<|im_start|>user\\n{turns[0]['value']}<|im_end|>\\n<|im_start|>assistant\\n")
        texts.append(turns[1]["value"] + "<|im_end|>\\n")
        if len(texts) >= 256:
            total += sum(map(len, tokenizer.encode_batch_fast(texts, add_special_tokens=False)))
            texts.clear()
    total += sum(map(len, tokenizer.encode_batch_fast(texts, add_special_tokens=False)))
print(total)
"""
# In a process of its own, so that what it needs does not count as the peak of the others.
TRAIN = """
import itertools, json, sys
from pathlib import Path
from tokens import train_tokenizer
with open(sys.argv[1], "rb") as lines:
    rows = [json.loads(line) for line in itertools.islice(lines, 4000)]
train_tokenizer([turn["value"] for row in rows for turn in row["conversations"]], Path(sys.argv[2]))
"""


def prepare(folder: Path, megabytes: float) -> list[str]:
    """Make a model, data and configuration; return the files of rows."""
    rows = folder / "finetune.jsonl"
    run = {"check": True, "cwd": folder, "stdout": subprocess.DEVNULL}
    subprocess.run([str(BIN / "trainkit"), "init", ".", "--demo"], **run)  # type: ignore[call-overload]
    generate = [sys.executable, str(HERE / "generate.py"), "--megabytes", str(megabytes), "-o", str(rows)]
    subprocess.run(generate, **run)  # type: ignore[call-overload]
    subprocess.run([str(BIN / "trainkit"), "convert", str(rows), "--split-eval"], **run)  # type: ignore[call-overload]
    subprocess.run(
        [sys.executable, "-c", TRAIN, str(rows), str(folder / "model" / "tokenizer.json")], check=True, cwd=HERE
    )
    return [str(path) for path in sorted(folder.glob("data/*/*.jsonl")) if path.name in ("train.jsonl", "eval.jsonl")]


def main() -> None:
    """Prepare, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    words = parser.parse_args()
    runs: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = prepare(folder, words.megabytes)
        os.chdir(folder)
        os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "RAYON_NUM_THREADS": "2"}
        validate = [str(BIN / "trainkit"), "validate", "--json", "cutoff_len=4096"]
        report = json.loads(subprocess.run(validate, check=True, capture_output=True).stdout)
        counted = int(subprocess.run([sys.executable, "-c", COUNT, *files], check=True, capture_output=True).stdout)
        found = sum(each["full_tokens"] for each in report["data"].values())
        if counted != found:
            raise SystemExit(f"the totals differ: {counted} of the library, {found} of validate")
        for _ in range(words.rounds):
            runs.setdefault("encode_batch_fast", []).append(measure([sys.executable, "-c", COUNT, *files]))
            shutil.rmtree(folder / "cache" / "trainkit" / "looks")
            runs.setdefault("trainkit validate", []).append(measure(validate))
            runs.setdefault("trainkit validate, again", []).append(measure(validate))
        os.chdir(HERE)
    print(f"{words.megabytes:g} MB, {found:,} tokens, {words.rounds} rounds; {describe_machine()}\n")
    print("| what | seconds: median (min to max) | cpu s | peak MB | MB/s | encode_batch_fast / this |")
    print("|---|---|---|---|---|---|")
    for what, measured in runs.items():
        print(row_of(what, measured, runs["encode_batch_fast"], words.megabytes))


def row_of(what: str, measured: list[Measured], peer: list[Measured], megabytes: float) -> str:
    """Return one row of the table; ratios are the median of the rounds' ratios."""
    walls = [run.wall for run in measured]
    wall = statistics.median(walls)
    ratio = statistics.median(other.wall / run.wall for other, run in zip(peer, measured, strict=True))
    cpu, peak = statistics.median(run.cpu for run in measured), max(run.peak for run in measured)
    shown = f"{wall:.2f} ({min(walls):.2f} to {max(walls):.2f})"
    return f"| {what} | {shown} | {cpu:.2f} | {peak:.0f} | {megabytes / wall:.0f} | {ratio:.2f} |"


if __name__ == "__main__":
    main()
