"""`trainkit suggest --probe`: three real steps with the longest batch on this machine's GPU, against the prediction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trainkit.inside
from trainkit import environment
from trainkit.errors import EnvironmentProblem
from trainkit.plan.calibration import calibration_of, keep_calibration
from trainkit.plan.hardware import run_child_json
from trainkit.workflow.prepare import cache_folder, trainer_python
from trainkit.workflow.trace import is_sharded, model_config, setup_words

if TYPE_CHECKING:
    from trainkit.plan.verdict import Verdict
    from trainkit.workflow.suggestion import Suggestion

INSIDE = Path(trainkit.inside.__file__).parent


@dataclass(frozen=True, slots=True)
class Probed:
    """What real steps took, beside what was predicted; bytes, and tokens per second of one GPU.

    `calibration` is the file that later predictions for this kind of GPU use, None when nothing was measured for it.
    """

    out_of_memory: bool
    allocated: int
    predicted_allocated: int
    tokens_per_second: float
    predicted_tokens_per_second: float
    calibration: Path | None


def probe(suggestion: Suggestion) -> Probed:
    """Run three real steps of the setup that is suggested first, or of the given one, on this machine's GPU.

    Raises:
        EnvironmentProblem: there is no GPU here, or the steps cannot be run.
    """
    if not suggestion.task.machine.here:
        raise EnvironmentProblem("--probe: measures the GPU of this machine", "leave --gpu out")
    verdict = next((candidate.verdict for candidate in suggestion.advice.candidates), suggestion.advice.given)
    if is_sharded(verdict):
        raise EnvironmentProblem("--probe: runs on one GPU that holds everything, not on ZeRO's shards", "--gpus 1")
    answer = run_probe(suggestion, verdict)
    if not answer.get("ok"):
        raise EnvironmentProblem(f"--probe: {answer.get('error', 'no answer')}", "trainkit doctor tries out the GPU")
    found = calibration_of(answer)
    model = suggestion.task.machine.gpu
    return Probed(
        bool(answer["out_of_memory"]),
        int(answer.get("allocated") or 0),
        verdict.memory.allocated,
        float(answer.get("tokens_per_second") or 0.0),
        verdict.speed.tokens_per_second,
        keep_calibration(cache_folder(), model, found) if found else None,
    )


def run_probe(suggestion: Suggestion, verdict: Verdict) -> Any:
    """Return the answer of inside/probe.py for a setup at its longest batch."""
    gpu = suggestion.task.machine.gpu
    request = {
        "config": model_config(suggestion),
        "setup": setup_words(verdict),
        "steps": 3,
        "peak_tflops": gpu.tflops if gpu.known else None,
        "expandable": suggestion.task.machine.expandable_segments,
    }
    return run_child_json(trainer_python(), INSIDE / "probe.py", request, environment.snapshot())
