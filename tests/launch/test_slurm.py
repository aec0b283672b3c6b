from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.errors import UsageProblem
from trainkit.launch.slurm import SlurmJob, slurm_script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
GOLDEN = """\
#!/bin/bash
#SBATCH --job-name=qwen3-tools
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=1-12:00:00
#SBATCH --partition=h100
#SBATCH --account='lab: tools'
#SBATCH --output=logs/slurm-%j.log
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
# jobs that share a node must not meet at the same port
TRAINKIT_MASTER=${hosts%%$'\\n'*}:$((20000 + SLURM_JOB_ID % 10000))
export TRAINKIT_MASTER

child=
signals=0
time_is_over=no
pass_on() {
    signals=$((signals + 1))
    [[ -z $child ]] || kill -s "$1" "$child" || true
}
trap 'time_is_over=yes; pass_on USR1' USR1
trap 'pass_on TERM' TERM

cd '/home/me/my work'
# each node finds its own rank; exec, because Slurm signals only the task itself and not what it has started;
# a node that fails leaves the others as much time to end as they have to save
srun --nodes=2 --ntasks-per-node=1 --cpus-per-task=64 --wait=600 \\
    bash -c 'exec trainkit train --gpus 8 --nodes 2 --node-rank "$SLURM_NODEID" --master "$TRAINKIT_MASTER" "$@"' \\
    trainkit --resume auto -d tools 'output_dir=saves/my model' &
child=$!

# a signal ends `wait` too early, so only a wait without one knows the exit code
while :; do
    seen=$signals
    code=0
    wait "$child" || code=$?
    ((signals > seen)) || break
done

if [[ $time_is_over = yes && $code -ne 0 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
TWO_NODES = SlurmJob("qwen3-tools", nodes=2, gpus=8)

# the real ones' part in this: one task for each node, signals passed on, the highest exit code returned
SRUN = """\
import os, signal, subprocess, sys
count = int(next(word for word in sys.argv if word.startswith("--nodes=")).partition("=")[2])
words = sys.argv[sys.argv.index("bash"):]
tasks = [subprocess.Popen(words, env={**os.environ, "SLURM_NODEID": str(rank)}) for rank in range(count)]
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda got, _: [task.send_signal(got) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """\
import sys
from pathlib import Path
if sys.argv[1] == "show":
    print("gpu07", "gpu08", sep="\\n")
else:
    Path("requeued").write_text(" ".join(sys.argv[1:]))
"""
# saves for a while after each signal, so that a script that does not wait is found out
TRAINER = """\
import json, os, signal, sys, time
from pathlib import Path
rank = os.environ["SLURM_NODEID"]
got = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _: got.append(number))
Path("words-" + rank).write_text(json.dumps(sys.argv[1:]))
while not got and not Path("end").exists():
    time.sleep(0.02)
time.sleep(0.5 if got else 0)
Path("end-" + rank).write_text(json.dumps(got))
sys.exit(int(Path("code").read_text()))
"""


def test_the_script_of_two_nodes() -> None:
    job = replace(
        TWO_NODES,
        time="1-12:00:00",
        cpus=64,
        partition="h100",
        account="lab: tools",
        log="logs/slurm-%j.log",
        signal_seconds=600,
    )
    assert slurm_script(job, ["-d", "tools", "output_dir=saves/my model"], folder="/home/me/my work") == GOLDEN


def test_one_node_is_told_nothing_about_others() -> None:
    script = slurm_script(SlurmJob("one"), ["lora.yaml"], folder="/work", program=("/env/bin/python", "-m", "trainkit"))
    head, _, rest = script.partition("set -euo pipefail")
    assert head == (
        "#!/bin/bash\n#SBATCH --job-name=one\n#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=1\n"
        "#SBATCH --output=slurm-%j.log\n#SBATCH --signal=B:USR1@300\n#SBATCH --open-mode=append\n#SBATCH --requeue\n"
    )
    assert "    bash -c 'exec /env/bin/python -m trainkit train \"$@\"' \\\n" in rest


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"time": "two hours"}, (), "--time two hours: not a time that sbatch takes"),
        ({"time": "1:2"}, (), "--time 1:2: not a time that sbatch takes"),
        ({"signal_seconds": 30}, (), "30 s before the end are too few: Slurm's clock is only that exact"),
        ({"nodes": 0}, (), "qwen3-tools: 0 is too few nodes, GPUs or cores"),
        ({"cpus": 0}, (), "qwen3-tools: 0 is too few nodes, GPUs or cores"),
        ({"partition": "a\n#SBATCH --uid=0"}, (), "'a\\n#SBATCH --uid=0': an empty word or one with line breaks"),
        ({"account": ""}, (), "'': an empty word or one with line breaks cannot stand in a job script"),
        ({}, ("system=a\nb",), "'system=a\\nb': an empty word or one with line breaks cannot stand in a job script"),
    ],
)
def test_what_sbatch_cannot_take_is_refused(changes: dict[str, Any], words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        slurm_script(replace(TWO_NODES, **changes), words, folder="/work")
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("time", ["30", "30:00", "24:00:00", "2-0", "2-12:30", "2-12:30:00"])
def test_every_time_that_sbatch_takes(time: str) -> None:
    assert f"#SBATCH --time={time}\n" in slurm_script(replace(TWO_NODES, time=time), (), folder="/work")


@pytest.fixture
def start(tmp_path: Path, wait_for: Callable[..., None]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run a job script as Slurm does, with a cluster that only pretends, until every node trains."""
    started: list[subprocess.Popen[str]] = []
    cluster, work = tmp_path / "cluster", tmp_path / "it's work"
    cluster.mkdir()
    work.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (cluster / f"{name}.py").write_text(text)
        (cluster / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$(dirname "$0")/{name}.py" "$@"\n')
        (cluster / name).chmod(0o755)
    (work / "trainer.py").write_text(TRAINER)

    def run(job: SlurmJob, *words: str, exit_code: int = 0) -> subprocess.Popen[str]:
        (work / "code").write_text(str(exit_code))
        script = slurm_script(job, words, folder=str(work), program=(sys.executable, str(work / "trainer.py")))
        (tmp_path / "job.sh").write_text(script)
        subprocess.run(["bash", "-n", str(tmp_path / "job.sh")], check=True)
        env = {
            **ENVIRONMENT,
            "PATH": f"{cluster}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "gpu[07-08]",
        }
        started.append(subprocess.Popen(["bash", str(tmp_path / "job.sh")], env=env, text=True, start_new_session=True))
        wait_for(lambda: all((work / f"words-{rank}").exists() for rank in range(job.nodes)))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_every_node_gets_its_words_and_the_exit_code_is_the_trainers(tmp_path: Path, start: Any) -> None:
    work = tmp_path / "it's work"
    process = start(TWO_NODES, "-d", "it's $HOME", 'x="1"', exit_code=3)
    (work / "end").touch()
    assert process.wait(20) == 3
    common = ["train", "--gpus", "8", "--nodes", "2", "--node-rank", "R", "--master", "gpu07:23456"]
    for rank in "01":
        words = json.loads((work / f"words-{rank}").read_text())
        assert words == [
            *(rank if word == "R" else word for word in common),
            "--resume",
            "auto",
            "-d",
            "it's $HOME",
            'x="1"',
        ]
    assert not (work / "requeued").exists(), "a failure is not tried again"


@pytest.mark.parametrize(
    ("number", "exit_code", "requeued"),
    [
        (signal.SIGUSR1, 138, True),
        # the last step came before the end of the time
        (signal.SIGUSR1, 0, False),
        # Slurm puts the job back by itself
        (signal.SIGTERM, 143, False),
    ],
)
def test_a_signal_reaches_the_trainer_which_saves_in_peace(
    tmp_path: Path, start: Any, number: int, exit_code: int, requeued: bool
) -> None:
    work = tmp_path / "it's work"
    process = start(SlurmJob("one", nodes=2), exit_code=exit_code)
    process.send_signal(number)
    assert process.wait(20) == exit_code
    assert [(work / f"end-{rank}").read_text() for rank in "01"] == [f"[{number}]"] * 2
    assert (work / "requeued").exists() == requeued
    if requeued:
        assert (work / "requeued").read_text() == "requeue 123456"


def test_a_second_signal_does_not_hide_the_exit_code(tmp_path: Path, start: Any) -> None:
    process = start(SlurmJob("one"), exit_code=9)
    process.send_signal(signal.SIGUSR1)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 9
