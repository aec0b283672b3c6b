from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.cli.app import app
from trainkit.cli.suggest import suggest
from trainkit.cli.suggestion_text import GIB, rounded, text_of, yaml_word

if TYPE_CHECKING:
    from tests.conftest import Place
    from trainkit.plan.arguments import TrainerSchema

QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def big(ready: Place, monkeypatch: pytest.MonkeyPatch, trainer_schema: TrainerSchema) -> Place:
    """A folder whose model is Qwen2.5-7B."""
    if not any(command.callback is suggest for command in app.registered_commands):
        app.command()(suggest)
    monkeypatch.setattr("trainkit.workflow.suggest.load_arguments", lambda *_: trainer_schema)
    ready.write("model/config.json", json.dumps(QWEN_7B))
    return ready


def verdict(total: float, **more: Any) -> dict[str, Any]:
    return {
        "fits": True, "total": total * GIB, "margin": (75 - total) * GIB, "phase": "backward, loss",
        "terms": {"weights": 14.8 * GIB, "kept_activations": 10 * GIB, "workspace": 1000},
        "why": {"weights": "2 bytes x 7 weights", "kept_activations": "28 layers " * 8, "workspace": "cuBLAS"},
        "tokens_per_second": 2552, "time": {"matrix products": 0.6, "attention": 0.3, "optimizer": 0.01},
        "setup": {"method": "lora", "stage": "sft", "seq_tokens": 4096, "micro_batch": 2, "accumulation": 8},
    } | more  # fmt: skip


REASON = {"does": "keeps what each layer computed", "caveat": "memory grows", "source": "somebody"}
FIRST = verdict(
    70.04,
    changes={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "enable_liger_kernel": True},
    speedup=1.5,
    reasons={
        "per_device_train_batch_size": {"does": "16 rows as 1 x 16", "caveat": "", "source": ""},
        "gradient_accumulation_steps": {"does": "16 rows as 1 x 16", "caveat": "", "source": ""},
        "enable_liger_kernel": REASON,
    },
)
OPTION = verdict(60, keys={"flash_attn": "fa2"}, changes={"flash_attn": "fa2"} | FIRST["changes"], gain=1.27)
REPORT: dict[str, Any] = {
    "model": "model",
    "machine": {"gpu": "h100", "gpus": 8, "memory": 79.1 * GIB, "usable": 75.1 * GIB},
    "effective_batch": 128,
    "given": verdict(33, margin=42 * GIB),
    "candidates": [FIRST, verdict(33, changes={}, reasons={}, speedup=1.0)],
    "nearest": None,
    "options": [
        OPTION | {"caveat": "needs flash-attn"},
        OPTION | {"keys": {"deepspeed": None}, "changes": {"deepspeed": None}, "caveat": "x"},
    ],
}


def test_the_table_says_what_fits_why_and_what_else_there_is() -> None:
    assert list(text_of(REPORT)) == [
        "model: lora, sft, rows of up to 4,096 tokens",
        "8 x h100: 75.1 of 79.1 GiB may be filled; 128 rows in an optimizer step",
        "",
        "as given (2 x 8): fits, 42.0 GiB to spare; about 2,600 tokens/s",
        "  weights            14.8 GiB  2 bytes x 7 weights",
        "  kept activations   10.0 GiB  28 layers 28 layers 28 layers 28 layers 28 layers 28 layers 28 layers",
        "                               28 layers",
        "  total              33.0 GiB  at its peak: backward, loss",
        "",
        "the best that fit",
        "     GiB   left  tokens/s  speed  where the time goes; where memory peaks",
        "1   70.0    5.0     2,600  1.50x  matrix products 60 %, attention 30 %; backward, loss",
        "   per_device_train_batch_size: 1",
        "      16 rows as 1 x 16",
        "   gradient_accumulation_steps: 16",
        "   enable_liger_kernel: true",
        "      keeps what each layer computed; memory grows",
        "2   33.0   42.0     2,600  1.00x  matrix products 60 %, attention 30 %; backward, loss",
        "   the configuration as it is",
        "",
        "not done unasked, as it changes the learning or needs something more",
        "   1.27x the first  flash_attn: fa2",
        "                    needs flash-attn",
        "   1.27x the first  deepspeed: null",
        "                    x; here with nothing else",
    ]


def test_the_table_of_a_failure_names_the_nearest() -> None:
    given = verdict(90, fits=False, margin=-15 * GIB)
    nearest = FIRST | {"total": 80 * GIB, "margin": -5 * GIB, "changes": {}, "reasons": {}}
    lines = list(text_of(REPORT | {"given": given, "candidates": [], "nearest": nearest, "options": []}))
    assert lines[3] == "as given (2 x 8): does not fit: 15.0 GiB are lacking"
    assert lines[-8:] == [
        "",
        "nothing fits; the nearest needs 80.0 GiB, 5.0 more than there are",
        "   the configuration as it is",
        "  weights            14.8 GiB  2 bytes x 7 weights",
        "  kept activations   10.0 GiB  28 layers 28 layers 28 layers 28 layers 28 layers 28 layers 28 layers",
        "                               28 layers",
        "  total              80.0 GiB  at its peak: backward, loss",
        "",
    ]
    one = REPORT | {"machine": REPORT["machine"] | {"gpus": 1}, "candidates": [], "nearest": nearest}
    lines = list(text_of(one))
    assert lines[1] == "h100: 75.1 of 79.1 GiB may be filled; 128 rows in an optimizer step"
    assert "   fits, 60.0 GiB   flash_attn: fa2" in lines


