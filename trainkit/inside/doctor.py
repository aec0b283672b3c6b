"""Try out the trainer's environment: import its packages for real, ask torch for its GPUs, look at the machine.

Run by path with the trainer's Python; the request is one JSON object on stdin, the answer the last line of stdout:

    echo '{"imports": {"torch": "torch"}, "present": ["vllm"], "folder": "."}' | python trainkit/inside/doctor.py
    {"python": "3.11.7", "packages": {"torch": {"version": "2.11.0", "seconds": 2.1, "error": null}}, ...}

Request keys: `imports` (package -> module to import, in this order), `present` (packages whose version is enough),
`folder` (whose disk is looked at). The imports run in a process of their own, which says when it starts each one: when
one of them ends that process or hangs, a new process goes on with the next.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import resource
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

STEP_SECONDS = 120.0
MATMUL_SIZE = 8192
PROGRAMS_BESIDE = ("torchrun", "llamafactory-cli", "deepspeed")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def main() -> None:
    """Answer the request on stdin."""
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the libraries print goes to stderr
    print(json.dumps(examine(json.load(sys.stdin))), file=stdout, flush=True)


def examine(request: dict[str, Any]) -> dict[str, Any]:
    """Return all that was found out."""
    versions = {name: find_version(name) for name in (*request["imports"], *request["present"])}
    imports = {name: module for name, module in request["imports"].items() if versions[name]}
    steps = [f"import {module}" for module in imports.values()]
    ops = ["deepspeed"] if "deepspeed" in imports else []
    done = run_steps([*steps, *ops, "torch", "driver"])
    torch = done["torch"]
    gpus = run_steps([f"gpu {index}" for index in range(torch.get("devices", 0))])
    return {
        "python": platform.python_version(),
        "packages": {
            name: {"version": version, "seconds": None, "error": None, **done.get(f"import {imports.get(name)}", {})}
            for name, version in versions.items()
        },
        "torch": torch,
        "driver": done["driver"],
        "gpus": list(gpus.values()),
        "deepspeed": done.get("deepspeed"),
        "programs": find_programs(),
        "machine": describe_machine(Path(request["folder"])),
    }


def find_version(package: str) -> str | None:
    """Return the installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run_steps(steps: list[str]) -> dict[str, dict[str, Any]]:
    """Run steps in worker processes; return step -> its row, with `error` for one that failed, crashed or hung."""
    done: dict[str, dict[str, Any]] = {}
    while left := [step for step in steps if step not in done]:
        started, reason = left[0], ""
        worker, reading = start_worker(left)
        try:
            for row in read_rows(reading):
                started = row.pop("step")
                if row:
                    done[started] = row
        except TimeoutError:
            os.kill(worker, signal.SIGKILL)
            reason = f"no answer within {STEP_SECONDS:.0f} s"
        os.close(reading)
        code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        if started not in done:
            done[started] = {"error": reason or how_it_ended(code)}
    return done


def start_worker(steps: list[str]) -> tuple[int, int]:
    """Fork a process that carries out steps; return its id, and where to read its rows, a line of JSON each."""
    reading, writing = os.pipe()
    worker = os.fork()
    if worker:
        os.close(writing)
        return worker, reading
    try:
        with os.fdopen(writing, "w", encoding="utf-8") as rows:
            for row in work(steps):
                print(json.dumps(row), file=rows, flush=True)
    finally:
        os._exit(0)  # what the libraries do at the end may hang


def read_rows(reading: int) -> Iterator[dict[str, Any]]:
    """Yield a worker's rows as they come.

    Raises:
        TimeoutError: none came for `STEP_SECONDS`.
    """
    rest = b""
    while select.select([reading], [], [], STEP_SECONDS)[0]:
        piece = os.read(reading, 65536)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        yield from map(json.loads, lines)
    raise TimeoutError


def how_it_ended(code: int) -> str:
    """Return in words how a worker ended in the middle of a step.

    >>> how_it_ended(-11)
    'the process crashed (SIGSEGV)'
    """
    return f"the process crashed ({signal.Signals(-code).name})" if code < 0 else f"the process ended with {code}"


def work(steps: list[str]) -> Iterator[dict[str, Any]]:
    """Carry out steps; yield a row of the step's name before each one, and one with its result after it."""
    for step in steps:
        yield {"step": step}
        start = time.perf_counter()
        try:
            found = {**take(step), "error": None}
        except (Exception, SystemExit) as error:  # foreign code, which may raise anything
            found = {"error": one_line(error)}
        yield {"step": step, "seconds": round(time.perf_counter() - start, 2), **found}


