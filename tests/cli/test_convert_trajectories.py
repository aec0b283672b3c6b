"""`trainkit convert --kind trajectories` as it is used: words in, whole outputs out."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.cli import main
from trainkit.cli.output import Output
from trainkit.dataset.registry import load_registry
from trainkit.dataset.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., tuple[int, str, str]]

KIND = ("--kind", "trajectories")
FILE = "runs/train_trajectories/train_trajectories.iteration{}.jsonl"


def rollout(name: str, num_steps: int = 2, image: str | None = None, reward: float = 1) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": f"Page {name}, with a <video>"}]
    if image is not None:
        parts.insert(0, {"type": "image_url", "image_url": image})
    response = {"raw_prompt": [{"role": "user", "content": parts}], "raw_response": "Do."}
    one = {"action": "click(3)", "observation": {}, "response": response, "task": name}
    return [one | {"reward": {"reward": reward if n == num_steps - 1 else None}} for n in range(num_steps)]


def write(number: int, trajectories: list[Any], end: str = "") -> Path:
    path = Path(FILE.format(number))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"steps": steps}) + "\n" for steps in trajectories) + end)
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `trainkit convert` in tmp_path; return exit code, stdout and stderr, the digest of the folder hidden."""
    monkeypatch.chdir(tmp_path)

    def ran(*words: str) -> tuple[int, str, str]:
        code = main(["convert", *words])
        out, err = (re.sub(r"-[0-9a-f]{8}\b", "-#", text) for text in capsys.readouterr())
        return code, out, err

    return ran


@pytest.fixture
def runs(run: Run) -> Path:
    """Six iterations, of which four are read."""
    Path("7.png").write_bytes(b"png")
    image = f"file://{Path('7.png').absolute()}"
    for number in (0, 1):
        write(number, [rollout("never read")])
    write(2, [[], rollout("a", image=image), rollout("b", 1000, reward=0)])
    write(3, [rollout(f"c{n}", 6) for n in range(60)])
    write(10, [rollout("d", 1), rollout("e", 1), rollout("f", 3)])
    write(11, [rollout("g", image=image), rollout("h", image="file:///nowhere/1.png")])
    return Path("runs")


TABLE = """\
iteration  trajectories  unusable  steps  usable rows
        2             3         1  1,002            2
        3            60         0    360          360
       10             3         2      3            3
       11             2         0      4            2
"""
WORDS = """\
3 trajectories left out: 1 empty, 2 fewer than 2 steps
1,000 steps left out: 1,000 not successful
2 steps rejected: 2 image file; see data/rejected.jsonl
367 changes in the rows: 367 marks in text
"""
MASK = "train with mask_history: true, as only the last turn of a row is its answer\n"


@pytest.mark.usefixtures("runs")
def test_the_main_way(run: Run) -> None:
    written = "367 rows written to data/trajectories-#, registered in data/dataset_info.json: trajectories (367)\n"
    assert run("runs", *KIND) == (0, TABLE, WORDS + written + MASK)
    assert list(load_registry(Path("data"))) == ["trajectories"]


@pytest.mark.usefixtures("runs")
def test_a_split_with_a_name(run: Run) -> None:
    code, out, err = run("-i", "runs", *KIND, "--name", "web-agent", "--split-eval", "-o", "d", "--seed", "3")
    found = re.search(r"web-agent \((\d+)\), web-agent_eval \((\d+)\)\n", err)
    assert found is not None
    train, held = map(int, found.groups())
    assert (code, out, train + held) == (0, TABLE, 367)
    (folder,) = Path("d").glob("web-agent-*")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["split"] == {"eval_ratio": 0.05, "seed": 3, "group_by": "trajectory"}
    assert len((folder / "eval.jsonl").read_bytes().splitlines()) == held
    assert list(load_registry(Path("d"))) == ["web-agent", "web-agent_eval"]


@pytest.mark.usefixtures("runs")
def test_a_dry_run(run: Run) -> None:
    code, out, err = run("runs", *KIND, "--dry-run", "--last-n-iterations", "2")
    assert (code, out.splitlines()[1:]) == (1, [])
    assert err == (
        "error: 2 of 7 eligible steps cannot be used (2 image file): nothing was published\n"
        "    --max-rejects 28.58% would accept that\n"
    )
    code, out, err = run("runs", *KIND, "--dry-run")
    assert (code, out) == (0, TABLE)
    assert err == (
        WORDS.replace("; see data/rejected.jsonl", "")
        + "367 rows counted, nothing written: trajectories (367)\n"
        + MASK
    )
    assert not Path("data").exists()


