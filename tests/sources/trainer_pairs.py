"""Asks LLaMA-Factory itself what it makes of preference rows: its loader of JSON lines, then its converter.

Run by test_scored_pairs.py. Reads [{"entry": {...}, "rows": [...]}, ...] on stdin; prints, as its last line, for each
of them a list with each row's prompt and response as [role, content], its system text and tools.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from datasets import load_dataset
from llamafactory.data.converter import get_dataset_converter
from llamafactory.data.parser import get_dataset_list


def main():
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        answers = [answer(request["entry"], request["rows"], Path(folder)) for request in json.load(sys.stdin)]
    print(json.dumps(answers))


def answer(entry, rows, folder):
    path = folder / f"{len(entry['columns'])}{entry.get('ranking')}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    attr = get_dataset_list(["x"], {"x": entry})[0]
    convert = get_dataset_converter("sharegpt", attr, SimpleNamespace(media_dir=""))
    loaded = load_dataset("json", data_files=[str(path)], split="train", cache_dir=str(folder / "cache"))
    return [said(convert(row)) for row in loaded]


def said(aligned):
    prompt, response = ([[turn["role"], turn["content"]] for turn in aligned[key]] for key in ("_prompt", "_response"))
    return {"prompt": prompt, "response": response, "system": aligned["_system"], "tools": aligned["_tools"]}


if __name__ == "__main__":
    main()
