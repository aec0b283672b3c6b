"""Run real optimizer steps of a setup on this machine's GPU, with random weights, and say what they took.

Run by path with the trainer's Python: `python trainkit/inside/probe.py [--device cpu]`; the request is JSON on stdin:

    {"config": {a model's config.json}, "setup": {a Setup, see trace_model.py}, "steps": 3, "peak_tflops": 989,
     "expandable": false}
    {"cases": [request, ...], "seconds": 400}

One line of JSON on stdout for each request, as soon as it is there:

    {"ok": true, "out_of_memory": false, "allocated", "reserved", "outside_torch", "seconds_per_step",
     "tokens_per_second", "loss", "parameters", "trainable", "gpu", "date", "workspace_bytes", "context_bytes",
     "matmul_tflops", "attention_tflops", "masked_tflops", "attention_kernels", "masked_kernels",
     "efficiency": {"matmul", "attention", "masked"} | null}

Running out of memory is an answer: `"out_of_memory": true`, with what was allocated by then. What cannot be run is
`{"ok": false, "error": "..."}`; a case after the last second is `"error": "no time left"`. Exit code 0 all the same.
The first step warms up and is not timed. A step is the setup's accumulation, at most two micro-batches. The longest
batch is what the setup says: every row has `seq_tokens` tokens. Memory of other programs on the GPU counts as outside.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TextIO

    from trainkit.inside import probe_speed, trace_losses, trace_model
    from trainkit.inside.trace_model import Setup
else:  # run by path: this folder is what Python looks in first
    import probe_speed
    import trace_losses
    import trace_model

STEPS = 3
LEARNING_RATE = 1e-4
SEED = 42


def apply_liger(model_type: str, setup: Setup) -> None:
    """Patch the model's classes for the rest of this process, as LLaMA-Factory does.

    Raises:
        NotTraced: liger has no kernels for `model_type`.
    """
    liger: Any = importlib.import_module("liger_kernel.transformers")
    apply = getattr(liger, f"apply_liger_kernel_to_{model_type}", None)
    if apply is None:
        raise trace_model.NotTraced(f"liger has no kernels for {model_type}")
    paired = setup.stage in trace_model.PAIRED_STAGES
    apply(**({"fused_linear_cross_entropy": False, "cross_entropy": True} if paired else {}))


def random_model(config: Any, setup: Setup, device: str) -> Any:
    """Return a model with random weights on the device, adapted and typed as LLaMA-Factory would train it."""
    import torch

    torch.manual_seed(SEED)
    with torch.device(device):
        model = trace_model.causal_model(config)
        trace_model.fill(model)
        if setup.method == "qlora":
            quantise(model, device)
        if setup.checkpointing:
            trace_model.enable_checkpointing(model)
        if setup.method != "full":
            model = trace_model.with_adapter(model, setup)
        if setup.stage == "rm":
            model = trace_model.with_value_head(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(trace_model.trainable_dtype(setup))
    return model


def quantise(model: Any, device: str) -> None:
    """Replace every linear layer but the head by bitsandbytes' nf4 layer with doubly quantised scales."""
    import torch

    layers: Any = importlib.import_module("bitsandbytes.nn")
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or "lm_head" in name:
            continue
        parent, _, last = name.rpartition(".")
        with torch.device("meta"):
            new = layers.Linear4bit(module.in_features, module.out_features, module.bias is not None, torch.bfloat16)
        new.weight = layers.Params4bit(module.weight.data, False, compress_statistics=True, quant_type="nf4")
        new.bias = module.bias
        setattr(model.get_submodule(parent), last, new.to(device))
    model.is_loaded_in_4bit = True


def optimizer_of(parameters: list[Any], setup: Setup, device: str) -> Any:
    """Return the optimizer of the setup over the trained parameters."""
    import torch

    if setup.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=device == "cuda")
    optimizers: Any = importlib.import_module("bitsandbytes.optim")
    name = {"adamw_8bit": "AdamW8bit", "paged": "PagedAdamW32bit"}[setup.optimizer]
    return getattr(optimizers, name)(parameters, lr=LEARNING_RATE)


