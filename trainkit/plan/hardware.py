"""What this machine offers, and the one way this room asks another Python program."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import psutil

from trainkit.datatypes import Gpu, Hardware
from trainkit.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GIB = 2**30
CHILD_SECONDS = 300.0


def find_hardware(env: Mapping[str, str]) -> Hardware:
    """Return the GPUs that CUDA would show a process with `env`, the usable CPU cores and the memory in GiB."""
    return Hardware(
        gpus=find_gpus(env.get("CUDA_VISIBLE_DEVICES")),
        cpu_count=usable_cores(),
        memory_gib=round(psutil.virtual_memory().total / GIB, 1),
    )


def find_gpus(visible: str | None) -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that `CUDA_VISIBLE_DEVICES=visible` leaves (None: all), without starting CUDA."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        names = visible_names(visible, pynvml.nvmlDeviceGetCount())
        return tuple(_describe(pynvml, name) for name in names)
    except pynvml.NVMLError as error:
        raise EnvironmentProblem(
            f"the NVIDIA driver does not answer: {error}",
            "does `nvidia-smi` work? CUDA_VISIBLE_DEVICES= hides the GPUs",
        ) from None
    finally:
        pynvml.nvmlShutdown()


def visible_names(visible: str | None, count: int) -> list[str]:
    """Return the device indices or UUIDs that CUDA shows: it stops at the first name that is not there.

    `visible_names("1,0", 4)` is `["1", "0"]`, `visible_names("0,7,1", 2)` is `["0"]`, `visible_names("", 2)` is `[]`.
    """
    if visible is None:
        return [str(index) for index in range(count)]
    names: list[str] = []
    for name in (part.strip() for part in visible.split(",")):
        is_index = name.isdecimal() and int(name) < count
        if not (is_index or name.startswith(("GPU-", "MIG-"))):
            break
        names.append(name)
    return names


def _describe(nvml: Any, name: str) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)
    # A MIG slice has its own memory, but its compute capability is the whole GPU's.
    whole = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if name.startswith("MIG-") else handle
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(whole)
    memory_gib = round(nvml.nvmlDeviceGetMemoryInfo(handle).total / GIB, 1)
    return Gpu(nvml.nvmlDeviceGetName(handle), memory_gib, (major, minor))


def usable_cores() -> int:
    """Return how many cores this process may use."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # a container may own fewer cores than the machine has
        return len(process.cpu_affinity() or ()) or 1
    return psutil.cpu_count() or 1


def run_child_json(python: Path, script: Path, payload: Any, env: Mapping[str, str]) -> Any:
    """Run `script` with `python`, `payload` as JSON on its stdin, and return the JSON of its last stdout line.

    Raises:
        EnvironmentProblem: the program cannot be started, fails, hangs, or prints no JSON; its last lines are shown.
    """
    try:
        child = subprocess.run(
            [str(python), str(script)],
            input=json.dumps(payload),
            env=dict(env),
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
            check=False,
        )
    except OSError as error:
        raise EnvironmentProblem(f"{python}: cannot be started: {error.strerror}", "is this a Python?") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentProblem(f"{script.name} did not end within {CHILD_SECONDS:.0f} s") from None
    if child.returncode != 0:
        raise EnvironmentProblem(
            f"{script.name} failed with exit code {child.returncode}:\n{_last_lines(child.stderr or child.stdout)}"
        )
    try:
        return json.loads(child.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise EnvironmentProblem(f"{script.name} printed no result:\n{_last_lines(child.stdout)}") from None


def _last_lines(text: str, count: int = 8) -> str:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-count:])
