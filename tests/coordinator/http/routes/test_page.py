"""The page's files are complete, refer to nothing outside, and are served safely."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from moe2.coordinator.http.routes.page import PageRoute

PAGE = Path(__file__).parents[4] / "coordinator" / "page"
FILES = sorted(PAGE.iterdir())
_ORIGIN = re.compile(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z0-9]", re.IGNORECASE)
_IMPORT = re.compile(r'from "\./([a-z.]+)"')
_REFERENCE = re.compile(r'(?:href|src)="/page/([a-z.]+)"')


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    app = web.Application()
    PageRoute().add_to(app)
    async with TestServer(app) as server, aiohttp.ClientSession(server.make_url("/")) as session:
        yield session


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_comes_from_elsewhere(file: Path) -> None:
    """No file of the page names another origin, so the page works offline."""
    lines = [line for line in file.read_text().splitlines() if not line.strip().startswith("//")]
    assert not _ORIGIN.search("\n".join(lines))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_reference_is_there_and_used(file: Path) -> None:
    """Every import and link leads to a file of the page, and every file is reached from another one."""
    names = {other.name for other in FILES}
    text = file.read_text()
    assert set(_IMPORT.findall(text)) | set(_REFERENCE.findall(text)) <= names
    used = {
        name for other in FILES for name in _IMPORT.findall(other.read_text()) + _REFERENCE.findall(other.read_text())
    }
    assert file.name == "index.html" or file.name in used


def test_no_script_builds_markup_from_text() -> None:
    """Scripts make text nodes only, so that a model's answer cannot become markup."""
    for file in PAGE.glob("*.js"):
        assert not re.search(
            r"innerHTML\s*=(?!=)|outerHTML|insertAdjacentHTML|document\.write|\beval\(", file.read_text()
        )


@pytest.mark.parametrize("path", ["/", *(f"/page/{file.name}" for file in FILES)])
async def test_every_file_is_served_under_a_strict_policy(http: aiohttp.ClientSession, path: str) -> None:
    """Every file is served under a policy of own scripts only, no framing and no sniffing."""
    async with http.get(path) as answer:
        assert answer.status == 200
        assert "default-src 'none'; script-src 'self';" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", ["nothing.js", "..%2fservice.py", "%2e%2e%2fservice.py", "__init__.py", ".hidden"])
async def test_other_names_are_not_found(http: aiohttp.ClientSession, name: str) -> None:
    """Any name that is not a file of the page is answered with 404."""
    async with http.get(f"/page/{name}") as answer:
        assert answer.status == 404


async def test_an_unchanged_file_is_not_sent_again(http: aiohttp.ClientSession) -> None:
    """A file is not sent again to a browser that asks with its tag."""
    async with http.get("/page/style.css") as answer:
        tag = answer.headers["ETag"]
    async with http.get("/page/style.css", headers={"If-None-Match": tag}) as answer:
        assert answer.status == 304
        assert await answer.read() == b""
