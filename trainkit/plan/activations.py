"""What the layers of a model keep for the backward pass, and what working on one layer takes beside it.

All coefficients are bytes for each token and each unit of a width. They were read off allocation traces of the classes
of transformers 5.6 (Llama, Mistral, Qwen2, Qwen3) under LLaMA-Factory's settings (inside/memory_trace.py): every tensor
alive at a peak was expressed in the model's sizes. Widths: h hidden, a all query heads, kv all key heads, f inside the
MLP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from trainkit.plan.architecture import Architecture
    from trainkit.plan.recipe import Precision, Setup


class Widths(NamedTuple):
    """Bytes for each token and unit of width; `heads` counts for each head, `once` for each token."""

    hidden: float = 0
    queries: float = 0
    keys: float = 0
    inner: float = 0
    heads: float = 0
    once: float = 0

    def __add__(self, other: object) -> Widths:
        """Add width by width."""
        assert isinstance(other, Widths)
        return Widths(*(mine + its for mine, its in zip(self, other, strict=True)))

    def of(self, model: Architecture) -> float:
        """Return the bytes for each token of a model."""
        return (
            self.hidden * model.hidden
            + self.queries * model.attention_width
            + self.keys * model.kv_width
            + self.inner * model.active_intermediate
            + self.heads * model.heads
            + self.once
        )


class Work(NamedTuple):
    """Work on one layer at a moment: bytes for each token and unit of h and f, and for each weight of its largest.

    `attention` is the moment inside flash attention's backward pass, which takes 12a + 4kv more.
    """

    hidden: float
    inner: float
    weight: float = 0
    attention: bool = False


# What a frozen layer keeps: inputs of norms, rotated queries and keys, values, attention's output and row sums, gate,
# up and the activation. Liger computes norms and the gate's product anew.
FROZEN = {False: Widths(8, 4, 4, 6, 4, 8), True: Widths(4, 4, 4, 4, 4, 8)}
# What a layer keeps that trains in full: the input of each product and, without liger, the normalised states.
FULL: dict[tuple[Precision, bool], Widths] = {
    ("full_autocast", False): Widths(26, 4, 4, 8, 4, 8),
    ("full_autocast", True): Widths(18, 4, 4, 6, 4, 8),
    ("full_bf16", False): Widths(16, 4, 4, 8, 4, 8),
    ("full_bf16", True): Widths(8, 4, 4, 6, 4, 8),
}
# Norms of queries and keys, for each unit of both widths.
QK_NORM: dict[Precision, int] = {"lora_autocast": 4, "lora_bf16": 4, "full_autocast": 6, "full_bf16": 6}
QK_NORM_LIGER = 2
# Gemma's norms beyond two, for each unit of h.
EXTRA_NORM: dict[Precision, int] = {"lora_autocast": 4, "lora_bf16": 4, "full_autocast": 10, "full_bf16": 10}
# A token's copies for its experts, for each unit of h. Keys: full, liger.
ROUTED = {(False, False): 2, (True, False): 4, (False, True): 4, (True, True): 4}

# The most that the backward pass of one layer holds beyond what it keeps, with checkpointing.
# Keys: precision, dropout, liger. Each moment of a row is the highest for some model; the largest counts.
LAYER_WORK: dict[tuple[Precision, bool, bool], tuple[Work, ...]] = {
    ("lora_autocast", False, False): (Work(12, 6),),
    ("lora_autocast", True, False): (Work(8, 10),),
    ("lora_autocast", False, True): (Work(8, 6),),
    ("lora_autocast", True, True): (Work(4, 10),),
    ("lora_bf16", False, False): (Work(4, 4),),
    ("lora_bf16", True, False): (Work(12, 2),),
    ("lora_bf16", False, True): (Work(2, 4),),
    ("lora_bf16", True, True): (Work(8, 2),),
    ("full_autocast", False, False): (Work(4, 4, -2), Work(6, 2, 2), Work(4, 0, 4)),
    ("full_autocast", False, True): (Work(6, 2, 2), Work(4, 0, 4)),
    ("full_bf16", False, False): (Work(4, 4), Work(4, 2, 2)),
    ("full_bf16", False, True): (Work(2, 2, 2), Work(0, -6, attention=True)),
}
# The same without checkpointing, when every layer's activations are alive anyway.
LAST_LAYER_WORK: dict[tuple[Precision, bool, bool], tuple[Work, ...]] = {
    ("lora_autocast", False, False): (Work(10, 6),),
    ("lora_autocast", True, False): (Work(3, 10),),
    ("lora_autocast", False, True): (Work(8, 6),),
    ("lora_autocast", True, True): (Work(1, 10),),
    ("lora_bf16", False, False): (Work(-2, 4), Work(8, 0)),
    ("lora_bf16", True, False): (Work(7, 2),),
    ("lora_bf16", False, True): (Work(0, 4), Work(6, 0)),
    ("lora_bf16", True, True): (Work(5, 2),),
    ("full_autocast", False, False): (Work(4, 4, -2), Work(6, 2, 2), Work(4, 0, 4)),
    ("full_autocast", False, True): (Work(6, 2, 2), Work(4, 0, 4)),
    ("full_bf16", False, False): (Work(2, 4), Work(2, 2, 2), Work(10, 0)),
    ("full_bf16", False, True): (Work(2, 2, 2), Work(4, 0)),
}
# The forward pass of one layer under checkpointing, which matters where the bf16 copies of all layers are alive.
# Keys: precision, dropout.
FORWARD_WORK: dict[tuple[Precision, bool], tuple[Work, ...]] = {
    ("lora_autocast", False): (Work(8, 8),),
    ("lora_autocast", True): (Work(6, 12),),
    ("lora_bf16", False): (Work(4, 8),),
    ("lora_bf16", True): (Work(4, 8),),
    ("full_autocast", False): (Work(8, 6), Work(10, 2)),
    ("full_bf16", False): (Work(4, 6),),
}
# An adapter that leaves the MLP alone. Keys: checkpointing, liger.
ATTENTION_ONLY_WORK: dict[tuple[bool, bool], tuple[Work, ...]] = {
    (True, False): (Work(4, 6),),
    (True, True): (Work(4, 2), Work(2, -4, attention=True)),
    (False, False): (Work(6, 2), Work(-2, 6)),
    (False, True): (Work(4, 2), Work(-2, -4, attention=True)),
}
# Linear layers that share an input; o_proj's is attention's output, which attention keeps itself.
INPUT_OF = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "qkv_proj": "attention"} | {
    "gate_proj": "mlp", "up_proj": "mlp", "gate_up_proj": "mlp", "down_proj": "down",
}  # fmt: skip
ATTENTION_ONLY_FORWARD = (Work(4, 6),)
ATTENTION_LINEARS = frozenset({"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"})
# 4-bit weights are unpacked into bf16 for each product. Key: checkpointing.
UNPACKED_FORWARD = Work(4, 4, 2)
UNPACKED_WORK = {True: Work(4, 2, 2), False: Work(2, 2, 2)}


class Layer(NamedTuple):
    """One layer's bytes: `saved` for its backward pass, `copies` of weights in bf16 among them, `input` alone."""

    saved: int
    copies: int
    input: int


