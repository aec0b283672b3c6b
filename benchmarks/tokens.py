"""Compare counting tokens in trainkit with the tokenizers library's own fastest call; print a Markdown table.

    python benchmarks/tokens.py --megabytes 40 --rounds 5

Both count the same texts on two cores: trainkit in two forked processes, `encode_batch_fast` in two threads. The
tokenizer is of Qwen2's shape with 30,000 tokens, trained on the texts and on Python's standard library. The two take
turns within a round, each in a fresh process that has read texts and tokenizer before its clock starts; the ratio is
taken within the round. The totals must be equal. `peak MB` is the largest single process, its texts included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert import describe_machine

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
VOCABULARY = 30_000
BATCH = 256
CORES = 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TURNS = ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "{}<|im_end|>\n")


def read_texts(path: Path) -> list[str]:
    """Return the turns of the rows in the form in which they are encoded."""
    with path.open("rb") as lines:
        rows = (json.loads(line)["conversations"] for line in lines)
        return [form.format(turn["value"]) for row in rows for form, turn in zip(TURNS, row, strict=True)]


def train_tokenizer(texts: list[str], path: Path) -> None:
    """Train a tokenizer of Qwen2's shape and write it down."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    from trainkit.dataset.bytelevel import QWEN2

    library = Path(os.__file__).parent
    code = [file.read_text(encoding="utf-8", errors="ignore") for file in sorted(library.glob("*/*.py"))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts[: 8 * BATCH] + code, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.save(str(path))


def count_library(texts: list[str], text: str) -> Callable[[], int]:
    """Return the library's own count: batches of 256 texts in two threads."""
    from tokenizers import Tokenizer

    encode = Tokenizer.from_str(text).encode_batch_fast
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    return lambda: sum(len(found) for batch in batches for found in encode(batch, add_special_tokens=False))


def count_trainkit(texts: list[str], text: str) -> Callable[[], int]:
    """Return trainkit's count: each of two processes takes every other text."""
    from tokenizers import Tokenizer as Library

    from trainkit.dataset.bytelevel import convert_tokenizer
    from trainkit.dataset.tokenizer import Tokenizer

    tokenizer = Tokenizer(Library.from_str(text), convert_tokenizer(text))
    context = multiprocessing.get_context("fork")

    def share(index: int, results: Any) -> None:
        total = sum(map(tokenizer.count, texts[index::CORES]))
        results.put((total, tokenizer.doubt, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))

    def count() -> int:
        results = context.SimpleQueue()
        workers = [context.Process(target=share, args=(index, results)) for index in range(CORES)]
        for worker in workers:
            worker.start()
        found = [results.get() for _ in workers]
        for worker in workers:
            worker.join()
        assert not any(doubt for _, doubt, _ in found), found
        return sum(total for total, _, _ in found)

    return count


COUNTS = {"encode_batch_fast": count_library, "trainkit": count_trainkit}


def run_side(name: str, texts_file: Path, tokenizer_file: Path) -> None:
    """Count once and print the total, the seconds and the peak memory in MB: the life of one child process."""
    count = COUNTS[name](read_texts(texts_file), tokenizer_file.read_text(encoding="utf-8"))
    started = time.perf_counter()
    total = count()
    seconds = time.perf_counter() - started
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps([total, seconds, peak / 1024]))


def measure(name: str, texts_file: Path, tokenizer_file: Path) -> tuple[int, float, float]:
    """Return the total, the seconds and the peak memory in MB of one side in a process of its own."""
    command = [sys.executable, __file__, "--side", name, str(texts_file), str(tokenizer_file)]
    env = os.environ | {"RAYON_NUM_THREADS": str(CORES), "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    total, seconds, peak = json.loads(done.stdout)
    return total, seconds, peak


def main() -> None:
    """Make texts and tokenizer, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.side:
        run_side(words.side[0], Path(words.side[1]), Path(words.side[2]))
        return
    runs: dict[str, list[tuple[int, float, float]]] = {name: [] for name in COUNTS}
    with tempfile.TemporaryDirectory() as folder:
        texts_file, tokenizer_file = Path(folder) / "evaluations.jsonl", Path(folder) / "tokenizer.json"
        generate = [
            sys.executable,
            str(HERE / "generate.py"),
            "--megabytes",
            str(words.megabytes),
            "-o",
            str(texts_file),
        ]
        subprocess.run(generate, check=True, stdout=subprocess.DEVNULL)
        texts = read_texts(texts_file)
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        train_tokenizer(texts, tokenizer_file)
        for _ in range(words.rounds):
            for name, found in runs.items():
                found.append(measure(name, texts_file, tokenizer_file))
    totals = {total for found in runs.values() for total, _, _ in found}
    assert len(totals) == 1, totals
    print(f"{megabytes:.1f} MB of text, {totals.pop()} tokens, {words.rounds} rounds; {describe_machine()}\n")
    print("| what | seconds: median (min to max) | MB/s | peak MB | encode_batch_fast / this |")
    print("|---|---|---|---|---|")
    for name, found in runs.items():
        print(row_of(name, found, runs["encode_batch_fast"], megabytes))


def row_of(
    name: str, found: list[tuple[int, float, float]], base: list[tuple[int, float, float]], megabytes: float
) -> str:
    """Return one row of the table; the ratio is the median of the rounds' ratios, with its range."""
    seconds = [run[1] for run in found]
    ratios = [slow[1] / fast[1] for slow, fast in zip(base, found, strict=True)]
    wall = statistics.median(seconds)
    shown = f"{wall:.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
    ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
    return f"| {name} | {shown} | {megabytes / wall:.1f} | {max(run[2] for run in found):.0f} | {ratio} |"


if __name__ == "__main__":
    main()
