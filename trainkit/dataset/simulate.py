"""What LLaMA-Factory's supervised processor makes of a conversation: which tokens are kept, and which are trained.

It follows `SupervisedDatasetProcessor._encode_data_example`, the templates' `encode_multiturn`, `infer_seqlen` and
`greedy_knapsack` of LLaMA-Factory 0.9.5; a test compares both token for token.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from trainkit.dataset.turns import write_pairs
from trainkit.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trainkit.dataset.chatform import ChatForm, Slot
    from trainkit.dataset.imagetokens import ImageForm
    from trainkit.dataset.tokenizer import Tokenizer
    from trainkit.dataset.turns import Thought, Written
    from trainkit.datatypes import Conversation

IGNORED = -100  # the label of a token without loss


class Counts(Protocol):
    """What counts the tokens of a text, such as a `Tokenizer`."""

    def count(self, text: str) -> int:
        """Return the number of tokens of a text."""


class Flags(NamedTuple):
    """The trainer's keys that decide what of a conversation is kept and trained.

    With packing, the trainer's `cutoff_len` is one less than the configuration's.
    """

    cutoff_len: int = 2048
    mask_history: bool = False
    train_on_prompt: bool = False


@dataclass(frozen=True, slots=True)
class Measure:
    """What becomes of one conversation, lengths in tokens.

    `full_tokens` is the length without a cutoff, `kept_tokens` what the trainer keeps of it, `trained_tokens` those
    with a loss. A turn is a question with its answer. `answer_cut` says that an answer that is trained has lost its
    end, and with it its end-of-turn token (or, where one such token ends the row, that this follows half an answer).
    `thought` is what the think rule did, see `trainkit.dataset.turns.Written`. `image_tokens` are those that stand for
    images among the kept ones; with fewer or more of them than the row's images have, the trainer stops.
    """

    full_tokens: int
    kept_tokens: int
    trained_tokens: int
    turns_total: int
    turns_kept: int
    answer_cut: bool
    thought: Thought
    image_tokens: int = 0

    @property
    def is_cut(self) -> bool:
        """Whether anything is lost."""
        return self.kept_tokens < self.full_tokens

    @property
    def no_trained(self) -> bool:
        """Whether the row has no token with a loss, and yet counts as a sample."""
        return self.trained_tokens == 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """The row as the trainer sees it; a label of -100 has no loss."""

    input_ids: list[int]
    labels: list[int]
    facts: Measure


class Kept(NamedTuple):
    """What is kept of a turn, by its place in the conversation: tokens from the start of its source and its target."""

    turn: int
    source: int
    target: int


def measure(conversation: Conversation, form: ChatForm, tokenizer: Tokenizer, flags: Flags) -> Measure:
    """Count what becomes of a conversation.

    Raises:
        Rejected: the trainer would stop at this row.
    """
    written = write_pairs(check_pairs(conversation), form, flags.mask_history)
    lengths = lengths_of(written, form, tokenizer)
    kept = cut(lengths, form.efficient_eos, flags)
    facts = summarise(lengths, kept, form, flags, written.thought)
    if form.images is None:
        return facts
    what = kept if facts.is_cut else None
    return replace(facts, image_tokens=count_image_tokens(written, what, tokenizer, form.images))


def encode(conversation: Conversation, form: ChatForm, tokenizer: Tokenizer, flags: Flags) -> Encoded:
    """Encode a conversation as the trainer does.

    Raises:
        Rejected: the trainer would stop at this row.
    """
    written = write_pairs(check_pairs(conversation), form, flags.mask_history)
    pairs = [(tokens_of(source, tokenizer), tokens_of(target, tokenizer)) for source, target in written.pairs]
    lengths = [(len(source), len(target)) for source, target in pairs]
    kept = cut(lengths, form.efficient_eos, flags)
    parts = []
    for place, (turn, num_source, num_target) in enumerate(kept):
        source, target = pairs[turn][0][:num_source], pairs[turn][1][:num_target]
        parts.append((source + target, label(source, target, place, form, flags)))
    if flags.mask_history:
        parts.reverse()
    last = [form.eos_token_id] if form.efficient_eos else []
    input_ids = [token for part, _ in parts for token in part] + last
    labels = [token for _, part in parts for token in part] + last
    facts = summarise(lengths, kept, form, flags, written.thought)
    if form.images is not None:
        facts = replace(facts, image_tokens=input_ids.count(form.images.token_id))
    return Encoded(input_ids, labels, facts)


def check_pairs(conversation: Conversation) -> Conversation:
    """Return the conversation, which the trainer leaves out when its turns do not come in pairs."""
    if not conversation.turns or len(conversation.turns) % 2:
        raise Rejected("turns do not come in pairs", f"there are {len(conversation.turns)} turns")
    return conversation


def lengths_of(written: Written, form: ChatForm, tokenizer: Counts) -> list[tuple[int, int]]:
    """Return the tokens of each source and target."""
    images = form.images
    return [(count(source, tokenizer, images), count(target, tokenizer, images)) for source, target in written.pairs]


def count(slots: Iterable[Slot], tokenizer: Counts, images: ImageForm | None = None) -> int:
    """Return the tokens of some slots; of each run of image tokens one is shown to the tokenizer."""
    if images is None:
        return sum(tokenizer.count(slot) if isinstance(slot, str) else 1 for slot in slots)
    total = 0
    for slot in slots:
        if isinstance(slot, str):
            text, more = images.shorten(slot) if images.token in slot else (slot, 0)
            total += tokenizer.count(text) + more
        else:
            total += 1
    return total


def count_image_tokens(written: Written, kept: list[Kept] | None, tokenizer: Tokenizer, images: ImageForm) -> int:
    """Return how many tokens for images there are in what is kept of a conversation; None is all of it."""
    texts = [slot for pair in written.pairs for slots in pair for slot in slots if isinstance(slot, str)]
    total = sum(text.count(images.token) for text in texts)
    if kept is None or not total:
        return total
    tokens = [
        tokens_of(slots, tokenizer)[:number]
        for part in kept
        for slots, number in zip(written.pairs[part.turn], (part.source, part.target), strict=True)
    ]
    return sum(each.count(images.token_id) for each in tokens)


def tokens_of(slots: Iterable[Slot], tokenizer: Tokenizer) -> list[int]:
    tokens: list[int] = []
    for slot in slots:
        tokens += tokenizer.encode(slot) if isinstance(slot, str) else [slot]
    return tokens


def cut(lengths: list[tuple[int, int]], efficient_eos: bool, flags: Flags) -> list[Kept]:
    """Return what is kept of the turns, in the order in which the trainer takes them.

    The first turns win, or the last where only the last one is trained.
    """
    turns = list(enumerate(lengths))
    kept = []
    total = int(efficient_eos)
    for turn, (source, target) in reversed(turns) if flags.mask_history else turns:
        if total >= flags.cutoff_len:
            break
        source, target = share(source, target, flags.cutoff_len - total)
        kept.append(Kept(turn, source, target))
        total += source + target
    return kept


def share(source: int, target: int, room: int) -> tuple[int, int]:
    """Return what is left of a source and a target in a room of so many tokens (`infer_seqlen`)."""
    if target * 2 < room:
        most = room
    elif source * 2 < room:
        most = room - source
    else:
        most = int(room * (target / (source + target)))
    target = min(most, target)
    return min(max(room - target, 0), source), target


def label(source: list[int], target: list[int], place: int, form: ChatForm, flags: Flags) -> list[int]:
    """Return the labels of a turn that the trainer takes as the `place`-th, counted from 0."""
    if flags.train_on_prompt:
        labels = list(source)
    elif form.efficient_eos and place:
        # The trainer writes a label here even over a source of no tokens.
        labels = [form.eos_token_id] + [IGNORED] * (len(source) - 1)
    else:
        labels = [IGNORED] * len(source)
    return labels + ([IGNORED] * len(target) if flags.mask_history and place else target)


def summarise(
    lengths: list[tuple[int, int]], kept: list[Kept], form: ChatForm, flags: Flags, thought: Thought
) -> Measure:
    eos = int(form.efficient_eos)
    trained = [part for place, part in enumerate(kept) if not (flags.mask_history and place)]
    prompts = sum(part.source for part in kept) if flags.train_on_prompt else eos * max(len(kept) - 1, 0)
    return Measure(
        full_tokens=sum(map(sum, lengths)) + eos,
        kept_tokens=sum(part.source + part.target for part in kept) + eos,
        trained_tokens=sum(part.target for part in trained) + prompts + eos,
        turns_total=len(lengths),
        turns_kept=len(kept),
        answer_cut=any(part.target < lengths[part.turn][1] for part in trained),
        thought=thought,
    )


def pack(lengths: Iterable[int], cutoff_len: int) -> int:
    """Return how many packs the trainer makes of one batch of rows (1000, `preprocessing_batch_size`).

    It takes the longest row that still fits, again and again (`greedy_knapsack`), and drops rows beyond `cutoff_len`.
    """
    left = sorted(length for length in lengths if length <= cutoff_len)
    packs = 0
    while left:
        room = cutoff_len
        while index := bisect.bisect(left, room):
            room -= left.pop(index - 1)
        packs += 1
    return packs
