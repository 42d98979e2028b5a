"""Bytes to messages and back, on the link between the daemons and on the pipe to an engine. The only user of msgpack.

A frame is one msgpack map with an `op`, on the link also with its `number`. Decoding is strict about size, nesting and
types, and lenient about fields it does not know: those are ignored, so that a newer peer can add some.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgpack
import msgspec

from moe2.common.errors import ProtocolError
from moe2.common.messages import WireMessage

DEFAULT_MAX_FRAME_BYTES = 8 * 1024 * 1024
# The text is sent back to the peer and logged.
MOST_PROBLEM_CHARACTERS = 400

NUMBER = "number"
"""A frame's place among those of its sender, from 0."""

LENGTH = struct.Struct(">I")
"""What stands before each frame in a byte stream."""
T = TypeVar("T")


class _Numbered(msgspec.Struct):
    number: int | None = None


class Codec(Generic[T]):
    """Encodes and decodes the messages of one tagged union.

    Raises `ProtocolError` from `decode`, with one of the codes "frame_too_large", "malformed_frame", "unknown_op" and
    "invalid_message"; for the last two `in_reply_to` names the op as far as it could be read.
    """

    def __init__(self, union: Any, *, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        self._union = union
        self._decoder = msgspec.msgpack.Decoder(union)
        self._numbers = msgspec.msgpack.Decoder(_Numbered)
        self._ops = {info.__struct_config__.tag for info in _members(union)}
        self.max_frame_bytes = max_frame_bytes

    def encode(self, message: T, *, number: int | None = None) -> bytes:
        """number: the frame's place among those of its sender."""
        content = msgspec.to_builtins(message)
        if number is not None:
            content[NUMBER] = number
        frame = bytes(msgpack.packb(content, use_bin_type=True))
        if len(frame) > self.max_frame_bytes:
            raise FrameTooLargeError(len(frame), self.max_frame_bytes)
        return frame

    def number_of(self, frame: bytes) -> int | None:
        """The frame's number; None where it has none, or is no frame at all, which `decode` will say."""
        with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
            return self._numbers.decode(frame).number
        return None

    def decode(self, frame: bytes) -> T:
        if len(frame) > self.max_frame_bytes:
            raise FrameTooLargeError(len(frame), self.max_frame_bytes)
        # Nearly every frame is a good one, and this is a hundred times as fast as finding out what is wrong with one.
        with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
            good: T = self._decoder.decode(frame)
            return good
        return self._message_of(_unpacked(frame))

    def _message_of(self, content: dict[str, Any]) -> T:
        op = content["op"]
        if op not in self._ops:
            raise UnreadableMessage(f"Unknown op {op[:64]!r}.", code="unknown_op", op=op[:64])
        try:
            message: T = msgspec.convert(content, self._union)
        except (msgspec.ValidationError, RecursionError) as error:
            # msgspec quotes an invalid value in full, and the peer chose its length.
            problem = str(error)[:MOST_PROBLEM_CHARACTERS]
            raise UnreadableMessage(f"Invalid {op!r}: {problem}", code="invalid_message", op=op) from error
        return message


def _unpacked(frame: bytes) -> dict[str, Any]:
    """The map in a frame, which has an op."""
    try:
        content = msgpack.unpackb(frame, raw=False, strict_map_key=False)
    # TypeError: a map whose key is a list or a map.
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise ProtocolError(f"The frame is not msgpack: {error}", code="malformed_frame") from error
    if not isinstance(content, dict) or not isinstance(content.get("op"), str):
        raise ProtocolError("The frame is not a map with an 'op'.", code="malformed_frame")
    return content


class UnreadableMessage(ProtocolError):  # noqa: N818 - names what it is on the wire; ProtocolError is the base callers catch
    """A well-formed frame whose message could not be understood: the session can answer it and go on."""

    def __init__(self, message: str, *, code: str, op: str) -> None:
        super().__init__(message, code=code)
        self.op = op


class FrameTooLargeError(ProtocolError):
    """A frame beyond the limit that both sides keep."""

    def __init__(self, frame_bytes: int, max_frame_bytes: int) -> None:
        super().__init__(
            f"A frame of {frame_bytes} bytes exceeds the limit of {max_frame_bytes}.",
            code="frame_too_large",
            remedy="Send less in one message, or raise agents.max_frame_bytes on the coordinator.",
        )


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


def _members(union: Any) -> tuple[Any, ...]:
    return getattr(union, "__args__", (union,))


def wire_codec(*, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> Codec[WireMessage]:
    """The codec of the link between coordinator and agents."""
    return Codec(WireMessage, max_frame_bytes=max_frame_bytes)
