"""Reading a YAML configuration: safe tags only, the line of each key, and no surprise about what a value became."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from trainkit.datatypes import Problem
from trainkit.errors import ConfigError
from trainkit.plan.secret import shown

if TYPE_CHECKING:
    from pathlib import Path

LARGEST_FILE = 1_000_000  # bytes
LARGEST_DEPTH = 32
NULL = "tag:yaml.org,2002:null"
LARGEST_EXPANSION = 100_000  # nodes, after every alias is written out


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A loaded file: `lines["learning_rate"]` is the line of that top-level key, counted from 1."""

    values: dict[str, Any]
    lines: dict[str, int]
    notes: tuple[Problem, ...] = ()


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, reading as OmegaConf in LLaMA-Factory does: 1e-4 is a number, a date is text."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node; nesting that would exhaust the stack is an error with its place."""
        self.depth += 1
        if self.depth > LARGEST_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"nested more than {LARGEST_DEPTH} levels deep", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+\Z")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


def load_yaml(path: Path) -> YamlFile:
    """Return the top-level mapping of a YAML file.

    Raises:
        ConfigError: the file is missing, too large, not UTF-8, not YAML, not a mapping, or gives one key two values.
    """
    text = _read_text(path)
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        if root is None or root.tag == NULL:
            return YamlFile({}, {})
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path}:1: the file is not a mapping of keys to values", "write lines like `key: value`")
        _check_expansion(path, root)
        values, lines, notes = _construct_top(path, loader, root)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(path, error) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ConfigError(f"{path}: not valid YAML: {error}", "save the file as plain UTF-8 text") from None
    except ValueError as error:  # a tagged value such as `!!int abc`
        raise ConfigError(f"{path}: a value cannot be read: {error}") from None
    return YamlFile(_resolve(path, values) if "${" in text else values, lines, notes)


def parse_scalar(text: str) -> Any:
    """Return the value that `text` has on the right of `key:` in a YAML file.

    Raises:
        ValueError: the text is not one YAML value.
    """
    try:
        loader = Loader(text)  # which refuses control characters at once
        root = loader.get_single_node()
        if root is None:
            return None
        if _expanded_size(root, {}) > LARGEST_EXPANSION:
            raise ValueError("its aliases grow too large")
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        raise ValueError(getattr(error, "problem", None) or str(error)) from None


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", "`trainkit init` writes a first training_config.yaml") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"{path}: {len(content)} bytes are too many for a configuration", "is this a data file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise ConfigError(f"{path}:{line}:{column}: not UTF-8", "save the file in the encoding UTF-8") from None


def _syntax_error(path: Path, error: yaml.MarkedYAMLError) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    tab = "'\\t'" in (error.problem or "")
    hint = "a tab cannot indent YAML; use spaces" if tab else "look at this line and the one above"
    return ConfigError(f"{place}: not valid YAML: {error.problem or error}", hint)


def _check_expansion(path: Path, root: yaml.Node) -> None:
    if _expanded_size(root, {}) > LARGEST_EXPANSION:
        raise ConfigError(f"{path}: its aliases (`*name`) grow too large when written out", "write the values out")


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count the nodes below `node` with aliases written out; each node is visited once."""
    known = sizes.get(id(node))
    if known is not None:
        return known
    sizes[id(node)] = LARGEST_EXPANSION + 1  # what a node that contains itself finds
    size = 1
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        size += sum(_expanded_size(part, sizes) for part in (child if isinstance(child, tuple) else (child,)))
    sizes[id(node)] = size
    return size


def _construct_top(
    path: Path, loader: Loader, root: yaml.MappingNode
) -> tuple[dict[str, Any], dict[str, int], tuple[Problem, ...]]:
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    notes: list[Problem] = []
    loader.flatten_mapping(root)
    for key_node, value_node in root.value:
        line = key_node.start_mark.line + 1
        key, value = (loader.construct_document(node) for node in (key_node, value_node))
        if not isinstance(key, str):
            raise ConfigError(f"{path}:{line}: the key {key!r} is not a word", "keys are the trainer's argument names")
        if key in values:
            notes.append(_repeated(path, key, (lines[key], line), (values[key], value)))
        values[key], lines[key] = value, lines.get(key, line)
    return values, lines, tuple(notes)


def _repeated(path: Path, key: str, lines: tuple[int, int], values: tuple[Any, Any]) -> Problem:
    first, second = values
    if first != second or type(first) is not type(second):
        raise ConfigError(
            f"{path}:{lines[1]}: {key} is {shown(key, second)} here and {shown(key, first)} in line {lines[0]}",
            "keep one of the two lines",
        )
    return Problem(f"{path.name}:{lines[1]} {key}", f"written twice, the same as in line {lines[0]}", level="note")


def _resolve(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Resolve OmegaConf's `${other_key}`; the environment is refused, since a secret would land in the run's files."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if any("${oc.env" in text for text in _texts(values)):
        raise ConfigError(
            f"{path}: ${{oc.env:...}} is not read: the value would be written into the run's files",
            "trackers and hubs read WANDB_API_KEY, SWANLAB_API_KEY and HF_TOKEN themselves",
        )
    try:
        resolved: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(values), resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: ${{...}} cannot be resolved: {reason}", "name a key of this file") from None
    return resolved


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return ["".join(value.split())]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for child in children for text in _texts(child)]
