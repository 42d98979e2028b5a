"""The seam between the service's one request and the API's several shapes. PURE.

A face is one shape in which clients ask and are answered: it makes the service's own request of a body (`Call`), and
writes the answer's parts as its clients read them, whole or streamed. What is the same for all of them (keys, bodies,
limits, receipts, headers) is in `routes.answering`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec

from moe2.common.link.messages import TokenPiece
from moe2.common.link.prompts import ToolCall
from moe2.coordinator.http.body.parse import STRICT, Call, Reading
from moe2.coordinator.http.errors import ApiError
from moe2.coordinator.http.faces.toolcalls import CallArguments, CallBegun, CallReader, Found, InputReader
from moe2.coordinator.keys.keys import Principal
from moe2.coordinator.serving.receipt import Receipt


class Origin(msgspec.Struct, frozen=True):
    """Where an answer comes from; it is the same for the whole of it."""

    request_id: str
    created_unix_s: int
    model: str
    """The model that answers."""
    prompt_tokens: int | None = None
    """Length of the prompt, as the expert has counted it; None where it is not known yet."""


class Text(msgspec.Struct, frozen=True):
    """Tokens of the answer's text, or of the reasoning before it."""

    pieces: Sequence[TokenPiece]
    is_reasoning: bool = False

    def __str__(self) -> str:
        return "".join([piece.text for piece in self.pieces])


_IS_REASONING = attrgetter("is_reasoning")


Part: TypeAlias = Text | CallBegun | CallArguments | ToolCall
"""A part of an answer, in the order in which the model wrote them. A call begins, its arguments come, it is whole."""


class End(msgspec.Struct, frozen=True):
    """How an answer ended. reason: "stop", "length", or "tool_calls" where it made calls and stopped by itself."""

    reason: str
    receipt: Receipt
    stop: str | None = None
    """The stop string that ended the answer, where that is known."""
    vectors: Sequence[bytes] = ()
    """Where vectors were asked for: one for each text, of length 1, as 32-bit floats, little-endian."""


class Encoder(Protocol):
    """Writes one answer in the shape of a face: either whole, or as a stream, mostly of server-sent events.

    A stream is `begin`, any number of `parts`, and then `end` or `error`. Each returns bytes to send, maybe none.
    """

    def whole(self, origin: Origin, parts: Sequence[Part], end: End) -> Any:
        """Returns the JSON document of an answer that is not streamed."""

    def begin(self, origin: Origin) -> bytes:
        """Returns what comes before the first part."""

    def parts(self, parts: Sequence[Part]) -> bytes:
        """Returns the events for more of the answer."""

    def end(self, end: End) -> bytes:
        """Returns the last events."""

    def error(self, error: ApiError) -> bytes:
        """Returns the last events of an answer that failed, as an error status cannot be sent any more."""


class NeverStreamed:
    """The half of an `Encoder` that a route without streams has no use for: `stream` is no parameter there."""

    def begin(self, origin: Origin) -> bytes:
        """Does not happen."""
        raise NotImplementedError

    def parts(self, parts: Sequence[Part]) -> bytes:
        """Does not happen."""
        raise NotImplementedError

    def end(self, end: End) -> bytes:
        """Does not happen."""
        raise NotImplementedError

    def error(self, error: ApiError) -> bytes:
        """Does not happen."""
        raise NotImplementedError


@runtime_checkable
class ChoiceEncoder(Encoder, Protocol):
    """Writes one of several answers of a request."""

    def counted(self, n_tokens: int) -> None:
        """Notes how many tokens of the answer have come; called before their `parts`."""

    def finish(self, reason: str) -> bytes:
        """Returns the last events of an answer while others of its request still go on."""


class Choices(Protocol):
    """Writes all answers of a request that asks for several."""

    @property
    def encoders(self) -> Sequence[ChoiceEncoder]:
        """The encoder of each answer, by its index."""

    def whole(self, origin: Origin, answers: Sequence[tuple[Sequence[Part], str]], receipt: Receipt) -> Any:
        """Returns the JSON document of all answers, given as their parts and the reason why each ended."""


EVENTS = "text/event-stream"
COMMENT = b": moe2 is working on it\n\n"
"""A line of an event stream that clients pass over (WHATWG HTML, section 9.2.6)."""


class Asked(msgspec.Struct, frozen=True):
    """What a body asks for, and who writes the answer.

    choices: who writes the answers where the body may ask for several; None for a face that has only one. idle_event:
    what a stream says where there is nothing to say. content_type: of a stream.
    """

    call: Call
    encoder: Encoder
    choices: Choices | None = None
    idle_event: bytes = COMMENT
    content_type: str = EVENTS


class Incoming(msgspec.Struct, frozen=True):
    """A request as it came."""

    body: bytes
    headers: Mapping[str, str]
    principal: Principal
    reading: Reading = STRICT
    """How the settings have bodies read."""


Face: TypeAlias = Callable[[Incoming], Asked]
"""Reads a request. Raises `ApiError` (400), which names the parameter."""


class PartReader:
    """Reads the tokens of one answer as they come, and says which parts of it have become final.

    tool_names: the tools that the answer may call; without any, all of it is text. most_calls: a call beyond so many is
    left out; None sets no limit. input_of: the custom tool of which the whole answer is the input.
    """

    def __init__(
        self,
        tool_names: frozenset[str],
        request_id: str,
        *,
        most_calls: int | None = None,
        input_of: str | None = None,
    ) -> None:
        ids = request_id.removeprefix("req-")
        self._calls: CallReader | InputReader | None = None
        if input_of is not None:
            self._calls = InputReader(input_of, ids=ids)
        elif tool_names:
            self._calls = CallReader(tool_names, ids=ids, most_calls=most_calls)

    def feed(self, pieces: Sequence[TokenPiece]) -> list[Part]:
        """Takes in more tokens; returns what is final. Nothing is, while it is open whether it belongs to a call."""
        parts: list[Part] = []
        for is_reasoning, run in groupby(pieces, key=_IS_REASONING):
            if is_reasoning:
                parts.append(Text(list(run), is_reasoning=True))
            elif self._calls is None:
                parts.append(Text(list(run)))
            else:
                parts += _parts(self._calls.feed(run))
        return parts

    def finish(self) -> list[Part]:
        """Ends the answer; returns what was still held back."""
        return [] if self._calls is None else _parts(self._calls.finish())

    def reason(self, reason: str) -> str:
        """Returns the finish reason: `tool_calls` in the place of `stop` where the answer made calls."""
        return "tool_calls" if reason == "stop" and self._calls is not None and self._calls.n_calls else reason


def _parts(found: Sequence[Found]) -> list[Part]:
    return [Text(part) if isinstance(part, tuple) else part for part in found]
