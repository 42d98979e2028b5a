"""Small GGUF files for tests: a header and some bytes behind it. llama.cpp would not load them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path


def text(value: str) -> bytes:
    """A GGUF string."""
    content = value.encode()
    return struct.pack("<Q", len(content)) + content


def gguf(
    architecture: str = "llama",
    *,
    licence: str | None = "apache-2.0",
    body: bytes = b"",
    more: Mapping[str, int] | None = None,
) -> bytes:
    """A file of no tensors with the keys that moe2 looks at, `more` of its architecture's own, and `body` behind its
    header."""
    texts = {"general.architecture": architecture} | ({"general.license": licence} if licence else {})
    numbers = {
        "block_count": 2,
        "embedding_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "context_length": 2048,
        **(more or {}),
    }
    keys = b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in texts.items())
    keys += b"".join(text(f"{architecture}.{key}") + struct.pack("<II", 4, value) for key, value in numbers.items())
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(texts) + len(numbers)) + keys + body


def write_gguf(path: Path, architecture: str = "llama", *, body: bytes = b"") -> Path:
    """Writes such a file, and returns its path."""
    path.write_bytes(gguf(architecture, body=body))
    return path
