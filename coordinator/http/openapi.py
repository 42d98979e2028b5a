"""The description of the API as an OpenAPI 3.1 document.

It is built from what the API itself uses: the structs that bodies are parsed into, the model of the budgets, and the
structs that responses are made of. A test compares its paths with the registered routes, and schemathesis holds the
answers of a live coordinator against all of it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec

from moe2.common import __version__
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.choosing.request import Wish
from moe2.coordinator.fleet.bounds import MAX_NAME_CHARACTERS
from moe2.coordinator.http import paths
from moe2.coordinator.http.body.embeddings import EmbeddingsRequest
from moe2.coordinator.http.body.messages import CountRequest, MessagesRequest
from moe2.coordinator.http.body.requests import ChatRequest, FeedbackRequest, TextRequest
from moe2.coordinator.http.body.responses import ResponsesRequest
from moe2.coordinator.http.books import FeedbackAnswer
from moe2.coordinator.http.fleet_query import MAX_HOSTS
from moe2.coordinator.http.plan import PlanAnswer
from moe2.coordinator.ledger.report import By, SumRow
from moe2.coordinator.observing.fleet_view import AgentState
from moe2.coordinator.serving.receipt import Receipt
from moe2.coordinator.supply.orders import Wanted
from moe2.coordinator.supply.pushes import PushWanted

Schema = dict[str, Any]
_JSON, _TEXT, _EVENTS = "application/json", "text/plain", "text/event-stream"

_STRING: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


_ERROR = _object(
    {
        "error": _object(
            {"message": _STRING, "type": _STRING, "param": _or_null(_STRING), "code": _or_null(_STRING)},
            {
                "offers": {
                    "type": "object",
                    "description": "Budgets that would be met, if budgets are the reason.",
                }
            },
        )
    },
    {"moe2": _ref("Receipt")},
)
_USAGE = _object(
    {
        "prompt_tokens": _INTEGER,
        "completion_tokens": _INTEGER,
        "total_tokens": _INTEGER,
        "prompt_tokens_details": _object({"cached_tokens": _INTEGER}),
    }
)
_MESSAGE = _object(
    {"role": {"const": "assistant"}, "content": _or_null(_STRING), "refusal": {"type": "null"}},
    {"tool_calls": {"type": "array", "items": {"type": "object"}}},
)


def _answer(kind: str, choice: Schema) -> Schema:
    shared = {"index": _INTEGER, "finish_reason": _STRING, "logprobs": _or_null({"type": "object"})}
    return _object(
        {
            "id": _STRING,
            "object": {"const": kind},
            "created": _INTEGER,
            "model": _STRING,
            "choices": {"type": "array", "items": _object({**shared, **choice})},
            "usage": _or_null(_USAGE),
            "moe2": _ref("Receipt"),
        }
    )


_TURN = _object(
    {
        "id": _STRING,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": _STRING,
        "content": {"type": "array", "items": {"type": "object"}},
        "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
        "stop_sequence": _or_null(_STRING),
        "usage": {"type": "object"},
        "moe2": _ref("Receipt"),
    }
)
_TURN_ERROR = _object(
    {"type": {"const": "error"}, "error": _object({"type": _STRING, "message": _STRING})}, {"moe2": _ref("Receipt")}
)
_EMBEDDINGS = _object(
    {
        "object": {"const": "list"},
        "data": {
            "type": "array",
            "items": _object(
                {
                    "object": {"const": "embedding"},
                    "index": _INTEGER,
                    "embedding": {"anyOf": [_STRING, {"type": "array", "items": {"type": "number"}}]},
                }
            ),
        },
        "model": _STRING,
        "usage": _or_null(_object({"prompt_tokens": _INTEGER, "total_tokens": _INTEGER})),
        "moe2": _ref("Receipt"),
    }
)
_RESPONSE = _object(
    {
        "id": _STRING,
        "object": {"const": "response"},
        "created_at": _INTEGER,
        "status": {"enum": ["completed", "incomplete"]},
        "model": _STRING,
        "output": {"type": "array", "items": {"type": "object"}},
        "usage": _or_null({"type": "object"}),
        "moe2": _ref("Receipt"),
    }
)
_MODEL = _object(
    {
        "id": _STRING,
        "object": {"const": "model"},
        "created": _INTEGER,
        "owned_by": _STRING,
        "root": _STRING,
        **{
            name: _or_null(_INTEGER)
            for name in ("context_length", "max_model_len", "max_input_tokens", "max_output_tokens")
        },
        "capabilities": {"type": "object", "additionalProperties": _or_null({"type": "boolean"})},
        "meta": {"type": "object", "additionalProperties": _or_null(_INTEGER)},
        "sampling": _or_null({"type": "object"}),
    }
)
_HEALTH = _object({"status": _STRING}, {"reason": _STRING, "preferred": {"type": "boolean"}})
_SCHEMAS: dict[str, Schema] = {
    "Pushes": _object({"pushes": {"type": "array", "items": _ref("PushRow")}}),
    "ModelOrders": _object({"orders": {"type": "array", "items": _ref("ModelOrderRow")}}),
    "Error": _ERROR,
    "ChatAnswer": _answer("chat.completion", {"message": _MESSAGE}),
    "TextAnswer": _answer("text_completion", {"text": _STRING}),
    "Embeddings": _EMBEDDINGS,
    "Response": _RESPONSE,
    "MessageAnswer": _TURN,
    "MessageError": _TURN_ERROR,
    "Model": _MODEL,
    "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}}),
    "Health": _HEALTH,
    "Ledger": _object(
        {
            "by": _STRING,
            "since_unix_s": {"type": "number"},
            "sums": {"type": "array", "items": _ref("SumRow")},
            "today": {"type": "array", "items": {"type": "object"}},
        }
    ),
}
_PLAN_BODY: Schema = {"anyOf": [_ref("ChatRequest"), _ref("TextRequest")]}

_ACCESS_ERRORS = (401, 403, 429)
"""Statuses that the check of a key, or of a browser's origin, may answer."""
_BODY_ERRORS = (400, 408, 413, 415, 417)
"""Statuses that a body may be refused with."""


