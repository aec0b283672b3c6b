"""The GPUs that `--gpu` knows by name: usable memory, speed, and the links between them.

Figures are those of NVIDIA's data sheets: the SXM models of A100, H100 and H200; L40S; the Ampere and Ada white papers
for GeForce RTX 3090 and 4090; T4. Matrix speed is dense, bf16 (fp16 for T4) with fp32 sums, in TFLOP/s. A link counts
one direction in GB/s. The memory is what CUDA offers a process: less than the number in the name.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainkit.errors import UsageProblem

if TYPE_CHECKING:
    from trainkit.datatypes import Gpu

GIB = 2**30
SMALL_A100_GIB = 60  # an A100 below this is the 40 GB model


@dataclass(frozen=True, slots=True)
class Shares:
    """What a training reaches of the dense peak: in matrix products, in flash attention, in attention with a mask.

    The defaults are assumed; a probe measures them. A mask takes attention off the flash kernel: 0.25 is calibrated on
    transformers#30461, where a 7B model does 3247 tokens/s at 4k without a mask and 2483 with one.
    """

    matmul: float = 0.75
    flash: float = 0.45
    masked: float = 0.25


@dataclass(frozen=True, slots=True)
class GpuModel:
    """One kind of GPU.

    `GpuModel("a100-80", 79.2, 312, 2039, (8, 0), pcie_gbs=32, nvlink_gbs=300)`; `nvlink_gbs` 0 means there is none, and
    `known` is False when the speed is not this GPU's own but taken from the A100.
    """

    name: str
    memory_gib: float
    tflops: float
    bandwidth_gbs: float
    capability: tuple[int, int]
    pcie_gbs: float
    nvlink_gbs: float = 0
    known: bool = True
    shares: Shares = Shares()

    @property
    def memory(self) -> int:
        """Usable memory in bytes."""
        return int(self.memory_gib * GIB)

    @property
    def link_gbs(self) -> float:
        """What one GPU sends to its neighbours, in GB/s."""
        return self.nvlink_gbs or self.pcie_gbs


MODELS = (
    GpuModel("a100-40", 39.4, 312, 1555, (8, 0), pcie_gbs=32, nvlink_gbs=300),
    GpuModel("a100-80", 79.2, 312, 2039, (8, 0), pcie_gbs=32, nvlink_gbs=300),
    GpuModel("h100", 79.1, 989, 3350, (9, 0), pcie_gbs=64, nvlink_gbs=450),
    GpuModel("h200", 139.8, 989, 4800, (9, 0), pcie_gbs=64, nvlink_gbs=450),
    GpuModel("l40s", 44.4, 362, 864, (8, 9), pcie_gbs=32),
    GpuModel("rtx4090", 23.6, 165, 1008, (8, 9), pcie_gbs=32),
    GpuModel("rtx3090", 23.6, 71, 936, (8, 6), pcie_gbs=32),
    GpuModel("t4", 14.6, 65, 320, (7, 5), pcie_gbs=16),
)
BY_NAME = {model.name: model for model in MODELS}
OTHER_NAMES = {"a100": "a100-80", "4090": "rtx4090", "3090": "rtx3090"}
BY_BARE_NAME = {name.replace("-", ""): model for name, model in BY_NAME.items()}
BY_BARE_NAME |= {name: BY_NAME[model] for name, model in OTHER_NAMES.items()}
# What the driver calls them; `Gpu.name` holds one of these words.
BY_WORD = {"A100": "a100-80", "H100": "h100", "H200": "h200", "L40S": "l40s", "4090": "rtx4090", "3090": "rtx3090"}


def find_gpu(word: str) -> GpuModel:
    """Return the GPU that a word names: a model, or its memory in GiB with the speed of an A100.

    Raises:
        UsageProblem: it is neither.
    """
    bare = re.sub(r"(?<=\w)[\s_-]+", "", word.strip().lower()).removeprefix("nvidia")
    name = re.sub(r"(?<=\d)(gib|gb)$", "", bare)
    if name in BY_BARE_NAME:
        return BY_BARE_NAME[name]
    if (size := _number(name)) and size > 0:
        return _unknown(f"{size:g} GiB", size)
    near = difflib.get_close_matches(word.strip().lower(), [*BY_NAME, *OTHER_NAMES], n=2)
    known = ", ".join(BY_NAME)
    hint = f"did you mean {' or '.join(near)}?" if near else f"one of {known}, or its memory in GiB such as 48"
    raise UsageProblem(f"--gpu {word}: not a GPU that trainkit knows", hint)


def gpu_model_of(gpu: Gpu) -> GpuModel:
    """Return the model of a GPU that was found in this machine; its own memory counts where it is the smaller one."""
    word = next((word for word in (*BY_WORD, "T4") if re.search(rf"(?<![A-Z0-9]){word}(?![0-9])", gpu.name)), "")
    name = "a100-40" if word == "A100" and gpu.memory_gib < SMALL_A100_GIB else BY_WORD.get(word, word.lower())
    if not name:
        return dataclasses.replace(_unknown(gpu.name, gpu.memory_gib), capability=gpu.capability)
    model = BY_NAME[name]
    return dataclasses.replace(model, memory_gib=min(model.memory_gib, gpu.memory_gib), capability=gpu.capability)


def _unknown(name: str, memory_gib: float) -> GpuModel:
    return dataclasses.replace(BY_NAME["a100-80"], name=name, memory_gib=memory_gib, nvlink_gbs=0, known=False)


def _number(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
