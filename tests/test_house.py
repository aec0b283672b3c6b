"""The plan of the house: who may import whom, and what must not be imported, printed or started where."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainkit import __version__
from trainkit.cli.reference import insert

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trainkit"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = ("sources", "dataset", "plan", "launch", "runs")
HEAVY = {"torch", "transformers", "llamafactory", "peft", "verl", "ray", "swanlab", "wandb", "datasets", "matplotlib"}

# What each level may import of trainkit, by the first part of the module's name.
GROUND = {"errors", "datatypes"}
TOOLS = GROUND | {"files", "arrays", "lines", "environment", "verdicts"}
MAY_IMPORT = {
    "errors": {"datatypes"},
    "datatypes": set(),
    "environment": set(),
    "files": GROUND,
    "arrays": GROUND,
    "lines": {*GROUND, "arrays"},
    "verdicts": GROUND,
    **{room: TOOLS | {room} for room in ROOMS},
    "inside": set(),
    "workflow": {*TOOLS, *ROOMS, "inside", "workflow"},
    "cli": {*GROUND, "cli"},
    "__main__": {"cli"},
    "__init__": set(),
}
# The command line knows the rest only inside its functions.
CLI_INSIDE = {"cli", "workflow", "sources", "dataset", "runs", *GROUND}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path, *, top_level_only: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = tree.body if top_level_only else list(ast.walk(tree))
    typing_blocks = {
        inner for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }  # fmt: skip
    names = set()
    for node in body:
        if node in typing_blocks:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} if node.module != "trainkit" else {f"trainkit.{alias.name}" for alias in node.names}
    return names


def rooms_imported(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("trainkit.")} - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_stands_below_it(path: Path) -> None:
    room = room_of(path)
    assert rooms_imported(imports_of(path, top_level_only=True)) <= MAY_IMPORT[room]
    everywhere = rooms_imported(imports_of(path, top_level_only=False))
    assert everywhere <= (CLI_INSIDE if room == "cli" else MAY_IMPORT[room])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_belongs_to_one_place_stays_there(path: Path) -> None:
    inside = path.relative_to(PACKAGE)
    top = {name.split(".")[0] for name in imports_of(path, top_level_only=True)}
    everywhere = {name.split(".")[0] for name in imports_of(path, top_level_only=False)}
    assert not top & HEAVY
    assert inside.parts[0] in ("inside",) or not everywhere & HEAVY
    if inside.parts[0] != "cli":
        assert not everywhere & {"typer", "rich", "click"}
    if str(inside) not in ("launch/process.py", "plan/hardware.py"):
        assert "subprocess" not in everywhere
    if str(inside) != "environment.py" and inside.parts[0] != "inside":
        assert "os.environ" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from trainkit.cli import main; main(['--help']); "
        "print(sorted(name for name in sys.modules if name.split('.')[0] in "
        f"{sorted(HEAVY | {'msgspec', 'omegaconf', 'yaml', 'psutil', 'multiprocessing', 'numpy'})!r}))"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_readme_has_the_commands_as_they_are() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert insert(readme) == readme, "run: python -m trainkit.cli.reference README.md"


def test_the_newest_change_is_of_this_version() -> None:
    changes = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Changes")[2]
    assert changes.split("### ")[1].split()[0] == __version__


def test_lock_files_name_no_host_and_pin_the_trainer() -> None:
    for name in ("train.lock", "dev.lock", "ray.lock", "uv.lock"):
        text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        assert "://" not in text
        assert "--hash=sha256:" in text
    assert "llamafactory==0.9.5" in (ROOT / "requirements" / "train.lock").read_text(encoding="utf-8")
