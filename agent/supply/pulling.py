"""Pulls models because the coordinator has said so: within the configuration's bounds, each in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog
from msgspec.structs import replace

from moe2.agent.models.process import Errand, Word
from moe2.agent.settings import ModelsFromSection
from moe2.common.errors import Moe2Error
from moe2.common.link.supply import Pulling, PullModel
from moe2.common.modelsource import LocalSource, Source, is_allowed, source_of

log = structlog.get_logger()

ARGV = (sys.executable, "-m", "moe2.agent.models.process")
MAX_PULLS = 2
"""Pulls at once; further ones wait for their turn."""
MIN_BYTES = 1 << 20
STALL_S = 1800.0
"""A pull that has not brought `MIN_BYTES` in so long is ended, so that no source holds up the others."""
MAX_LINE_BYTES = 1 << 16


class PullRefusedError(Moe2Error):
    """A source that this host's configuration does not allow."""


class PullError(Moe2Error):
    """A model that could not be pulled."""


class Puller:
    """The models that this host pulls. pending_bytes: what others have promised of the folder's limit."""

    def __init__(
        self,
        settings: ModelsFromSection,
        state_dir: Path,
        *,
        pending_bytes: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._state_dir = state_dir
        self._pending_bytes = pending_bytes
        self._changed = changed
        self._turn = asyncio.Semaphore(MAX_PULLS)
        self._rows: dict[str, Pulling] = {}

    def rows(self) -> tuple[Pulling, ...]:
        """What is on its way, for the report."""
        return tuple(self._rows.values())

    def pending_bytes(self) -> int:
        """The bytes of what is on its way, as far as they are known."""
        return sum(row.size_bytes or 0 for row in self._rows.values())

    async def pull(self, order: PullModel) -> None:
        """Pulls a model into the folder. Raises `Moe2Error` with what went wrong."""
        source = self._allowed(order.source)
        self._rows[order.command_id] = Pulling(command_id=order.command_id, file=source.name, source=str(source))
        self._changed()
        try:
            async with self._turn:
                await self._run(order)
        finally:
            del self._rows[order.command_id]
            self._changed()

    def _allowed(self, text: str) -> Source:
        source = source_of(text)
        allowed = self._settings.pull_from
        if isinstance(source, LocalSource) or not is_allowed(source, allowed):
            raise PullRefusedError(
                f"This host pulls from {', '.join(allowed) or 'nowhere'} when it is told to, and not {source}.",
                remedy="Add it to models_from.pull_from of the agent's configuration, and restart the agent.",
            )
        return source

    async def _run(self, order: PullModel) -> None:
        errand = Errand(
            source=order.source,
            state_dir=str(self._state_dir),
            folder=_text(self._settings.folder),
            pull_from=self._settings.pull_from,
            max_bytes=self._settings.max_bytes,
            pending_bytes=self._pending_bytes() + self.pending_bytes(),
            hub_token_file=_text(self._settings.hub_token_file),
        )
        process = await asyncio.create_subprocess_exec(
            *ARGV, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=MAX_LINE_BYTES
        )
        try:
            await self._follow(order.command_id, process, errand)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _follow(self, command_id: str, process: asyncio.subprocess.Process, errand: Errand) -> None:
        """Hears what the process tells until its end. Raises `PullError`."""
        if process.stdin is None or process.stdout is None:
            raise PullError("The process that pulls has no pipes.")
        process.stdin.write(msgspec.json.encode(errand) + b"\n")
        had_bytes = 0
        try:
            async with asyncio.timeout(STALL_S) as stalled:
                async for line in process.stdout:
                    word = msgspec.json.decode(line, type=Word)
                    if word.is_done:
                        return
                    if word.fault is not None:
                        raise PullError(word.fault, remedy=word.remedy)
                    if word.line is not None:
                        log.info("pull_told", command_id=command_id, line=word.line)
                    if word.done_bytes is not None:
                        self._advanced(command_id, word)
                        if word.done_bytes - had_bytes >= MIN_BYTES or word.done_bytes == word.size_bytes:
                            had_bytes = word.done_bytes
                            stalled.reschedule(asyncio.get_running_loop().time() + STALL_S)
        except TimeoutError as error:
            raise PullError(
                f"The source has brought less than {MIN_BYTES} bytes in {STALL_S:.0f} s.", remedy="Pull it again later."
            ) from error
        except (msgspec.MsgspecError, ValueError, OSError) as error:
            raise PullError(f"The process that pulls cannot be understood: {error}.") from error
        raise PullError(
            f"The process that pulls has ended with {await process.wait()}.", remedy="Look into the agent's log."
        )

    def _advanced(self, command_id: str, word: Word) -> None:
        row = self._rows[command_id]
        self._rows[command_id] = replace(row, done_bytes=word.done_bytes, size_bytes=word.size_bytes)
        if row.size_bytes is None:
            self._changed()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
