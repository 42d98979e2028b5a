"""What operations of the API are described with, in the OpenAPI document of all of them (`document`). PURE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]
JSON, TEXT, EVENTS = "application/json", "text/plain", "text/event-stream"

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}


def ref(name: str) -> Schema:
    """Returns a reference to one of the document's schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def or_null(schema: Schema) -> Schema:
    """Returns a schema that allows null, too."""
    return {"anyOf": [schema, {"type": "null"}]}


def json_object(required: Schema, optional: Schema | None = None) -> Schema:
    """Returns the schema of an object with these fields."""
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


ACCESS_ERRORS = (401, 403, 429)
"""Statuses that the check of a key, or of a browser's origin, may answer."""
BODY_ERRORS = (400, 408, 413, 415, 417)
"""Statuses that a body may be refused with."""


@dataclass(frozen=True)
class Operation:
    """An operation of the API: one method of one path."""

    method: str
    path: str
    summary: str
    answers: dict[str, Schema | None]
    """The schema of a successful answer for each content type; None for content that is not JSON."""
    errors: tuple[int, ...] = ()
    """Statuses that are answered in OpenAI's error shape."""
    body: Schema | None = None
    parameters: tuple[str, ...] = ()
    """The names of the path's parameters."""
    query: Schema = field(default_factory=dict)
    """The schema of each query parameter."""
    error: str = "Error"
    """The name of the schema of errors."""
    not_ready: Schema | None = None
    """The schema of a 503 that does not have OpenAI's error shape; None where there is none."""


INFERENCE_ERRORS = (404, 422, 500, 502, 503, 504)
