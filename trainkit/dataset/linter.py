"""A linter for `dataset_info.json`: what in it stops LLaMA-Factory, and what it silently takes for something else.

It models llamafactory 0.9.5 (data/parser.py, data/loader.py), which ignores keys that it does not know and turns each
column or tag that a partial mapping leaves out into None.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trainkit.dataset.entry import COLUMNS, FORMATTINGS, SETTINGS, SOURCES, TAGS
from trainkit.dataset.jsontext import JsonText, Member
from trainkit.dataset.paths import check_source
from trainkit.dataset.registry import REGISTRY
from trainkit.dataset.splits import parse_split
from trainkit.datatypes import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from trainkit.datatypes import Level

KEYS = (*SOURCES, *SETTINGS)
LEVELS = {"the entry": KEYS, "columns": COLUMNS, "tags": TAGS}
PAIRED_STAGES = ("rm", "dpo")


@dataclass(frozen=True, slots=True)
class Item:
    """An entry that is looked at: its name, its line, the text it stands in, and its members."""

    name: str
    line: int
    text: JsonText
    members: list[Member]

    @property
    def values(self) -> dict[str, Any]:
        """The entry as the trainer reads it: of a repeated key the last value."""
        return {member.key: member.value for member in self.members}

    def inner(self, key: str) -> list[Member]:
        """Return the members of an object in the entry, empty where it has none."""
        found = [self.text.members(member.start) for member in self.members if member.key == key]
        return found[-1] if found else []

    def problem(self, message: str, hint: str = "", level: Level = "error", line: int = 0) -> Problem:
        """Return a problem at a line of the entry."""
        return Problem(f"{REGISTRY}:{line or self.line} {self.name}", message, hint, level)


def check_registry(dataset_dir: Path, names: Collection[str] | None = None, stage: str = "") -> list[Problem]:
    """Check the registry of a data folder; other entries than the named ones have warnings where these have errors.

    Args:
        dataset_dir: the folder that holds `dataset_info.json` and the files that it names.
        names: the entries that will be trained on; None for all.
        stage: the stage they will be used in, empty when it is not known.
    """
    try:
        text = (dataset_dir / REGISTRY).read_text(encoding="utf-8")
        value = json.loads(text)
    except OSError as error:
        return [Problem(REGISTRY, f"{dataset_dir / REGISTRY}: cannot be read: {error.strerror}")]
    except UnicodeDecodeError as error:
        return [Problem(REGISTRY, f"not UTF-8 at byte {error.start}", "save it as UTF-8")]
    except json.JSONDecodeError as error:
        return [Problem(f"{REGISTRY}:{error.lineno}:{error.colno}", f"not valid JSON: {error.msg}")]
    except RecursionError:
        return [Problem(REGISTRY, "nested too deeply")]
    if not isinstance(value, dict):
        return [Problem(f"{REGISTRY}:1", "is not a JSON object", "each data set is an entry in it, by name")]
    found = list(check_entries(JsonText(text), dataset_dir, names, stage))
    return found + missing_entries(value, names)


def missing_entries(entries: Collection[str], names: Collection[str] | None) -> list[Problem]:
    problems = []
    for name in names or ():
        if name not in entries:
            close = difflib.get_close_matches(name, entries, n=3, cutoff=0.5) or list(entries)[:10]
            hint = f"there are: {', '.join(close) or 'none'}"
            problems.append(Problem(f"{REGISTRY} {name}", "there is no such entry", hint))
    return problems


def check_entries(text: JsonText, dataset_dir: Path, names: Collection[str] | None, stage: str) -> Iterator[Problem]:
    entries = text.members()
    last = {entry.key: entry.start for entry in entries}
    for entry in entries:
        item = Item(entry.key, entry.line, text, text.members(entry.start))
        if last[entry.key] != entry.start:
            yield item.problem("is there again further down; this one is not read", "rename or remove it", "warning")
            continue
        wanted = names is None or entry.key in names
        for problem in check_entry(item, entry.value, dataset_dir, stage):
            yield problem if wanted or problem.level != "error" else replace(problem, level="warning")


def check_entry(item: Item, value: Any, dataset_dir: Path, stage: str) -> Iterator[Problem]:
    """Yield the problems of one entry as if it were to be trained on."""
    if not isinstance(value, dict):
        yield item.problem("is not a JSON object", 'for example {"file_name": "my_set.json"}')
        return
    yield from check_keys(item, "the entry", item.members)
    for level in ("columns", "tags"):
        yield from check_names(item, level)
    yield from check_values(item, stage)
    yield from check_format(item, stage)
    yield from check_source(item.values, item.problem, dataset_dir)


def check_keys(item: Item, level: str, members: Iterable[Member]) -> Iterator[Problem]:
    """Yield the keys that are there twice or mean nothing to the trainer at their place."""
    seen: set[str] = set()
    for member in members:
        if member.key in seen:
            yield item.problem(f"{member.key} is there twice; the last one is read", "", "warning", member.line)
        seen.add(member.key)
        if member.key not in LEVELS[level]:
            yield unknown_key(item, level, member)


def unknown_key(item: Item, level: str, member: Member) -> Problem:
    """Return what is to be said of a key that the trainer ignores."""
    place = "" if level == "the entry" else f" in {level}"
    message = f"unknown key {member.key}{place}: it is not read"
    home = next((other for other, keys in LEVELS.items() if member.key in keys), None)
    if home:
        return item.problem(message, f"it belongs into {home}", "warning", member.line)
    close = difflib.get_close_matches(member.key.lower(), LEVELS[level], n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else f"{level} has: {', '.join(LEVELS[level])}"
    if close == ["formatting"] and member.value in FORMATTINGS[1:] and "formatting" not in item.values:
        return item.problem(f"{message}, and the rows are taken for alpaca", hint, line=member.line)
    return item.problem(message, hint, "warning", member.line)


def check_names(item: Item, level: str) -> Iterator[Problem]:
    """Yield what is wrong with the columns or the tags of an entry."""
    if level not in item.values:
        return
    members, line = item.inner(level), line_of(item, level)
    if not isinstance(item.values[level], dict):
        yield item.problem(f"{level} is not a JSON object: the trainer stops on it", line=line)
        return
    yield from check_keys(item, level, members)
    used: dict[str, str] = {}
    for member in members:
        if not isinstance(member.value, str | None):
            yield item.problem(f"{level}.{member.key} is not a string: the trainer stops on it", line=member.line)
        elif member.value in used and used[member.value] != member.key:
            message = f"{level}: {used[member.value]} and {member.key} are both {member.value}"
            yield item.problem(message, "", "warning", member.line)
        elif member.value and member.key in LEVELS[level]:
            used[member.value] = member.key


def check_values(item: Item, stage: str) -> Iterator[Problem]:
    """Yield what is wrong with the single settings of an entry."""
    values = item.values
    ranking, split, num_samples = values.get("ranking", False), values.get("split", "train"), values.get("num_samples")
    if not isinstance(ranking, bool):
        message = "ranking is neither true nor false: the trainer does not see which stage it is for"
        yield item.problem(message, "write true or false", "warning", line_of(item, "ranking"))
    elif stage and ranking != (stage in PAIRED_STAGES):
        hint = "rm and dpo take entries with ranking: true, and no other stage does"
        message = f"ranking is {str(ranking).lower()}, and the stage is {stage}: the trainer stops on it"
        yield item.problem(message, hint, line=line_of(item, "ranking"))
    if num_samples is not None and (type(num_samples) is not int or num_samples < 1):
        yield item.problem("num_samples is not a number of rows", line=line_of(item, "num_samples"))
    if not isinstance(split, str):
        yield item.problem("split is not a string: the trainer stops on it", line=line_of(item, "split"))
    elif "file_name" in values:
        try:
            parse_split(split)
        except ValueError as error:
            yield item.problem(f"split: {error}: the trainer stops on it", line=line_of(item, "split"))


def check_format(item: Item, stage: str) -> Iterator[Problem]:
    """Yield what the formatting lacks: columns and tags that a partial mapping has turned into None."""
    formatting = item.values.get("formatting", "alpaca")
    if formatting not in FORMATTINGS:
        hint = f"it is one of {', '.join(FORMATTINGS)}"
        shown = json.dumps(formatting, ensure_ascii=False)
        yield item.problem(f"formatting is {shown}: the trainer stops on it", hint, line=line_of(item, "formatting"))
        return
    columns, tags = item.values.get("columns"), item.values.get("tags")
    if isinstance(columns, dict):
        for name, message in lacking_columns(columns, formatting, item.values, stage):
            hint = f"columns has to name {name}: each column that it leaves out is None"
            yield item.problem(message, hint, line=line_of(item, "columns"))
    if formatting != "alpaca" and isinstance(tags, dict):
        for name, message in lacking_tags(tags):
            hint = f"tags has to name {name}: each tag that it leaves out is None"
            yield item.problem(message, hint, line=line_of(item, "tags"))


def lacking_columns(
    columns: dict[str, Any], formatting: str, values: dict[str, Any], stage: str
) -> Iterator[tuple[str, str]]:
    """Yield the columns without which no row is of use, and what happens."""
    if formatting != "alpaca" and not columns.get("messages"):
        yield "messages", "there is no messages column: the trainer stops with KeyError: None"
    if values.get("ranking") is True:
        for name in ("chosen", "rejected"):
            if not columns.get(name):
                yield name, f"there is no {name} column: the trainer stops with KeyError: None"
    elif formatting == "alpaca" and not columns.get("response") and stage not in ("pt", "ppo"):
        yield "response", "there is no response column: the trainer leaves out every row"


def lacking_tags(tags: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("role_tag", "content_tag"):
        if not tags.get(name):
            yield name, f"there is no {name}: the trainer stops with KeyError: None"
    for name in ("user_tag", "assistant_tag"):
        if not tags.get(name):
            yield name, f"there is no {name}: the trainer leaves out every row that has one"


def line_of(item: Item, key: str) -> int:
    return next((member.line for member in reversed(item.members) if member.key == key), item.line)
