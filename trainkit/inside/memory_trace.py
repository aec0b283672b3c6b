"""Trace the memory of one training step exactly: the real model class on tensors that have shapes and no content.

Run by path with the trainer's Python; no GPU and no weights are needed. The request is one JSON object on stdin, the
answer the last line of stdout:

    {"cases": [{"config": {a model's config.json}, "setup": {"method": "lora", "micro_batch": 2, ...},
                "layers": null, "extrapolate": false}]}
    {"results": [{"allocated": 34527392768, "reserved": ..., "reserved_expandable": ..., "phase": "backward, loss",
                  "composition": [{"bytes", "count", "operator", "dtype", "shape"}], "peaks": {phase: bytes},
                  "parameters": ..., "trainable": ..., "states": ..., "kept": ..., "seconds": ...}
                 | {"error": "..."}]}

Setup keys are those of trace_model.Setup. `allocated` is the peak of all tensors in bytes, without the workspaces of
cuBLAS and the CUDA context; `states` what is there before the step, `kept` what its last forward pass leaves for the
backward pass. With `extrapolate` the model is traced with few layers and each phase's peak is continued to all layers:
it is linear in their number; what the allocator reserves is not, and stays null.

`"tensors": "real"` with `"kernels": "cpu"` runs the same step with real tensors, which is how the trace is tested.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainkit.inside import trace_allocator, trace_kernels, trace_ledger, trace_model, trace_step
    from trainkit.inside.trace_ledger import Ledger
    from trainkit.inside.trace_model import Setup
else:  # run by path: this folder is what Python looks in first
    import trace_allocator
    import trace_kernels
    import trace_ledger
    import trace_model
    import trace_step

# Model classes are foreign code and a configuration may be any mapping: what they raise becomes the case's answer.
UNTRACEABLE = (trace_model.NotTraced, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError)
EXTRAPOLATED_FROM = (3, 5)  # a first, a last and at least one layer between them
COMPOSITION = 10


def trace(case: Mapping[str, Any], setup: Setup, layers: int | None) -> tuple[dict[str, Any], Ledger]:
    """Trace one step with `layers` layers (None: as in the config) and return the figures and the ledger."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = trace_model.config_of(case["config"], layers)
    ledger = trace_ledger.Ledger(case.get("alignment", trace_ledger.CUDA_ALIGNMENT))
    with ExitStack() as stack:
        if setup.liger:
            fused = setup.stage not in trace_model.PAIRED_STAGES
            stack.enter_context(trace_kernels.liger_applied(config.model_type, fused_loss=fused))
        if case.get("kernels", "gpu") == "gpu":
            stack.enter_context(trace_kernels.gpu_behaviour())
        step = trace_step.Step(config, setup, ledger)
        real = case.get("tensors", "fake") == "real"
        stack.enter_context(nullcontext() if real else FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(trace_step.watching(ledger))
        step.load()
        states = ledger.current
        kept = step.run()
    figures = {
        "allocated": ledger.peak,
        "states": states,
        "kept": kept,
        "parameters": sum(parameter.numel() for parameter in step.parameters),
        "trainable": sum(parameter.numel() for parameter in step.trained),
        "peaks": ledger.peaks,
    }
    return figures, ledger


def whole(case: Mapping[str, Any], setup: Setup) -> dict[str, Any]:
    """Trace all layers: exact, with what the allocator reserves and what the peak is made of."""
    figures, ledger = trace(case, setup, case.get("layers"))
    composition = [
        {"bytes": nbytes, "count": count, "operator": origin.operator, "dtype": origin.dtype, "shape": origin.shape}
        for nbytes, count, origin in ledger.composition(COMPOSITION)
    ]
    return figures | {
        "phase": ledger.peak_phase,
        "reserved": trace_allocator.reserved_bytes(ledger.events, expandable=False),
        "reserved_expandable": trace_allocator.reserved_bytes(ledger.events, expandable=True),
        "composition": composition,
    }


def extrapolated(case: Mapping[str, Any], setup: Setup) -> dict[str, Any]:
    """Trace two shallow models and continue every figure as a line to the depth of the config."""
    depth = int(case.get("layers") or case["config"]["num_hidden_layers"])
    (low, high) = EXTRAPOLATED_FROM
    if depth <= high:
        return whole(case, setup)
    near, far = (trace(case, setup, layers)[0] for layers in EXTRAPOLATED_FROM)

    def line(first: int, second: int) -> int:
        return int(first + (second - first) * (depth - low) // (high - low))

    peaks = {phase: line(near["peaks"][phase], far["peaks"][phase]) for phase in near["peaks"]}
    figures = {key: line(near[key], far[key]) for key in ("states", "kept", "parameters", "trainable")}
    phase = max(peaks, key=lambda name: peaks[name])
    answered = {"allocated": peaks[phase], "phase": phase, "peaks": peaks, **figures}
    return answered | {"reserved": None, "reserved_expandable": None, "composition": []}


def answer(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of one case, or `{"error": ...}` where it cannot be traced."""
    started = time.perf_counter()
    try:
        setup = trace_model.setup_of(case["setup"])
        result = extrapolated(case, setup) if case.get("extrapolate") else whole(case, setup)
    except UNTRACEABLE as error:
        return {"error": trace_model.words(error)}
    return result | {"seconds": round(time.perf_counter() - started, 2)}


def import_all() -> None:
    """Import what a trace needs, and take it off the garbage collector, which each trace calls: half its time."""
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers.modeling_utils  # noqa: F401

    gc.collect()
    gc.freeze()


def main() -> None:
    """Answer the request on stdin with one line of JSON; whatever the imports print goes to stderr."""
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import_all()
    results = [answer(case) for case in json.load(sys.stdin)["cases"]]
    json.dump({"results": results}, stdout)
    stdout.write("\n")
    stdout.close()


if __name__ == "__main__":
    main()
