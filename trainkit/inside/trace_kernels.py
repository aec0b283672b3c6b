"""What a GPU does otherwise than the CPU on which a trace runs: attention, dropout, liger's kernels, 4-bit weights.

Part of memory_trace.py. Only the buffers matter here, never the values: each function allocates what the kernel of a
GPU allocates, in the same order and type. Sources: aten/src/ATen/native/transformers/cuda/*.cu of PyTorch 2.11,
liger_kernel/ops/*.py 0.8.5, bitsandbytes/autograd/_functions.py 0.50 and peft/tuners/lora/bnb.py 0.18.
"""

from __future__ import annotations

import importlib
import types
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NF4_BLOCK = 64  # weights that share a scale
NF4_NESTED_BLOCK = 256  # scales that share a scale


@contextmanager
def gpu_behaviour() -> Iterator[None]:
    """Let attention and dropout take the memory that they take on a GPU."""
    import torch.nn.functional as functional

    with (
        mock.patch.object(functional, "scaled_dot_product_attention", attention),
        mock.patch.object(functional, "dropout", dropout),
    ):
        yield


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001  the kernels know grouped heads from the shapes
) -> Any:
    """Stand for scaled_dot_product_attention: the flash kernel without a mask, the memory-efficient one with a mask."""
    import torch

    query, key, value = (autocast(tensor) for tensor in (query, key, value))
    if attn_mask is None:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    bias = attention_bias(attn_mask, query, key)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, bias, True, dropout_p, is_causal, scale=scale)[0]


def attention_bias(mask: Any, query: Any, key: Any) -> Any:
    """Return a mask of truth values as the efficient kernel wants it: numbers, rows padded to 16, for every head."""
    import torch
    import torch.nn.functional as functional

    bias = torch.zeros_like(mask, dtype=query.dtype)
    bias.masked_fill_(mask.logical_not(), float("-inf"))
    if missing := -bias.shape[-1] % 16:
        bias = functional.pad(bias, (0, missing))[..., :-missing]
    return bias.expand(*query.shape[:3], key.shape[2])


def autocast(tensor: Any) -> Any:
    """Return a tensor as autocast gives it to a kernel of its bfloat16 list."""
    import torch

    return tensor.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else tensor


def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:  # noqa: ARG001
    """Stand for dropout: the GPU's kernel keeps a mask of one byte for each element."""
    import torch

    return torch.ops.aten.native_dropout(input, p, True)[0] if training and p else input


