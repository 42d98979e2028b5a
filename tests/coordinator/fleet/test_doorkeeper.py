"""The doorkeeper enrols agents that come together with one change of the file."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from moe2.common.errors import Moe2Error
from moe2.common.link.enrolment import AGENT_ID_HEADER, CREDENTIAL_HEADER, Refusal, digest
from moe2.coordinator.fleet.doorkeeper import Doorkeeper
from moe2.coordinator.fleet.register import AgentRefusedError, EnrolmentToken, ProvenIdentity, Register, add_token
from moe2.coordinator.fleet.register_file import RegisterFile

T = TypeVar("T")
SECRET = "s" * 40


class GatedFile(RegisterFile):
    """A register's file of which each change waits until it is let through."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        self.may_write = threading.Event()
        self.n_changes = 0
        self.trouble: Moe2Error | None = None

    def change(self, change: Callable[[Register], tuple[T, Register]]) -> T:
        assert self.may_write.wait(60)
        self.n_changes += 1
        if self.trouble is not None:
            raise self.trouble
        return super().change(change)


def made(tmp_path: Path, *, uses: int | None = None) -> tuple[GatedFile, Doorkeeper]:
    token = EnrolmentToken(name="t", sha256=digest("tok"), created_unix_s=0.0, most_uses=uses)
    RegisterFile(tmp_path).change(lambda register: (None, add_token(register, token)))
    file = GatedFile(tmp_path)
    return file, Doorkeeper(file, None, clock=lambda: 1_800_000_000.0)


def headers(place: int, bearer: str = "tok") -> dict[str, str]:
    secret = f"{place:04d}{SECRET}"
    return {"Authorization": f"Bearer {bearer}", AGENT_ID_HEADER: f"a{place}", CREDENTIAL_HEADER: secret}


async def together(
    doorkeeper: Doorkeeper, file: GatedFile, n_agents: int, *, leaves: int | None = None
) -> list[ProvenIdentity | BaseException]:
    """What becomes of agents that come while the first one's change is being written. leaves: who goes meanwhile."""
    coming = [asyncio.create_task(doorkeeper.admit(headers(place))) for place in range(n_agents)]
    await asyncio.sleep(0)
    if leaves is not None:
        coming[leaves].cancel()
    file.may_write.set()
    return list(await asyncio.gather(*coming, return_exceptions=True))


async def test_agents_that_come_together_are_written_together(tmp_path: Path) -> None:
    """A hundred agents that come at once take one change of the file, and each may come back with its credential."""
    file, doorkeeper = made(tmp_path)
    found = await together(doorkeeper, file, 100)
    assert [identity.agent_id for identity in found if isinstance(identity, ProvenIdentity)] == [
        f"a{place}" for place in range(100)
    ]
    assert file.n_changes == 1
    again = await doorkeeper.admit(headers(7, bearer=f"0007{SECRET}"))
    assert again.agent_id == "a7"
    assert file.n_changes == 1


async def test_a_tokens_uses_are_not_exceeded_by_those_who_come_together(tmp_path: Path) -> None:
    """Of five agents that come at once with a token for three, two are refused."""
    file, doorkeeper = made(tmp_path, uses=3)
    found = await together(doorkeeper, file, 5)
    refused = [error.refusal for error in found if isinstance(error, AgentRefusedError)]
    assert refused == [Refusal.TOKEN_USED_UP] * 2
    assert len(file.current().agents) == 3


async def test_an_agent_that_leaves_takes_nobody_along(tmp_path: Path) -> None:
    """The one that came first is gone before it was written; the others are enrolled."""
    file, doorkeeper = made(tmp_path)
    found = await together(doorkeeper, file, 3, leaves=0)
    assert isinstance(found[0], asyncio.CancelledError)
    assert [identity.agent_id for identity in found[1:] if isinstance(identity, ProvenIdentity)] == ["a1", "a2"]


async def test_a_file_that_cannot_be_written_is_told_to_everybody(tmp_path: Path) -> None:
    """Each agent that came gets the fault, and the next one is enrolled once the file can be written."""
    file, doorkeeper = made(tmp_path)
    file.trouble = Moe2Error("The disk is full.")
    assert [str(error) for error in await together(doorkeeper, file, 2)] == ["The disk is full."] * 2
    file.trouble = None
    assert (await doorkeeper.admit(headers(0))).agent_id == "a0"


async def test_an_unknown_token_is_refused_at_once(tmp_path: Path) -> None:
    """Whoever shows no good token is refused without a change of the file."""
    file, doorkeeper = made(tmp_path)
    with pytest.raises(AgentRefusedError):
        await doorkeeper.admit(headers(0, bearer="guessed"))
    assert file.n_changes == 0
