"""The description of the API as an OpenAPI 3.1 document.

It is built from what the API itself uses: the structs that bodies are parsed into, the model of the budgets, and the
structs that responses are made of. A test compares its paths with the registered routes, and schemathesis holds the
answers of a live coordinator against all of it.
"""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus
from typing import Any

import msgspec

from moe2.common import __version__
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.choosing.request import Wish
from moe2.coordinator.fleet.bounds import MAX_NAME_CHARACTERS
from moe2.coordinator.http import paths
from moe2.coordinator.http.body.embeddings import EmbeddingsRequest
from moe2.coordinator.http.body.llamaserver import InfillRequest, LlamaServerRequest
from moe2.coordinator.http.body.messages import CountRequest, MessagesRequest
from moe2.coordinator.http.body.requests import ChatRequest, FeedbackRequest, TextRequest
from moe2.coordinator.http.body.responses import ResponsesRequest
from moe2.coordinator.http.openapi.ollama import OLLAMA_BODIES, OLLAMA_OPERATIONS, OLLAMA_SCHEMAS
from moe2.coordinator.http.openapi.operations import (
    ACCESS_ERRORS,
    BODY_ERRORS,
    EVENTS,
    INFERENCE_ERRORS,
    INTEGER,
    JSON,
    STRING,
    TEXT,
    Operation,
    Schema,
    json_object,
    or_null,
    ref,
)
from moe2.coordinator.http.routes.books import FeedbackAnswer
from moe2.coordinator.http.routes.plan import PlanAnswer
from moe2.coordinator.ledger.report import By, SumRow
from moe2.coordinator.observing.fleet_view import MAX_HOSTS, AgentState
from moe2.coordinator.serving.receipt import Receipt
from moe2.coordinator.supply.orders import Wanted
from moe2.coordinator.supply.pulls import PullWanted
from moe2.coordinator.supply.pushes import PushWanted

_ERROR = json_object(
    {
        "error": json_object(
            {"message": STRING, "type": STRING, "param": or_null(STRING), "code": or_null(STRING)},
            {
                "offers": {
                    "type": "object",
                    "description": "Budgets that would be met, if budgets are the reason.",
                }
            },
        )
    },
    {"moe2": ref("Receipt")},
)
_USAGE = json_object(
    {
        "prompt_tokens": INTEGER,
        "completion_tokens": INTEGER,
        "total_tokens": INTEGER,
        "prompt_tokens_details": json_object({"cached_tokens": INTEGER}),
    }
)
_MESSAGE = json_object(
    {"role": {"const": "assistant"}, "content": or_null(STRING), "refusal": {"type": "null"}},
    {"tool_calls": {"type": "array", "items": {"type": "object"}}},
)


def _answer(kind: str, choice: Schema) -> Schema:
    shared = {"index": INTEGER, "finish_reason": STRING, "logprobs": or_null({"type": "object"})}
    return json_object(
        {
            "id": STRING,
            "object": {"const": kind},
            "created": INTEGER,
            "model": STRING,
            "choices": {"type": "array", "items": json_object({**shared, **choice})},
            "usage": or_null(_USAGE),
            "moe2": ref("Receipt"),
        }
    )


