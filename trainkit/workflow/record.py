"""What a training leaves behind for people and for later commands: the manifest of its run, the marker of its model."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any

from trainkit.dataset.registry import find_files, find_manifest, load_registry
from trainkit.files import load_json, write_text_atomic
from trainkit.plan.render import render_yaml
from trainkit.runs.store import describe_data, find_commit, find_versions, link_run, write_marker
from trainkit.workflow.prepare import names_of
from trainkit.workflow.start import SAME_RUN

if TYPE_CHECKING:
    from pathlib import Path

    from trainkit.datatypes import Outcome
    from trainkit.runs.store import Run
    from trainkit.workflow.preempt import Ended
    from trainkit.workflow.prepare import Prepared, Settings
    from trainkit.workflow.start import TrainPlan

VERSIONED = ("trainkit", "llamafactory", "torch", "transformers", "peft", "accelerate", "datasets", "deepspeed", "trl")
GENERATION_KEYS = ("do_sample", "temperature", "top_p", "top_k", "num_beams", "max_new_tokens", "repetition_penalty")
EXPORT_KEYS = ("export_dir", "export_size", "export_device")


def start_run(plan: TrainPlan, run_folder: Run, settings: Settings) -> dict[str, Any]:
    """Write down all that is known before the start; return the manifest."""
    write_text_atomic(run_folder.config_file, render_yaml(plan.config))
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    first = not plan.prepared.node_rank
    if first:
        write_marker(plan.output_dir, marker_of(plan, run_folder))
    manifest = {
        "run_id": run_folder.run_id,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(plan.command.argv),
        "environment": sorted({*plan.command.env, *plan.secrets}),
        "versions": find_versions(VERSIONED),
        "output_dir": str(plan.output_dir),
        "tracked_as": wandb_run_id(plan) or run_folder.run_id,
        "datasets": describe_entries(plan.prepared),
        "data": describe_inputs(plan.prepared),
        "resumed_from": str(plan.resume.checkpoint.path) if plan.resume.checkpoint else None,
        "git_commit": find_commit(settings.base),
        "hardware": dataclasses.asdict(plan.prepared.hardware),
        "restarts": [],
        "notes": [f"{note.where}: {note.message}" for note in plan.notes],
    }
    manifest["links"] = link_run(run_folder, plan.output_dir) if first else []
    run_folder.write_manifest(manifest)
    return manifest


def dataset_names(prepared: Prepared) -> list[str]:
    return [*prepared.datasets, *names_of(prepared.config.values.get("eval_dataset"))]


def describe_entries(prepared: Prepared) -> dict[str, Any]:
    """Return the file and the ranges of rows of each training and eval data set, as they were registered."""
    entries = load_registry(prepared.dataset_dir)
    kept = {name: entries[name] for name in dataset_names(prepared) if isinstance(entries.get(name), dict)}
    return {name: {key: entry.get(key) for key in ("file_name", "split")} for name, entry in kept.items()}


def describe_inputs(prepared: Prepared) -> list[dict[str, Any]]:
    """Return digest, size and rows of each local file of the training and eval data."""
    files = {file for name in dataset_names(prepared) for file in find_files(prepared.dataset_dir, name)}
    return [describe_data(file) for file in sorted(files)]


def marker_of(plan: TrainPlan, run_folder: Run) -> dict[str, Any]:
    """Return what export and chat need to know of a trained model."""
    values = plan.config.values
    manifests = [find_manifest(plan.prepared.dataset_dir, name) for name in plan.prepared.datasets]
    forms = [manifest.get("metadata_form", []) for manifest in manifests if manifest]
    return {
        "run_id": run_folder.run_id,
        "kind": "training",
        "tracked_as": wandb_run_id(plan) or run_folder.run_id,
        **{key: values.get(key) for key in (*SAME_RUN, "stage", "trust_remote_code", "quantization_bit")},
        "enable_thinking": values.get("enable_thinking"),
        "metadata_form": forms[0] if forms else [],
        "generation": {key: values[key] for key in GENERATION_KEYS if key in values},
        "export": {key: values[key] for key in EXPORT_KEYS if key in values},
    }


def wandb_run_id(plan: TrainPlan) -> str:
    """Return the run's id at W&B, empty when W&B is not told one."""
    return plan.command.env.get("WANDB_RUN_ID") or plan.prepared.environ.get("WANDB_RUN_ID", "")


def find_metrics(output_dir: Path, outcome: Outcome) -> dict[str, Any]:
    """Return the trainer's own final metrics, empty for a training that did not end; null for one that is no number."""
    path = output_dir / "all_results.json"
    if outcome.exit_code != 0 or not path.exists():
        return {}
    metrics = load_json(path)
    if not isinstance(metrics, dict):
        return {}
    # the trainer writes NaN, which is not JSON
    broken = {name for name, value in metrics.items() if isinstance(value, float) and not isfinite(value)}
    return metrics | dict.fromkeys(broken)


def restart_run(plan: TrainPlan, run_folder: Run, manifest: dict[str, Any], restart: dict[str, Any]) -> None:
    """Write down that the trainer starts again, with the configuration of the new plan."""
    write_text_atomic(run_folder.config_file, render_yaml(plan.config))
    manifest["restarts"].append(restart)
    run_folder.write_manifest(manifest)


def finish_run(run_folder: Run, manifest: dict[str, Any], ended: Ended, metrics: dict[str, Any]) -> None:
    """Complete the manifest."""
    known = {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(ended.outcome.seconds, 1),
        "exit_code": 128 + ended.preempted.signal if ended.preempted else ended.outcome.exit_code,
        "signal": ended.outcome.signal,
        "preempted": ended.preempted is not None,
        "step": ended.step,
        "metrics": metrics,
    }
    run_folder.write_manifest(manifest | known)
