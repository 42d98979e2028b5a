"""What a GGUF file says of itself before its tensors, read without llama.cpp.

Both sides look at a model's header before any byte of the model travels: the agent while it pulls, the coordinator
while it pushes. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from moe2.common.errors import Moe2Error

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEAD_BYTES = 1 << 20
"""What is read of a file that is far away: general and architecture keys stand in front of the vocabulary."""
MAX_KEYS = 65_536
MAX_KEY_BYTES = 65_535
MAX_TEXT_BYTES = 1 << 24
MAX_ARRAY_ITEMS = 1 << 24
MAX_TENSORS = 1 << 20
_TEXT, _ARRAY = 8, 9
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
MAX_DIMENSIONS = 8
_TENSOR_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}
"""Values in a block and its bytes, by the type of a tensor: `ggml_type` and its blocks in ggml-common.h."""
DEFAULT_ALIGNMENT = 32
MAX_KEPT_ITEMS = 4096
"""Longer arrays, such as vocabularies, are passed over."""

Value = int | float | bool | str


class GgufError(Moe2Error):
    """Bytes that are no GGUF file, or not one that can be served."""


class _EndOfBytesError(Exception):
    """The bytes end before the header does."""


@dataclass(frozen=True)
class GgufHeader:
    """The metadata of a GGUF file.

    metadata: by key; of arrays only short ones of numbers, as text. is_whole: False where the bytes ended before the
    metadata did, so that a key that is missing may stand further on. tensors: how many the file says that it has.
    """

    metadata: Mapping[str, Value]
    is_whole: bool = True
    tensors: int = 0

    @property
    def architecture(self) -> str | None:
        """The architecture as llama.cpp names it; None where the file does not say."""
        return self._text("general.architecture")

    @property
    def licence(self) -> str | None:
        """The licence that the file names, mostly as an SPDX identifier."""
        return self._text("general.license")

    @property
    def trained_context_tokens(self) -> int | None:
        """The context length that the model was trained with."""
        return self._count("context_length")

    def text(self, key: str) -> str | None:
        """A value as llama.cpp writes it, arrays of numbers in brackets; None where there is none."""
        value = self.metadata.get(key)
        if isinstance(value, bool):
            return "true" if value else "false"
        return None if value is None else str(value)

    def _text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) and value else None

    def _count(self, key: str) -> int | None:
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def opened(path: Path) -> BinaryIO:
    """Opens a model's file for reading. Raises `OSError`, and `GgufError` for a pipe or a device: it may never end."""
    # Looked at first, as opening a pipe waits until somebody writes into it.
    if not stat.S_ISREG(path.stat().st_mode):
        raise GgufError(f"{path} is no regular file.", remedy="Choose a model in GGUF format.")
    return path.open("rb")


def read_header(path: Path) -> GgufHeader:
    """The header of a file. Raises `OSError`, and `GgufError` for what is no GGUF file."""
    with opened(path) as file:
        return header_of(file, str(path))


def check_whole(path: Path) -> None:
    """Raises `GgufError` where a file ends before its last tensor does, as a copy that broke off. Raises `OSError`."""
    with opened(path) as file:
        needed = needed_bytes(file, str(path))
        has = path.stat().st_size
    if needed is None or has < needed:
        told = "its header is not whole" if needed is None else f"it has {has} of {needed} bytes"
        raise GgufError(f"{path} is cut off: {told}.", remedy="Copy or download it again.")


