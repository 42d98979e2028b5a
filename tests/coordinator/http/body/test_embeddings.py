"""Bodies that ask for vectors."""

from __future__ import annotations

from typing import Any

import pytest

from moe2.common.link.prompts import TextPrompt
from moe2.coordinator.http.body.embeddings import MAX_TEXTS, EmbeddingsRequest, texts_of, tokens_in
from moe2.coordinator.http.body.parse import STRICT, read_struct
from moe2.coordinator.http.errors import ApiError


def texts(given: Any, **fields: Any) -> tuple[TextPrompt, ...]:
    request, _ = read_struct({"model": "moe2", "input": given, **fields}, EmbeddingsRequest, STRICT)
    return texts_of(request.input)


def test_input_has_four_forms() -> None:
    """A text, a list of texts, the ids of one text, and a list of these."""
    assert texts("a") == (TextPrompt(text="a"),)
    assert texts(["a", "b"]) == (TextPrompt(text="a"), TextPrompt(text="b"))
    assert texts([1, 2]) == (TextPrompt(text="", tokens=(1, 2)),)
    assert texts([[1, 2], [3]]) == (TextPrompt(text="", tokens=(1, 2)), TextPrompt(text="", tokens=(3,)))
    assert len(texts(["a"] * MAX_TEXTS)) == MAX_TEXTS


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[1], []]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": ["a"] * (MAX_TEXTS + 1)}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 2.5}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "stream": True}, "stream"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    """A 400 names the parameter."""
    with pytest.raises(ApiError) as caught:
        texts(fields.pop("input"), **fields)
    assert caught.value.status == 400
    assert (caught.value.param or "").startswith(param)


def test_lengths_are_estimated_but_for_ids() -> None:
    """Four bytes are taken for a token, and at least one; ids are counted."""
    assert tokens_in(TextPrompt(text="a" * 40)) == 11
    assert tokens_in(TextPrompt(text="", tokens=(1, 2, 3))) == 3
