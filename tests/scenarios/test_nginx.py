"""Debian's nginx in front of the API, as a package install leaves it: streams pass through token by token."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.control import ExpertControl
from tests.fakes.fleet import fleet

NGINX = shutil.which("nginx", path=f"/usr/sbin:/usr/bin:/sbin:/bin:{sys.prefix}/nginx/usr/sbin")
"""The system's nginx, or the one that `./install.sh test` has fetched."""
needs_nginx = pytest.mark.skipif(
    NGINX is None, reason="No nginx: `./install.sh test` fetches one where there is apt-get."
)

CONFIGURATION = """\
worker_processes 1;
pid {root}/nginx.pid;
error_log {root}/error.log;
daemon off;
events {{}}
http {{
    sendfile on;
    tcp_nopush on;
    gzip on;
    access_log off;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {upstream};
        }}
    }}
}}
"""
"""Nothing is said of proxying but where to: buffering, HTTP version and timeouts are nginx's own defaults."""


def configured(root: Path, upstream: str) -> tuple[Path, int]:
    """A configuration file in `root`, and the port that it has nginx listen on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    root.mkdir()
    file = root / "nginx.conf"
    file.write_text(CONFIGURATION.format(root=root, port=port, upstream=upstream))
    return file, port


@asynccontextmanager
async def nginx(root: Path, upstream: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of nginx, which passes everything on to `upstream`."""
    file, port = configured(root, upstream)
    process = await asyncio.create_subprocess_exec(NGINX or "", "-c", file, "-p", root, "-e", root / "error.log")
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http, asyncio.timeout(60):
            while True:
                try:
                    async with http.get("/healthz") as health:
                        assert health.status == 200, (root / "error.log").read_text()
                        break
                except aiohttp.ClientConnectionError:
                    assert process.returncode is None, (root / "error.log").read_text()
                    await asyncio.sleep(0.002)
            yield http
    finally:
        process.terminate()
        await process.wait()


@needs_nginx
async def test_tokens_pass_nginx_one_by_one(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """Each token is with the client before the next one is drawn, although nginx buffers by default."""
    async with (
        fleet(tmp_path, engine_argv=controlled) as running,
        nginx(tmp_path / "nginx", running.coordinator.api_url) as http,
    ):
        body = {"model": "moe2", "messages": [{"role": "user", "content": "a b c d"}], "stream": True, "max_tokens": 4}
        request = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        (await control.next_phase()).answer()
        answer, said = None, ""
        for token in ("a ", "b ", "c ", "d "):
            (await control.next_phase()).answer()
            answer = answer or await request
            while not said.endswith(token):
                line = (await answer.content.readline()).decode().strip()
                for choice in json.loads(line[6:])["choices"] if line.startswith("data: {") else ():
                    said += choice["delta"].get("content", "")
        assert answer is not None
        rest = (await answer.content.read()).decode()
        assert rest.rstrip().endswith("data: [DONE]")


@needs_nginx
async def test_a_stream_that_waits_begins_behind_nginx(
    tmp_path: Path, control: ExpertControl, controlled: tuple[str, ...]
) -> None:
    """Headers and comments come through before the first token."""
    async with (
        fleet(tmp_path, engine_argv=controlled, api={"stream_comment_s": 0.02}) as running,
        nginx(tmp_path / "nginx", running.coordinator.api_url) as http,
    ):
        body = {"model": "moe2", "messages": [{"role": "user", "content": "a"}], "stream": True, "max_tokens": 1}
        request = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        step = await control.next_phase()
        async with await request as answer:
            lines = [(await answer.content.readline()).decode().strip() for _ in range(3)]
            assert lines == [": moe2 is working on it", "", ": moe2 is working on it"]
            step.answer()
            control.release()
            assert "[DONE]" in (await answer.content.read()).decode()