@pytest.mark.usefixtures("runs")
def test_for_machines(run: Run) -> None:
    write(12, [], end="{")
    words = ("--json", "--last-n-iterations", "2", "--max-rejects", "50%", "--skip-bad-iterations")
    code, out, err = run("runs", *KIND, *words)
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "ok": True,
        "folder": "data/trajectories-#",
        "rows": 2,
        "unusable": {},
        "left_out": {},
        "rejected": 2,
        "reasons": {"image file": 2},
        "rejected_file": "data/rejected.jsonl",
        "changes": {"marks in text": 2},
        "iterations": [
            {
                "iteration": 11,
                "trajectories": 2,
                "unusable": {},
                "steps": 4,
                "usable": 2,
                "left_out": {"image file": 2},
                "changes": {"marks in text": 2},
            }
        ],
        "variants": {"trajectories": {"rows": 2, "side": "train"}},
        "notes": [],
        "problems": [
            {
                "level": "warning",
                "where": "--skip-bad-iterations",
                "message": f"left out: {FILE.format(12)}:1: is not a trajectory: Input data was truncated",
                "hint": 'a line is {"steps": [step, ...]}',
            }
        ],
    }


def test_a_bad_iteration(run: Run) -> None:
    write(3, [rollout("a")])
    write(4, [rollout("b")], end="{")
    message = f"{FILE.format(4)}:2: is not a trajectory: Input data was truncated"
    hint = 'a line is {"steps": [step, ...]}'
    assert run("runs", *KIND) == (
        1, "", f"error: {message}\n    {hint}; --skip-bad-iterations goes on without it\n",
    )  # fmt: skip
    code, out, err = run("runs", *KIND, "--skip-bad-iterations", "--split-eval")
    assert (code, len(out.splitlines())) == (0, 2)
    assert err == (
        f"warning: --skip-bad-iterations: left out: {message}\n    {hint}\n"
        "note: no eval split: every trajectory is on the same side, as there are too few of them; "
        "all rows are for training\n"
        "2 changes in the rows: 2 marks in text\n"
        "2 rows written to data/trajectories-#, registered in data/dataset_info.json: trajectories (2)\n" + MASK
    )


@pytest.mark.usefixtures("runs")
def test_to_jsonl(run: Run) -> None:
    out = """\
iteration  trajectories  unusable  written
        0             1         0        1
        1             1         0        1
        2             3         1        2
        3            60         0       60
       10             3         2        1
       11             2         0        2
"""
    err = (
        "3 trajectories left out: 1 empty, 2 fewer than 2 steps\n"
        "67 trajectories written to open/train_trajectories: open is a SAVE_PATH too\n"
    )
    assert run("runs", *KIND, "--to", "jsonl", "-o", "open") == (0, out, err)
    assert len(list(Path("open/train_trajectories").iterdir())) == 6
    assert run("open", *KIND)[1] == re.sub(r"(\d) +(\d) +([12]) ", lambda found: found[0], """\
iteration  trajectories  unusable  steps  usable rows
        2             2         0  1,002            2
        3            60         0    360          360
       10             1         0      3            3
       11             2         0      4            2
""")  # fmt: skip


