"""Writes the few GGUF files that tests need."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

_STRING, _FLOAT32 = 8, 6
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


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