@dataclass(frozen=True)
class _Operation:
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


_INFERENCE_ERRORS = (404, 422, 500, 502, 503, 504)
_HOSTS: Schema = {
    "limit": {"type": "integer", "minimum": 0, "maximum": MAX_HOSTS},
    "offset": {"type": "integer", "minimum": 0, "maximum": MAX_HOSTS},
    "q": {"type": "string", "maxLength": MAX_NAME_CHARACTERS},
    "state": {"enum": [state.value for state in AgentState]},
    "model": {"type": "string", "maxLength": MAX_NAME_CHARACTERS},
}
"""The query parameters that say which hosts are shown."""

_OPERATIONS = (
    _Operation(
        "post",
        paths.CHAT_PATH,
        "Answer a conversation.",
        {_JSON: _ref("ChatAnswer"), _EVENTS: None},
        (*_BODY_ERRORS, *_INFERENCE_ERRORS),
        _ref("ChatRequest"),
    ),
    _Operation(
        "post",
        paths.COMPLETIONS_PATH,
        "Continue a text.",
        {_JSON: _ref("TextAnswer"), _EVENTS: None},
        (*_BODY_ERRORS, *_INFERENCE_ERRORS),
        _ref("TextRequest"),
    ),
    _Operation(
        "post",
        paths.EMBEDDINGS_PATH,
        "Make a vector of each text.",
        {_JSON: _ref("Embeddings")},
        (*_BODY_ERRORS, *_INFERENCE_ERRORS),
        _ref("EmbeddingsRequest"),
    ),
    _Operation(
        "post",
        paths.RESPONSES_PATH,
        "Answer a conversation, as OpenAI's Responses API has it.",
        {_JSON: _ref("Response"), _EVENTS: None},
        (*_BODY_ERRORS, *_INFERENCE_ERRORS),
        _ref("ResponsesRequest"),
    ),
    _Operation(
        "get",
        paths.RESPONSE_PATH,
        "Return a response that is still kept.",
        {_JSON: _ref("Response")},
        (400, 404),
        parameters=("response_id",),
    ),
    _Operation(
        "delete",
        paths.RESPONSE_PATH,
        "Forget a response.",
        {_JSON: {"type": "object"}},
        (404,),
        parameters=("response_id",),
    ),
    _Operation(
        "get",
        paths.RESPONSE_ITEMS_PATH,
        "List what a response was an answer to.",
        {_JSON: {"type": "object"}},
        (404,),
        parameters=("response_id",),
    ),
    _Operation(
        "post",
        paths.MESSAGES_PATH,
        "Answer a conversation, as Anthropic's Messages API has it.",
        {_JSON: _ref("MessageAnswer"), _EVENTS: None},
        (*_BODY_ERRORS, *_INFERENCE_ERRORS),
        _ref("MessagesRequest"),
        error="MessageError",
    ),
    _Operation(
        "post",
        paths.COUNT_PATH,
        "Count the tokens of a conversation, as Anthropic's API has it. The model reads nothing.",
        {_JSON: _object({"input_tokens": _INTEGER}, {"moe2": _ref("Receipt")})},
        (*_BODY_ERRORS, *_INFERENCE_ERRORS),
        _ref("CountRequest"),
        error="MessageError",
    ),
    _Operation("get", paths.MODELS_PATH, "List the models that can be asked for.", {_JSON: _ref("Models")}),
    _Operation("get", paths.MODEL_PATH, "Describe one model.", {_JSON: _ref("Model")}, (404,), parameters=("model",)),
    _Operation(
        "post",
        paths.PLAN_PATH,
        "Tell what would be decided for a request, and what other budgets would buy. Runs nothing.",
        {_JSON: _ref("PlanAnswer")},
        _BODY_ERRORS,
        _PLAN_BODY,
    ),
    _Operation(
        "post",
        paths.FEEDBACK_PATH,
        "Score an answer, once.",
        {_JSON: _ref("FeedbackAnswer")},
        (*_BODY_ERRORS, 404, 409, 500),
        _ref("FeedbackRequest"),
    ),
    _Operation("get", paths.PUSHES_PATH, "Models on their way to hosts.", {_JSON: _ref("Pushes")}),
    _Operation(
        "post",
        paths.PUSHES_PATH,
        "Send a model of the coordinator's folder to hosts.",
        {_JSON: _ref("Pushes")},
        _BODY_ERRORS,
        _ref("PushWanted"),
    ),
    _Operation("get", paths.ORDERS_PATH, "Orders of late about models and hosts.", {_JSON: _ref("ModelOrders")}),
    _Operation(
        "post",
        paths.ORDERS_PATH,
        "Say which host serves which model.",
        {_JSON: _ref("ModelOrders")},
        _BODY_ERRORS,
        _ref("Wanted"),
    ),
    _Operation(
        "get",
        paths.FLEET_PATH,
        "The fleet's present status.",
        {_JSON: _ref("CoordinatorStatus")},
        (400,),
        query=_HOSTS,
    ),
    _Operation(
        "get",
        paths.LEDGER_PATH,
        "What requests have cost, and what each key has used and left today.",
        {_JSON: _ref("Ledger")},
        (400, 503),
        query={"by": {"enum": [by.value for by in By]}, "days": {"type": "integer", "minimum": 1, "maximum": 36_500}},
    ),
    _Operation(
        "get",
        paths.EVENTS_PATH,
        "The fleet and its requests, live.",
        {_EVENTS: None},
        (400, 503),
        query={**_HOSTS, "after": {"type": "integer", "minimum": 0}},
    ),
    _Operation("get", paths.HEALTH_PATH, "Tell if the process lives.", {_JSON: _ref("Health")}),
    _Operation(
        "get",
        paths.READINESS_PATH,
        "Tell if an expert is ready.",
        {_JSON: _ref("Health")},
        not_ready=_ref("Health"),
    ),
    _Operation(
        "get", paths.METRICS_PATH, "Metrics for Prometheus.", {_TEXT: None, "application/openmetrics-text": None}
    ),
    _Operation("get", paths.OPENAPI_PATH, "This OpenAPI document.", {_JSON: {"type": "object"}}),
    _Operation("get", paths.INDEX_PATH, "The web page.", {"text/html": None}),
    _Operation(
        "get",
        paths.ASSETS_PATH + "{name}",
        "A file of the web page.",
        {"text/html": None, "text/css": None, "text/javascript": None, "image/svg+xml": None},
        (404,),
        parameters=("name",),
    ),
)


