"""OpenAI's chat and text completions: the faces of both routes, and the shapes of their answers. PURE.

The shapes are those of https://platform.openai.com/docs/api-reference, with the receipt beside them as `moe2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from moe2.common.link.messages import TokenAlternative, TokenPiece
from moe2.common.link.prompts import ToolCall
from moe2.coordinator.http.body.parse import Call, parse_chat, parse_completion
from moe2.coordinator.http.errors import ApiError
from moe2.coordinator.http.faces.face import Asked, End, Incoming, Origin, Part, Text
from moe2.coordinator.http.faces.toolcalls import CallArguments, CallBegun, CallShapes
from moe2.coordinator.serving.receipt import Receipt

_json = msgspec.json.encode


class Header(msgspec.Struct, frozen=True):
    """The fields that every object of one response repeats."""

    id: str
    """The request's id, without OpenAI's prefix."""
    created: int
    """Seconds since the epoch."""
    model: str
    """The model that answers."""
    is_chat: bool
    """True for a chat completion, False for a text completion."""

    @property
    def response_id(self) -> str:
        """The response's id with OpenAI's prefix, such as `chatcmpl-req-…`."""
        return f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.id}"


def usage_of(receipt: Receipt) -> dict[str, Any] | None:
    """Returns a receipt's tokens as OpenAI's usage object, or None where they are not known."""
    tokens = receipt.tokens
    if tokens.prompt is None or tokens.decoded is None:
        return None
    usage: dict[str, Any] = {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.decoded,
        "total_tokens": tokens.prompt + tokens.decoded,
        "prompt_tokens_details": {"cached_tokens": tokens.cached or 0},
    }
    if tokens.reasoning is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": tokens.reasoning}
    return usage


def full_response(header: Header, choices: Sequence[dict[str, Any]], receipt: Receipt) -> dict[str, Any]:
    """Builds a whole `chat.completion` or `text_completion` object of its choices (`choice_of`)."""
    return {
        "id": header.response_id,
        "object": "chat.completion" if header.is_chat else "text_completion",
        "created": header.created,
        "model": header.model,
        "choices": choices,
        "usage": usage_of(receipt),
        "moe2": receipt,
    }


def choice_of(
    header: Header,
    pieces: Sequence[TokenPiece],
    reason: str,
    *,
    with_logprobs: bool,
    calls: Sequence[ToolCall] = (),
    shapes: CallShapes | None = None,
    index: int = 0,
    reasoning: str = "",
) -> dict[str, Any]:
    """Builds one choice of a whole response.

    pieces: the answer's text, without its tool calls. reason: OpenAI's finish reason. calls: the tool calls, in order.
    shapes: how calls are shown; None for functions.
    reasoning: what the model thought before its answer; a chat has it as `reasoning_content`.
    """
    text = "".join([piece.text for piece in pieces])
    choice: dict[str, Any] = {"index": index, "finish_reason": reason}
    if header.is_chat:
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        if reasoning:
            choice["message"]["reasoning_content"] = reasoning
        if calls:
            choice["message"]["content"] = text or None
            choice["message"] |= (shapes or CallShapes()).message_fields(calls)
    else:
        choice["text"] = text
    choice["logprobs"] = logprobs_of(header, pieces) if with_logprobs else None
    return choice


def logprobs_of(header: Header, pieces: Sequence[TokenPiece], *, offset: int = 0) -> dict[str, Any]:
    """Builds OpenAI's logprobs object: a list of tokens for a chat, parallel lists for a text completion.

    offset: number of characters of the answer that came before these pieces.
    """
    scored = [piece for piece in pieces if piece.logprob is not None]
    if header.is_chat:
        return {"content": [_chat_logprob(piece) for piece in scored], "refusal": None}
    if not offset and pieces and pieces[0].logprob is None:
        # An echoed prompt's first token: there is nothing that it could be likely after.
        scored.insert(0, pieces[0])
    offsets = []
    for piece in scored:
        offsets.append(offset)
        offset += len(piece.text)
    return {
        "tokens": [piece.name or _token_name(piece.text, piece.hex) for piece in scored],
        "token_logprobs": [piece.logprob for piece in scored],
        "top_logprobs": [None if piece.logprob is None else _by_name(piece) for piece in scored],
        "text_offset": offsets,
    }


def _chat_logprob(piece: TokenPiece) -> dict[str, Any]:
    return {
        **_token(piece.name or piece.text, None if piece.name else piece.hex),
        "logprob": piece.logprob,
        "top_logprobs": [{**_token(other.text, other.hex), "logprob": other.logprob} for other in piece.alternatives],
    }


def _token(text: str, own: str | None) -> dict[str, Any]:
    """Returns a chat's token and its bytes. own: in hexadecimal, where they are not the text's; None for a control
    token, which has a name and no bytes."""
    if own is None:
        return {"token": text, "bytes": None}
    return {"token": _escaped(own) if own else text, "bytes": list(bytes.fromhex(own) if own else text.encode())}


def _token_name(text: str, own: str | None) -> str:
    """Returns a text completion's token: its text, or, as OpenAI has it, its bytes where they are no text."""
    return f"bytes:{_escaped(own)}" if own else text


