"""`trainkit doctor`: what the trainer's environment and this machine are able to do, tried out for real."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit import environment
from trainkit.errors import EnvironmentProblem
from trainkit.launch.monitoring import plan_monitoring
from trainkit.launch.reach import can_reach
from trainkit.plan.hardware import find_gpus, run_child_json
from trainkit.plan.versions import INSTALL_ALL, NEEDED, PINS, check_versions, release_of
from trainkit.workflow.export import INSIDE
from trainkit.workflow.prepare import trainer_python

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trainkit.datatypes import Gpu, Level
    from trainkit.launch.monitoring import Tracker

GIB = 2**30
# Package -> the module whose import brings in what a training uses of it.
IMPORTS = {
    **{name: name for name in PINS},
    "transformers": "transformers.trainer",
    "llamafactory": "llamafactory.train.tuner",
    "liger-kernel": "liger_kernel.transformers",
    "matplotlib": "matplotlib.pyplot",
    "flash-attn": "flash_attn",
}
OPTIONAL = {"flash-attn": "flash_attn: fa2; PyTorch's own attention does without", "vllm": "fast answers in serving"}
TRACKERS: tuple[Tracker, ...] = ("swanlab", "wandb")
LEAST_SHARED_MEMORY = GIB
LEAST_OPEN_FILES = 1024
LEAST_DISK = 20 * GIB


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the report: `Item("torch", "2.11.0, imported in 2.1 s")`; `level` None means that it is in order."""

    name: str
    value: str
    level: Level | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found: the lines for a person, and the figures behind them."""

    items: tuple[Item, ...]
    facts: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """Whether nothing keeps a training from starting."""
        return all(item.level != "error" for item in self.items)


def doctor() -> Report:
    """Try out the trainer's environment: import every package of the set, multiply on each GPU, look at the machine.

    Raises:
        EnvironmentProblem: the trainer's Python cannot be started or does not answer.
    """
    env = environment.snapshot()
    last = sorted(IMPORTS, key=lambda name: name == "llamafactory")  # it is built on the others
    request = {
        "imports": {name: IMPORTS[name] for name in last},
        "present": ["vllm"],
        "folder": str(Path.cwd()),
    }
    facts = run_child_json(trainer_python(), INSIDE / "doctor.py", request, env)
    items = [
        Item("python", facts["python"]),
        *check_packages(facts["packages"]),
        *check_accelerator(facts, env),
        *check_programs(facts),
        *check_trackers(facts["packages"], env),
        *check_machine(facts["machine"]),
    ]
    return Report(tuple(items), facts)


def check_packages(packages: Mapping[str, Mapping[str, Any]]) -> Iterator[Item]:
    """Yield a line for each package: its version, whether it is the right one, whether it imports."""
    found = {name: package["version"] for name, package in packages.items() if package["version"]}
    problems = {problem.where: problem for problem in check_versions(found)}
    for name in (*PINS, *OPTIONAL):
        package, problem = packages[name], problems.get(name)
        if package["error"]:
            level: Level = "error" if name in NEEDED else "warning"
            hint = INSTALL_ALL if name in PINS else f"install one that is built for this torch, or remove {name}"
            yield Item(name, f"{package['version']} does not import: {package['error']}", level, hint)
        elif problem:
            yield Item(name, problem.message, problem.level, problem.hint)
        elif name in found:
            seconds = package["seconds"] or 0
            yield Item(name, found[name] + (f", imported in {seconds:.1f} s" if seconds > 0.1 else ""))
        else:
            yield Item(name, "not installed", "note", f"for {OPTIONAL[name]}")


def check_accelerator(facts: Mapping[str, Any], env: Mapping[str, str]) -> Iterator[Item]:
    """Yield what torch was built for, the driver, and each GPU as it was tried out."""
    torch, driver = facts["torch"], facts["driver"]
    if not torch["error"]:
        words = [
            f"{name} {torch[key]}"
            for key, name in (("cuda", "CUDA"), ("nccl", "NCCL"), ("cudnn", "cuDNN"))
            if torch[key]
        ]
        yield Item("torch's build", ", ".join(words) or "for the CPU alone")
    try:
        gpus = find_gpus(None)
    except EnvironmentProblem as error:
        yield Item("driver", error.message, "error", error.hint)
        return
    if not driver["error"]:
        yield Item("driver", f"{driver['version']}, for CUDA up to {driver['cuda']}")
    if not gpus:
        said = driver["error"] and f"none, and no NVIDIA driver answers ({driver['error'].partition(': ')[2]})"
        hint = (
            "training runs on the CPU, slow for any real model; trainkit suggest --gpu NAME plans for another machine"
        )
        yield Item("GPU", said or "none", "warning", hint)
    elif torch["error"] or not facts["gpus"]:
        yield _blind_torch(torch, driver, gpus, env.get("CUDA_VISIBLE_DEVICES"))
    for index, gpu in enumerate(facts["gpus"]):
        yield _check_gpu(f"GPU {index}", gpu)


def _blind_torch(
    torch: Mapping[str, Any], driver: Mapping[str, Any], gpus: tuple[Gpu, ...], visible: str | None
) -> Item:
    """Return why torch sees none of the GPUs that the driver has."""
    there = f"{len(gpus)} x {gpus[0].name}: the driver is there, and torch sees no GPU"
    if torch["error"]:
        return Item("GPU", there, "error", "torch does not import, see above")
    if visible is not None and not find_gpus(visible):
        return Item("GPU", there, "error", f"CUDA_VISIBLE_DEVICES={visible} hides them: unset it")
    if not torch["cuda"]:
        return Item("GPU", there, "error", f"this torch is built for the CPU alone: {INSTALL_ALL}")
    if not driver["error"] and release_of(driver["cuda"])[:1] < release_of(torch["cuda"])[:1]:
        hint = f"torch is built for CUDA {torch['cuda']}, the driver runs up to {driver['cuda']}: update the driver"
        return Item("GPU", there, "error", hint)
    return Item("GPU", f"{there}: {torch['why']}" if torch["why"] else there, "error", "does `nvidia-smi` work?")


def _check_gpu(name: str, gpu: Mapping[str, Any]) -> Item:
    if gpu["error"]:
        hint = "is another program using it? does `nvidia-smi` show errors? leave it out with CUDA_VISIBLE_DEVICES"
        return Item(name, f"fails a matrix product: {gpu['error']}", "error", hint)
    capability = ".".join(map(str, gpu["capability"]))
    words = f"{gpu['name']}, {_gib(gpu['memory_bytes'])}, capability {capability}, {gpu['tflops']:.0f} TFLOP/s"
    if gpu["free_bytes"] < 0.9 * gpu["memory_bytes"]:
        hint = "another program holds the rest: `nvidia-smi` shows which"
        return Item(name, f"{words}, only {_gib(gpu['free_bytes'])} free", "warning", hint)
    if not gpu["bf16"]:
        return Item(name, f"{words}, no bfloat16", "note", "trainkit trains in float16 there")
    return Item(name, f"{words} in bfloat16")


def check_programs(facts: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the programs that start a training, and the compilers that DeepSpeed asks for."""
    programs = facts["programs"]
    for name in ("llamafactory-cli", "torchrun"):
        if not programs[name]:
            yield Item(name, "not found beside the trainer's Python", "error", INSTALL_ALL)
        elif " " in programs[name]:
            hint = "training on several GPUs and with DeepSpeed fails: move the environment"
            yield Item(name, f"{programs[name]}: a space in its path", "warning", hint)
        else:
            yield Item(name, programs[name])
    deepspeed = facts["deepspeed"]
    if not deepspeed or deepspeed["error"] or "cpu_adam" in deepspeed["built"]:
        return
    needed = ("nvcc", "c++") if facts["gpus"] else ("c++",)
    missing = [name for name in needed if not programs[name]]
    words = "its operators are compiled at their first use"
    if missing:
        hint = f"for offload to the CPU install {' and '.join(missing)} (nvcc is in the CUDA toolkit; set CUDA_HOME)"
        yield Item("deepspeed ops", f"{words}, and there is no {' and no '.join(missing)}", "warning", hint)
    else:
        yield Item("deepspeed ops", words)


