"""Models that can answer with a thought or without: the training data say which chat template they are trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainkit.datatypes import Problem

if TYPE_CHECKING:
    from collections.abc import Collection

    from trainkit.plan.arguments import TrainerSchema
    from trainkit.plan.keys import Draft

DATA = "the training data"
# Their _nothink form is the same but for the think rule; ernie_nothink, which has other role marks, is another model's.
THINKING_TEMPLATES = ("qwen3", "qwen3_5", "qwen3_vl")


def template_for(template: str, templates: Collection[str], *, has_thoughts: bool | None) -> str:
    """Return the thinking template of a model, or its _nothink form for answers that hold no think block.

    The thinking template leaves answers with a block as they are. To each answer with neither tag it adds an empty
    block: with enable_thinking: true, the default, the model is trained to write it (llamafactory/data/template.py
    0.9.5, ReasoningTemplate). The _nothink form adds nothing.

    Args:
        template: the usual one of the model's family.
        templates: those that the installed trainer has.
        has_thoughts: None leaves the template as it is.
    """
    nothink = f"{template}_nothink"
    if has_thoughts is not False or template not in THINKING_TEMPLATES or nothink not in templates:
        return template
    return nothink


def follow_thoughts(draft: Draft, schema: TrainerSchema, *, has_thoughts: bool) -> None:
    """Take the thinking template for answers with think blocks and its _nothink form for those without, with a note."""
    thinking = draft.values["template"]
    if thinking not in THINKING_TEMPLATES or f"{thinking}_nothink" not in schema.templates:
        return
    chosen = template_for(thinking, schema.templates, has_thoughts=has_thoughts)
    if has_thoughts:
        said, hint = f"{chosen}, as its first answers hold think blocks", ""
    else:
        said = f"{chosen}, as its first answers hold no think block: {thinking} would add an empty one to each"
        hint = f"set template: {thinking} to train with empty blocks"
    draft.values["template"] = chosen
    draft.origin["template"] = DATA
    draft.notes.append(Problem(f"{DATA} template", said, hint, "note"))
