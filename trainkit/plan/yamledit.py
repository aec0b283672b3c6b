"""Changing keys in the text of a YAML file while everything else in it stays as its author wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from trainkit.plan.keys import RENAMED
from trainkit.plan.render import Dumper
from trainkit.plan.yamlfile import Loader

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

WIDTH = 100


def with_keys(
    text: str, changes: Mapping[str, Any], comments: Mapping[str, str], *, without: Collection[str] = ()
) -> str:
    """Return a YAML mapping with some top-level keys changed: in place where they are there, else at the end.

    Args:
        text: the YAML of a mapping, or nothing.
        changes: key -> new value.
        comments: key -> words for the lines above a changed key.
        without: keys to leave out.

    Text that cannot be edited line by line (a mapping in braces, keys from an anchor) is written anew from its values.
    """
    root = Loader(text).get_single_node()
    before = _values(text)
    wanted = {key: value for key, value in before.items() if _known_as(key) not in changes and key not in without}
    wanted |= changes
    blocks = {key: _block(key, value, comments.get(key, "")) for key, value in changes.items()}
    edited = _edited(text, root, blocks, without)
    if _values_or_none(edited) == wanted and not _merges(root):
        return edited
    rest = {key: value for key, value in wanted.items() if key not in changes}
    return (_dump(rest) if rest else "") + "\n" + "\n".join(blocks.values())


def _edited(text: str, root: Any, blocks: Mapping[str, str], without: Collection[str]) -> str:
    lines = text.splitlines(keepends=True)
    left = dict(blocks)
    for key_node, value_node in reversed(root.value if isinstance(root, yaml.MappingNode) else []):
        key = _known_as(key_node.value)
        if key not in blocks and key_node.value not in without:
            continue
        start, stop = key_node.start_mark.line, _last_line(value_node, lines) + 1
        lines[start:stop] = [left.pop(key)] if key in left else []
    if left and lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    return "".join(lines) + ("\n" + "\n".join(left.values()) if left else "")


def _last_line(node: Any, lines: list[str]) -> int:
    """Return the last line of a value; what stands between it and the next key is not its own."""
    last: int = node.end_mark.line - (node.end_mark.column == 0)
    while last > node.start_mark.line and (not lines[last].strip() or lines[last].lstrip().startswith("#")):
        last -= 1
    return last


def _block(key: str, value: Any, comment: str) -> str:
    return "".join(f"# {line}\n" for line in _wrapped(comment)) + _dump({key: value})


def _wrapped(comment: str) -> list[str]:
    import textwrap

    return textwrap.wrap(comment, WIDTH - 2)


def _merges(root: Any) -> bool:
    """Whether keys come from an anchor (`<<: *name`): one of them written once more would count as given twice."""
    return isinstance(root, yaml.MappingNode) and any(key.value == "<<" for key, _ in root.value)


def _dump(values: Mapping[str, Any]) -> str:
    text: str = yaml.dump(
        dict(values), Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000
    )
    return text


def _known_as(key: Any) -> Any:
    return RENAMED.get(key, key)


def _values(text: str) -> dict[Any, Any]:
    root = Loader(text).get_single_node()
    return Loader(text).construct_document(root) if isinstance(root, yaml.MappingNode) else {}


def _values_or_none(text: str) -> dict[Any, Any] | None:
    try:
        return _values(text)
    except yaml.YAMLError:
        return None
