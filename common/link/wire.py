"""Bytes to messages and back, on the link between the daemons and on the pipe to an engine. The only user of msgpack.

A frame is one msgpack map with an `op`, on the link also with its `number`. Decoding is strict about size, nesting and
types, and lenient about fields it does not know: those are ignored, so that a newer peer can add some. Nothing is built
of a frame that is too large for its op, or of an array longer than its field allows: a frame that is mostly empty maps
would take a hundred times its size.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin

import msgpack
import msgspec
import msgspec.inspect

from moe2.common.errors import LinkCode, ProtocolError
from moe2.common.leaves import leaves
from moe2.common.link.messages import (
    CancelJob,
    CommandAnswer,
    Fault,
    Goodbye,
    Hello,
    JobDone,
    JobFailed,
    JobId,
    JobScored,
    JobStarted,
    LoadModel,
    NextTokens,
    Ping,
    Pong,
    Refused,
    Report,
    Suspend,
    TakeToken,
    Tokens,
    UnloadModel,
    WakeNeighbour,
    Welcome,
    WireMessage,
)
from moe2.common.link.supply import DeleteFile, LendFile, PullModel, ServeModel, Ticket, TicketWanted, WithdrawModel

DEFAULT_MAX_FRAME_BYTES = 8 * 1024 * 1024
SMALL_FRAME_BYTES = 64 * 1024
"""For messages that say one thing: no such message of a sound peer comes near it."""
MEDIUM_FRAME_BYTES = 256 * 1024
REPORT_FRAME_BYTES = 1024 * 1024
MAX_PIECES_PER_FRAME = 16_384
"""The most tokens in one frame of an agent, all jobs together. Taking in a million of the shortest takes seconds."""
MAX_ALTERNATIVES_PER_FRAME = 98_304
"""The most alternatives in one such frame."""
MIN_PIECE_BYTES = 2
MIN_ALTERNATIVE_BYTES = 11
_SMALL = (
    *(Hello, Welcome, Refused, Ping, Pong, Fault, Goodbye, TakeToken, CancelJob, JobStarted, JobDone, JobFailed),
    *(
        LoadModel,
        UnloadModel,
        Suspend,
        WakeNeighbour,
        CommandAnswer,
        ServeModel,
        WithdrawModel,
        Ticket,
        TicketWanted,
        LendFile,
        PullModel,
        DeleteFile,
    ),
)
MAX_BYTES_BY_KIND: dict[type[Any], int] = {
    Report: REPORT_FRAME_BYTES,
    NextTokens: MEDIUM_FRAME_BYTES,
    JobScored: MEDIUM_FRAME_BYTES,
    **dict.fromkeys(_SMALL, SMALL_FRAME_BYTES),
}
"""The largest frame of each kind of message that has a limit below that of all frames."""
# The text is sent back to the peer and logged.
MAX_PROBLEM_CHARACTERS = 400

NUMBER = "number"
"""A frame's place among those of its sender, from 0."""

LENGTH = struct.Struct(">I")
"""What stands before each frame in a byte stream."""
T = TypeVar("T")


class _Numbered(msgspec.Struct):
    number: int | None = None


class _JobShape(msgspec.Struct, array_like=True):
    job_id: msgspec.Raw
    pieces: msgspec.Raw


class _PieceShape(msgspec.Struct, array_like=True):
    text: msgspec.Raw
    logprob: msgspec.Raw = msgspec.Raw()
    alternatives: msgspec.Raw = msgspec.Raw()


class _TokensShape(msgspec.Struct):
    """What can be said of the size of a message of tokens before any of them is built."""

    jobs: tuple[_JobShape, ...]


class _Envelope(msgspec.Struct):
    """What can be said of a message that cannot be understood. job_id: raw, as it may be anything."""

    op: str
    job_id: msgspec.Raw = msgspec.Raw()


