"""Suspending through logind: the real busctl on a real, private bus, with a fake logind that suspends nothing."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from moe2.agent.standby.logind import Logind, SuspendError
from tests.fakes.logind import FakeLogind, fake_logind

pytestmark = pytest.mark.skipif(
    shutil.which("busctl") is None or shutil.which("dbus-daemon") is None, reason="needs busctl and dbus-daemon"
)


@pytest.fixture
async def logind(tmp_path: Path) -> AsyncIterator[FakeLogind]:
    async with fake_logind(tmp_path) as fake:
        yield fake


def client(address: str) -> Logind:
    return Logind(("busctl", f"--address={address}", "--json=short", "--timeout=20"))


async def test_a_host_that_may_be_suspended_is(logind: FakeLogind) -> None:
    """Without asking anybody for a password."""
    assert await client(logind.address).fault() is None
    await client(logind.address).suspend()
    assert [call for call in logind.calls if call[0] in ("CanSuspend", "Suspend")] == [
        ("CanSuspend", ()),
        ("Suspend", (False,)),
    ]


@pytest.mark.parametrize(
    ("word", "said"),
    [("no", "polkit does not let"), ("challenge", "a password"), ("na", "firmware or kernel"), ("later", "'later'")],
)
def test_each_of_loginds_refusals_is_said_in_words(word: str, said: str, tmp_path: Path) -> None:
    """With what to do where something can be done: firmware that cannot is nobody's to mend."""

    async def ask() -> str | None:
        async with fake_logind(tmp_path) as fake:
            fake.can = word
            return await client(fake.address).fault()

    fault = asyncio.run(ask())
    assert fault is not None
    assert said in fault
    assert ("install.sh" in fault) == (word != "na")


async def test_a_refused_suspension_raises_with_the_words_of_the_bus(logind: FakeLogind) -> None:
    """For whoever reads the answer of the command."""
    logind.refusal = "Interactive authentication required."
    with pytest.raises(SuspendError, match=r"refuses Suspend: .*Interactive authentication required"):
        await client(logind.address).suspend()


async def test_a_host_without_a_bus_cannot_be_suspended(tmp_path: Path) -> None:
    """A container, or a system without systemd."""
    fault = await client(f"unix:path={tmp_path / 'none'}").fault()
    assert fault is not None
    assert "refuses CanSuspend" in fault


async def test_a_host_without_busctl_says_so() -> None:
    """The program that is missing is named."""
    fault = await Logind(("no-such-busctl",)).fault()
    assert fault is not None
    assert "no-such-busctl" in fault


async def test_an_answer_that_is_none_is_a_fault() -> None:
    """Whatever a strange busctl prints."""
    assert await Logind(("echo",)).fault() == "logind's answer to CanSuspend cannot be read."


def test_the_suspended_seconds_only_grow_by_sleeping() -> None:
    """Both clocks run while the host is awake."""
    assert abs(Logind().suspended_s() - Logind().suspended_s()) < 0.1
