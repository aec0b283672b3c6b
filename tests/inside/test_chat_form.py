"""`chat_form.py`: the trainer's tokenizer and template as one line of JSON, or why not."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from trainkit.dataset.chatform import Slots, decode_form
from trainkit.inside import chat_form

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., subprocess.CompletedProcess[str]]

QUESTION = "<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"
RESULT = "<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ("no json", "the request is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ([1], "the request is not a JSON object"),
        ({}, "the request has no model_name_or_path"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_explained(run: Run, request_: Any, error: str) -> None:
    done = run("chat_form", stdin=request_)
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, {"error": error}, "")


def test_what_the_trainer_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        try:
            raise OSError("no file\n  named x")
        except OSError as error:
            raise OSError("Failed to load tokenizer.") from error

    monkeypatch.setattr(chat_form, "load_form", fail)
    with pytest.raises(chat_form.NoForm, match=r"^no file named x$"):
        chat_form.describe({})


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ("no json", {"error": "the request is not JSON: Expecting value: line 1 column 1 (char 0)"}),
        ("[1]", {"error": "the request is not a JSON object"}),
        ("{}", {"error": "the request has no model_name_or_path"}),
        ('{"model_name_or_path": "m"}', {"form": {"model_name_or_path": "m"}}),
    ],
)
def test_the_answer_is_the_only_line_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], request_: str, answer: dict[str, Any]
) -> None:
    def load(keys: dict[str, Any]) -> dict[str, Any]:
        os.write(1, b"a library says hello\n")
        return {"form": keys}

    monkeypatch.setattr(chat_form, "load_form", load)
    monkeypatch.setattr("sys.stdin", io.StringIO(request_))
    monkeypatch.setattr("sys.argv", ["chat_form.py"])
    before = os.dup(1)
    try:
        chat_form.main()
    finally:
        os.dup2(before, 1)
        os.close(before)
    found = capfd.readouterr()
    assert [json.loads(line) for line in found.out.splitlines()] == [answer]
    assert found.err == ("a library says hello\n" if "form" in answer else "")


def test_tokens_among_the_slots_become_ids() -> None:
    ids = {"<sop>": 7}

    def convert(_: object, slots: list[Any]) -> list[int | None]:
        return [ids.get(slot["token"]) if isinstance(slot, dict) else 1 for slot in slots if slot != {"bos_token"}]

    template = SimpleNamespace(_convert_elements_to_ids=convert)
    slots = [{"bos_token"}, {"eos_token"}, "a{{content}}", {"token": "<sop>"}]
    assert chat_form.resolve(slots, template, None) == [1, "a{{content}}", 7]
    with pytest.raises(chat_form.NoForm, match="the tokenizer has no <eop>:"):
        chat_form.resolve([{"token": "<eop>"}], template, None)


class Strange:
    """A tokenizer of a model's own class, around a fast one."""

    def __init__(self, is_fast: bool, extra: list[int]) -> None:
        from tokenizers import Tokenizer, models

        self.is_fast = is_fast
        self.backend_tokenizer = Tokenizer(models.BPE())
        self.split_special_tokens = False
        self.all_special_tokens: list[str] = []
        self.extra = extra

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self.extra


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (Strange(False, []), "Strange is not a fast tokenizer"),
        (Strange(True, [3]), "Strange does not encode as its fast tokenizer does"),
        (Strange(True, []), ""),
    ],
)
def test_a_tokenizer_without_a_fast_form_says_why(tokenizer: Strange, reason: str) -> None:
    text, said = chat_form.tokenizer_text(tokenizer)
    assert said == reason
    assert (text is None) == bool(reason)


@dataclasses.dataclass
class ModelArguments:
    model_name_or_path: str
    cache_dir: str | None = None


@dataclasses.dataclass
class DataArguments:
    template: str | None = None
    packing: bool = dataclasses.field(default=False, init=False)


