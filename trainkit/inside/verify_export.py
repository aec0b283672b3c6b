"""Verify an exported model: its tensors against the base's, its files, its chat template, and one answer.

Run by path with the trainer's Python; the request is one JSON object on stdin, the report the last line of stdout:

    echo '{"base": "model", "exported": "exported", "template": "qwen"}' | python trainkit/inside/verify_export.py
    {"ok": true, "problems": [], "warnings": [], "tensors": 27, "changed": 14, "largest_change": 0.0031, ...}

Request keys: `exported`; `base` (the model that was trained; without it tensors are only read), `adapter` (explains why
nothing changed), `template` (LLaMA-Factory's name, to compare with the exported chat template), `prompt`,
`max_new_tokens` (16), `trust_remote_code` (false), `device` (cpu). Exit code 0 when `ok`, else 1.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainkit.inside import verify_answer
    from trainkit.inside.verify_answer import Report
else:  # run by path: this folder is what Python looks in first
    import verify_answer
    from verify_answer import Report

ELEMENTS_AT_ONCE = 1 << 22  # 16 MiB in float32: what a comparison needs beside the two tensors
TOKENIZER_MODELS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# Tensors that a saved model may leave out: tied to another one, or computed at load time.
RECOMPUTED = ("lm_head.weight", "rotary_emb.inv_freq", "masked_bias", "attn.bias")


def load_json(path: Path) -> dict[str, Any]:
    """Load a JSON object from a file; raises ValueError when that fails."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {one_line(error)}") from error


def check_files(folder: Path, report: Report) -> None:
    """Check that an exported folder has all that a program needs to load it and to talk with it."""
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            report.problems.append(f"{folder / name} is missing")
    if not any((folder / name).is_file() for name in TOKENIZER_MODELS):
        report.problems.append(f"{folder} has no tokenizer: none of {', '.join(TOKENIZER_MODELS)}")
    tokenizer = folder / "tokenizer_config.json"
    in_config = tokenizer.is_file() and load_json(tokenizer).get("chat_template")
    report.chat_template = bool(in_config) or (folder / "chat_template.jinja").is_file()
    if not report.chat_template:
        report.problems.append(f"{folder} has no chat template")


def check_processor(folder: Path, base: Path | None, report: Report) -> None:
    """Check that a model that sees has what prepares its images; that its base has no such file either is a warning."""
    config = folder / "config.json"
    if not config.is_file() or "vision_config" not in load_json(config) or has_image_processor(folder):
        return
    found = report.warnings if base is not None and not has_image_processor(folder_of(base)) else report.problems
    found.append(f"{folder} has no image processor, neither in preprocessor_config.json nor in processor_config.json")


def has_image_processor(folder: Path) -> bool:
    """Whether there is an image processor: since transformers 5 it is a part of processor_config.json."""
    processor = folder / "processor_config.json"
    in_config = processor.is_file() and "image_processor" in load_json(processor)
    return in_config or (folder / "preprocessor_config.json").is_file()


def find_tensors(folder: Path, stem: str = "model") -> dict[str, Path]:
    """Return the file of each tensor of a model or adapter by name; empty when it is not stored as safetensors.

    Raises:
        ValueError: a file that the index names is missing, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    shards = {single} if single.is_file() else set()
    if index.is_file() and not shards:
        shards = {folder / name for name in load_json(index).get("weight_map", {}).values()}
    tensors = {}
    for shard in sorted(shards):
        try:
            with safe_open(shard, "pt") as file:
                tensors.update(dict.fromkeys(file.keys(), shard))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{shard}: {one_line(error)}") from error
    return tensors


def load_tensor(path: Path, name: str) -> Any:
    """Load one tensor in the type it is stored in."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def largest_difference(tensor: Any, base: Any | None) -> float:
    """Return the largest absolute change from `base`, 0.0 without one, and NaN when `tensor` is not finite.

    `base` is first cast to the type of `tensor`, so that storing in another type is no change; the difference is
    taken in float32, a part of the tensor at a time.
    """
    parts = tensor.flatten().split(ELEMENTS_AT_ONCE)
    base_parts = () if base is None else base.flatten().split(ELEMENTS_AT_ONCE)
    largest = 0.0
    for part, base_part in zip_longest(parts, base_parts):
        values = part.float()
        if not values.isfinite().all():
            return math.nan
        if base_part is not None and len(values):
            largest = max(largest, (values - base_part.to(tensor.dtype).float()).abs().max().item())
    return largest


