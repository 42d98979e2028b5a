"""Two coordinators, processes that are killed, behind Debian's nginx or HAProxy, and a client with both addresses."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from moe2.agent.daemon import AgentDaemon
from moe2.agent.energy.catalog import SensorSettings
from moe2.agent.settings import AgentSettings
from tests.fakes.coordinatorprocess import CoordinatorProcess
from tests.fakes.fleet import FAKE_EXPERT, TOKEN
from tests.fakes.losthost import CANNOT_JOIN
from tests.fakes.postgres import Postgres, needs_postgres
from tests.scenarios.test_nginx import NGINX, needs_nginx

pytestmark = [needs_postgres, pytest.mark.slow]
POLL_S = 0.01
EXAMPLES = Path(__file__).parents[2] / "examples"
HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/sbin:/bin")
BODY = {"model": "moe2", "messages": [{"role": "user", "content": "a b c"}]}


@dataclass
class Group:
    """Two coordinators of one fleet, with one agent."""

    one: CoordinatorProcess
    two: CoordinatorProcess

    @property
    def urls(self) -> tuple[str, str]:
        return self.one.api_url, self.two.api_url


@asynccontextmanager
async def group(tmp_path: Path, server: Postgres, *, drain_s: float = 0.2) -> AsyncIterator[Group]:
    """Both coordinators ready, the first of them preferred."""
    url = server.new_tables()
    made = []
    for name in ("one", "two"):
        root = tmp_path / name
        root.mkdir()
        database = f'stale_s = 30.0\n[database]\nurl = "{url}"\nname = "{name}"'
        made.append(CoordinatorProcess(root, token=TOKEN, agents=database, drain_s=drain_s))
    async with AsyncExitStack() as stack:
        for one in made:
            await stack.enter_async_context(one)
        await stack.enter_async_context(agent(tmp_path, [one.agents_url for one in made]))
        async with aiohttp.ClientSession() as http:
            for one in made:
                await ready(http, one.api_url)
        yield Group(*made)


@asynccontextmanager
async def agent(tmp_path: Path, urls: list[str]) -> AsyncIterator[None]:
    """An agent with a fake expert that dials all addresses."""
    (tmp_path / "agent.token").write_text(TOKEN)
    (tmp_path / "fake.gguf").touch()
    configuration = {
        "agent": {"name": "orin", "state_dir": tmp_path / "agent", "socket": tmp_path / "agent.sock", "drain_s": 1.0},
        "measuring": {"enabled": False},
        "coordinator": {
            "urls": urls,
            "token_file": tmp_path / "agent.token",
            "reconnect_first_s": 0.02,
            "reconnect_most_s": 0.1,
            "connect_timeout_s": 2.0,
        },
        "models": [{"name": "fake", "path": tmp_path / "fake.gguf", "slots": 4}],
    }
    daemon = AgentDaemon(
        AgentSettings.model_validate(configuration),
        environment={},
        engine_argv=FAKE_EXPERT,
        sensors=SensorSettings(root=tmp_path / "no-sensors"),
    )
    running = asyncio.create_task(daemon.run())
    try:
        yield
    finally:
        daemon.stop()
        await running


async def ready(http: aiohttp.ClientSession, url: str, path: str = "/readyz") -> None:
    async with asyncio.timeout(60):
        while True:
            with suppress(aiohttp.ClientError):
                async with http.get(url + path) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(POLL_S)


async def chat(http: aiohttp.ClientSession, url: str) -> int:
    async with http.post(f"{url}/v1/chat/completions", json=BODY) as answer:
        await answer.read()
        return answer.status


async def until_refused(http: aiohttp.ClientSession, url: str) -> None:
    """Asks until no connection is taken; whatever is taken is answered."""
    with suppress(aiohttp.ClientConnectionError):
        while True:
            assert await chat(http, url) == 200


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@asynccontextmanager
async def balancer(*command: str | Path) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(*map(str, command))
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


def addressed(name: str, urls: tuple[str, str], port: int) -> str:
    """The shipped example with these coordinators in the place of its own, on a port of its own."""
    text = (EXAMPLES / name).read_text()
    for number, url in enumerate(urls, 1):
        text = text.replace(f"coordinator-{number}.example:8080", url.removeprefix("http://"))
    text, n_found = re.subn(r"(listen |bind :)8000", lambda found: f"{found[1].replace(':', '127.0.0.1:')}{port}", text)
    assert n_found == 1
    return text


async def test_a_client_with_both_addresses_loses_nothing(tmp_path: Path, server: Postgres) -> None:
    """While one coordinator is killed, a client that goes on to the other address gets every answer."""
    async with group(tmp_path, server) as both, aiohttp.ClientSession() as http:
        statuses = []
        for number in range(40):
            if number == 10:
                both.one.send_signal(signal.SIGKILL)
            for url in both.urls:
                with suppress(aiohttp.ClientError):
                    statuses.append(await chat(http, url))
                    break
        assert statuses == [200] * 40


async def test_a_coordinator_that_comes_back_takes_requests_once_its_agents_are_there(
    tmp_path: Path, server: Postgres
) -> None:
    """From its first answer on it has what its agents serve: until then clients find no listener, and ask the other."""
    async with group(tmp_path, server) as both, aiohttp.ClientSession() as http:
        for number in range(3):
            await both.one.end(signal.SIGKILL if number else signal.SIGTERM)
            await both.one.start()
            assert await chat(http, both.urls[0]) == 200


async def test_a_coordinator_that_stops_takes_no_more_connections_while_it_ends_its_requests(
    tmp_path: Path, server: Postgres
) -> None:
    """Whatever it takes is answered to its end; who comes later is refused the connection, and goes on to the other."""
    async with group(tmp_path, server, drain_s=30.0) as both, aiohttp.ClientSession() as http:
        body = {**BODY, "stream": True, "max_tokens": 300}
        async with http.post(f"{both.urls[0]}/v1/chat/completions", json=body) as stream:
            await stream.content.readline()
            both.one.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                await until_refused(http, both.urls[0])
            assert await chat(http, both.urls[1]) == 200
            assert b"[DONE]" in await stream.read()


async def test_the_preference_goes_to_who_is_left(tmp_path: Path, server: Postgres) -> None:
    """`/readyz?preferred` is good at one coordinator only, and after that one's death at the other."""
    async with group(tmp_path, server) as both, aiohttp.ClientSession() as http:
        await ready(http, both.urls[0], "/readyz?preferred")
        async with http.get(f"{both.urls[1]}/readyz?preferred") as answer:
            assert (answer.status, (await answer.json())["reason"]) == (503, "another coordinator is to be preferred")
        async with http.get(f"{both.urls[1]}/readyz") as answer:
            assert await answer.json() == {"status": "ready", "preferred": False}
        both.one.send_signal(signal.SIGKILL)
        await ready(http, both.urls[1], "/readyz?preferred")