def random_batch(setup: Setup, vocabulary: int, device: str) -> dict[str, Any]:
    """Return a batch of full rows; a masked one has one token of padding in each, enough to need a mask."""
    import torch

    shape = (setup.rows, setup.seq_tokens)
    tokens = torch.randint(0, vocabulary, shape, device=device)
    batch = {"input_ids": tokens, "labels": tokens.clone(), "attention_mask": torch.ones_like(tokens)}
    if setup.masked:
        batch["attention_mask"][:, -1] = 0
        batch["labels"][:, -1] = -100
    return batch


class Training:
    """A model in training on one device; `step` is one optimizer step and returns the last loss."""

    def __init__(self, config: Any, setup: Setup, device: str) -> None:
        self.setup, self.device, self.vocabulary = setup, device, config.vocab_size
        self.model = random_model(config, setup, device)
        self.reference = self._reference(config)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = optimizer_of(self.trained, setup, device)
        self.micro_batches = min(setup.accumulation, 2)

    def _reference(self, config: Any) -> Any:
        import torch

        if self.setup.stage != "dpo" or self.setup.method != "full":
            return None
        with torch.device(self.device):
            reference = trace_model.causal_model(config).requires_grad_(False).eval()
        trace_model.fill(reference)
        return reference

    def step(self) -> Any:
        """Run the micro-batches of one step, clip the gradients and move the parameters."""
        import torch

        for _ in range(self.micro_batches):
            batch = random_batch(self.setup, self.vocabulary, self.device)
            loss = trace_losses.forward(self.model, self.reference, batch, self.setup)
            (loss / self.micro_batches).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def measure(self, steps: int) -> dict[str, Any]:
        """Return what `steps` steps took; the first one is not timed."""
        self.step()
        probe_speed.wait(self.device)
        started = time.perf_counter()
        for _ in range(steps - 1):
            loss = self.step()
        probe_speed.wait(self.device)
        seconds = (time.perf_counter() - started) / (steps - 1)
        tokens = self.setup.rows * self.setup.seq_tokens * self.micro_batches
        return {
            "seconds_per_step": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
            "loss": float(loss),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "trainable": sum(parameter.numel() for parameter in self.trained),
        }


def run_case(request: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Run one request and return what it took; running out of memory is part of the answer.

    Raises:
        NotTraced: the setup cannot be run here.
    """
    import torch

    setup = trace_model.setup_of(request["setup"])
    if setup.zero_stage is not None:
        raise trace_model.NotTraced("not probed: DeepSpeed, which needs a launcher")
    config = trace_model.config_of(request["config"])
    if setup.liger:
        apply_liger(config.model_type, setup)
    probe_speed.forget_memory(device)
    try:
        result = Training(config, setup, device).measure(request.get("steps", STEPS))
    except torch.OutOfMemoryError:
        result = {"out_of_memory": True}
    return {"ok": True, "out_of_memory": False, **result, **probe_speed.memory(device)}


def answers(requests: list[Mapping[str, Any]], device: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the answer to each request in turn, until the seconds are over."""
    started = time.perf_counter()
    machine: dict[str, Any] | None = None
    for request in requests:
        if time.perf_counter() - started > seconds:
            yield {"ok": False, "error": "no time left"}
            continue
        try:
            if machine is None:
                machine = probe_speed.describe(device)
            result = run_case(request, device)
        except (trace_model.NotTraced, RuntimeError, ValueError, TypeError, KeyError, ImportError) as error:
            yield {"ok": False, "error": trace_model.words(error)}
            continue
        finally:
            gc.collect()
        efficiency = probe_speed.efficiency(machine, request.get("peak_tflops"))
        yield {**result, **machine, "efficiency": efficiency, "date": datetime.now(UTC).date().isoformat()}


def main(arguments: list[str]) -> None:
    """Answer the request on stdin, a line of JSON for each case; whatever the imports print goes to stderr."""
    stdout: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    device = "cpu" if arguments == ["--device", "cpu"] else "cuda"
    request = json.load(sys.stdin)
    requests = request.get("cases", [request])
    if any(case.get("expandable") for case in requests):  # read when the first tensor goes to the GPU
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    for line in answers(requests, device, request.get("seconds", float("inf"))):
        print(json.dumps(line), file=stdout, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
