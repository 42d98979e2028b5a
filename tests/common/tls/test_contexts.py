"""TLS contexts from files, with real certificates and real handshakes."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import uvloop
from aiohttp import web

from moe2.common.tls.contexts import (
    ServerFiles,
    ServerTls,
    TlsError,
    client_context,
    connection_fault,
    load_server_files,
)
from moe2.common.tls.fault import TlsFault
from tests.fakes.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def listening(context: ssl.SSLContext | None) -> AsyncIterator[int]:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="yes")

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def server(certificate: Path, key: Path, client_ca: Path | None = None) -> ServerTls:
    return ServerTls(ServerFiles(certificate, key, client_ca))


def trusting(authority: Authority, pair: dict[str, Path] | None = None) -> ssl.SSLContext:
    pair = pair or {}
    return client_context(ca_file=authority.ca_file, certificate=pair.get("certificate"), key=pair.get("key"))


async def fault_of(port: int, context: ssl.SSLContext, host: str = "127.0.0.1") -> TlsError | None:
    """Why a request fails, raised as it is where that is not explained; None if it is answered."""
    async with aiohttp.ClientSession() as http:
        try:
            async with http.get(f"https://{host}:{port}/", ssl=context) as answer:
                assert await answer.text() == "yes"
        except (aiohttp.ClientError, OSError) as error:
            if fault := connection_fault(error):
                return fault
            raise
    return None


async def serial_of(port: int, context: ssl.SSLContext) -> str:
    """Which certificate a new connection is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    serial: str = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    await writer.wait_closed()
    return serial


# --- Handshakes -------------------------------------------------------------------------------------------------------


async def test_a_certificate_of_the_right_ca_is_accepted(authority: Authority) -> None:
    """And its name is that of the address."""
    async with listening(server(**authority.issue()).context) as port:
        assert await fault_of(port, trusting(authority)) is None


async def test_a_certificate_of_another_ca_is_refused(authority: Authority, tmp_path: Path) -> None:
    """With what to set."""
    async with listening(server(**authority.issue()).context) as port:
        fault = await fault_of(port, trusting(Authority(tmp_path, "other")))
        assert fault is not None
        assert fault.fault is TlsFault.CERTIFICATE_UNTRUSTED
        assert "coordinator.ca_file" in str(fault)


async def test_the_systems_cas_do_not_know_ours(authority: Authority) -> None:
    """Without a ca_file only public CAs are trusted."""
    async with listening(server(**authority.issue()).context) as port:
        fault = await fault_of(port, client_context(ca_file=None, certificate=None, key=None))
        assert fault is not None
        assert fault.fault is TlsFault.CERTIFICATE_UNTRUSTED


async def test_an_expired_certificate_is_refused(authority: Authority) -> None:
    """And named as such, as a wrong clock may be the reason."""
    async with listening(server(**authority.issue(valid_days=-1)).context) as port:
        fault = await fault_of(port, trusting(authority))
        assert fault is not None
        assert fault.fault is TlsFault.CERTIFICATE_EXPIRED
        assert "clock" in str(fault)


async def test_a_certificate_that_is_not_valid_yet_is_refused(authority: Authority) -> None:
    """So are all to a host whose clock says 1970: the error names the clock."""
    async with listening(server(**authority.issue(since_days=-1)).context) as port:
        fault = await fault_of(port, trusting(authority))
        assert fault is not None
        assert fault.fault is TlsFault.CERTIFICATE_NOT_YET_VALID
        assert "clock" in str(fault)


@pytest.mark.parametrize("host", ["hub.example", "192.0.2.1"])
async def test_a_certificate_for_another_name_is_refused(authority: Authority, host: str) -> None:
    """Names and addresses alike; the error tells which it was."""
    async with listening(server(**authority.issue(host=host)).context) as port:
        fault = await fault_of(port, trusting(authority))
        assert fault is not None
        assert fault.fault is TlsFault.CERTIFICATE_NAME
        assert "127.0.0.1" in str(fault)


async def test_a_listener_without_tls_is_named(authority: Authority) -> None:
    """wss:// against ws://."""
    async with listening(None) as port:
        fault = await fault_of(port, trusting(authority))
        assert fault is not None
        assert fault.fault is TlsFault.NO_TLS


async def test_mutual_tls_asks_for_a_certificate_of_its_ca(authority: Authority, tmp_path: Path) -> None:
    """None, one of another CA, and a good one."""
    other = Authority(tmp_path, "other")
    tls = server(**authority.issue(), client_ca=authority.ca_file)
    async with listening(tls.context) as port:
        for pair in (None, other.issue("stranger")):
            fault = await fault_of(port, trusting(authority, pair))
            assert fault is not None
            assert fault.fault is TlsFault.CLIENT_CERTIFICATE_REFUSED
        assert await fault_of(port, trusting(authority, authority.issue("agent"))) is None


# --- Reload -----------------------------------------------------------------------------------------------------------


async def test_a_new_certificate_is_shown_to_new_connections_and_old_ones_live(authority: Authority) -> None:
    """On the same listener."""
    tls = server(**authority.issue())
    context = trusting(authority)
    async with listening(tls.context) as port:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as http:
            async with http.get(f"https://127.0.0.1:{port}/", ssl=context) as answer:
                assert await answer.text() == "yes"
            before = await serial_of(port, context)
            assert not tls.load_changed()
            authority.issue()
            assert tls.load_changed()
            assert await serial_of(port, context) != before
            async with http.get(f"https://127.0.0.1:{port}/", ssl=context) as answer:
                assert await answer.text() == "yes"