@needs_nginx
async def test_nginx_gives_new_requests_to_who_is_left(tmp_path: Path, server: Postgres) -> None:
    """Behind the shipped nginx configuration no request fails when one coordinator is killed, nor when it is back."""
    port = free_port()
    async with group(tmp_path, server) as both, aiohttp.ClientSession() as http:
        root = tmp_path / "nginx"
        root.mkdir()
        paths = "".join(
            f"{kind}_temp_path {root}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (root / "nginx.conf").write_text(
            f"pid {root}/pid; error_log {root}/error.log; daemon off; events {{}}\n"
            f"http {{ access_log off;\n{paths}{addressed('nginx-pair.conf', both.urls, port)} }}"
        )
        async with balancer(NGINX or "", "-c", root / "nginx.conf", "-p", root, "-e", root / "error.log"):
            url = f"http://127.0.0.1:{port}"
            await ready(http, url)
            statuses = [await chat(http, url) for _ in range(10)]
            both.one.send_signal(signal.SIGKILL)
            statuses += [await chat(http, url) for _ in range(10)]
            await both.one.start()
            await ready(http, both.urls[0])
            statuses += [await chat(http, url) for _ in range(10)]
        assert statuses == [200] * 30


@needs_nginx
@pytest.mark.skipif(
    not all(map(shutil.which, ("ip", "unshare", "nsenter"))), reason="No namespaces: iproute2, util-linux."
)
@pytest.mark.skipif(HAPROXY is None, reason="No HAProxy: apt-get install haproxy.")
def test_requests_after_the_loss_of_a_host_are_answered_within_five_seconds(tmp_path: Path) -> None:
    """When a coordinator's host answers no packet any more, a client with both addresses, nginx and HAProxy get every
    answer, within 5 s, and the other coordinator takes the chores over."""
    argv = ("unshare", "--net", sys.executable, "-m", "tests.fakes.losthost", str(tmp_path))
    ran = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=200)
    if ran.returncode == CANNOT_JOIN or "unshare failed" in ran.stderr:
        pytest.skip(f"No network namespaces here: {ran.stderr.strip()[-200:]}")
    assert ran.returncode == 0, ran.stderr[-4000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["before"] is True
    assert found["failed"] == {"client": 0, "nginx": 0, "haproxy": 0}
    assert max(found[way] for way in found["failed"]) < 5.0


@pytest.mark.skipif(HAPROXY is None, reason="No HAProxy: apt-get install haproxy.")
async def test_haproxy_follows_the_preference(tmp_path: Path, server: Postgres) -> None:
    """Behind the shipped HAProxy configuration requests are answered before and after the preferred one is killed."""
    port = free_port()
    async with group(tmp_path, server) as both, aiohttp.ClientSession() as http:
        config = tmp_path / "haproxy.cfg"
        config.write_text(f"global\n    maxconn 100\n{addressed('haproxy-pair.cfg', both.urls, port)}")
        async with balancer(HAPROXY or "", "-db", "-f", config):
            url = f"http://127.0.0.1:{port}"
            await ready(http, url)
            statuses = [await chat(http, url) for _ in range(10)]
            both.one.send_signal(signal.SIGKILL)
            # The check that finds it dead comes within half a second; until then a request may be told so.
            await ready(http, url, "/readyz")
            await ready(http, both.urls[1], "/readyz?preferred")
            statuses += [await chat(http, url) for _ in range(10)]
        assert statuses == [200] * 20
