"""`trainkit validate` as it is seen: whole outputs, exit codes, what is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.cli.figures import rows_line, sparkline, text_histogram

if TYPE_CHECKING:
    from tests.conftest import Place

SETS = """\
train data reward_model_full: 35 rows, 5,778 tokens, 10 % of them trained
  tokens a row: min 163  median 165  p95 166  p99 166  max 166  (cutoff_len 4,096)
    163 - 163   4  ###########
    164 - 164   4  ###########
    165 - 165  12  ################################
    166 - 166  15  ########################################
  scores in the verdicts: lowest, mean, highest, and how they spread from 0 to 1
    clip   score    0.10   0.28   0.70  [ @@# _ _  ]
    final  score    0.00   0.25   0.60  [_%@%_ _   ]

eval data reward_model_full_eval: 5 rows, 822 tokens, 10 % of them trained
  tokens a row: min 163  median 165  p95 165  p99 165  max 165  (cutoff_len 4,096)
    163 - 163  1  #############
    164 - 164  1  #############
    165 - 165  3  ########################################
  scores in the verdicts: lowest, mean, highest, and how they spread from 0 to 1
    clip   score    0.15   0.45   0.90  [ = @     =]
    final  score    0.80   0.80   0.80  [        @ ]

"""
OK = "ok: lora training of WORK/model on reward_model_full, 9 steps of 16 rows"
EVAL = "note: the eval split of reward_model_full eval_strategy: evaluates every 500 steps and at the end\n"
NOTES = EVAL + (
    "note: template qwen/lora bf16: switched off: there is no GPU here\n"
    "note: this machine use_cpu: there is no GPU here: training on the CPU, slow for any real model\n"
)
PREVIEW = """\
data/FOLDER/train.jsonl:{line}  165 tokens, 17 trained (marked >)
    <|im_start|>system
    You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>
    <|im_start|>user
    [EVAL_TYPE: clip] [CATEGORY: search] Judge step {step}.<|im_end|>
    <|im_start|>assistant
  > {{"score": 0.{step}}}<|im_end|>

"""
CUT = "cutoff_len=100"  # every row is longer


def shown(place: Place, text: str) -> str:
    (folder,) = place.path("data").glob("reward_model-*")
    return text.replace(folder.name, "FOLDER")


def test_the_whole_report(ready: Place) -> None:
    before = ready.tree()
    done = ready.trainkit("validate")
    assert (done.code, done.out, done.err) == (0, f"{SETS}{OK}\n", NOTES)
    assert ready.tree() == before


def test_rows_as_the_trainer_sees_them(ready: Place) -> None:
    done = ready.trainkit("validate", "--preview", "2")
    rows = PREVIEW.format(line=1, step=21) + PREVIEW.format(line=2, step=23)
    assert (done.code, shown(ready, done.out)) == (0, f"{SETS}{rows}{OK}\n")
    found = ready.trainkit("validate", "--preview", "1", "--json").json["previews"]
    places = [(shown(ready, row["place"]), row["tokens"], row["trained"]) for row in found]
    assert places == [("data/FOLDER/train.jsonl:1", 165, 17)]
    assert [segment["trained"] for segment in found[0]["segments"]] == [False, True]


@pytest.mark.parametrize(
    ("words", "rest", "notes"),
    [
        (["--gpu", "a100-40"], ", 9 steps of 16 rows, 0.6 of 37.4 GiB a GPU", EVAL),
        (["--gpu", "1"], ", 9 steps of 16 rows, 0.6 of 0.9 GiB a GPU", EVAL),
        (["--gpu", "24", "--gpus", "2"], ", 6 steps of 32 rows, 1.2 of 22.8 GiB a GPU", EVAL),
        (["-e", "1"], ", 3 steps of 16 rows", NOTES),
        (["-bs", "1"], ", 15 steps of 8 rows", NOTES),
    ],
)
def test_the_last_line_says_how_long_and_whether_it_fits(ready: Place, words: list[str], rest: str, notes: str) -> None:
    done = ready.trainkit("validate", *words)
    assert (done.code, done.out.splitlines()[-1], done.err) == (0, OK.partition(",")[0] + rest, notes)


def test_what_does_not_fit_is_a_warning_and_not_in_the_last_line(ready: Place) -> None:
    told = (
        "warning: GPU memory: needs 0.6 GiB, and 0.5 of 0.5 GiB can be filled (the peak is at backward, last layer)\n"
        "    trainkit suggest shows what comes nearest\n"
    )
    done = ready.trainkit("validate", "--gpu", "0.5")
    assert (done.code, done.out, done.err) == (0, f"{SETS}{OK}\n", told + EVAL)
    strict = ready.trainkit("validate", "--gpu", "0.5", "--strict")
    assert (strict.code, strict.out) == (1, SETS)
    assert strict.err == told.replace("warning", "error") + "error: 1 problem found; nothing was started\n"


def test_data_of_a_hub_are_not_counted(ready: Place) -> None:
    ready.write("data/dataset_info.json", '{"far": {"hf_hub_url": "a/b"}}')
    done = ready.trainkit("validate", "-d", "far")
    assert (done.code, done.out) == (0, "ok: lora training of WORK/model on far\n")
    assert done.err.startswith("note: ")


def test_strict_makes_errors_of_warnings(ready: Place) -> None:
    lax, strict = ready.trainkit("validate", CUT), ready.trainkit("validate", CUT, "--strict")
    assert (lax.code, strict.code) == (0, 1)
    assert lax.err.replace("warning: ", "error: ") == strict.err.replace(
        "error: 2 problems found; nothing was started\n", NOTES
    )
    assert lax.out == strict.out + OK + "\n"
    assert ready.trainkit("validate", "--strict").code == 0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["truncation>5%", "tokens_p99>4000", "leaks>0"], 0, ""),
        (["tokens_max>165"], 1,
         "error: train data reward_model_full: tokens_max is 166\n    the limit is --fail-on 'tokens_max>165'\n"),
        (["tokens_p99>164", "skipped>0"], 1,
         "error: train data reward_model_full: tokens_p99 is 166\n    the limit is --fail-on 'tokens_p99>164'\n"
         "error: eval data reward_model_full_eval: tokens_p99 is 165\n    the limit is --fail-on 'tokens_p99>164'\n"),
        (["truncation"], 2, "error: --fail-on truncation: is not of the form NAME>NUMBER\n"),
        (["truncated>5%"], 2, "error: --fail-on truncated>5%: there is no figure truncated\n"),
        (["leaks>5"], 2, "error: --fail-on leaks>5: leaks is a share of the rows\n    write leaks>5%\n"),
    ],
)  # fmt: skip
def test_limits_that_are_exceeded_fail(ready: Place, words: list[str], code: int, told: str) -> None:
    done = ready.trainkit("validate", *(word for limit in words for word in ("--fail-on", limit)))
    assert done.code == code
    assert done.err.startswith(told)
    assert done.out == {0: f"{SETS}{OK}\n", 1: SETS, 2: ""}[code]


def test_a_limit_on_rows_that_are_cut(ready: Place) -> None:
    done = ready.trainkit("validate", CUT, "--fail-on", "truncation > 99.5%")
    assert done.code == 1
    assert done.err.startswith(
        "error: train data reward_model_full: truncation is 100.00 %\n    the limit is --fail-on 'truncation > 99.5%'\n"
    )


@pytest.mark.parametrize("word", ["nope", "0", "-3"])
def test_an_unknown_gpu_is_wrong_usage(ready: Place, word: str) -> None:
    done = ready.trainkit("validate", f"--gpu={word}")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: --gpu {word}: ")


def test_json_holds_every_figure(ready: Place) -> None:
    done = ready.trainkit("validate", "--json", "--gpu", "a100-40")
    assert (done.code, done.err) == (0, "")
    found = done.json
    assert list(found) == ["ok", "problems", "data", "steps", "fit", "config", "origin", "previews"]
    assert found["steps"] == {"rows_per_step": 16, "per_epoch": 3, "total": 9}
    assert found["fit"]["given"]["fits"] is True
    assert {name: each["side"] for name, each in found["data"].items()} == {
        "reward_model_full": "train", "reward_model_full_eval": "eval",
    }  # fmt: skip
    train = found["data"]["reward_model_full"]
    assert sum(count for *_, count in train["histogram"]) == train["rows"] == train["trained_rows"] == 35
    assert train["tokens"] == {"min": 163, "median": 165, "p95": 166, "p99": 166, "max": 166, "mean": 165.1}
    assert [row["tenths"] for row in train["verdicts"]["scores"]] == [
        [0, 5, 5, 4, 0, 1, 0, 1, 0, 0], [1, 5, 6, 5, 1, 0, 1, 0, 0, 0],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        (["--strict", CUT], 2),
        (["--fail-on", "tokens_max>165"], 1),
        (["lora_rnk=8"], 1),
    ],
)
def test_json_is_alone_and_keeps_its_figures_when_there_are_errors(
    ready: Place, words: list[str], problems: int
) -> None:
    done = ready.trainkit("validate", "--json", *words)
    assert (done.code, done.err) == (1, "")
    found = done.json
    assert found["ok"] is False
    assert found["error"] == f"{problems} problem{'s' if problems > 1 else ''} found; nothing was started"
    assert sum(problem["level"] == "error" for problem in found["problems"]) == problems
    assert found["data"]["reward_model_full"]["rows"] == 35
    assert found["data"]["reward_model_full"]["verdicts"]["rows"] == 35


def test_a_report_is_two_files_in_its_folder_and_nothing_else(ready: Place) -> None:
    before = ready.tree()
    done = ready.trainkit("validate", "--report", "report/first")
    assert (done.code, done.out) == (0, f"{SETS}{OK}\n")
    assert done.err == "written: report/first\n" + NOTES
    after = ready.tree()
    new = {"report", "report/first", "report/first/validate.json", "report/first/lengths.png"}
    assert {name: after[name] for name in after if name not in new} == before
    assert set(after) - set(before) == new
    figures = json.loads(after["report/first/validate.json"])
    assert figures == json.loads(ready.trainkit("validate", "--json").out.replace("WORK", str(ready.folder)))
    picture = json.loads(after["report/first/lengths.png"])
    assert picture == {
        "output": "report/first/lengths.png",
        "cutoff_len": 4096,
        "panels": [
            {"title": f"{each['side']} data {name}: {each['rows']} rows", "histogram": each["histogram"]}
            for name, each in figures["data"].items()
        ],
    }


def test_a_report_is_written_when_there_are_errors_too(ready: Place) -> None:
    done = ready.trainkit("validate", "--report", "r", "--strict", CUT, "--json")
    assert (done.code, done.err) == (1, "")
    assert json.loads(ready.path("r/validate.json").read_text())["problems"] == json.loads(
        done.out.replace("WORK", str(ready.folder))
    )["problems"]  # fmt: skip


def test_a_report_that_has_no_place_is_explained(ready: Place) -> None:
    done = ready.trainkit("validate", "--report", "training_config.yaml")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: --report training_config.yaml: is a file\n    name a folder; it is made when it is not there\n"
    )


HISTOGRAMS: list[tuple[list[list[int]], list[str]]] = [
    ([[0, 1, 1]], ["1 - 1  1  " + "#" * 40]),
    (
        [[0, 500, 1], [500, 1000, 1000], [1000, 12000, 0]],
        ["     1 -    500      1  .", " 501 -  1,000  1,000  " + "#" * 40, " 1,001 - 12,000      0"],
    ),
]


@pytest.mark.parametrize(("histogram", "lines"), HISTOGRAMS)
def test_bars_are_as_long_as_their_share(histogram: list[list[int]], lines: list[str]) -> None:
    assert [line.split() for line in text_histogram(histogram)] == [line.split() for line in lines]
    assert len({line.index("-") for line in text_histogram(histogram)}) == 1


@pytest.mark.parametrize(
    ("counts", "shades"), [([0, 1, 9], " .@"), ([0, 0], "  "), ([5], "@"), ([1, 600, 1000], ".+@")]
)
def test_more_is_darker(counts: list[int], shades: str) -> None:
    assert sparkline(counts) == shades


def test_rows_are_told_without_tokens_when_none_were_counted() -> None:
    figures: dict[str, Any] = {"rows": 1204, "full_tokens": 0, "sequences_packed": 0}
    assert rows_line(figures) == "1,204 rows"
    figures |= {"full_tokens": 9, "kept_tokens": 2_100_345, "trained_share": 0.314, "sequences_packed": 612}
    assert rows_line(figures) == "1,204 rows, 2,100,345 tokens, 31 % of them trained, packed into about 612"
