"""What a GPU holds before the first token: weights, gradients, optimizer states and communication buffers.

Sources: llamafactory/model/adapter.py 0.9.5 (which weights become fp32), torch's and bitsandbytes' optimizers,
DeepSpeed 0.19's bf16 engine, and templates/deepspeed/*.json for the sizes of its buckets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from trainkit.plan.architecture import Architecture
    from trainkit.plan.recipe import Setup

BUCKET_ELEMENTS = 500_000_000  # reduce_bucket_size of ds_z2.json
LIVE_ELEMENTS = 1_000_000_000  # stage3_max_live_parameters and sub_group_size of ds_z3.json
# nf4 has half a byte for a weight, a byte for the scale of each 64, and an fp32 number for each 256 of those.
NF4_BYTES = 0.5 + 1 / 64 + 4 / 64 / 256


class Part(NamedTuple):
    """A share of the memory: bytes, and the formula in words with its numbers."""

    size: int
    why: str


NOTHING = Part(0, "")


class States(NamedTuple):
    """Memory of one GPU that does not depend on the batch, in bytes.

    `step` is what the optimizer step needs for a moment; `gradient_bytes` the bytes of one gradient.
    """

    weights: Part
    gradients: Part
    optimizer: Part
    buffers: Part
    step: Part
    gradient_bytes: int


def states_of(model: Architecture, setup: Setup) -> States:
    """Return weights, gradients, optimizer states and buffers of one GPU."""
    trained = model.params if setup.method == "full" else model.lora_params(setup.rank, setup.lora_targets)
    width = 4 if setup.autocast else 2
    shards = setup.world if setup.zero_stage is not None else 1
    return States(
        weights=_weights(model, setup, trained, width),
        gradients=_gradients(setup, trained, width, shards),
        optimizer=_optimizer(setup, trained, shards),
        buffers=_buffers(model, setup, trained, width),
        step=_step(setup, trained, shards),
        gradient_bytes=width,
    )


def _weights(model: Architecture, setup: Setup, trained: int, width: int) -> Part:
    frozen_bytes = model.dtype_bytes if setup.zero_stage is None else 2
    tower = frozen_bytes * model.tower_params
    if setup.method == "full":
        size, why = width * trained, f"{width} bytes x {trained:,} weights"
        if setup.stage in ("dpo", "kto"):
            size, why = size + frozen_bytes * model.params, f"{why}, and the reference model"
    elif setup.method == "qlora":
        packed = model.layers * model.linear_params
        rest = model.params - packed
        size = round(NF4_BYTES * packed) + frozen_bytes * rest + width * trained
        why = f"{NF4_BYTES:.2f} bytes x {packed:,} weights in nf4 + {frozen_bytes} x {rest:,} others"
    else:
        size = frozen_bytes * model.params + width * trained
        why = f"{frozen_bytes} bytes x {model.params:,} frozen weights + {width} x {trained:,} of the adapter"
    return _sharded_weights(model, setup, Part(size + tower, why))


def _sharded_weights(model: Architecture, setup: Setup, whole: Part) -> Part:
    """Return the weights that ZeRO-3 leaves on a GPU: its shard, and what is gathered for the layers at work."""
    if setup.zero_stage != 3:
        return whole
    working = 2 * min(LIVE_ELEMENTS, 2 * model.layer_params + model.embedding_params)
    shard = 0 if setup.offload_params else whole.size // setup.world
    gathered = min(working, whole.size - shard)
    return Part(shard + gathered, f"1/{setup.world} of {whole.why}, and those of the layers at work")


def _gradients(setup: Setup, trained: int, width: int, shards: int) -> Part:
    size, why = width * trained, f"{width} bytes x {trained:,} trained weights"
    if (setup.zero_stage or 0) < 2:
        return Part(size, why)
    if setup.offload_optimizer:
        bucket = min(size // shards, width * BUCKET_ELEMENTS)
        return Part(bucket, f"{why}, at most a bucket: the rest is in the host's memory")
    return Part(size // shards, f"{why} / {shards} ranks")


def _optimizer(setup: Setup, trained: int, shards: int) -> Part:
    if setup.offload_optimizer or (setup.optimizer == "paged" and setup.zero_stage is None):
        return Part(0, "in the host's memory")
    moments = {"adamw": 4 if setup.pure_bf16 and setup.zero_stage is None else 8, "adamw_8bit": 2, "paged": 0}
    width = moments[setup.optimizer] + (0 if setup.zero_stage is None else 4)
    master = "" if setup.zero_stage is None else ", the fp32 copy of weights included"
    split = f" / {shards} ranks" if setup.zero_stage else ""
    return Part(
        width * trained // (shards if setup.zero_stage else 1),
        f"{width} bytes x {trained:,} trained weights{split}{master}",
    )


def _buffers(model: Architecture, setup: Setup, trained: int, width: int) -> Part:
    """Return what the exchange of gradients between ranks needs."""
    if setup.zero_stage is None:
        why = f"DDP's buckets: {width} bytes x {trained:,} trained weights"
        return Part(width * trained, why) if setup.world > 1 else NOTHING
    if setup.zero_stage in (1, 2):
        elements = min(BUCKET_ELEMENTS, trained)
        return Part(2 * elements, f"ZeRO's bucket: 2 bytes x {elements:,} gradients")
    if setup.zero_stage == 3:
        elements = min(2 * model.hidden**2, trained)
        return Part(2 * elements, f"ZeRO's buckets: 2 bytes x {elements:,} elements")
    return NOTHING


def _step(setup: Setup, trained: int, shards: int) -> Part:
    """Return the fp32 copy of its gradients that DeepSpeed's optimizer step makes; torch's fused AdamW needs none."""
    if setup.zero_stage is None or setup.offload_optimizer:
        return NOTHING
    elements = trained // (shards if setup.zero_stage else 1)
    elements = min(elements, LIVE_ELEMENTS) if setup.zero_stage == 3 else elements
    return Part(4 * elements, f"4 bytes x {elements:,} gradients of the optimizer step")
