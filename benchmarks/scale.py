"""What a coordinator costs as its fleet grows. Run as `python -m benchmarks.scale`; takes about 5 minutes.

For each number of hosts: a real coordinator (`python -m moe2.coordinator run`), all hosts in another process
(`benchmarks.scale_fleet`, two experts each), and this load generator.

- `enrol_s`: from the first connection until all hosts, new to the coordinator, are enrolled and report.
- `idle_cpu_pct`: processor time of the coordinator while the hosts only report and nobody asks, of one core.
- `decision_p99_ms`: of the receipts' overhead, from a request's last byte to its dispatch, one request at a time.
- `cpu_ms_per_request`: processor time of the coordinator for each answer, eight connections busy; what the hosts'
  reports cost meanwhile is in it.
- `answer_kb`: mean size of an answer with its receipt.
- `page_hello_kb`: everything that a page gets before its first regular tick, after the requests above.
- `rss_mb`: resident memory of the coordinator after all that.
- `return_s`: from the start of a coordinator in the place of one that has ended until all hosts are back.

A request names no model and has an energy and a latency budget. The last line is one JSON object: figures by number of
hosts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic, perf_counter
from typing import IO
from urllib.parse import urlsplit

import msgspec
import uvloop

from benchmarks.http_load import KeepAliveConnection, LoadError
from benchmarks.overhead import cpu_time_s
from benchmarks.scale_fleet import EXPERTS_PER_HOST
from moe2.common.localclient import NotRunningError, fetch
from moe2.common.status import CoordinatorStatus

HOSTS = (10, 100, 1000, 3000)
START_S = 30.0
JOIN_S = 300.0
SETTLE_S = 2.0
LOOK_AGAIN_S = 0.2
N_CONNECTIONS = 8
MAX_HOSTS = 10_000
TOKEN = "benchmark"


class Coordinator:
    """A coordinator in a process of its own, that can be ended and started again in the same place."""

    def __init__(self, root: Path, log: IO[bytes]) -> None:
        self._root = root
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.api_url = self.agents_url = ""
        self._configure(api_port=0, agents_port=0)

    @property
    def pid(self) -> int:
        """The id of the running process."""
        assert self._process
        return self._process.pid

    @property
    def address(self) -> tuple[str, int]:
        """The host and port of the API."""
        parts = urlsplit(self.api_url)
        return parts.hostname or "", parts.port or 0

    async def start(self) -> None:
        """Starts the process and returns once it listens."""
        argv = (sys.executable, "-m", "moe2.coordinator", "run", "--config", str(self._root / "coordinator.toml"))
        self._process = await asyncio.to_thread(subprocess.Popen, argv, stderr=self._log)
        status = await self._status(by_s=monotonic() + START_S)
        self.api_url, self.agents_url = status.api_url, status.agents_url
        self._configure(api_port=self.address[1], agents_port=urlsplit(status.agents_url).port or 0)

    def stop(self) -> None:
        """Ends the process and waits for its end."""
        if self._process:
            self._process.terminate()
            self._process.wait()

    async def until_whole(self, n_hosts: int) -> None:
        """Returns once all hosts are connected and have reported their experts."""
        by_s = monotonic() + JOIN_S
        while True:
            status = await self._status(by_s=by_s)
            assert status.counts
            if status.counts.experts_ready == n_hosts * EXPERTS_PER_HOST:
                return
            if monotonic() > by_s:
                raise LoadError(f"{status.counts.connected} of {n_hosts} hosts are there after {JOIN_S:.0f} s.")
            # To say so is work for the coordinator, which looks at the whole fleet for it.
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _status(self, *, by_s: float) -> CoordinatorStatus:
        while self._process and self._process.poll() is None and monotonic() < by_s:
            try:
                content = await asyncio.to_thread(fetch, self._root / "socket", "/status?limit=1", timeout_s=START_S)
                status = msgspec.json.decode(content, type=CoordinatorStatus)
            except NotRunningError:
                status = None
            # The local socket answers before the listeners are open.
            if status and status.api_url:
                return status
            await asyncio.sleep(0.05)
        raise LoadError("The coordinator does not answer; see the log, kept with --log FILE.")

    def _configure(self, *, api_port: int, agents_port: int) -> None:
        root = self._root
        (root / "token").write_text(TOKEN)
        (root / "coordinator.toml").write_text(
            f'[coordinator]\nstate_dir = "{root}"\nsocket = "{root}/socket"\n[api]\nport = {api_port}\n'
            f'[agents]\nport = {agents_port}\ntoken_file = "{root}/token"\n'
            # All hosts have one address here.
            f"max_connections_per_address = {MAX_HOSTS}\n"
        )


class Hosts:
    """All fake hosts in a process of their own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def joined(self) -> float:
        """Waits until the process says that all hosts are connected, and returns when that was."""
        assert self._process.stdout
        line = await asyncio.wait_for(self._process.stdout.readline(), JOIN_S)
        if not line:
            raise LoadError("The hosts' process has ended; see the log, kept with --log FILE.")
        return float(json.loads(line)["at_s"])


