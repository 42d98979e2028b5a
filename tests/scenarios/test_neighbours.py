"""Models taken from a neighbour that has them already: three real agents, real HTTP, and neighbours that fail."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from moe2.agent.supply import fetching
from moe2.common.link.supply import FILES_PATH, TICKET_HEADER, LendFile
from moe2.common.status import PushRow
from tests.fakes.certificates import Authority
from tests.fakes.fleet import Fleet, fleet
from tests.gguf import write_gguf
from tests.scenarios.test_push import OPEN, command, ended, push, taking
from tests.scenarios.test_supply import TAKES, row_of, stocked

pytestmark = pytest.mark.slow

SHARES = {**TAKES, "share": True, "share_host": "127.0.0.1", "share_port": 0}


async def given(running: Fleet, source: Path, *hosts: str) -> dict[str, PushRow]:
    """Pushes a file to hosts, to the end; the rows by host."""
    return {row.host: row for row in await ended(running, await push(running, source, *hosts))}


def bytes_at(root: Path, host: str, name: str = "big.gguf") -> bytes:
    """What a host has."""
    return (root / host / "models" / name).read_bytes()


def sent_by_coordinator(running: Fleet) -> list[int]:
    """Counts the bytes that go out at the coordinator's listener from now on; one entry for each chunk."""
    counted: list[int] = []
    pushes = running.coordinator._supply.pushes
    sent = pushes.sent

    def counting(push: Any, part: int, until_bytes: int) -> None:
        counted.append(until_bytes)
        sent(push, part, until_bytes)

    pushes.sent = counting  # type: ignore[method-assign]
    return counted


async def test_a_host_takes_a_file_from_the_neighbour_that_has_it(tmp_path: Path) -> None:
    """Not a byte of it leaves the coordinator, and the row names the neighbour."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(3_000_000))
    async with fleet(tmp_path, agents=("one", "two"), push=OPEN, models_from=SHARES) as running:
        await taking(running, "one", "two")
        assert (await given(running, source, "one"))["one"].source == "coordinator"
        counted = sent_by_coordinator(running)
        row = (await given(running, source, "two"))["two"]
        assert (row.state, row.source, counted) == ("done", "one", [])
        assert bytes_at(tmp_path, "two") == source.read_bytes()


async def test_a_file_goes_from_host_to_host(tmp_path: Path) -> None:
    """With one place at the coordinator, the hosts that wait take it from those that have it by then."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(3_000_000))
    hosts = ("one", "two", "three", "four")
    one_at_a_time = {**OPEN, "max_hosts": 1, "max_bytes_per_s": 1_500_000}
    async with fleet(tmp_path, agents=hosts, push=one_at_a_time, models_from=SHARES) as running:
        await taking(running, *hosts)
        rows = await given(running, source, *hosts)
        assert {row.state for row in rows.values()} == {"done"}
        assert sum(row.source in hosts for row in rows.values()) >= 2
        assert all(bytes_at(tmp_path, host) == source.read_bytes() for host in hosts)


async def test_parts_come_from_a_neighbour_under_its_own_names(tmp_path: Path) -> None:
    """All parts of a split model, each with a ticket of its own."""
    for number in (1, 2):
        write_gguf(tmp_path / f"m-0000{number}-of-00002.gguf", body=os.urandom(100_000))
    source = tmp_path / "m-00001-of-00002.gguf"
    async with fleet(tmp_path, agents=("one", "two"), push=OPEN, models_from=SHARES) as running:
        await taking(running, "one", "two")
        await given(running, source, "one")
        counted = sent_by_coordinator(running)
        assert (await given(running, source, "two"))["two"].source == "one"
        assert counted == []
        for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"):
            assert bytes_at(tmp_path, "two", name) == (tmp_path / name).read_bytes()


