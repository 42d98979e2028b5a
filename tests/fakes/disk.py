"""A small disk that a test can fill."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
