"""The body of `POST /v1/embeddings`: its types, and the texts that it asks for vectors of. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from moe2.common.generation import TokenId
from moe2.common.link.prompts import TextPrompt
from moe2.coordinator.choosing.request import BYTES_PER_TOKEN
from moe2.coordinator.http.body.neutral import idle
from moe2.coordinator.http.body.requests import FullText
from moe2.coordinator.http.errors import invalid

MAX_TEXTS = 2048
MAX_TEXT_IDS = 1_048_576
MAX_DIMENSIONS = 65_536


class EmbeddingsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/embeddings`."""

    model: Annotated[
        str,
        Meta(min_length=1, extra={"hint": '"moe2" stands for the fleet\'s embedding model, where there is one.'}),
    ]
    input: Annotated[
        FullText
        | Annotated[
            list[FullText | TokenId | Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_TEXT_IDS)]],
            Meta(min_length=1, max_length=MAX_TEXT_IDS),
        ],
        Meta(extra={"must": f"be a non-empty string, a list of token ids, or a list of at most {MAX_TEXTS} of either"}),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None = None
    moe2: Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": "#/components/schemas/Wish"})] | None = None
    user: Annotated[str | None, idle()] = None


def texts_of(given: str | Sequence[str | int | Sequence[int]]) -> tuple[TextPrompt, ...]:
    """Returns the texts of a body: one, or as many as its list has. Raises `ApiError` (400).

    Each is a text, or the ids of its tokens. A list of numbers is one text.
    """
    if isinstance(given, str):
        return (TextPrompt(text=given),)
    numbers = [each for each in given if isinstance(each, int)]
    if len(numbers) == len(given):
        return (TextPrompt(text="", tokens=tuple(numbers)),)
    if numbers or len(given) > MAX_TEXTS:
        text = f"'input' must be one list of token ids, or a list of at most {MAX_TEXTS} texts or lists of token ids."
        raise invalid(text, param="input")
    return tuple(
        TextPrompt(text=each) if isinstance(each, str) else TextPrompt(text="", tokens=tuple(each))
        for each in given
        if not isinstance(each, int)
    )


def tokens_in(text: TextPrompt) -> int:
    """Returns the estimated length of a text; that of given token ids is exact."""
    return len(text.tokens) or int(len(text.text.encode("utf-8", "replace")) / BYTES_PER_TOKEN) + 1