@pytest.mark.usefixtures("runs")
def test_to_jsonl_for_machines(run: Run) -> None:
    write(12, [[]])
    write(13, [], end="{")
    words = ("--to", "jsonl", "-o", "open", "--last-n-iterations", "3", "--skip-bad-iterations")
    code, out, err = run("runs", *KIND, *words)
    assert (code, out.splitlines()[1:]) == (0, ["       11             2         0        2", "       12             1         1        0"])  # fmt: skip  # noqa: E501
    assert err.splitlines()[0].startswith(f"warning: --skip-bad-iterations: left out: {FILE.format(13)}:1: ")
    assert err.splitlines()[2:] == [
        "note: iteration 12 has no usable trajectory, so no file was written for it",
        "1 trajectories left out: 1 empty",
        "2 trajectories written to open/train_trajectories: open is a SAVE_PATH too",
    ]
    code, out, err = run("runs", *KIND, *words, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report.pop("problems")[0]["level"] == "warning"
    assert report == {
        "ok": True,
        "folder": "open/train_trajectories",
        "iterations": {"11": {"written": 2}, "12": {"written": 0, "empty": 1}},
        "notes": ["iteration 12 has no usable trajectory, so no file was written for it"],
    }


NEVER = "has no meaning with --kind trajectories"
JSONL = "has no meaning with --to jsonl, which writes whole trajectories"


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("runs --kind trajectory",
         "--kind trajectory: must be evaluations, trajectories, conversations, pairs, labels or auto", ""),
        *(
            (f"runs --kind trajectories {option}", f"{option.split()[0]}: {NEVER}", "leave it out")
            for option in (
                "--evaluation-types clip", "--model-names a", "--task-ids a", "--where a=b", "--metadata none",
                "--metadata type,category", "--no-metadata", "--by-task 20", "--group-by task_id", "--split groups",
                "--min-samples 5", "--jobs 1",
            )
        ),
        *(
            (f"runs {option}", f"{option.split()[0]}: has no meaning without --kind trajectories",
             "add --kind trajectories")
            for option in ("--to jsonl", "--last-n-iterations 4", "--skip-bad-iterations")
        ),
        *(
            (f"runs --kind trajectories --to jsonl {option}", f"{option.split()[0]}: {JSONL}", "leave it out")
            for option in ("--name a", "--split-eval", "--eval-ratio 0.1", "--seed 42", "--max-rejects 1%", "--dry-run")
        ),
        ("runs --kind trajectories --to json", "--to json: must be jsonl", "without --to the steps become a data set"),
        ("runs --kind trajectories --eval-ratio 0.3", "--eval-ratio 0.3: has no meaning without --split-eval",
         "add --split-eval"),
        ("runs --kind trajectories --name a,b", "--name a,b: use letters, digits, _ and -", "for example a_b"),
        ("runs --kind trajectories --max-rejects few", "--max-rejects few: must be a share such as 1% or 0.01", ""),
        ("runs --kind trajectories --last-n-iterations 0",
         "--last-n-iterations 0: at least one iteration is needed", ""),
        ("--kind trajectories", "--kind trajectories: takes one SAVE_PATH, not 0",
         "name the folder that holds train_trajectories/"),
        ("runs -i more --kind trajectories", "--kind trajectories: takes one SAVE_PATH, not 2",
         "name the folder that holds train_trajectories/"),
    ],
)  # fmt: skip
def test_wrong_usage(run: Run, words: str, message: str, hint: str) -> None:
    before = sorted(Path().rglob("*"))
    assert run(*words.split()) == (2, "", f"error: {message}\n" + (f"    {hint}\n" if hint else ""))
    assert sorted(Path().rglob("*")) == before


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("to", [(), ("--to", "jsonl")])
def test_a_path_with_a_typo(run: Run, to: tuple[str, ...]) -> None:
    assert run("rusn", *KIND, *to) == (1, "", "error: rusn: no such folder\n    did you mean runs?\n")
    assert run("7.png", *KIND, *to)[2] == (
        "error: 7.png: is not a folder\n    name the folder that holds train_trajectories/\n"
    )
    assert sorted(path.name for path in Path().iterdir()) == ["7.png", "runs"]


@pytest.mark.usefixtures("runs")
def test_what_a_person_sees_meanwhile(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    @contextmanager
    def waiting(self: Output, words: str) -> Iterator[Callable[[str], None]]:
        shown.append(words)
        yield shown.append

    monkeypatch.setattr(Output, "waiting", waiting)
    assert run("runs", *KIND)[0] == 0
    assert shown == [
        "looking for iterations",
        "reading iteration 2, 1 of 4",
        "reading iteration 3, 2 of 4",
        "reading iteration 10, 3 of 4",
        "reading iteration 11, 4 of 4",
    ]
    shown.clear()
    assert run("runs", *KIND, "--to", "jsonl", "-o", "open", "--last-n-iterations", "1")[0] == 0
    assert shown == ["looking for iterations", "reading iteration 11, 1 of 1"]


@pytest.mark.usefixtures("runs")
def test_ctrl_c_leaves_nothing_behind(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "rows_of", stopped)
        assert run("runs", *KIND, "--max-rejects", "50%") == (130, "", "interrupted\n")
    # the rejects were of a conversion that read all of its input
    assert sorted(path.name for path in Path("data").iterdir()) == [".trainkit.lock", "rejected.jsonl"]
    Path("data/rejected.jsonl").unlink()
    monkeypatch.setattr(Stage, "add", stopped)
    assert run("runs", *KIND) == (130, "", "interrupted\n")
    assert sorted(path.name for path in Path("data").iterdir()) == [".trainkit.lock"]
