"""Predicted speed of a training step: a roofline over the kernels that the trainer's model classes start.

Each kernel takes the longest of three times: its arithmetic at a share of the peak, its memory traffic at a share of
the bandwidth, and a launch. Traffic per token and layer was counted by tracing the model classes (see traffic.py). The
shares are assumed unless a probe has measured them (calibration.py): they are meant for ranking settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainkit.plan.traffic import LIGER, LIGER_FP32, TRAFFIC

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.plan.architecture import Architecture
    from trainkit.plan.gpus import GpuModel
    from trainkit.plan.recipe import Setup

# Shares of the peak; those of arithmetic are the GPU's (gpus.Shares).
BANDWIDTH_SHARE = 0.85
LINK_SHARE = 0.7
LAUNCH_SECONDS = 4e-6  # a kernel takes no less on the GPU
HOST_SECONDS = 7e-6  # and no less on the CPU that starts it
CPU_BYTES_PER_SECOND = 100e9  # what the host's memory gives DeepSpeed's Adam, all ranks together
BF16 = 2
FP32 = 4
# Bytes that a step moves for each trained weight: gradient clipping and Adam over weight, gradient and two moments.
OPTIMIZER_BYTES = {"adamw": 40, "adamw_8bit": 28, "paged": 40}
# Model passes without a gradient, in units of the trained forward pass: DPO asks a reference model; KTO asks it twice
# and the model itself once more for its KL term.
EXTRA_FORWARDS = {"dpo": 1, "kto": 3}


@dataclass(frozen=True, slots=True)
class Speed:
    """Where the time of one micro batch goes, in seconds on one GPU; `tokens` are those of the padded batch.

    `host` is the time the CPU needs to start the kernels; it counts where it is longer than theirs.
    """

    tokens: float
    matmul: float
    attention: float
    elementwise: float
    host: float
    optimizer: float = 0.0
    communication: float = 0.0
    offload: float = 0.0

    @property
    def seconds(self) -> float:
        """The time of one micro batch with its share of the optimizer step."""
        return max(self.kernels, self.host) + self.optimizer + self.communication + self.offload

    @property
    def kernels(self) -> float:
        """The time of the model's own kernels."""
        return self.matmul + self.attention + self.elementwise

    @property
    def tokens_per_second(self) -> float:
        """Padded tokens per second of one GPU."""
        return self.tokens / self.seconds

    @property
    def shares(self) -> dict[str, float]:
        """What the time goes to, the largest part first: `{"matrix products": 0.62, "memory traffic": 0.26, ...}`."""
        waiting = max(self.host - self.kernels, 0.0)
        parts = {
            "matrix products": self.matmul,
            "attention": self.attention,
            "memory traffic": self.elementwise,
            "kernel launches": waiting,
            "optimizer": self.optimizer,
            "links between GPUs": self.communication,
            "offload": self.offload,
        }
        shares = {name: part / self.seconds for name, part in parts.items() if part > 0}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


def predict_speed(architecture: Architecture, setup: Setup, gpu: GpuModel, *, seq_tokens: float | None = None) -> Speed:
    """Return the predicted speed of a setup on a GPU.

    Args:
        architecture: the model's sizes.
        setup: how it is trained.
        gpu: what it is trained on.
        seq_tokens: the padded length of an average batch; the setup's own, the longest, when it is not given.
    """
    step = _Step(architecture, setup, gpu, seq_tokens or setup.seq_tokens)
    return Speed(
        tokens=step.tokens,
        matmul=step.matmul_seconds(),
        attention=step.attention_seconds(),
        elementwise=step.elementwise_seconds(),
        host=step.num_kernels * HOST_SECONDS,
        optimizer=step.optimizer_seconds(),
        communication=step.communication_seconds(),
        offload=step.offload_seconds(),
    )


def mean_speed(batches: list[tuple[float, Speed]]) -> Speed:
    """Return the mean of several speeds by their share of all batches."""

    def mean(part: Callable[[Speed], float]) -> float:
        return sum(share * part(speed) for share, speed in batches)

    return Speed(
        tokens=mean(lambda speed: speed.tokens),
        matmul=mean(lambda speed: speed.matmul),
        attention=mean(lambda speed: speed.attention),
        elementwise=mean(lambda speed: speed.elementwise),
        host=mean(lambda speed: max(speed.host, speed.kernels)),  # short batches wait for the host, long ones do not
        optimizer=mean(lambda speed: speed.optimizer),
        communication=mean(lambda speed: speed.communication),
        offload=mean(lambda speed: speed.offload),
    )


