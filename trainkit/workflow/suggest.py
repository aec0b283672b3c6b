"""`trainkit suggest`: the settings that fit a GPU and are predicted to be the fastest that do; trains nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainkit import environment
from trainkit.datatypes import Gpu, Hardware, Problem
from trainkit.errors import ConfigError, EnvironmentProblem, UsageProblem
from trainkit.plan.architecture import find_architecture
from trainkit.plan.arguments import load_arguments
from trainkit.plan.calibration import calibrated
from trainkit.plan.gpus import find_gpu, gpu_model_of
from trainkit.plan.hardware import find_hardware
from trainkit.plan.setup import not_modelled, setup_of
from trainkit.plan.suggest import advise
from trainkit.plan.verdict import Machine, Task
from trainkit.workflow.look import find_kept_lengths
from trainkit.workflow.prepare import Prepared, Settings, build, cache_folder, trainer_python
from trainkit.workflow.suggestion import Suggestion
from trainkit.workflow.trace import with_trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainkit.datatypes import TrainConfig
    from trainkit.plan.architecture import Architecture
    from trainkit.plan.padding import Lengths

UNKNOWN_CORES = 1024


@dataclass(frozen=True, slots=True)
class SuggestOptions:
    """What a suggestion is for.

    Attributes:
        gpu: a GPU by name, or its memory in GiB; None is this machine's.
        gpus: how many; None is as many as this machine has, or 1 of a named one.
        exact: also trace the memory of the given setup and the best ones, on the real model class.
        effective_batch: rows of one optimizer step; None keeps those of the configuration.
        expandable_segments: the trainer is started with PYTORCH_ALLOC_CONF=expandable_segments:True.
    """

    gpu: str | None = None
    gpus: int | None = None
    exact: bool = False
    effective_batch: int | None = None
    expandable_segments: bool = True


def suggest(settings: Settings, options: SuggestOptions, lengths: Lengths | None = None) -> Suggestion:
    """Return which settings fit and are predicted to be the fastest; nothing is written.

    Args:
        settings: what the user said about the training.
        options: the machine that it is meant for.
        lengths: tokens of the rows before truncation; without them what an earlier look at the data found, and when
            there was none, every row counts as cutoff_len.

    Raises:
        EnvironmentProblem: no GPU is named and there is none here.
        ConfigError: the model's sizes cannot be found, or the configuration is one that no formula covers.
        UsageProblem: the GPU is not known.
    """
    env = settings.environ()
    machine = find_machine(options, env)
    schema = load_arguments(trainer_python(), cache_folder(), env)
    config = build(settings, schema, hardware_of(machine))
    architecture = architecture_for(config, env)
    lengths = lengths or find_kept_lengths(Prepared(config, schema, hardware_of(machine), ()))
    cutoff_len = int(config.values.get("cutoff_len") or schema.default("cutoff_len"))
    cut = lengths.cut(cutoff_len) if lengths else None
    given = setup_of(
        config.values,
        schema.default,
        machine.gpu,
        world=machine.count,
        longest=cut.longest if cut else None,
        never_padded=bool(cut and cut.never_padded),
        expandable_segments=options.expandable_segments,
    )
    task = Task(
        architecture,
        machine,
        given,
        cutoff_len,
        options.effective_batch or given.micro_batch * given.accumulation * given.world,
        lengths,
        schema.versions,
        grouped=config.values.get("train_sampling_strategy") == "group_by_length",
    )
    advice = advise(task)
    suggestion = Suggestion(settings, config, task, advice, (*advice.notes, *_left_out(config)))
    return with_trace(suggestion, env) if options.exact else suggestion


def find_machine(options: SuggestOptions, env: Mapping[str, str] | None = None) -> Machine:
    """Return the machine that the options name, else this one.

    Raises:
        EnvironmentProblem: there is no GPU here.
        UsageProblem: the GPU is not known, or the number is not above 0.
    """
    if options.gpus is not None and options.gpus < 1:
        raise UsageProblem(f"--gpus {options.gpus}: must be 1 or more")
    if options.gpu:
        gpu = calibrated(find_gpu(options.gpu), cache_folder())
        return Machine(gpu, options.gpus or 1, options.expandable_segments)
    found = find_hardware(environment.snapshot() if env is None else env).gpus
    if not found:
        raise EnvironmentProblem("there is no NVIDIA GPU here", "name the one that is meant: --gpu a100-40")
    smallest = min(found, key=lambda gpu: gpu.memory_gib)
    gpu = calibrated(gpu_model_of(smallest), cache_folder())
    return Machine(gpu, options.gpus or len(found), options.expandable_segments, here=True)


def hardware_of(machine: Machine) -> Hardware:
    """Return a machine as the configuration's builder sees one; its cores are not known, so none are capped."""
    model = machine.gpu
    gpu = Gpu(model.name, model.memory_gib, model.capability)
    return Hardware((gpu,) * machine.count, cpu_count=UNKNOWN_CORES, memory_gib=0.0)


def architecture_for(config: TrainConfig, env: dict[str, str]) -> Architecture:
    """Return the sizes of the configuration's model.

    Raises:
        ConfigError: there is no config.json for it, and it is no well-known one.
    """
    name = str(config.values.get("model_name_or_path") or "")
    found = find_architecture(name, env) if name else None
    if found is None:
        raise ConfigError(
            f"model_name_or_path {name}: no config.json there, so its sizes are not known",
            "config.json is enough, without weights; or name the model as on the hub: Qwen/Qwen2.5-7B-Instruct",
        )
    return found


def _left_out(config: TrainConfig) -> list[Problem]:
    hint = "expect other figures; the first steps show the real need"
    return [
        Problem(f"{config.origin.get(key, '')} {key}".strip(), "is not part of the memory model", hint, "warning")
        for key in not_modelled(config.values)
    ]
