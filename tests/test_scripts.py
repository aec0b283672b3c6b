"""The two scripts: they make the environment once, hand on the words, and say what is wrong."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ("bash", "dirname", "cmp", "cp", "rm", "cat", "env")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the scripts and lock files, and a bin folder that is the whole PATH."""
    for name in ("run_training.sh", "run_tests.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": str(folder / "bin"), "HOME": str(folder)}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)


def test_the_words_reach_trainkit_unchanged_and_its_exit_code_comes_back(checkout: Path) -> None:
    program(checkout / ".venv/bin/trainkit", "printf '<%s>' \"$@\"; exit 7")
    shutil.copy(checkout / "requirements/train.lock", checkout / ".venv/train.stamp")
    done = run(checkout, "./run_training.sh", "-d", "a b", "-lr", "2e-4", "key='x y'")
    assert (done.stdout, done.stderr, done.returncode) == ("<pipeline><-d><a b><-lr><2e-4><key='x y'>", "", 7)


def test_the_environment_is_made_with_hashes_and_kept_while_the_lock_stays(checkout: Path) -> None:
    program(checkout / "bin/python3", "exit 0")
    log = checkout / "uv.log"
    make_python = "mkdir -p .venv/bin; printf '#!/bin/bash\\n' > .venv/bin/python; chmod +x .venv/bin/python"
    make_trainkit = "printf '#!/bin/bash\\necho ran' > .venv/bin/trainkit; chmod +x .venv/bin/trainkit"
    program(
        checkout / "bin/uv",
        f'echo "$@" >> {log}\nexport PATH=$PATH:/usr/bin:/bin\n'
        f"case $1 in venv) {make_python};; pip) {make_trainkit};; esac",
    )
    for _ in range(2):
        done = run(checkout, "./run_training.sh")
        assert (done.stdout, done.returncode) == ("ran\n", 0)
    calls = log.read_text(encoding="utf-8").splitlines()
    assert calls == [
        f"venv -q --python {checkout}/bin/python3 .venv",
        "pip install -q --python .venv --require-hashes -r requirements/train.lock",
        "pip install -q --python .venv --no-deps --no-build-isolation -e .",
    ]
    assert run(checkout, "./run_training.sh", "--install-deps").stdout == "everything is installed in .venv\n"
    assert len(log.read_text(encoding="utf-8").splitlines()) == 5


@pytest.mark.parametrize("script", ["./run_training.sh", "./run_tests.sh"])
def test_an_old_python_is_named(checkout: Path, script: str) -> None:
    program(checkout / "bin/python3", 'if [ "$1" = --version ]; then echo "Python 3.9.2"; else exit 1; fi')
    done = run(checkout, script)
    assert done.returncode == 1
    assert done.stderr == (
        "error: Python 3.11 to 3.14 is needed, and Python 3.9.2 was found\n"
        f"    install it, or name one: PYTHON=/path/to/python3.11 {script}\n"
    )


def test_a_network_that_is_away_is_said(checkout: Path) -> None:
    program(checkout / "bin/python3", "exit 0")
    program(checkout / "bin/uv", "[ $1 = venv ] || { echo 'no route to host' >&2; exit 2; }")
    done = run(checkout, "./run_training.sh")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-3:] == [
        "no route to host",
        "error: the packages could not be installed",
        "    is the network away, or the disk full? run it again to go on",
    ]


def test_uv_that_cannot_be_fetched_is_said(checkout: Path) -> None:
    program(
        checkout / "bin/python3",
        "if [ \"$1 $2\" = '-m venv' ]; then /bin/mkdir -p $3/bin; "
        "printf '#!/bin/bash\\necho offline >&2; exit 1' > $3/bin/python; /bin/chmod +x $3/bin/python; fi",
    )
    done = run(checkout, "./run_training.sh")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "installing uv",
        "offline",
        "error: uv could not be installed",
        "    is the network away? behind a mirror, set PIP_INDEX_URL and UV_INDEX_URL",
    ]
