"""What came out of a conversion of conversations, whether it may be published, and what its manifest says."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainkit.dataset.filters import parse_filters
from trainkit.dataset.select import EVAL, TRAIN, Variant
from trainkit.errors import InputError
from trainkit.workflow.convert_trajectories import of_them

if TYPE_CHECKING:
    from pathlib import Path

    from trainkit.dataset.stage import Stage
    from trainkit.sources.conversations import Form
    from trainkit.workflow.convert_conversations import ConversationOptions
    from trainkit.workflow.convert_rows import Book


@dataclass(slots=True)
class ConversationsResult:
    """What came out, and what became of the rest.

    Attributes:
        forms: how each input was read, empty for pairs and labels, which may have a form in each row.
        book: what was noted while reading.
        drawn: rows taken from each input, in a mix.
        repeats: rows left out as they repeat one before them.
        paired: what was noted when pairs were made.
    """

    book: Book
    forms: tuple[Form, ...] = ()
    drawn: Counter[int] = field(default_factory=Counter)
    repeats: int = 0
    paired: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)
    folder: Path | None = None
    rejected_file: Path | None = None

    @property
    def num_rows(self) -> int:
        """Rows of all sides."""
        return sum(variant.num_rows for variant in self.variants)


def check_outcome(result: ConversationsResult, options: ConversationOptions, stage: Stage) -> None:
    """Check that what was read may be published."""
    book = result.book
    where = f"see {result.rejected_file}; " if result.rejected_file else ""
    num_rejected = book.rejected.total()
    if num_rejected > round(options.max_rejects * book.num_read, 6):
        raise InputError(
            f"{num_rejected} of {book.num_read} rows cannot be used{of_them(book.rejected)}: nothing was published",
            f"{where}--max-rejects {math.ceil(10_000 * num_rejected / book.num_read) / 100:g}% would accept that",
        )
    if stage.rows_of(TRAIN) + stage.rows_of(EVAL):
        return
    if result.paired["rows"]:
        counts = Counter({name: number for name, number in result.paired.items() if name != "rows"})
        raise InputError(
            f"no pair can be made of {result.paired['rows']} rows{of_them(+counts)}",
            "a pair needs two answers to one prompt whose scores are --margin apart; nothing was published",
        )
    never = "".join(f"; no row has {key}" for key in sorted(book.missing))
    raise InputError(
        f"none of {book.num_read} rows is left{of_them(book.left_out + book.rejected)}{never}",
        f"{where}nothing was published",
    )


def notes_of(result: ConversationsResult, options: ConversationOptions, stage: Stage) -> list[str]:
    """Return words on what the user may not expect; a split that left one side empty is undone."""
    notes = [f"no row has {key}, which --where asks for" for key in sorted(result.book.missing)]
    if options.eval_ratio and not (stage.rows_of(TRAIN) and stage.rows_of(EVAL)):
        if stage.rows_of(EVAL):
            stage.fold_eval()
        group = options.group_by or "row"
        notes.append(
            f"no eval split: every {group} is on the same side, as there are too few of them; all rows are for training"
        )
    return notes


def make_manifest(options: ConversationOptions, result: ConversationsResult, written: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of the data set; no path and no time, so that a rerun gives the same bytes."""
    split = {"eval_ratio": options.eval_ratio, "seed": options.seed, "group_by": options.group_by or "row"}
    mixed = {
        "until": options.until,
        "seed": options.seed,
        "inputs": [
            {"weight": weight, "rows": result.drawn[number]} for number, weight in enumerate(options.weights or ())
        ],
    }
    book = result.book
    conditions = [condition.words for condition in parse_filters(options.where).conditions]
    return {
        "kind": options.holds,
        "made_from": options.kind,
        "metadata_form": list(options.metadata_form),
        "split": split if options.eval_ratio else None,
        "num_read": book.num_read,
        "forms": sorted({form.name for form in result.forms}),
        "repairs": by_name(book.repairs),
        "filters": {words: book.left_out[words] for words in conditions},
        "rejected": by_name(book.rejected),
        "dedup": {"how": options.dedup, "repeats": result.repeats} if options.dedup else None,
        "mix": mixed if options.weights else None,
        "pairs": pairing(options, result),
        "files": written,
        "variants": {variant.name: {"rows": variant.num_rows, "side": variant.side} for variant in result.variants},
    }


def pairing(options: ConversationOptions, result: ConversationsResult) -> dict[str, Any] | None:
    """Return what the manifest says of pairs made from scores."""
    if options.pairs is None:
        return None
    return {**options.pairs._asdict(), "score": options.score or "verdict", "counts": by_name(result.paired)}


def by_name(counts: Counter[str]) -> dict[str, int]:
    """Return the counts that are not 0 in the order of their names."""
    return dict(sorted((+counts).items()))
