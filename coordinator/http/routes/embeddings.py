"""The face of `POST /v1/embeddings`: vectors of texts, in OpenAI's shape."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.body.decode import json_object
from moe2.coordinator.http.body.embeddings import EmbeddingsRequest
from moe2.coordinator.http.body.parse import read_struct
from moe2.coordinator.http.faces.face import Asked, End, Incoming, NeverStreamed, Origin, Part
from moe2.coordinator.http.faces.vectors import numbers_of, vectors_call
from moe2.coordinator.http.paths import EMBEDDINGS_PATH
from moe2.coordinator.http.routes.answering import Answering


class EmbeddingsRoutes:
    """The route that embeds texts."""

    def __init__(self, answering: Answering, table: CapabilityTable) -> None:
        self._answering = answering
        self._table = table

    def add_to(self, app: web.Application) -> None:
        """Registers the route with the application."""
        app.router.add_post(EMBEDDINGS_PATH, self._answering.through(self._face))

    def _face(self, incoming: Incoming) -> Asked:
        """Reads the body of a request. Raises `ApiError` (400), which names the parameter."""
        fields = json_object(incoming.body)
        request, ignored = read_struct(fields, EmbeddingsRequest, incoming.reading)
        call = vectors_call(request, incoming, self._table, ignored=ignored)
        return Asked(call, EmbeddingsEncoder(request))


class EmbeddingsEncoder(NeverStreamed):
    """The `Encoder` of vectors, which never come as a stream."""

    def __init__(self, request: EmbeddingsRequest) -> None:
        self._request = request

    def whole(self, origin: Origin, parts: Sequence[Part], end: End) -> dict[str, Any]:
        """Returns a list of `embedding` objects, in the order of the texts."""
        tokens = end.receipt.tokens.prompt
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": self._shown(vector)}
                for index, vector in enumerate(end.vectors)
            ],
            "model": origin.model,
            "usage": None if tokens is None else {"prompt_tokens": tokens, "total_tokens": tokens},
            "moe2": end.receipt,
        }

    def _shown(self, vector: bytes) -> str | list[float]:
        """Returns a vector as the client wants it: cut to `dimensions` and at length 1 again, as numbers or base64."""
        numbers = numbers_of(vector, self._request.dimensions)
        if self._request.encoding_format == "base64":
            return base64.b64encode(numbers.tobytes()).decode()
        return [float(number) for number in numbers]
