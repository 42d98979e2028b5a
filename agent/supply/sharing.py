"""Gives models of this host's folder to neighbours: one part for each ticket that the coordinator has told of."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import IPv4Interface, ip_address
from pathlib import Path

import structlog
from aiohttp import web

from moe2.agent.energy.blocking import in_daemon_thread
from moe2.agent.engine.llama.parts import parts_of
from moe2.agent.models.files import ChecksumStore
from moe2.agent.models.library import Library
from moe2.agent.settings import ModelsFromSection
from moe2.agent.standby.addresses import own_interfaces
from moe2.common.errors import Moe2Error
from moe2.common.filestream import Pace, check_plain, send_file
from moe2.common.link.supply import FILES_PATH, TICKET_HEADER, LendFile, SharePoint
from moe2.common.listening import CONNECTIONS_PER_ADDRESS, HEADER_S, SEND_S, Listening, OpenConnections, listen
from moe2.common.tickets import TicketFault, Tickets

log = structlog.get_logger()

MAX_REQUESTS = 8
"""Files that are given at once, whoever asks; a further request is refused, and goes to the coordinator."""
EVERYWHERE = "0.0.0.0"  # noqa: S104 - only where models_from.share says so
NOBODY = ""
"""Whose the tickets are: whoever shows one. Only the coordinator knows the agents' credentials."""


class SharingError(Moe2Error):
    """A file that this host does not give."""


class Sharing:
    """This host's listener for neighbours, closed unless the configuration opens it.

    pair: certificate and key for TLS; None for none. interfaces: this host's addresses.
    """

    def __init__(
        self,
        settings: ModelsFromSection,
        library: Library,
        checksums: ChecksumStore,
        *,
        pair: tuple[Path, Path] | None,
        interfaces: Callable[[], Sequence[IPv4Interface]] = own_interfaces,
    ) -> None:
        self._settings = settings
        self._library = library
        self._checksums = checksums
        self._host = settings.share_host or EVERYWHERE
        self._pair = pair
        self._interfaces = interfaces
        self._pace = Pace(settings.share_max_bytes_per_s)
        self._tickets = Tickets()
        self._lent: dict[str, tuple[Path, int]] = {}
        self._n_giving = 0
        self.port: int | None = None
        self._fingerprint: str | None = None

    def networks(self) -> tuple[str, ...]:
        """This host's addresses with their networks. Blocks for as long as the kernel takes."""
        return tuple(str(interface) for interface in self._interfaces())

    def point(self, networks: Sequence[str]) -> SharePoint | None:
        """Where neighbours find the listener; None where there is none. networks: as of `networks`."""
        if self.port is None:
            return None
        host = self._host
        addresses = networks
        if not ip_address(host).is_unspecified:
            addresses = [text for text in networks if text.partition("/")[0] == host]
        return SharePoint(addresses=tuple(addresses), port=self.port, fingerprint=self._fingerprint)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listens for the length of the block where the configuration says so. Raises `Moe2Error` where it cannot."""
        if not self._settings.share:
            yield
            return
        context = None
        if self._pair is not None:
            context, self._fingerprint = await asyncio.to_thread(_server_context, *self._pair)
        app = web.Application()
        app.router.add_get(FILES_PATH, self._give, allow_head=False)
        where = Listening("models_from.share_", self._host, self._settings.share_port, HEADER_S, context, SEND_S)
        async with AsyncExitStack() as stack:
            self.port = (await listen(stack, app, where, OpenConnections(CONNECTIONS_PER_ADDRESS))).port
            stack.callback(self._close)
            yield

    def _close(self) -> None:
        self.port = None

    async def lend(self, order: LendFile, now_s: float) -> None:
        """Expects a neighbour with this ticket. Raises `SharingError` for a file that is not here as it should be."""
        if self.port is None:
            raise SharingError("models_from.share is not set on this host.", remedy="Set it, and restart the agent.")
        path = await in_daemon_thread(partial(self._found, order))
        self._tickets.issue(order.secret, NOBODY, order.command_id, order.part, now_s)
        self._lent = {key: one for key, one in self._lent.items() if self._tickets.is_out(NOBODY, key)}
        self._lent[order.command_id] = path, order.size_bytes

    def _found(self, order: LendFile) -> Path:
        file = self._library.find_sha256(order.sha256)
        gone = SharingError("This host does not have that file any more.")
        if file is None:
            raise gone
        path = self._library.path(file.name)
        parts = parts_of(path)
        try:
            is_same = self._checksums.known(path) == order.sha256
            if not is_same or order.part >= len(parts) or parts[order.part].stat().st_size != order.size_bytes:
                raise gone
        except OSError as error:
            raise gone from error
        return parts[order.part]

    async def _give(self, request: web.Request) -> web.StreamResponse:
        check_plain(request)
        now_s = asyncio.get_running_loop().time()
        found = self._tickets.redeem(request.headers.get(TICKET_HEADER, ""), NOBODY, now_s)
        if isinstance(found, TicketFault):
            raise web.HTTPForbidden(text=f"The ticket opens nothing: {found.value}.")
        path, size_bytes = self._lent.pop(found.command_id)
        if self._n_giving >= MAX_REQUESTS:
            raise web.HTTPServiceUnavailable(text="This host gives as many files as it can.")
        self._n_giving += 1
        log.info("file_given", file=path.name, peer=request.remote)
        try:
            return await send_file(request, path, size_bytes, self._pace, lambda _: None)
        finally:
            self._n_giving -= 1


def _server_context(certificate: Path, key: Path) -> tuple[ssl.SSLContext, str]:
    """(the context, SHA-256 of the certificate). Raises `SharingError` for a pair that cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
        first, end, _ = certificate.read_text().partition("-----END CERTIFICATE-----")
        der = ssl.PEM_cert_to_DER_cert(first[first.index("-----BEGIN CERTIFICATE-----") :] + end)
    except (OSError, ValueError) as error:
        raise SharingError(
            f"{certificate} and {key} cannot be used for neighbours: {error}.",
            remedy="Correct coordinator.certificate and coordinator.key.",
        ) from error
    return context, hashlib.sha256(der).hexdigest()
