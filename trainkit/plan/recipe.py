"""How a model is trained, in the words of the memory and speed models: one record, made from the trainer's keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Method = Literal["lora", "full", "qlora"]
Stage = Literal["pt", "sft", "rm", "dpo", "kto"]
Optimizer = Literal["adamw", "adamw_8bit", "paged"]
# What decides how many bytes an activation has: what is trained, and whether autocast keeps fp32 beside bf16.
Precision = Literal["lora_autocast", "lora_bf16", "full_autocast", "full_bf16"]

PAIRED_STAGES = ("rm", "dpo")
FUSED_LOSS_STAGES = ("pt", "sft")


@dataclass(frozen=True, slots=True)
class Setup:
    """What is trained on one GPU: `Setup("lora", micro_batch=2, seq_tokens=4096, rank=64)`.

    Attributes:
        micro_batch: rows of one forward pass on one GPU; for rm and dpo pairs of rows.
        seq_tokens: length to which the longest batch is padded.
        lora_targets: names of linear layers, or "all".
        checkpointing: each layer is computed again in the backward pass, LLaMA-Factory's default.
        packing: a row holds several examples; with `masked` it is neat_packing through sdpa, whose mask is bf16.
        masked: attention gets a mask, which takes sdpa off its flash kernel.
        zero_stage: None is no DeepSpeed: weights that train are fp32, the pass runs under autocast.
        world: data-parallel ranks.
        accumulation: micro batches of one optimizer step; above 1 gradients are alive in the forward pass.
        hopper: compute capability 9.0 or newer, where cuBLAS takes a larger workspace.
        expandable_segments: PYTORCH_CUDA_ALLOC_CONF lets the allocator's segments grow.
    """

    method: Method = "lora"
    stage: Stage = "sft"
    micro_batch: int = 1
    seq_tokens: int = 2048
    rank: int = 8
    lora_targets: str | tuple[str, ...] = "all"
    dropout: float = 0.0
    checkpointing: bool = True
    liger: bool = False
    packing: bool = False
    masked: bool = False
    zero_stage: int | None = None
    offload_optimizer: bool = False
    offload_params: bool = False
    world: int = 1
    pure_bf16: bool = False
    accumulation: int = 1
    optimizer: Optimizer = "adamw"
    hopper: bool = False
    expandable_segments: bool = True

    @property
    def rows(self) -> int:
        """Rows of one forward pass: preferences come in pairs."""
        return self.micro_batch * (2 if self.stage in PAIRED_STAGES else 1)

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass, padding included."""
        return self.rows * self.seq_tokens

    @property
    def autocast(self) -> bool:
        """Whether trained weights are fp32 and matrix products run in bf16 through autocast."""
        return self.zero_stage is None and not self.pure_bf16

    @property
    def precision(self) -> Precision:
        """Which tensors are fp32."""
        if self.method == "full":
            return "full_autocast" if self.autocast else "full_bf16"
        return "lora_autocast" if self.autocast else "lora_bf16"

    @property
    def fused_loss(self) -> bool:
        """Whether liger's loss never holds all logits: LLaMA-Factory leaves it out where a stage needs them."""
        return self.liger and self.stage in FUSED_LOSS_STAGES
