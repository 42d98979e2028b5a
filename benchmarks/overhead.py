"""What the coordinator adds, and how much it carries. Run as `python -m benchmarks.overhead`; takes about 1.5 minutes.

Three processes on this machine: a real coordinator (`python -m moe2.coordinator run`), a fake agent whose experts take
no time (`benchmarks.fake_agent`, with the real agent's link), and this load generator.

- Added latency: a chat completion over HTTP through the coordinator, minus the same job sent to the same agent
  directly. "Directly" means that this process is itself a minimal hub to which the agent is connected too: it sends a
  ready-made `Submit` and waits for the bytes of `JobDone`. The two are paired and interleaved at concurrency 1.
- Requests per second: non-streaming, over several keep-alive connections that are never idle.
- Streams held: the largest number of concurrent SSE streams, one token per 50 ms each, with no gap above 150 ms at the
  client on any of them, and with every token there. Found by doubling, then bisection. A count that fails is tried
  once more: another process on the machine must not look like the coordinator's limit.

Medians over rounds; the spread is printed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import IO
from urllib.parse import urlsplit

import msgspec
import uvloop
from aiohttp import web

from benchmarks.fake_agent import INSTANT, PACED, TOKEN_INTERVAL_S, TOKEN_TEXT
from benchmarks.http_load import EventStream, KeepAliveConnection, LoadError, chat_request
from moe2.common.generation import Sampling
from moe2.common.link.messages import PROTOCOL_VERSION, Submit, Welcome
from moe2.common.link.prompts import ChatMessage, ChatPrompt
from moe2.common.link.wire import wire_codec
from moe2.common.localclient import NotRunningError, fetch
from moe2.common.status import CoordinatorStatus

AGENTS_PATH = "/v1/agents"
ANSWER_TOKENS = 16
STALL_S = 0.150
START_S = 20.0
FIRST_STREAMS = 64
RESOLUTION = 1 / 8


class DirectHub:
    """The least that an agent needs on the other side, so that jobs can be sent to it without a coordinator."""

    def __init__(self) -> None:
        self._codec = wire_codec()
        self._websocket: web.WebSocketResponse | None = None
        self._done: asyncio.Future[None] | None = None
        self.connected = asyncio.Event()

    async def accept(self, request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse(compress=False)
        await websocket.prepare(request)
        await websocket.receive_bytes()  # hello
        welcome = Welcome(
            protocol=PROTOCOL_VERSION,
            coordinator_id="direct",
            coordinator_version="0",
            heartbeat_s=3600.0,
            report_s=3600.0,
            max_frame_bytes=self._codec.max_frame_bytes,
        )
        await websocket.send_bytes(self._codec.encode(welcome))
        self._websocket = websocket
        self.connected.set()
        async for frame in websocket:
            # Not decoded: whatever this end spends would be taken off the coordinator's bill.
            if self._done and not self._done.done() and b"job_done" in frame.data:
                self._done.set_result(None)
        return websocket

    def submit(self, number: int) -> bytes:
        """The frame of a job like the one that the coordinator makes of `chat_request`."""
        body = json.loads(chat_request(model=INSTANT, max_tokens=ANSWER_TOKENS, stream=False).partition(b"\r\n\r\n")[2])
        submit = Submit(
            job_id=f"direct-{number}",
            request_id=f"direct-{number}",
            model=INSTANT,
            prompt=ChatPrompt(messages=tuple(ChatMessage(**message) for message in body["messages"])),
            sampling=Sampling(temperature=0.0),
            max_tokens=ANSWER_TOKENS,
        )
        return self._codec.encode(submit)

    async def run_job(self, frame: bytes) -> None:
        """Send a `Submit` and wait for its `JobDone`."""
        assert self._websocket is not None
        self._done = asyncio.get_running_loop().create_future()
        await self._websocket.send_bytes(frame)
        await self._done


@dataclass
class Bench:
    """What the measurements need."""

    hub: DirectHub
    host: str
    port: int
    coordinator_pid: int

    async def connect(self) -> KeepAliveConnection:
        _, connection = await asyncio.get_running_loop().create_connection(KeepAliveConnection, self.host, self.port)
        return connection


@asynccontextmanager
async def running(log_path: Path | None) -> AsyncIterator[Bench]:
    """Coordinator, agent and direct hub, connected and ready; ended afterwards."""
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moe2-overhead-")))
        hub = DirectHub()
        direct_url = await _serve(stack, hub)
        (root / "token").write_text("benchmark")
        (root / "coordinator.toml").write_text(
            f'[coordinator]\nstate_dir = "{root}"\nsocket = "{root}/socket"\n'
            f'[api]\nport = 0\nmax_active_requests = 4096\n[agents]\nport = 0\ntoken_file = "{root}/token"\n'
        )
        # Logged as in service, at the default level.
        log = stack.enter_context((log_path or root / "log").open("wb"))
        coordinator = _start(stack, log, "-m", "moe2.coordinator", "run", "--config", str(root / "coordinator.toml"))
        status = await _status(root / "socket", coordinator, choosable=False)
        urls = ("--url", status.agents_url, "--url", direct_url)
        _start(stack, log, "-m", "benchmarks.fake_agent", *urls, "--token-file", str(root / "token"))
        await _status(root / "socket", coordinator, choosable=True)
        await asyncio.wait_for(hub.connected.wait(), START_S)
        address = urlsplit(status.api_url)
        yield Bench(hub, address.hostname or "", address.port or 0, coordinator.pid)


async def _serve(stack: AsyncExitStack, hub: DirectHub) -> str:
    app = web.Application()
    app.router.add_get(AGENTS_PATH, hub.accept)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"ws://127.0.0.1:{runner.addresses[0][1]}"


def _start(stack: AsyncExitStack, log: IO[bytes], *argv: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, *argv], stderr=log)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process


async def _status(socket_path: Path, process: subprocess.Popen[bytes], *, choosable: bool) -> CoordinatorStatus:
    """The coordinator's status once it answers and, where asked for, knows an expert."""
    deadline_s = perf_counter() + START_S
    while process.poll() is None and perf_counter() < deadline_s:
        try:
            status = msgspec.json.decode(await asyncio.to_thread(fetch, socket_path, "/status"), type=CoordinatorStatus)
        except NotRunningError:
            pass
        else:
            # The local socket answers before the listeners are open.
            if status.api_url and (not choosable or any(row.experts for row in status.agents)):
                return status
        await asyncio.sleep(0.05)
    if process.poll() is not None:
        raise LoadError(f"The coordinator ended with {process.returncode}; see the log, kept with --log FILE.")
    missing = "The agent did not join" if choosable else "The coordinator did not start"
    raise LoadError(f"{missing} within {START_S:.0f} s; see the log, kept with --log FILE.")


