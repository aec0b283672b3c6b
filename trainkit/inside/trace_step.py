"""One traced training step: which storages it makes, for a model that is built without memory and then filled.

Part of memory_trace.py.
"""

from __future__ import annotations

import gc
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainkit.inside import trace_kernels, trace_ledger, trace_losses, trace_model
    from trainkit.inside.trace_ledger import Ledger
    from trainkit.inside.trace_model import Setup
else:  # run by path: this folder is what Python looks in first
    import trace_kernels
    import trace_ledger
    import trace_losses
    import trace_model


def watching(ledger: Ledger) -> Any:
    """Return the dispatch mode that enters every storage an operator makes into the ledger."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    known: dict[int, weakref.ref[Any]] = {}

    def enter(tensor: Any, operator: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if (key in known and known[key]() is storage) or not storage.nbytes():
            return
        origin = trace_ledger.Origin(operator, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        event = ledger.birth(storage.nbytes(), origin)

        def ended(reference: Any) -> None:
            if known.get(key) is reference:
                del known[key]
            ledger.death(event)

        known[key] = weakref.ref(storage, ended)

    class Watching(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            operator = function._schema.name
            if operator == "aten::_local_scalar_dense":
                return 1  # a value that a fake tensor does not have; only liger asks, for a count of tokens
            output = function(*args, **(kwargs or {}))
            for leaf in (output,) if isinstance(output, torch.Tensor) else tree_leaves(output):
                if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                    enter(leaf, operator)
            if operator == "aten::_scaled_dot_product_flash_attention_backward":
                ledger.scratch(trace_kernels.attention_scratch(args[1], args[2]), "attention workspace")
            return output

    return Watching()


def build(config: Any, setup: Setup) -> tuple[Any, Any]:
    """Return (what is called, the decoder inside it) on the meta device: structure only, no memory."""
    import torch

    with torch.device("meta"):
        model = trace_model.causal_model(config)
        decoder = model.get_decoder()
        if setup.method == "qlora":
            trace_kernels.quantise_linears(model)
        if setup.checkpointing:
            trace_model.enable_checkpointing(model)
        if setup.method != "full":
            model = trace_model.with_adapter(model, setup)
        if setup.method == "qlora":
            trace_kernels.adapt_to_nf4(model)
        if setup.stage == "rm":
            model = trace_model.with_value_head(model)
    return model, decoder


def materialise(model: Any, setup: Setup) -> None:
    """Give every parameter and buffer of a meta model a tensor of the type LLaMA-Factory would hold it in."""
    import torch

    tensors: dict[int, Any] = {}
    for module in model.modules():
        for name, old in [*module._parameters.items(), *module._buffers.items()]:
            if old is None or old.device.type != "meta":
                continue
            if id(old) not in tensors:
                dtype = trace_model.trainable_dtype(setup) if old.requires_grad else old.dtype
                new = torch.zeros(old.shape, dtype=dtype)
                is_parameter = isinstance(old, torch.nn.Parameter)
                tensors[id(old)] = torch.nn.Parameter(new, old.requires_grad) if is_parameter else new
            table = module._parameters if name in module._parameters else module._buffers
            table[name] = tensors[id(old)]


def optimizer_states(parameters: list[Any], setup: Setup) -> list[Any]:
    """Return what the optimizer keeps: two moments a parameter, with DeepSpeed in fp32 beside an fp32 copy."""
    import torch

    kind = trace_model.OPTIMIZERS[setup.optimizer]
    if kind == "host":
        return []
    states = []
    for parameter in parameters:
        if setup.zero_stage is not None:
            states += [torch.zeros_like(parameter, dtype=torch.float32) for _ in range(3)]
        elif kind == "uint8" and parameter.numel() >= trace_model.SMALLEST_8BIT:
            states += [torch.zeros_like(parameter, dtype=torch.uint8) for _ in range(2)]
        else:
            states += [torch.zeros_like(parameter) for _ in range(2)]
    return states


@contextmanager
def given_mask(model: Any, mask: Any) -> Iterator[None]:
    """Let the model take `mask` as its attention mask: whether one is needed is read from data that is not there."""
    module = sys.modules[type(model).__module__]
    makers = [name for name in vars(module) if name.startswith("create_") and name.endswith("_mask")]
    with ExitStack() as stack:
        for name in makers:
            stack.enter_context(mock.patch.object(module, name, return_value=mask))
        yield


def mark_phases(decoder: Any, ledger: Ledger) -> None:
    """Tell the ledger where a pass is: at the layers or the loss, and in the backward pass at which layer."""

    def enter(name: str) -> Any:
        def hook(_gradient: Any) -> None:
            ledger.phase = name

        return hook

    def mark(module: Any, phase_below: str, phase: str = "") -> None:
        def hook(_module: Any, arguments: tuple[Any, ...]) -> None:
            ledger.phase = phase or ledger.phase
            if arguments[0].requires_grad:
                arguments[0].register_hook(enter(phase_below))

        module.register_forward_pre_hook(hook)

    last = len(decoder.layers) - 1
    for index, layer in enumerate(decoder.layers):
        below = "backward, embedding" if index == 0 else "backward, first layer" if index == 1 else "backward, layers"
        mark(layer, below)
    mark(decoder.norm, "backward, last layer" if last else "backward, first layer", "forward, loss")


class Step:
    """A traced training step: the model with its states, and the passes over one micro-batch."""

    def __init__(self, config: Any, setup: Setup, ledger: Ledger) -> None:
        self.setup = setup
        self.ledger = ledger
        self.model, self.decoder = build(config, setup)
        self.reference = build_reference(config, setup)
        mark_phases(self.decoder, ledger)

    def load(self) -> None:
        """Make weights, optimizer states and the batch."""
        import torch

        self.ledger.phase = "load"
        materialise(self.model, self.setup)
        if self.reference is not None:
            materialise(self.reference, self.setup)
        gc.collect()
        self.parameters = list(self.model.parameters())
        self.trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        self.states = optimizer_states(self.trained, self.setup)
        shape = (self.setup.rows, self.setup.seq_tokens)
        self.batch = {name: torch.zeros(shape, dtype=torch.long) for name in ("input_ids", "labels", "attention_mask")}
        length = self.setup.seq_tokens
        self.mask = torch.ones(shape[0], 1, length, length, dtype=torch.bool) if self.setup.masked else None
        self.ledger.forget_peaks()

    def run(self) -> int:
        """Run one micro-batch and the optimizer; return the bytes that the forward pass leaves for the backward pass.

        With accumulation it is the second micro-batch: the gradients of the first are there, and only added to.
        """
        import torch

        if self.setup.accumulation > 1:
            for parameter in self.trained:
                parameter.grad = torch.zeros_like(parameter)
        before = self.ledger.current
        self.ledger.phase = "forward, layers"
        with given_mask(self.decoder, self.mask):
            loss = trace_losses.forward(self.model, self.reference, self.batch, self.setup)
            kept = self.ledger.current - before
            self.ledger.phase = "backward, loss"
            loss.backward()
        self.ledger.phase = "optimizer"
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        return kept


def build_reference(config: Any, setup: Setup) -> Any:
    """Return the frozen second model that DPO needs when the first one trains in full; None otherwise."""
    import torch

    if setup.stage != "dpo" or setup.method != "full":
        return None
    with torch.device("meta"):
        return trace_model.causal_model(config).requires_grad_(False).eval()
