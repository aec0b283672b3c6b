"""`trainkit convert --kind conversations`, `pairs` or `labels`, and `--pairs`: one data set out of any of them."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trainkit.dataset.dedup import ExactRepeats, NearRepeats
from trainkit.dataset.filters import parse_filters
from trainkit.dataset.mix import mix
from trainkit.dataset.registry import check_free, load_registry
from trainkit.dataset.select import EVAL, make_split
from trainkit.dataset.stage import Stage
from trainkit.dataset.write import RejectFile, publish, staging_folder
from trainkit.errors import InputError, UsageProblem
from trainkit.files import locked
from trainkit.sources.conversations import recognise
from trainkit.sources.pairs import LABEL_COLUMNS, PAIR_COLUMNS, PROMPT_COLUMNS
from trainkit.sources.scored_pairs import check_rule, make_fact_score, make_pairs, verdict_score
from trainkit.workflow.convert import BASE, counting
from trainkit.workflow.convert_inputs import CONVERSATIONS, LABELLED, PAIRS
from trainkit.workflow.convert_outcome import ConversationsResult, check_outcome, make_manifest, notes_of
from trainkit.workflow.convert_rows import Book, Recipe, decode_json, read_examples
from trainkit.workflow.convert_trajectories import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import IO

    from trainkit.dataset.mix import Until
    from trainkit.datatypes import Example
    from trainkit.sources.conversations import Form
    from trainkit.sources.scored_pairs import PairRule
    from trainkit.workflow.convert_inputs import Input

    OnProgress = Callable[[int, int | None], None]

COLUMNS = {CONVERSATIONS: PROMPT_COLUMNS, PAIRS: PAIR_COLUMNS, LABELLED: LABEL_COLUMNS}
EXACT, NEAR = "exact", "near"
SIMILARITY = 0.8


@dataclass(frozen=True, slots=True)
class ConversationOptions:
    """How conversations, pairs or labels become a data set.

    Attributes:
        kind: what the inputs hold: conversations, pairs, labels, or with `pairs` also evaluations.
        name: of the data set; its own kind unless given.
        where: conditions that rows must meet, such as "score>=0.7".
        dedup: leave out repeats, "exact" or "near" or "near:0.9"; empty for none.
        weights: of the inputs when they are mixed, None when they follow each other.
        until: how far a mix goes, see `dataset.mix`.
        pairs: make pairs from scores by this rule.
        score: the fact that has the score; empty for the score of the verdict, which only evaluations have.
        metadata_form: what the prompt of an evaluation carries.
        eval_ratio: share of the groups on the eval side; 0 means no split.
        group_by: fact whose rows stay on one side; None splits row by row.
        max_rejects: largest share of rejected rows at which the data set is still published.
        jobs: number of processes at most.
    """

    kind: str = CONVERSATIONS
    name: str = ""
    where: tuple[str, ...] = ()
    dedup: str = ""
    weights: tuple[float, ...] | None = None
    until: Until = "first"
    pairs: PairRule | None = None
    score: str = ""
    metadata_form: tuple[str, ...] = ()
    eval_ratio: float = 0.0
    seed: int = 42
    group_by: str | None = "task_id"
    max_rejects: float = 0.01
    jobs: int = 1
    dry_run: bool = False

    @property
    def holds(self) -> str:
        """What the rows of the data set are: conversations, pairs or labels."""
        return PAIRS if self.pairs else self.kind

    @property
    def base(self) -> str:
        """The name of the data set."""
        return self.name or self.holds


def convert_conversations(
    inputs: list[Input], dataset_dir: Path, options: ConversationOptions, on_progress: OnProgress = lambda *_: None
) -> ConversationsResult:
    """Convert opened inputs into one registered data set, all or nothing.

    Args:
        inputs: from `open_inputs`.
        dataset_dir: the folder of `dataset_info.json`.
        options: what the inputs hold, filters, name, split and limits.
        on_progress: called with the stored bytes read so far and their total, None when that is unknown.

    Raises:
        InputError: inputs that are not of their kind, no row left, too many rejected rows, a name that is taken.
        UsageProblem: options that cannot be.
        EnvironmentProblem: near duplicates without datasketch.
    """
    check_options(options)
    forms = tuple(named_form(one) for one in inputs) if options.kind == CONVERSATIONS else ()
    if options.dry_run:
        return run(inputs, forms, dataset_dir, options, on_progress)
    with explained(dataset_dir), locked(dataset_dir):
        names = [options.base, f"{options.base}_{EVAL}"][: 2 if options.eval_ratio else 1]
        check_free(load_registry(dataset_dir), options.base, names, dataset_dir)  # told before the work, not after it
        return run(inputs, forms, dataset_dir, options, on_progress)


def check_options(options: ConversationOptions) -> None:
    if not 0 <= options.eval_ratio < 1:
        raise UsageProblem(f"--eval-ratio {options.eval_ratio}: must be at least 0 and below 1")
    if not 0 <= options.max_rejects <= 1:
        raise UsageProblem(f"--max-rejects {options.max_rejects}: must be between 0 and 1 (or 0% and 100%)")
    if options.name == BASE:
        raise UsageProblem(
            f"--name {BASE}: is the name of the evaluations' variants together", f"for example {options.holds}"
        )
    if options.jobs < 1:
        raise UsageProblem(f"--jobs {options.jobs}: must be at least 1")
    if options.pairs is not None:
        check_rule(options.pairs)
    if options.pairs is not None and options.kind == CONVERSATIONS and not options.score:
        raise UsageProblem(
            "--pairs: which fact of the conversations has their score?",
            "for example --score reward, or --score judge.score for one that is inside another",
        )
    parse_filters(options.where)
    make_is_repeat(options.dedup)


def named_form(one: Input) -> Form:
    """Return the form of an input's conversations; raises `InputError` with the input's name."""
    try:
        return recognise(one.head)
    except InputError as error:
        raise InputError(f"{one.source.name}: {error.message}", error.hint) from None


def make_is_repeat(words: str) -> Callable[[Mapping[str, Any]], bool] | None:
    """Return the function that says whether a row repeats one before it, None for no words.

    Raises:
        UsageProblem: words that are not exact, near, or near with a similarity.
        EnvironmentProblem: near duplicates without datasketch.
    """
    if not words:
        return None
    how, _, number = words.partition(":")
    exact = ExactRepeats()
    if words == EXACT:
        return exact.is_repeat
    try:
        near = NearRepeats(float(number or SIMILARITY) if how == NEAR else math.nan)
    except (ValueError, UsageProblem):
        hint = f"for example --dedup {EXACT}, or --dedup {NEAR}:{SIMILARITY}"
        raise UsageProblem(f"--dedup {words}: must be {EXACT}, or {NEAR}:SIMILARITY from 0.5 to 1", hint) from None
    return lambda row: exact.is_repeat(row) or near.find_repeat(row) is not None


def run(
    inputs: list[Input],
    forms: tuple[Form, ...],
    dataset_dir: Path,
    options: ConversationOptions,
    on_progress: OnProgress,
) -> ConversationsResult:
    rejects = RejectFile(None if options.dry_run else dataset_dir)
    filters = parse_filters(options.where)
    recipe = Recipe(options.kind, forms, filters.conditions, options.group_by, options.metadata_form)
    on_bytes = counting([one.source for one in inputs], on_progress)
    result = ConversationsResult(Book(rejects.add, on_bytes, filters.missing), forms)
    side_of = make_split(options.eval_ratio, options.seed)
    try:
        with staging_folder(dataset_dir, dry_run=options.dry_run) as staging:
            with Stage(staging) as stage, tempfile.TemporaryFile(dir=staging) as spool:
                for example in final_examples(inputs, recipe, options, result, spool):
                    stage.add(side_of(example[3]), example[4])
            result.rejected_file = rejects.publish()
            check_outcome(result, options, stage)
            result.notes += notes_of(result, options, stage)
            written = stage.settle()
            result.variants += stage.variants(options.base)
            if staging is not None:
                manifest, digest = make_manifest(options, result, written), stage.digest.hexdigest()
                columns = COLUMNS[options.holds]
                result.folder = publish(staging, dataset_dir, options.base, result.variants, manifest, digest, columns)
    finally:
        rejects.discard()
    return result


def final_examples(
    inputs: list[Input],
    recipe: Recipe,
    options: ConversationOptions,
    result: ConversationsResult,
    spool: IO[bytes],
) -> Iterator[Example]:
    """Yield the rows of the data set: converted, without repeats, mixed, or made into pairs."""
    is_repeat = make_is_repeat(options.dedup)

    def unique(examples: Iterable[Example]) -> Iterator[Example]:
        for example in examples:
            if is_repeat is not None and is_repeat(decode_json(example[4])):
                result.repeats += 1
            else:
                yield example

    if options.weights is not None:
        # The shares are those of the rows that stay, so what is left out is left out before the draw.
        streams = [unique(read_one(number, inputs, recipe, result.book)) for number in range(len(inputs))]
        for number, example in mix(streams, options.weights, options.seed, options.until):
            result.drawn[number] += 1
            yield example
        return
    examples = unique(read_examples(inputs, recipe, result.book, options.jobs))
    if options.pairs is None:
        yield from examples
        return
    score_of = make_fact_score(options.score) if options.score else verdict_score
    yield from make_pairs(examples, score_of, options.pairs, spool, result.paired)


def read_one(number: int, inputs: list[Input], recipe: Recipe, book: Book) -> Iterator[Example]:
    """Yield the examples of one input, converted as they are asked for."""
    return read_examples(inputs[number : number + 1], replace(recipe, forms=recipe.forms[number : number + 1]), book, 1)
