"""The face of llama-server's own routes: `POST /completion` and `POST /infill`, streamed or whole. PURE.

The shapes are those of https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md, with the receipt
beside them as `moe2`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from moe2.common.generation import Generation
from moe2.coordinator.choosing.request import ROUTE_ONLY
from moe2.coordinator.http.body.decode import json_object
from moe2.coordinator.http.body.llamaserver import InfillRequest, LlamaServerRequest, completion_fields, infill_fields
from moe2.coordinator.http.body.parse import Call, read_completion, read_struct
from moe2.coordinator.http.errors import ApiError, renamed
from moe2.coordinator.http.faces.face import Asked, End, Incoming, Origin, Part, Text
from moe2.coordinator.serving.receipt import Receipt

_NAMES = {"max_tokens": "n_predict", "suffix": "input_suffix"}
_FORM_NAMES = {"response_format.schema": "json_schema", "response_format": "json_schema"}
_STOP_TYPES = {"length": "limit", "stop": "eos"}


def completion_face(incoming: Incoming) -> Asked:
    """Reads the body of `POST /completion`. Raises `ApiError` (400), which names the parameter."""
    fields = json_object(incoming.body)
    request, ignored = read_struct(fields, LlamaServerRequest, incoming.reading)
    return _asked(request, completion_fields(request, fields), incoming, ignored)


def infill_face(incoming: Incoming, context_of: Callable[[str], int | None]) -> Asked:
    """Reads the body of `POST /infill`. Raises `ApiError` (400), which names the parameter.

    context_of: the largest context, in tokens, of those that fill gaps and that a model's name stands for.
    """
    fields = json_object(incoming.body)
    request, ignored = read_struct(fields, InfillRequest, incoming.reading)
    name = incoming.reading.aliases.get(request.model, request.model)
    text, cut = infill_fields(request, fields, context_tokens=context_of(name))
    return _asked(request, text, incoming, (*ignored, *cut))


def _asked(request: LlamaServerRequest, fields: dict[str, Any], incoming: Incoming, ignored: tuple[str, ...]) -> Asked:
    names = _NAMES if request.json_schema is None else {**_FORM_NAMES, **_NAMES}
    try:
        call = read_completion(fields, incoming.headers, incoming.reading)
    except ApiError as error:
        raise renamed(error, names) from None
    call = replace(call.called(names), ignored=ignored)
    if request.n_predict == 0:
        # Editors have the cache filled ahead of a completion. Here a prompt is read when it is answered.
        call = replace(call, generation=Generation(max_tokens=0), modes=ROUTE_ONLY, stream=False)
    return Asked(call, CompletionDocument(call, request.response_fields))


class CompletionDocument:
    """The `Encoder` of one completion. fields: those that the document is to have; None for all."""

    def __init__(self, call: Call, fields: Sequence[str] | None) -> None:
        self._call = call
        self._fields = fields
        self._origin: Origin
        self._n_tokens = 0

    def whole(self, origin: Origin, parts: Sequence[Part], end: End) -> dict[str, Any]:
        """Returns the completion as one document, or with `response_fields` what it has of them, by their paths."""
        document = _last(origin, "".join(str(part) for part in parts if isinstance(part, Text)), end)
        if self._fields is None:
            return document
        found = {path: _at(document, path) for path in self._fields}
        return {path: value for path, value in found.items() if value is not None}

    def begin(self, origin: Origin) -> bytes:
        """Returns nothing: the first event comes with the first token."""
        self._origin = origin
        return b""

    def parts(self, parts: Sequence[Part]) -> bytes:
        """Returns an event for each part that says something."""
        events = []
        for part in parts:
            if isinstance(part, Text) and part.pieces:
                self._n_tokens += len(part.pieces)
                counts = {"tokens_predicted": self._n_tokens, "tokens_evaluated": self._origin.prompt_tokens}
                events.append(_event({"index": 0, "content": str(part), "tokens": [], "stop": False, **counts}))
        return b"".join(events)

    def end(self, end: End) -> bytes:
        """Returns the last event, with figures and the receipt. Its text was said before."""
        return _event(_last(self._origin, "", end))

    def error(self, error: ApiError) -> bytes:
        """Returns the last event of an answer that failed."""
        return _event(error.body())


def _last(origin: Origin, content: str, end: End) -> dict[str, Any]:
    tokens = end.receipt.tokens
    return {
        "index": 0,
        "content": content,
        "tokens": [],
        "stop": True,
        "model": origin.model,
        "tokens_predicted": tokens.decoded,
        "tokens_evaluated": tokens.prompt,
        "tokens_cached": tokens.cached,
        "truncated": False,
        "stop_type": "word" if end.stop else _STOP_TYPES.get(end.reason, "eos"),
        "stopping_word": end.stop or "",
        "timings": _timings(end.receipt),
        "moe2": end.receipt,
    }


def _timings(receipt: Receipt) -> dict[str, float]:
    """Returns how long reading and writing took, without what is not known."""
    tokens, seconds = receipt.tokens, receipt.seconds
    read = None if tokens.prompt is None else tokens.prompt - (tokens.cached or 0)
    timings: dict[str, float] = {}
    for name, count, spent_s in (("prompt", read, seconds.prefill), ("predicted", tokens.decoded, seconds.decode)):
        if count is None or spent_s is None:
            continue
        timings |= {f"{name}_n": count, f"{name}_ms": 1000 * spent_s}
        if count and spent_s:
            timings |= {f"{name}_per_token_ms": 1000 * spent_s / count, f"{name}_per_second": count / spent_s}
    return timings


def _at(document: Any, path: str) -> Any:
    """Returns what stands at a path such as `timings/prompt_n`; None where nothing does."""
    for name in path.split("/"):
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _event(document: Any) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"