def needed_bytes(file: BinaryIO, name: str) -> int | None:
    """How long a file must be for all of its tensors; None where it ends within its header.

    Of tensors of a type that is not known here only the first byte counts. Raises `GgufError` as `header_of` does.
    """
    header = header_of(file, name)
    alignment = header.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not header.is_whole:
        return None
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise _broken(name, f"it claims an alignment of {alignment}")
    ends = [0]
    try:
        for _ in range(header.tensors):
            _text(file, MAX_KEY_BYTES, name)
            (n_dimensions,) = _unpack(file, "<I")
            if n_dimensions > MAX_DIMENSIONS:
                raise _broken(name, f"it claims a tensor of {n_dimensions} dimensions")
            values = prod(_unpack(file, f"<{n_dimensions}Q"))
            kind, offset = _unpack(file, "<IQ")
            in_block, block_bytes = _TENSOR_BLOCKS.get(kind, (max(1, values), 1))
            ends.append(offset + values * block_bytes // in_block)
    except _EndOfBytesError:
        return None
    return -(-file.tell() // alignment) * alignment + max(ends) if header.tensors else file.tell()


def parse_head(content: bytes, name: str) -> GgufHeader:
    """The header, or what there is of it, from a file's first bytes. Raises `GgufError`."""
    return header_of(BytesIO(content), name)


def header_of(file: BinaryIO, name: str) -> GgufHeader:
    """Reads a header from where `file` stands; a file that ends within it gives what came before.

    name: for messages. Raises `GgufError` for what is no GGUF file, or one that breaks the format's bounds.
    """
    magic = file.read(4)
    if magic != MAGIC:
        raise GgufError(
            f"{name} is not a GGUF file: it begins with {magic!r}.", remedy="Choose a model in GGUF format."
        )
    metadata: dict[str, Value] = {}
    try:
        (version,) = _unpack(file, "<I")
        if version not in VERSIONS:
            raise GgufError(
                f"{name} has version {version} of GGUF, which is not known here.",
                remedy="Convert it anew, or install a newer moe2.",
            )
        tensors, keys = _unpack(file, "<QQ")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise _broken(name, f"it claims {tensors} tensors and {keys} keys")
        for _ in range(keys):
            key = _text(file, MAX_KEY_BYTES, name)
            (kind,) = _unpack(file, "<I")
            value = _array(file, name) if kind == _ARRAY else _value(file, kind, name)
            if value is not None:
                metadata[key] = value
    except _EndOfBytesError:
        return GgufHeader(metadata, is_whole=False)
    return GgufHeader(metadata, tensors=tensors)


def _value(file: BinaryIO, kind: int, name: str) -> Value:
    if kind == _TEXT:
        return _text(file, MAX_TEXT_BYTES, name)
    form = _NUMBERS.get(kind)
    if form is None:
        raise _broken(name, f"it has a value of the unknown kind {kind}")
    value: Value = _unpack(file, form)[0]
    return value


def _array(file: BinaryIO, name: str) -> str | None:
    kind, count = _unpack(file, "<IQ")
    if count > MAX_ARRAY_ITEMS:
        raise _broken(name, f"it claims an array of {count} items")
    if kind == _TEXT:
        for _ in range(count):
            (length,) = _unpack(file, "<Q")
            _skip(file, length)
        return None
    form = _NUMBERS.get(kind)
    if form is None:
        raise _broken(name, f"it has an array of the unknown kind {kind}")
    if count > MAX_KEPT_ITEMS:
        _skip(file, count * struct.calcsize(form))
        return None
    return str(list(_unpack(file, f"<{count}{form[1:]}")))


def _text(file: BinaryIO, max_bytes: int, name: str) -> str:
    (length,) = _unpack(file, "<Q")
    if length > max_bytes:
        raise _broken(name, f"it claims a text of {length} bytes")
    return _exactly(file.read, length).decode("utf-8", "replace")


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, _exactly(file.read, struct.calcsize(form)))


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    content = read(count)
    if len(content) < count:
        raise _EndOfBytesError
    return content


def _skip(file: BinaryIO, count: int) -> None:
    # Reading rather than seeking: a seek beyond a file's end would not be noticed.
    while count > 0:
        content = file.read(min(count, 1 << 16))
        if not content:
            raise _EndOfBytesError
        count -= len(content)


def _broken(name: str, why: str) -> GgufError:
    return GgufError(f"{name} is a broken GGUF file: {why}.", remedy="Download it again.")
