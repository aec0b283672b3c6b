"""The look at the data behind `validate`, `suggest` and `train`: each row as the trainer will see it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit import __version__
from trainkit.dataset.columns import check_columns
from trainkit.dataset.entry import entry_of
from trainkit.dataset.findings import Figures, add_leaks, figures_of, problems_of
from trainkit.dataset.leaks import count_repeats
from trainkit.dataset.look import Lens, look_at_rows, stored_bytes
from trainkit.dataset.mediarows import Writing, check_merged
from trainkit.dataset.reader import plan_rows
from trainkit.dataset.registry import load_registry
from trainkit.dataset.rows import MediaRules
from trainkit.dataset.simulate import Flags
from trainkit.datatypes import Problem
from trainkit.errors import InputError
from trainkit.plan.hardware import usable_cores
from trainkit.plan.padding import Lengths
from trainkit.workflow.form import find_form, has_form
from trainkit.workflow.keep import find_tally, keep_tally, look_key
from trainkit.workflow.prepare import names_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.dataset.chatform import ChatForm
    from trainkit.dataset.reader import RowPlan
    from trainkit.dataset.tally import Tally
    from trainkit.workflow.prepare import Prepared

SIMULATED_STAGES = ("sft",)


@dataclass(frozen=True, slots=True)
class SetLook:
    """One data set that was looked at; `side` is train or eval."""

    name: str
    side: str
    lens: Lens
    tally: Tally
    figures: Figures


@dataclass(frozen=True, slots=True)
class LookResult:
    """All data sets of a training that could be looked at, and what was found; `form` counts their tokens."""

    sets: tuple[SetLook, ...] = ()
    problems: tuple[Problem, ...] = ()
    form: ChatForm | None = None

    def side(self, side: str) -> list[SetLook]:
        """Return the data sets of one side."""
        return [each for each in self.sets if each.side == side]

    @property
    def lengths(self) -> Lengths | None:
        """The tokens of the training rows before any cut; None when they could not be counted."""
        counts: Counter[int] = Counter()
        for each in self.side("train"):
            counts.update(each.tally.lengths)
        return Lengths(tuple(sorted(counts.items()))) if counts else None

    @property
    def train_rows(self) -> int:
        """The rows that the trainer makes an epoch of: whole sequences when they are packed."""
        return sum(each.tally.packs or each.tally.counts["trained_rows"] for each in self.side("train"))


@dataclass(slots=True)
class Progress:
    """Adds up the bytes of all data sets: `Progress(report, total)(4096)` reports what is done of `total`."""

    report: Callable[[int, int | None], None]
    total: int
    done: int = field(default=0)

    def __call__(self, more: int) -> None:
        """Count bytes that are done."""
        self.done += more
        self.report(self.done, self.total)


def look_at_data(
    prepared: Prepared,
    jobs: int | None = None,
    report: Callable[[int, int | None], None] = lambda done, total: None,  # noqa: ARG005
) -> LookResult:
    """Look at every row of the training and eval data of a configuration; a known data set is not looked at again.

    Args:
        prepared: the configuration.
        jobs: processes at most; None for all cores.
        report: told of the bytes done and in all.
    """
    values = prepared.config.values
    wanted = [("train", name) for name in prepared.datasets]
    wanted += [("eval", name) for name in names_of(values.get("eval_dataset"))]
    entries, faulty = find_entries(prepared), faulty_names(prepared)
    wanted = [(side, name) for side, name in wanted if entries.get(name, {}).get("file_name") and name not in faulty]
    if not wanted:
        return LookResult()
    # a faulty configuration may name a model or template that cannot be loaded, and that is said already
    form, problems = (None, []) if prepared.errors else find_form(prepared)
    if form and values.get("stage", "sft") not in SIMULATED_STAGES:
        problems.append(Problem("stage", f"lengths are counted for sft, not for {values['stage']}", level="note"))
    plans = []
    for side, name in wanted:
        try:
            lens = lens_for(prepared, name, entries[name], form)
            plans.append((side, name, lens, plan_rows(prepared.dataset_dir, lens.entry, values.get("max_samples"))))
        except InputError as error:
            problems.append(Problem(f"{side} data {name}", error.message, error.hint))
    for *_, lens, plan in plans:
        problems += [*plan.problems, *check_columns(plan, lens.entry, writing_of(prepared))]
    problems += check_sides(prepared, plans)
    progress = Progress(report, sum(stored_bytes(plan) for *_, plan in plans))
    sets = [look_at_set(*each, jobs or usable_cores(), progress) for each in plans]
    tallies = [each.tally for each in sets if each.side == "train"]
    for each in sets:
        if each.side == "eval":
            add_leaks(each.figures, tallies, each.tally)
    for each in sets:
        problems += problems_of(f"{each.side} data {each.name}", each.tally, each.figures, Path.cwd())
    problems += check_val_size(prepared, sets)
    return LookResult(tuple(sets), tuple(problems), form)


def writing_of(prepared: Prepared) -> Writing:
    """Return how the trainer will write its tables."""
    values, default = prepared.config.values, prepared.schema.default
    workers = None if values.get("streaming") else int(values.get("preprocessing_num_workers") or 1)
    part_rows = values.get("preprocessing_batch_size") or default("preprocessing_batch_size")
    return Writing(workers, int(part_rows), bool(values.get("val_size")))


def check_sides(prepared: Prepared, plans: list[tuple[str, str, Lens, RowPlan]]) -> list[Problem]:
    """Return where images come too late because data sets are tokenized as one, or val_size shuffles them."""
    values, origin, writing = prepared.config.values, prepared.config.origin, writing_of(prepared)
    if values.get("mix_strategy", "concat") != "concat":
        return []
    train, evaluated = (
        [(plan, lens.entry) for each, _, lens, plan in plans if each == side] for side in ("train", "eval")
    )
    problems = []
    if len(train) > 1 or writing.shuffled:
        key = "val_size" if writing.shuffled else "dataset"
        problems += check_merged(train, writing, f"{origin[key]} {key}")
    if len(evaluated) > 1 and not values.get("eval_on_each_dataset"):
        problems += check_merged(evaluated, replace(writing, shuffled=False), f"{origin['eval_dataset']} eval_dataset")
    return problems


def check_val_size(prepared: Prepared, sets: list[SetLook]) -> list[Problem]:
    """Return a warning when the trainer's own split, which goes by rows, puts a prompt on both sides."""
    repeated = sum(count_repeats(each.tally.prompts)[0] for each in sets if each.side == "train")
    if not prepared.config.values.get("val_size") or not repeated:
        return []
    said = f"splits row by row, and {repeated:,} of them repeat a prompt: the same one comes to both sides"
    where = f"{prepared.config.origin['val_size']} val_size"
    return [Problem(where, said, "trainkit convert --split-eval keeps them apart", "warning")]


