from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainkit.plan.yamledit import with_keys
from trainkit.plan.yamlfile import Loader

USERS = """\
# mine
learning_rate: 1e-4   # careful
deepspeed:
  zero_optimization:
    stage: 3

# about batches
per_device_train_batch_size: 2  # rows
cutoff_len: 4096
"""


def values(text: str) -> Any:
    return yaml.load(text, Loader)


@pytest.mark.parametrize(
    ("text", "changes", "without", "expected"),
    [
        (USERS, {}, (), USERS),
        (
            USERS,
            {"per_device_train_batch_size": 1, "enable_liger_kernel": True},
            (),
            USERS.replace("per_device_train_batch_size: 2  # rows", "# why\nper_device_train_batch_size: 1")
            + "\n# why\nenable_liger_kernel: true\n",
        ),
        (
            USERS,
            {"deepspeed": "ds_z2.json"},
            (),
            USERS.replace(
                "deepspeed:\n  zero_optimization:\n    stage: 3\n", "# why\ndeepspeed: ds_z2.json\n"
            ),
        ),
        (USERS, {"deepspeed": None}, (), USERS.replace(
            "deepspeed:\n  zero_optimization:\n    stage: 3\n", "# why\ndeepspeed: null\n")),
        (USERS, {}, ("cutoff_len",), USERS.replace("cutoff_len: 4096\n", "")),
        ("", {"a": 1}, (), "\n# why\na: 1\n"),
        ("# nothing yet", {"a": 1}, (), "# nothing yet\n\n# why\na: 1\n"),
        ("b: 2", {"a": 1}, (), "b: 2\n\n# why\na: 1\n"),
        # the key of another tool's name gives way to the trainer's own
        ("lora_r: 8\nb: 2\n", {"lora_rank": 16}, (), "# why\nlora_rank: 16\nb: 2\n"),
        # what cannot be edited line by line is written anew
        ("{a: 1, b: x}\n", {"a": 2}, (), "b: x\n\n# why\na: 2\n"),
        ("{a: 1}\n", {"a": 2}, (), "# why\na: 2\n"),
        ("a: 1\nb: 2\n...\n", {"c": 3}, (), "a: 1\nb: 2\n\n# why\nc: 3\n"),
        ("x: &x {a: 1}\n<<: *x\n", {"a": 2}, (), "x:\n  a: 1\n\n# why\na: 2\n"),
        ("a: |\n  text\n  # not a comment\nb: 1\n", {"b": 2}, (), "a: |\n  text\n  # not a comment\n# why\nb: 2\n"),
    ],
)  # fmt: skip
def test_only_the_named_keys_change(
    text: str, changes: dict[str, Any], without: tuple[str, ...], expected: str
) -> None:
    assert with_keys(text, changes, dict.fromkeys(changes, "why"), without=without) == expected


def test_a_long_comment_is_wrapped_and_none_is_left_out() -> None:
    text = with_keys("", {"a": 1, "b": 2}, {"a": "words " * 30})
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("# words") == 2
    assert text.endswith("a: 1\n\nb: 2\n")


scalars = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text("ab: #-\n1e'", max_size=6))
keys = st.sampled_from(["a", "b", "cutoff_len", "lora_rank", "deepspeed"])
mappings = st.dictionaries(keys, st.one_of(scalars, st.dictionaries(keys, scalars, max_size=2), st.lists(scalars)))


@given(mappings, mappings, st.booleans())
def test_whatever_was_there_the_values_are_those_that_were_meant(
    before: dict[str, Any], changes: dict[str, Any], flow: bool
) -> None:
    text = yaml.safe_dump(before, default_flow_style=flow, sort_keys=False) if before else ""
    assert (values(with_keys(text, changes, {})) or {}) == (values(text) or {}) | changes
