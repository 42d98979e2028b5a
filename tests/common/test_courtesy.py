"""How a file goes out without filling the queues on its way."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from moe2.common.courtesy import MAX_QUEUED_S, Courtesy, LineFacts, PacedLine, facts_of

STEP_S = 0.02
SO_MAX_PACING_RATE = 47


class Bottleneck:
    """A link of this rate with a buffer before it. A sender without a rate keeps the buffer full, as TCP does."""

    def __init__(self, bytes_per_s: float, *, least_rtt_s: float = 0.002, buffer_s: float = 0.05) -> None:
        self.bytes_per_s, self.least_rtt_s, self.buffer_s = bytes_per_s, least_rtt_s, buffer_s
        self.queued_s = self.acked_bytes = self.now_s = 0.0

    def step(self, rate: int | None) -> LineFacts:
        """A step later."""
        offered = self.bytes_per_s * 2 if rate is None else rate
        self.queued_s = min(self.buffer_s, self.queued_s + STEP_S * (offered / self.bytes_per_s - 1.0))
        sent_s = STEP_S + min(0.0, self.queued_s)
        self.queued_s = max(0.0, self.queued_s)
        self.acked_bytes += sent_s * self.bytes_per_s
        self.now_s += STEP_S
        return LineFacts(self.least_rtt_s + self.queued_s, self.least_rtt_s, int(self.acked_bytes))


@pytest.mark.parametrize("bytes_per_s", [400_000.0, 25_000_000.0, 1_200_000_000.0])
def test_the_queue_is_emptied_and_the_link_stays_used(bytes_per_s: float) -> None:
    """What others wait for falls from the whole buffer to a few milliseconds, at nine tenths of the rate or more."""
    link, courtesy, rate = Bottleneck(bytes_per_s), Courtesy(), None
    waits = []
    for number in range(500):
        rate = courtesy.next_rate(link.step(rate), link.now_s)
        if number == 100:
            settled_bytes = link.acked_bytes
        if number >= 100:
            waits.append(link.queued_s)
    assert max(waits) < 3 * MAX_QUEUED_S < link.buffer_s / 2
    assert (link.acked_bytes - settled_bytes) / (399 * STEP_S) > 0.9 * bytes_per_s


def test_a_link_that_nothing_fills_is_not_slowed() -> None:
    """As long as round trips stay near their least there is no rate at all."""
    courtesy = Courtesy()
    for number in range(100):
        facts = LineFacts(0.030 + 0.003 * (number % 2), 0.030, 100_000 * number)
        assert courtesy.next_rate(facts, STEP_S * number) is None


def test_round_trips_that_vary_by_themselves_do_not_starve_it() -> None:
    """A radio link's are long whatever is sent: what does not change by sending less is no reason to send less."""
    courtesy, acked, rate = Courtesy(), 0.0, None
    for number in range(1, 1000):
        acked += STEP_S * min(2_000_000.0, rate or 2_000_000.0)
        rate = courtesy.next_rate(LineFacts(0.060, 0.005, int(acked)), STEP_S * number)
    assert rate is not None
    assert rate > 1_500_000


def test_a_link_that_becomes_free_is_used_again() -> None:
    """The rate doubles within a second."""
    link, courtesy, rate = Bottleneck(1_000_000.0), Courtesy(), None
    for _ in range(100):
        rate = courtesy.next_rate(link.step(rate), link.now_s)
    assert rate is not None
    before, link.bytes_per_s = rate, 10_000_000.0
    for _ in range(50):
        rate = courtesy.next_rate(link.step(rate), link.now_s)
    assert rate is not None
    assert rate > 2 * before


async def test_the_kernel_tells_and_keeps_the_rate() -> None:
    """Of a real connection: bytes that were taken, a round trip, and the rate that was asked for."""
    received = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1_000_000)
        received.set()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(bytes(1_000_000))
        await received.wait()
        connection: socket.socket = writer.get_extra_info("socket")
        facts = facts_of(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256))
        assert facts.acked_bytes == pytest.approx(1_000_000, abs=2)
        assert 0 < facts.least_rtt_s <= 1
        line = PacedLine(writer.transport)
        line._courtesy.rate = 3_000_000.0
        line.look(0.0)
        kept = connection.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8)
        assert struct.unpack("=I", kept[:4]) == (3_000_000,)
        writer.close()


def test_what_is_no_tcp_goes_as_fast_as_it_goes() -> None:
    """A Unix socket has no such facts, and a short answer of the kernel is none."""
    one, other = socket.socketpair()

    class Transport(asyncio.Transport):
        def get_extra_info(self, name: str, default: object = None) -> object:
            return one if name == "socket" else default

    line = PacedLine(Transport())
    line.look(0.0)
    line.look(1.0)
    PacedLine(None).look(0.0)
    with pytest.raises(struct.error):
        facts_of(bytes(100))
    one.close()
    other.close()
