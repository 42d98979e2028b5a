"""A coordinator's host that is lost: `unshare --net python -m tests.fakes.losthost ROOT`.

Two coordinators share a PostgreSQL over TCP; the first one has a network namespace of its own as its host. An agent
dials both. Requests come from a client with both addresses, and through the shipped configurations of nginx and
HAProxy, until the first host answers no packet any more, neither to open connections nor to new ones. Nothing outside
the namespace is touched, and nothing of it stays.

Prints one JSON object: for `client`, `nginx` and `haproxy` the longest time in seconds that a request took that came
after the loss; `failed`: how many of each were not answered with 200; `before`: whether all were before; `chores_s`:
until the other coordinator does the chores. Exits with `CANNOT_JOIN` and says why where the kernel or the rights do not
allow it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.pair import agent
from tests.fakes.fleet import TOKEN
from tests.fakes.postgres import Postgres, postgres

CANNOT_JOIN = 77
HERE, THERE = "10.77.0.1", "10.77.0.2"
API, AGENTS, DATABASE, NGINX, HAPROXY = 8080, 8081, 5432, 8001, 8002
EXAMPLES = Path(__file__).parents[2] / "examples"
N_BEFORE, N_AFTER = 20, 10
BODY = {"model": "moe2", "messages": [{"role": "user", "content": "a b c"}]}


def run(*command: str) -> None:
    """Runs a command, or ends where it cannot be done here."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(f"{' '.join(command)}: {done.stderr}")
        sys.exit(CANNOT_JOIN)


@contextmanager
def other_host() -> Iterator[tuple[str, ...]]:
    """A network namespace beside this one, joined by a wire; yields the beginning of commands that run in it."""
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo there; exec sleep 600"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        inside = ("nsenter", "-t", str(holder.pid), "-n")
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", str(holder.pid))
        run("ip", "addr", "add", f"{HERE}/24", "dev", "here")
        run("ip", "link", "set", "here", "up")
        run(*inside, "ip", "addr", "add", f"{THERE}/24", "dev", "there")
        run(*inside, "ip", "link", "set", "there", "up")
        run(*inside, "ip", "link", "set", "lo", "up")
        yield inside
    finally:
        holder.kill()
        holder.wait()


def open_to_both(server: Postgres) -> str:
    """Has a server listen for both hosts, and returns the address of a database with tables."""
    with (server.data / "pg_hba.conf").open("a") as file:
        file.write("host all all 10.77.0.0/24 trust\n")
    server.sql("SELECT pg_reload_conf()")
    name = server.new_tables().split("?")[0].rpartition("/")[2]
    return f"postgresql://moe2@{HERE}:{DATABASE}/{name}"


