"""The files of a model that is split into several, as llama.cpp's `llama-gguf-split` names them.

Such a model is named by its first file, `NAME-00001-of-00003.gguf`; llama.cpp finds the others beside it. Size,
checksum and memory are those of all of them.
"""

from __future__ import annotations

import re
from pathlib import Path

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MAX_PARTS = 1024
"""More than any model has; a name that tells of more is only a name."""


def parts_of(path: Path) -> tuple[Path, ...]:
    """Returns all files of the model that this file is part of, the first one first; only itself where it is whole.

    Names alone are looked at: files may be missing.
    """
    found = _PART.fullmatch(path.name)
    count = int(found["count"]) if found else 1
    if found is None or not 1 <= int(found["number"]) <= count <= MAX_PARTS:
        return (path,)
    return tuple(path.with_name(f"{found['name']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1))


def size_bytes(path: Path) -> int:
    """Returns the bytes of all files of a model. Raises `OSError` where one cannot be looked at."""
    return sum(part.stat().st_size for part in parts_of(path))
