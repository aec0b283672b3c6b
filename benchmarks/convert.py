"""Compare `trainkit convert` with the plain way and with the floor, in turn and in one run; print a Markdown table.

    python benchmarks/convert.py --megabytes 1000 --rounds 5

Whole processes, start-up included; the commands run one after the other in each round, so that a noisy machine is
noisy for all, and the ratios are taken within a round. `peak MB` is the largest single process.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Measured:
    """One run of one command: seconds on the clock and of processor, and the largest process in MB."""

    wall: float
    cpu: float
    peak: float


def measure(command: list[str]) -> Measured:
    """Run a command in a process of its own and account for it and all its children."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wall = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.stderr.write(done.stderr.decode())
        text = f"{done.returncode} {wall} {used.ru_utime + used.ru_stime} {used.ru_maxrss / 1024}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        code, wall, cpu, peak = pipe.read().split()
    os.waitpid(pid, 0)
    if code != "0":
        raise SystemExit(f"failed: {' '.join(command)}")
    return Measured(float(wall), float(cpu), float(peak))


def commands(source: Path, work: Path) -> dict[str, list[str]]:
    """Return what is compared, by name."""
    python = sys.executable
    trainkit = [str(Path(python).parent / "trainkit"), "convert", str(source), "-o", str(work / "out"), "--split-eval"]
    return {
        "plain": [python, str(HERE / "plain_convert.py"), str(source), str(work / "out")],
        "floor: orjson.loads": [python, str(HERE / "floor.py"), str(source)],
        "trainkit": trainkit,
        "trainkit --jobs 1": [*trainkit, "--jobs", "1"],
        "trainkit --dry-run": [*trainkit, "--dry-run"],
    }


def describe_machine() -> str:
    """Return the machine and the date in a line."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    today = datetime.now(UTC).date()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}, {today}"


def main() -> None:
    """Generate, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--no-plain", action="store_true", help="leave the plain way out: it needs 9.5 times the input in memory"
    )
    words = parser.parse_args()
    runs: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = work / "evaluations.jsonl"
        generate = [sys.executable, str(HERE / "generate.py"), "--megabytes", str(words.megabytes), "-o", str(source)]
        subprocess.run(generate, check=True, stdout=subprocess.DEVNULL)
        for _ in range(words.rounds):
            for name, command in commands(source, work).items():
                if name == "plain" and words.no_plain:
                    continue
                shutil.rmtree(work / "out", ignore_errors=True)
                os.sync()
                runs.setdefault(name, []).append(measure(command))
    print(f"{words.megabytes:g} MB, {words.rounds} rounds; {describe_machine()}\n")
    print("| what | seconds: median (min to max) | cpu s | peak MB | MB/s | plain / this | this / floor |")
    print("|---|---|---|---|---|---|---|")
    for name, measured in runs.items():
        print(row_of(name, measured, runs, words.megabytes))


def row_of(name: str, measured: list[Measured], runs: dict[str, list[Measured]], megabytes: float) -> str:
    """Return one row of the table; ratios are the median of the rounds' ratios."""
    walls = [run.wall for run in measured]
    wall = statistics.median(walls)
    plain, floor = runs.get("plain"), runs["floor: orjson.loads"]
    faster = f"{statistics.median(p.wall / m.wall for p, m in zip(plain, measured, strict=True)):.1f}" if plain else ""
    ratio = statistics.median(m.wall / f.wall for f, m in zip(floor, measured, strict=True))
    cpu = statistics.median(run.cpu for run in measured)
    peak = max(run.peak for run in measured)
    shown = f"{wall:.2f} ({min(walls):.2f} to {max(walls):.2f})"
    return f"| {name} | {shown} | {cpu:.2f} | {peak:.0f} | {megabytes / wall:.0f} | {faster} | {ratio:.2f} |"


if __name__ == "__main__":
    main()
