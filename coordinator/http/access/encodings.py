"""Content-Encoding of request bodies: which are accepted, and how they are unpacked in bounded steps. PURE.

Deflate makes up to 1,032 bytes of one (https://zlib.net/zlib_tech.html), so unpacked bytes are counted as they come.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from enum import StrEnum

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.http.errors import ApiError, refused

STEP_BYTES = 65_536
MAX_SHOWN_CHARACTERS = 100


class Encoding(StrEnum):
    """The encodings in which a body may be packed."""

    GZIP = "gzip"
    DEFLATE = "deflate"


ACCEPTED = ", ".join(Encoding)
_ALIASES = {"x-gzip": Encoding.GZIP}


def encoding_of(headers: Sequence[str]) -> Encoding | None:
    """Returns the encoding that the Content-Encoding headers name; None for a body that is not packed.

    Raises `ApiError` (415) for any other encoding, and for several.
    """
    coded = [part.strip().lower() for header in headers for part in header.split(",")]
    coded = [part for part in coded if part not in ("", "identity")]
    match coded:
        case []:
            return None
        case [name] if name in _ALIASES:
            return _ALIASES[name]
        case [name] if name in set(Encoding):
            return Encoding(name)
    given = ascii(", ".join(coded)[:MAX_SHOWN_CHARACTERS])
    text = (
        f"The Content-Encoding {given} is not supported; send the body as it is, or packed once as one of: {ACCEPTED}."
    )
    raise refused(ErrorCode.UNSUPPORTED_ENCODING, text)


class Unpacker:
    """Unpacks a body in steps of at most `STEP_BYTES` in and out, and stops at `max_bytes`.

    Steps may run in any thread, one after the other.
    """

    def __init__(self, encoding: Encoding, packed: bytes, *, max_bytes: int) -> None:
        self._encoding = encoding
        self._packed = memoryview(packed)
        self._max_bytes = max_bytes
        self._begun = 0
        self._left = b""
        self._inflater = zlib.decompressobj(_window_bits(encoding, packed))
        self._unpacked = bytearray()

    @property
    def is_whole(self) -> bool:
        """Whether the whole body is unpacked."""
        return self._inflater.eof

    @property
    def body(self) -> bytes:
        """The bytes that are unpacked so far."""
        return bytes(self._unpacked)

    def step(self) -> int:
        """Unpacks a little more and returns by how many bytes the body has grown. Raises `ApiError` (400 or 413)."""
        packed = self._left or self._packed[self._begun : self._begun + STEP_BYTES]
        if not packed:
            raise self._damaged("it ends too early")
        if not self._left:
            self._begun += len(packed)
        try:
            more = self._inflater.decompress(packed, STEP_BYTES)
        except zlib.error as error:
            raise self._damaged(str(error)) from None
        self._left = self._inflater.unconsumed_tail
        self._unpacked += more
        if len(self._unpacked) > self._max_bytes:
            raise too_large()
        if self._inflater.eof and (self._inflater.unused_data or self._begun < len(self._packed)):
            raise self._damaged("something follows its end")
        return len(more)

    def _damaged(self, how: str) -> ApiError:
        return refused(ErrorCode.INVALID_ENCODING, f"The body is not valid {self._encoding}: {how}.")


def too_large() -> ApiError:
    """Returns the error for a body that is larger than allowed, packed or unpacked."""
    return refused(ErrorCode.BODY_TOO_LARGE, "The body is larger than api.max_body_bytes allows.")


def _window_bits(encoding: Encoding, packed: bytes) -> int:
    """Returns zlib's window bits: 16 more for gzip, negative for a deflate without its frame.

    Some clients send deflate without zlib's frame.
    """
    if encoding is Encoding.GZIP:
        return zlib.MAX_WBITS | 16
    is_framed = packed[:1] and packed[0] & 0x0F == zlib.DEFLATED
    return zlib.MAX_WBITS if is_framed else -zlib.MAX_WBITS