class Codec(Generic[T]):
    """Encodes and decodes the messages of one tagged union.

    Raises `ProtocolError` from `decode`. Its code is a `LinkCode`: `FRAME_TOO_LARGE` or `MALFORMED_FRAME`; or, in an
    `UnreadableMessage`, which names the op and the job, `UNKNOWN_OP` or `INVALID_MESSAGE`.
    """

    def __init__(
        self,
        union: Any,
        *,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        max_bytes_by_kind: Mapping[type[Any], int] | None = None,
    ) -> None:
        """max_bytes_by_kind: limits below `max_frame_bytes`, for what is received."""
        self._union = union
        self._packer = msgpack.Packer(use_bin_type=True)
        self._decoder = msgspec.msgpack.Decoder(union)
        self._numbers = msgspec.msgpack.Decoder(_Numbered)
        self._envelopes = msgspec.msgpack.Decoder(_Envelope)
        self._shapes = msgspec.msgpack.Decoder(_TokensShape)
        self._piece_shapes = msgspec.msgpack.Decoder(tuple[_PieceShape, ...])
        self._max_bytes = {kind.__struct_config__.tag: limit for kind, limit in (max_bytes_by_kind or {}).items()}
        least_bytes = (*self._max_bytes.values(), MIN_PIECE_BYTES * MAX_PIECES_PER_FRAME)
        self._always_small_enough = min(least_bytes) if self._max_bytes else max_frame_bytes
        self._ops = {info.__struct_config__.tag for info in _members(union)}
        spelled = [info for info in _members(union) if _is_spelled(info)]
        self._spelled_ops = {info.__struct_config__.tag for info in spelled}
        """Ops of messages that have bytes in them."""
        self._spelled_decoder = msgspec.msgpack.Decoder(_union(map(_as_spelled, spelled)))
        self.max_frame_bytes = max_frame_bytes

    def encode(self, message: T, *, number: int | None = None) -> bytes:
        """Returns the frame of a message. number: its place among those of its sender."""
        content = msgspec.to_builtins(message)
        if isinstance(message, Tokens):
            content["jobs"] = [(job_id, [_as_sent(piece) for piece in pieces]) for job_id, pieces in content["jobs"]]
        if number is not None:
            content[NUMBER] = number
        frame = bytes(self._packer.pack(content))
        if len(frame) > self.max_frame_bytes:
            raise FrameTooLargeError(len(frame), self.max_frame_bytes)
        return frame

    def number_of(self, frame: bytes) -> int | None:
        """The frame's number; None where it has none, or is no frame at all, which `decode` will say."""
        try:
            return self._numbers.decode(frame).number
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None

    def decode(self, frame: bytes) -> T:
        if len(frame) > self.max_frame_bytes:
            raise FrameTooLargeError(len(frame), self.max_frame_bytes)
        looked = self._refuse_inflated(frame) if len(frame) > self._always_small_enough else None
        try:
            good: T = self._decoder.decode(frame)
            return good
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            envelope = looked or self._envelope(frame)
            if envelope.op not in self._spelled_ops:
                raise self._unreadable(envelope, error) from error
        try:
            return self._spelled(frame)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self._unreadable(envelope, error) from error

    def _spelled(self, frame: bytes) -> T:
        """A message whose bytes are written as base64, as the link has them; msgspec's decoder wants them raw.

        It is decoded as what it is, too: of anything at all, a frame of nested lists would be built in seconds.
        """
        content = msgspec.to_builtins(self._spelled_decoder.decode(frame))
        spelled: T = msgspec.convert(content, self._union)
        return spelled

    def _refuse_inflated(self, frame: bytes) -> _Envelope:
        """Raise for a frame that is too large for its op, or has too many tokens; return what it says of itself."""
        envelope = self._envelope(frame)
        limit = self._max_bytes.get(envelope.op)
        if limit is not None and len(frame) > limit:
            problem = f"{len(frame)} bytes are more than the {limit} that it may have."
            raise self._unreadable(envelope, ValueError(problem))
        if envelope.op == Tokens.__struct_config__.tag and self._max_bytes:
            self._refuse_crowded(frame, envelope)
        return envelope

    def _refuse_crowded(self, frame: bytes, envelope: _Envelope) -> None:
        try:
            jobs = self._shapes.decode(frame).jobs
            what, count, most = "tokens", sum(_length(job.pieces) for job in jobs), MAX_PIECES_PER_FRAME
            if count <= most and len(frame) > MIN_ALTERNATIVE_BYTES * MAX_ALTERNATIVES_PER_FRAME:
                pieces = (piece for job in jobs for piece in self._piece_shapes.decode(job.pieces))
                what, most = "alternatives", MAX_ALTERNATIVES_PER_FRAME
                count = sum(_length(piece.alternatives) for piece in pieces)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return  # It is no message of tokens, which is said when it is read.
        if count > most:
            raise self._unreadable(envelope, ValueError(f"{count} {what} are more than the {most} that it may have."))

    def _envelope(self, frame: bytes) -> _Envelope:
        """The op and the job of a frame that is a map with an op."""
        try:
            return self._envelopes.decode(frame)
        except msgspec.ValidationError as error:
            raise ProtocolError("The frame is not a map with an 'op'.", code=LinkCode.MALFORMED_FRAME) from error
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            problem = str(error)[:MAX_PROBLEM_CHARACTERS]
            raise ProtocolError(f"The frame is not msgpack: {problem}", code=LinkCode.MALFORMED_FRAME) from error

    def _unreadable(self, envelope: _Envelope, error: Exception) -> UnreadableMessage:
        op, job_id = envelope.op, _job_id(envelope.job_id)
        # msgspec quotes an invalid value in full, and the peer chose its length.
        problem = str(error)[:MAX_PROBLEM_CHARACTERS]
        if op not in self._ops:
            return UnreadableMessage(f"Unknown op {op[:64]!r}.", code=LinkCode.UNKNOWN_OP, op=op[:64], job_id=job_id)
        return UnreadableMessage(f"Invalid {op!r}: {problem}", code=LinkCode.INVALID_MESSAGE, op=op, job_id=job_id)


