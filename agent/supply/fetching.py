"""Fetches models that the coordinator sends: by ranges, a ticket for each connection, checked before they count."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from io import FileIO
from pathlib import Path
from random import Random
from time import time
from urllib.parse import urlsplit

import aiohttp
import structlog

from moe2.agent.energy.blocking import in_daemon_thread
from moe2.agent.engine.llama.capacity import capacity_for
from moe2.agent.engine.llama.memory import Capacity
from moe2.agent.models.download import pieces, why_broken
from moe2.agent.models.files import ChecksumStore
from moe2.agent.models.fit import check_limit, check_space
from moe2.agent.models.library import Library, LibraryFile
from moe2.common.backoff import Backoff
from moe2.common.checksums import checksums_of
from moe2.common.errors import Moe2Error
from moe2.common.link.supply import FILES_PATH, TICKET_HEADER, Fetching, FetchModel, FilePart, Ticket, TicketWanted
from moe2.common.modelsource import checked_name

log = structlog.get_logger()

CHUNK_BYTES = 1 << 18
SILENCE_S = 60.0
NEIGHBOUR_SILENCE_S = 10.0
"""A neighbour that says nothing for so long is left for the coordinator."""
NEIGHBOUR_LOOK_S = 10.0
"""How long a neighbour's rate is watched before it is judged; it is judged again after each such time."""
MIN_NEIGHBOUR_BYTES_PER_S = 256 << 10
"""A neighbour that gives less than this is left for the coordinator."""
COORDINATOR = "coordinator"
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
MAX_FRUITLESS = 20
"""Connections in a row that brought no byte, after which a fetch is given up."""


class FetchError(Moe2Error):
    """A model that could not be fetched, or is not what it should be."""


class NeighbourError(Moe2Error):
    """A neighbour that is too slow to be waited for."""


class _Digest:
    """The checksum of bytes as they come, from a file's first one on."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self._sha256 = hashlib.sha256()

    def add(self, content: bytes) -> None:
        """Takes the next bytes."""
        self._sha256.update(content)
        self.n_bytes += len(content)

    def of(self, n_bytes: int) -> str | None:
        """The checksum of so many bytes; None where it has seen others."""
        return self._sha256.hexdigest() if self.n_bytes == n_bytes else None


@dataclass
class _Fetch:
    """One model on its way. alone: from the coordinator itself, because a neighbour was slow, gone or wrong.

    source: who gives it now. digest: of the part that comes. mixed: parts of which not every byte came from the
    coordinator since this fetch began.
    """

    order: FetchModel
    tickets: asyncio.Queue[Ticket | None] = field(default_factory=asyncio.Queue)
    """None where another order for the same file takes over."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    wanted: TicketWanted | None = None
    """What the coordinator was asked for and has not given yet."""
    done: dict[str, int] = field(default_factory=dict)
    alone: bool = False
    source: str = COORDINATOR
    digest: _Digest = field(default_factory=_Digest)
    mixed: set[int] = field(default_factory=set)


