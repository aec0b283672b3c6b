"""Asks LLaMA-Factory itself what it makes of rows: its converter, then its processor. Run by test_rows_agreement.py.

Reads {"cases": [{"entry", "stage", "template", "full", "rows", "media_dir"}]} on stdin. Each row is read by Arrow's
JSON reader behind the row `full`, as the `datasets` library would, which gives it null for what it lacks. Prints a list
of lists of {"verdict", "turns", "system", "tools"} as its last line.
"""

import io
import json
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow.json
from llamafactory.data import converter
from llamafactory.data.parser import get_dataset_list
from llamafactory.data.processor import (
    FeedbackDatasetProcessor,
    PairwiseDatasetProcessor,
    PretrainDatasetProcessor,
    SupervisedDatasetProcessor,
    UnsupervisedDatasetProcessor,
)
from llamafactory.data.template import TEMPLATES

PROCESSORS = {
    "sft": SupervisedDatasetProcessor,
    "rm": PairwiseDatasetProcessor,
    "kto": FeedbackDatasetProcessor,
    "ppo": UnsupervisedDatasetProcessor,
    "pt": PretrainDatasetProcessor,
}


class Tokenizer:
    """Enough of a tokenizer: a token for each character."""

    eos_token_id, bos_token_id, eos_token, bos_token = 1, 2, "<e>", "<b>"

    def encode(self, text, add_special_tokens):
        return list(map(ord, text))

    def convert_tokens_to_ids(self, token):
        return 3

    def __call__(self, texts, **options):
        return {"input_ids": [list(map(ord, text)) for text in texts]}


VISION = SimpleNamespace(
    image_processor=lambda images, return_tensors: {"pixel_values": np.zeros((1, 3, 14, 14))},
    patch_size=14,
    num_additional_image_tokens=1,
    vision_feature_select_strategy="default",
)


def main():
    logging.disable(logging.CRITICAL)
    cases = json.load(sys.stdin)["cases"]
    answers = [[verdict(case, row) for row in case["rows"]] for case in cases]
    print(json.dumps(answers))


def verdict(case, row):
    data_args = SimpleNamespace(
        media_dir=case["media_dir"], cutoff_len=100_000, mask_history=False, train_on_prompt=False, packing=False,
        template=case["template"],
    )  # fmt: skip
    processor = PROCESSORS[case["stage"]](
        template=TEMPLATES[case["template"]],
        tokenizer=Tokenizer(),
        processor=VISION if case["template"] == "llava" else None,
        data_args=data_args,
    )
    try:
        table = pyarrow.json.read_json(io.BytesIO(case["full"].encode() + b"\n" + row.encode() + b"\n"))
        attr = get_dataset_list(["x"], {"x": case["entry"]})[0]
        aligned = converter.get_dataset_converter(attr.formatting, attr, data_args)(table.to_pylist()[1])
        kept = processor.preprocess_dataset({key: [value] for key, value in aligned.items()})
    except Exception as error:
        return {"verdict": "fatal", "error": f"{type(error).__name__}: {error}"[:300]}
    if not any(kept.values()):
        return {"verdict": "skipped"}
    messages = wanted(aligned["_prompt"], aligned["_response"], case["stage"])
    turns = [[message["role"], message["content"]] for message in messages]
    if case["stage"] == "pt":
        return {"verdict": "kept", "turns": turns, "system": "", "tools": ""}
    return {"verdict": "kept", "turns": turns, "system": aligned["_system"] or "", "tools": aligned["_tools"] or ""}


def wanted(prompt, response, stage):
    """Return the messages that stand for a row: see trainkit.dataset.rows.align."""
    if stage == "pt":
        return prompt[:1]
    if stage == "ppo" and len(response) != 1:
        return [*prompt, {"role": "assistant", "content": ""}]
    if stage == "kto":
        return [*prompt, response[0] if response[0]["content"] else response[1]]
    return [*prompt, response[0]]


if __name__ == "__main__":
    main()
