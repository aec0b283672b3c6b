"""What the end of the forward pass and the loss hold: logits above all.

Coefficients were read off allocation traces (inside/memory_trace.py) of the losses of transformers 5.6 and of
llamafactory/train/{sft,rm,dpo,kto}/trainer.py 0.9.5; liger's are the buffers of liger_kernel/ops 0.8.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from trainkit.plan.architecture import Architecture
    from trainkit.plan.recipe import Precision, Setup


class Logits(NamedTuple):
    """Bytes for each token and entry of the vocabulary, where the forward pass ends and where the backward pass starts.

    Supervised: bf16 logits, their fp32 copy and log-softmax; then log-softmax and two gradients. A reward model's
    logits get the same loss, which nobody uses. DPO keeps the policy's fp32 logits and log-softmax while the reference
    model makes its own; KTO besides runs the reference twice, and was read off the trainer's code, not traced.
    """

    forward: int
    backward: int


LOGITS = {
    "pt": Logits(10, 12),
    "sft": Logits(10, 12),
    "rm": Logits(10, 0),
    "dpo": Logits(16, 16),
    "kto": Logits(20, 16),
}

SOFTCAP = 2  # the tanh of gemma2's logits is kept


class Final(NamedTuple):
    """Bytes for each token and unit of the hidden states behind the last layer.

    `forward` and `backward` at the two ends of the loss, the second figure of each without checkpointing; `fused` with
    liger's loss; `head` for a reward model's value head; `fused_weights` and `weights` for each weight of the head.
    """

    forward: tuple[int, int]
    backward: tuple[int, int]
    fused: tuple[int, int]
    head: int
    weights: int = 0
    fused_weights: int = 0


FINAL: dict[Precision, Final] = {
    "lora_autocast": Final((6, 2), (4, 0), (6, 4), 5),
    "lora_bf16": Final((6, 2), (4, 0), (6, 4), 3),
    "full_autocast": Final((14, 14), (10, 10), (12, 12), 7, 2, 8),
    "full_bf16": Final((8, 8), (8, 8), (6, 6), 3, 0, 2),
}


class Loss(NamedTuple):
    """The logits and the states behind the last layer at one moment, in bytes."""

    phase: str
    logits: int
    logits_why: str
    states: int


def losses_of(model: Architecture, setup: Setup) -> list[Loss]:
    """Return the moments of the loss that can be the peak, without what the layers keep."""
    final, index = FINAL[setup.precision], 0 if setup.checkpointing else 1
    if setup.fused_loss:
        return [_fused(model, setup, final.fused[index], final.fused_weights)]
    hidden, head = model.hidden * setup.tokens, model.embedding_params
    width = LOGITS[setup.stage]
    softcap = SOFTCAP if model.softcap else 0
    value_head = final.head * hidden if setup.stage == "rm" else 0
    forward = final.forward[index] * hidden + value_head + final.weights * head
    backward = final.backward[index] * hidden + final.weights * head
    moments = [
        Loss("forward, loss", *_logits(model, setup, width.forward + softcap), forward),
        Loss("backward, loss", *_logits(model, setup, width.backward and width.backward + softcap), backward),
    ]
    if setup.method == "full" and setup.stage != "rm":
        moments.append(_head_gradient(model, setup, final.backward[index]))
    return moments


def _logits(model: Architecture, setup: Setup, width: int) -> tuple[int, str]:
    why = f"{width} bytes x {model.vocab:,} vocabulary x {setup.tokens:,} tokens" if width else ""
    return width * model.vocab * setup.tokens, why


def _head_gradient(model: Architecture, setup: Setup, hidden: int) -> Loss:
    """Return the moment in which the head's gradient is made: its weight in bf16 and the gradient, in fp32 as well."""
    if setup.autocast:
        return Loss("backward, loss", 0, "", (hidden + 2) * model.hidden * setup.tokens + 6 * model.embedding_params)
    states = (hidden + 2) * model.hidden * setup.tokens + 2 * model.embedding_params
    return Loss("backward, loss", *_logits(model, setup, 2), states)


def _fused(model: Architecture, setup: Setup, hidden: int, weights: int) -> Loss:
    """Return liger's loss: chunks of logits about as large as the hidden states, and the gradients it makes at once."""
    chunk = chunk_tokens(setup.tokens, model.hidden, model.vocab)
    size = 2 * chunk * model.vocab
    if setup.precision == "full_autocast":
        size += 2 * chunk * model.hidden
    states = hidden * model.hidden * setup.tokens + weights * model.embedding_params
    return Loss("forward, loss", size, f"2 bytes x {model.vocab:,} vocabulary x {chunk:,} tokens of a chunk", states)


def chunk_tokens(tokens: int, hidden: int, vocab: int) -> int:
    """Return the tokens of a chunk of liger's loss: the power of two at or above tokens / ceil(vocab / hidden)."""
    parts = -(-vocab // hidden)
    return min(tokens, 1 << max(0, (-(-tokens // parts) - 1).bit_length()))
