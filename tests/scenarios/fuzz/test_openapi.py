"""The OpenAPI document: true to the routes and to the parser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe2.coordinator.daemon import CoordinatorDaemon
from moe2.coordinator.http.access.auth import OPEN, ROUTES
from moe2.coordinator.http.body.parse import parse_chat, parse_completion
from moe2.coordinator.http.errors import ApiError
from moe2.coordinator.http.openapi.document import document
from tests.fakes.fleet import fleet

DOCUMENT = document(frozenset(path for path, scopes in ROUTES.items() if scopes == OPEN))
BODIES = DOCUMENT["components"]["schemas"]
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
        *(pytest.param(parse_chat, CHAT, *row, id=f"chat-{row[0]}") for row in bounded(BODIES["ChatRequest"])),
        *(pytest.param(parse_completion, TEXT, *row, id=f"text-{row[0]}") for row in bounded(BODIES["TextRequest"])),
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


@pytest.mark.parametrize("body", ["ChatRequest", "TextRequest"])
def test_every_parameter_is_in_the_api_reference(body: str) -> None:
    """But for those of which only one value is accepted: it changes nothing."""
    reference = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
    named = {name for name, schema in BODIES[body]["properties"].items() if "enum" not in schema}
    assert {name for name in named if f"`{name}`" not in reference} == set()


def test_every_reference_leads_somewhere() -> None:
    """All of the document's $refs resolve."""
    text = json.dumps(DOCUMENT)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= DOCUMENT["components"]["schemas"].keys()
