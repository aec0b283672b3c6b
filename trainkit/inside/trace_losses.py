"""The forward pass of each training stage, with the tensors that LLaMA-Factory's trainers keep while it runs.

Part of memory_trace.py and probe.py. Sources: llamafactory/train/{sft,rm,dpo}/trainer.py 0.9.5 and accelerate's mixed
precision.
"""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainkit.inside.trace_model import Setup


def forward(model: Any, reference: Any, batch: Mapping[str, Any], setup: Setup) -> Any:
    """Return the loss of one micro-batch, all of its graph behind it."""
    if setup.stage == "dpo":
        return preference_loss(model, reference, batch, setup)
    output = called(model, batch, setup)
    if setup.stage == "rm":
        return reward_loss(output[2])
    return output["loss"]


def called(model: Any, inputs: Mapping[str, Any], setup: Setup) -> Any:
    """Return the model's output; accelerate's autocast also turns every part of it into fp32."""
    import torch

    if not setup.autocast:
        return model(**inputs)
    operations: Any = importlib.import_module("accelerate.utils.operations")
    with torch.autocast(inputs["input_ids"].device.type, dtype=torch.bfloat16):
        output = model(**inputs)
    return operations.convert_to_fp32(output)


def reward_loss(values: Any) -> Any:
    """Return the pairwise loss of the rewards at the last tokens: chosen rows first, then rejected ones."""
    import torch

    chosen, rejected = values[:, -1].chunk(2)
    return -torch.nn.functional.logsigmoid(chosen.float() - rejected.float()).mean()


def preference_loss(model: Any, reference: Any, batch: Mapping[str, Any], setup: Setup) -> Any:
    """Return DPO's loss; the policy's logits stay alive while the reference model runs."""
    import torch

    policy_sums, policy_logits = log_probabilities(model, batch, setup)
    with torch.no_grad(), nullcontext() if reference is not None else model.disable_adapter():
        reference_sums = log_probabilities(model if reference is None else reference, batch, setup)[0]
    chosen, rejected = (policy_sums - reference_sums).chunk(2)
    del policy_logits
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean()


def log_probabilities(model: Any, batch: Mapping[str, Any], setup: Setup) -> tuple[Any, Any]:
    """Return (sum of the labels' log probabilities of each row, all logits in fp32)."""
    import torch

    batch = {name: tensor.detach().clone() for name, tensor in batch.items()}
    labels = batch.pop("labels")[:, 1:].clone()
    logits = called(model, batch, setup)["logits"].to(torch.float32)
    mask = labels != -100
    chosen = torch.gather(logits[:, :-1].log_softmax(-1), dim=2, index=labels.unsqueeze(2)).squeeze(2)
    return (chosen * mask).sum(-1), logits
