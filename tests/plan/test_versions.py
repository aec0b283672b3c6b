from __future__ import annotations

import re
from importlib import metadata, util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.datatypes import Problem
from trainkit.plan.versions import BOUNDS, INSTALL_ALL, NEEDED, PINS, PURPOSES, check_versions, compare, release_of

ROOT = Path(__file__).parents[2]


def test_the_pins_are_those_of_the_lock_file() -> None:
    lock = (ROOT / "requirements" / "train.lock").read_text(encoding="utf-8")
    locked = re.findall(r"^([\w-]+)==(\S+)", lock, re.MULTILINE)
    # a package with markers, such as numpy, is in the lock more than once
    assert {name: version for name, version in locked if name in PINS} == PINS
    assert len([name for name, _ in locked if name in PINS]) == len(PINS)


def test_every_package_is_needed_or_has_a_purpose() -> None:
    assert sorted([*NEEDED, *PURPOSES]) == sorted(PINS)
    assert set(BOUNDS) < set(NEEDED)


def test_the_bounds_are_those_that_llamafactory_checks() -> None:
    found = util.find_spec("llamafactory")
    assert found is not None
    assert found.submodule_search_locations is not None
    source = (Path(found.submodule_search_locations[0]) / "extras" / "misc.py").read_text(encoding="utf-8")
    checked = re.findall(r'check_version\("(\w+)>=([\d.]+),<=([\d.]+)"\)', source)
    assert {name: (low, high) for name, low, high in checked} == BOUNDS
    assert metadata.version("llamafactory") == PINS["llamafactory"]


def test_the_set_has_no_problem() -> None:
    assert check_versions(PINS) == []
    assert check_versions({**PINS, "torch": "2.11.0+cu130", "torchvision": "0.26.0+cu130"}) == []


@pytest.mark.parametrize(
    ("name", "version", "problem"),
    [
        (
            "trl",
            None,
            Problem("trl", "not installed, and no training starts without it (0.24.0)", INSTALL_ALL),
        ),
        (
            "deepspeed",
            None,
            Problem(
                "deepspeed",
                "not installed",
                "pip install deepspeed==0.19.8, for ZeRO: deepspeed: ds_z3.json",
                "note",
            ),
        ),
        (
            "wandb",
            "0.30.9",
            Problem("wandb", "0.30.9 is not 0.31.0, with which trainkit is tested", INSTALL_ALL, "warning"),
        ),
        (
            "transformers",
            "5.6.1",
            Problem("transformers", "5.6.1 is refused by LLaMA-Factory, which takes 4.55.0 to 5.6.0", INSTALL_ALL),
        ),
        (
            "transformers",
            "4.54.9",
            Problem("transformers", "4.54.9 is refused by LLaMA-Factory, which takes 4.55.0 to 5.6.0", INSTALL_ALL),
        ),
        (
            "transformers",
            "4.55",
            Problem("transformers", "4.55 is not 5.6.0, with which trainkit is tested", INSTALL_ALL, "warning"),
        ),
        (
            "torchvision",
            "0.25.0",
            Problem(
                "torchvision",
                "0.25.0 does not belong to torch 2.11.0, which goes with torchvision 0.26",
                INSTALL_ALL,
            ),
        ),
        (
            "torchvision",
            "0.26.0+cpu",
            Problem("torchvision", "0.26.0+cpu is built for other hardware than torch 2.11.0", INSTALL_ALL),
        ),
        (
            "torchaudio",
            "2.10.0",
            Problem(
                "torchaudio",
                "2.10.0 does not belong to torch 2.11.0, which goes with torchaudio 2.11",
                INSTALL_ALL,
            ),
        ),
    ],
)
def test_a_wrong_version(name: str, version: str | None, problem: Problem) -> None:
    found = {package: pinned for package, pinned in PINS.items() if package != name}
    assert check_versions({**found, name: version} if version else found) == [problem]


@pytest.mark.parametrize(
    ("torch", "vision", "audio", "wrong"),
    [
        ("2.11.0+cpu", "0.26.0+cpu", "2.11.0+cpu", []),
        ("2.11.0+cu128", "0.26.0", "2.11.0", []),
        ("2.11.0+cpu", "0.26.0", "2.11.0", ["torchvision", "torchaudio"]),
        ("2.11.0+cu128", "0.26.0+cu130", "2.11.0+cu128", ["torchvision"]),
        ("2.12.0", "0.26.0", "2.11.0", ["torchvision", "torchaudio"]),
        ("3", "0.26.0", "2.11.0", ["torchvision", "torchaudio"]),
    ],
)
def test_builds_that_do_not_fit_together(torch: str, vision: str, audio: str, wrong: list[str]) -> None:
    found = {**PINS, "torch": torch, "torchvision": vision, "torchaudio": audio}
    assert [problem.where for problem in check_versions(found) if problem.level == "error"] == wrong


def test_without_torch_nothing_is_said_of_its_partners() -> None:
    found = {name: version for name, version in PINS.items() if name != "torch"}
    assert [problem.where for problem in check_versions(found)] == ["torch"]


@pytest.mark.parametrize(
    ("one", "other", "order"),
    [("4.0", "4.0.0", 0), ("4.0.1", "4.0", 1), ("2.9", "2.11", -1), ("2.11.0rc1", "2.11.0", 0), ("", "0", 0)],
)
def test_versions_are_compared_by_their_numbers(one: str, other: str, order: int) -> None:
    assert compare(one, other) == order
    assert compare(other, one) == -order


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.sampled_from(["", "rc1", "+cu130", ".post1", "a2"]))
def test_the_release_is_read_back(numbers: list[int], suffix: str) -> None:
    assert release_of(".".join(map(str, numbers)) + suffix) == tuple(numbers)


@given(st.text(max_size=30))
def test_any_text_is_a_version(text: str) -> None:
    assert all(isinstance(number, int) for number in release_of(text))
