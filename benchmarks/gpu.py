"""Compare predicted with measured memory and speed on one NVIDIA GPU: real optimizer steps of real model sizes.

    python benchmarks/gpu.py --out results.jsonl --budget 440   # on the machine with the GPU; random weights, no hub
    python benchmarks/gpu.py --predict results.jsonl            # afterwards, anywhere: errors as a Markdown table
    python benchmarks/gpu.py --dry --out results.jsonl          # a tiny model on the CPU, to see that it runs

The cases are in order of value and those of one kind share a process, since liger's patches and the allocator's
settings hold for a whole process; the budget in seconds cuts the end of each kind. Each case is a line of JSON, flushed
as it comes; running out of memory is a result. With --python another environment's Python runs the cases.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpu_cases import CASES, DRY  # noqa: E402

from trainkit.datatypes import Gpu  # noqa: E402
from trainkit.plan.gpus import gpu_model_of  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

INSIDE = ROOT / "trainkit" / "inside"
GIB = 2**30
MIB = 2**20
SPEEDUP = 2.0
SHORTFALL = 0.05
RESERVED = {False: "reserved", True: "reserved_expandable"}
SEED_MODEL = "Qwen2.5-7B lora"
KINDS = {"plain": 0.55, "liger": 0.4, "expandable": 0.05}  # shares of the budget
GOALS = {"allocated": (0.05, 0.9, 0.10), "reserved": (0.15, 1.0, 0.15), "tokens_per_second": (0.20, 1.0, 0.20)}


def kind_of(entry: dict[str, Any]) -> str:
    """Return the kind of process that a case needs."""
    return "expandable" if entry["expandable"] else "liger" if entry["setup"].get("liger") else "plain"


def measure(cases: list[dict[str, Any]], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield each case with what it took; each kind has its share of what is left of the budget."""
    started = time.perf_counter()
    left_share = 1.0
    for kind, share in KINDS.items():
        chosen = [entry for entry in cases if kind_of(entry) == kind]
        left = options.budget - (time.perf_counter() - started)
        if chosen:
            yield from run_kind(chosen, left * share / left_share, options)
        left_share -= share


