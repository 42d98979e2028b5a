"""A TCP line that cuts, stalls and is slow, between two ends that know nothing of it.

A fault belongs to one connection, in the order in which they are made; connections after the last fault are plain. The
bytes on the way to the client are those that count. What has passed when a line is cut arrives; nothing else does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

READ_BYTES = 16_384


@dataclass(frozen=True)
class Fault:
    """What becomes of one connection. after_bytes: to the client, until it ends or stalls; None for never.

    stalls: it stays open and brings nothing more, as when a host drops off its network. bytes_per_s: None for no limit.
    """

    after_bytes: int | None = None
    stalls: bool = False
    bytes_per_s: int | None = None


class BadLine:
    """The line. passed: bytes that each connection has brought to its client, oldest first."""

    def __init__(self, host: str, port: int, faults: Sequence[Fault]) -> None:
        self._upstream = host, port
        self._faults = list(faults)
        self.port = 0
        self.passed: list[int] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes a connection."""
        task = asyncio.create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.passed)
        self.passed.append(0)
        fault = self._faults[number] if number < len(self._faults) else Fault()
        far_reader, far_writer = await asyncio.open_connection(*self._upstream)
        upwards = asyncio.create_task(_pass_on(reader, far_writer))
        try:
            with suppress(OSError):
                await self._downwards(far_reader, writer, number, fault)
        finally:
            upwards.cancel()
            far_writer.close()
            # The bytes that have passed still arrive, and then the end.
            writer.close()

    async def _downwards(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, fault: Fault
    ) -> None:
        while True:
            room = READ_BYTES if fault.after_bytes is None else fault.after_bytes - self.passed[number]
            if room <= 0 and fault.stalls:
                await asyncio.Event().wait()
            if room <= 0 or not (content := await reader.read(min(READ_BYTES, room))):
                return
            writer.write(content)
            await writer.drain()
            self.passed[number] += len(content)
            if fault.bytes_per_s is not None:
                await asyncio.sleep(len(content) / fault.bytes_per_s)

    async def close(self) -> None:
        """Ends all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while content := await reader.read(READ_BYTES):
            writer.write(content)
            await writer.drain()


@asynccontextmanager
async def bad_line(port: int, *faults: Fault, host: str = "127.0.0.1") -> AsyncIterator[BadLine]:
    """A line to a listener of this machine, with a port of its own."""
    line = BadLine(host, port, faults)
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    line.port = server.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        server.close()
        await line.close()
