"""A fleet over a network that loses packets: `unshare --net python -m tests.fakes.lossylink ROOT --loss 0.05 ...`.

Coordinator and agent are in network namespaces of their own, joined by two TUN devices whose packets this process
passes on: late, not all of them, and no faster than the link. So the kernel's own TCP does what it does in the field,
also where the kernel has no netem (tc-netem(8)). Nothing outside the namespaces is touched, and nothing of it stays.

Prints one JSON object: `answers`, each with text and status; `lost` and `passed` packets; `connections` of the agent.
Exits with `CANNOT_JOIN` and says why where the kernel or the rights do not allow it.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import structlog

from tests.fakes.fleet import TOKEN, fleet

CANNOT_JOIN = 77
HERE, THERE = "10.9.0.1", "10.9.0.2"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
PACKET_BYTES = 2048


class CannotJoinError(Exception):
    """The kernel or the rights do not allow it."""


def open_tun(address: str, peer: str) -> int:
    """A TUN device in this namespace; returns its descriptor. Raises `CannotJoinError`."""
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"far0", IFF_TUN | IFF_NO_PI))
        for command in (
            ("ip", "link", "set", "lo", "up"),
            ("ip", "address", "add", address, "peer", peer, "dev", "far0"),
            ("ip", "link", "set", "far0", "mtu", "1400", "up"),
        ):
            subprocess.run(command, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CannotJoinError(str(error)) from error
    return device


class Link:
    """Passes packets from one device to the other. rate_bytes_per_s: each way."""

    def __init__(self, *, loss: float, delay_s: float, jitter_s: float, rate_bytes_per_s: float, seed: int) -> None:
        self._loss, self._delay_s, self._jitter_s, self._rate = loss, delay_s, jitter_s, rate_bytes_per_s
        self._random = Random(seed)
        self._free_at_s: dict[int, float] = {}
        self.lost = self.passed = 0

    def join(self, one: int, other: int) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(one, self._read, one, other)
        loop.add_reader(other, self._read, other, one)

    def _read(self, source: int, target: int) -> None:
        packet = os.read(source, PACKET_BYTES)
        if self._random.random() < self._loss:
            self.lost += 1
            return
        self.passed += 1
        loop = asyncio.get_running_loop()
        sent_s = max(loop.time(), self._free_at_s.get(target, 0.0)) + len(packet) / self._rate
        self._free_at_s[target] = sent_s
        late_s = self._delay_s + self._random.uniform(-self._jitter_s, self._jitter_s)
        loop.call_at(sent_s + late_s, _write, target, packet)


def _write(target: int, packet: bytes) -> None:
    with suppress(OSError):  # The device is full, or gone: one more lost packet.
        os.write(target, packet)


async def run(root: Path, link: Link, requests: int, tokens: int) -> dict[str, Any]:
    """Requests, some of them at once, to an agent at the other end."""
    device = open_tun(HERE, THERE)
    path = root / "device.sock"
    words = " ".join(f"w{number}" for number in range(tokens))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        async with fleet(root, agents=(), listener={"host": HERE, "allow_plaintext": True, "heartbeat_s": 5.0}) as here:
            (root / "far.token").write_text(TOKEN)
            argv = ("unshare", "--net", sys.executable, "-m", "tests.fakes.lossylink", str(root))
            with (root / "far.log").open("wb") as log:
                far = await asyncio.create_subprocess_exec(
                    *argv, "--agent-of", here.coordinator.agents_url, stdout=log, stderr=log
                )
            try:
                connection, _ = await asyncio.to_thread(listener.accept)
                with connection:
                    _, [other], _, _ = await asyncio.to_thread(socket.recv_fds, connection, 1, 1)
                link.join(device, other)
                await here.until(ready=1)
                answers = await asyncio.gather(*(ask(here, words, tokens) for _ in range(requests)))
                await here.quiet()
            finally:
                far.kill()
                await far.wait()
    return {"answers": answers, "lost": link.lost, "passed": link.passed}


async def ask(here: Any, words: str, tokens: int) -> dict[str, Any]:
    async with await here.chat(words, max_tokens=tokens) as answer:
        body = await answer.json()
    text = body["choices"][0]["message"]["content"] if "choices" in body else ""
    outcomes = [line["outcome"] for line in body["moe2"]["experts"]]
    return {"status": answer.status, "text": text, "is_whole": text.split() == words.split(), "outcomes": outcomes}


def be_agent(root: Path, url: str) -> None:
    """The other end: open the device, hand it to whoever passes the packets, become the agent."""
    device = open_tun(THERE, HERE)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(root / "device.sock"))
        socket.send_fds(connection, [b"."], [device])
    argv = (sys.executable, "-m", "tests.fakes.agentprocess", str(root), "far", url, "-", "--seconds-per-token", "0.01")
    os.execv(sys.executable, argv)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--agent-of")
    parser.add_argument("--loss", type=float, default=0.05)
    parser.add_argument("--delay-s", type=float, default=0.1)
    parser.add_argument("--jitter-s", type=float, default=0.02)
    parser.add_argument("--rate-bytes-per-s", type=float, default=32_000.0)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        if options.agent_of:
            be_agent(options.root, options.agent_of)
        link = Link(
            loss=options.loss,
            delay_s=options.delay_s,
            jitter_s=options.jitter_s,
            rate_bytes_per_s=options.rate_bytes_per_s,
            seed=options.seed,
        )
        found = asyncio.run(run(options.root, link, options.requests, options.tokens))
    except CannotJoinError as error:
        print(error, file=sys.stderr)
        sys.exit(CANNOT_JOIN)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
