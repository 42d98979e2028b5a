"""Bytes from an address into a file, going on where an earlier attempt ended."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import responses
from pathlib import Path
from random import Random
from urllib.parse import urljoin, urlsplit

import aiohttp

from moe2.common.backoff import Backoff
from moe2.common.errors import Moe2Error

CHUNK_BYTES = 1 << 18
PIECE_BYTES = 1 << 20
PIECE_S = 0.5
"""A piece is as large as `PIECE_BYTES`, or what comes in this time, where that is less."""
SILENCE_S = 60.0
"""A connection that brings nothing for so long is given up."""
MAX_FRUITLESS = 6
"""Connections in a row that brought no byte, after which a download is given up."""
PAUSE_S = 0.5
"""The pause after the first connection that broke off; it doubles with each further one that brings nothing."""
MAX_PAUSE_S = 15.0
UNTRUSTED_REMEDY = (
    "If it is your own, put the certificate of its authority into a file, and name that in SSL_CERT_FILE."
)
LOOK_S = 300.0
"""How long the first bytes of a file may take."""
MAX_DIGITS = 18
"""Of the size of a file."""
MAX_REDIRECTIONS = 6
_REDIRECTIONS = (301, 302, 303, 307, 308)
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


class DownloadError(Moe2Error):
    """The bytes do not come, or are the wrong ones."""


class BrokenOffError(DownloadError):
    """The bytes have come to an end too early; another connection may bring the rest."""


def _anywhere(_: str) -> bool:
    return True


@dataclass(frozen=True)
class Place:
    """Where a file's bytes are. name: for people. headers: for this very server. may_lead: whether another address may
    be asked, to which this one leads."""

    url: str
    name: str
    headers: Mapping[str, str] = field(default_factory=dict)
    may_lead: Callable[[str], bool] = _anywhere


@asynccontextmanager
async def _answer(
    session: aiohttp.ClientSession, place: Place, first: int, last: int | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer of a place, or of where it leads to, to a request for these bytes. Raises `DownloadError`, and what
    the HTTP library raises."""
    url, headers = place.url, {**place.headers, "Range": f"bytes={first}-{'' if last is None else last}"}
    for _ in range(MAX_REDIRECTIONS):
        async with session.get(url, headers=headers, allow_redirects=False) as answer:
            if answer.status not in _REDIRECTIONS or "Location" not in answer.headers:
                _check_status(answer, place.name)
                yield answer
                return
            former, url = url, _led(url, answer.headers["Location"], place.name)
        scheme, server = urlsplit(url)[:2]
        if not place.may_lead(url):
            raise DownloadError(
                f"{place.name} redirects to {scheme}://{server.rpartition('@')[2]}/, which this host may not ask.",
                remedy="If that is meant, add it to models_from.pull_from of the agent's configuration there.",
            )
        if (scheme, server) != urlsplit(former)[:2]:
            headers = {"Range": headers["Range"]}
    raise DownloadError(f"{place.name} redirects again and again.", remedy="Choose another source.")


def _led(url: str, location: str, name: str) -> str:
    """Where an answer leads to. Raises `DownloadError` for what is no address on the web."""
    try:
        led = urljoin(url, location)
        parts = urlsplit(led)
        if parts.scheme in ("http", "https") and parts.hostname and led.isascii() and led.isprintable():
            return led
    except ValueError:
        pass
    raise DownloadError(f"{name} redirects to something that is no web address.", remedy="Choose another source.")


async def look(session: aiohttp.ClientSession, place: Place, n_head: int) -> tuple[int, bytes]:
    """(the file's size, its first bytes). Raises `DownloadError`."""
    try:
        async with asyncio.timeout(LOOK_S), _answer(session, place, 0, n_head - 1) as answer:
            head = b""
            async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                head += chunk
                if len(head) >= n_head:
                    break
            whole = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get(
                "Content-Length", ""
            )
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _broken(place.name, error) from error
    if not whole.isdecimal() or len(whole) > MAX_DIGITS:
        raise DownloadError(f"{place.name} does not say how large it is.", remedy="Choose another source.")
    return int(whole), head[:n_head]


