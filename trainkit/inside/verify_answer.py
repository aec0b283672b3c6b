"""What an exported model says: loaded as any program would, it answers a prompt in the form of its training."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

PROBE = (
    {"role": "user", "content": 'How reasonable is step 1? {"name": "search"}\nÄ 世界'},
    {"role": "assistant", "content": '{"reasonableness_score": 0.85}'},
    {"role": "user", "content": "And step 2?"},
)


@dataclass
class Report:
    """What was found. A problem makes the export unusable; a warning is worth a look."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tensors: int = 0
    changed: int = 0
    largest_change: float = 0.0
    parameters: int = 0
    dtype: str = ""
    answer: str = ""
    chat_template: bool = False


def check_answer(request: Mapping[str, Any], report: Report) -> None:
    """Load the exported model as any program would, and let it answer one prompt by greedy decoding."""
    from transformers import AutoConfig, AutoTokenizer

    folder, trust = request["exported"], request.get("trust_remote_code", False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    device = request.get("device", "cpu")
    auto_class = find_class(AutoConfig.from_pretrained(folder, trust_remote_code=trust))
    model, loading = auto_class.from_pretrained(
        folder, trust_remote_code=trust, dtype="auto", device_map=device, output_loading_info=True
    )
    if missing := sorted(loading["missing_keys"]):
        report.problems.append(f"{len(missing)} weights were not in the files and loaded as random, first {missing[0]}")
    if report.chat_template:
        generate(model, tokenizer, request, report)
        if request.get("template"):
            compare_templates(tokenizer, request["template"], report)


def find_class(config: Any) -> Any:
    """Return the class that a model of that configuration is loaded with, as LLaMA-Factory's model/loader.py does."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    for auto_class in (AutoModelForImageTextToText, AutoModelForSeq2SeqLM):
        if type(config) in auto_class._model_mapping:
            return auto_class
    return AutoModelForCausalLM


def generate(model: Any, tokenizer: Any, request: Mapping[str, Any], report: Report) -> None:
    """Check the logits and the text of an answer to the request's prompt."""
    import torch

    messages = [{"role": "user", "content": request.get("prompt") or PROBE[0]["content"]}]
    form = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    inputs = tokenizer.apply_chat_template(messages, **form).to(model.device)
    length = {"max_new_tokens": request.get("max_new_tokens", 16), "do_sample": False}
    with torch.inference_mode():
        output = model.generate(**inputs, **length, output_logits=True, return_dict_in_generate=True)
    if not all(logits.isfinite().all() for logits in output.logits):
        report.problems.append("the model computes NaN or infinite logits")
    report.answer = tokenizer.decode(output.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    if not report.answer.strip():
        report.warnings.append("the answer to the prompt is empty")


def compare_templates(tokenizer: Any, name: str, report: Report) -> None:
    """Warn when the chat template and LLaMA-Factory's template of that name see a conversation differently."""
    from llamafactory.data.template import TEMPLATES

    if name not in TEMPLATES:
        report.problems.append(f"LLaMA-Factory has no template {name}")
        return
    messages = list(PROBE)
    served = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    trained, _ = TEMPLATES[name].encode_oneturn(tokenizer, [*messages, {"role": "assistant", "content": ""}])
    if served != trained:
        at = next(i for i, (ours, theirs) in enumerate(zip_longest(served, trained)) if ours != theirs)
        report.warnings.append(
            f"the chat template differs from LLaMA-Factory's {name} template after {at} tokens of a probe: "
            f"{tokenizer.decode(served[at : at + 8])!r} instead of {tokenizer.decode(trained[at : at + 8])!r}"
        )