def check_trackers(packages: Mapping[str, Mapping[str, Any]], env: Mapping[str, str]) -> Iterator[Item]:
    """Yield how each installed tracker would record a training: to its server or offline; no key is shown."""
    for name in TRACKERS:
        if packages[name]["version"] is None:
            continue
        planned = plan_monitoring(
            name,
            {},
            env,
            installed=lambda _: True,
            home=Path.home(),
            run_name="doctor",
            log_dir=Path(),
            reachable=can_reach,
        )
        notes = [note for note in planned.notes if note.where == name]
        if notes:
            yield Item(f"{name} login", notes[0].message.replace("this run is", "runs are"), "note", notes[0].hint)
        else:
            yield Item(f"{name} login", "there, and its server answers")


def check_machine(machine: Mapping[str, Any]) -> Iterator[Item]:
    """Yield memory, shared memory, open files and disks."""
    total = min(machine["memory_bytes"], machine["memory_limit_bytes"] or machine["memory_bytes"])
    yield Item("memory", f"{_gib(total)}, {_gib(machine['available_bytes'])} available")
    shared = machine["shared_memory_bytes"] or 0
    small = shared < LEAST_SHARED_MEMORY
    hint = "the data loader's workers and NCCL need it: start the container with --shm-size=8g, or --ipc=host"
    yield Item("/dev/shm", _gib(shared), "warning" if small else None, hint if small else "")
    files = machine["open_files"]
    few = 0 <= files < LEAST_OPEN_FILES  # -1 is no limit
    hint = f"`ulimit -n {LEAST_OPEN_FILES}` or more before the training"
    yield Item(
        "open files", f"{files:,}" if files >= 0 else "no limit", "warning" if few else None, hint if few else ""
    )
    folder, cache = machine["folder"], machine["hub_cache"]
    yield _check_space("disk", folder["path"], folder["free_bytes"], "trainkit validate says what a training needs")
    words = f"{cache['path']} holds {_gib(cache['bytes'])}"
    yield _check_space("model cache", words, cache["free_bytes"], "HF_HOME names another folder for downloaded models")


def _check_space(name: str, words: str, free: int, hint: str) -> Item:
    scarce = free < LEAST_DISK
    return Item(name, f"{words}, {_gib(free)} free", "warning" if scarce else None, hint if scarce else "")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