@asynccontextmanager
async def hosts_of(coordinator: Coordinator, root: Path, n_hosts: int, log: IO[bytes]) -> AsyncIterator[Hosts]:
    """Starts the hosts; their process is ended afterwards."""
    argv = ("-m", "benchmarks.scale_fleet", "--url", coordinator.agents_url, "--hosts", str(n_hosts))
    token = ("--token-file", str(root / "token"))
    process = await asyncio.create_subprocess_exec(sys.executable, *argv, *token, stdout=subprocess.PIPE, stderr=log)
    try:
        yield Hosts(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def request() -> bytes:
    """A chat with both budgets, as a whole HTTP/1.1 request."""
    body = json.dumps(
        {
            "model": "moe2",
            "messages": [{"role": "user", "content": "What does a coordinator of edge language models do all day?"}],
            "max_tokens": 16,
            "temperature": 0.0,
            "moe2": {"energy_budget_j": 60.0, "latency_budget_s": 10.0},
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def connect(coordinator: Coordinator) -> KeepAliveConnection:
    """Opens a connection to the API."""
    _, connection = await asyncio.get_running_loop().create_connection(KeepAliveConnection, *coordinator.address)
    return connection


async def decisions_ms(coordinator: Coordinator, n_requests: int) -> list[float]:
    """The receipts' overheads of so many requests, one at a time, in milliseconds."""
    connection = await connect(coordinator)
    answers = [json.loads(await connection.request(request())) for _ in range(n_requests)]
    connection.transport.close()
    return [1000 * answer["moe2"]["seconds"]["overhead"] for answer in answers]


async def load(coordinator: Coordinator, duration_s: float) -> tuple[float, float]:
    """Milliseconds of processor time and bytes of each answer, with `N_CONNECTIONS` connections busy."""
    connections = [await connect(coordinator) for _ in range(N_CONNECTIONS)]
    wanted = request()
    sizes: list[int] = []
    start_s, start_cpu_s = perf_counter(), cpu_time_s(coordinator.pid)

    async def keep_busy(connection: KeepAliveConnection) -> None:
        while perf_counter() - start_s < duration_s:
            sizes.append(len(await connection.request(wanted)))

    await asyncio.gather(*map(keep_busy, connections))
    cpu_s = cpu_time_s(coordinator.pid) - start_cpu_s
    for connection in connections:
        connection.transport.close()
    return 1000 * cpu_s / len(sizes), statistics.mean(sizes)


async def idle_cpu_pct(coordinator: Coordinator, duration_s: float) -> float:
    """Processor time of the coordinator while nobody asks, in hundredths of a core."""
    start_s, start_cpu_s = perf_counter(), cpu_time_s(coordinator.pid)
    await asyncio.sleep(duration_s)
    return 100 * (cpu_time_s(coordinator.pid) - start_cpu_s) / (perf_counter() - start_s)


async def page_hello_bytes(coordinator: Coordinator) -> int:
    """Bytes that a page gets until it shows the fleet: all events before the second one called `tick`."""
    reader, writer = await asyncio.open_connection(*coordinator.address, limit=1 << 30)
    writer.write(b"GET /v1/moe2/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    n_bytes = n_ticks = 0
    while True:
        line = await asyncio.wait_for(reader.readline(), START_S)
        n_ticks += line.startswith(b"event: tick")
        if n_ticks == 2 or not line:
            writer.close()
            return n_bytes
        n_bytes += len(line)


def rss_mb(pid: int) -> float:
    """Memory that a process holds now (resident set, MB of 10^6 bytes), proc(5)."""
    match = re.search(r"^VmRSS:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match
    return int(match[1]) * 1024 / 1e6


async def measure(n_hosts: int, arguments: argparse.Namespace) -> dict[str, float]:
    """All figures of a fleet of `n_hosts`."""
    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moe2-scale-")))
        log = stack.enter_context((arguments.log or root / "log").open("ab"))
        coordinator = Coordinator(root, log)
        stack.callback(coordinator.stop)
        await coordinator.start()
        hosts = await stack.enter_async_context(hosts_of(coordinator, root, n_hosts, log))
        begun_s = await hosts.joined()
        await hosts.joined()
        await coordinator.until_whole(n_hosts)
        figures = {"enrol_s": monotonic() - begun_s}
        await asyncio.sleep(SETTLE_S)
        figures["idle_cpu_pct"] = await idle_cpu_pct(coordinator, arguments.idle_s)
        overheads_ms = await decisions_ms(coordinator, arguments.requests)
        figures["decision_p99_ms"] = statistics.quantiles(overheads_ms, n=100, method="inclusive")[98]
        figures["cpu_ms_per_request"], size = await load(coordinator, arguments.load_s)
        figures["answer_kb"] = size / 1000
        figures["page_hello_kb"] = await page_hello_bytes(coordinator) / 1000
        figures["rss_mb"] = rss_mb(coordinator.pid)
        coordinator.stop()
        started_s = monotonic()
        await coordinator.start()
        await hosts.joined()
        await coordinator.until_whole(n_hosts)
        figures["return_s"] = monotonic() - started_s
    print(f"{n_hosts} hosts: " + ", ".join(f"{name} {value:.2f}" for name, value in figures.items()), flush=True)
    return {name: round(value, 3) for name, value in figures.items()}


async def measure_all(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The figures of every fleet that was asked for, by its number of hosts."""
    return {str(n_hosts): await measure(n_hosts, arguments) for n_hosts in arguments.hosts}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, nargs="+", default=HOSTS, help="numbers of hosts (%(default)s)")
    parser.add_argument("--idle-s", type=float, default=15.0, help="seconds of rest that are measured (%(default)s)")
    parser.add_argument("--requests", type=int, default=300, help="requests for the decision's time (%(default)s)")
    parser.add_argument("--load-s", type=float, default=5.0, help="seconds of load (%(default)s)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep the logs of coordinator and hosts here")
    arguments = parser.parse_args(argv)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    print(json.dumps(uvloop.run(measure_all(arguments))))


if __name__ == "__main__":
    main()
