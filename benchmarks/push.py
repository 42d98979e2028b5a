"""What a push costs, against `curl` of the same file: `python -m benchmarks.push`. Prints one line of JSON at the end.

A real coordinator and three real agents, each a process of its own. One has the real SmolLM2, which is exchanged under
load; one takes a file; one answers what is asked meanwhile, with an engine that takes 20 ms for a token and no
processor: all processes share this machine's cores, which real hosts do not (`--shared-cores` has SmolLM2 answer). As
root the whole run is in a network namespace of its own, whose loopback is shaped by tc-tbf(8) to `--link`; otherwise
the loopback is as it is.

push_vs_curl_ratio: bytes per second of the bytes' way, median of the rounds, over those of curl in the same run.
push_whole_ratio: the same with what comes before and after it (llama.cpp asked, the checksum compared).
requests_lost: answers that were no 200, while the model was exchanged `swaps` times under load and while files were
pushed. p99_added_ratio: requests run all the time while windows with a push and windows without one take turns, in a
changing order; each window has a 99th percentile of its requests' seconds, each pair of windows a ratio of the two, and
the figure is the median of these ratios less 1. p99_ratios has all of them: how far they are apart says what the median
is worth. A push has the settings that `[push]` has by default, which limit no bandwidth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp

from moe2.agent.models.files import ChecksumStore
from moe2.agent.models.library import Library, LibraryFile
from moe2.common.localclient import NotRunningError, fetch
from tests.fakes.agentprocess import agent_process
from tests.fakes.coordinatorprocess import CoordinatorProcess
from tests.models import smollm2_path

TOKEN = "a-benchmark-token"
POLL_S = 0.02
SELDOM_S = 0.5
"""How often a push is looked at whose rate is not measured: each look takes the cores that answers need."""
INSIDE = "MOE2_PUSH_BENCHMARK_LINK"
MODEL = "smollm2"
PROMPT = "Say one two three four five six seven"
STEADY = ("--seconds-per-token", "0.02")
"""What the engine takes that needs no processor."""


def shaped(link: str) -> str | None:
    """Runs the rest in a namespace with such a link, where that is possible; returns the link inside, or None."""
    if os.environ.get(INSIDE):
        return os.environ[INSIDE]
    if os.geteuid() != 0 or shutil.which("tc") is None:
        return None
    commands = f"ip link set lo up && tc qdisc add dev lo root tbf rate {link} burst 128kb latency 50ms"
    if subprocess.run(("unshare", "--net", "sh", "-c", commands), check=False, capture_output=True).returncode:
        return None
    argv = (sys.executable, "-m", "benchmarks.push", *sys.argv[1:])
    script = f'{commands} && exec "$@"'
    os.environ[INSIDE] = link
    return os.execvp("unshare", ("unshare", "--net", "sh", "-c", script, "sh", *argv))


@asynccontextmanager
async def agent(root: Path, name: str, url: str) -> AsyncIterator[None]:
    """An agent that takes what the coordinator sends and says."""
    (root / f"{name}.token").write_text(TOKEN)
    config = root / f"{name}.toml"
    config.write_text(
        f'[agent]\nname = "{name}"\nstate_dir = "{root / name}"\nsocket = "{root / name}.sock"\n'
        f'[coordinator]\nurl = "{url}"\ntoken_file = "{root / name}.token"\n'
        "[models_from]\ncoordinator = true\n[measuring]\nenabled = false\n"
    )
    argv = (sys.executable, "-m", "moe2.agent", "run", "--config", str(config))
    with (root / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            await process.wait()


def stock(root: Path, name: str) -> None:
    """Puts the real model into an agent's folder."""
    library = Library(root / name)
    path = library.ready() / f"{MODEL}.gguf"
    shutil.copyfile(smollm2_path(), path)
    sha256 = ChecksumStore(root / name).sha256(path)
    size_bytes = path.stat().st_size
    library.add(LibraryFile(name=path.name, size_bytes=size_bytes, sha256=sha256, origin="benchmark", added_unix_s=0.0))


async def asked(root: Path, route: str, body: dict[str, Any] | None = None) -> Any:
    """What the coordinator answers on its local socket."""
    content = None if body is None else json.dumps(body).encode()
    return json.loads(await asyncio.to_thread(fetch, root / "coordinator.sock", route, body=content, timeout_s=60.0))