def check_tensors(exported: Path, base: Path | None, adapter: Path | None, report: Report) -> None:
    """Compare the exported tensors with the base's, one at a time, and count what changed: nothing is a problem."""
    tensors = find_tensors(exported)
    base_tensors = find_base_tensors(base, report)
    if not tensors:
        report.problems.append(f"{exported} has no model.safetensors")
    if base_tensors:
        check_names(set(tensors), set(base_tensors), report)
    dtypes: Counter[str] = Counter()
    for name, path in tensors.items():
        tensor = load_tensor(path, name)
        original = load_tensor(base_tensors[name], name) if name in base_tensors else None
        dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
        check_tensor(name, tensor, original, report)
    report.tensors, report.parameters = len(tensors), dtypes.total()
    report.dtype = dtypes.most_common(1)[0][0] if dtypes else ""
    if base_tensors and tensors and not report.changed:
        report.problems.append(f"no tensor differs from {base}: the export holds no training{explanation(adapter)}")


def find_base_tensors(base: Path | None, report: Report) -> dict[str, Path]:
    """Return the base's tensors by name, or none with a warning when they cannot be compared."""
    if base is None:
        return {}
    tensors = find_tensors(folder_of(base))
    if not tensors:
        report.warnings.append(f"{base} is not a model with safetensors: tensors were not compared")
    return tensors


def folder_of(model: Path) -> Path:
    """Return the folder of a model that may be named as on the hub; the name itself where there is none."""
    return model if model.is_dir() else find_in_cache(model) or model


def find_in_cache(name: Path) -> Path | None:
    """Return the folder where the hub's cache keeps a model of that name, without asking the network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), local_files_only=True))
    except (OSError, ValueError):  # not in the cache; not the form of a hub's name
        return None


def check_names(names: set[str], base_names: set[str], report: Report) -> None:
    """Check that the exported model has the base's tensors and no others."""
    missing = {name for name in base_names - names if not name.endswith(RECOMPUTED)}
    added = {name for name in names - base_names if not name.endswith(RECOMPUTED)}
    for found, words in ((missing, "of the base are missing"), (added, "are not in the base")):
        if found:
            report.problems.append(f"{len(found)} tensors {words}, first {min(found)}")


def check_tensor(name: str, tensor: Any, base: Any | None, report: Report) -> None:
    """Check one tensor: finite values, the base's shape, and whether it changed."""
    if base is not None and tensor.shape != base.shape:
        words = f"{name} has shape {tuple(tensor.shape)}, in the base {tuple(base.shape)}"
        # LLaMA-Factory's resize_vocab adds rows for new tokens, to the embedding and to the head alone.
        resized = name.endswith(("embed_tokens.weight", "lm_head.weight")) and tensor.shape[1:] == base.shape[1:]
        (report.warnings if resized else report.problems).append(words)
        base = None
    change = largest_difference(tensor, base)
    if math.isnan(change):
        report.problems.append(f"{name} holds NaN or infinite values")
    elif change > 0:
        report.changed += 1
        report.largest_change = max(report.largest_change, change)


def explanation(adapter: Path | None) -> str:
    """Return why merging a LoRA adapter changed nothing, when its B matrices tell, else an empty text."""
    tensors = find_tensors(adapter, "adapter_model") if adapter else {}
    names = [name for name in tensors if ".lora_B" in name]
    trained = not names or any(load_tensor(tensors[name], name).any() for name in names)
    return "" if trained else f" (every B matrix of {adapter} is zero: it was never trained)"


def verify(request: Mapping[str, Any]) -> Report:
    """Carry out all checks; a model whose files are incomplete is not loaded.

    Raises:
        ValueError: the exported folder is missing, or a file of it or of the base is damaged.
    """
    report = Report()
    exported = Path(request["exported"])
    base, adapter = (Path(request[key]) if request.get(key) else None for key in ("base", "adapter"))
    if not exported.is_dir():
        raise ValueError(f"{exported} is not a folder")
    check_files(exported, report)
    check_processor(exported, base, report)
    check_tensors(exported, base, adapter, report)
    if not report.problems:
        try:
            verify_answer.check_answer(request, report)
        except Exception as error:  # loading runs foreign code, a model's own among it: it may raise anything
            report.problems.append(f"{exported} does not load and answer: {type(error).__name__}: {one_line(error)}")
    return report


def one_line(error: BaseException) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split())


def keep_stdout_clean() -> TextIO:
    """Send what libraries print to stderr, and return the real stdout for the report."""
    real = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return real


def main() -> int:
    """Answer the request on stdin with one line of JSON on stdout; return the exit code."""
    stdout = keep_stdout_clean()
    try:
        request = json.load(sys.stdin)
        if not isinstance(request, dict) or not request.get("exported"):
            raise ValueError("the request has no exported")
        report = verify(request)
    except ValueError as error:
        report = Report(problems=[one_line(error)])
    print(json.dumps({"ok": not report.problems, **asdict(report)}), file=stdout, flush=True)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
