"""Host, Origin and CORS over real HTTP, on answers, errors and streams."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from moe2.coordinator.http.access.auth import ROUTES
from moe2.coordinator.http.paths import EVENTS_PATH
from moe2.coordinator.keys.store import KeyFile
from tests.coordinator.keys.keys import add_key
from tests.fakes.fleet import Fleet, fleet
from tests.scenarios.test_slow_clients import connected, everything

pytestmark = pytest.mark.slow

SITE = "https://chat.example"
FOREIGN = "https://evil.example"
ALLOWED = {"origins": [SITE]}
CHAT: dict[str, Any] = {"model": "moe2", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}


async def status_of(running: Fleet, path: str, headers: Mapping[str, str], method: str = "GET") -> int:
    async with running.http.request(method, path, headers=headers) as answer:
        return answer.status


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": FOREIGN}, {"Origin": "null"}])
async def test_what_is_foreign_is_refused_on_every_route(tmp_path: Path, headers: dict[str, str]) -> None:
    """Without keys, and without any of the headers that only newer browsers send."""
    async with fleet(tmp_path, agents=()) as running:
        for route in ROUTES:
            path = route.format(name="main.js", model="moe2", response_id="resp_1")
            for method in ("GET", "POST"):
                assert await status_of(running, path, headers, method) == 403


async def test_a_foreign_page_is_told_nothing(tmp_path: Path) -> None:
    """Neither its request nor its preflight gets a header that would let it read the answer."""
    async with fleet(tmp_path, agents=(), api=ALLOWED) as running:
        preflight = {"Origin": FOREIGN, "Access-Control-Request-Method": "POST"}
        for method in ("OPTIONS", "POST"):
            async with running.http.request(method, "/v1/chat/completions", headers=preflight) as answer:
                assert answer.status == 403
                assert not [name for name in answer.headers if name.lower().startswith("access-control")]
                assert answer.headers["Vary"] == "Origin"


async def test_the_coordinators_own_page_and_other_clients_are_let_in(tmp_path: Path) -> None:
    """An Origin of its own address, or none at all."""
    async with fleet(tmp_path) as running:
        for headers in ({"Origin": running.coordinator.api_url}, {}):
            async with running.http.post("/v1/chat/completions", json=CHAT, headers=headers) as answer:
                assert answer.status == 200
                assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_preflight_needs_no_key(tmp_path: Path) -> None:
    """A browser sends it without one, and asks for the headers that the page wants to send."""
    wanted = "authorization,content-type,x-stainless-os"
    headers = {
        "Origin": SITE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": wanted,
        "Access-Control-Request-Private-Network": "true",
    }
    async with fleet(tmp_path, agents=(), api={"keys": "required", **ALLOWED}) as running:
        async with running.http.options("/v1/chat/completions", headers=headers) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == SITE
            assert answer.headers["Access-Control-Allow-Headers"] == wanted
            assert "POST" in answer.headers["Access-Control-Allow-Methods"]
            assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
            assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize(
    ("method", "path", "body", "with_key", "status"),
    [
        ("POST", "/v1/chat/completions", CHAT, True, 200),
        ("POST", "/v1/chat/completions", {**CHAT, "stream": True}, True, 200),
        ("GET", EVENTS_PATH, None, True, 200),
        ("POST", "/v1/chat/completions", CHAT, False, 401),
        ("POST", "/v1/chat/completions", {"nonsense": 1}, True, 400),
        ("GET", "/v1/nonsense", None, True, 404),
        ("DELETE", "/v1/models", None, True, 405),
    ],
)
async def test_an_allowed_page_reads_answers_errors_and_streams(
    tmp_path: Path, method: str, path: str, body: dict[str, Any] | None, with_key: bool, status: int
) -> None:
    """All of them say who may read them, and a cache that they depend on it."""
    _, key = add_key(KeyFile(tmp_path), scopes=("infer", "observe"))
    headers = {"Origin": SITE} | ({"Authorization": f"Bearer {key}"} if with_key else {})
    async with fleet(tmp_path, api={"keys": "required", **ALLOWED}) as running:
        async with running.http.request(method, path, json=body, headers=headers) as answer:
            assert answer.status == status
            assert answer.headers["Access-Control-Allow-Origin"] == SITE
            assert "x-request-id" in answer.headers["Access-Control-Expose-Headers"]
            assert answer.headers["Vary"] == "Origin"


async def test_an_allowed_page_may_ask_without_keys_too(tmp_path: Path) -> None:
    """Whatever the browser says about how the sites are related."""
    headers = {"Origin": SITE, "Sec-Fetch-Site": "cross-site"}
    async with fleet(tmp_path, agents=(), api=ALLOWED) as running:
        assert await status_of(running, "/v1/models", headers) == 200


async def test_names_and_sites_are_taken_on_a_reload(tmp_path: Path) -> None:
    """Added and removed without a restart."""
    async with fleet(tmp_path, agents=()) as running:
        api = running.configuration["api"]
        api |= {"hosts": ["hub.example"], "origins": [SITE]}
        running.coordinator.reload()
        assert await status_of(running, "/v1/models", {"Host": "hub.example:80"}) == 200
        assert await status_of(running, "/v1/models", {"Origin": SITE}) == 200
        api |= {"hosts": [], "origins": []}
        running.coordinator.reload()
        assert await status_of(running, "/v1/models", {"Host": "hub.example:80"}) == 403
        assert await status_of(running, "/v1/models", {"Origin": SITE}) == 403
        assert not running.coordinator.status().warnings or "restart_needed" not in [
            warning.code for warning in running.coordinator.status().warnings
        ]


@pytest.mark.parametrize("path", ["/healthz", "//healthz"])
@pytest.mark.parametrize(("authority", "status"), [("evil.example", 403), ("localhost:1", 200), ("[::1]", 200)])
async def test_a_target_that_is_a_whole_url_says_which_host_is_meant(
    tmp_path: Path, path: str, authority: str, status: int
) -> None:
    """What the Host header says does not count beside it."""
    async with (
        fleet(tmp_path, agents=()) as running,
        connected(running.coordinator.api_url) as (reader, writer),
    ):
        writer.write(f"GET http://{authority}{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert (await everything(reader)).startswith(f"HTTP/1.1 {status}".encode())
