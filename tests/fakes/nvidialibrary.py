"""Compiles the stand-ins for NVIDIA's libraries. It needs gcc."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCES = Path(__file__).parent


def compile_cuda(folder: Path) -> Path:
    """Put libcuda.so.1 into the folder, and return its path."""
    return _compile("cuda.c", folder / "libcuda.so.1")


def compile_nvml(folder: Path, *flags: str) -> Path:
    """Put libnvidia-ml.so.1 into the folder, and return its path. flags: further ones of the compiler."""
    return _compile("nvml.c", folder / "libnvidia-ml.so.1", *flags)


def _compile(source: str, library: Path, *flags: str) -> Path:
    subprocess.run(
        [
            *("gcc", "-shared", "-fPIC", "-Wall", "-Werror", f"-Wl,-soname,{library.name}", *flags),
            *("-o", str(library), str(_SOURCES / source)),
        ],
        check=True,
    )
    return library