_TURN = json_object(
    {
        "id": STRING,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": STRING,
        "content": {"type": "array", "items": {"type": "object"}},
        "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
        "stop_sequence": or_null(STRING),
        "usage": {"type": "object"},
        "moe2": ref("Receipt"),
    }
)
_TURN_ERROR = json_object(
    {"type": {"const": "error"}, "error": json_object({"type": STRING, "message": STRING})}, {"moe2": ref("Receipt")}
)
_EMBEDDINGS = json_object(
    {
        "object": {"const": "list"},
        "data": {
            "type": "array",
            "items": json_object(
                {
                    "object": {"const": "embedding"},
                    "index": INTEGER,
                    "embedding": {"anyOf": [STRING, {"type": "array", "items": {"type": "number"}}]},
                }
            ),
        },
        "model": STRING,
        "usage": or_null(json_object({"prompt_tokens": INTEGER, "total_tokens": INTEGER})),
        "moe2": ref("Receipt"),
    }
)
_RESPONSE = json_object(
    {
        "id": STRING,
        "object": {"const": "response"},
        "created_at": INTEGER,
        "status": {"enum": ["completed", "incomplete"]},
        "model": STRING,
        "output": {"type": "array", "items": {"type": "object"}},
        "usage": or_null({"type": "object"}),
        "moe2": ref("Receipt"),
    }
)
_MODEL = json_object(
    {
        "id": STRING,
        "object": {"const": "model"},
        "created": INTEGER,
        "owned_by": STRING,
        "root": STRING,
        **{
            name: or_null(INTEGER)
            for name in ("context_length", "max_model_len", "max_input_tokens", "max_output_tokens")
        },
        "capabilities": {"type": "object", "additionalProperties": or_null({"type": "boolean"})},
        "meta": {"type": "object", "additionalProperties": or_null(INTEGER)},
        "sampling": or_null({"type": "object"}),
    }
)
_HEALTH = json_object({"status": STRING}, {"reason": STRING, "preferred": {"type": "boolean"}})
_SCHEMAS: dict[str, Schema] = {
    **OLLAMA_SCHEMAS,
    "LlamaServerAnswer": {"type": "object"},
    "Pushes": json_object({"pushes": {"type": "array", "items": ref("PushRow")}}),
    "Pulls": json_object({"pulls": {"type": "array", "items": ref("PullRow")}}),
    "ModelOrders": json_object({"orders": {"type": "array", "items": ref("ModelOrderRow")}}),
    "Error": _ERROR,
    "ChatAnswer": _answer("chat.completion", {"message": _MESSAGE}),
    "TextAnswer": _answer("text_completion", {"text": STRING}),
    "Embeddings": _EMBEDDINGS,
    "Response": _RESPONSE,
    "MessageAnswer": _TURN,
    "MessageError": _TURN_ERROR,
    "Model": _MODEL,
    "Models": json_object({"object": {"const": "list"}, "data": {"type": "array", "items": ref("Model")}}),
    "Health": _HEALTH,
    "Ledger": json_object(
        {
            "by": STRING,
            "since_unix_s": {"type": "number"},
            "sums": {"type": "array", "items": ref("SumRow")},
            "today": {"type": "array", "items": {"type": "object"}},
        }
    ),
}
_PLAN_BODY: Schema = {"anyOf": [ref("ChatRequest"), ref("TextRequest")]}

_HOSTS: Schema = {
    "limit": {"type": "integer", "minimum": 0, "maximum": MAX_HOSTS},
    "offset": {"type": "integer", "minimum": 0, "maximum": MAX_HOSTS},
    "q": {"type": "string", "maxLength": MAX_NAME_CHARACTERS},
    "state": {"enum": [state.value for state in AgentState]},
    "model": {"type": "string", "maxLength": MAX_NAME_CHARACTERS},
}
"""The query parameters that say which hosts are shown."""