def layer_of(model: Architecture, setup: Setup) -> Layer:
    """Return what one layer keeps for the backward pass."""
    per_token = _saved(setup).of(model) + _adapter(model, setup)
    if model.qk_norm:
        norm = QK_NORM_LIGER if setup.liger else QK_NORM[setup.precision]
        per_token += norm * (model.attention_width + model.kv_width) + 4 * (model.heads + model.kv_heads)
    if model.experts:
        per_token += ROUTED[setup.method == "full", setup.liger] * model.hidden * model.experts_per_token
        per_token += 8 * model.experts
    if model.fused:  # values are a view of the product of all three, which stays alive
        per_token += 2 * (model.attention_width + model.kv_width)
    per_token += (model.norms - 2) * (2 if setup.liger else EXTRA_NORM[setup.precision]) * model.hidden
    copies = _bf16_copies(model, setup)
    saved = per_token * setup.tokens + _mask(model, setup) + copies
    residual = 4 if setup.precision == "full_autocast" else 2
    return Layer(round(saved), copies, residual * model.hidden * setup.tokens)


def _saved(setup: Setup) -> Widths:
    widths = FULL[setup.precision, setup.liger] if setup.method == "full" else FROZEN[setup.liger]
    # Reward models ask for the states between layers, which norms in bf16 would not keep.
    asked = setup.stage == "rm" and not setup.liger and setup.precision != "full_autocast" and not setup.checkpointing
    return widths + Widths(hidden=2) if asked else widths


