"""What a GPU is capable of and what its memory holds: the measurements of probe.py.

Part of probe.py. On the CPU, where it is only tried out, the figures of the GPU are null.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MATRIX = 8192
ATTENTION = (1, 32, 4096, 128)  # rows, heads, tokens, width of a head
REPEATS = 10
ATTENTION_WORDS = ("attention", "flash", "fmha", "cudnn")
LONGEST_NAME = 90


def wait(device: str) -> None:
    """Wait until the GPU has done what it was given."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def forget_memory(device: str) -> None:
    """Give back what the cases before have left, so that peaks are of the next one alone."""
    import torch

    if device == "cuda":
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory(device: str) -> dict[str, Any]:
    """Return the peaks of PyTorch's allocator and what the GPU holds beside it, in bytes."""
    import torch

    if device != "cuda":
        return {"allocated": None, "reserved": None, "outside_torch": None}
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "outside_torch": outside_torch(),
    }


def outside_torch() -> int:
    """Return the bytes in use on the GPU that PyTorch's allocator does not know: context, kernels, other programs."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return int(total - free - torch.cuda.memory_reserved())


def describe(device: str) -> dict[str, Any]:
    """Return the GPU's name, the memory that its libraries take, and its measured speeds.

    Raises:
        RuntimeError: there is no GPU that PyTorch can use.
    """
    import torch

    names = ("workspace_bytes", "context_bytes", "memory_bytes", "matmul_tflops", "attention_tflops", "masked_tflops")
    versions = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
    if device != "cuda":
        return {
            "gpu": "cpu",
            "capability": None,
            **dict.fromkeys(names),
            "attention_kernels": [],
            "masked_kernels": [],
            **versions,
        }
    if not torch.cuda.is_available():
        raise RuntimeError("no GPU that PyTorch can use")
    memory_figures = (workspace_bytes(), outside_torch(), torch.cuda.mem_get_info()[1])
    plain, masked = attention_runs()
    speeds = (matmul_tflops(), attention_tflops(plain) / 2, attention_tflops(masked))
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        **dict(zip(names, (*memory_figures, *(round(speed, 1) for speed in speeds)), strict=True)),
        "attention_kernels": kernels_of(plain),
        "masked_kernels": kernels_of(masked),
        **versions,
    }


def efficiency(machine: Mapping[str, Any], peak_tflops: float | None) -> dict[str, float] | None:
    """Return the measured speeds as shares of the card's dense bfloat16 peak, None where one of them is not known.

    >>> efficiency({"matmul_tflops": 750.0, "attention_tflops": 500.0, "masked_tflops": 250.0}, 1000.0)
    {'matmul': 0.75, 'attention': 0.5, 'masked': 0.25}
    """
    if peak_tflops is None or machine["matmul_tflops"] is None:
        return None
    return {name: round(machine[f"{name}_tflops"] / peak_tflops, 3) for name in ("matmul", "attention", "masked")}


def workspace_bytes() -> int:
    """Return the bytes that cuBLAS keeps from the first multiplication on."""
    import torch

    left, right, out = (torch.ones(256, 256, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    before = torch.cuda.memory_allocated()
    torch.mm(left, right, out=out)
    wait("cuda")
    return int(torch.cuda.memory_allocated() - before)


def matmul_tflops() -> float:
    """Return the TFLOP/s of a large bfloat16 multiplication."""
    import torch

    left, right = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * MATRIX**3 / seconds_of(lambda: left @ right) / 1e12


def attention_runs() -> tuple[Callable[[], None], Callable[[], None]]:
    """Return attention, forward and backward, without a mask (causal) and with one, as functions to call."""
    import torch

    rows, _, tokens, _ = ATTENTION
    states = [torch.randn(ATTENTION, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    mask = torch.ones(tokens, tokens, device="cuda", dtype=torch.bool).tril().expand(rows, 1, tokens, tokens)

    def run(**options: Any) -> Callable[[], None]:
        attention = torch.nn.functional.scaled_dot_product_attention
        return lambda: attention(*states, **options).sum().backward()

    return run(is_causal=True), run(attn_mask=mask)


def attention_tflops(run: Callable[[], None]) -> float:
    """Return the TFLOP/s of attention, counting every pair of tokens; a causal kernel does half of them."""
    rows, heads, tokens, width = ATTENTION
    return 3.5 * 4 * rows * heads * tokens * tokens * width / seconds_of(run) / 1e12


def seconds_of(function: Callable[[], Any]) -> float:
    """Return the seconds of one call, the first three not counted."""
    for _ in range(3):
        function()
    wait("cuda")
    started = time.perf_counter()
    for _ in range(REPEATS):
        function()
    wait("cuda")
    return (time.perf_counter() - started) / REPEATS


def kernels_of(function: Callable[[], Any]) -> list[str]:
    """Return the names of the attention kernels that a call starts."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        function()
    names = {event.key[:LONGEST_NAME] for event in recorded.key_averages()}
    return sorted(name for name in names if any(word in name.lower() for word in ATTENTION_WORDS))
