"""Between LLaMA-Factory's keys and the setup that the memory and speed models speak of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainkit.errors import ConfigError
from trainkit.plan.check import load_deepspeed, zero_stage
from trainkit.plan.padding import PAD_TO, packed_tokens, padded
from trainkit.plan.recipe import Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trainkit.plan.gpus import GpuModel

METHODS = ("lora", "full")
STAGES = ("sft", "pt", "rm", "dpo", "kto")
# Keys that change what a training needs in ways that no formula here knows.
NOT_MODELLED = (
    "use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon", "use_unsloth", "use_unsloth_gc", "use_kt",
    "fsdp", "torch_compile", "fp8", "mixture_of_depths", "use_llama_pro", "use_dora", "additional_target", "shift_attn",
)  # fmt: skip
SHIPPED_DEEPSPEED = {(2, False): "ds_z2.json", (3, False): "ds_z3.json", (3, True): "ds_z3_offload.json"}


def setup_of(
    values: Mapping[str, Any],
    default: Callable[[str], Any],
    gpu: GpuModel,
    *,
    world: int = 1,
    longest: int | None = None,
    never_padded: bool = False,
    expandable_segments: bool = True,
) -> Setup:
    """Return the setup that a configuration describes.

    Args:
        values: the trainer's keys.
        default: the trainer's own default of a key, `TrainerSchema.default`.
        gpu: what it is trained on.
        world: how many processes share the batch.
        longest: tokens of the longest row after truncation; cutoff_len, the worst case, when it is not known.
        never_padded: all rows are equally long, by a multiple of 8.
        expandable_segments: the trainer's allocator grows its segments (PYTORCH_CUDA_ALLOC_CONF).

    Raises:
        ConfigError: the method or stage is one that the memory model does not know.
        InputError: the DeepSpeed file cannot be read.
    """
    keys = _Keys(values, default)
    deepspeed = load_deepspeed(values["deepspeed"]) if values.get("deepspeed") else None
    packing = keys.packing
    row = packed_tokens(keys.number("cutoff_len")) if packing and keys.stage != "pt" else padded(
        min(longest or keys.number("cutoff_len"), keys.number("cutoff_len")))  # fmt: skip
    return Setup(
        method=keys.method,
        stage=keys.stage,
        micro_batch=keys.number("per_device_train_batch_size"),
        seq_tokens=row,
        rank=keys.number("lora_rank"),
        lora_targets=keys.lora_targets,
        dropout=float(keys("lora_dropout") or 0.0),
        checkpointing=not keys("disable_gradient_checkpointing"),
        liger=bool(keys("enable_liger_kernel") or keys("use_liger_kernel")),
        packing=packing,
        masked=keys.masked(never_padded=never_padded),
        zero_stage=None if deepspeed is None else zero_stage(deepspeed),
        offload_optimizer=_offloads(deepspeed, "offload_optimizer"),
        offload_params=_offloads(deepspeed, "offload_param"),
        world=world,
        pure_bf16=bool(keys("pure_bf16")),
        accumulation=keys.number("gradient_accumulation_steps"),
        optimizer=optimizer_of(str(keys("optim") or "")),
        hopper=gpu.capability >= (9, 0),
        expandable_segments=expandable_segments,
    )


class _Keys:
    """The keys of a configuration with the trainer's defaults behind them."""

    def __init__(self, values: Mapping[str, Any], default: Callable[[str], Any]) -> None:
        self.values, self.default = values, default

    def __call__(self, key: str) -> Any:
        value = self.values.get(key)
        return self.default(key) if value is None else value

    def number(self, key: str) -> int:
        """Return a whole number above 0.

        Raises:
            ConfigError: it is none.
        """
        value = self(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(
                f"{key}: {value!r} is not a whole number above 0", "`trainkit validate` names every fault"
            )
        return value

    @property
    def method(self) -> Any:
        """lora, full or qlora."""
        method, bits = self("finetuning_type"), self("quantization_bit")
        if method not in METHODS or bits not in (None, 4):
            said = f"quantization_bit {bits}" if method in METHODS else f"finetuning_type {method}"
            raise ConfigError(f"{said}: the memory model does not know it", "it knows lora, lora in 4 bit, and full")
        return "qlora" if bits == 4 else method

    @property
    def stage(self) -> Any:
        """The training stage."""
        stage = self("stage")
        if stage not in STAGES:
            raise ConfigError(f"stage {stage}: the memory model does not know it", f"it knows {', '.join(STAGES)}")
        return stage

    @property
    def packing(self) -> bool:
        """Whether rows are packed; pre-training packs unless told otherwise."""
        if self("neat_packing"):
            return True
        packing = self("packing")
        return self.stage == "pt" if packing is None else bool(packing)

    @property
    def lora_targets(self) -> Any:
        """The names of the layers that get an adapter, or "all"."""
        targets = self("lora_target") or "all"
        names = targets.split(",") if isinstance(targets, str) else targets
        stripped = tuple(str(name).strip() for name in names)
        return "all" if "all" in stripped else stripped

    def masked(self, *, never_padded: bool) -> bool:
        """Whether attention gets a mask, which keeps sdpa from its flash kernel.

        One padded token in a batch is enough. A packed row has cutoff_len + 1 tokens, so that it is padded as well
        unless that is a multiple of 8; packing that keeps examples apart always builds a mask for sdpa.
        """
        attention = self("flash_attn")
        if attention == "fa2":
            return False
        if attention == "disabled" or self("neat_packing"):
            return True
        if self.packing:
            row = self.number("cutoff_len") + (self.stage != "pt")
            return bool(row % PAD_TO)
        return not never_padded


def _offloads(deepspeed: dict[str, Any] | None, section: str) -> bool:
    zero = (deepspeed or {}).get("zero_optimization")
    part = zero.get(section) if isinstance(zero, dict) else None
    return isinstance(part, dict) and part.get("device") in ("cpu", "nvme")


def optimizer_of(name: str) -> Any:
    """Return the kind of optimizer state that a value of `optim` keeps on the GPU."""
    if "paged" in name:
        return "paged"
    return "adamw_8bit" if "8bit" in name else "adamw"


def not_modelled(values: Mapping[str, Any]) -> list[str]:
    """Return the keys of a configuration that the memory and speed models leave out of account."""
    return [key for key in NOT_MODELLED if values.get(key)]


def keys_of(setup: Setup, given: Setup) -> dict[str, Any]:
    """Return the trainer's keys that lead from the given setup to another one; None takes a key away."""
    keys: dict[str, Any] = {}
    if setup.micro_batch != given.micro_batch:
        keys["per_device_train_batch_size"] = setup.micro_batch
    if setup.accumulation != given.accumulation:
        keys["gradient_accumulation_steps"] = setup.accumulation
    if setup.checkpointing != given.checkpointing:
        keys["disable_gradient_checkpointing"] = not setup.checkpointing
    if setup.liger != given.liger:
        keys["enable_liger_kernel"] = setup.liger
    if _deepspeed_of(setup) != _deepspeed_of(given):
        keys["deepspeed"] = (
            None if setup.zero_stage is None else SHIPPED_DEEPSPEED[setup.zero_stage, setup.offload_params]
        )
    return keys


def _deepspeed_of(setup: Setup) -> tuple[int | None, bool, bool]:
    return setup.zero_stage, setup.offload_optimizer, setup.offload_params
