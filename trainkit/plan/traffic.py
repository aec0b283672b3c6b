"""Memory traffic of a model's small kernels: norms, rotations, activations, residuals, copies, the loss.

The figures were counted by running the model classes of transformers 5.6 and PEFT 0.18 on fake tensors of twelve random
sizes each, without checkpointing, and solving for the bytes per unit of each size; they reproduce the traces to 0.2 %.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of memory traffic of everything but matrix products and attention, and the kernels that cause it.

    `forward` and `backward` hold bytes per token and layer for each unit of (hidden size, query width, key width,
    intermediate size); `per_weight` bytes per trained weight; `logits` bytes per token and vocabulary entry;
    `kernels` those of a layer, forward and backward, matrix products included.
    """

    forward: tuple[float, float, float, float]
    backward: tuple[float, float, float, float]
    per_weight: tuple[float, float]
    logits: tuple[float, float]
    kernels: tuple[int, int]


TRAFFIC = {
    # (LoRA, 16-bit engine, dropout): without DeepSpeed the trainer's autocast copies between fp32 and bf16
    (True, False, False): Traffic((164, 42, 40, 42), (304, 54, 40, 44), (6, 18), (20, 22), (94, 144)),
    (True, False, True): Traffic((208, 51, 40, 51), (348, 63, 40, 53), (6, 18), (20, 22), (101, 151)),
    (True, True, False): Traffic((104, 30, 40, 30), (244, 42, 40, 32), (0, 6), (14, 22), (66, 116)),
    (True, True, True): Traffic((129, 35, 41, 35), (269, 47, 41, 37), (0, 6), (14, 22), (73, 123)),
    (False, False, False): Traffic((105, 37, 39, 10), (293, 59, 61, 18), (6, 18), (20, 22), (48, 96)),
    (False, True, False): Traffic((84, 20, 21, 10), (222, 32, 33, 18), (0, 6), (14, 22), (38, 80)),
}
# What liger changes: chains of small kernels for norm, rotation and activation go, fused ones come (counted by their
# buffers). Full training under autocast has its hidden states in fp32.
LIGER = Traffic((-64, -16, -16, -4), (-164, -28, -28, -8), (0, 0), (0, 0), (-24, -43))
LIGER_FP32 = Traffic((-39, -33, -35, -4), (-167, -56, -55, -8), (0, 0), (0, 0), (-22, -47))
