"""The face of `POST /v1/embeddings`, and what it has in common with others that show vectors. PURE."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moe2.common.generation import Generation
from moe2.coordinator.choosing.request import ROUTE_ONLY, Mode
from moe2.coordinator.choosing.selector import ANY_MODEL
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.body.decode import json_object
from moe2.coordinator.http.body.embeddings import EmbeddingsRequest, texts_of
from moe2.coordinator.http.body.parse import Call, read_struct, wish_of
from moe2.coordinator.http.errors import invalid, unsupported
from moe2.coordinator.http.faces.face import Asked, End, Incoming, NeverStreamed, Origin, Part


def embeddings_face(incoming: Incoming, table: CapabilityTable) -> Asked:
    """Reads the body of a request. Raises `ApiError` (400), which names the parameter."""
    fields = json_object(incoming.body)
    request, ignored = read_struct(fields, EmbeddingsRequest, incoming.reading)
    call = vectors_call(request, incoming, table, ignored=ignored)
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


def vectors_call(
    request: EmbeddingsRequest, incoming: Incoming, table: CapabilityTable, *, ignored: tuple[str, ...]
) -> Call:
    """Returns the call that asks for vectors. ignored: parameters that change nothing.

    Raises `ApiError` (400) for what no embedding model of the fleet can do.
    """
    model = incoming.reading.aliases.get(request.model, request.model)
    _check(table, model, request.dimensions)
    wish = wish_of(request.moe2 or {}, incoming.headers)
    if wish.mode not in (None, Mode.AUTO, Mode.ROUTE):
        raise unsupported("moe2.mode", hint="One expert makes the vectors.")
    texts = texts_of(request.input)
    return Call(
        model=model,
        prompt=texts[0],
        # Nothing is written; what is predicted of answers has at least one token.
        generation=Generation(max_tokens=1),
        structured_by=None,
        stream=False,
        include_usage=False,
        wish=wish,
        modes=ROUTE_ONLY,
        ballot=None,
        ignored=ignored,
        texts=texts,
        vector_size=request.dimensions,
    )


def numbers_of(vector: bytes, size: int | None) -> npt.NDArray[np.float32]:
    """Returns a vector's numbers. size: the length that it is cut to, and made of length 1 again; None for its own."""
    numbers = np.frombuffer(vector, "<f4")
    if size is None or size >= len(numbers):
        return numbers
    cut = numbers[:size].astype(np.float64)
    length = float(np.linalg.norm(cut))
    return (cut / length if length else cut).astype("<f4")


def _check(table: CapabilityTable, model: str, dimensions: int | None) -> None:
    """Raises `ApiError` (400) for what no embedding model here can do, as far as these are known.

    "moe2" is none of several: vectors of different models cannot be compared.
    """
    known = table.embedding_models()
    if model in ANY_MODEL and len(known) > 1:
        text = f"Vectors of different models cannot be compared: name one of {', '.join(known)}."
        raise invalid(text, param="model")
    sizes = next(iter(known.values()), None) if model in ANY_MODEL else known.get(model.rpartition("/")[2])
    if dimensions is not None and sizes is not None and dimensions not in sizes:
        allowed = ", ".join(map(str, sorted(sizes)))
        text = f"'dimensions' must be one of {allowed}; others are allowed by 'vector_sizes' of the agent's model."
        raise invalid(text, param="dimensions")
