"""The sample that the demo ships: what it promises to the reader of the README and to the tests that use it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "templates" / "demo" / "evaluations.jsonl"
SCORES = {
    "category": ["tool_use_quality", "information_relevance", "content_extraction", "goal_achievement"],
    "final": [
        "task_completion",
        "tool_use_quality",
        "reasoning_coherence",
        "problem_resolution",
        "answer_correctness",
    ],
}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in DEMO.read_text(encoding="utf-8").splitlines()]


def test_it_has_three_types_three_judges_and_eight_tasks(rows: list[dict[str, Any]]) -> None:
    counts = {
        key: dict(Counter(row["metadata"][key] for row in rows)) for key in ("evaluation_type", "model_name", "task_id")
    }
    assert counts == {
        "evaluation_type": {"clip": 36, "category": 16, "final": 24},
        "model_name": {"deepseek-chat": 25, "kimi-k2-0711-preview": 27, "qwen-max": 24},
        "task_id": {
            "demo_flights_1": 10,
            "demo_weather_2": 9,
            "demo_library_3": 11,
            "demo_invoices_4": 10,
            "demo_museum_5": 9,
            "demo_recipe_6": 9,
            "demo_tickets_7": 9,
            "demo_trains_8": 9,
        },
    }


def test_every_verdict_is_json_with_the_keys_and_scores_of_its_type(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        verdict = json.loads(row["conversations"][1]["value"])
        kind = row["metadata"]["evaluation_type"]
        scores = {"score": verdict["reasonableness_score"]} if kind == "clip" else verdict["scores"]
        assert list(scores) == SCORES.get(kind, ["score"])
        assert all(0 <= score <= 1 for score in scores.values())


def test_a_prompt_is_judged_by_several_judges_with_different_words(rows: list[dict[str, Any]]) -> None:
    judges = defaultdict(set)
    for row in rows:
        judges[row["conversations"][0]["value"]].add(row["metadata"]["model_name"])
    assert min(map(len, judges.values())) >= 2
    assert len({row["conversations"][1]["value"] for row in rows}) == len(rows)


def test_scores_and_languages_vary_and_the_file_stays_small(rows: list[dict[str, Any]]) -> None:
    clips = [row["conversations"][1]["value"] for row in rows if row["metadata"]["evaluation_type"] == "clip"]
    scores = [json.loads(verdict)["reasonableness_score"] for verdict in clips]
    text = DEMO.read_text(encoding="utf-8")
    assert min(scores) < 0.1
    assert max(scores) > 0.95
    assert all(word in text for word in ("图书馆", "شوربة", "科学館", "Zeitfenster", "Marseille"))
    assert DEMO.stat().st_size < 150_000
    assert max(len(row["conversations"][0]["value"]) for row in rows) <= 1200
