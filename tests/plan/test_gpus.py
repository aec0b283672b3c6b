from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.datatypes import Gpu
from trainkit.errors import UsageProblem
from trainkit.plan.gpus import GIB, MODELS, find_gpu, gpu_model_of


@pytest.mark.parametrize(
    ("word", "name", "memory_gib"),
    [
        ("a100-40", "a100-40", 39.4),
        ("A100_80", "a100-80", 79.2),
        ("a100", "a100-80", 79.2),
        ("A100-80GB", "a100-80", 79.2),
        ("NVIDIA H100", "h100", 79.1),
        ("h200", "h200", 139.8),
        ("L40S", "l40s", 44.4),
        ("4090", "rtx4090", 23.6),
        ("rtx 4090", "rtx4090", 23.6),
        ("rtx3090", "rtx3090", 23.6),
        ("T4", "t4", 14.6),
        ("48", "48 GiB", 48),
        ("48GiB", "48 GiB", 48),
        ("11.5 gb", "11.5 GiB", 11.5),
    ],
)
def test_a_gpu_is_found_by_its_name_or_its_memory(word: str, name: str, memory_gib: float) -> None:
    model = find_gpu(word)
    assert (model.name, model.memory_gib, model.memory) == (name, memory_gib, int(memory_gib * GIB))


def test_every_model_is_found_by_its_own_name() -> None:
    assert [find_gpu(model.name) for model in MODELS] == list(MODELS)


def test_a_number_of_gib_has_the_speed_of_an_a100_and_says_so() -> None:
    model = find_gpu("48")
    assert (model.known, model.tflops, model.bandwidth_gbs, model.link_gbs) == (False, 312, 2039, 32)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("h20", "did you mean h200?"),
        ("a100-60", "did you mean a100-80 or a100-40?"),
        ("xyz", "one of a100-40, a100-80, h100, h200, l40s, rtx4090, rtx3090, t4, or its memory in GiB such as 48"),
        ("0", "one of a100-40, a100-80, h100, h200, l40s, rtx4090, rtx3090, t4, or its memory in GiB such as 48"),
        ("-8", "one of a100-40, a100-80, h100, h200, l40s, rtx4090, rtx3090, t4, or its memory in GiB such as 48"),
        ("nan", "one of a100-40, a100-80, h100, h200, l40s, rtx4090, rtx3090, t4, or its memory in GiB such as 48"),
    ],
)
def test_another_word_is_refused_with_what_is_near(word: str, hint: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        find_gpu(word)
    assert (caught.value.message, caught.value.hint) == (f"--gpu {word}: not a GPU that trainkit knows", hint)


@given(st.text(max_size=12))
def test_any_word_is_a_gpu_or_a_usage_problem(word: str) -> None:
    with contextlib.suppress(UsageProblem):
        assert find_gpu(word).memory_gib > 0


@pytest.mark.parametrize(
    ("gpu", "name", "memory_gib"),
    [
        (Gpu("NVIDIA A100-SXM4-40GB", 40.0, (8, 0)), "a100-40", 39.4),
        (Gpu("NVIDIA A100 80GB PCIe", 80.0, (8, 0)), "a100-80", 79.2),
        (Gpu("NVIDIA H100 80GB HBM3", 79.6, (9, 0)), "h100", 79.1),
        (Gpu("NVIDIA H200", 140.4, (9, 0)), "h200", 139.8),
        (Gpu("NVIDIA L40S", 45.0, (8, 9)), "l40s", 44.4),
        (Gpu("NVIDIA GeForce RTX 4090", 24.0, (8, 9)), "rtx4090", 23.6),
        (Gpu("NVIDIA GeForce RTX 3090", 24.0, (8, 6)), "rtx3090", 23.6),
        (Gpu("Tesla T4", 15.0, (7, 5)), "t4", 14.6),
        (Gpu("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19.5, (8, 0)), "a100-40", 19.5),
    ],
)
def test_a_gpu_of_this_machine_is_recognised_and_its_memory_is_the_smaller(
    gpu: Gpu, name: str, memory_gib: float
) -> None:
    model = gpu_model_of(gpu)
    assert (model.name, model.memory_gib, model.capability, model.known) == (name, memory_gib, gpu.capability, True)


@pytest.mark.parametrize("name", ["NVIDIA RTX PRO 6000 Blackwell", "NVIDIA T400", "NVIDIA GeForce RTX 40900"])
def test_an_unknown_gpu_keeps_its_name_memory_and_capability(name: str) -> None:
    model = gpu_model_of(Gpu(name, 95.0, (12, 0)))
    assert (model.name, model.memory_gib, model.capability, model.known) == (name, 95.0, (12, 0), False)
