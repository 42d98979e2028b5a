"""Models pushed over TLS: the real listener, real certificates, a wrong CA."""

from __future__ import annotations

import os
from pathlib import Path

import aiohttp
import pytest

from moe2.common.link.supply import FILES_PATH
from moe2.common.tls.contexts import client_context
from tests.fakes.certificates import Authority
from tests.fakes.fleet import fleet
from tests.gguf import write_gguf
from tests.scenarios.test_push import OPEN, ended, push, taking
from tests.scenarios.test_supply import TAKES


@pytest.mark.slow
async def test_a_push_travels_over_the_tls_of_the_link(tmp_path: Path) -> None:
    """The file arrives whole, and the listener speaks nothing but TLS."""
    authority = Authority(tmp_path)
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(2_000_000))
    tls, link = {"tls": authority.issue()}, {"ca_file": authority.ca_file}
    async with fleet(tmp_path, listener=tls, push=OPEN, models_from=TAKES, link=link) as running:
        await taking(running, "one")
        [row] = await ended(running, await push(running, source, "one"))
        assert row.state == "done"
        assert (tmp_path / "one/models/big.gguf").read_bytes() == source.read_bytes()
        address = f"127.0.0.1:{running.coordinator._supply.pushes.port}{FILES_PATH}"
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://{address}")


@pytest.mark.slow
async def test_an_agent_that_trusts_another_ca_fetches_nothing(tmp_path: Path) -> None:
    """Its link stands; with another CA from then on, the next connection for a file ends before a byte of it."""
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(2_000_000))
    tls, link = {"tls": authority.issue()}, {"ca_file": authority.ca_file}
    async with fleet(tmp_path, listener=tls, push=OPEN, models_from=TAKES, link=link) as running:
        await taking(running, "one")
        fetcher = running.agents["one"]._supply.fetcher
        trusted = fetcher._tls
        tried: list[int] = []

        def distrusting() -> object:
            tried.append(len(tried))
            return client_context(ca_file=other.ca_file, certificate=None, key=None)

        fetcher._tls = distrusting  # type: ignore[assignment]
        ids = await push(running, source, "one")
        await running.until_status(lambda _: len(tried) >= 2)
        assert running.coordinator.status().pushes[0].done_bytes == 0
        assert not (tmp_path / "one/models/.big.gguf.partial").exists()
        fetcher._tls = trusted
        [row] = await ended(running, ids)
        assert row.state == "done"


async def test_an_agent_without_a_certificate_gets_nothing_where_one_is_asked_for(tmp_path: Path) -> None:
    """The listener for files asks for the same client certificate as the link."""
    authority = Authority(tmp_path)
    tls = {"tls": {**authority.issue(), "client_ca": authority.ca_file}}
    async with fleet(tmp_path, agents=(), listener=tls, push=OPEN) as running:
        context = client_context(ca_file=authority.ca_file, certificate=None, key=None)
        url = f"https://127.0.0.1:{running.coordinator._supply.pushes.port}{FILES_PATH}"
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(url, ssl=context)
        pair = authority.issue("agent")
        context = client_context(ca_file=authority.ca_file, **pair)
        async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as answer:
            assert answer.status == 401
