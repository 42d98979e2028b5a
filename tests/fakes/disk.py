"""A small disk that a test can fill."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest


@asynccontextmanager
async def small_disk(path: Path, size: str) -> AsyncIterator[Path]:
    """A tmpfs of this size; skips where nothing may be mounted."""
    os.mkdir(path)
    mount = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path))
    if await mount.wait() != 0:
        pytest.skip("mounting is not allowed here")
    try:
        yield path
    finally:
        await (await asyncio.create_subprocess_exec("umount", str(path))).wait()


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Within the block not a byte is free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        # Others write meanwhile: whatever they have left is taken.
        while file.write(bytes(4096)):
            pass
    try:
        yield
    finally:
        filler.unlink()
