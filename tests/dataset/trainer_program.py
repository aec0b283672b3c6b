"""Encode rows with LLaMA-Factory's own processor, and print the form of each case: run by test_agreement.py.

stdin: {"folder": "...", "program": ".../chat_form.py", "cases": [{"tokenizer": "qwen2", "keys": {...}}],
"refused": [{"template": "no_such"}], "rows": [{"turns": [["user", "hi"], ...], "system": "", "tools": ""}],
"cutoffs": [16]}. The answer goes to folder/answer.json: for each case its form and, for each row and cutoff,
[input_ids, labels] or the name of the error; for each of the keys to be refused, in what words.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from tiny_tokenizers import MAKERS, NAMED


def save_tokenizer(name: str, folder: Path) -> Path:
    from transformers import PreTrainedTokenizerFast

    bos, eos, pad = NAMED[name]
    PreTrainedTokenizerFast(
        tokenizer_object=MAKERS[name](), bos_token=bos, eos_token=eos, pad_token=pad, model_max_length=8192
    ).save_pretrained(folder / name)
    return folder / name


def run_case(keys: dict[str, Any], chat_form: Any, rows: list[dict[str, Any]], cutoffs: list[int]) -> dict[str, Any]:
    from llamafactory.data.processor import SupervisedDatasetProcessor
    from llamafactory.data.template import TEMPLATES, get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from llamafactory.model import load_tokenizer

    original = copy.deepcopy(TEMPLATES[keys["template"]])  # the trainer writes the keys into its table
    form = chat_form.describe(keys)
    data_args = DataArguments(**chat_form.arguments_of(DataArguments, keys))
    tokenizer = load_tokenizer(ModelArguments(**chat_form.arguments_of(ModelArguments, keys)))["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    processor = SupervisedDatasetProcessor(template, tokenizer, None, data_args)
    encoded = []
    for row in rows:
        for cutoff_len in cutoffs:
            data_args.cutoff_len = cutoff_len
            encoded.append(encode(processor, row))
    TEMPLATES[keys["template"]] = original
    return {"form": form, "encoded": encoded}


def encode(processor: Any, row: dict[str, Any]) -> Any:
    messages = [{"role": role, "content": content} for role, content in row["turns"]]
    try:
        return processor._encode_data_example(messages[:-1], messages[-1:], row["system"], row["tools"], [], [], [])
    except Exception as error:
        return type(error).__name__


def refusal(keys: dict[str, Any], chat_form: Any) -> str:
    try:
        chat_form.describe(keys)
    except chat_form.NoForm as error:
        return str(error)
    return "not refused"


def main() -> None:
    sys.argv = sys.argv[:1]
    request = json.load(sys.stdin)
    spec = importlib.util.spec_from_file_location("chat_form", request["program"])
    chat_form = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(chat_form)  # type: ignore[union-attr]
    folder = Path(request["folder"])
    folders = {name: save_tokenizer(name, folder) for name in {case["tokenizer"] for case in request["cases"]}}
    answers = [
        run_case(
            {"model_name_or_path": str(folders[case["tokenizer"]]), **case["keys"]},
            chat_form,
            request["rows"],
            request["cutoffs"],
        )
        for case in request["cases"]
    ]
    refused = [refusal({"model_name_or_path": str(folders["qwen2"]), **keys}, chat_form) for keys in request["refused"]]
    (folder / "answer.json").write_text(json.dumps({"cases": answers, "refused": refused}))


if __name__ == "__main__":
    main()
