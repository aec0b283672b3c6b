from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainkit.datatypes import Problem, TrainConfig
from trainkit.errors import ConfigError
from trainkit.plan.render import render_yaml
from trainkit.plan.yamlfile import load_yaml, parse_scalar

if TYPE_CHECKING:
    from pathlib import Path


def write(tmp_path: Path, content: str | bytes) -> Path:
    file = tmp_path / "c.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_values_and_lines(tmp_path: Path) -> None:
    text = "# a comment\nlearning_rate: 1e-4\n\nreport_to: [wandb]\nnested:\n  deep: {a: 1}\nday: 2026-01-02\n"
    loaded = load_yaml(write(tmp_path, text))
    assert loaded.values == {
        "learning_rate": 0.0001,
        "report_to": ["wandb"],
        "nested": {"deep": {"a": 1}},
        "day": "2026-01-02",
    }
    assert loaded.lines == {"learning_rate": 2, "report_to": 4, "nested": 5, "day": 7}
    assert loaded.notes == ()


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\ufeff"])
def test_empty_file_has_no_keys(tmp_path: Path, text: str) -> None:
    assert load_yaml(write(tmp_path, text)).values == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("-2E+3", -2000.0),
        (".5e1", 5.0),
        ("3", 3),
        ("3.0", 3.0),
        ("true", True),
        ("no", False),
        ("null", None),
        ("", None),
        ("'1e-4'", "1e-4"),
        ("1e-4x", "1e-4x"),
        ("e5", "e5"),
        ("[1, 2]", [1, 2]),
        ("{a: 1}", {"a": 1}),
        ("2024-01-01", "2024-01-01"),
        ("a b", "a b"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    parsed = parse_scalar(text)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize("text", ["[1, 2", "a: b: c", "!!python/name:os.system", "@x", "*nobody"])
def test_a_scalar_that_is_not_yaml(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_scalar(text)


def test_the_same_key_twice(tmp_path: Path) -> None:
    loaded = load_yaml(write(tmp_path, "seed: 1\nbf16: true\nseed: 1\n"))
    assert loaded.values == {"seed": 1, "bf16": True}
    assert loaded.notes == (Problem("c.yaml:3 seed", "written twice, the same as in line 1", level="note"),)


GROWING = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefghijklmnopqrst", "bcdefghijklmnopqrstu", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: 1\nbf16: true\nseed: 2\n", "{}:3: seed is 2 here and 1 in line 1"),
        ("seed: 1\nseed: true\n", "{}:2: seed is True here and 1 in line 1"),
        (
            "hf_hub_token: x\nhf_hub_token: y\n",
            "{}:2: hf_hub_token is a secret value here and a secret value in line 1",
        ),
        ("- a\n- b\n", "{}:1: the file is not a mapping of keys to values"),
        ("just text\n", "{}:1: the file is not a mapping of keys to values"),
        ("seed: 1\n3: x\n", "{}:2: the key 3 is not a word"),
        ("a: 1\n\tb: 2\n", "{}:2:1: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: [1, 2\n", "{}:2:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n---\nb: 2\n", "{}:2:1: not valid YAML: but found another document"),
        ("a: !!python/object/apply:os.system [ls]\n", "{}:1:4: not valid YAML: could not determine a constructor"),
        (b"a: 1\nname: caf\xe9\n", "{}:2:10: not UTF-8"),
        ("a: \x00\n", "{}: not valid YAML: unacceptable character"),
        ("a: !!int abc\n", "{}: a value cannot be read: invalid literal"),
        ("a: " + "[" * 40 + "]" * 40, "{}:1:35: not valid YAML: nested more than 32 levels deep"),
        ("a: " + "[" * 5000, "{}:1:35: not valid YAML: nested more than 32 levels deep"),
        (GROWING, "{}: its aliases (`*name`) grow too large when written out"),
        ("a: &a [*a]\n", "{}: its aliases (`*name`) grow too large when written out"),
        (b"#" * 1_000_001, "{}: 1000001 bytes are too many for a configuration"),
        ("a: ${oc.env:HOME}\n", "{}: ${{oc.env:...}} is not read: the value would be written into the run's files"),
        ("a: ['${ oc.env:HOME}']\n", "{}: ${{oc.env:...}} is not read"),
        ("a: ${missing}\n", "{}: ${{...}} cannot be resolved: Interpolation key 'missing' not found"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load_yaml(file)
    assert caught.value.message.startswith(message.format(file))


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file") as caught:
        load_yaml(tmp_path / "none.yaml")
    assert "trainkit init" in caught.value.hint
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path)


def test_anchors_merges_and_interpolations(tmp_path: Path) -> None:
    text = "base: &b {x: 1}\nuse: *b\nname: rm\noutput_dir: saves/${name}\n"
    assert load_yaml(write(tmp_path, text)).values == {
        "base": {"x": 1},
        "use": {"x": 1},
        "name": "rm",
        "output_dir": "saves/rm",
    }


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text().filter(lambda t: "${" not in t)
)
KEYS = st.from_regex(r"[a-z_]{1,12}", fullmatch=True).filter(
    lambda key: key not in ("no", "on", "off", "yes", "y", "n")
)


@settings(deadline=None)
@example({"k_line": "a\x85b\u2028"})
@given(st.dictionaries(KEYS.map(lambda key: f"k_{key}"), SCALARS | st.lists(SCALARS, max_size=3), max_size=5))
def test_what_is_rendered_is_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    values = {key: value for key, value in values.items() if not key.endswith(("_token", "secret"))}
    file = tmp_path_factory.mktemp("r") / "c.yaml"
    file.write_bytes(render_yaml(TrainConfig(values, {})).encode())
    assert load_yaml(file).values == values
    assert (OmegaConf.to_container(OmegaConf.load(file)) or {}) == values


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_mapping_or_an_explained_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("t") / "c.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        values = load_yaml(file).values
    except ConfigError as error:
        values = {"message": error.message}
    assert isinstance(values, dict)
    assert str(file) in values.get("message", str(file))
