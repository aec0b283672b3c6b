"""The plain way to convert, to compare with: load every row, then write each variant as an indented JSON array.

python benchmarks/plain_convert.py evaluations.jsonl OUTPUT_FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

WORDS = {"evaluation_type": "EVAL_TYPE", "model_name": "MODEL", "task_id": "TASK", "category": "CATEGORY"}


def convert(row: dict[str, Any]) -> dict[str, Any]:
    """Return the training row of an evaluation."""
    metadata = row["metadata"]
    prefix = "".join(f"[{word}: {metadata[key]}] " for key, word in WORDS.items() if metadata.get(key))
    question, answer = (turn["value"] for turn in row["conversations"][:2])
    return {"instruction": prefix + question, "output": answer, "metadata": metadata}


def main() -> None:
    """Write the full variant, one per type and one per judge."""
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with source.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    variants = {"full": rows}
    for key in ("evaluation_type", "model_name"):
        for value in sorted({row["metadata"][key] for row in rows}):
            variants[value.replace("-", "_")] = [row for row in rows if row["metadata"][key] == value]
    for name, chosen in variants.items():
        with (folder / f"reward_model_{name}.json").open("w", encoding="utf-8") as file:
            json.dump([convert(row) for row in chosen], file, ensure_ascii=False, indent=2)
    info = {f"reward_model_{name}": {"file_name": f"reward_model_{name}.json"} for name in variants}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
