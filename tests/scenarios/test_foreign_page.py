"""A page of another site in a real Chromium, in front of a real coordinator."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from tests.fakes.browser import Browser, chromium
from tests.fakes.fleet import Fleet, fleet

pytestmark = pytest.mark.slow


async def test_only_an_allowed_sites_page_runs_requests(tmp_path: Path) -> None:
    """A page of another origin is refused until `api.origins` names it; then it reads answers, streams and errors."""
    site = web.Application()

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>elsewhere</title>", content_type="text/html")

    site.router.add_get("/", page)
    with chromium(tmp_path / "chromium") as browser:
        async with fleet(tmp_path) as running, TestServer(site) as elsewhere:
            await _ask_from(elsewhere, running, browser)


async def _ask_from(elsewhere: BaseTestServer, running: Fleet, browser: Browser) -> None:
    url = running.coordinator.api_url

    def asked(fields: str, mode: str = "cors") -> str:
        """What a script on the page gets to see of a request, or the name of its error."""
        body = f"{{model: 'moe2', messages: [{{role: 'user', content: 'a b'}}], max_tokens: 2, {fields}}}"
        headers = "{'Content-Type': 'application/json'}" if mode == "cors" else "{}"
        return str(
            browser.driver.execute_async_script(
                f"const done = arguments[arguments.length - 1];"
                f"fetch('{url}/v1/chat/completions', {{method: 'POST', mode: '{mode}', headers: {headers},"
                f" body: JSON.stringify({body})}})"
                f".then(async (answer) => done(`${{answer.status}} ${{await answer.text()}}`),"
                f" (error) => done(error.name))"
            )
        )

    def refused() -> None:
        browser.driver.get(str(elsewhere.make_url("/")))
        assert asked("") == "TypeError"
        # A request that needs no preflight is sent, and refused.
        assert asked("", mode="no-cors") == "0 "

    def allowed() -> None:
        answer, stream, error = asked(""), asked("stream: true"), asked("nonsense: 1")
        assert answer.startswith("200 ")
        assert "a b " in answer
        assert stream.startswith("200 ")
        assert "[DONE]" in stream
        assert error.startswith("400 ")
        assert "nonsense" in error

    await asyncio.to_thread(refused)
    assert running.coordinator.status().requests_finished == 0
    running.configuration["api"]["origins"] = [str(elsewhere.make_url("/").origin())]
    running.coordinator.reload()
    await asyncio.to_thread(allowed)
    await running.quiet()
    assert running.coordinator.status().requests_finished == 2
