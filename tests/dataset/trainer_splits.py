"""Asks the `datasets` library which rows split expressions take. Run by test_reader.py.

Reads {"folder", "specs": [[spec, num_rows]], "loads": [[path, spec]]} on stdin. Prints, as its last line, the ranges of
each spec (null where the library refuses it), and for each load the numbers in the rows' column `n` (null likewise).
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import datasets
from datasets.arrow_reader import ReadInstruction

KINDS = {"csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet"}


def ranges(spec, num_rows):
    try:
        found = ReadInstruction.from_spec(spec).to_absolute({"train": num_rows})
    except Exception:
        return None
    return None if any(each.from_ > each.to for each in found) else [[each.from_, each.to] for each in found]


def load(path, spec, cache):
    # as the trainer lists a folder
    files = [str(path / name) for name in os.listdir(path)] if path.is_dir() else [str(path)]  # noqa: PTH208
    try:
        kind = KINDS[files[0].rpartition(".")[2]]
        return datasets.load_dataset(kind, data_files=files, split=spec, cache_dir=str(cache))["n"][:]
    except Exception:
        return None


def main():
    asked = json.load(sys.stdin)
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    folder = Path(asked["folder"])
    answer = {
        "ranges": [ranges(*each) for each in asked["specs"]],
        "loads": [load(folder / path, spec, folder / "cache") for path, spec in asked["loads"]],
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
