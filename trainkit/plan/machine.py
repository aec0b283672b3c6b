"""Fitting a configuration to the machine: what it cannot compute is switched off, with a note."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainkit.datatypes import Hardware
    from trainkit.plan.keys import Draft

NEEDS_AMPERE = ("bf16", "bf16_full_eval", "pure_bf16", "tf32")
NEEDS_GPU = ("fp16", "fp16_full_eval", "fp8")


def adapt_to_machine(draft: Draft, hardware: Hardware) -> None:
    """Switch off what this machine cannot compute and cap the workers at its cores."""
    if not hardware.gpus:
        _switch_off(draft, (*NEEDS_AMPERE, *NEEDS_GPU), "there is no GPU here")
        _use_processor(draft)
    elif not hardware.supports_bf16:
        wanted = [key for key in ("bf16", "pure_bf16") if draft.values.get(key) is True]
        oldest = min(hardware.gpus, key=lambda gpu: gpu.capability).name
        _switch_off(draft, NEEDS_AMPERE, f"{oldest} cannot compute it (that takes capability 8.0)")
        if wanted:
            _set(draft, "fp16", True, draft.origin[wanted[0]])
            draft.say("fp16", f"on in the place of {wanted[0]}")
    _drop_usual_backend(draft, hardware)
    _cap_workers(draft, hardware.cpu_count)


def _use_processor(draft: Draft) -> None:
    """Ask for the CPU by name, except from DeepSpeed: its ZeRO-3 finds the CPU itself and fails when it is named."""
    said = "there is no GPU here: training on the CPU, slow for any real model"
    if draft.values.get("deepspeed"):
        if draft.values.get("use_cpu") is True:
            draft.drop("use_cpu", "DeepSpeed finds the CPU itself, and its ZeRO-3 fails when it is named")
        draft.say("deepspeed", said)
    elif draft.values.get("use_cpu") is not True:
        _set(draft, "use_cpu", True, "this machine")
        draft.say("use_cpu", said)


def _drop_usual_backend(draft: Draft, hardware: Hardware) -> None:
    """Leave the backend to the trainer, which takes nccl or gloo itself; a single process fails when it is named."""
    several = len(hardware.gpus) > 1 or draft.values.get("deepspeed")
    backend = draft.values.get("ddp_backend")
    if backend == "nccl" or (backend == "gloo" and not (hardware.gpus and several)):
        draft.drop("ddp_backend", "the trainer chooses it, and a single process fails when it is named")


def _switch_off(draft: Draft, keys: tuple[str, ...], why: str) -> None:
    for key in keys:
        if draft.values.get(key):
            draft.values[key] = False
            draft.say(key, f"switched off: {why}")


def _cap_workers(draft: Draft, cpu_count: int) -> None:
    key = "preprocessing_num_workers"
    workers = draft.values.get(key)
    if isinstance(workers, int) and workers > cpu_count:
        draft.values[key] = cpu_count
        if not draft.origin[key].startswith("template "):
            draft.say(key, f"{workers} is more than the {cpu_count} cores here: {cpu_count}")


def _set(draft: Draft, key: str, value: Any, origin: str) -> None:
    draft.values[key] = value
    draft.origin[key] = origin
