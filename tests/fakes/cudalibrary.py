"""Compiles the stand-in for libcuda.so.1."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = Path(__file__).parent / "cuda.c"


def compile_cuda(folder: Path) -> Path:
    """Put libcuda.so.1 into the folder, and return its path."""
    library = folder / "libcuda.so.1"
    subprocess.run(
        [
            *("gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-Wl,-soname,libcuda.so.1"),
            *("-o", str(library), str(_SOURCE)),
        ],
        check=True,
    )
    return library
