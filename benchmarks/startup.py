"""Compare the start of trainkit with a bare Typer program of one command; print a Markdown table.

python benchmarks/startup.py --rounds 15
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from convert import Measured, describe_machine, measure

BARE = """
import typer

app = typer.Typer()


@app.command()
def main(name: str) -> None:
    print(f"hello {name}")


app()
"""


def main() -> None:
    """Run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    words = parser.parse_args()
    trainkit = str(Path(sys.executable).parent / "trainkit")
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE, encoding="utf-8")
        compared = {
            "bare Typer --help": [sys.executable, str(bare), "--help"],
            "trainkit --help": [trainkit, "--help"],
            "bare Typer, its command": [sys.executable, str(bare), "you"],
            "trainkit --version": [trainkit, "--version"],
        }
        runs: dict[str, list[Measured]] = {name: [] for name in compared}
        for _ in range(words.rounds + 1):
            for name, command in compared.items():
                runs[name].append(measure(command))
    print(f"{words.rounds} rounds after a warm-up; {describe_machine()}\n")
    print("| what | seconds: median (min to max) | this / bare |\n|---|---|---|")
    for name, measured in runs.items():
        walls = [run.wall for run in measured[1:]]
        bare_name = "bare Typer --help" if name.endswith("--help") else "bare Typer, its command"
        ratio = statistics.median(m.wall / b.wall for m, b in zip(measured[1:], runs[bare_name][1:], strict=True))
        print(f"| {name} | {statistics.median(walls):.3f} ({min(walls):.3f} to {max(walls):.3f}) | {ratio:.2f} |")


if __name__ == "__main__":
    main()
