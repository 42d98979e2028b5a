"""The faces of OpenAI's older routes: chat completions and text completions. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe2.common.link.messages import TokenPiece, ToolCall
from moe2.coordinator.http.answer import ChunkWriter, Header, full_response
from moe2.coordinator.http.body.parse import Call, parse_chat, parse_completion
from moe2.coordinator.http.errors import ApiError
from moe2.coordinator.http.face import Asked, End, Incoming, Origin, Part


def chat_face(incoming: Incoming) -> Asked:
    """Reads the body of `POST /v1/chat/completions`."""
    call = parse_chat(incoming.body, incoming.headers, incoming.reading)
    return Asked(call, CompletionEncoder(call))


def text_face(incoming: Incoming) -> Asked:
    """Reads the body of `POST /v1/completions`."""
    call = parse_completion(incoming.body, incoming.headers, incoming.reading)
    return Asked(call, CompletionEncoder(call))


class CompletionEncoder:
    """The `Encoder` of both routes."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._writer: ChunkWriter

    def whole(self, origin: Origin, parts: Sequence[Part], end: End) -> dict[str, Any]:
        """Returns a `chat.completion` or a `text_completion`."""
        pieces: list[TokenPiece] = []
        thoughts: list[TokenPiece] = []
        calls: list[ToolCall] = []
        for part in parts:
            if isinstance(part, ToolCall):
                calls.append(part)
            else:
                (thoughts if part.is_reasoning else pieces).extend(part.pieces)
        with_logprobs = self._call.with_logprobs
        return full_response(
            self._header(origin),
            pieces,
            end.reason,
            end.receipt,
            with_logprobs=with_logprobs,
            calls=calls,
            reasoning="".join(piece.text for piece in thoughts),
        )

    def begin(self, origin: Origin) -> bytes:
        """Returns nothing: the first chunk comes with the first token."""
        call = self._call
        self._writer = ChunkWriter(
            self._header(origin), include_usage=call.include_usage, with_logprobs=call.with_logprobs
        )
        return b""

    def parts(self, parts: Sequence[Part]) -> bytes:
        """Returns the chunks for these parts."""
        writer = self._writer
        return b"".join(
            writer.call(part)
            if isinstance(part, ToolCall)
            else writer.reasoning(str(part))
            if part.is_reasoning
            else writer.tokens(part.pieces)
            for part in parts
        )

    def end(self, end: End) -> bytes:
        """Returns the last chunks."""
        return self._writer.end(end.reason, end.receipt)

    def error(self, error: ApiError) -> bytes:
        """Returns the error as an event."""
        return ChunkWriter.error(error.body())

    def _header(self, origin: Origin) -> Header:
        return Header(
            id=origin.request_id,
            created=origin.created_unix_s,
            model=origin.model,
            is_chat=self._call.is_chat,
        )
