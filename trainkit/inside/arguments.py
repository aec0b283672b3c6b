"""Print the arguments that the installed LLaMA-Factory takes, as one JSON line.

Started by path with the trainer's own Python: `python trainkit/inside/arguments.py`. It imports the trainer, which
takes about ten seconds, so its answer is kept by trainkit/plan/arguments.py. It must not import trainkit.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import sys
import types
import typing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

KINDS = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}


def main() -> None:
    """Print the schema; whatever the imports print goes to stderr."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    json.dump(trainer_schema(), answer)
    answer.write("\n")
    answer.close()


def trainer_schema() -> dict[str, Any]:
    """Return `{"arguments": {name: argument}, "templates": [name, ...]}` of the installed LLaMA-Factory."""
    sys.argv = [sys.argv[0]]
    from llamafactory.data.template import TEMPLATES
    from llamafactory.hparams import (
        DataArguments,
        FinetuningArguments,
        GeneratingArguments,
        ModelArguments,
        TrainingArguments,
    )

    classes = (ModelArguments, DataArguments, TrainingArguments, FinetuningArguments, GeneratingArguments)
    arguments = {argument["name"]: argument for cls in classes for argument in class_arguments(cls)}
    return {"arguments": dict(sorted(arguments.items())), "templates": sorted(TEMPLATES)}


def class_arguments(cls: type) -> list[dict[str, Any]]:
    """Return the arguments of one dataclass; fields that its constructor does not take are none."""
    hints = typing.get_type_hints(cls)
    return [
        {"name": field.name, "default": plain_default(field), **describe(hints[field.name], field.metadata)}
        for field in dataclasses.fields(cls)
        if field.init
    ]


def describe(hint: Any, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kind of value that a type hint allows, its choices, and whether null is one of the values.

    `describe(int | None, {})` is `{"kind": "int", "choices": [], "optional": True}`.
    """
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts = typing.get_args(hint) if union else (hint,)
    members = [part for part in parts if part is not type(None)]
    choices = [choice for part in members for choice in part_choices(part)] or list(metadata.get("choices") or ())
    kinds = {"str" if part_choices(part) else KINDS.get(typing.get_origin(part) or part, "any") for part in members}
    optional = len(members) < len(parts)
    return {"kind": kinds.pop() if len(kinds) == 1 else "any", "choices": choices, "optional": optional}


def part_choices(part: Any) -> list[str]:
    """Return the texts that an enumeration or a Literal allows; none for anything else."""
    if isinstance(part, type) and issubclass(part, enum.Enum):
        return [str(member.value) for member in part]
    if typing.get_origin(part) is typing.Literal:
        return [value for value in typing.get_args(part) if isinstance(value, str)]
    return []


def plain_default(field: dataclasses.Field[Any]) -> Any:
    """Return the default as JSON can hold it."""
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if isinstance(default, enum.Enum):
        return default.value
    return default if isinstance(default, (bool, int, float, str, list, dict)) else None


if __name__ == "__main__":
    main()
