"""Peak GPU memory of a training, in closed form and term by term.

The peak is the largest of a few moments of a step: the two ends of the loss, the backward pass of the last and of the
first layer, the embedding's gradient, and the optimizer step. `inside/memory_trace.py` traces the same on the real
model class; a test compares the two. Everything is in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from trainkit.plan.activations import Layer, forward_work, layer_of, layer_work
from trainkit.plan.losses import losses_of
from trainkit.plan.recipe import Setup
from trainkit.plan.states import NOTHING, Part, States, states_of

if TYPE_CHECKING:
    from trainkit.plan.architecture import Architecture

__all__ = ["Memory", "Setup", "estimate"]

GIB = 2**30
MIB = 2**20
WORKSPACE = {True: 64 * MIB, False: 16 * MIB}  # of cuBLAS, on Hopper and newer and before
CONTEXT = round(0.55 * GIB)  # CUDA's own memory of a process
NCCL = round(0.6 * GIB)  # buffers between ranks
# What the allocator needs beyond the peak. Segments that grow can give back every free page when memory is short, so
# that rounding is left; otherwise free blocks too small for the next logits stay: over traces, by a model of PyTorch's
# allocator (inside/trace_allocator.py), 0.21 to 0.41 of the logits, and 0.21 of a layer's work where there are none.
GROWING_SHARE = 0.02
LOGITS_SHARE = 0.30
WORK_SHARE = 0.20


class Moment(NamedTuple):
    """What is alive at a moment beside weights, optimizer states and buffers."""

    phase: str
    gradients: int = 0
    kept: Part = NOTHING
    logits: Part = NOTHING
    work: Part = NOTHING

    @property
    def size(self) -> int:
        """All of it together."""
        return self.gradients + self.kept.size + self.logits.size + self.work.size


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one GPU at the peak of a step, in bytes; `reasons` has the formula of each term in words.

    Attributes:
        kept_activations: what layers keep for the backward pass.
        layer_work: the layer or the step at work at the peak.
        workspace: of cuBLAS.
        allocated: all tensors and the workspace at the peak, the sum of the terms above.
        reserved: what PyTorch's allocator needs for them; with room to spare it takes more.
        context: CUDA's and NCCL's own memory, outside PyTorch.
        phase: the moment of the peak.
        tokens: tokens of one forward pass on one GPU.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    kept_activations: int
    logits: int
    layer_work: int
    workspace: int
    reserved: int
    context: int
    phase: str
    tokens: int
    reasons: tuple[str, ...]

    @property
    def allocated(self) -> int:
        """What tensors and workspaces take at the peak."""
        states = self.weights + self.gradients + self.optimizer + self.buffers
        return states + self.kept_activations + self.logits + self.layer_work + self.workspace

    @property
    def total(self) -> int:
        """What the GPU must have."""
        return self.reserved + self.context

    def terms(self) -> list[tuple[str, int, str]]:
        """Return (name, bytes, formula in words) of each part of `total`; they add up to it."""
        sizes = (
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("buffers", self.buffers),
            ("kept activations", self.kept_activations),
            ("logits", self.logits),
            ("layer work", self.layer_work),
            ("workspace", self.workspace),
            ("allocator", self.reserved - self.allocated),
            ("context", self.context),
        )
        return [(name, size, why) for (name, size), why in zip(sizes, self.reasons, strict=True)]


def estimate(model: Architecture, setup: Setup) -> Memory:
    """Return the memory that one GPU needs for a training."""
    states = states_of(model, setup)
    layer = layer_of(model, setup)
    peak = max(_moments(model, setup, states, layer), key=lambda moment: moment.size)
    mask = _mask(setup)
    buffers = Part(states.buffers.size + mask.size, " + ".join(filter(None, (states.buffers.why, mask.why))))
    fixed = states.weights.size + states.optimizer.size + buffers.size
    workspace = WORKSPACE[setup.hopper]
    spare = _spare(setup, peak)
    context = CONTEXT + (NCCL if setup.world > 1 else 0)
    return Memory(
        weights=states.weights.size,
        gradients=peak.gradients,
        optimizer=states.optimizer.size,
        buffers=buffers.size,
        kept_activations=peak.kept.size,
        logits=peak.logits.size,
        layer_work=peak.work.size,
        workspace=workspace,
        reserved=fixed + workspace + peak.size + spare.size,
        context=context,
        phase=peak.phase,
        tokens=setup.tokens,
        reasons=(
            states.weights.why,
            states.gradients.why if peak.gradients else "none alive at the peak",
            states.optimizer.why,
            buffers.why,
            peak.kept.why,
            peak.logits.why or f"none alive at the peak ({peak.phase})",
            peak.work.why,
            "cuBLAS",
            spare.why,
            "CUDA" + (" and NCCL" if setup.world > 1 else ""),
        ),
    )


def _moments(model: Architecture, setup: Setup, states: States, layer: Layer) -> list[Moment]:
    alive = states.gradients.size if setup.accumulation > 1 else 0
    kept = _kept(model, setup, layer)
    copies = _copies(model, setup, layer)
    moments = [
        Moment(
            loss.phase,
            alive,
            kept,
            Part(loss.logits, loss.logits_why),
            Part(loss.states + (copies if loss.phase.startswith("forward") else 0), "the states behind the last layer"),
        )
        for loss in losses_of(model, setup)
    ]
    if setup.checkpointing and setup.autocast:
        work = Part(forward_work(model, setup) + copies, "the forward pass of one layer, and bf16 copies of weights")
        moments.append(Moment("forward, layers", alive, kept, work=work))
    return [*moments, *_layer_moments(model, setup, states, layer, kept), *_ends(model, setup, states)]


def _kept(model: Architecture, setup: Setup, layer: Layer) -> Part:
    """Return what all layers keep, and the rotary embedding that they share."""
    each = layer.input if setup.checkpointing else layer.saved
    rotary = (8 if setup.precision == "full_autocast" else 4) * model.head_dim * setup.tokens
    what = "the input of each" if setup.checkpointing else "all that each computed"
    per_token = each / setup.tokens
    why = f"{model.layers} layers x {per_token:,.0f} bytes x {setup.tokens:,} tokens: {what}"
    return Part(model.layers * each + rotary, why)


def _copies(model: Architecture, setup: Setup, layer: Layer) -> int:
    """Return the bf16 copies of all layers' weights, which autocast keeps to the end of the forward pass.

    Without checkpointing they are kept for the backward pass, among what the layers keep; with it they are made anew. A
    preference stage has left autocast by the time of its peak.
    """
    return model.layers * layer.copies if setup.checkpointing and setup.stage not in ("dpo", "kto") else 0


def _layer_moments(model: Architecture, setup: Setup, states: States, layer: Layer, kept: Part) -> list[Moment]:
    """Return the backward pass of the last layer, and of the first one by when nearly all gradients are there."""
    full = setup.method == "full"
    # The head's share of a tied gradient waits for the embedding's.
    waiting = states.gradient_bytes * model.embedding_params if full and model.tied else 0
    again = layer.saved if setup.checkpointing else 0
    why = "one layer computed again, and its backward pass" if setup.checkpointing else "the backward pass of one layer"
    work = Part(layer_work(model, setup) + waiting + again, why)
    gradients = states.gradients.size
    if setup.accumulation > 1:
        return [Moment("backward, last layer", gradients, kept, work=work)]
    held = gradients / model.params if full else 0  # bytes of a gradient that stay on this GPU
    head = 0 if model.tied else round(held * model.embedding_params)
    missing = round(held * (model.embedding_params + model.layer_params))
    first = Part(kept.size // model.layers, "the first layer's alone")
    return [
        Moment("backward, last layer", head, kept, work=work),
        Moment("backward, first layer", max(gradients - missing, 0), first, work=work),
    ]


def _ends(model: Architecture, setup: Setup, states: States) -> list[Moment]:
    """Return the embedding's gradient, where there is one, and the optimizer step."""
    step = Moment("optimizer", states.gradients.size, work=states.step)
    if setup.method != "full":
        return [step]
    shares = (3 if model.tied else 1) - (0 if setup.accumulation > 1 else 1)
    size = shares * states.gradient_bytes * model.embedding_params
    states_size = (4 if setup.autocast else 2) * model.hidden * setup.tokens
    return [
        step,
        Moment("backward, embedding", states.gradients.size, work=Part(size + states_size, "the embedding's gradient")),
    ]


def _spare(setup: Setup, peak: Moment) -> Part:
    """Return what the allocator needs beyond the peak."""
    if setup.expandable_segments:
        return Part(round(GROWING_SHARE * peak.size), f"{GROWING_SHARE:.0%} of what comes and goes")
    size = round(LOGITS_SHARE * peak.logits.size + WORK_SHARE * peak.work.size + GROWING_SHARE * peak.kept.size)
    return Part(size, f"blocks that fit nothing: {LOGITS_SHARE:.0%} of the logits, {WORK_SHARE:.0%} of a layer's work")


def _mask(setup: Setup) -> Part:
    """Return the mask that all layers share: one byte for each pair of tokens of a row, two where rows are packed."""
    if not setup.masked:
        return NOTHING
    width = 2 if setup.packing else 1
    why = f"mask: {width} bytes x {setup.rows:,} rows x {setup.seq_tokens:,}^2 tokens"
    return Part(width * setup.rows * setup.seq_tokens**2, why)
