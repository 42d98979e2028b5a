"""A hostile client in a process of its own: `python -m tests.fakes.attacker ATTACK HOST PORT [KEY]`.

It attacks with many connections, again and again, until it is killed, and says "attacking" when the first ones are up.
"""

from __future__ import annotations

import asyncio
import gzip
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

N_CONNECTIONS = 60
N_IDLE = 400
PAUSE_S = 0.5
"""Between two requests of one connection's place; the places are spread over it. The attack is what each request costs:
so many ordinary ones at once would hold others up, too, where the machine is slow."""
BOMB_BYTES = 200_000_000


@asynccontextmanager
async def attack(name: str, host: str, port: int, key: str = "") -> AsyncIterator[None]:
    """An attack that is under way for the length of the block."""
    argv = (sys.executable, "-m", "tests.fakes.attacker", name, host, str(port), key)
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    try:
        assert await process.stdout.readline() == b"attacking\n"
        yield
    finally:
        process.kill()
        await process.wait()


def _head(key: str, *headers: str, path: str = "/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _bomb(key: str) -> bytes:
    """194 kB that unpack to 200 MB."""
    packed = gzip.compress(bytes(BOMB_BYTES))
    return _head(key, "Content-Encoding: gzip", f"Content-Length: {len(packed)}") + packed


def _nested(key: str) -> bytes:
    packed = gzip.compress(gzip.compress(bytes(BOMB_BYTES)))
    return _head(key, "Content-Encoding: gzip, gzip", f"Content-Length: {len(packed)}") + packed


def _chunks(key: str) -> bytes:
    """A body of one-byte chunks, each of which costs the parser as much as a large one."""
    return _head(key, "Transfer-Encoding: chunked") + 200_000 * b"1\r\nx\r\n"


def _expecting(key: str) -> bytes:
    """It asks for leave to send its bomb, and sends it without."""
    packed = gzip.compress(bytes(BOMB_BYTES))
    headers = ("Content-Encoding: gzip", "Expect: 100-continue", f"Content-Length: {len(packed)}")
    return _head(key, *headers) + packed


def _long(path: str, body: str) -> Callable[[str], bytes]:
    def request(key: str) -> bytes:
        return _head(key, f"Content-Length: {len(body)}", path=path) + body.encode()

    return request


ATTACKS: dict[str, Callable[[str], bytes]] = {
    "bomb": _bomb,
    "nested": _nested,
    "chunks": _chunks,
    "expecting": _expecting,
}
_MESSAGES = ",".join(['{"role": "user", "content": "b"}'] * 8_000)
_CHAT = '{"model": "moe2", "messages": [{"role": "user", "content": "a"}], '
LONG_BODIES: dict[str, Callable[[str], bytes]] = {
    "ids": _long("/v1/completions", f'{{"model": "moe2", "prompt": {[*range(500_000)]}}}'.replace(", ", ",")),
    "vectors": _long("/v1/embeddings", f'{{"model": "moe2", "input": {["ab"] * 60_000}}}'.replace("'", '"')),
    "exponents": _long("/v1/chat/completions", _CHAT + f'"metadata": {{"a": [{",".join(["1.5e300"] * 400_000)}]}}}}'),
    "digits": _long("/v1/chat/completions", _CHAT + f'"metadata": {{"a": [{",".join([4_000 * "9"] * 1_000)}]}}}}'),
    "messages": _long("/v1/chat/completions", f'{{"model": "moe2", "messages": [{_MESSAGES}]}}'),
}
"""Bodies that take long to parse, each from one connection."""
IDLE = "idle"
"""Connections that send the beginning of a header, and no more."""


async def _send_again_and_again(host: str, port: int, request: bytes, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(request)
            with suppress(ConnectionError):
                await asyncio.wait_for(reader.read(64), 30)
            writer.transport.abort()
        await asyncio.sleep(PAUSE_S)


async def _attack(name: str, host: str, port: int, key: str) -> None:
    idle = [await asyncio.open_connection(host, port) for _ in range(N_IDLE if name == IDLE else 0)]
    for _, writer in idle:
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: lo")
    request = b"" if name == IDLE else (ATTACKS | LONG_BODIES)[name](key)
    n_connections = 0 if name == IDLE else 1 if name in LONG_BODIES else N_CONNECTIONS
    async with asyncio.TaskGroup() as tasks:
        for place in range(n_connections):
            tasks.create_task(_send_again_and_again(host, port, request, PAUSE_S * place / n_connections))
        await asyncio.sleep(PAUSE_S)
        print("attacking", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_attack(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