def _by_name(piece: TokenPiece) -> dict[str, float]:
    """Returns the log-probabilities of the likely tokens by token, and, as OpenAI has it, of the one that was drawn.

    Of two tokens with one text, the less likely one is named by its bytes.
    """
    named = list(piece.alternatives)
    # Its text is only what of it was shown, so that its likelihood tells whether it is among them.
    if piece.logprob is not None and all(other.logprob != piece.logprob for other in named):
        named.append(TokenAlternative(piece.name or piece.text, piece.logprob, piece.hex))
    found: dict[str, float] = {}
    for other in named:
        name = _token_name(other.text, other.hex)
        if name in found:
            name = _token_name(name, other.hex or other.text.encode().hex())
        while name in found:
            # Vocabularies may have more than two; each keeps a key of its own.
            name += "'"
        found[name] = other.logprob
    return found


def _escaped(own: str) -> str:
    return "".join(rf"\x{own[place : place + 2]}" for place in range(0, len(own), 2))


class ChunkWriter:
    """Writes the server-sent events of one streamed response, one `data:` line per chunk.

    The part of a chunk that never changes is encoded once: at hundreds of streams, encoding it for every token would be
    most of the coordinator's work.
    """

    def __init__(
        self,
        header: Header,
        *,
        include_usage: bool,
        with_logprobs: bool,
        index: int = 0,
        prompt_tokens: int | None = None,
        shapes: CallShapes | None = None,
    ) -> None:
        """index: the answer's place among those of its request. shapes: how calls are shown; None for functions.
        prompt_tokens: where each chunk is to tell the usage so far (`n_tokens`), the prompt's part of it; else None."""
        self._header = header
        self._index = index
        self._choice = b'{"index":%d,' % index
        self._include_usage = include_usage
        self._with_logprobs = with_logprobs
        kind = "chat.completion.chunk" if header.is_chat else "text_completion"
        head = _json({"id": header.response_id, "object": kind, "created": header.created, "model": header.model})
        self._head = b"data: " + head[:-1]
        # With include_usage OpenAI's chunks carry an explicit null until the last one.
        self._null_usage = self._head + (b',"usage":null' if include_usage else b"") + b',"choices":['
        self._prompt_tokens = prompt_tokens
        self.n_tokens = 0
        """The number of tokens of the answer that have come so far."""
        self._started = False
        self._n_characters = 0
        self._shapes = shapes or CallShapes()

    def tokens(self, pieces: Sequence[TokenPiece]) -> bytes:
        """Returns the chunk for these tokens, or b"" if they carry nothing to show yet."""
        text = "".join(piece.text for piece in pieces)
        if not text and not self._with_logprobs:
            return b""
        opening = self._opening()
        logprobs = b"null"
        if self._with_logprobs:
            logprobs = _json(logprobs_of(self._header, pieces, offset=self._n_characters))
            self._n_characters += len(text)
        quoted = _json(text)
        body = b'"delta":{"content":' + quoted + b"}" if self._header.is_chat else b'"text":' + quoted
        return opening + self._open + self._choice + body + b',"logprobs":' + logprobs + b',"finish_reason":null}]}\n\n'

    def reasoning(self, text: str) -> bytes:
        """Returns the chunk for more of a chat's reasoning, in the field that clients of reasoning models read."""
        if not text or not self._header.is_chat:
            return b""
        delta = b'"delta":{"reasoning_content":' + _json(text) + b'},"logprobs":null,"finish_reason":null}]}\n\n'
        return self._opening() + self._open + self._choice + delta

    def call(self, part: CallBegun | CallArguments | ToolCall) -> bytes:
        """Returns the chunks for a part of a tool call, which OpenAI's clients join by the call's index."""
        choices = [
            {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}
            for delta in self._shapes.deltas(part)
        ]
        if not choices:
            return b""
        return self._opening() + b"".join(self._open + _json(choice) + b"]}\n\n" for choice in choices)

    def end(self, reason: str, receipt: Receipt) -> bytes:
        """Returns the last chunks: the finish reason, the usage where it was asked for, and the end marker.

        The last chunk before the end marker `[DONE]` carries the receipt.
        """
        lines = [self._last(reason)]
        moe2 = b',"moe2":' + _json(receipt) + b"}\n\n"
        if self._include_usage:
            usage = b',"usage":' + _json(usage_of(receipt))
            lines += [b"}\n\n", self._head, usage, b',"choices":[]', moe2]
        else:
            lines += [moe2]
        return b"".join([*lines, b"data: [DONE]\n\n"])

    def finish(self, reason: str) -> bytes:
        """Returns the last chunk of an answer that is followed by others of the same request."""
        return self._last(reason) + b"}\n\n"

    def _last(self, reason: str) -> bytes:
        """Returns the chunk with the finish reason, left open at its end."""
        body: dict[str, Any] = {"delta": {}} if self._header.is_chat else {"text": ""}
        choice = _json({"index": self._index, **body, "logprobs": None, "finish_reason": reason})
        return self._opening() + self._open + choice + b"]"

    @staticmethod
    def error(body: dict[str, Any]) -> bytes:
        """Returns an error as an event, as an error status cannot be sent any more. No end marker follows it."""
        return b"data: " + _json(body) + b"\n\n"

    @property
    def _open(self) -> bytes:
        """The beginning of a chunk, up to its choices."""
        if self._prompt_tokens is None:
            return self._null_usage
        total = self._prompt_tokens + self.n_tokens
        usage = b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}'
        return self._head + usage % (self._prompt_tokens, self.n_tokens, total) + b',"choices":['

    def _opening(self) -> bytes:
        """Returns OpenAI's first chunk of a chat, which names the role; b"" once it is out."""
        if self._started or not self._header.is_chat:
            return b""
        self._started = True
        choice = {
            "index": self._index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return self._open + _json(choice) + b"]}\n\n"


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
        header = self.encoders[0].header(origin)
        choices = [
            encoder.choice(header, parts, reason)
            for encoder, (parts, reason) in zip(self.encoders, answers, strict=True)
        ]
        return full_response(header, choices, receipt)


class CompletionEncoder:
    """The `ChoiceEncoder` of both routes. index: the answer's place among those of its request."""

    def __init__(self, call: Call, index: int = 0) -> None:
        self._call = call
        self._index = index
        self._shapes = CallShapes(is_legacy=call.offered.is_legacy, custom=call.offered.custom)
        self._writer: ChunkWriter

    def whole(self, origin: Origin, parts: Sequence[Part], end: End) -> dict[str, Any]:
        """Returns a `chat.completion` or a `text_completion`."""
        header = self.header(origin)
        return full_response(header, [self.choice(header, parts, end.reason)], end.receipt)

    def choice(self, header: Header, parts: Sequence[Part], reason: str) -> dict[str, Any]:
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
            header,
            pieces,
            self._shapes.reason(reason),
            with_logprobs=with_logprobs,
            calls=calls,
            shapes=self._shapes,
            index=self._index,
            reasoning="".join([piece.text for piece in thoughts]),
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
            shapes=self._shapes,
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
        return self._writer.finish(self._shapes.reason(reason))

    def end(self, end: End) -> bytes:
        """Returns the last chunks."""
        return self._writer.end(self._shapes.reason(end.reason), end.receipt)

    def error(self, error: ApiError) -> bytes:
        """Returns the error as an event."""
        return ChunkWriter.error(error.body())

    def header(self, origin: Origin) -> Header:
        """Returns what every object of the response repeats."""
        return Header(
            id=origin.request_id,
            created=origin.created_unix_s,
            model=origin.model,
            is_chat=self._call.is_chat,
        )