class _Step:
    """One micro batch of a setup on a GPU."""

    def __init__(self, architecture: Architecture, setup: Setup, gpu: GpuModel, seq_tokens: float) -> None:
        self.model, self.setup, self.gpu, self.seq = architecture, setup, gpu, seq_tokens
        self.tokens = setup.rows * seq_tokens
        self.adapter = setup.method in ("lora", "qlora")
        self.bandwidth = gpu.bandwidth_gbs * 1e9 * BANDWIDTH_SHARE
        self.forwards = 1 + EXTRA_FORWARDS.get(setup.stage, 0) + setup.checkpointing
        self.queries, self.keys = architecture.attention_width, architecture.kv_width
        trained = architecture.lora_params(setup.rank, setup.lora_targets) if self.adapter else architecture.params
        self.trained = trained
        liger = LIGER_FP32 if setup.precision == "full_autocast" else LIGER
        own = TRAFFIC[self.adapter, not setup.autocast, self.adapter and setup.dropout > 0]
        self.traffic = (own, liger) if setup.liger else (own,)

    # --- matrix products

    def matmul_seconds(self) -> float:
        """Every linear layer, its adapter, and the vocabulary's."""
        layer = sum(self._linear(size, self.tokens) for size in self.model.linears)
        layer += sum(self._expert_linears())
        if self.adapter:
            layer += self._adapters()
        return layer * self.model.layers + self._head()

    def _linear(self, size: tuple[int, int], tokens: float) -> float:
        """Forward, recomputed forward, gradient of the input and, when the weight is trained, of the weight."""
        products = self.forwards + (1 if self.adapter else 2)
        return products * self._product(tokens, *size)

    def _expert_linears(self) -> list[float]:
        model = self.model
        if not model.experts:
            return []
        routed = self.tokens * model.experts_per_token
        sizes = [(model.hidden, model.expert_intermediate)] * 2 + [(model.expert_intermediate, model.hidden)]
        return [self._linear(size, routed) for size in sizes]

    def _adapters(self) -> float:
        """Both halves of each adapter, forward and two products backward; all are bound by memory traffic."""
        passes = 1 + self.setup.checkpointing + 2
        rank = self.setup.rank
        halves = [
            self._product(self.tokens, into, rank) + self._product(self.tokens, rank, out)
            for into, out in self.model.targeted(self.setup.lora_targets).values()
        ]
        return passes * sum(halves)

    def _head(self) -> float:
        """The logits: forward, backward to the input, and to the weight in full training; never recomputed."""
        forwards = 1 + EXTRA_FORWARDS.get(self.setup.stage, 0)
        backwards = 0 if self.setup.stage == "rm" else 1 if self.adapter else 2
        return (forwards + backwards) * self._product(self.tokens, self.model.hidden, self.model.vocab)

    def _product(self, tokens: float, into: int, out: int) -> float:
        compute = 2 * tokens * into * out / (self.gpu.tflops * 1e12 * self.gpu.shares.matmul)
        traffic = BF16 * (tokens * into + into * out + tokens * out) / self.bandwidth
        return max(compute, traffic, LAUNCH_SECONDS)

    # --- attention

    def attention_seconds(self) -> float:
        """Scores and their backward pass, 2.5 times the forward one; only the flash kernel skips the causal half."""
        passes = self.forwards + 2.5
        shares = self.gpu.shares
        share, work = (shares.masked, 1.0) if self.setup.masked else (shares.flash, 0.5)
        flops = 4 * self.tokens * self.seq * self.queries * work
        traffic = BF16 * 2 * (self.queries + self.keys) * self.tokens
        once = max(flops / (self.gpu.tflops * 1e12 * share), traffic / self.bandwidth, LAUNCH_SECONDS)
        return passes * once * self.model.layers

    # --- everything else

    def elementwise_seconds(self) -> float:
        """Norms, rotations, activations, residuals, copies between number formats, and the loss."""
        forward, backward = self._layer_traffic()
        layers = self.model.layers * (self.forwards * forward + backward)
        launches = self.num_kernels * LAUNCH_SECONDS / 2  # half of the kernels are neither product nor attention
        return max((layers + self._weight_traffic() + self._loss_traffic()) / self.bandwidth, launches)

    def _layer_traffic(self) -> tuple[float, float]:
        model, setup = self.model, self.setup
        sizes = (model.hidden, self.queries, self.keys, model.active_intermediate)
        forward = sum(_dot(part.forward, sizes) for part in self.traffic) * self.tokens
        backward = sum(_dot(part.backward, sizes) for part in self.traffic) * self.tokens
        if model.qk_norm:
            forward += (4 if setup.liger else 36) * (self.queries + self.keys) * self.tokens
            backward += (6 if setup.liger else 92) * (self.queries + self.keys) * self.tokens
        if setup.masked:  # the mask becomes a bias for each layer, and keys and values are repeated for each head
            forward += 10 * setup.rows * self.seq**2 + (5 * self.queries + 10 * self.keys) * self.tokens
            backward += (self.queries + 18 * self.keys) * self.tokens
        return forward, backward

    def _weight_traffic(self) -> float:
        """Copies of trained weights and of their gradients; 4-bit weights are unpacked for each product."""
        traffic = sum(sum(part.per_weight) for part in self.traffic) * self.trained
        if self.setup.method == "qlora":
            packed = self.model.layers * self.model.linear_params
            traffic += (0.5 + BF16) * packed * (self.forwards + 1)
        return traffic

    def _loss_traffic(self) -> float:
        """The loss over the logits; liger's fused kernel reads a chunk of them twice and writes it once."""
        per_logit = 3 * BF16 if self.setup.fused_loss else sum(sum(part.logits) for part in self.traffic)
        return per_logit * self.model.vocab * self.tokens

    @property
    def num_kernels(self) -> float:
        """How many kernels a micro batch starts."""
        forward, backward = (sum(part.kernels[way] for part in self.traffic) for way in (0, 1))
        return self.model.layers * (self.forwards * forward + backward)

    # --- the optimizer, and what crosses a link

    def optimizer_seconds(self) -> float:
        """The step, once in `accumulation` micro batches; on the CPU, all ranks share the host's memory."""
        setup = self.setup
        if setup.offload_optimizer:
            return OPTIMIZER_BYTES["adamw"] * self.trained / CPU_BYTES_PER_SECOND / setup.accumulation
        width = OPTIMIZER_BYTES[setup.optimizer] * (0.5 if setup.pure_bf16 else 1.0)
        shards = setup.world if setup.zero_stage else 1
        return width * self.trained / shards / self.bandwidth / setup.accumulation

    def communication_seconds(self) -> float:
        """Gradients and weights between GPUs, taken as not hidden behind computing: an upper bound.

        A gradient is reduced once a step without ZeRO and with stage 1, after each micro batch with stages 2 and 3;
        stage 3 gathers the weights for the forward and for the backward pass.
        """
        setup = self.setup
        if setup.world == 1:
            return 0.0
        gradient = (FP32 if setup.zero_stage is None and not setup.pure_bf16 else BF16) * self.trained
        if (setup.zero_stage or 0) < 2:
            moved = 2 * gradient / setup.accumulation  # an all-reduce sends everything twice
        elif setup.zero_stage == 2:
            moved = gradient + BF16 * self.trained / setup.accumulation
        else:
            moved = gradient + 2 * BF16 * self.model.params
        return moved * (setup.world - 1) / setup.world / (self.gpu.link_gbs * 1e9 * LINK_SHARE)

    def offload_seconds(self) -> float:
        """Gradients to the host after each micro batch, new weights back each step; all weights if they live there."""
        setup = self.setup
        moved = 0.0
        if setup.offload_optimizer:
            moved += BF16 * self.trained / setup.world * (1 + 1 / setup.accumulation)
        if setup.offload_params:
            moved += 2 * BF16 * self.model.params / setup.world
        return moved / (self.gpu.pcie_gbs * 1e9 * LINK_SHARE)


def _dot(coefficients: tuple[float, ...], sizes: tuple[int, ...]) -> float:
    return sum(coefficient * size for coefficient, size in zip(coefficients, sizes, strict=True))
