"""The model of a training step as LLaMA-Factory would hold it: its class, adapters, checkpointing and number types.

Part of memory_trace.py and probe.py, which give the device; nothing is loaded, a config.json is enough.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

PAIRED_STAGES = ("rm", "dpo")
STAGES = ("pt", "sft", *PAIRED_STAGES)
METHODS = ("lora", "full", "qlora")
OPTIMIZERS = {"adamw": "parameter", "adamw_8bit": "uint8", "paged": "host"}
LONGEST_ERROR = 300
SMALLEST_8BIT = 4096  # parameters with fewer elements keep full states in bitsandbytes


class NotTraced(Exception):
    """A setup or a model whose memory this program does not know how to trace."""


@dataclass(frozen=True)
class Setup:
    """What is trained and how, in the words of trainkit's plan; `seq_tokens` is the padded length of a row.

    `zero_stage` None is mixed precision by autocast; a number is DeepSpeed's bfloat16 engine on a single rank.
    """

    method: str = "lora"
    stage: str = "sft"
    micro_batch: int = 1
    seq_tokens: int = 1024
    rank: int = 8
    lora_targets: str | tuple[str, ...] | list[str] = "all"
    dropout: float = 0.0
    checkpointing: bool = True
    liger: bool = False
    masked: bool = False
    zero_stage: int | None = None
    pure_bf16: bool = False
    accumulation: int = 1
    optimizer: str = "adamw"

    @property
    def autocast(self) -> bool:
        """Whether trainable parameters are fp32 and the forward pass runs under autocast."""
        return self.zero_stage is None and not self.pure_bf16

    @property
    def rows(self) -> int:
        """Rows of one forward pass: preferences come in pairs."""
        return self.micro_batch * (2 if self.stage in PAIRED_STAGES else 1)


def words(error: Exception) -> str:
    """Return an error on one line of bounded length: what is not traced speaks for itself."""
    text = " ".join(str(error).split())
    return text if isinstance(error, NotTraced) else f"{type(error).__name__}: {text}"[:LONGEST_ERROR]


def setup_of(values: Mapping[str, Any]) -> Setup:
    """Return the setup of a request; keys that change nothing on a single rank are left out.

    Raises:
        NotTraced: more than one rank, offloading, or a stage, method or optimizer that is not traced.
    """
    known = {field.name for field in fields(Setup)}
    setup = Setup(**{key: value for key, value in values.items() if key in known})
    if values.get("world", 1) != 1 or values.get("offload_optimizer") or values.get("offload_params"):
        raise NotTraced("not traced: more than one rank, or offloading")
    choices = (("stage", STAGES), ("method", METHODS), ("optimizer", tuple(OPTIMIZERS)))
    for key, allowed in choices:
        if getattr(setup, key) not in allowed:
            raise NotTraced(f"not traced: {key} {getattr(setup, key)}; one of {', '.join(allowed)} is")
    return setup


def config_of(values: Mapping[str, Any], layers: int | None = None) -> Any:
    """Return transformers' configuration object for the mapping of a config.json, with `layers` layers if given.

    Raises:
        NotTraced: a model that transformers does not know, a value that it refuses, or a model that is not text alone.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    if values.get("model_type") not in CONFIG_MAPPING:
        raise NotTraced(f"not traced: model_type {values.get('model_type')}, which transformers does not know")
    if "vision_config" in values or "text_config" in values:
        raise NotTraced("not traced: a model with a vision tower")
    rest = {key: value for key, value in values.items() if key != "model_type"}
    if layers:
        rest["num_hidden_layers"] = layers
        if rest.get("layer_types"):
            rest["layer_types"] = rest["layer_types"][:layers]
    try:
        config = AutoConfig.for_model(values["model_type"], **rest)
    except StrictDataclassError as error:
        raise NotTraced(f"not traced: {error}") from None
    config.use_cache = False
    return config


def base_dtype(config: Any) -> Any:
    """Return the type in which the frozen weights stay: the checkpoint's own."""
    import torch

    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16


def causal_model(config: Any, attention: str = "sdpa") -> Any:
    """Return a model in training mode on the current device, its weights not initialised, in the checkpoint's type."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=base_dtype(config), attn_implementation=attention)
    model.tie_weights()
    return model.train()


def fill(model: Any) -> None:
    """Give a model random weights, and norms and biases ones."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
            else:
                parameter.fill_(1)


def enable_checkpointing(model: Any) -> None:
    """Recompute each layer in the backward pass: LLaMA-Factory's wrapper, reentrant, only for layers that train.

    The state of the random numbers, a CPU tensor, is not kept: it takes no memory of the GPU.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def recompute(function: Any, *arguments: Any, **options: Any) -> Any:
        bound: Any = function.func if isinstance(function, functools.partial) else function
        module = bound.__self__
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return function(*arguments, **options)
        states = next(value for value in arguments if torch.is_tensor(value) and value.is_floating_point())
        states.requires_grad_(True)
        return checkpoint(function, *arguments, use_reentrant=True, preserve_rng_state=False, **options)

    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=recompute)


def linear_names(model: Any) -> list[str]:
    """Return what `lora_target: all` means: the last part of the name of each linear layer but the head."""
    import torch

    linears = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return sorted({name.rpartition(".")[2] for name in linears if "lm_head" not in name})


def with_adapter(model: Any, setup: Setup) -> Any:
    """Return the model with a LoRA adapter of the setup's rank; every other parameter is frozen."""
    from peft import LoraConfig, TaskType, get_peft_model

    targets = linear_names(model) if setup.lora_targets == "all" else list(setup.lora_targets)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=setup.rank,
        lora_alpha=2 * setup.rank,
        lora_dropout=setup.dropout,
        target_modules=targets,
    )
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def trainable_dtype(setup: Setup) -> Any:
    """Return the type of trained parameters: fp32 under autocast, bfloat16 in DeepSpeed's engine and pure bfloat16."""
    import torch

    return torch.float32 if setup.autocast else torch.bfloat16


def with_value_head(model: Any) -> Any:
    """Return the reward model around a language model, with the buffers of trl's value head.

    The labels go through as well, so the language model computes a loss that nobody uses.
    """
    import torch

    class RewardModel(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.pretrained_model = model
            self.dropout = torch.nn.Dropout(0.1)
            self.summary = torch.nn.Linear(model.config.hidden_size, 1)

        def forward(self, **inputs: Any) -> tuple[Any, Any, Any]:
            output = self.pretrained_model(**inputs, output_hidden_states=True)
            states = self.dropout(output.hidden_states[-1])
            values = self.summary(states.to(self.summary.weight.dtype)).squeeze(-1)
            return output.logits.float(), output.loss, values

    return RewardModel().train()
