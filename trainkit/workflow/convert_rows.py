"""Rows of conversations, pairs, labels and evaluations on their way from the inputs to examples."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from trainkit.dataset.filters import Filters
from trainkit.dataset.pool import map_in_processes
from trainkit.datatypes import Reject
from trainkit.errors import Rejected
from trainkit.lines import Chunk, read_block
from trainkit.sources import conversations, evaluations
from trainkit.sources.pairs import make_label_example, make_pair_example
from trainkit.workflow.convert_inputs import EVALUATIONS, LABELLED, PAIRS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from trainkit.dataset.filters import Condition
    from trainkit.datatypes import Example
    from trainkit.sources.conversations import Form
    from trainkit.workflow.convert_inputs import Input, Unit

    ToExample = Callable[[bytes], Example | None]

# A row costs about ten times what one of the evaluations does, so a second process pays sooner.
BYTES_PER_WORKER = 4 << 20

decode_json = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Recipe:
    """How rows become examples.

    Attributes:
        kind: what a row holds.
        forms: of the conversations, one for each input.
        conditions: which rows stay.
        group_by: the fact whose rows stay on one side of a split; None for each row by itself.
        metadata_form: what the prompt of an evaluation carries.
    """

    kind: str
    forms: tuple[Form, ...] = ()
    conditions: tuple[Condition, ...] = ()
    group_by: str | None = None
    metadata_form: tuple[str, ...] = ()

    def filters(self) -> Filters:
        """Return the conditions with an empty book."""
        return Filters(self.conditions, missing={condition.key for condition in self.conditions})


class Made(NamedTuple):
    """What became of a unit; lines count from its start, but in chunks from the start of the input."""

    examples: list[Example]
    rejects: list[tuple[int, str, str, bytes]]
    num_lines: int
    num_read: int
    repairs: Counter[str]
    left_out: Counter[str]
    missing: set[str]


@dataclass(slots=True)
class Book:
    """What was noted of all rows that were read.

    Attributes:
        on_reject: told of each row that cannot be used.
        on_bytes: told how many stored bytes were read since the last time.
        repairs: what was put right, in rows that stay.
        left_out: rows that a condition left out, by its words.
        missing: facts that are filtered by and that no row had.
        rejected: rows that cannot be used, by reason.
    """

    on_reject: Callable[[Reject], None]
    on_bytes: Callable[[int], None]
    missing: set[str]
    num_read: int = 0
    repairs: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)

    def note(self, made: Made, name: str, base: int) -> None:
        """Take down what became of a unit of the input of that name, which `base` lines come before."""
        self.num_read += made.num_read
        self.repairs += made.repairs
        self.left_out += made.left_out
        self.missing &= made.missing
        for line, reason, detail, row in made.rejects:
            self.rejected[reason] += 1
            self.on_reject(Reject(name, base + line, reason, detail, row))


def read_examples(inputs: Sequence[Input], recipe: Recipe, book: Book, jobs: int) -> Iterator[Example]:
    """Yield the examples of all inputs in their order, converted by at most `jobs` processes.

    `recipe.forms` are those of `inputs`. Raises `InputError` for an input that turns out to be damaged.
    """
    units = ((index, unit) for index, one in enumerate(inputs) for unit in one.units)
    num_bytes = sum(one.source.size or 0 for one in inputs)
    workers = max(1, min(jobs, num_bytes // BYTES_PER_WORKER))
    lines: Counter[int] = Counter()
    positions: Counter[int] = Counter()
    for (index, unit), made in map_in_processes(partial(convert_unit, inputs, recipe), units, workers):
        book.note(made, inputs[index].source.name, lines[index])
        if isinstance(unit, Chunk):
            book.on_bytes(unit.position - positions[index])
            positions[index] = unit.position
        else:
            book.on_bytes(unit.stop - unit.start)
            lines[index] += made.num_lines
        yield from made.examples


def convert_unit(inputs: Sequence[Input], recipe: Recipe, place: tuple[int, Unit]) -> Made:
    """Convert the rows of one unit of the input with that index."""
    index, unit = place
    source = inputs[index].source
    filters, repairs = recipe.filters(), Counter[str]()
    to_example = make_to_example(recipe, index, inputs[index], filters, repairs)
    records = unit.records if isinstance(unit, Chunk) else list(enumerate(read_block(source, unit), 1))
    examples: list[Example] = []
    rejects = []
    num_read = 0
    for number, record in records:
        if not record or record.isspace():
            continue
        num_read += 1
        try:
            example = to_example(record)
        except Rejected as reason:
            rejects.append((number, reason.reason, reason.detail, record))
            continue
        if example is not None:
            examples.append(example)
    return Made(examples, rejects, len(records), num_read, repairs, filters.left_out, filters.missing)


def make_to_example(recipe: Recipe, index: int, one: Input, filters: Filters, repairs: Counter[str]) -> ToExample:
    """Return the function that turns a row of an input into an example; images lie beside the input."""
    keep = filters.keep if recipe.conditions else None
    if recipe.kind == EVALUATIONS:
        return make_evaluation_example(recipe, keep)
    media_dir = one.source.path.parent.absolute() if one.source.path else None
    if recipe.kind == PAIRS:
        return make_pair_example(media_dir=media_dir, group_by=recipe.group_by, keep=keep, repairs=repairs)
    if recipe.kind == LABELLED:
        return make_label_example(media_dir=media_dir, group_by=recipe.group_by, keep=keep, repairs=repairs)
    return conversations.make_to_example(
        recipe.forms[index], media_dir=media_dir, group_by=recipe.group_by, keep=keep, repairs=repairs
    )


def make_evaluation_example(recipe: Recipe, keep: Callable[[Mapping[str, Any]], bool] | None) -> ToExample:
    """Return the function for evaluations, with the same filters as for conversations."""
    to_example = evaluations.make_to_example(recipe.metadata_form, {}, recipe.group_by, {})
    if keep is None:
        return to_example

    def filtered(line: bytes) -> Example | None:
        example = to_example(line)
        return example if example and keep(facts_of_evaluation(decode_json(example[4]))) else None

    return filtered


def facts_of_evaluation(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what filters ask of an evaluation: its metadata and turns; its calls are not read, and may be any text."""
    facts = conversations.facts_of({"conversations": [], "images": [], "metadata": row["metadata"]})
    return facts | {"num_turns": len(row["conversations"])}