# --- Measurements -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Seconds of the same job through the coordinator and direct."""

    through_s: float
    direct_s: float

    @property
    def added_ms(self) -> float:
        return 1000 * (self.through_s - self.direct_s)


async def latency_pairs(bench: Bench, *, n_pairs: int) -> list[Pair]:
    """Both ways, interleaved, one request at a time."""
    connection = await bench.connect()
    request = chat_request(model=INSTANT, max_tokens=ANSWER_TOKENS, stream=False)

    async def through() -> float:
        start_s = perf_counter()
        await connection.request(request)
        return perf_counter() - start_s

    async def direct(number: int) -> float:
        frame = bench.hub.submit(number)
        start_s = perf_counter()
        await bench.hub.run_job(frame)
        return perf_counter() - start_s

    pairs = []
    for number in range(n_pairs):
        # Each goes first in half of the pairs.
        if number % 2:
            direct_s = await direct(number)
            through_s = await through()
        else:
            through_s = await through()
            direct_s = await direct(number)
        pairs.append(Pair(through_s, direct_s))
    connection.transport.close()
    return pairs


@dataclass(frozen=True)
class Load:
    """One throughput round. cpu_ms_per_request: processor time of the coordinator alone."""

    requests_per_s: float
    cpu_ms_per_request: float


async def throughput(bench: Bench, *, n_connections: int, duration_s: float) -> Load:
    """Answered requests per second with all connections busy all the time."""
    connections = [await bench.connect() for _ in range(n_connections)]
    request = chat_request(model=INSTANT, max_tokens=ANSWER_TOKENS, stream=False)
    start_s, start_cpu_s = perf_counter(), cpu_time_s(bench.coordinator_pid)

    async def keep_busy(connection: KeepAliveConnection) -> int:
        n_answers = 0
        while perf_counter() - start_s < duration_s:
            await connection.request(request)
            n_answers += 1
        return n_answers

    n_answers = sum(await asyncio.gather(*map(keep_busy, connections)))
    elapsed_s, cpu_s = perf_counter() - start_s, cpu_time_s(bench.coordinator_pid) - start_cpu_s
    for connection in connections:
        connection.transport.close()
    return Load(n_answers / elapsed_s, 1000 * cpu_s / n_answers)