def test_the_keys_of_the_request_reach_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a trainer that only takes down what it is asked."""
    asked: list[Any] = []
    tokenizer = SimpleNamespace(is_fast=False, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    plugin = SimpleNamespace(
        image_token="<image>", video_token=None, audio_token=None, process_messages=lambda *given: asked.append(given)
    )
    formatters = {f"format_{name}": SimpleNamespace(slots=[name], tool_format="qwen") for name in chat_form.FORMATTERS}
    template = SimpleNamespace(
        mm_plugin=plugin, default_system=None, efficient_eos=False, thought_words=("<a>", "</a>"),
        tool_call_words=("<b>", "</b>"), enable_thinking=None, preserve_thinking=False, **formatters,
    )  # fmt: skip
    parts = {
        "llamafactory": {},
        "llamafactory.data": {"tool_utils": SimpleNamespace(__file__="data/tool_utils.py")},
        "llamafactory.data.template": {
            "get_template_and_fix_tokenizer": lambda _, keys: asked.append(keys) or template
        },
        "llamafactory.hparams": {"ModelArguments": ModelArguments, "DataArguments": DataArguments},
        "llamafactory.model": {
            "load_tokenizer": lambda keys: asked.append(keys) or {"tokenizer": tokenizer, "processor": "P"}
        },
    }
    for name, members in parts.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    answer = chat_form.describe({"model_name_or_path": "m", "cache_dir": None, "template": "t", "packing": True})
    assert asked == [ModelArguments("m"), DataArguments("t"), ([], [], [], [], "P")]
    assert answer == {
        "tokenizer": None,
        "tokenizer_reason": "SimpleNamespace is not a fast tokenizer",
        "encode_special_tokens": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "template_class": "SimpleNamespace",
        "slots": {name: [name] for name in chat_form.FORMATTERS},
        "default_system": "",
        "efficient_eos": False,
        "thought_words": ["<a>", "</a>"],
        "tool_call_words": ["<b>", "</b>"],
        "enable_thinking": None,
        "preserve_thinking": False,
        "function_format": "qwen",
        "tools_format": "qwen",
        "plugin": "SimpleNamespace",
        "media_tokens": ["<image>"],
        "tool_utils": "data/tool_utils.py",
        "images": None,
    }


class VisionPlugin:
    """Writes an image as its width in tens of pixels, in the words of a test."""

    def __init__(self, written: str) -> None:
        self.image_token = "<i>"
        self.written = written

    def process_messages(self, messages: list[dict[str, str]], images: list[Any], *_: Any) -> list[dict[str, str]]:
        content = messages[0]["content"]
        for number, image in enumerate(images):
            text = self.written.format(number=number, tokens="<i>" * (1 + image.width // 10))
            content = content.replace("<image>", text, 1)
        return [{"role": "user", "content": content}]


class VisionTokenizer:
    """Has the token 7 for `<i>`, and encodes it as the number that a test gives it."""

    def __init__(self, number: int = 7) -> None:
        self.number = number

    def convert_tokens_to_ids(self, token: str) -> int:
        return 7

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [self.number] * text.count("<i>")


SETTINGS = SimpleNamespace(patch_size=14, merge_size=2, size={"shortest_edge": 100, "longest_edge": 200})
PROCESSOR = SimpleNamespace(image_processor=SETTINGS, image_min_pixels=10, image_max_pixels=1000)


def test_images_are_written_by_the_trainer_to_see_what_becomes_of_them() -> None:
    pytest.importorskip("PIL.Image")
    assert chat_form.describe_images(VisionPlugin("<s>{tokens}<e>"), PROCESSOR, VisionTokenizer()) == {
        "begin": "<s>", "token": "<i>", "end": "<e>", "token_id": 7, "unit": 28, "min_pixels": 100, "max_pixels": 200,
        "image_min_pixels": 10, "image_max_pixels": 1000,
        "probes": [[*size, 1 + size[0] // 10] for size in chat_form.IMAGE_PROBES],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("plugin", "processor", "tokenizer"),
    [
        (SimpleNamespace(image_token=None), PROCESSOR, VisionTokenizer()),
        (VisionPlugin("<s>{tokens}<e>"), None, VisionTokenizer()),
        (VisionPlugin("<s>{tokens}<e>"), SimpleNamespace(image_processor=SimpleNamespace(size=3)), VisionTokenizer()),
        (VisionPlugin("{number}:{tokens}<e>"), PROCESSOR, VisionTokenizer()),
        (VisionPlugin("<s>{tokens}\n{tokens}"), PROCESSOR, VisionTokenizer()),
        (VisionPlugin("<s>{tokens}<e>"), PROCESSOR, VisionTokenizer(8)),
    ],
    ids=["text only", "no processor", "other settings", "numbered", "in rows", "not one token"],
)
def test_another_way_to_write_images_is_not_described(plugin: Any, processor: Any, tokenizer: Any) -> None:
    pytest.importorskip("PIL.Image")
    assert chat_form.describe_images(plugin, processor, tokenizer) is None


@pytest.mark.slow
def test_the_form_of_a_real_model(run: Run, tiny: Path) -> None:
    done = run("chat_form", stdin={"model_name_or_path": str(tiny), "template": "qwen", "default_system": "Be brief."})
    assert done.returncode == 0, done.stderr
    form = decode_form(done.stdout.splitlines()[-1].encode())
    assert form.slots == Slots(
        prefix=(),
        system=("<|im_start|>system\n{{content}}<|im_end|>\n",),
        user=(QUESTION,),
        assistant=("{{content}}<|im_end|>\n",),
        observation=(RESULT,),
        function=("{{content}}<|im_end|>\n",),
        tools=(),
    )
    assert (form.template_class, form.default_system, form.limits) == ("Template", "Be brief.", ())
    assert (form.bos_token_id, form.eos_token_id, form.pad_token_id) == (None, 2, 0)
