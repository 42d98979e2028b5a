"""The faces of OpenAI's older routes: chat completions and text completions. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import ToolCall
from moe2.coordinator.http.body.parse import Call, parse_chat, parse_completion
from moe2.coordinator.http.errors import ApiError
from moe2.coordinator.http.faces.answer import ChunkWriter, Header, choice_of, full_response
from moe2.coordinator.http.faces.callshapes import CallShapes
from moe2.coordinator.http.faces.face import Asked, End, Incoming, Origin, Part, Text
from moe2.coordinator.serving.receipt import Receipt


def chat_face(incoming: Incoming) -> Asked:
    """Reads the body of `POST /v1/chat/completions`."""
    return _asked(parse_chat(incoming.body, incoming.headers, incoming.reading))


def text_face(incoming: Incoming) -> Asked:
    """Reads the body of `POST /v1/completions`."""
    return _asked(parse_completion(incoming.body, incoming.headers, incoming.reading))


def _asked(call: Call) -> Asked:
    choices = CompletionChoices(call)
    return Asked(call, choices.encoders[0], choices)


class CompletionChoices:
    """The `Choices` of both routes."""

    def __init__(self, call: Call) -> None:
        self.encoders = [CompletionEncoder(call, index) for index in range(call.n_choices)]

    def whole(self, origin: Origin, answers: Sequence[tuple[Sequence[Part], str]], receipt: Receipt) -> dict[str, Any]:
        """Returns a `chat.completion` or a `text_completion` with all answers."""
        choices = [
            encoder.choice(origin, parts, reason)
            for encoder, (parts, reason) in zip(self.encoders, answers, strict=True)
        ]
        return full_response(self.encoders[0].header(origin), choices, receipt)


class CompletionEncoder:
    """The `ChoiceEncoder` of both routes. index: the answer's place among those of its request."""

    def __init__(self, call: Call, index: int = 0) -> None:
        self._call = call
        self._index = index
        self._writer: ChunkWriter

    def whole(self, origin: Origin, parts: Sequence[Part], end: End) -> dict[str, Any]:
        """Returns a `chat.completion` or a `text_completion`."""
        return full_response(self.header(origin), [self.choice(origin, parts, end.reason)], end.receipt)

    def choice(self, origin: Origin, parts: Sequence[Part], reason: str) -> dict[str, Any]:
        """Returns the answer as one of a response's choices."""
        pieces: list[TokenPiece] = []
        thoughts: list[TokenPiece] = []
        calls: list[ToolCall] = []
        for part in parts:
            if isinstance(part, ToolCall):
                calls.append(part)
            elif isinstance(part, Text):
                (thoughts if part.is_reasoning else pieces).extend(part.pieces)
        with_logprobs = self._call.with_logprobs
        return choice_of(
            self.header(origin),
            pieces,
            self._shapes().reason(reason),
            with_logprobs=with_logprobs,
            calls=calls,
            shapes=self._shapes(),
            index=self._index,
            reasoning="".join(piece.text for piece in thoughts),
        )

    def begin(self, origin: Origin) -> bytes:
        """Returns nothing: the first chunk comes with the first token."""
        call = self._call
        self._writer = ChunkWriter(
            self.header(origin),
            include_usage=call.include_usage,
            with_logprobs=call.with_logprobs,
            index=self._index,
            prompt_tokens=origin.prompt_tokens if call.continuous_usage else None,
            shapes=self._shapes(),
        )
        return b""

    def counted(self, n_tokens: int) -> None:
        """Notes how many tokens of the answer have come, for chunks that tell the usage so far."""
        self._writer.n_tokens = n_tokens

    def parts(self, parts: Sequence[Part]) -> bytes:
        """Returns the chunks for these parts."""
        writer = self._writer
        return b"".join(
            writer.call(part)
            if not isinstance(part, Text)
            else writer.reasoning(str(part))
            if part.is_reasoning
            else writer.tokens(part.pieces)
            for part in parts
        )

    def finish(self, reason: str) -> bytes:
        """Returns the last chunk while other answers still go on."""
        return self._writer.finish(self._shapes().reason(reason))

    def end(self, end: End) -> bytes:
        """Returns the last chunks."""
        return self._writer.end(self._shapes().reason(end.reason), end.receipt)

    def error(self, error: ApiError) -> bytes:
        """Returns the error as an event."""
        return ChunkWriter.error(error.body())

    def _shapes(self) -> CallShapes:
        return CallShapes(is_legacy=self._call.offered.is_legacy, custom=self._call.offered.custom)

    def header(self, origin: Origin) -> Header:
        """Returns what every object of the response repeats."""
        return Header(
            id=origin.request_id,
            created=origin.created_unix_s,
            model=origin.model,
            is_chat=self._call.is_chat,
        )