async def test_a_host_that_shares_nothing_is_asked_for_nothing(tmp_path: Path) -> None:
    """Off by default: no listener, and every host is sent to by the coordinator."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(100_000))
    async with fleet(tmp_path, agents=("one", "two"), push=OPEN, models_from=TAKES) as running:
        await taking(running, "one", "two")
        await given(running, source, "one")
        assert (await given(running, source, "two"))["two"].source == "coordinator"
        assert running.agents["one"]._supply.sharing.port is None


@pytest.mark.parametrize("fault", ["changed", "spoilt", "gone", "silent", "deaf"])
async def test_a_neighbour_that_fails_is_left_for_the_coordinator(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file has changed, its bytes are wrong, its listener is gone, it stands still, or it does not answer."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(3_000_000))
    async with fleet(tmp_path, agents=("one", "two"), push=OPEN, models_from=SHARES) as running:
        await taking(running, "one", "two")
        await given(running, source, "one")
        sharing = running.agents["one"]._supply.sharing
        path = tmp_path / "one/models/big.gguf"
        if fault == "changed":
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        if fault == "spoilt":
            (tmp_path / "other").write_bytes(os.urandom(source.stat().st_size))
            monkeypatch.setattr(sharing, "_found", lambda order: tmp_path / "other")
        if fault == "gone":
            monkeypatch.setattr("moe2.agent.supply.sharing.send_file", _hangs_up)
        if fault == "silent":
            monkeypatch.setattr(fetching, "NEIGHBOUR_SILENCE_S", 0.2)
            monkeypatch.setattr("moe2.agent.supply.sharing.send_file", _stands_still)
        if fault == "deaf":
            monkeypatch.setattr("moe2.coordinator.supply.pushes.LEND_ANSWER_S", 0.1)
            monkeypatch.setattr(sharing, "lend", lambda *_: asyncio.Event().wait())
        row = (await given(running, source, "two"))["two"]
        assert (row.state, row.source) == ("done", "coordinator")
        assert bytes_at(tmp_path, "two") == source.read_bytes()


async def _hangs_up(request: web.Request, *_: object) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _stands_still(request: web.Request, *_: object) -> web.StreamResponse:
    answer = web.StreamResponse(status=206)
    answer.content_length = 3_000_000
    await answer.prepare(request)
    await answer.write(b"GGUF")
    await asyncio.Event().wait()
    return answer


async def test_a_slow_neighbour_is_left_and_what_it_gave_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator sends the rest alone."""
    monkeypatch.setattr(fetching, "NEIGHBOUR_LOOK_S", 0.1)
    monkeypatch.setattr(fetching, "MIN_NEIGHBOUR_BYTES_PER_S", 100_000_000)
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(6_000_000))
    slow = {**SHARES, "share_max_bytes_per_s": 2_000_000}
    async with fleet(tmp_path, agents=("one", "two"), push=OPEN, models_from=slow) as running:
        await taking(running, "one", "two")
        await given(running, source, "one")
        starts: list[int] = []
        fetcher = running.agents["two"]._supply.fetcher
        connect = fetcher._connection

        async def noting(fetch: Any, place: int, part: Any, *others: Any) -> None:
            starts.append(fetch.done[part.name])
            await connect(fetch, place, part, *others)

        monkeypatch.setattr(fetcher, "_connection", noting)
        row = (await given(running, source, "two"))["two"]
        assert (row.state, row.source) == ("done", "coordinator")
        assert len(starts) == 2
        assert starts[1] > 0
        assert bytes_at(tmp_path, "two") == source.read_bytes()


async def test_a_neighbours_ticket_opens_one_request(tmp_path: Path) -> None:
    """Without one, with a guessed one, or a second time there is nothing; a browser's page gets nothing, either."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(10_000))
    async with fleet(tmp_path, push=OPEN, models_from=SHARES) as running:
        await taking(running, "one")
        await given(running, source, "one")
        await stocked(running, "one", "big.gguf")
        sharing = running.agents["one"]._supply.sharing
        [file] = row_of(running, "one").models.files  # type: ignore[union-attr]
        order = LendFile(command_id="l", sha256=file.sha256, part=0, size_bytes=file.size_bytes, secret="mine")
        await sharing.lend(order, asyncio.get_running_loop().time())
        url = f"http://127.0.0.1:{sharing.port}{FILES_PATH}"

        async def status(ticket: str, **more: str) -> int:
            async with (
                aiohttp.ClientSession() as session,
                session.get(url, headers={TICKET_HEADER: ticket, **more}) as answer,
            ):
                await answer.read()
                return answer.status

        assert [await status(ticket) for ticket in ("", "guessed")] == [403, 403]
        assert await status("mine", Origin="https://evil.example") == 403
        assert [await status("mine"), await status("mine")] == [206, 403]


async def test_with_certificates_neighbours_speak_tls_and_know_each_other(tmp_path: Path) -> None:
    """Where another certificate is shown than the coordinator has told of, the file comes from the coordinator."""
    authority = Authority(tmp_path)
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(1_000_000))
    tls = {"tls": {**authority.issue("coordinator"), "client_ca": authority.ca_file}}
    pair = authority.issue("agent")
    link = {"ca_file": authority.ca_file, **pair}
    async with fleet(
        tmp_path, agents=("one", "two"), listener=tls, push=OPEN, models_from=SHARES, link=link
    ) as running:
        await taking(running, "one", "two")
        await given(running, source, "one")
        assert (await given(running, source, "two"))["two"].source == "one"
        point = row_of(running, "one").models.share  # type: ignore[union-attr]
        assert point is not None
        assert point.fingerprint is not None
        other = write_gguf(tmp_path / "other.gguf", body=os.urandom(1_000_000))
        await given(running, other, "one")
        running.agents["one"]._supply.sharing._fingerprint = "00" * 32
        running.agents["one"]._supply._look_again.set()
        await running.until_status(lambda _: row_of(running).models.share.fingerprint == "00" * 32)  # type: ignore[union-attr]
        row = (await given(running, other, "two"))["two"]
        assert (row.state, row.source) == ("done", "coordinator")


async def test_the_command_line_names_the_neighbour(tmp_path: Path) -> None:
    """An operator sees who gave the file."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(100_000))
    async with fleet(tmp_path, agents=("one", "two"), push=OPEN, models_from=SHARES) as running:
        await taking(running, "one", "two")
        await given(running, source, "one")
        code, output, _ = await command(running, "push", str(source), "two")
        assert (code, output.partition(", sha256")[0]) == (0, "two has big.gguf from one")