class Fetcher:
    """The models on their way to this host.

    url: the coordinator's, as the link has it. tls: makes a connection's context. headers: show who this agent is. ask:
    sends the coordinator a word; False where it is away.
    """

    def __init__(
        self,
        library: Library,
        checksums: ChecksumStore,
        *,
        max_bytes: int | None,
        url: str,
        tls: Callable[[], ssl.SSLContext | None],
        headers: Callable[[], Mapping[str, str]],
        ask: Callable[[TicketWanted], bool],
        changed: Callable[[], None],
        capacity: Callable[[str], Capacity] = capacity_for,
    ) -> None:
        self._library = library
        self._checksums = checksums
        self._max_bytes = max_bytes
        self._host = urlsplit(url).hostname or ""
        self._tls = tls
        self._headers = headers
        self._ask = ask
        self._changed = changed
        self.others_bytes: Callable[[], int] = lambda: 0
        """What others have promised of `max_bytes`."""
        self._capacity = capacity
        self._fetches: dict[str, _Fetch] = {}
        self._architectures: set[str] = set()
        """Those that llama.cpp has said it knows: it takes a second of a small host's processor to ask."""

    def rows(self) -> tuple[Fetching, ...]:
        """What is on its way, for the report."""
        return tuple(
            Fetching(
                file=fetch.order.parts[0].name,
                sha256=fetch.order.sha256,
                done_bytes=sum(fetch.done.values()),
                size_bytes=sum(part.size_bytes for part in fetch.order.parts),
                source=fetch.source,
            )
            for fetch in self._fetches.values()
        )

    def pending_bytes(self) -> int:
        """The bytes of what is on its way."""
        return sum(row.size_bytes for row in self.rows())

    def ticket(self, ticket: Ticket) -> None:
        """The coordinator lets a part be fetched now."""
        fetch = self._fetches.get(ticket.command_id)
        if fetch is not None and fetch.wanted is not None and fetch.wanted.part == ticket.part:
            fetch.wanted = None
            fetch.tickets.put_nowait(ticket)

    def link_opened(self) -> None:
        """Asks the coordinator again for what it was asked for before its link broke."""
        for fetch in self._fetches.values():
            if fetch.wanted is not None:
                self._ask(fetch.wanted)

    async def fetch(self, order: FetchModel) -> None:
        """Fetches a model, checks it and enters it. Raises `Moe2Error` with what went wrong."""
        for part in order.parts:
            checked_name(part.name)
        name = order.parts[0].name
        await self._taken_over(order)
        known = await in_daemon_thread(partial(self._library.find, name))
        if known is not None and known.sha256 == order.sha256:
            return
        if known is not None:
            raise FetchError(
                f"{name} is here already, and is another file.", remedy="Send it under another name, or remove it here."
            )
        names = [part.name for part in order.parts]
        fetch = self._fetches[order.command_id] = _Fetch(order)
        try:
            with self._library.claimed(name):
                if (stranger := await in_daemon_thread(partial(self._library.stranger, names))) is not None:
                    await in_daemon_thread(partial(self._adopt, order, stranger))
                    return
                others = self.pending_bytes() + self.others_bytes()
                await in_daemon_thread(partial(self._check, order, others))
                for place, part in enumerate(order.parts):
                    await self._part(fetch, place, part)
                await in_daemon_thread(partial(self._enter, order))
        finally:
            del self._fetches[order.command_id]
            fetch.ended.set()
            self._changed()

    async def _taken_over(self, order: FetchModel) -> None:
        """Ends earlier orders for the same file before their next connection; what they have brought stays.

        A coordinator that was started anew knows nothing of them and gives them no more tickets.
        """
        for fetch in tuple(self._fetches.values()):
            if fetch.order.sha256 == order.sha256 and fetch.order.parts[0].name == order.parts[0].name:
                fetch.tickets.put_nowait(None)
                await fetch.ended.wait()

    def _adopt(self, order: FetchModel, stranger: str) -> None:
        """Enters a file that is in the folder and not in the index, such as after a crash, if it is the one."""
        path = self._library.path(order.parts[0].name)
        if not path.exists() or self._checksums.sha256(path) != order.sha256:
            raise FetchError(
                f"{stranger} is in the folder already, and was not sent here.",
                remedy="Send it under another name, or move that one away: no file of the host's is written over.",
            )
        self._add(order)

    def _check(self, order: FetchModel, promised_bytes: int) -> None:
        name, n_bytes = order.parts[0].name, sum(part.size_bytes for part in order.parts)
        if order.architecture not in self._architectures and not self._capacity(order.architecture).knows:
            raise FetchError(
                f"{name} has the architecture {order.architecture!r}, which this host's llama.cpp does not know.",
                remedy="Install a newer llama-cpp-python there, or use another model.",
            )
        self._architectures.add(order.architecture)
        held = self._library.used_bytes() + promised_bytes - n_bytes
        check_limit(name, n_bytes, held_bytes=held, max_bytes=self._max_bytes)
        self._library.ready()
        here = sum(_size(self._library.partial_path(part.name)) for part in order.parts)
        check_space(
            name,
            max(0, n_bytes - here),
            free_bytes=self._library.free_bytes(),
            folder=str(self._library.folder),
        )

    async def _part(self, fetch: _Fetch, place: int, part: FilePart) -> None:
        """Fetches a part until it is whole and right; what a neighbour has spoilt comes from the coordinator again."""
        target = self._library.partial_path(part.name)
        if await in_daemon_thread(partial(_begun, target, part.size_bytes)):
            fetch.mixed.add(place)
        while True:
            fetch.digest = _Digest()
            await self._bytes(fetch, place, part, target)
            # What an earlier fetch has left is read again.
            sha256 = fetch.digest.of(part.size_bytes) or (await in_daemon_thread(partial(checksums_of, [target]))).whole
            if sha256 == part.sha256:
                return
            target.unlink(missing_ok=True)
            if place not in fetch.mixed:
                raise FetchError(
                    f"{part.name} has the checksum {sha256}, not {part.sha256}; it was thrown away.",
                    remedy="Push it again.",
                )
            log.warning("fetched_wrong_bytes", file=part.name, source=fetch.source, sha256=sha256)
            fetch.mixed.discard(place)
            fetch.alone = True

    async def _bytes(self, fetch: _Fetch, place: int, part: FilePart, target: Path) -> None:
        """Fetches until so many bytes are there, by as many connections as that takes."""
        backoff = Backoff(first_s=0.2, most_s=15.0, random=Random())
        fruitless = 0
        have = fetch.done[part.name] = await in_daemon_thread(partial(_begun, target, part.size_bytes))
        while have < part.size_bytes:
            before = have
            ticket = await self._ticket(fetch, place)
            try:
                await self._connection(fetch, place, part, target, ticket)
                reason = "the connection was closed early"
            except (aiohttp.ClientError, TimeoutError, OSError, NeighbourError) as error:
                if isinstance(error, OSError) and error.errno in _DISK_FAULTS:
                    raise FetchError(
                        f"{target} cannot be written: {error.strerror}.", remedy="Free space there, and push it again."
                    ) from error
                reason = why_broken(error)
            have = fetch.done[part.name] = await in_daemon_thread(partial(_begun, target, part.size_bytes))
            if have == part.size_bytes:
                break
            log.info("fetch_interrupted", file=part.name, have_bytes=have, source=ticket.source, reason=reason)
            if ticket.address is not None:
                fetch.alone = True
                continue
            fruitless = fruitless + 1 if have == before else 0
            if have > before:
                backoff.succeeded()
            if fruitless >= MAX_FRUITLESS:
                raise FetchError(f"{part.name} could not be fetched: {reason}.", remedy="Push it again.")
            await asyncio.sleep(backoff.next_delay_s())

    async def _ticket(self, fetch: _Fetch, place: int) -> Ticket:
        """Asks for a ticket and waits for it."""
        fetch.wanted = TicketWanted(command_id=fetch.order.command_id, part=place, alone=fetch.alone)
        self._ask(fetch.wanted)
        ticket = await fetch.tickets.get()
        if ticket is None:
            raise FetchError(f"{fetch.order.parts[0].name} is fetched by a later order.")
        fetch.source = ticket.source
        if ticket.address is not None:
            fetch.mixed.add(place)
        self._changed()
        return ticket

    def _request(self, ticket: Ticket) -> tuple[str, dict[str, str], ssl.SSLContext | aiohttp.Fingerprint | bool]:
        """(address, headers, TLS) of a ticket's request. A neighbour is shown the ticket, and no credential."""
        host = ticket.address or self._host
        url = f"{'https' if ticket.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{ticket.port}{FILES_PATH}"
        headers = {TICKET_HEADER: ticket.secret}
        if ticket.address is None:
            return url, {**headers, **self._headers()}, (self._tls() if ticket.tls else None) or True
        try:
            return url, headers, aiohttp.Fingerprint(bytes.fromhex(ticket.fingerprint)) if ticket.fingerprint else True
        except ValueError as error:
            raise aiohttp.ClientError(f"{ticket.source} has no certificate that can be known again") from error

    async def _connection(self, fetch: _Fetch, place: int, part: FilePart, target: Path, ticket: Ticket) -> None:
        """Fetches as much of a part as one connection brings. Raises `NeighbourError` for a slow neighbour."""
        have = fetch.done[part.name]
        url, headers, tls = self._request(ticket)
        is_neighbour = ticket.address is not None
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=10.0, sock_read=NEIGHBOUR_SILENCE_S if is_neighbour else SILENCE_S
        )
        loop = asyncio.get_running_loop()
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False, read_bufsize=CHUNK_BYTES) as session,
            session.get(url, headers={**headers, "Range": f"bytes={have}-"}, ssl=tls, allow_redirects=False) as answer,
        ):
            if answer.status != HTTPStatus.PARTIAL_CONTENT:
                raise aiohttp.ClientError(f"it answers {answer.status}: {await _said(answer)}")
            judged_s, judged_bytes = loop.time(), have
            digest = fetch.digest if fetch.digest.n_bytes == have else None
            with await in_daemon_thread(partial(_opened, target, have)) as file:
                async for chunk in pieces(answer):
                    if have + len(chunk) > part.size_bytes:
                        if is_neighbour:
                            raise NeighbourError(f"{ticket.source} gives more than was asked for.")
                        raise FetchError(f"{part.name} is longer than was said.", remedy="Push it again.")
                    await asyncio.to_thread(_write_all, file, chunk, digest)
                    have += len(chunk)
                    fetch.done[part.name] = have
                    now_s = loop.time()
                    if is_neighbour and now_s - judged_s >= NEIGHBOUR_LOOK_S:
                        if have - judged_bytes < MIN_NEIGHBOUR_BYTES_PER_S * (now_s - judged_s):
                            raise NeighbourError(f"{ticket.source} is slow.")
                        judged_s, judged_bytes = now_s, have

    def _enter(self, order: FetchModel) -> None:
        for part in order.parts:
            self._library.partial_path(part.name).replace(self._library.path(part.name))
        path = self._library.path(order.parts[0].name)
        if len(order.parts) == 1:
            self._checksums.remember(path, order.parts[0].sha256)
        if self._checksums.sha256(path) != order.sha256:
            raise FetchError(f"{path.name} has another checksum than its parts.", remedy="Push it again.")
        self._add(order)

    def _add(self, order: FetchModel) -> None:
        self._library.add(
            LibraryFile(
                name=order.parts[0].name,
                size_bytes=sum(part.size_bytes for part in order.parts),
                sha256=order.sha256,
                origin=order.origin,
                added_unix_s=time(),
                licence=order.licence,
                architecture=order.architecture,
            )
        )


async def _said(answer: aiohttp.ClientResponse) -> str:
    """The beginning of an answer's text, however long it is."""
    return (await answer.content.read(200)).decode("utf-8", "replace")


def _opened(target: Path, have: int) -> FileIO:
    file = FileIO(target, "r+" if have else "w")
    file.seek(have)
    return file


def _write_all(file: FileIO, content: bytes, digest: _Digest | None) -> None:
    """Writes bytes and adds them to the checksum, piece by piece, as reading all of them again takes a core.

    A write may take only a part, such as what still fits on the disk; the next one then says why.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    if digest is not None:
        digest.add(content)


def _begun(target: Path, size_bytes: int) -> int:
    """How many bytes are there; a file that is too long is deleted."""
    have = _size(target)
    if have <= size_bytes:
        return have
    target.unlink()
    return 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
