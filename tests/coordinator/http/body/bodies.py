"""Smallest bodies, and what is refused, for tests of the parser."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from moe2.coordinator.http.body.parse import Call, parse_chat, parse_completion
from moe2.coordinator.http.errors import ApiError

USER = {"role": "user", "content": "Hi"}


def chat(**fields: Any) -> Call:
    return parse_chat(msgspec.json.encode({"model": "m", "messages": [USER], **fields}))


def completion(**fields: Any) -> Call:
    return parse_completion(msgspec.json.encode({"model": "m", "prompt": "Once", **fields}))


def refused(parse: Any, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        parse(**fields)
    assert raised.value.status == 400
    assert raised.value.kind == "invalid_request_error"
    return raised.value
