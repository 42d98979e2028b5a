"""The face of Ollama's API: `POST /api/chat`, `/api/generate` and `/api/embed`, as lines of JSON or whole. PURE.

The shapes are those of https://github.com/ollama/ollama/blob/main/docs/api.md, with the receipt beside them as `moe2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import ToolCall
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.body.embeddings import EmbeddingsRequest
from moe2.coordinator.http.body.ollama import (
    COMPLETION_NAMES,
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    chat_fields,
    generate_fields,
    is_text,
)
from moe2.coordinator.http.body.parse import Call, read_chat, read_completion, read_struct
from moe2.coordinator.http.errors import ApiError, renamed
from moe2.coordinator.http.faces.completions import Header, logprobs_of
from moe2.coordinator.http.faces.face import Asked, End, Incoming, NeverStreamed, Origin, Part, Text
from moe2.coordinator.http.faces.toolcalls import arguments_object
from moe2.coordinator.http.faces.vectors import numbers_of, vectors_call
from moe2.coordinator.serving.receipt import Receipt

LINES = "application/x-ndjson"
_NANOSECONDS = 1_000_000_000
_CHAT = Header(id="", created=0, model="", is_chat=True)


def asked_chat(fields: dict[str, Any], incoming: Incoming) -> Asked:
    """Reads the fields of `POST /api/chat`. Raises `ApiError` (400), which names the parameter."""
    request, ignored = read_struct(fields, OllamaChatRequest, incoming.reading)
    try:
        call = read_chat(chat_fields(request), incoming.headers, incoming.reading)
    except ApiError as error:
        raise renamed(error, COMPLETION_NAMES) from None
    return _asked(call, ignored, ChatLines(with_logprobs=call.with_logprobs))


def asked_generate(fields: dict[str, Any], incoming: Incoming) -> Asked:
    """Reads the fields of `POST /api/generate`. Raises `ApiError` (400), which names the parameter."""
    request, ignored = read_struct(fields, OllamaGenerateRequest, incoming.reading)
    read = read_completion if is_text(request) else read_chat
    try:
        call = read(generate_fields(request), incoming.headers, incoming.reading)
    except ApiError as error:
        raise renamed(error, COMPLETION_NAMES) from None
    return _asked(call, ignored, TextLines(with_logprobs=call.with_logprobs))


def asked_vectors(fields: dict[str, Any], incoming: Incoming, table: CapabilityTable) -> Asked:
    """Reads the fields of `POST /api/embed`. Raises `ApiError` (400), which names the parameter."""
    request, ignored = read_struct(fields, OllamaEmbedRequest, incoming.reading)
    wanted = EmbeddingsRequest(
        model=request.model,
        input=request.input if isinstance(request.input, str) else [*request.input],
        dimensions=request.dimensions,
        moe2=request.moe2,
    )
    call = vectors_call(wanted, incoming, table, ignored=ignored)
    return Asked(call, VectorsDocument(request.dimensions, is_single=False))


def asked_vector(fields: dict[str, Any], incoming: Incoming, table: CapabilityTable) -> Asked:
    """Reads the fields of `POST /api/embeddings`. Raises `ApiError` (400), which names the parameter."""
    request, ignored = read_struct(fields, OllamaEmbeddingsRequest, incoming.reading)
    wanted = EmbeddingsRequest(model=request.model, input=request.prompt, moe2=request.moe2)
    return Asked(vectors_call(wanted, incoming, table, ignored=ignored), VectorsDocument(None, is_single=True))


def _asked(call: Call, ignored: tuple[str, ...], lines: Lines) -> Asked:
    asked = replace(call.called(COMPLETION_NAMES), ignored=ignored)
    return Asked(asked, lines, idle_event=lines.idle(call.model), content_type=LINES)


def error_body(error: ApiError) -> dict[str, Any]:
    """Returns an error's body in Ollama's shape, with the code, parameter and offers that OpenAI's has, too."""
    body = error.body()
    fields = body.pop("error")
    return {"error": fields.pop("message"), **{name: value for name, value in fields.items() if value}, **body}