def _adapter(model: Architecture, setup: Setup) -> float:
    """Return the bytes for each token that a layer's adapters keep: the inputs of their two products.

    PEFT casts an input to fp32 and autocast back, so each adapter has a copy of its own; over 4-bit weights and in bf16
    they share what is there. Dropout leaves each its own copy and a mask of one byte.
    """
    if setup.method == "full":
        return 0
    targets = model.targeted(setup.lora_targets)
    inputs = sum(into for into, _ in targets.values())
    inner = 2 * setup.rank * len(targets)
    if setup.dropout:
        return 3 * inputs + inner
    if setup.precision == "lora_autocast" and setup.method == "lora":
        return 2 * inputs + inner
    shared = {INPUT_OF[name]: into for name, (into, _) in targets.items() if name in INPUT_OF}
    return 2 * sum(shared.values()) + inner


def _bf16_copies(model: Architecture, setup: Setup) -> int:
    """Return the bf16 copies of one layer's fp32 weights that autocast keeps until the pass ends."""
    if not setup.autocast:
        return 0
    if setup.method == "full":
        return 2 * model.linear_params
    return 2 * model.lora_params(setup.rank, setup.lora_targets) // model.layers


def _mask(model: Architecture, setup: Setup) -> int:
    """Return what a mask costs a layer: a bias in bf16, and keys and values repeated for each query head.

    The mask of packed rows is in bf16 already and shared by all layers.
    """
    if not setup.masked:
        return 0
    bias = 0 if setup.packing else 2 * setup.rows * setup.seq_tokens**2
    return bias + 4 * (model.attention_width - model.kv_width) * setup.tokens


def layer_work(model: Architecture, setup: Setup) -> int:
    """Return the most that the backward pass of one layer holds beyond what it keeps, in bytes."""
    if _on_mlp(model, setup):
        table = LAYER_WORK if setup.checkpointing else LAST_LAYER_WORK
        moments = table[_working_precision(setup), _drops(setup), setup.liger]
    else:
        moments = ATTENTION_ONLY_WORK[setup.checkpointing, setup.liger]
    return _largest(model, setup, moments, UNPACKED_WORK[setup.checkpointing])


def forward_work(model: Architecture, setup: Setup) -> int:
    """Return the most that the forward pass of one layer holds under checkpointing, in bytes."""
    on_mlp = _on_mlp(model, setup)
    moments = FORWARD_WORK[_working_precision(setup), _drops(setup)] if on_mlp else ATTENTION_ONLY_FORWARD
    return _largest(model, setup, moments, UNPACKED_FORWARD)


def _on_mlp(model: Architecture, setup: Setup) -> bool:
    return setup.method == "full" or not ATTENTION_LINEARS.issuperset(model.targeted(setup.lora_targets))


def _working_precision(setup: Setup) -> Precision:
    """Return the precision of the adapters' work: over 4-bit weights PEFT makes no fp32 copies for autocast to undo."""
    return "lora_bf16" if setup.method == "qlora" else setup.precision


def _drops(setup: Setup) -> bool:
    return setup.method != "full" and setup.dropout > 0


def _largest(model: Architecture, setup: Setup, moments: tuple[Work, ...], unpacked: Work) -> int:
    candidates = (*moments, unpacked) if setup.method == "qlora" else moments
    return max(round(_work_bytes(model, setup, work)) for work in candidates)


def _work_bytes(model: Architecture, setup: Setup, work: Work) -> float:
    per_token = work.hidden * model.hidden + work.inner * model.active_intermediate
    if work.attention and not setup.masked:
        per_token += 12 * model.attention_width + 4 * model.kv_width
    widest = model.hidden * max(model.intermediate, model.expert_intermediate)
    return per_token * setup.tokens + work.weight * widest
