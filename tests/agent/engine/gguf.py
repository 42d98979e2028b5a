"""Writes the few GGUF files that tests need."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

_STRING, _FLOAT32, _UINT32, _BOOLEAN = 8, 6, 4, 7
_F32_TENSOR = 0
_ALIGNMENT = 32


def write_lora(path: Path, tensors: dict[str, npt.NDArray[np.float32]], *, alpha: float) -> Path:
    """A LoRA adapter for a llama model. tensors: by name, shape (rows, columns) as in numpy, float32."""
    fields = [
        _text("general.architecture") + struct.pack("<I", _STRING) + _text("llama"),
        _text("general.type") + struct.pack("<I", _STRING) + _text("adapter"),
        _text("adapter.type") + struct.pack("<I", _STRING) + _text("lora"),
        _text("adapter.lora.alpha") + struct.pack("<If", _FLOAT32, alpha),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + b"".join(fields)
    data = b""
    for name, values in tensors.items():
        # GGUF counts dimensions from the innermost one.
        head += _text(name) + struct.pack("<IQQIQ", 2, values.shape[1], values.shape[0], _F32_TENSOR, len(data))
        data += _padded(values.astype("<f4").tobytes())
    path.write_bytes(_padded(head) + data)
    return path


def with_metadata(model: Path, target: Path, key: str, value: int | bool) -> Path:
    """A copy of a GGUF file with one more field, a 32-bit number or a boolean."""
    content = model.read_bytes()
    version, n_tensors, n_fields = struct.unpack_from("<IQQ", content, 4)
    kind = struct.pack("<IB", _BOOLEAN, value) if isinstance(value, bool) else struct.pack("<II", _UINT32, value)
    added = _text(key) + kind + _text("filling") + struct.pack("<I", _STRING)
    # The tensors stay aligned where they move by a multiple of the alignment.
    added += _text("." * (-(len(added) + 8) % _ALIGNMENT))
    target.write_bytes(b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields + 2) + added + content[24:])
    return target


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
