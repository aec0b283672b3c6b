"""A look at every row of a data set as the trainer will see it, on all cores."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from trainkit.dataset.findings import REPAIRED
from trainkit.dataset.leaks import prompt_hash, twin_hash
from trainkit.dataset.pictures import picture
from trainkit.dataset.pool import map_in_processes
from trainkit.dataset.reader import read_block
from trainkit.dataset.rows import FATAL, align
from trainkit.dataset.simulate import measure, pack
from trainkit.dataset.tally import Place, Tally
from trainkit.dataset.tokenizer import load_tokenizer
from trainkit.errors import Rejected
from trainkit.verdicts import read_verdict, scores

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainkit.dataset.chatform import ChatForm
    from trainkit.dataset.entry import Entry
    from trainkit.dataset.reader import Block, RowPlan
    from trainkit.dataset.rows import MediaRules
    from trainkit.dataset.simulate import Flags, Measure
    from trainkit.dataset.tokenizer import Tokenizer
    from trainkit.datatypes import Conversation

# An answer of fewer characters says nothing that a model could learn from, unless it is a number or a label.
SHORT_ANSWER = 3
# The trainer packs the rows of one preprocessing batch.
PACKED_TOGETHER = 1000
BYTES_PER_WORKER = 4 << 20


@dataclass(frozen=True, slots=True)
class Lens:
    """How rows are looked at.

    `form` is None when the lengths cannot be counted; `packing` says whether short rows share a sequence.
    """

    entry: Entry
    media_dir: Path
    media: MediaRules
    flags: Flags
    form: ChatForm | None = None
    packing: bool = False
    stage: str = "sft"


class Metadata(msgspec.Struct):
    """What is read of a row besides the conversation; convert writes the metadata as JSON text."""

    metadata: str | dict[str, Any] | None = None


class EvaluationType(msgspec.Struct):
    """The part of the metadata that names what kind of verdict the answer is."""

    evaluation_type: str | None = None


decode_metadata = msgspec.json.Decoder(Metadata).decode
decode_type = msgspec.json.Decoder(EvaluationType).decode


def look_at_rows(plan: RowPlan, lens: Lens, workers: int, on_progress: Callable[[int], None]) -> Tally:
    """Return the tally of all rows of a plan; `on_progress` is told of the bytes of each block that is done.

    When the fast tokenizer turns out not to be equal on some text, the whole look is done again with the slow one.
    """
    workers = max(1, min(workers, stored_bytes(plan) // BYTES_PER_WORKER))
    tokenizer = load_tokenizer(lens.form) if lens.form else None
    tally = tally_blocks(plan, lens, tokenizer, workers, on_progress)
    if tally.doubt and lens.form:
        doubt = tally.doubt
        tally = tally_blocks(plan, lens, load_tokenizer(lens.form, route="tokenizers"), workers, lambda _: None)
        tally.doubt = doubt
    return tally


def stored_bytes(plan: RowPlan) -> int:
    """Return the bytes that a look at a plan reads."""
    return sum(block.size for block in plan.blocks)


def tally_blocks(
    plan: RowPlan, lens: Lens, tokenizer: Tokenizer | None, workers: int, on_progress: Callable[[int], None]
) -> Tally:
    tally = Tally()
    look = Look(plan, lens, tokenizer)
    for block, part in map_in_processes(look, plan.blocks, workers):
        tally.update(part)
        on_progress(block.size)
    return tally


@dataclass(frozen=True, slots=True)
class Look:
    """What a worker does with a block: `Look(plan, lens, tokenizer)(block)` is its tally."""

    plan: RowPlan
    lens: Lens
    tokenizer: Tokenizer | None

    def __call__(self, block: Block) -> Tally:
        """Return the tally of the rows of a block."""
        tally = Tally()
        lengths: list[int] = []
        for file, line, index, row in read_block(self.plan, block):
            tally.rows += 1
            tally.text_bytes += len(row) if isinstance(row, bytes) else 0
            place = Place(file, line)
            try:
                conversation = align(row, self.lens.entry, self.lens.media_dir, self.lens.media, self.lens.stage)
                measured = self.measure(conversation, row, place, tally)
            except Rejected as rejected:
                kind = "fatal" if rejected.reason in FATAL else "skipped"
                tally.note(f"{kind}: {rejected.reason}", dataclasses.replace(place, detail=rejected.detail))
                continue
            tally.counts["trained_rows"] += 1
            tally.prompts.append(prompt_hash(conversation))
            tally.twins.append(twin_hash(conversation))
            tally.row_numbers.append(index)
            check_answer(conversation, row, place, tally)
            if measured:
                add_measure(measured, place, tally)
                lengths.append(measured.kept_tokens)
        if self.lens.packing:
            tally.packs = count_packs(lengths, self.lens.flags.cutoff_len)
        if self.tokenizer is not None and self.tokenizer.doubt:
            tally.doubt = self.tokenizer.doubt
        return tally

    def measure(self, conversation: Conversation, row: Any, place: Place, tally: Tally) -> Measure | None:
        """Return the lengths of a conversation, None when they cannot be counted; what its images do is noted."""
        form, flags = self.lens.form, self.lens.flags
        if form is None or self.tokenizer is None:
            return None
        if not self.lens.media.any:
            return measure(conversation, form, self.tokenizer, flags)
        seen = picture(conversation, row, self.lens.entry, self.lens.media_dir, form.images)
        measured = measure(seen.conversation, form, self.tokenizer, flags)
        if seen.uncounted:
            tally.note(f"not counted: {seen.uncounted}", place)
        if form.images and measured.image_tokens != seen.image_tokens:
            if not measured.is_cut:
                detail = f"{measured.image_tokens} times {form.images.token}, and {seen.image_tokens} of the images"
                raise Rejected("image mark in text", detail)
            detail = f"{measured.full_tokens:,} tokens, {seen.image_tokens:,} of them for images"
            tally.note("images cut", dataclasses.replace(place, detail=detail))
            tally.needed[measured.full_tokens + self.lens.packing] += 1
        return measured


def count_packs(lengths: list[int], cutoff_len: int) -> int:
    """Return about how many sequences packing makes of rows that follow each other."""
    batches = (lengths[start : start + PACKED_TOGETHER] for start in range(0, len(lengths), PACKED_TOGETHER))
    return sum(pack(batch, cutoff_len) for batch in batches)


def add_measure(measured: Measure, place: Place, tally: Tally) -> None:
    """Count what the trainer keeps of a row and trains on."""
    tally.lengths[measured.full_tokens] += 1
    tally.kept[measured.kept_tokens] += 1
    counts = tally.counts
    counts["full_tokens"] += measured.full_tokens
    counts["kept_tokens"] += measured.kept_tokens
    counts["trained_tokens"] += measured.trained_tokens
    counts["turns"] += measured.turns_total
    if lost := measured.turns_total - measured.turns_kept:
        counts["turns_lost"] += lost
    tally.thoughts[measured.thought] += 1
    if measured.is_cut:
        detail = f"{measured.full_tokens:,} tokens, {measured.kept_tokens:,} kept"
        tally.note("cut", dataclasses.replace(place, detail=detail))
    if measured.answer_cut:
        tally.note("answer cut", place)
    if measured.no_trained:
        tally.note("nothing trained", place)
    if measured.thought == "mixed":
        tally.note("mixed thought", place)


def check_answer(conversation: Conversation, row: Any, place: Place, tally: Tally) -> None:
    """Count an answer that is nearly empty, and what a judge's verdict holds when the row is an evaluation."""
    answer = conversation.turns[-1].content if conversation.turns else ""
    kind = evaluation_type(row)
    if kind is None:
        if len(answer.strip()) < SHORT_ANSWER and not answer.strip().isalnum():
            tally.note("near-empty answer", dataclasses.replace(place, detail=repr(answer)))
        return
    verdict = read_verdict(answer)
    tally.counts["verdicts"] += 1
    if verdict.value is None:
        tally.note("broken verdict", dataclasses.replace(place, detail=verdict.problem))
        return
    for repair in verdict.repaired:
        tally.note(f"{REPAIRED}{repair}", place)
    for name, number in scores(verdict.value).items():
        tally.score(kind, name, number)


def evaluation_type(row: Any) -> str | None:
    """Return the evaluation type that a row's metadata names; None for a row that is no evaluation."""
    try:
        metadata = decode_metadata(row).metadata if isinstance(row, bytes) else row.get("metadata")
        if isinstance(metadata, str):
            return decode_type(metadata).evaluation_type
    except msgspec.MsgspecError:
        return None
    found = metadata.get("evaluation_type") if isinstance(metadata, dict) else None
    return found if isinstance(found, str) else None
