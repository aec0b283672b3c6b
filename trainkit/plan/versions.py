"""The set of versions that works together, and what is wrong with the one that is installed.

The pins are those of requirements/train.lock, which a wheel does not hold. The bounds are those that LLaMA-Factory
checks at its start (`llamafactory.extras.misc.check_dependencies`), and that end it with an ImportError.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import TYPE_CHECKING

from trainkit.datatypes import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PINS = {
    "llamafactory": "0.9.5",
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "torchaudio": "2.11.0",
    "transformers": "5.6.0",
    "tokenizers": "0.22.2",
    "peft": "0.18.1",
    "accelerate": "1.11.0",
    "datasets": "4.0.0",
    "trl": "0.24.0",
    "deepspeed": "0.19.8",
    "bitsandbytes": "0.50.2",
    "liger-kernel": "0.8.5",
    "swanlab": "0.10.3",
    "wandb": "0.31.0",
    "matplotlib": "3.11.2",
}
# Without these no training starts; each of the others is for one purpose.
NEEDED = tuple(PINS)[:10]
PURPOSES = {
    "deepspeed": "ZeRO: deepspeed: ds_z3.json",
    "bitsandbytes": "QLoRA: quantization_bit: 4, and 8-bit optimizers",
    "liger-kernel": "less memory for long rows: enable_liger_kernel: true",
    "swanlab": "tracking: --monitor swanlab",
    "wandb": "tracking: --monitor wandb",
    "matplotlib": "the loss curve: plot_loss: true",
}
BOUNDS = {
    "transformers": ("4.55.0", "5.6.0"),
    "datasets": ("2.16.0", "4.0.0"),
    "accelerate": ("1.3.0", "1.15.0"),
    "peft": ("0.18.0", "0.20.0"),
    "trl": ("0.18.0", "0.24.0"),
}
INSTALL_ALL = "install the set that works together: ./run_training.sh --install-deps, or pip install 'trainkit[train]'"


def check_versions(found: Mapping[str, str]) -> list[Problem]:
    """Return what is wrong with the installed versions, at most one problem for each package, in the order of PINS.

    Args:
        found: package -> version, of the trainer's environment; a package that is not there is not installed.
    """
    return [problem for name in PINS if (problem := _check(name, found))]


def release_of(version: str) -> tuple[int, ...]:
    """Return the numbers of a version before any word in it.

    `release_of("2.11.0+cu130")` and `release_of("2.11.0rc1")` are `(2, 11, 0)`.
    """
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[^\d.]", version.strip(), maxsplit=1)[0]))


def compare(one: str, other: str) -> int:
    """Return -1, 0 or 1 as the release of `one` is below, equal to or above that of `other`; 4.0 equals 4.0.0."""
    for left, right in zip_longest(release_of(one), release_of(other), fillvalue=0):
        if left != right:
            return -1 if left < right else 1
    return 0


def _check(name: str, found: Mapping[str, str]) -> Problem | None:
    if name not in found:
        if name in NEEDED:
            return Problem(name, f"not installed, and no training starts without it ({PINS[name]})", INSTALL_ALL)
        return Problem(name, "not installed", f"pip install {name}=={PINS[name]}, for {PURPOSES[name]}", "note")
    version = found[name]
    if wrong := next(_broken(name, version, found), ""):
        return Problem(name, f"{version} {wrong}", INSTALL_ALL)
    if compare(version, PINS[name]) != 0:
        return Problem(name, f"{version} is not {PINS[name]}, with which trainkit is tested", INSTALL_ALL, "warning")
    return None


def _broken(name: str, version: str, found: Mapping[str, str]) -> Iterator[str]:
    """Yield why a version cannot work."""
    if name in BOUNDS:
        low, high = BOUNDS[name]
        if compare(version, low) < 0 or compare(version, high) > 0:
            yield f"is refused by LLaMA-Factory, which takes {low} to {high}"
    if name in ("torchvision", "torchaudio") and "torch" in found:
        torch = found["torch"]
        if release_of(version)[:2] != _partner(name, torch):
            wanted = ".".join(map(str, _partner(name, torch)))
            yield f"does not belong to torch {torch}, which goes with {name} {wanted}"
        elif not _same_build(version, torch):
            yield f"is built for other hardware than torch {torch}"


def _partner(name: str, torch: str) -> tuple[int, ...]:
    """Return the first two numbers of the torchvision or torchaudio that is released with a torch."""
    major, minor = (*release_of(torch), 0, 0)[:2]
    # torchvision 0.15 came with torch 2.0, and each has gone up by one since; torchaudio takes the number of torch
    return (0, minor + 15) if name == "torchvision" else (major, minor)


def _same_build(one: str, other: str) -> bool:
    """Return whether two builds, `cpu` or `cu130` in 2.11.0+cu130, fit; a version without a word is a CUDA build."""
    builds = {version.partition("+")[2] for version in (one, other)}
    return len(builds) == 1 or ("" in builds and "cpu" not in builds)