def attention_scratch(query: Any, key: Any) -> int:
    """Return the bytes that the backward pass of flash attention takes for itself.

    An fp32 sum of the query's gradient and a sum for each row, both padded, and with grouped heads the gradients of
    keys and values for every query head.
    """
    batch, heads, length, width = query.shape
    rows = batch * heads * (-(-length // 128) * 128)
    scratch = 4 * rows * (-(-width // 32) * 32) + 4 * rows
    grouped = key.shape[1] != heads
    return int(scratch + (2 * query.element_size() * batch * length * heads * width if grouped else 0))


@contextmanager
def liger_applied(model_type: str, *, fused_loss: bool) -> Iterator[None]:
    """Patch the model's classes with liger's own code, whose kernels then do nothing but whose buffers are real.

    Raises:
        ValueError: liger has no kernels for `model_type`.
    """
    liger: Any = importlib.import_module("liger_kernel.transformers")
    loss: Any = importlib.import_module("liger_kernel.ops.fused_linear_cross_entropy")
    kernels: Any = importlib.import_module("triton.runtime.jit").KernelInterface
    apply = getattr(liger, f"apply_liger_kernel_to_{model_type}", None)
    if apply is None:
        raise ValueError(f"liger has no kernels for {model_type}")
    with ExitStack() as stack:
        put = stack.enter_context
        put(kept_classes(model_type))
        put(mock.patch.object(kernels, "__getitem__", no_launch))
        names = ("fused_linear_cross_entropy_forward", "fused_linear_cross_entropy_backward")
        for name, function in zip(names, (fused_loss_forward, fused_loss_backward), strict=True):
            put(mock.patch.object(loss, name, function))
        apply(**({} if fused_loss else {"fused_linear_cross_entropy": False, "cross_entropy": True}))
        yield


def no_launch(_kernel: Any, _grid: Any) -> Callable[..., None]:
    """Stand for a Triton kernel with its grid: something to call that does nothing."""
    return lambda *_, **__: None


@contextmanager
def kept_classes(model_type: str) -> Iterator[None]:
    """Undo at the end what liger changes for the whole process: a model's module, its classes' forward, the loss."""
    import torch.nn.functional as functional

    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    names = dict(vars(module))
    classes = [cls for cls in names.values() if isinstance(cls, type) and "forward" in vars(cls)]
    forwards: dict[Any, Any] = {cls: vars(cls)["forward"] for cls in classes}
    cross_entropy = functional.cross_entropy
    try:
        yield
    finally:
        vars(module).update(names)
        for cls, forward in forwards.items():
            cls.forward = forward
        functional.cross_entropy = cross_entropy


def fused_loss_forward(_input: Any, weight: Any, *_: Any, **__: Any) -> tuple[Any, ...]:
    """Stand for liger's loss that never holds all logits: chunks of about as many bytes as the hidden states.

    Liger's own function asks whether its tensors are on a GPU to choose its kernels; this is its way on one.
    """
    import torch

    tokens, hidden = _input.shape
    vocabulary = weight.shape[0]
    chunk = min(tokens, 1 << (-(-tokens // -(-vocabulary // hidden)) - 1).bit_length())
    grad_input = torch.zeros_like(_input)
    grad_weight = torch.zeros_like(weight) if weight.requires_grad else None
    losses = torch.zeros(tokens, dtype=torch.float32)
    logits = torch.empty(chunk, vocabulary, dtype=_input.dtype) if multiplies_in_place(_input, weight) else None
    for start in range(0, tokens, chunk):
        states = _input[start : start + chunk]
        if logits is None:
            gradient = states @ weight.t()
            grad_input[start : start + chunk] = gradient @ weight
        else:
            gradient = logits[: len(states)]
            torch.mm(gradient, weight, out=grad_input[start : start + chunk])
        if grad_weight is not None:
            states.to(gradient.dtype)  # the sum into grad_weight itself happens in place
        del gradient
    return losses.sum(), None, None, None, grad_input, grad_weight, None


def multiplies_in_place(states: Any, weight: Any) -> bool:
    """Return whether liger uses one buffer for the logits of all chunks: where autocast would cast nothing."""
    import torch

    casts = torch.is_autocast_enabled("cpu") and states.dtype != torch.get_autocast_dtype("cpu")
    return states.dtype == weight.dtype and not casts


def fused_loss_backward(_grad: Any, grad_input: Any, grad_weight: Any, grad_bias: Any) -> tuple[Any, Any, Any]:
    """Stand for the end of liger's loss: the gradients are there already and are scaled in place."""
    return grad_input, grad_weight, grad_bias


def nf4_function() -> Any:
    """Return the autograd function of a linear layer with 4-bit weights: dequantised anew for every use."""
    import torch
    import torch.nn.functional as functional

    class Linear4Bit(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, states: Any, packed: Any, shape: tuple[int, int], bias: Any) -> Any:
            ctx.shape = shape
            ctx.save_for_backward(packed)
            return functional.linear(states, dequantised(shape, states.dtype), bias)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> tuple[Any, ...]:
            _ = ctx.saved_tensors
            return gradient @ dequantised(ctx.shape, gradient.dtype), None, None, None

    return Linear4Bit


def dequantised(shape: tuple[int, int], dtype: Any) -> Any:
    """Return an empty weight, after the scales that its kernel needs were there for a moment."""
    import torch

    nested = torch.empty(shape[0] * shape[1] // NF4_BLOCK, dtype=torch.float32)
    scales = nested + torch.zeros((), dtype=torch.float32)
    del nested
    weight = torch.empty(shape, dtype=dtype)
    del scales
    return weight


def quantise_linears(model: Any) -> None:
    """Turn every linear layer but the head into one with nf4 weights and doubly quantised scales."""
    import torch

    function = nf4_function()
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or "lm_head" in name:
            continue
        shape = tuple(module.weight.shape)
        scales = shape[0] * shape[1] // NF4_BLOCK
        packed = torch.empty(shape[0] * shape[1] // 2, 1, dtype=torch.uint8)
        module.weight = torch.nn.Parameter(packed, requires_grad=False)
        module.register_buffer("absmax", torch.empty(scales, dtype=torch.uint8))
        module.register_buffer("nested_absmax", torch.empty(-(-scales // NF4_NESTED_BLOCK), dtype=torch.float32))
        module.register_buffer("code", torch.empty(256, dtype=torch.float32))

        def forward(self: Any, states: Any, shape: tuple[int, ...] = shape) -> Any:
            # Linear4bit computes in bfloat16 and answers in the type it was asked in.
            return function.apply(states.to(torch.bfloat16), self.weight, shape, self.bias).to(states.dtype)

        module.forward = types.MethodType(forward, module)


def adapt_to_nf4(model: Any) -> None:
    """Give LoRA layers the forward that PEFT uses over 4-bit weights: a clone, and no fp32 copy under autocast."""
    from peft.tuners.lora import Linear

    for module in model.modules():
        if isinstance(module, Linear):
            module.forward = types.MethodType(lora_over_nf4, module)


def lora_over_nf4(self: Any, states: Any) -> Any:
    """Compute what `peft.tuners.lora.bnb.Linear4bit.forward` computes, in its order."""
    import torch

    result = self.base_layer(states).clone()
    expected = result.dtype
    under_autocast = torch.is_autocast_enabled("cpu")
    for adapter in self.active_adapters:
        down, up = self.lora_A[adapter], self.lora_B[adapter]
        if not under_autocast:
            states = self._cast_input_dtype(states, down.weight.dtype)
        output = up(down(self.lora_dropout[adapter](states))) * self.scaling[adapter]
        result = result + (output if under_autocast else output.to(expected))
    return result
