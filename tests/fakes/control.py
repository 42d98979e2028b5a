"""The test's end of a fake expert's control socket: holds it in a phase until the test lets it go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class ExpertControl:
    """Gates of one or more fake experts. Each asks before a step and waits for the answer.

    `free` lets every further step pass unasked.
    """

    def __init__(self) -> None:
        self._asked: asyncio.Queue[Step] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self.free = False

    async def next_phase(self) -> Step:
        """Wait until an expert asks; it stands still until the returned step is answered."""
        async with asyncio.timeout(60):
            return await self._asked.get()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        while line := await reader.readline():
            step = Step(line.decode().strip(), writer)
            if self.free:
                step.answer()
            else:
                self._asked.put_nowait(step)
        writer.close()

    def release(self) -> None:
        """Let everything pass from now on."""
        self.free = True
        while not self._asked.empty():
            self._asked.get_nowait().answer()

    def close(self) -> None:
        """End every connection: a socket must not outlive the test."""
        for writer in self._writers:
            writer.transport.abort()


class Step:
    """One step that an expert waits to take."""

    def __init__(self, phase: str, writer: asyncio.StreamWriter) -> None:
        self.phase = phase
        self._writer = writer

    def answer(self, word: str = "go") -> None:
        # One whose process was killed has nobody to tell; uvloop raises where asyncio's own loop drops what is written.
        if not self._writer.is_closing():
            self._writer.write(f"{word} {self.phase}\n".encode())


@asynccontextmanager
async def expert_control(path: Path) -> AsyncIterator[ExpertControl]:
    """Listen at `path` for fake experts started with `--control path`."""
    control = ExpertControl()
    server = await asyncio.start_unix_server(control.serve, path)
    try:
        yield control
    finally:
        control.release()
        server.close()
        control.close()
        # One turn of the loop, in which they end.
        await asyncio.sleep(0)
