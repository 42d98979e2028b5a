"""A server on loopback that speaks the hub's protocol for the files of one folder: heads, redirections, ranges."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """files: by their paths in the repository `org/repo`. cut_after: answers end after so many bytes, once each.

    shortened: answers lack so many bytes, once each, and say that they are whole, as of a proxy that cuts.
    ranges: False where the storage sends the whole file, whatever part is asked for.
    stalls: answers stop in the midst until `goes_on` is set; `stalled` is set then.
    pair: certificate and key, for TLS. token: what a client must show. lies: told as the checksum in place of the
    true one. got: the ranges asked for.
    """

    files: dict[str, Path]
    url: str = ""
    storage: str = ""
    token: str | None = None
    lies: str | None = None
    cut_after: list[int] = field(default_factory=list)
    shortened: list[int] = field(default_factory=list)
    ranges: bool = True
    pair: Mapping[str, Path] | None = None
    stalls: bool = False
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    got: list[str] = field(default_factory=list)
    storage_saw_token: bool = False

    def apps(self) -> tuple[web.Application, web.Application]:
        """The hub, and its storage, which is another server."""
        hub, storage = web.Application(), web.Application()
        hub.router.add_get("/org/repo/resolve/{revision}/{file:.+}", self._resolve)
        hub.router.add_get("/api/models/org/repo/revision/{revision}", self._facts)
        storage.router.add_get("/{file:.+}", self._storage)
        return hub, storage

    async def _facts(self, request: web.Request) -> web.Response:
        names = [{"rfilename": name} for name in self.files]
        return web.json_response({"id": "org/repo", "sha": COMMIT, "siblings": names})

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, headers={"X-Error-Code": "GatedRepo"})
        if request.match_info["revision"] not in ("main", COMMIT):
            return web.Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        path = self.files.get(request.match_info["file"])
        if path is None:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        digest = self.lies or hashlib.sha256(path.read_bytes()).hexdigest()
        facts = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(path.stat().st_size),
            "X-Linked-Etag": f'"{digest}"',
            "Location": f"{self.storage}/{request.match_info['file']}",
        }
        return web.Response(status=302, headers=facts)

    async def _storage(self, request: web.Request) -> web.StreamResponse:
        self.storage_saw_token |= "Authorization" in request.headers
        if request.method == "HEAD":
            return web.Response(headers={"Content-Length": str(self.files[request.match_info["file"]].stat().st_size)})
        content = self.files[request.match_info["file"]].read_bytes()
        wanted = request.headers.get("Range", "")
        self.got.append(wanted)
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        is_head = bool(end)
        if not self.ranges:
            wanted = start = end = ""
        first, last = int(start or 0), int(end or len(content) - 1)
        last = min(last, len(content) - 1)
        if self.shortened and not is_head:
            last -= self.shortened.pop(0)
        part = content[first : last + 1]
        answer = web.StreamResponse(status=206 if wanted else 200)
        answer.content_length = len(part)
        if wanted:
            answer.headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        await answer.prepare(request)
        if self.stalls and not is_head:
            half = len(part) // 2
            await answer.write(part[:half])
            self.stalled.set()
            await self.goes_on.wait()
            part = part[half:]
        if self.cut_after and not is_head:
            await answer.write(part[: self.cut_after.pop(0)])
            if request.transport is not None:
                request.transport.close()
            return answer
        with suppress(ConnectionError):
            # Who wanted only the beginning is gone.
            await answer.write(part)
        return answer


@asynccontextmanager
async def serving(hub: FakeHub) -> AsyncIterator[FakeHub]:
    """The hub, listening for the length of the block."""
    context = None
    if hub.pair is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(hub.pair["certificate"], hub.pair["key"])
    # What stalls is not waited for at the end.
    runners = [web.AppRunner(app, access_log=None, shutdown_timeout=0.1) for app in hub.apps()]
    try:
        for runner in runners:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        scheme = "https" if context else "http"
        hub.url, hub.storage = (f"{scheme}://127.0.0.1:{runner.addresses[0][1]}" for runner in runners)
        yield hub
    finally:
        for runner in runners:
            await runner.cleanup()
