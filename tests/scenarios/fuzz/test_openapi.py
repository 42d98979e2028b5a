"""The OpenAPI document: true to the routes, to the parser, and to what a live coordinator answers."""

from __future__ import annotations

import asyncio
import json
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

from moe2.coordinator.api.errors import ApiError
from moe2.coordinator.api.guard import OPEN, ROUTES
from moe2.coordinator.api.openapi import document
from moe2.coordinator.api.openapiparameters import CHAT_BODY, TEXT_BODY
from moe2.coordinator.api.parse import parse_chat, parse_completion
from moe2.coordinator.daemon import CoordinatorDaemon
from tests.fakes.fleet import fleet

DOCUMENT = document(frozenset(path for path, scopes in ROUTES.items() if scopes == OPEN))
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "Once"}
# What a parameter needs beside it to be allowed at all.
COMPANY: dict[str, dict[str, Any]] = {"top_logprobs": {"logprobs": True}}


def bounded(body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Numeric parameters with their schemas."""
    return [
        (name, choice)
        for name, schema in body["properties"].items()
        for choice in schema.get("anyOf", [schema])
        if "minimum" in choice
    ]


# --- True to the code -------------------------------------------------------------------------------------------------


async def test_every_route_is_described_and_every_description_is_a_route(tmp_path: Path) -> None:
    """Neither can be forgotten."""
    async with fleet(tmp_path, agents=()) as running:
        routes = {
            (route.method.lower(), resource.canonical)
            for resource in api_routes(running.coordinator)
            for route in resource
            if route.method != "HEAD"
        }
    assert routes == {(method, path) for path, operations in DOCUMENT["paths"].items() for method in operations}


def api_routes(coordinator: CoordinatorDaemon) -> Any:
    return coordinator._api_app().router.resources()


def test_open_routes_ask_for_no_key() -> None:
    """As the guard has it."""
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            assert (operation["security"] == []) == (ROUTES[path] == OPEN)
            assert ("401" in operation["responses"]) == (ROUTES[path] != OPEN)


@pytest.mark.parametrize(
    ("parse", "base", "name", "schema"),
    [
        *(pytest.param(parse_chat, CHAT, *row, id=f"chat-{row[0]}") for row in bounded(CHAT_BODY)),
        *(pytest.param(parse_completion, TEXT, *row, id=f"text-{row[0]}") for row in bounded(TEXT_BODY)),
    ],
)
def test_the_parser_keeps_the_documented_bounds(parse: Any, base: Any, name: str, schema: dict[str, Any]) -> None:
    """Both bounds are accepted; what is beyond them, or of another type, is refused by name."""

    def attempt(value: object) -> None:
        parse(json.dumps({**base, **COMPANY.get(name, {}), name: value}).encode())

    attempt(schema["minimum"])
    attempt(schema["maximum"])
    for wrong in (schema["minimum"] - 1, schema["maximum"] + 1, "many", True, [1]):
        with pytest.raises(ApiError) as refused:
            attempt(wrong)
        assert refused.value.param == name


def test_every_reference_leads_somewhere() -> None:
    """All of the document's $refs resolve."""
    text = json.dumps(DOCUMENT)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= DOCUMENT["components"]["schemas"].keys()


# --- True to a live coordinator ---------------------------------------------------------------------------------------

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


LONGEST_ANSWER_TOKENS = 4
INFERENCE = ("/v1/chat/completions", "/v1/completions", "/v1/moe2/plan")
"""Their bodies take schemathesis seconds to make."""


def tamed(case: schemathesis.Case[Any]) -> schemathesis.Case[Any]:
    """A request that the fleet would really run: for a model that there is, and soon over."""
    if isinstance(case.body, dict):
        model = case.body.get("model")
        if isinstance(model, str) and len(model) % 4:
            case.body["model"] = "moe2"
        for name in ("max_tokens", "max_completion_tokens"):
            case.body.pop(name, None)
        case.body["max_tokens"] = LONGEST_ANSWER_TOKENS
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


@pytest.mark.slow
async def test_a_live_coordinator_answers_as_documented(tmp_path: Path) -> None:
    """No server error, no undocumented status, content type, header or shape, whatever is asked of the small routes."""
    small = [(method, path) for method, path in OPERATIONS if path not in INFERENCE]
    answers = await attack(tmp_path, small, examples=3)
    assert len(answers) == len(small)


@pytest.mark.slow
async def test_a_live_coordinator_answers_prompts_as_documented(tmp_path: Path) -> None:
    """The same of every route, with many requests; many of them are really answered."""
    answers = await attack(tmp_path, OPERATIONS, examples=60)
    assert answers["post", "/v1/chat/completions"][200] > 5
    assert answers["post", "/v1/completions"][200] > 5
    assert answers["post", "/v1/chat/completions"][400] > 5