def run_kind(cases: list[dict[str, Any]], seconds: float, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run the cases of one kind in a process of their own and yield each with its answer as it comes."""
    command = [options.python, str(INSIDE / "probe.py"), *(("--device", "cpu") if options.dry else ())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        json.dump({"cases": cases, "seconds": seconds}, process.stdin)
        process.stdin.close()
        answered = 0
        for line in process.stdout:
            yield cases[answered] | {"measured": json.loads(line)}
            answered += 1
        process.wait()
    for entry in cases[answered:]:
        yield entry | {"measured": {"ok": False, "error": f"the process ended with code {process.returncode}"}}


def write(options: argparse.Namespace) -> int:
    """Measure every case into the output file; return 0 when each one could be run."""
    sound = True
    with Path(options.out).open("a", encoding="utf-8") as out:
        for entry in measure(DRY if options.dry else CASES, options):
            out.write(json.dumps(entry) + "\n")
            out.flush()
            measured = entry["measured"]
            sound = sound and measured["ok"]
            words = measured.get("error") or outcome(measured)
            print(f"{label(entry):60} {words}", flush=True)
    return 0 if sound else 1


def outcome(measured: dict[str, Any]) -> str:
    """Return what a run took, in words."""
    if measured["out_of_memory"]:
        return "out of memory"
    allocated = "" if measured["allocated"] is None else f"{measured['allocated'] / GIB:.2f} GiB, "
    return f"{allocated}{measured['tokens_per_second']:.0f} tokens/s"


def label(entry: dict[str, Any]) -> str:
    """Return a case in words: `Qwen2.5-7B lora 2x4096 liger`."""
    setup = entry["setup"]
    marks = [key for key in ("masked", "liger", "pure_bf16") if setup.get(key)]
    marks += ["no checkpointing"] if not setup["checkpointing"] else []
    marks += [f"dropout {setup['dropout']}"] if setup.get("dropout") else []
    marks += [setup["stage"]] if setup["stage"] != "sft" else []
    marks += ["expandable segments"] if entry["expandable"] else []
    return " ".join([entry["model"], setup["method"], f"{setup['micro_batch']}x{setup['seq_tokens']}", *marks])


def predict(path: str, python: str) -> None:
    """Print the predictions beside the measurements, their errors and how the goals were met."""
    entries = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    entries = [entry for entry in entries if entry["measured"]["ok"] and entry["model"] != "tiny"]
    if not entries:
        raise SystemExit(f"{path}: no case of a real model that could be run")
    traces = trace(entries, python)
    rows = [compare(entry, traced) for entry, traced in zip(entries, traces, strict=True)]
    print(heading(entries[0]["measured"]))
    print(table(rows))
    print(goals(rows))


def trace(entries: list[dict[str, Any]], python: str) -> list[dict[str, Any]]:
    """Return the exact trace of each case."""
    request = {"cases": [{"config": entry["config"], "setup": entry["setup"]} for entry in entries]}
    command = [python, str(INSIDE / "memory_trace.py")]
    done = subprocess.run(command, input=json.dumps(request), stdout=subprocess.PIPE, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1])["results"])


def compare(entry: dict[str, Any], traced: dict[str, Any]) -> dict[str, Any]:
    """Return a row: the case, the measured figures, and (predicted, error) of closed form, trace and speed."""
    from trainkit.plan.architecture import architecture_of
    from trainkit.plan.memory import Setup, estimate
    from trainkit.plan.throughput import predict_speed

    measured = entry["measured"]
    architecture = architecture_of(entry["config"])
    card = {"hopper": measured["capability"][0] >= 9, "expandable_segments": entry["expandable"]}
    setup = Setup(**entry["setup"], **card)
    major, minor = measured["capability"]
    gpu = gpu_model_of(Gpu(measured["gpu"], measured["memory_bytes"] / GIB, (major, minor)))
    form = estimate(architecture, setup)
    tensors = traced.get("allocated")
    return {
        "case": label(entry),
        "fits": form.total <= measured["memory_bytes"],
        "measured": None if measured["out_of_memory"] else measured,
        "allocated": error(form.allocated, measured, "allocated"),
        "traced": error(tensors and tensors + measured["workspace_bytes"], measured, "allocated"),
        "reserved": error(traced.get(RESERVED[entry["expandable"]]), measured, "reserved"),
        "tokens_per_second": error(
            predict_speed(architecture, setup, gpu).tokens_per_second, measured, "tokens_per_second"
        ),
    }


def error(predicted: float | None, measured: dict[str, Any], name: str) -> tuple[float | None, float | None]:
    """Return (predicted, its relative error); None where nothing was predicted or the run was out of memory."""
    if predicted is None or measured["out_of_memory"]:
        return predicted, None
    return predicted, predicted / measured[name] - 1


def heading(measured: dict[str, Any]) -> str:
    """Return the card, the date and what was measured of the card itself."""
    return (
        f"{measured['gpu']}, {measured['date']}, torch {measured['torch']}: {measured['matmul_tflops']} TFLOP/s in "
        f"multiplications, {measured['attention_tflops']} in attention, {measured['masked_tflops']} with a mask; "
        f"workspace {measured['workspace_bytes'] / MIB:.0f} MiB, context {measured['context_bytes'] / MIB:.0f} MiB.\n"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table of all cases."""
    lines = ["| case | GiB | closed form | trace | reserved | its error | tokens/s | its error |", "|---|" + "--:|" * 7]
    for row in rows:
        measured = row["measured"]
        if measured is None:
            said = "said to fit" if row["fits"] else "said not to fit"
            lines.append(f"| {row['case']} | out of memory | {said} | | | | | |")
            continue
        lines.append(
            f"| {row['case']} | {measured['allocated'] / GIB:.2f} | {percent(row['allocated'])} | "
            f"{percent(row['traced'])} | {measured['reserved'] / GIB:.2f} | {percent(row['reserved'])} | "
            f"{measured['tokens_per_second']:.0f} | {percent(row['tokens_per_second'])} |"
        )
    return "\n".join(lines)


def percent(figure: tuple[float | None, float | None]) -> str:
    """Return an error as a percentage with its sign."""
    return "" if figure[1] is None else f"{figure[1]:+.1%}"


def goals(rows: list[dict[str, Any]]) -> str:
    """Return a line for each goal: whether the errors, the verdicts and the best setting's speed-up meet it."""
    lines = [""]
    for name, (bound, share, never) in GOALS.items():
        errors = [abs(row[name][1]) for row in rows if row[name][1] is not None]
        if not errors:
            continue
        within = sum(value <= bound for value in errors) / len(errors)
        met = within >= share and max(errors) <= never
        spread = f"median {statistics.median(errors):.1%}, worst {max(errors):.1%}"
        lines.append(f"- {name}: {within:.0%} of {len(errors)} cases within {bound:.0%}, {spread}: {verdict(met)}")
    broken = [row["case"] for row in rows if row["measured"] is None and row["fits"]]
    lines.append(f"- said to fit and ran out of memory: {len(broken)} {broken or ''}: {verdict(not broken)}")
    return "\n".join([*lines, *speed_goals(rows)])


def speed_goals(rows: list[dict[str, Any]]) -> list[str]:
    """Return how the seed's model did: the predicted best setting against the measured best, and the seed's own."""
    chosen = [row for row in rows if row["measured"] and row["fits"] and row["case"].startswith(SEED_MODEL)]
    chosen = [row for row in chosen if "x4096" in row["case"]]
    if len(chosen) < 2:
        return []
    measured = {row["case"]: row["measured"]["tokens_per_second"] for row in chosen}
    pick = max(chosen, key=lambda row: row["tokens_per_second"][0])["case"]
    given = next((name for name in measured if "dropout" in name), chosen[0]["case"])
    short = 1 - measured[pick] / max(measured.values())
    gain = measured[pick] / measured[given]
    return [
        f"- top pick {pick}: {short:.1%} below the best measured setting: {verdict(short <= SHORTFALL)}",
        f"- top pick against {given}: {gain:.2f} times its tokens/s: {verdict(gain >= SPEEDUP)}",
    ]


def verdict(met: bool) -> str:
    """Return whether a goal is met, in words."""
    return "met" if met else "NOT met"


def main() -> int:
    """Measure, or compare what was measured with what is predicted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="results.jsonl", help="file that the results are added to")
    parser.add_argument("--budget", type=float, default=440, help="seconds for all cases together")
    parser.add_argument("--dry", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--predict", metavar="FILE", help="compare these results with the predictions")
    parser.add_argument("--python", default=sys.executable, help="the Python that has torch")
    options = parser.parse_args()
    if options.predict:
        predict(options.predict, options.python)
        return 0
    return write(options)


if __name__ == "__main__":
    sys.exit(main())
