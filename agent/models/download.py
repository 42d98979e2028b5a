"""Bytes from an address into a file, going on where an earlier attempt ended."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import aiohttp

from moe2.common.errors import Moe2Error

CHUNK_BYTES = 1 << 18
SILENCE_S = 60.0
"""A server that sends nothing for so long is given up."""


class DownloadError(Moe2Error):
    """The bytes do not come, or are the wrong ones."""


async def look(session: aiohttp.ClientSession, url: str, n_head: int) -> tuple[int, bytes]:
    """(the file's size, its first bytes). Raises `DownloadError`."""
    try:
        async with session.get(url, headers={"Range": f"bytes=0-{n_head - 1}"}) as answer:
            _check_status(answer, url)
            head = b""
            async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                head += chunk
                if len(head) >= n_head:
                    break
            whole = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get(
                "Content-Length", ""
            )
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _broken(url, error) from error
    if not whole.isdecimal():
        raise DownloadError(f"{url} does not say how large it is.", remedy="Choose another source.")
    return int(whole), head[:n_head]


async def download(
    session: aiohttp.ClientSession,
    url: str,
    target: Path,
    size_bytes: int,
    *,
    on_bytes: Callable[[int], None] = lambda n_bytes: None,
) -> None:
    """Appends what the file at `target` lacks. on_bytes: told how many have come, those that were there included.

    Raises `DownloadError`; what has come stays for the next attempt.
    """
    have = _begun(target, size_bytes)
    on_bytes(have)
    if have == size_bytes:
        return
    try:
        async with session.get(url, headers={"Range": f"bytes={have}-"}) as answer:
            _check_status(answer, url)
            if answer.status != HTTPStatus.PARTIAL_CONTENT:
                have = 0
            with target.open("r+b" if have else "wb") as file:
                file.seek(have)
                async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                    if have + len(chunk) > size_bytes:
                        raise DownloadError(f"{url} sends more than it has said.", remedy="Pull again.")
                    file.write(chunk)
                    have += len(chunk)
                    on_bytes(have)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _broken(url, error) from error
    if have < size_bytes:
        raise DownloadError(f"{url} ended after {have} of {size_bytes} bytes.", remedy="Pull again: it goes on there.")


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


def sha256_of(path: Path) -> str:
    """The SHA-256 of one file in hexadecimal. Blocks. Raises `OSError`."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def session() -> aiohttp.ClientSession:
    """A session for large files: no limit in all, but one for silence; proxies are the environment's."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=SILENCE_S),
        trust_env=True,
        auto_decompress=False,
    )


def _check_status(answer: aiohttp.ClientResponse, url: str) -> None:
    if answer.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise DownloadError(
            f"{url} answers {answer.status} {answer.reason or ''}".rstrip() + ".", remedy="Check the address."
        )


def _broken(url: str, error: BaseException) -> DownloadError:
    return DownloadError(f"{url} broke off: {error or type(error).__name__}.", remedy="Pull again: it goes on there.")
