"""The link where the coordinator turns the agent away, on a virtual clock and real sockets."""

from __future__ import annotations

import msgspec
import pytest

from moe2.common.link.enrolment import Refusal
from moe2.common.link.messages import Hello, Refused
from tests.agent.link.linkbench import (
    REFUSED_RETRY_S,
    hub_and_agent,
    on_loopback,
    opened,
)
from tests.common.samples import WELCOME


@pytest.mark.parametrize(
    ("http_status", "said"),
    [(401, "into the agent's token_file"), (404, "Is this its agents listener?")],
)
def test_a_refused_upgrade_says_what_to_do(http_status: int, said: str) -> None:
    """A wrong token and a wrong port are the usual reasons."""

    @on_loopback
    async def attempt() -> None:
        async with hub_and_agent() as (hub, agent):
            hub.refuse_with = http_status
            await hub.until_attempt(2)
            assert said in (agent.link.status.last_error or "")

    attempt()


@on_loopback
async def test_a_refused_agent_does_not_hammer() -> None:
    """Only a person can mend it, so that the next attempt comes late, not with the back-off."""
    async with hub_and_agent() as (hub, agent):
        hub.refuse_with, hub.refusal = 401, Refusal.CREDENTIAL_REVOKED
        await hub.until_attempt(3)
        assert hub.attempts_s == pytest.approx([0.0, REFUSED_RETRY_S, 2 * REFUSED_RETRY_S])
        status = agent.link.status
        assert status.last_error_code == "credential_revoked"
        assert status.last_error_remedy
        assert (status.last_error or "").endswith(status.last_error_remedy)


@on_loopback
async def test_a_refusal_within_the_session_does_not_hammer_either() -> None:
    """An agent that is revoked while it is connected is told so over the link."""
    async with hub_and_agent() as (hub, agent):
        peer = await opened(hub, agent)
        await peer.say(Refused(code="credential_revoked", message="Revoked.", remedy="Ask."))
        await agent.until_lost()
        peer.over.set()
        await hub.until_attempt(2)
        assert hub.attempts_s[1] >= REFUSED_RETRY_S
        assert agent.link.status.last_error_code == "credential_revoked"


@on_loopback
async def test_an_unknown_credential_gives_way_to_the_token() -> None:
    """A coordinator that lost its state is joined again without a person, and soon."""
    async with hub_and_agent() as (hub, agent):
        agent.credentials.other = "the-token"
        hub.refuse_with, hub.refusal = 401, Refusal.CREDENTIAL_UNKNOWN
        await hub.until_attempt(1)
        hub.refuse_with = None
        peer = await opened(hub, agent)
        assert peer.authorization == "Bearer the-token"
        assert hub.attempts_s == pytest.approx([0.0, 1.0])


@on_loopback
async def test_a_welcome_that_knows_the_credential_ends_the_need_for_the_token() -> None:
    """A coordinator that knows of no credentials does not say so."""
    async with hub_and_agent() as (hub, agent):
        await opened(hub, agent)
        assert not agent.credentials.is_enrolled
    async with hub_and_agent() as (hub, agent):
        peer = await hub.peers.get()
        assert isinstance(await peer.hear(), Hello)
        await peer.say(msgspec.structs.replace(WELCOME, enrolled=True))
        await agent.opened.wait()
        assert agent.credentials.is_enrolled


@on_loopback
async def test_a_refused_handshake_shows_its_remedy() -> None:
    """What the coordinator said reaches the agent's status."""
    async with hub_and_agent() as (hub, agent):
        peer = await hub.peers.get()
        assert isinstance(await peer.hear(), Hello)
        await peer.say(Refused(code="x", message="No.", remedy="Do so."))
        peer.over.set()
        await hub.peers.get()
        assert agent.link.status.last_error == "No. Do so."
        assert agent.lost_s == []
