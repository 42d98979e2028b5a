"""An answer that may call tools, in OpenAI's shapes. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moe2.common.messages import TokenPiece, ToolCall
from moe2.coordinator.api.shapes import ChunkWriter
from moe2.coordinator.api.toolcalls import CallReader


def whole_answer(reader: CallReader, pieces: Sequence[TokenPiece]) -> tuple[list[TokenPiece], tuple[ToolCall, ...]]:
    """(what the answer says, the calls it makes)."""
    found = [*reader.feed("".join(piece.text for piece in pieces)), *reader.finish()]
    says = [TokenPiece(part) for part in found if isinstance(part, str)]
    return says, tuple(part for part in found if isinstance(part, ToolCall))


def written(writer: ChunkWriter, reader: CallReader, pieces: Sequence[TokenPiece]) -> bytes:
    """The chunks for these tokens; b"" while it is open whether they are a call."""
    return _chunks(writer, reader.feed("".join(piece.text for piece in pieces)))


def written_rest(writer: ChunkWriter, reader: CallReader) -> bytes:
    """The chunks for what the reader still holds at the end."""
    return _chunks(writer, reader.finish())


def ended_by(reason: str, reader: CallReader) -> str:
    """The finish reason: an answer that came to its end with calls ended by calling."""
    return "tool_calls" if reason == "stop" and reader.n_calls else reason


def _chunks(writer: ChunkWriter, parts: Iterable[str | ToolCall]) -> bytes:
    return b"".join(
        writer.call(part) if isinstance(part, ToolCall) else writer.tokens([TokenPiece(part)]) for part in parts
    )