def moment(unix_s: float) -> str:
    """Returns a time as Ollama writes it."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")


def figures_of(receipt: Receipt) -> dict[str, Any]:
    """Returns a receipt's tokens and seconds by Ollama's names, without those that are not known."""
    seconds, tokens = receipt.seconds, receipt.tokens
    durations = {
        "total_duration": seconds.total,
        "prompt_eval_duration": seconds.prefill,
        "eval_duration": seconds.decode,
    }
    figures = {name: None if spent is None else round(spent * _NANOSECONDS) for name, spent in durations.items()}
    figures |= {"prompt_eval_count": tokens.prompt, "eval_count": tokens.decoded}
    return {name: value for name, value in figures.items() if value is not None}


class Lines:
    """The `Encoder` of an answer, streamed as one JSON document a line."""

    def __init__(self, *, with_logprobs: bool) -> None:
        self._with_logprobs = with_logprobs
        self._head: dict[str, Any] = {}

    def said(self, text: str, thought: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        """Returns the fields that show a part of the answer, or all of it."""
        raise NotImplementedError

    def idle(self, model: str) -> bytes:
        """Returns a line that says nothing: clients read every line, so that none may be empty."""
        return _line({"model": model, **self.said(""), "done": False})

    def whole(self, origin: Origin, parts: Sequence[Part], end: End) -> dict[str, Any]:
        """Returns the answer as one document."""
        texts = [part for part in parts if isinstance(part, Text)]
        text, thought = (
            "".join(str(part) for part in texts if part.is_reasoning is is_thought) for is_thought in (False, True)
        )
        calls = [part for part in parts if isinstance(part, ToolCall)]
        pieces = [piece for part in texts if not part.is_reasoning for piece in part.pieces]
        said = {**self.said(text, thought, calls), **self._scores(pieces)}
        return {**_head(origin), **said, **_end(end)}

    def begin(self, origin: Origin) -> bytes:
        """Returns nothing: the first line comes with the first token."""
        self._head = _head(origin)
        return b""

    def parts(self, parts: Sequence[Part]) -> bytes:
        """Returns the lines for more of the answer. A call is told when it is whole."""
        lines = []
        for part in parts:
            if isinstance(part, ToolCall):
                lines.append(self.said("", calls=[part]))
            elif isinstance(part, Text) and part.is_reasoning and str(part):
                lines.append(self.said("", str(part)))
            elif isinstance(part, Text) and not part.is_reasoning and (str(part) or self._with_logprobs):
                lines.append({**self.said(str(part)), **self._scores(part.pieces)})
        return b"".join(_line({**self._head, **line, "done": False}) for line in lines)

    def end(self, end: End) -> bytes:
        """Returns the last line, with the receipt."""
        return _line({**self._head, **self.said(""), **_end(end)})

    def error(self, error: ApiError) -> bytes:
        """Returns the last line of an answer that failed."""
        return _line(error_body(error))

    def _scores(self, pieces: Sequence[TokenPiece]) -> dict[str, Any]:
        return {"logprobs": logprobs_of(_CHAT, pieces)["content"]} if self._with_logprobs else {}


class ChatLines(Lines):
    """The `Encoder` of `POST /api/chat`."""

    def said(self, text: str, thought: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        """Returns a message of the assistant."""
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thought:
            message["thinking"] = thought
        if calls:
            message["tool_calls"] = [
                {"id": call.id, "function": {"name": call.name, "arguments": arguments_object(call)}} for call in calls
            ]
        return {"message": message}


class TextLines(Lines):
    """The `Encoder` of `POST /api/generate`."""

    def said(self, text: str, thought: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        """Returns a part of the response's text; there are no calls."""
        return {"response": text, **({"thinking": thought} if thought else {})}


class VectorsDocument(NeverStreamed):
    """The `Encoder` of vectors. dimensions: the length that they are cut to; None for the model's own. is_single: they
    are asked for by the older route, which has one."""

    def __init__(self, dimensions: int | None, *, is_single: bool) -> None:
        self._dimensions = dimensions
        self._is_single = is_single

    def whole(self, origin: Origin, parts: Sequence[Part], end: End) -> dict[str, Any]:
        """Returns the vectors in the order of the texts."""
        vectors = [[float(number) for number in numbers_of(vector, self._dimensions)] for vector in end.vectors]
        if self._is_single:
            return {"embedding": vectors[0], "moe2": end.receipt}
        figures = figures_of(end.receipt)
        shown: dict[str, Any] = {
            name: figures[name] for name in ("total_duration", "prompt_eval_count") if name in figures
        }
        return {"model": origin.model, "embeddings": vectors, **shown, "moe2": end.receipt}


def _head(origin: Origin) -> dict[str, Any]:
    return {"model": origin.model, "created_at": moment(origin.created_unix_s)}


def _end(end: End) -> dict[str, Any]:
    reason = "length" if end.reason == "length" else "stop"
    return {"done": True, "done_reason": reason, **figures_of(end.receipt), "moe2": end.receipt}


def _line(document: Any) -> bytes:
    return msgspec.json.encode(document) + b"\n"
