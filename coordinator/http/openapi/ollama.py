"""Ollama's API in the OpenAPI document. PURE."""

from __future__ import annotations

from moe2.coordinator.http import paths
from moe2.coordinator.http.body.ollama import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaModelRequest,
)
from moe2.coordinator.http.openapi.operations import (
    BODY_ERRORS,
    INFERENCE_ERRORS,
    INTEGER,
    JSON,
    STRING,
    Operation,
    Schema,
    json_object,
    or_null,
    ref,
)

_LINES = "application/x-ndjson"
_OBJECT: Schema = {"type": "object"}
_MOMENT = {"model": STRING, "created_at": STRING}
_VECTOR: Schema = {"type": "array", "items": {"type": "number"}}
_END = {"done": {"type": "boolean"}, "done_reason": STRING}
_FIGURES = dict.fromkeys(("total_duration", "prompt_eval_count", "eval_count"), INTEGER)
_RECEIPT = {**_FIGURES, "moe2": ref("Receipt")}
_NAMED = {
    "name": STRING,
    "model": STRING,
    "size": or_null(INTEGER),
    "digest": or_null(STRING),
    "details": {"type": "object"},
}
OLLAMA_SCHEMAS: dict[str, Schema] = {
    "OllamaError": json_object({"error": STRING}, {"code": STRING, "param": STRING, "moe2": ref("Receipt")}),
    "OllamaChatAnswer": json_object(
        {"model": STRING, "created_at": STRING, "message": {"type": "object"}, **_END}, _RECEIPT
    ),
    "OllamaText": json_object({**_MOMENT, "response": STRING, **_END}, _RECEIPT),
    "OllamaVectors": json_object({"model": STRING, "embeddings": {"type": "array", "items": _VECTOR}}, _RECEIPT),
    "OllamaVector": json_object({"embedding": _VECTOR}, {"moe2": ref("Receipt")}),
    "OllamaModels": json_object({"models": {"type": "array", "items": json_object(_NAMED)}}),
    "OllamaModel": json_object(
        {
            "details": {"type": "object"},
            "model_info": {"type": "object"},
            "capabilities": {"type": "array", "items": STRING},
        }
    ),
}
OLLAMA_BODIES = (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaEmbedRequest,
    OllamaEmbeddingsRequest,
    OllamaModelRequest,
)


def _answers(path: str, summary: str, body: str, answer: str, *, is_streamed: bool) -> Operation:
    streamed: dict[str, Schema | None] = {_LINES: None} if is_streamed else {}
    return Operation(
        "post",
        path,
        f"{summary}, as Ollama's API has it.",
        {JSON: ref(answer), **streamed},
        (*BODY_ERRORS, *INFERENCE_ERRORS),
        ref(body),
        error="OllamaError",
    )


def _of_model(path: str, summary: str, answer: Schema) -> Operation:
    errors = (*BODY_ERRORS, 404, 503)
    return Operation("post", path, summary, {JSON: answer}, errors, ref("OllamaModelRequest"), error="OllamaError")


def _told(path: str, summary: str, answer: Schema) -> Operation:
    return Operation("get", path, summary, {JSON: answer}, error="OllamaError")


OLLAMA_OPERATIONS = (
    _answers(paths.OLLAMA_CHAT_PATH, "Answer a chat", "OllamaChatRequest", "OllamaChatAnswer", is_streamed=True),
    _answers(paths.OLLAMA_GENERATE_PATH, "Answer a prompt", "OllamaGenerateRequest", "OllamaText", is_streamed=True),
    _answers(paths.OLLAMA_EMBED_PATH, "Embed texts", "OllamaEmbedRequest", "OllamaVectors", is_streamed=False),
    _answers(
        paths.OLLAMA_EMBEDDINGS_PATH, "Embed a text", "OllamaEmbeddingsRequest", "OllamaVector", is_streamed=False
    ),
    _told(paths.OLLAMA_TAGS_PATH, "List the models, as Ollama does.", ref("OllamaModels")),
    _told(paths.OLLAMA_PS_PATH, "List the models in memory, as Ollama does.", ref("OllamaModels")),
    _of_model(paths.OLLAMA_SHOW_PATH, "Describe a model, as Ollama does.", ref("OllamaModel")),
    _of_model(paths.OLLAMA_PULL_PATH, "Tell Ollama's clients that a model is there.", json_object({"status": STRING})),
    _told(
        paths.OLLAMA_VERSION_PATH,
        "The release of Ollama whose API is spoken.",
        json_object({"version": STRING, "moe2": STRING}),
    ),
)
