"""What all faces that show vectors have in common: the request for them, and their numbers. PURE."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe2.common.generation import Generation
from moe2.coordinator.choosing.request import ROUTE_ONLY, Mode
from moe2.coordinator.choosing.selector import ANY_MODEL
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.body.embeddings import EmbeddingsRequest, texts_of
from moe2.coordinator.http.body.parse import Call, wish_of
from moe2.coordinator.http.errors import invalid, unsupported
from moe2.coordinator.http.faces.face import Incoming


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