async def pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yields what an answer brings in large pieces, as a fast connection brings thousands of small ones a second, and
    each that is written by itself takes a processor from those who answer requests.

    Where the connection breaks, what has come is yielded before its error is raised.
    """
    loop = asyncio.get_running_loop()
    piece, begun_s = bytearray(), loop.time()
    try:
        async for chunk in answer.content.iter_any():
            piece += chunk
            if len(piece) >= PIECE_BYTES or loop.time() - begun_s >= PIECE_S:
                yield bytes(piece)
                piece, begun_s = bytearray(), loop.time()
    except (aiohttp.ClientError, TimeoutError, OSError):
        if piece:
            yield bytes(piece)
        raise
    if piece:
        yield bytes(piece)


async def download(
    session: aiohttp.ClientSession,
    where: Callable[[], Awaitable[Place]],
    target: Path,
    size_bytes: int,
    *,
    on_bytes: Callable[[int], None] = lambda n_bytes: None,
) -> None:
    """Appends what the file at `target` lacks, by as many connections as that takes.

    where: tells for each connection where the bytes are now. on_bytes: told how many have come, those that were there
    included. Raises `DownloadError` where connection after connection brings nothing; what has come stays for the next
    attempt.
    """
    backoff = Backoff(first_s=PAUSE_S, most_s=MAX_PAUSE_S, random=Random())
    fruitless = 0
    have = _begun(target, size_bytes)
    on_bytes(have)
    while have < size_bytes:
        before = have
        try:
            await _connection(session, await where(), target, have, size_bytes, on_bytes)
        except BrokenOffError:
            have = _begun(target, size_bytes)
            fruitless = fruitless + 1 if have <= before else 0
            if fruitless >= MAX_FRUITLESS:
                raise
            if have > before:
                backoff.succeeded()
            await asyncio.sleep(backoff.next_delay_s())
        have = _begun(target, size_bytes)


async def _connection(
    session: aiohttp.ClientSession,
    place: Place,
    target: Path,
    have: int,
    size_bytes: int,
    on_bytes: Callable[[int], None],
) -> None:
    """Appends what one connection brings. Raises `BrokenOffError` where that is not the rest."""
    try:
        async with _answer(session, place, have) as answer:
            if answer.status != HTTPStatus.PARTIAL_CONTENT:
                have = 0
            with target.open("r+b" if have else "wb") as file:
                file.seek(have)
                async for chunk in pieces(answer):
                    if have + len(chunk) > size_bytes:
                        raise DownloadError(f"{place.name} sends more than it has said.", remedy="Pull again.")
                    file.write(chunk)
                    have += len(chunk)
                    on_bytes(have)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        if not isinstance(error, aiohttp.ClientError) and getattr(error, "errno", None) in _DISK_FAULTS:
            raise DownloadError(
                f"{target} cannot be written: {error}.",
                remedy="Free space there, and pull again: it goes on where it was.",
            ) from error
        raise _broken(place.name, error) from error
    if have < size_bytes:
        raise BrokenOffError(
            f"{place.name} broke off after {have} of {size_bytes} bytes.", remedy="Pull again: it goes on where it was."
        )


def _begun(target: Path, size_bytes: int) -> int:
    """How many bytes an earlier attempt has left; one that is too long is deleted."""
    try:
        have = target.stat().st_size
    except FileNotFoundError:
        return 0
    if have <= size_bytes:
        return have
    target.unlink()
    return 0


def session() -> aiohttp.ClientSession:
    """A session for large files: no limit in all, but one for silence; proxies are the environment's."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=SILENCE_S),
        trust_env=True,
        auto_decompress=False,
    )


def _check_status(answer: aiohttp.ClientResponse, name: str) -> None:
    if answer.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    # Not the words of the server, which may be any.
    told = f"{name} answers {answer.status} {responses.get(answer.status, '')}".rstrip() + "."
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise BrokenOffError(told, remedy="Pull again later: it goes on where it was.")
    raise DownloadError(told, remedy="Check the address.")


def why_broken(error: BaseException) -> str:
    """Why a connection broke off, in few words."""
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        # Their own texts are what the HTTP library has of the answer.
        return "the connection was closed early"
    if isinstance(error, aiohttp.ClientResponseError):
        # Its text has the first bytes of whatever listens there, which nobody who orders a pull is to read.
        return "what comes from there is not HTTP"
    return str(error) or type(error).__name__


def _broken(name: str, error: BaseException) -> DownloadError:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return DownloadError(f"The certificate of {name} is not trusted: {error}.", remedy=UNTRUSTED_REMEDY)
    return BrokenOffError(f"{name} broke off: {why_broken(error)}.", remedy="Pull again: it goes on where it was.")
