"""The OpenAPI document: true to what a live coordinator answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from moe2.coordinator.http.access.auth import OPEN, ROUTES
from moe2.coordinator.http.openapi.document import document
from tests.fakes.fleet import fleet

# Schemathesis takes seconds to import and to make bodies.
pytestmark = pytest.mark.slow

DOCUMENT = document(frozenset(path for path, scopes in ROUTES.items() if scopes == OPEN))
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
# The feed of events has no end to wait for.
OPERATIONS = [
    (method, path)
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
    if path != "/v1/moe2/events"
]


MAX_ANSWER_TOKENS = 4
INFERENCE = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/moe2/plan",
)
"""Their bodies take schemathesis seconds to make."""


def tamed(case: schemathesis.Case[Any]) -> schemathesis.Case[Any]:
    """A request that the fleet would really run: for a model that there is, and soon over."""
    if isinstance(case.body, dict):
        model = case.body.get("model")
        if isinstance(model, str) and len(model) % 4:
            case.body["model"] = "moe2"
        for name in ("max_tokens", "max_completion_tokens"):
            case.body.pop(name, None)
        case.body["max_tokens"] = MAX_ANSWER_TOKENS
    return case


def fuzz(api_url: str, method: str, path: str, mode: GenerationMode, examples: int) -> Counter[int]:
    """Random requests that follow the document, or break it; returns how they were answered. Blocks."""
    operation = SCHEMA[path][method.upper()]
    answers: Counter[int] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def attempt(case: schemathesis.Case[Any]) -> None:
        response = tamed(case).call(base_url=api_url)
        answers[response.status_code] += 1
        case.validate_response(response, checks=list(CHECKS))

    attempt()
    return answers


async def attack(
    tmp_path: Path, operations: Sequence[tuple[str, str]], examples: int
) -> dict[tuple[str, str], Counter[int]]:
    """Operations of a live coordinator with two experts; returns the answers by operation."""
    answers: dict[tuple[str, str], Counter[int]] = {}
    async with fleet(tmp_path, agents=("one", "two")) as running:
        for method, path in operations:
            modes = [GenerationMode.POSITIVE]
            if "requestBody" in DOCUMENT["paths"][path][method]:
                modes.append(GenerationMode.NEGATIVE)
            for mode in modes:
                one = 1 if mode is GenerationMode.POSITIVE and method == "get" and "{" not in path else examples
                found = await asyncio.to_thread(fuzz, running.coordinator.api_url, method, path, mode, one)
                answers[method, path] = answers.get((method, path), Counter()) + found
        await running.quiet()
        assert running.coordinator.status().requests_active == 0
        async with await running.chat("still there") as answer:
            assert answer.status == 200
    return answers


async def test_a_live_coordinator_answers_as_documented(tmp_path: Path) -> None:
    """No server error, no undocumented status, content type, header or shape, whatever is asked of the small routes."""
    small = [(method, path) for method, path in OPERATIONS if path not in INFERENCE]
    answers = await attack(tmp_path, small, examples=3)
    assert len(answers) == len(small)


async def test_a_live_coordinator_answers_prompts_as_documented(tmp_path: Path) -> None:
    """The same of every route, with many requests; many of them are really answered."""
    answers = await attack(tmp_path, OPERATIONS, examples=30)
    assert answers["post", "/v1/chat/completions"][200] > 5
    assert answers["post", "/v1/completions"][200] > 5
    assert answers["post", "/v1/chat/completions"][400] > 5
