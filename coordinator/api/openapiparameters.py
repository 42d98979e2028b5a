"""JSON schemas of what requests may contain. PURE.

Which parameters there are is the parser's own table: one without a schema here is a KeyError at import. That bounds
and types are the parser's is what a test asks of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moe2.coordinator.api.conversation import ROLES
from moe2.coordinator.api.parse import (
    CHAT_FIELDS,
    MOST_COMPLETION_LOGPROBS,
    MOST_STOPS,
    MOST_TOP_LOGPROBS,
    NEUTRAL,
    TEXT_FIELDS,
)
from moe2.coordinator.api.tools import MOST_TOOLS
from moe2.coordinator.budgets import Wish

Schema = dict[str, Any]

MOST_TOKENS = 2**31 - 1
TEXT: Schema = {"type": "string", "pattern": "^[^\\u0000]*$"}
NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z0-9_.-]+$"}
FLAG: Schema = {"type": "boolean"}
JSON_SCHEMA: Schema = {"type": "object", "description": "A JSON schema."}


def _number(kind: str, least: float, most: float) -> Schema:
    return {"type": kind, "minimum": least, "maximum": most}


def _object(properties: Schema, *, required: Iterable[str] = (), **more: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), **more}


def _closed(properties: Schema, *, required: Iterable[str] = ()) -> Schema:
    return _object(properties, required=required, additionalProperties=False)


def _list(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def _choice(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


_CONTENT = _choice(TEXT, _list(_object({"type": {"const": "text"}, "text": TEXT}, required=("type", "text"))))
_TOOL_CALL = _closed(
    {
        "id": {**TEXT, "minLength": 1},
        "type": {"const": "function"},
        "index": {},
        "function": _closed(
            {"name": {**TEXT, "minLength": 1}, "arguments": {**TEXT, "minLength": 1}}, required=("name",)
        ),
    },
    required=("id", "function"),
)
_MESSAGE = _choice(
    _closed(
        {"role": {"enum": sorted(ROLES.keys() - {"assistant", "tool"})}, "content": _CONTENT, "name": TEXT},
        required=("role", "content"),
    ),
    _closed(
        {"role": {"const": "assistant"}, "content": _CONTENT, "name": TEXT, "tool_calls": _list(_TOOL_CALL)},
        required=("role", "content"),
    ),
    _closed(
        {"role": {"const": "tool"}, "content": _CONTENT, "name": TEXT, "tool_call_id": {**TEXT, "minLength": 1}},
        required=("role", "content", "tool_call_id"),
    ),
)
_TOOL = _closed(
    {
        "type": {"const": "function"},
        "function": _closed(
            {"name": NAME, "description": TEXT, "parameters": JSON_SCHEMA, "strict": FLAG}, required=("name",)
        ),
    },
    required=("type", "function"),
)
_RESPONSE_FORMAT = _choice(
    _closed({"type": {"enum": ["text", "json_object"]}}, required=("type",)),
    _closed(
        {
            "type": {"const": "json_schema"},
            "json_schema": _closed(
                {"name": {"type": "string"}, "description": {"type": "string"}, "schema": JSON_SCHEMA, "strict": FLAG}
            ),
        },
        required=("type", "json_schema"),
    ),
)
_TOOL_CHOICE = _choice(
    {"enum": ["auto", "none", "required"]},
    _closed(
        {"type": {"const": "function"}, "function": _closed({"name": NAME}, required=("name",))},
        required=("type", "function"),
    ),
)

_PARAMETERS: dict[str, Schema] = {
    "model": {
        "type": "string",
        "minLength": 1,
        "description": "A model's name, an expert's key, or \"moe2\": the coordinator chooses.",
    },
    "messages": _list(_MESSAGE, minItems=1),
    "prompt": _choice(TEXT, _list(TEXT, minItems=1, maxItems=1)),
    "stream": FLAG,
    "stream_options": _closed({"include_usage": FLAG}),
    "max_tokens": _number("integer", 1, MOST_TOKENS),
    "max_completion_tokens": _number("integer", 1, MOST_TOKENS),
    "stop": _choice({"type": "string", "minLength": 1}, _list({"type": "string", "minLength": 1}, maxItems=MOST_STOPS)),
    "user": {"type": "string"},
    "moe2": {"$ref": "#/components/schemas/Wish"},
    "response_format": _RESPONSE_FORMAT,
    "grammar": {**TEXT, "minLength": 1, "description": "What the answer follows, in `grammar_syntax`."},
    "grammar_syntax": {"enum": ["gbnf", "lark"], "default": "gbnf"},
    "temperature": _number("number", 0, 2),
    "top_p": _number("number", 0, 1),
    "top_k": _number("integer", 1, 1_000_000),
    "min_p": _number("number", 0, 1),
    "seed": _number("integer", -(2**63), 2**63 - 1),
    "frequency_penalty": _number("number", -2, 2),
    "presence_penalty": _number("number", -2, 2),
    "logit_bias": {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": _number("number", -100, 100),
    },
    "tools": _list(_TOOL, maxItems=MOST_TOOLS),
    "tool_choice": _TOOL_CHOICE,
    "parallel_tool_calls": FLAG,
    "top_logprobs": _number("integer", 0, MOST_TOP_LOGPROBS),
}


def _body(fields: set[str], required: Iterable[str], **own: Schema) -> Schema:
    """Null is "not set" to OpenAI's clients and servers, and so it is here, but for what is required."""
    needed = set(required)
    schemas = {**_PARAMETERS, **own}
    properties = {
        name: schemas[name] if name in needed else _choice(schemas[name], {"type": "null"}) for name in sorted(fields)
    }
    properties |= {name: {"enum": [*values, None]} for name, values in sorted(NEUTRAL.items())}
    return _closed(properties, required=sorted(needed))


CHAT_BODY = _body(CHAT_FIELDS, ("model", "messages"), logprobs=FLAG)
TEXT_BODY = _body(TEXT_FIELDS, ("model", "prompt"), logprobs=_number("integer", 0, MOST_COMPLETION_LOGPROBS))
FEEDBACK_BODY = _closed(
    {"request_id": {"type": "string", "minLength": 1}, "score": _number("number", 0, 1)},
    required=("request_id", "score"),
)


def wish_schemas() -> dict[str, Schema]:
    """The `moe2` object and what it refers to, by name."""
    schema = Wish.model_json_schema(ref_template="#/components/schemas/{model}")
    others: dict[str, Schema] = schema.pop("$defs", {})
    return {**others, "Wish": schema}