def document(open_paths: Collection[str]) -> dict[str, Any]:
    """Builds the whole document. open_paths: the paths that ask for no key."""
    described: dict[str, dict[str, Any]] = {}
    for operation in _OPERATIONS:
        is_open = operation.path in open_paths
        described.setdefault(operation.path, {})[operation.method] = _described(operation, is_open=is_open)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "moe2",
            "version": __version__,
            "description": "A fleet of small language models as one OpenAI-compatible service, within measured energy "
            "and latency budgets. Parameters that moe2 does not implement are refused with a 400 that names them.",
        },
        "paths": described,
        "components": {
            "schemas": _components(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "headers": {
                "RetryAfter": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}
            },
        },
    }


def _components() -> dict[str, Schema]:
    bodies = (
        ChatRequest,
        TextRequest,
        ResponsesRequest,
        MessagesRequest,
        CountRequest,
        EmbeddingsRequest,
        FeedbackRequest,
    )
    structs = (*bodies, Receipt, PlanAnswer, FeedbackAnswer, CoordinatorStatus, SumRow, Wanted, PushWanted)
    _, found = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    for body in bodies:
        properties, required = found[body.__name__]["properties"], found[body.__name__]["required"]
        for name in properties.keys() - set(required):
            properties[name] = _nullable(properties[name])
    return {**found, **_SCHEMAS, **_wish()}


