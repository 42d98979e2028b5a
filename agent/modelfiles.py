"""Keeps the model files' checksums known, in the background: hashing gigabytes must hold nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import structlog

from moe2.agent.checksum import ChecksumStore
from moe2.agent.energy.blocking import in_daemon_thread

log = structlog.get_logger()


class ModelFiles:
    """The files of this agent's models.

    paths: by the model's name. on_known: gets a model's name and its file's SHA-256, on the event loop.
    """

    def __init__(
        self, paths: Mapping[str, Path], store: ChecksumStore, *, on_known: Callable[[str, str], None]
    ) -> None:
        self._paths = paths
        self._store = store
        self._on_known = on_known
        self._unknown: asyncio.Queue[str] = asyncio.Queue()
        for model in paths:
            self.look(model)

    def look(self, model: str) -> None:
        """The model's file may have changed."""
        self._unknown.put_nowait(model)

    async def run(self) -> None:
        """One file at a time, so that hashing takes no more than one core."""
        while True:
            model = await self._unknown.get()
            try:
                sha256 = await in_daemon_thread(partial(self._store.sha256, self._paths[model]))
            except OSError as error:
                log.warning("checksum_failed", model=model, detail=str(error))
            else:
                self._on_known(model, sha256)