def _job_id(raw: msgspec.Raw) -> str | None:
    """The job's id, if it is a text that could be one."""
    with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
        return msgspec.msgpack.decode(raw, type=JobId)
    return None


class UnreadableMessage(ProtocolError):  # noqa: N818 - names what it is on the wire; ProtocolError is the base callers catch
    """A well-formed frame whose message could not be understood: the session can answer it and go on.

    job_id: of the job that it was about; None where it names none, or several.
    """

    def __init__(self, message: str, *, code: str, op: str, job_id: str | None = None) -> None:
        super().__init__(message, code=code)
        self.op = op
        self.job_id = job_id


class FrameTooLargeError(ProtocolError):
    """A frame beyond the limit that both sides keep."""

    def __init__(self, frame_bytes: int, max_frame_bytes: int) -> None:
        super().__init__(
            f"A frame of {frame_bytes} bytes exceeds the limit of {max_frame_bytes}.",
            code=LinkCode.FRAME_TOO_LARGE,
            remedy="Send less in one message, or raise agents.max_frame_bytes on the coordinator.",
        )


def _as_sent(piece: Sequence[Any]) -> Sequence[Any]:
    """A piece without the fields at its end that say nothing: most tokens have neither channel nor bytes nor a name
    of their own, and the peers of protocol 3 do not know them."""
    text, logprob, alternatives, is_reasoning, own, name = piece
    others = [other[:2] if other[2] == "" else other for other in alternatives]
    if name:
        return (text, logprob, others, is_reasoning, own, name)
    if own:
        return (text, logprob, others, is_reasoning, own)
    return (text, logprob, others, True) if is_reasoning else (text, logprob, others)


def length_prefixed(frame: bytes) -> bytes:
    """A frame for a byte stream: 4-byte big-endian length, then the frame."""
    return LENGTH.pack(len(frame)) + frame


class FrameSplitter:
    """Cuts a byte stream into length-prefixed frames. Raises `ProtocolError` on a length beyond the limit."""

    def __init__(self, *, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_frame_bytes = max_frame_bytes

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take in some bytes; yields every frame that is complete now."""
        self._buffer += data
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            if length > self._max_frame_bytes:
                raise FrameTooLargeError(length, self._max_frame_bytes)
            end = LENGTH.size + length
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[LENGTH.size : end])
            del self._buffer[:end]
            yield frame


def _length(raw: msgspec.Raw) -> int:
    """The number of items of an array that is not read, https://github.com/msgpack/msgpack/blob/master/spec.md; 0 for
    anything else."""
    head = bytes(memoryview(raw)[:5]) or b"\0"
    match head[0]:
        case 0xDC:
            return int.from_bytes(head[1:3])
        case 0xDD:
            return int.from_bytes(head[1:5])
        case first:
            return first & 0x0F if first & 0xF0 == 0x90 else 0


@cache
def _as_spelled(kind: Any) -> Any:
    """A type with texts in the places of bytes, as the link has them."""
    if kind is bytes:
        return str
    if get_origin(kind) is Annotated:
        return Annotated[(_as_spelled(get_args(kind)[0]), *kind.__metadata__)]
    if get_origin(kind) is tuple:
        return tuple.__class_getitem__(tuple(map(_as_spelled, get_args(kind))))
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return kind
    fields = [
        (field.encode_name, _as_spelled(field.type), *(() if field.required else (field.default,)))
        for field in msgspec.structs.fields(kind)
    ]
    config = kind.__struct_config__
    return msgspec.defstruct(
        kind.__name__, fields, array_like=config.array_like, tag=config.tag, tag_field=config.tag_field
    )


@cache
def _is_spelled(kind: type[Any]) -> bool:
    """True if messages of this kind can have bytes in them, which are written as base64."""
    return any(isinstance(leaf, msgspec.inspect.BytesType) for leaf in leaves(msgspec.inspect.type_info(kind)))


def _union(kinds: Iterable[Any]) -> Any:
    return reduce(or_, kinds, None)


def _members(union: Any) -> tuple[Any, ...]:
    return getattr(union, "__args__", (union,))


def wire_codec(*, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> Codec[WireMessage]:
    """The codec of the link between coordinator and agents."""
    # All links share what is read from the types of the messages: a coordinator of a thousand agents has a thousand.
    codec = copy(_first_wire_codec())
    codec.max_frame_bytes = max_frame_bytes
    return codec


@cache
def _first_wire_codec() -> Codec[WireMessage]:
    return Codec(WireMessage, max_bytes_by_kind=MAX_BYTES_BY_KIND)