@asynccontextmanager
async def coordinator(root: Path, name: str, host: str, database: str, inside: Sequence[str]) -> AsyncIterator[None]:
    """A coordinator on a host, until it takes connections."""
    place = root / name
    place.mkdir()
    (place / "token").write_text(TOKEN)
    (place / "coordinator.toml").write_text(
        f'[coordinator]\nstate_dir = "{place}"\nsocket = "{place}/socket"\n'
        f'[api]\nhost = "{host}"\nport = {API}\nallow_public_without_keys = true\n'
        f'[agents]\nhost = "{host}"\nport = {AGENTS}\nallow_plaintext = true\ntoken_file = "{place}/token"\n'
        f'stale_s = 30.0\n[database]\nurl = "{database}"\nname = "{name}"\n'
    )
    argv = (*inside, sys.executable, "-m", "moe2.coordinator", "run", "--config", str(place / "coordinator.toml"))
    with (place / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def answers(http: aiohttp.ClientSession, url: str) -> bool:
    with suppress(aiohttp.ClientError, TimeoutError):
        async with http.get(url, timeout=aiohttp.ClientTimeout(total=1.0)) as answer:
            return answer.status == 200
    return False


async def until_answers(http: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(60):
        while not await answers(http, url):
            await asyncio.sleep(0.05)


async def ask(http: aiohttp.ClientSession, *hosts: str) -> int:
    """Asks one address after the other, as long as none takes a connection; returns the status, 0 for none."""
    for host in hosts:
        with suppress(aiohttp.ClientError, TimeoutError):
            timeout = aiohttp.ClientTimeout(total=20.0, sock_connect=1.0)
            async with http.post(f"http://{host}/v1/chat/completions", json=BODY, timeout=timeout) as answer:
                await answer.read()
                return answer.status
    return 0


@asynccontextmanager
async def balancers(root: Path) -> AsyncIterator[None]:
    """The shipped configurations, with these coordinators in the place of their own."""

    def addressed(name: str, port: int) -> str:
        text = (EXAMPLES / name).read_text()
        for number, host in enumerate((THERE, HERE), 1):
            text = text.replace(f"coordinator-{number}.example", host)
        return re.sub(r"(listen |bind :)8000", lambda found: f"{found[1].replace(':', '127.0.0.1:')}{port}", text)

    place = root / "nginx"
    place.mkdir()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    (place / "nginx.conf").write_text(
        f"pid {place}/pid; error_log {place}/error.log; daemon off; worker_processes 1; events {{}}\n"
        f"http {{ access_log off;\n{''.join(f'{kind}_temp_path {place}/{kind};' for kind in kinds)}"
        f"{addressed('nginx-pair.conf', NGINX)} }}"
    )
    (root / "haproxy.cfg").write_text(f"global\n    maxconn 100\n{addressed('haproxy-pair.cfg', HAPROXY)}")
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    started = [
        await asyncio.create_subprocess_exec(*map(str, command))
        for command in (
            (shutil.which("nginx", path=path), "-c", place / "nginx.conf", "-p", place, "-e", place / "error.log"),
            (shutil.which("haproxy", path=path), "-db", "-f", root / "haproxy.cfg"),
        )
        if command[0]
    ]
    try:
        yield
    finally:
        for process in started:
            process.terminate()
            await process.wait()


async def longest(http: aiohttp.ClientSession, hosts: Sequence[str]) -> tuple[float, int]:
    """Asks again and again; the longest time that a request took, and how many were not answered."""
    loop, times, failed = asyncio.get_running_loop(), [], 0
    for _ in range(N_AFTER):
        asked_s = loop.time()
        failed += await ask(http, *hosts) != 200
        times.append(loop.time() - asked_s)
    return max(times), failed


async def measure(root: Path, server: Postgres, inside: tuple[str, ...]) -> dict[str, Any]:
    """The whole course."""
    database = open_to_both(server)
    loop = asyncio.get_running_loop()
    ways: dict[str, tuple[str, ...]] = {
        "client": (f"{THERE}:{API}", f"{HERE}:{API}"),
        "nginx": (f"127.0.0.1:{NGINX}",),
        "haproxy": (f"127.0.0.1:{HAPROXY}",),
    }
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        await stack.enter_async_context(coordinator(root, "there", THERE, database, inside))
        await until_answers(http, f"http://{THERE}:{API}/healthz")
        await stack.enter_async_context(coordinator(root, "here", HERE, database, ()))
        await until_answers(http, f"http://{HERE}:{API}/healthz")
        urls = [f"ws://{host}:{AGENTS}" for host in (THERE, HERE)]
        await stack.enter_async_context(agent(root / "agent", urls))
        for host in (THERE, HERE):
            await until_answers(http, f"http://{host}:{API}/readyz")
        await stack.enter_async_context(balancers(root))
        for hosts in ways.values():
            await until_answers(http, f"http://{hosts[0]}/readyz")
        before = Counter([await ask(http, *hosts) for hosts in ways.values() for _ in range(N_BEFORE)])
        run(*inside, "ip", "route", "add", "blackhole", f"{HERE}/32")
        lost_s = loop.time()
        # Balancers are asked over connections that they know, as clients do; one to the lost host itself is gone.
        fresh = await stack.enter_async_context(aiohttp.ClientSession())
        asking = (longest(fresh if way == "client" else http, hosts) for way, hosts in ways.items())
        found = await asyncio.gather(*asking)
        async with asyncio.timeout(60):
            while not await answers(http, f"http://{HERE}:{API}/readyz?preferred"):
                await asyncio.sleep(0.05)
        chores_s = loop.time() - lost_s
    return {
        "before": before == {200: len(ways) * N_BEFORE},
        **{name: round(seconds, 3) for name, (seconds, _) in zip(ways, found, strict=True)},
        "failed": {name: failed for name, (_, failed) in zip(ways, found, strict=True)},
        "chores_s": round(chores_s, 3),
    }


def main() -> None:
    """Runs the course and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    root = parser.parse_args().root
    with other_host() as inside:
        with postgres(settings=f"listen_addresses = '{HERE}'") as server:
            found = asyncio.run(measure(root, server, inside))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