def test_the_exact_trace_is_a_line_of_its_own() -> None:
    traced = {"error": "", "total": 33.3 * GIB, "difference": -0.009, "phase": "backward, loss"}
    exact = REPORT | {"given": REPORT["given"] | {"traced": traced}, "candidates": [FIRST | {"traced": traced}]}
    lines = list(text_of(exact))
    assert "  traced exactly     33.3 GiB  at its peak: backward, loss; the closed form is -0.9 % off" in lines
    assert "      traced exactly: 33.3 GiB" in lines
    assert "the best that fits" in lines
    failed = traced | {"error": "not traced: why"}
    silent = REPORT | {"given": REPORT["given"] | {"traced": failed}, "candidates": [FIRST | {"traced": failed}]}
    assert not any("traced" in line for line in text_of(silent))


@pytest.mark.parametrize(("speed", "shown"), [(2552, 2600), (39_577, 40_000), (87, 87), (8.4, 8.4), (0.2, 0), (0, 0)])
def test_a_speed_has_two_digits(speed: float, shown: float) -> None:
    assert rounded(speed) == shown


@pytest.mark.parametrize(("value", "word"), [(True, "true"), (False, "false"), (None, "null"), (1, "1"), ("a", "a")])
def test_values_are_written_as_in_yaml(value: object, word: str) -> None:
    assert yaml_word(value) == word


def test_the_command_shows_a_table_that_fits_the_screen(big: Place) -> None:
    done = big.trainkit("suggest", "--gpu", "a100-80")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "WORK/model: lora, sft, rows of up to 4,096 tokens"
    assert lines[1] == "a100-80: 75.2 of 79.2 GiB may be filled; 16 rows in an optimizer step"
    assert lines[3].startswith("as given (2 x 8): fits, ")
    assert max(len(line) for line in lines) <= 100
    assert done.err == (
        "note: cutoff_len: the rows' lengths are not known: every row is taken as 4,096 tokens, the worst case\n"
    )


def test_the_command_writes_what_train_takes(big: Place) -> None:
    done = big.trainkit("suggest", "--gpu", "a100-80", "-bs", "4", "--write", "fast.yaml")
    assert (done.code, done.err.splitlines()[-1]) == (0, "written: fast.yaml; trainkit train --config fast.yaml")
    again = big.trainkit("suggest", "--gpu", "a100-80", "--write", "fast.yaml")
    assert (again.code, again.err.splitlines()[-2:]) == (
        1, ["error: fast.yaml: is there already", "    choose another name, or overwrite it with --force"],
    )  # fmt: skip
    assert big.trainkit("suggest", "--gpu", "h200", "--write", "fast.yaml", "--force").code == 0


def test_json_is_one_document_and_the_code_tells_whether_anything_fits(big: Place) -> None:
    fits = big.trainkit("suggest", "--json", "--gpu", "h100", "--gpus", "8", "--effective-batch", "64")
    assert (fits.code, fits.err, fits.json["ok"], fits.json["given"]["fits"]) == (0, "", True, True)
    assert fits.json["effective_batch"] == 64
    assert fits.json.keys() >= {"given", "candidates", "options"}
    lacks = big.trainkit("suggest", "--json", "--gpu", "t4")
    assert (lacks.code, lacks.json["ok"], lacks.json["given"]["fits"], lacks.json["candidates"]) == (
        1,
        False,
        False,
        [],
    )


@pytest.mark.parametrize(
    ("words", "code", "err"),
    [
        (("--gpu", "h20"), 2, "error: --gpu h20: not a GPU that trainkit knows\n    did you mean h200?\n"),
        ((), 1, "error: there is no NVIDIA GPU here\n    name the one that is meant: --gpu a100-40\n"),
        (("--gpu", "h100", "--gpus", "0"), 2, "error: --gpus 0: must be 1 or more\n"),
    ],
)
def test_a_wrong_word_is_explained(big: Place, words: tuple[str, ...], code: int, err: str) -> None:
    done = big.trainkit("suggest", *words)
    assert (done.code, done.out, done.err) == (code, "", err)


def test_a_model_and_a_card_are_enough(place: Place) -> None:
    done = place.trainkit(
        "suggest", "--gpu", "a100-80", "model_name_or_path=Qwen/Qwen2.5-7B-Instruct", "--write", "x.yaml"
    )
    assert done.code == 0
    assert done.out.startswith("Qwen/Qwen2.5-7B-Instruct: lora, sft, rows of up to 4,096 tokens\n")
    assert "model_name_or_path: Qwen/Qwen2.5-7B-Instruct\n" in place.path("x.yaml").read_text()
    refused = place.trainkit("suggest", "--gpu", "a100-80", "-c", "nowhere.yaml")
    assert (refused.code, refused.err.splitlines()[0]) == (1, "error: nowhere.yaml: no such file")
