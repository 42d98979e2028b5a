"""Files of named tensors in the safetensors format, read and written with numpy alone.

8 bytes of header length, a JSON header, the tensors' bytes; published at github.com/huggingface/safetensors. Doing it
here keeps a coordinator free of further packages; a test reads the files with the official library.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from moe2.common.errors import Moe2Error

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_LIMIT: Final = 16 << 20


class TensorFileError(Moe2Error):
    """A file that is cut short, or no file of tensors."""


def encoded(tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """The file's bytes. Same input, same bytes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    blobs, position = [], 0
    for name, tensor in tensors.items():
        little = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
        blob = little.tobytes()
        end = position + len(blob)
        header[name] = {
            "dtype": _NAMES[little.dtype],
            "shape": list(little.shape),
            "data_offsets": [position, end],
        }
        blobs.append(blob)
        position = end
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(blobs)


def decoded(content: bytes, path: Path) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, str]]:
    """Tensors, as float32, and metadata of a safetensors file. Raises TensorFileError."""
    cut = TensorFileError(f"{path} is cut short or not a safetensors file.", remedy="Copy it again.")
    if len(content) < 8:
        raise cut
    (size,) = struct.unpack("<Q", content[:8])
    if size > min(len(content) - 8, _HEADER_LIMIT):
        raise cut
    try:
        header = msgspec.json.decode(content[8 : 8 + size], type=dict[str, dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise cut from error
    metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
    body = content[8 + size :]
    tensors = {}
    for name, entry in header.items():
        try:
            dtype, shape = _DTYPES[entry["dtype"]], tuple(int(length) for length in entry["shape"])
            start, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise TensorFileError(f"{path}: the entry of tensor {name!r} is not understood.") from error
        expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if not 0 <= start <= end <= len(body) or end - start != expected:
            raise cut
        tensors[name] = np.frombuffer(body[start:end], dtype=dtype).reshape(shape).astype(np.float32)
    return tensors, metadata
