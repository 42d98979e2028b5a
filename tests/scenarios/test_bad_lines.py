"""Models on their way over lines that cut, stall and are slow: what has come is kept, and the whole is right."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from moe2.agent.engine.llama.memory import Capacity
from moe2.agent.models import download
from moe2.agent.models.files import ChecksumStore
from moe2.agent.models.library import Library
from moe2.agent.models.pulling import Pull, supply_of
from moe2.agent.supply import fetching
from moe2.common.modelsource import source_of
from tests.fakes.badline import BadLine, Fault, bad_line
from tests.fakes.fleet import fleet
from tests.fakes.hub import FakeHub, serving
from tests.gguf import write_gguf
from tests.scenarios.test_neighbours import SHARES
from tests.scenarios.test_push import OPEN, ended, push, taking
from tests.scenarios.test_supply import TAKES

pytestmark = pytest.mark.slow

LOST_BYTES = 2 * fetching.CHUNK_BYTES + 1_000
"""The most that a cut connection costs: an answer's header, and what had come and was not taken yet."""
BROKEN = (
    Fault(after_bytes=1_200_000),
    Fault(after_bytes=0),
    Fault(after_bytes=40),
    Fault(after_bytes=1_500_000, stalls=True),
    Fault(after_bytes=1_500_000, bytes_per_s=8_000_000),
)
"""Cut in the file, before the answer, in its header; stalled; slow and cut."""


def assert_it_went_on(line: BadLine, size_bytes: int) -> None:
    """Every fault was met, and every connection went on where the former one had ended."""
    assert len(line.passed) > len(BROKEN)
    brought = [passed for passed in line.passed if passed > LOST_BYTES]
    assert sum(line.passed) <= size_bytes + LOST_BYTES * len(brought) + 1_000 * len(line.passed)


async def test_a_push_goes_on_with_the_byte_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file arrives with its checksum, and what it had travels once."""
    monkeypatch.setattr(fetching, "SILENCE_S", 0.3)
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(6_000_000))
    async with fleet(tmp_path, push=OPEN, models_from=TAKES) as running:
        await taking(running, "one")
        pushes = running.coordinator._supply.pushes
        assert pushes.port is not None
        async with bad_line(pushes.port, *BROKEN) as line:
            pushes.port = line.port
            [row] = await ended(running, await push(running, source, "one"))
            assert (row.state, row.sha256) == ("done", hashlib.sha256(source.read_bytes()).hexdigest())
            assert (tmp_path / "one/models/big.gguf").read_bytes() == source.read_bytes()
            assert_it_went_on(line, source.stat().st_size)


async def test_a_neighbours_line_that_is_cut_is_left_and_what_it_brought_is_kept(tmp_path: Path) -> None:
    """The coordinator sends the rest alone."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(6_000_000))
    async with fleet(tmp_path, agents=("one", "two"), push=OPEN, models_from=SHARES) as running:
        await taking(running, "one", "two")
        await ended(running, await push(running, source, "one"))
        pushes, sharing = running.coordinator._supply.pushes, running.agents["one"]._supply.sharing
        assert pushes.port is not None
        assert sharing.port is not None
        async with bad_line(sharing.port, Fault(after_bytes=1_500_000)) as near, bad_line(pushes.port) as far:
            sharing.port, pushes.port = near.port, far.port
            running.agents["one"]._supply._look_again.set()
            await running.until_status(
                lambda status: any(
                    row.models and row.models.share and row.models.share.port == near.port for row in status.agents
                )
            )
            [row] = await ended(running, await push(running, source, "two"))
            assert (row.state, row.source) == ("done", "coordinator")
            assert (tmp_path / "two/models/big.gguf").read_bytes() == source.read_bytes()
            assert near.passed == [1_500_000]
            assert sum(far.passed) <= source.stat().st_size - 1_500_000 + LOST_BYTES


async def test_a_pull_goes_on_with_the_byte_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an address, in one run of the command, and with the checksum that was named."""
    monkeypatch.setattr(download, "SILENCE_S", 0.3)
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(6_000_000))
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    library = Library(tmp_path / "state")
    async with serving(FakeHub({"big.gguf": source})) as hub:
        # The first connection looks at the head alone.
        async with bad_line(urlsplit(hub.storage).port or 0, Fault(), *BROKEN) as line:
            address = f"http://127.0.0.1:{line.port}{urlsplit(hub.storage).path}/big.gguf#sha256={sha256}"
            entry = await pulled(library, address)
            looked = line.passed.pop(0)
            assert looked <= download.CHUNK_BYTES * 8
            assert_it_went_on(line, source.stat().st_size)
    assert entry == sha256
    assert library.path("big.gguf").read_bytes() == source.read_bytes()


async def test_a_pull_over_a_line_that_brings_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had stays for the next time."""
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(2_000_000))
    library = Library(tmp_path / "state")
    # The HTTP library tries a request once more by itself.
    dead = [Fault(after_bytes=0)] * (2 * download.MAX_FRUITLESS)
    async with serving(FakeHub({"big.gguf": source})) as hub:
        async with bad_line(urlsplit(hub.storage).port or 0, Fault(), Fault(after_bytes=1_200_000), *dead) as line:
            address = f"http://127.0.0.1:{line.port}{urlsplit(hub.storage).path}/big.gguf#sha256={'ab' * 32}"
            with pytest.raises(download.DownloadError, match="broke off") as error:
                await pulled(library, address)
    assert "goes on where it was" in (error.value.remedy or "")
    assert 0 < library.partial_path("big.gguf").stat().st_size <= 1_200_000


async def pulled(library: Library, address: str) -> str:
    """Pulls a model; its checksum."""
    pull = Pull(
        library,
        ChecksumStore(library.folder.parent),
        supply_of(source_of(address), None),
        say=lambda _: None,
        progress=lambda _done, _whole: None,
        context_tokens=512,
        capacity=lambda _: Capacity(knows=True),
    )
    return (await pull.run()).sha256