def take(step: str) -> dict[str, Any]:
    """Carry out one step and return what it found."""
    verb, _, argument = step.partition(" ")
    if verb == "import":
        importlib.import_module(argument)
        return {}
    if verb == "gpu":
        return try_gpu(int(argument))
    return {"torch": describe_torch, "driver": describe_driver, "deepspeed": describe_deepspeed}[verb]()


def one_line(error: BaseException, most: int = 300) -> str:
    """Return an error's name and text on one line of at most `most` characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def describe_torch() -> dict[str, Any]:
    """Return what torch was built for and how many GPUs it sees; `why` says what keeps it from CUDA."""
    import torch

    why = None
    if torch.version.cuda and not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            why = one_line(error)
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "why": why,
        "cudnn": cudnn_version(torch.backends.cudnn.version()),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else None,
    }


def cudnn_version(number: int | None) -> str | None:
    """Return cuDNN's number as a version; its form has changed with version 9.

    >>> cudnn_version(91900), cudnn_version(8902)
    ('9.19.0', '8.9.2')
    """
    if number is None:
        return None
    major, rest = divmod(number, 10000 if number >= 90000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def describe_driver() -> dict[str, Any]:
    """Return the version of the NVIDIA driver and the newest CUDA that it can run."""
    import pynvml

    pynvml.nvmlInit()
    cuda = pynvml.nvmlSystemGetCudaDriverVersion()
    return {"version": pynvml.nvmlSystemGetDriverVersion(), "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}"}


def describe_deepspeed() -> dict[str, Any]:
    """Return which of DeepSpeed's operators are built already; the others are compiled at their first use."""
    from deepspeed.git_version_info import installed_ops  # type: ignore[import-untyped]
    from torch.utils.cpp_extension import CUDA_HOME

    return {"built": sorted(name for name, built in installed_ops.items() if built), "cuda_home": CUDA_HOME}


def try_gpu(index: int) -> dict[str, Any]:
    """Return what a GPU is and how fast it multiplies matrices, timed for a second, with its result checked."""
    import torch

    device = torch.device("cuda", index)
    told = torch.cuda.get_device_properties(device)
    has_bf16 = (told.major, told.minor) >= (8, 0)
    dtype = torch.bfloat16 if has_bf16 else torch.float16
    left, right = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device, dtype=dtype) for _ in range(2))
    product = left @ right
    exact = left[:16].float() @ right.float()
    if not torch.allclose(product[:16].float(), exact, rtol=0.05, atol=0.02 * MATMUL_SIZE**0.5):
        raise ArithmeticError(f"a matrix product in {dtype} is wrong")
    return {
        "name": told.name,
        "memory_bytes": told.total_memory,
        "free_bytes": torch.cuda.mem_get_info(device)[0],
        "capability": [told.major, told.minor],
        "bf16": has_bf16,
        "tflops": round(time_matmul(left, right, device), 1),
    }


def time_matmul(left: Any, right: Any, device: Any) -> float:
    """Return the TFLOP/s of a product of two square matrices over about a second."""
    import torch

    torch.cuda.synchronize(device)
    start, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < 1 or not count:
        for _ in range(10):
            left @ right
        torch.cuda.synchronize(device)
        count += 10
    return float(count * 2 * left.shape[0] ** 3 / seconds / 1e12)


def find_programs() -> dict[str, str | None]:
    """Return the paths of the programs that belong beside this Python, and of the compilers."""
    beside = str(Path(sys.executable).parent)
    cuda_home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return {
        **{name: shutil.which(name, path=beside) for name in PROGRAMS_BESIDE},
        "nvcc": shutil.which("nvcc") or shutil.which("nvcc", path=f"{cuda_home}/bin"),
        "c++": shutil.which("c++") or shutil.which("g++"),
    }


def describe_machine(folder: Path) -> dict[str, Any]:
    """Return memory, shared memory, open files and disks of this machine, in bytes."""
    memory = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "memory_bytes": int(memory["MemTotal:"]) * 1024,
        "available_bytes": int(memory["MemAvailable:"]) * 1024,
        "memory_limit_bytes": find_memory_limit(),
        "shared_memory_bytes": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        "open_files": soft,
        "open_files_most": hard,
        "folder": {"path": str(folder), "free_bytes": shutil.disk_usage(folder).free},
        "hub_cache": describe_hub_cache(),
    }


def find_memory_limit() -> int | None:
    """Return the bytes of memory that a container may use, None when there is no limit."""
    try:
        text = CGROUP_LIMIT.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def describe_hub_cache() -> dict[str, Any]:
    """Return the folder of downloaded models, what it holds and the free bytes of its disk."""
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    folder = Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    # a snapshot holds links to the files in blobs/
    used = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return {"path": str(folder), "bytes": used, "free_bytes": shutil.disk_usage(existing).free}


if __name__ == "__main__":
    main()
