"""The form in which the trainer writes a conversation down: its tokenizer, its template, and what that leaves open."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from trainkit.dataset.imagetokens import ImageForm  # noqa: TC001 msgspec reads the annotations
from trainkit.errors import EnvironmentProblem

Slot = str | int
TemplateClass = Literal["Template", "Llama2Template", "ReasoningTemplate", "Glm47ReasoningTemplate"]

HINT = "check model_name_or_path and template, and that the trainer is installed: trainkit doctor"


@dataclass(frozen=True, slots=True)
class Slots:
    """The pieces around each kind of content: texts, in which `{{content}}` stands for it, and ids of single tokens.

    `user` of llama2 is `(1, "[INST] {{content}} [/INST]")`. `tools` is empty where a tool format writes them.
    """

    prefix: tuple[Slot, ...]
    system: tuple[Slot, ...]
    user: tuple[Slot, ...]
    assistant: tuple[Slot, ...]
    observation: tuple[Slot, ...]
    function: tuple[Slot, ...]
    tools: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class ChatForm:
    """What trainkit/inside/chat_form.py answers: everything that decides the tokens of a conversation.

    `tokenizer` is the JSON of the tokenizers library, None (with `tokenizer_reason`) where there is no such form;
    `tool_utils` is the path of the trainer's own tool formats; `media_tokens` are the plugin's, empty for text models;
    `images` is None where there are none, or where their tokens follow another rule than the known one.
    """

    tokenizer: str | None
    tokenizer_reason: str
    encode_special_tokens: bool
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int | None
    template_class: TemplateClass
    slots: Slots
    default_system: str
    efficient_eos: bool
    thought_words: tuple[str, str]
    tool_call_words: tuple[str, ...]
    enable_thinking: bool | None
    preserve_thinking: bool
    function_format: str
    tools_format: str | None
    plugin: str
    media_tokens: tuple[str, ...]
    tool_utils: str
    images: ImageForm | None = None

    @property
    def is_reasoning(self) -> bool:
        """Whether the template has a rule for answers without a think block."""
        return self.template_class in ("ReasoningTemplate", "Glm47ReasoningTemplate")

    @property
    def limits(self) -> tuple[str, ...]:
        """What cannot be foreseen with this form, in words; empty when every text can be simulated to the token."""
        return (f"tokens cannot be counted: {self.tokenizer_reason}",) if self.tokenizer is None else ()


def decode_form(answer: bytes) -> ChatForm:
    """Decode what trainkit/inside/chat_form.py printed; `msgspec.json.encode` is the way back.

    Raises:
        EnvironmentProblem: the program said that it could not answer, or this is no answer of it.
    """
    try:
        found: Any = msgspec.json.decode(answer)
        if isinstance(found, dict) and "error" in found:
            raise EnvironmentProblem(f"the trainer's tokenizer and template cannot be loaded: {found['error']}", HINT)
        form = msgspec.convert(found, type=ChatForm)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise EnvironmentProblem(f"the trainer's template is not as trainkit knows it: {error}", HINT) from None
    return form if form.images is None or form.images.holds else replace(form, images=None)
