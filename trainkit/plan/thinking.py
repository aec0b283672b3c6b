"""Models that can answer with a thought or without: the training data say which chat template they are trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainkit.datatypes import Problem

if TYPE_CHECKING:
    from trainkit.plan.arguments import TrainerSchema
    from trainkit.plan.keys import Draft

DATA = "the training data"
# Their _nothink form is the same but for the think rule; ernie_nothink, which has other role marks, is another model's.
THINKING_TEMPLATES = ("qwen3", "qwen3_5", "qwen3_vl")


def follow_thoughts(draft: Draft, schema: TrainerSchema, *, has_thoughts: bool) -> None:
    """Take the thinking template for answers with think blocks and its _nothink form for those without, with a note.

    The thinking template leaves answers with a block as they are. To each answer with neither tag it adds an empty
    block: with enable_thinking: true, the default, the model is trained to write it (llamafactory/data/template.py
    0.9.5, ReasoningTemplate). The _nothink form adds nothing.
    """
    thinking = draft.values["template"]
    nothink = f"{thinking}_nothink"
    if thinking not in THINKING_TEMPLATES or nothink not in schema.templates:
        return
    if has_thoughts:
        said, hint = f"{thinking}, as its first answers hold think blocks", ""
    else:
        said = f"{nothink}, as its first answers hold no think block: {thinking} would add an empty one to each"
        hint = f"set template: {thinking} to train with empty blocks"
    draft.values["template"] = thinking if has_thoughts else nothink
    draft.origin["template"] = DATA
    draft.notes.append(Problem(f"{DATA} template", said, hint, "note"))