_OPERATIONS = (
    Operation(
        "post",
        paths.CHAT_PATH,
        "Answer a conversation.",
        {JSON: ref("ChatAnswer"), EVENTS: None},
        (*BODY_ERRORS, *INFERENCE_ERRORS),
        ref("ChatRequest"),
    ),
    Operation(
        "post",
        paths.COMPLETIONS_PATH,
        "Continue a text.",
        {JSON: ref("TextAnswer"), EVENTS: None},
        (*BODY_ERRORS, *INFERENCE_ERRORS),
        ref("TextRequest"),
    ),
    Operation(
        "post",
        paths.EMBEDDINGS_PATH,
        "Make a vector of each text.",
        {JSON: ref("Embeddings")},
        (*BODY_ERRORS, *INFERENCE_ERRORS),
        ref("EmbeddingsRequest"),
    ),
    Operation(
        "post",
        paths.RESPONSES_PATH,
        "Answer a conversation, as OpenAI's Responses API has it.",
        {JSON: ref("Response"), EVENTS: None},
        (*BODY_ERRORS, *INFERENCE_ERRORS),
        ref("ResponsesRequest"),
    ),
    Operation(
        "get",
        paths.RESPONSE_PATH,
        "Return a response that is still kept.",
        {JSON: ref("Response")},
        (400, 404),
        parameters=("response_id",),
    ),
    Operation(
        "delete",
        paths.RESPONSE_PATH,
        "Forget a response.",
        {JSON: {"type": "object"}},
        (404,),
        parameters=("response_id",),
    ),
    Operation(
        "get",
        paths.RESPONSE_ITEMS_PATH,
        "List what a response was an answer to.",
        {JSON: {"type": "object"}},
        (404,),
        parameters=("response_id",),
    ),
    Operation(
        "post",
        paths.MESSAGES_PATH,
        "Answer a conversation, as Anthropic's Messages API has it.",
        {JSON: ref("MessageAnswer"), EVENTS: None},
        (*BODY_ERRORS, *INFERENCE_ERRORS),
        ref("MessagesRequest"),
        error="MessageError",
    ),
    Operation(
        "post",
        paths.COUNT_PATH,
        "Count the tokens of a conversation, as Anthropic's API has it. The model reads nothing.",
        {JSON: json_object({"input_tokens": INTEGER}, {"moe2": ref("Receipt")})},
        (*BODY_ERRORS, *INFERENCE_ERRORS),
        ref("CountRequest"),
        error="MessageError",
    ),
    *OLLAMA_OPERATIONS,
    Operation(
        "post",
        paths.COMPLETION_PATH,
        "Continue a text, as llama-server has it.",
        {JSON: ref("LlamaServerAnswer"), EVENTS: None},
        (*BODY_ERRORS, *INFERENCE_ERRORS),
        ref("LlamaServerRequest"),
    ),
    Operation(
        "post",
        paths.INFILL_PATH,
        "Fill a gap in a text, as llama-server has it.",
        {JSON: ref("LlamaServerAnswer"), EVENTS: None},
        (*BODY_ERRORS, *INFERENCE_ERRORS),
        ref("InfillRequest"),
    ),
    Operation("get", paths.MODELS_PATH, "List the models that can be asked for.", {JSON: ref("Models")}),
    Operation("get", paths.MODEL_PATH, "Describe one model.", {JSON: ref("Model")}, (404,), parameters=("model",)),
    Operation(
        "post",
        paths.PLAN_PATH,
        "Tell what would be decided for a request, and what other budgets would buy. Runs nothing.",
        {JSON: ref("PlanAnswer")},
        BODY_ERRORS,
        _PLAN_BODY,
    ),
    Operation(
        "post",
        paths.FEEDBACK_PATH,
        "Score an answer, once.",
        {JSON: ref("FeedbackAnswer")},
        (*BODY_ERRORS, 404, 409, 500),
        ref("FeedbackRequest"),
    ),
    Operation("get", paths.PUSHES_PATH, "Models on their way to hosts.", {JSON: ref("Pushes")}),
    Operation(
        "post",
        paths.PUSHES_PATH,
        "Send a model of the coordinator's folder to hosts.",
        {JSON: ref("Pushes")},
        BODY_ERRORS,
        ref("PushWanted"),
    ),
    Operation("get", paths.PULLS_PATH, "Models that hosts were told to pull.", {JSON: ref("Pulls")}),
    Operation(
        "post",
        paths.PULLS_PATH,
        "Have hosts pull a model from where their configuration allows.",
        {JSON: ref("Pulls")},
        BODY_ERRORS,
        ref("PullWanted"),
    ),
    Operation("get", paths.ORDERS_PATH, "Orders of late about models and hosts.", {JSON: ref("ModelOrders")}),
    Operation(
        "post",
        paths.ORDERS_PATH,
        "Say which host serves which model, or have a file deleted.",
        {JSON: ref("ModelOrders")},
        BODY_ERRORS,
        ref("Wanted"),
    ),
    Operation(
        "get",
        paths.FLEET_PATH,
        "The fleet's present status.",
        {JSON: ref("CoordinatorStatus")},
        (400,),
        query=_HOSTS,
    ),
    Operation(
        "get",
        paths.LEDGER_PATH,
        "What requests have cost, and what each key has used and left today.",
        {JSON: ref("Ledger")},
        (400, 503),
        query={"by": {"enum": [by.value for by in By]}, "days": {"type": "integer", "minimum": 1, "maximum": 36_500}},
    ),
    Operation(
        "get",
        paths.EVENTS_PATH,
        "The fleet and its requests, live.",
        {EVENTS: None},
        (400, 503),
        query={**_HOSTS, "after": {"type": "integer", "minimum": 0}},
    ),
    Operation("get", paths.HEALTH_PATH, "Tell if the process lives.", {JSON: ref("Health")}),
    Operation(
        "get",
        paths.READINESS_PATH,
        "Tell if an expert is ready.",
        {JSON: ref("Health")},
        not_ready=ref("Health"),
    ),
    Operation("get", paths.METRICS_PATH, "Metrics for Prometheus.", {TEXT: None, "application/openmetrics-text": None}),
    Operation("get", paths.OPENAPI_PATH, "This OpenAPI document.", {JSON: {"type": "object"}}),
    Operation("get", paths.INDEX_PATH, "The web page.", {"text/html": None}),
    Operation(
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
        LlamaServerRequest,
        InfillRequest,
        ResponsesRequest,
        MessagesRequest,
        CountRequest,
        EmbeddingsRequest,
        FeedbackRequest,
        *OLLAMA_BODIES,
    )
    structs = (*bodies, Receipt, PlanAnswer, FeedbackAnswer, CoordinatorStatus, SumRow, Wanted, PushWanted, PullWanted)
    _, found = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    for body in bodies:
        properties, required = found[body.__name__]["properties"], found[body.__name__]["required"]
        for name in properties.keys() - set(required):
            properties[name] = _nullable(properties[name])
    return {**found, **_SCHEMAS, **_wish()}


def _nullable(schema: Schema) -> Schema:
    """Returns the schema extended by null, which OpenAI's clients send for "not set"."""
    takes_null = None in schema.get("enum", ()) or {"type": "null"} in schema.get("anyOf", ())
    return schema if takes_null else or_null(schema)


def _wish() -> dict[str, Schema]:
    """Returns the schema of the `moe2` object and those that it refers to, by name."""
    schema = Wish.model_json_schema(ref_template="#/components/schemas/{model}")
    others: dict[str, Schema] = schema.pop("$defs", {})
    return {**others, "Wish": schema}


def _described(operation: Operation, *, is_open: bool) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {
            "description": operation.summary,
            "content": {
                kind: {} if schema is None else {"schema": schema} for kind, schema in operation.answers.items()
            },
        }
    }
    for status in sorted({*operation.errors, *(() if is_open else ACCESS_ERRORS)}):
        responses[str(status)] = _error(status, operation.error)
    if operation.not_ready:
        responses["503"] = {"description": "Not ready.", "content": {JSON: {"schema": operation.not_ready}}}
    described: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    # Without keys configured, none is asked for.
    described["security"] = [] if is_open else [{"key": []}, {}]
    if operation.body:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": operation.body}}}
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
        "content": {JSON: {"schema": ref(schema)}},
    }
    if status in (429, 503):
        error["headers"] = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}
    return error