def find_kept_lengths(prepared: Prepared) -> Lengths | None:
    """Return the tokens of the training rows when an earlier look counted them; nothing is counted here."""
    entries = find_entries(prepared)
    names = [name for name in prepared.datasets if entries.get(name, {}).get("file_name")]
    if not names or len(names) < len(prepared.datasets) or not has_form(prepared):
        return None
    form, _ = find_form(prepared)
    counts: Counter[int] = Counter()
    for name in names:
        try:
            lens = lens_for(prepared, name, entries[name], form)
            plan = plan_rows(prepared.dataset_dir, lens.entry, prepared.config.values.get("max_samples"))
        except InputError:
            return None
        tally = find_tally(look_key(plan, lens, __version__))
        if tally is None:
            return None
        counts.update(tally.lengths)
    return Lengths(tuple(sorted(counts.items()))) if counts else None


def find_entries(prepared: Prepared) -> dict[str, Any]:
    """Return the registry's entries that are objects; check_data reports a registry that cannot be read."""
    try:
        entries = load_registry(prepared.dataset_dir)
    except InputError:
        return {}
    return {name: entry for name, entry in entries.items() if isinstance(entry, dict)}


def faulty_names(prepared: Prepared) -> set[str]:
    """Return the data sets of which is known already that they cannot be read."""
    places = [problem.where.partition(" ") for problem in prepared.errors]
    return {name for key, _, name in places if key in ("dataset", "eval_dataset")}


def lens_for(prepared: Prepared, name: str, entry: dict[str, Any], form: ChatForm | None) -> Lens:
    """Return how the rows of an entry are looked at under a configuration."""
    values, default = prepared.config.values, prepared.schema.default

    def value(key: str) -> Any:
        return values.get(key, default(key))

    stage = str(value("stage"))
    simulated = form if form and form.tokenizer and stage in SIMULATED_STAGES else None
    packing = bool(value("packing") or value("neat_packing"))
    media_dir = Path(str(value("media_dir") or prepared.dataset_dir))
    cutoff_len = int(value("cutoff_len")) - packing  # the trainer keeps one token free in a packed sequence
    flags = Flags(cutoff_len, bool(value("mask_history")), bool(value("train_on_prompt")))
    return Lens(entry_of(name, entry), media_dir, MediaRules.of(form), flags, simulated, packing, stage)


def look_at_set(side: str, name: str, lens: Lens, plan: RowPlan, jobs: int, progress: Callable[[int], None]) -> SetLook:
    """Look at one data set, or return what an earlier look at the same rows found."""
    key = look_key(plan, lens, __version__)
    tally = find_tally(key)
    if tally is None:
        tally = look_at_rows(plan, lens, jobs, progress)
        keep_tally(key, tally)
    else:
        progress(stored_bytes(plan))
    return SetLook(name, side, lens, tally, figures_of(tally, lens.flags.cutoff_len))