async def until_taking(root: Path, *names: str) -> None:
    """Waits until these agents are there and have told of their folders."""
    async with asyncio.timeout(60):
        while True:
            try:
                rows = (await asked(root, "/status"))["agents"]
            except NotRunningError:
                rows = []
            told = {row["agent_name"]: row["models"] for row in rows if row["models"]}
            if all(name in told and told[name].get("free_bytes") for name in names):
                return
            await asyncio.sleep(POLL_S)


async def order(root: Path, verb: str, **fields: Any) -> None:
    """An order about the model of the first agent, to its end."""
    given = await asked(root, "/v1/moe2/orders", {"verb": verb, "name": MODEL, "hosts": ["one"], **fields})
    command_id = given["orders"][0]["command_id"]
    while True:
        rows = (await asked(root, "/v1/moe2/orders"))["orders"]
        row = next(row for row in rows if row["command_id"] == command_id)
        if row["state"] != "running":
            assert row["state"] == "done", row
            return
        await asyncio.sleep(POLL_S)


async def push(root: Path, file: Path, *, look_every_s: float = POLL_S) -> tuple[float, float]:
    """(bytes per second on their way, bytes per second in all) of one push, as far as it is looked at often."""
    begun_s = perf_counter()
    given = await asked(root, "/v1/moe2/pushes", {"path": str(file), "hosts": ["two"]})
    command_id = given["pushes"][0]["command_id"]
    first_s = last_s = None
    first_bytes = 0
    while True:
        rows = (await asked(root, "/v1/moe2/pushes"))["pushes"]
        row = next(row for row in rows if row["command_id"] == command_id)
        now_s, done = perf_counter(), row["done_bytes"]
        if first_s is None and done:
            first_s, first_bytes = now_s, done
        if last_s is None and done == row["size_bytes"]:
            last_s = now_s
        if row["state"] in ("done", "failed", "refused"):
            assert row["state"] == "done", row
            assert first_s is not None
            assert last_s is not None
            return (done - first_bytes) / max(last_s - first_s, POLL_S), done / (now_s - begun_s)
        await asyncio.sleep(look_every_s)


@asynccontextmanager
async def file_server(file: Path) -> AsyncIterator[str]:
    """A plain server of the file, in a process of its own, for curl."""
    argv = (sys.executable, "-c", _SERVER, str(file))
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        await process.wait()