async def largest_stream_gap(bench: Bench, *, n_streams: int, n_tokens: int) -> float:
    """The longest silence on any of so many concurrent streams, in seconds. Raises `LoadError` if tokens are lost."""
    loop = asyncio.get_running_loop()
    request = chat_request(model=PACED, max_tokens=n_tokens, stream=True)
    streams: list[EventStream] = []
    start_s = perf_counter()
    for number in range(n_streams):
        # Opened evenly over one second: clients do not all arrive in the same millisecond.
        await asyncio.sleep(max(0.0, start_s + number / n_streams - perf_counter()))
        _, stream = await loop.create_connection(lambda: EventStream(request), bench.host, bench.port)
        streams.append(stream)
    answers = await asyncio.gather(*(stream.finished for stream in streams))
    for answer in answers:
        n_received = answer.count(TOKEN_TEXT.encode())
        if n_received != n_tokens:
            raise LoadError(f"A stream carried {n_received} of {n_tokens} tokens.")
    return max(stream.largest_gap_s for stream in streams)


async def streams_held(bench: Bench, *, most: int, duration_s: float) -> int:
    """The largest number of streams held without a stall, to within `RESOLUTION`; 0 if not even the first step."""
    n_tokens = round(duration_s / TOKEN_INTERVAL_S)

    async def holds(n_streams: int) -> bool:
        for _ in range(2):
            gap_s = await largest_stream_gap(bench, n_streams=n_streams, n_tokens=n_tokens)
            print(f"  {n_streams:5d} streams: largest gap {1000 * gap_s:.0f} ms", flush=True)
            if gap_s <= STALL_S:
                return True
        return False

    held, n_streams = 0, FIRST_STREAMS
    while n_streams <= most and await holds(n_streams):
        held, n_streams = n_streams, 2 * n_streams
    if held == 0 or n_streams > most:
        return held
    failed = n_streams
    while failed - held > RESOLUTION * held:
        middle = (held + failed) // 2
        if await holds(middle):
            held = middle
        else:
            failed = middle
    return held


def cpu_time_s(pid: int) -> float:
    """Processor time that a process has used so far, user and system, proc_pid_stat(5)."""
    # The command's name, in parentheses, may hold spaces; utime and stime are fields 14 and 15, counted from 1.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_rss_mb(pid: int) -> float:
    """The most memory (resident set, MB of 10^6 bytes) that a process has held so far, proc(5)."""
    match = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match
    return int(match[1]) * 1024 / 1e6


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _median(name: str, values: list[float]) -> float:
    """The median, printed with the spread."""
    median = statistics.median(values)
    print(f"{name}: {median:.2f} (rounds: {min(values):.2f} to {max(values):.2f})", flush=True)
    return median


async def measure(arguments: argparse.Namespace) -> dict[str, float]:
    async with running(arguments.log) as bench:
        await latency_pairs(bench, n_pairs=200)  # warm-up
        # The generator's own garbage collection would show as the coordinator's latency.
        gc.freeze()
        rounds = [await latency_pairs(bench, n_pairs=arguments.pairs) for _ in range(arguments.rounds)]
        direct = [[1000 * pair.direct_s for pair in pairs] for pairs in rounds]
        _median("direct p50 [ms]", [_percentile(direct_ms, 50) for direct_ms in direct])
        # High where the machine is busy with other things: the added p99 is then theirs, not the coordinator's.
        _median("direct p99 [ms]", [_percentile(direct_ms, 99) for direct_ms in direct])
        added = [[pair.added_ms for pair in pairs] for pairs in rounds]
        figures = {
            "added_p50_ms": _median("added p50 [ms]", [_percentile(added_ms, 50) for added_ms in added]),
            "added_p99_ms": _median("added p99 [ms]", [_percentile(added_ms, 99) for added_ms in added]),
        }
        loads = [
            await throughput(bench, n_connections=arguments.connections, duration_s=arguments.load_s)
            for _ in range(arguments.rounds)
        ]
        # What neither neighbours nor the load generator can blur: compare this between two builds on a busy machine.
        _median("coordinator CPU per request [ms]", [load.cpu_ms_per_request for load in loads])
        figures["requests_per_s"] = _median("requests per second", [load.requests_per_s for load in loads])
        held = await streams_held(bench, most=arguments.most_streams, duration_s=arguments.stream_s)
        print(f"streams held: {held}", flush=True)
        figures["streams_held"] = held
        figures["coordinator_rss_mb"] = peak_rss_mb(bench.coordinator_pid)
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="repeats of latency and throughput (%(default)s)")
    parser.add_argument("--pairs", type=int, default=800, help="pairs of requests per latency round (%(default)s)")
    parser.add_argument("--connections", type=int, default=16, help="keep-alive connections (%(default)s)")
    parser.add_argument("--load-s", type=float, default=2.0, help="length of a throughput round (%(default)s)")
    parser.add_argument("--stream-s", type=float, default=3.0, help="length of each paced stream (%(default)s)")
    parser.add_argument("--most-streams", type=int, default=1024, help="stop the search here (%(default)s)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep the logs of coordinator and agent here")
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    print(json.dumps(uvloop.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