def _nullable(schema: Schema) -> Schema:
    """Returns the schema extended by null, which OpenAI's clients send for "not set"."""
    takes_null = None in schema.get("enum", ()) or {"type": "null"} in schema.get("anyOf", ())
    return schema if takes_null else _or_null(schema)


def _wish() -> dict[str, Schema]:
    """Returns the schema of the `moe2` object and those that it refers to, by name."""
    schema = Wish.model_json_schema(ref_template="#/components/schemas/{model}")
    others: dict[str, Schema] = schema.pop("$defs", {})
    return {**others, "Wish": schema}


def _described(operation: _Operation, *, is_open: bool) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {
            "description": operation.summary,
            "content": {
                kind: {} if schema is None else {"schema": schema} for kind, schema in operation.answers.items()
            },
        }
    }
    for status in sorted({*operation.errors, *(() if is_open else _ACCESS_ERRORS)}):
        responses[str(status)] = _error(status, operation.error)
    if operation.not_ready:
        responses["503"] = {"description": "Not ready.", "content": {_JSON: {"schema": operation.not_ready}}}
    described: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    # Without keys configured, none is asked for.
    described["security"] = [] if is_open else [{"key": []}, {}]
    if operation.body:
        described["requestBody"] = {"required": True, "content": {_JSON: {"schema": operation.body}}}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in operation.parameters
    ] + [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query.items()]
    if parameters:
        described["parameters"] = parameters
    return described


def _error(status: int, schema: str) -> dict[str, Any]:
    error: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {_JSON: {"schema": _ref(schema)}},
    }
    if status in (429, 503):
        error["headers"] = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}
    return error