_SERVER = """
import asyncio, sys
from aiohttp import web
async def main():
    app = web.Application()
    app.router.add_get("/", lambda request: web.FileResponse(sys.argv[1]))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def curl(url: str, target: Path) -> float:
    """Bytes per second that curl tells of a download."""
    argv = ("curl", "-s", "-o", str(target), "-w", "%{speed_download}", url)
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return float(output)


class Load:
    """Clients that ask one question after the other until they are stopped."""

    def __init__(self, api_url: str, clients: int, model: str = MODEL) -> None:
        self._url = api_url
        self._clients = clients
        self._model = model
        self.ends: list[tuple[float, float]] = []
        """When each request began and ended."""
        self.statuses: list[int] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """Asks for the length of the block."""
        stop = asyncio.Event()
        async with aiohttp.ClientSession(self._url) as http:
            tasks = [asyncio.create_task(self._ask(http, stop)) for _ in range(self._clients)]
            try:
                yield self
            finally:
                stop.set()
                await asyncio.gather(*tasks)

    async def _ask(self, http: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        body = {"model": self._model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}
        while not stop.is_set():
            begun_s = perf_counter()
            async with http.post("/v1/chat/completions", json=body) as answer:
                await answer.read()
            self.ends.append((begun_s, perf_counter()))
            self.statuses.append(answer.status)

    def within(self, begin_s: float, end_s: float) -> list[float]:
        """Seconds of the requests that ran in this window alone."""
        return [end - begun for begun, end in self.ends if begin_s <= begun and end <= end_s]


def p99(seconds: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


@dataclass(frozen=True)
class Pair:
    """Seconds of requests in two windows of the same length, one with a push."""

    without: list[float]
    pushing: list[float]

    @property
    def ratio(self) -> float:
        """The 99th percentile while pushing over the one without."""
        return p99(self.pushing) / p99(self.without)


async def window(load: Load, work: Awaitable[object]) -> list[float]:
    """Seconds of the requests that ran while this work did."""
    begin_s = perf_counter()
    await work
    return load.within(begin_s, perf_counter())


async def pairs_of_windows(root: Path, load: Load, content: Callable[[], bytes], n_pairs: int) -> list[Pair]:
    """Windows with a push and without, in turn; every other pair begins with the push."""
    found = []
    async with load.running():
        # The first requests find caches cold.
        await asyncio.sleep(2.0)
        length_s = 5.0
        for number in range(n_pairs):
            file = root / f"pair-{number}.gguf"
            await asyncio.to_thread(file.write_bytes, content())
            without = [] if number % 2 else await window(load, asyncio.sleep(length_s))
            begun_s = perf_counter()
            pushing = await window(load, push(root, file, look_every_s=SELDOM_S))
            length_s = perf_counter() - begun_s
            without = without or await window(load, asyncio.sleep(length_s))
            found.append(Pair(without, pushing))
            file.unlink()
            (root / "two" / "models" / file.name).unlink()
    return found


async def measured(root: Path, options: argparse.Namespace, link: str | None) -> dict[str, Any]:
    """Everything, one after the other."""
    size_bytes = options.megabytes * 1_000_000
    head = smollm2_path().read_bytes()[:size_bytes]
    coordinator = CoordinatorProcess(root, token=TOKEN, agents="\n[push]\nport = 0")
    stock(root, "one")
    async with (
        coordinator,
        agent(root, "one", coordinator.agents_url),
        agent(root, "two", coordinator.agents_url),
        agent_process(root, "three", coordinator.agents_url, token=TOKEN, expert=STEADY, slots=2),
    ):
        await until_taking(root, "one", "two")
        await order(root, "add", slots=2, context_tokens=1024)
        ways, wholes, curls = [], [], []
        for number in range(options.rounds):
            # Another file each time: one that a host has is not sent again.
            file = root / f"round-{number}.gguf"
            file.write_bytes(head + os.urandom(size_bytes - len(head)))
            async with file_server(file) as url:
                curls.append(await curl(url, root / "curled"))
            way, whole = await push(root, file)
            ways.append(way)
            wholes.append(whole)
        swapping = Load(coordinator.api_url, 3)
        async with swapping.running():
            for number in range(options.swaps):
                await order(root, "set", slots=3 - number % 2)
        load = Load(coordinator.api_url, 2, MODEL if options.shared_cores else "fake")
        pairs = await pairs_of_windows(root, load, lambda: head + os.urandom(size_bytes - len(head)), options.pairs)
    ratios = sorted(pair.ratio for pair in pairs)
    return {
        "push_vs_curl_ratio": round(statistics.median(ways) / statistics.median(curls), 3),
        "push_whole_ratio": round(statistics.median(wholes) / statistics.median(curls), 3),
        "push_bytes_per_s": round(statistics.median(ways)),
        "curl_bytes_per_s": round(statistics.median(curls)),
        "megabytes": options.megabytes,
        "link": link or "loopback",
        "answers": "llama.cpp on the same cores" if options.shared_cores else "an engine that needs no processor",
        "swaps": options.swaps,
        "requests_while_swapping": len(swapping.statuses),
        "requests_lost": sum(status != 200 for status in (*swapping.statuses, *load.statuses)),
        "requests_while_pushing": sum(len(pair.pushing) for pair in pairs),
        "requests_without": sum(len(pair.without) for pair in pairs),
        "p99_without_s": round(statistics.median(p99(pair.without) for pair in pairs), 4),
        "p99_while_pushing_s": round(statistics.median(p99(pair.pushing) for pair in pairs), 4),
        "p99_ratios": [round(ratio, 3) for ratio in ratios],
        "p99_added_ratio": round(statistics.median(ratios) - 1, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=128, help="size of a file; %(default)s")
    parser.add_argument("--link", default="200mbit", help="rate of the loopback, as tc(8) writes it; %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="pushes and downloads that are compared; %(default)s")
    parser.add_argument("--swaps", type=int, default=4, help="exchanges under load; %(default)s")
    parser.add_argument("--pairs", type=int, default=7, help="windows with a push, as many without; %(default)s")
    parser.add_argument("--shared-cores", action="store_true", help="answers under a push from llama.cpp, too")
    options = parser.parse_args()
    link = shaped(options.link)
    with tempfile.TemporaryDirectory(prefix="moe2-push-") as root:
        found = asyncio.run(measured(Path(root), options, link))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
