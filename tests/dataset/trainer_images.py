"""Encode rows with images with LLaMA-Factory's own processor, and print the forms: run by test_image_agreement.py.

stdin: {"folder": "...", "program": ".../chat_form.py", "cases": [{"family": "qwen3_vl", "keys": {...}}], "rows":
[{"turns": [["user", "<image>"], ...], "system": "", "images": ["/shots/1.png"]}], "cutoffs": [64]}. The answer goes to
folder/answer.json: for each case its form and, for each row and cutoff, [input_ids, labels] or what the trainer says.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import tiny_vision_model as tiny


def save_model(family: str, folder: Path) -> Path:
    """Save a tokenizer and a processor with the settings of a family's published models."""
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = tiny.make_tokenizer()
    if family == "qwen3_vl":
        pixels = {"min_pixels": 65536, "max_pixels": 16777216, "patch_size": 16}
        kind, video = Qwen3VLProcessor, Qwen3VLVideoProcessor()
    else:
        pixels = {"min_pixels": 3136, "max_pixels": 12845056}
        kind, video = Qwen2_5_VLProcessor, Qwen2VLVideoProcessor()
    processor = kind(image_processor=Qwen2VLImageProcessor(**pixels), tokenizer=tokenizer, video_processor=video)
    processor.save_pretrained(folder / family)
    return folder / family


def run_case(keys: dict[str, Any], chat_form: Any, rows: list[dict[str, Any]], cutoffs: list[int]) -> dict[str, Any]:
    from llamafactory.data.processor import SupervisedDatasetProcessor
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from llamafactory.model import load_tokenizer

    form = chat_form.describe(keys)
    data_args = DataArguments(**chat_form.arguments_of(DataArguments, keys))
    module = load_tokenizer(ModelArguments(**chat_form.arguments_of(ModelArguments, keys)))
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    processor = SupervisedDatasetProcessor(template, module["tokenizer"], module["processor"], data_args)
    encoded = []
    for row in rows:
        for cutoff_len in cutoffs:
            data_args.cutoff_len = cutoff_len
            encoded.append(encode(processor, row))
    return {"form": form, "encoded": encoded}


def encode(processor: Any, row: dict[str, Any]) -> Any:
    messages = [{"role": role, "content": content} for role, content in row["turns"]]
    system, images = row["system"], row["images"]
    try:
        return processor._encode_data_example(messages[:-1], messages[-1:], system, "", images, [], [])
    except Exception as error:
        return str(error)


def main() -> None:
    sys.argv = sys.argv[:1]
    request = json.load(sys.stdin)
    spec = importlib.util.spec_from_file_location("chat_form", request["program"])
    chat_form = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(chat_form)  # type: ignore[union-attr]
    folder = Path(request["folder"])
    folders = {family: save_model(family, folder) for family in {case["family"] for case in request["cases"]}}
    answers = [
        run_case(
            {"model_name_or_path": str(folders[case["family"]]), **case["keys"]},
            chat_form,
            request["rows"],
            request["cutoffs"],
        )
        for case in request["cases"]
    ]
    (folder / "answer.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