async def test_a_pair_that_does_not_fit_leaves_the_former_one_in_use(authority: Authority, tmp_path: Path) -> None:
    """Half of a replacement, say. It is told once, and the whole pair is taken then."""
    pair = authority.issue()
    tls, context = server(**pair), trusting(authority)
    async with listening(tls.context) as port:
        before = await serial_of(port, context)
        good_key = authority.issue("next")
        good_key["certificate"].replace(pair["certificate"])
        with pytest.raises(TlsError, match="does not belong to the certificate"):
            tls.load_changed()
        assert not tls.load_changed()
        assert await serial_of(port, context) == before
        good_key["key"].replace(pair["key"])
        assert tls.load_changed()
        assert await serial_of(port, context) != before


async def test_another_client_ca_holds_for_new_connections_and_old_ones_live(
    authority: Authority, tmp_path: Path
) -> None:
    """The former CA is taken back; so is the wish for certificates as a whole."""
    pair, other = authority.issue(), Authority(tmp_path, "other")
    ours, theirs = (trusting(authority, ca.issue(name)) for ca, name in ((authority, "ours"), (other, "theirs")))
    tls = server(**pair, client_ca=authority.ca_file)
    async with listening(tls.context) as port, aiohttp.ClientSession() as http:
        async with http.get(f"https://127.0.0.1:{port}/", ssl=ours) as answer:
            assert await answer.text() == "yes"
        tls.use(load_server_files(ServerFiles(**pair, client_ca=other.ca_file)))
        assert await fault_of(port, theirs) is None
        for context in (ours, trusting(authority)):
            fault = await fault_of(port, context)
            assert fault is not None
            assert fault.fault is TlsFault.CLIENT_CERTIFICATE_REFUSED
        async with http.get(f"https://127.0.0.1:{port}/", ssl=ours) as answer:
            assert await answer.text() == "yes"
        tls.use(load_server_files(ServerFiles(**pair)))
        assert await fault_of(port, trusting(authority)) is None


async def test_a_client_ca_that_is_replaced_is_noticed(authority: Authority, tmp_path: Path) -> None:
    """As certificates are; one that is none is told, and the former stays."""
    pair, other = authority.issue(), Authority(tmp_path, "other")
    theirs = trusting(authority, other.issue("theirs"))
    tls = server(**pair, client_ca=authority.ca_file)
    async with listening(tls.context) as port:
        good = other.ca_file.read_text()
        authority.ca_file.write_text("nonsense")
        with pytest.raises(TlsError, match="not in PEM form"):
            tls.load_changed()
        assert await fault_of(port, theirs) is not None
        authority.ca_file.write_text(good)
        assert tls.load_changed()
        assert await fault_of(port, theirs) is None


def test_an_older_session_does_not_get_past_another_client_ca(authority: Authority, tmp_path: Path) -> None:
    """A resumed session shows no certificate again. On uvloop, which the coordinator runs on."""
    pair, other = authority.issue(), Authority(tmp_path, "other")
    context = trusting(authority, authority.issue("ours"))
    # TLS 1.3 sends its sessions after the handshake, here they are there with it.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    tls = server(**pair, client_ca=authority.ca_file)

    def resumed(port: int, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
        plain = socket.create_connection(("127.0.0.1", port))
        with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as connection:
            return connection.session, connection.session_reused

    async def check() -> None:
        async with listening(tls.context) as port:
            session, _ = await asyncio.to_thread(resumed, port, None)
            assert (await asyncio.to_thread(resumed, port, session))[1]
            tls.use(load_server_files(ServerFiles(**pair, client_ca=other.ca_file)))
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(resumed, port, session)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(check())


# --- Files ------------------------------------------------------------------------------------------------------------


def test_a_key_of_another_certificate_is_named(authority: Authority) -> None:
    """Both files are in the message."""
    one, two = authority.issue("one"), authority.issue("two")
    with pytest.raises(TlsError, match=r"two\.key does not belong to the certificate .*one\.pem"):
        server(one["certificate"], two["key"])


@pytest.mark.parametrize("missing", ["certificate", "key"])
def test_a_missing_file_is_named(authority: Authority, missing: str) -> None:
    """Python's own error does not tell which of the two it is."""
    pair = authority.issue()
    pair[missing].unlink()
    with pytest.raises(TlsError, match=f"{pair[missing].name} cannot be read: No such file"):
        server(**pair)


def test_files_that_are_swapped_are_named(authority: Authority) -> None:
    """A key is no certificate, and the other way round."""
    pair = authority.issue()
    with pytest.raises(TlsError, match=r"server\.key cannot be used: no certificate"):
        server(pair["key"], pair["certificate"])
    with pytest.raises(TlsError, match=r"server\.pem holds no private key"):
        client_context(ca_file=None, certificate=pair["certificate"], key=pair["certificate"])


def test_an_encrypted_key_does_not_ask_for_its_password(authority: Authority) -> None:
    """A daemon has no terminal."""
    pair = authority.issue()
    pair["key"].write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    with pytest.raises(TlsError, match="is encrypted"):
        server(**pair)


def test_a_ca_file_that_is_none_is_named(authority: Authority, tmp_path: Path) -> None:
    """DER, or a key."""
    binary = tmp_path / "ca.der"
    binary.write_bytes(b"\x30\x82")
    for ca_file, problem in ((binary, "not in PEM form"), (authority.issue()["key"], "holds no CA certificate")):
        with pytest.raises(TlsError, match=problem):
            client_context(ca_file=ca_file, certificate=None, key=None)


def test_old_versions_of_tls_are_not_spoken(authority: Authority) -> None:
    """TLS 1.2 is the least, on both ends."""
    for context in (server(**authority.issue()).context.newest, trusting(authority)):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_errors_that_have_nothing_to_do_with_tls_are_left_alone() -> None:
    """A refused connection is not explained by certificates."""
    assert connection_fault(ConnectionRefusedError()) is None
