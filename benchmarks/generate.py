"""Make evaluations of any size: unique rows, a good part of them not ASCII, the sizes of real ones (about 5.5 kB).

    python benchmarks/generate.py --megabytes 1000 -o evaluations.jsonl

The same arguments give the same bytes, and memory does not grow with the size. The texts are made of the demo's sample.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).parent.parent / "templates" / "demo" / "evaluations.jsonl"
JUDGES = ("deepseek-chat", "kimi-k2-0711-preview", "qwen-max", "judge-8b", "judge-70b-v2.1", "评审-1")
JUDGE_WEIGHTS = (30, 25, 15, 12, 10, 8)
TYPES = ("clip", "category", "final")
TYPE_WEIGHTS = (50, 25, 25)
TOOLS = ("search", "browser", "python", "files", "calendar", "maps")
WORDS = (
    "naïve",
    "北京市",
    "検索結果",
    "Москва",
    "café",
    "“zitiert”",
    "🙂",
    "ε≤0.05",
    "한국어",
    "العربية",
    "½",
    'tab\t"x"',
    "a\\b",
)
ESCAPED = 0.05  # the share of rows written with \\uXXXX, as json.dumps does by default
PROMPT_CHARS, ANSWER_CHARS = 4400, 1000


def read_texts(role: str) -> list[list[str]]:
    """Return the words of each turn of a role in the sample."""
    rows = map(json.loads, SAMPLE.read_text(encoding="utf-8").splitlines())
    return [turn["value"].split(" ") for row in rows for turn in row["conversations"] if turn["from"] == role]


def write_text(rng: random.Random, texts: list[list[str]], num_chars: int) -> str:
    """Return a text of about `num_chars` characters: pieces of the sample, one word in ten replaced."""
    pieces: list[str] = []
    size = 0
    while size < num_chars:
        words = list(rng.choice(texts))
        for _ in range(len(words) // 10):
            words[rng.randrange(len(words))] = rng.choice(WORDS) if rng.random() < 0.3 else f"w{rng.randrange(10**6)}"
        piece = " ".join(words)
        pieces.append(piece)
        size += len(piece)
    return "\n\n".join(pieces)[: int(num_chars * rng.uniform(0.8, 1.2))]


def make_row(rng: random.Random, number: int, prompts: list[list[str]], answers: list[list[str]]) -> dict[str, Any]:
    """Return one evaluation."""
    kind = rng.choices(TYPES, TYPE_WEIGHTS)[0]
    return {
        "conversations": [
            {"from": "human", "value": "\n" + write_text(rng, prompts, PROMPT_CHARS)},
            {"from": "gpt", "value": write_text(rng, answers, ANSWER_CHARS)},
        ],
        "metadata": {
            "model_name": rng.choices(JUDGES, JUDGE_WEIGHTS)[0],
            "provider": "generic",
            "task_id": f"任务_{rng.randrange(200_000)}" if rng.random() < 0.2 else f"task_{rng.randrange(200_000)}",
            "evaluation_type": kind,
            "clip_number": number % 20 if kind == "clip" else None,
            "category": rng.choice(TOOLS) if kind == "category" else "final" if kind == "final" else None,
            "timestamp": f"2025-08-{number % 28 + 1:02} {number % 24:02}:{number % 60:02}:07",
        },
    }


def main() -> None:
    """Write rows until the file has the wanted size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, required=True, help="size in 10^6 bytes")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    rng = random.Random(words.seed)
    prompts, answers = read_texts("human"), read_texts("gpt")
    size = number = 0
    with words.output.open("wb") as file:
        while size < words.megabytes * 1e6:
            row = make_row(rng, number, prompts, answers)
            size += file.write(json.dumps(row, ensure_ascii=rng.random() < ESCAPED).encode() + b"\n")
            number += 1
    print(f"{number} rows, {size} bytes")


if __name__ == "__main__":
    main()
