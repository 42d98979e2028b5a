"""Two connections that claim one agent id."""

from __future__ import annotations

from moe2.common.link.messages import Hello
from moe2.coordinator.fleet.claims import ONE_RECONNECT_S, WARNED_S, Claimant, Claims, Verdict


def claimant(
    instance_id: str | None = "a", hostname: str | None = "jetson-1", address: str | None = "10.0.0.1"
) -> Claimant:
    hello = Hello(
        protocol_min=1,
        protocol_max=2,
        agent_id="agent-1",
        agent_name="kitchen",
        agent_version="1",
        instance_id=instance_id,
        hostname=hostname,
    )
    return Claimant(hello, address)


def test_an_id_that_nobody_holds_is_welcome() -> None:
    """A claim to an id that nobody holds is welcome."""
    assert Claims().verdict(claimant(), None, 0.0) is Verdict.WELCOME


def test_the_same_process_replaces_its_own_connection_at_once() -> None:
    """A second connection of the same process replaces its first one at once, which must be dead."""
    assert Claims().verdict(claimant("a"), claimant("a"), 0.0) is Verdict.REPLACE


def test_another_process_waits_until_the_holder_was_asked() -> None:
    """Another process with the same id waits until the id's holder was asked whether it is alive."""
    assert Claims().verdict(claimant("b"), claimant("a"), 0.0) is Verdict.ASK_HOLDER


def test_agents_that_do_not_name_their_process_are_asked_about() -> None:
    """Older agents that name no process cannot be told apart, so the holder is asked."""
    assert Claims().verdict(claimant(None), claimant(None), 0.0) is Verdict.ASK_HOLDER


def test_a_process_that_keeps_replacing_itself_is_asked_about() -> None:
    """A process that keeps replacing its own connection may be a cloned virtual machine, so the holder is asked."""
    claims = Claims()
    claims.replaced("agent-1", 100.0)
    assert claims.verdict(claimant("a"), claimant("a"), 100.0 + ONE_RECONNECT_S - 1) is Verdict.ASK_HOLDER
    assert claims.verdict(claimant("a"), claimant("a"), 100.0 + ONE_RECONNECT_S) is Verdict.REPLACE


def test_a_refused_claim_is_warned_of_with_both_hosts() -> None:
    """A refused claim is warned of with both hosts, for a while after the last attempt."""
    claims = Claims()
    holder, copy = claimant(), claimant("b", hostname="jetson-2", address="10.0.0.2")
    message, remedy = claims.refused(copy, holder, 0.0)
    [warning] = claims.warnings(WARNED_S - 1)
    for text in (message, warning.message):
        assert "kitchen (jetson-1, 10.0.0.1)" in text
        assert "kitchen (jetson-2, 10.0.0.2)" in text
    assert warning.code == "agent_id_shared"
    assert "/etc/machine-id" in remedy
    assert claims.warnings(WARNED_S) == []


def test_an_older_agent_is_named_by_what_is_known_of_it() -> None:
    """An older agent without a host name is named by its address."""
    assert str(claimant(None, hostname=None, address="10.0.0.1")) == "kitchen (10.0.0.1)"
    assert str(claimant(None, hostname=None, address=None)) == "kitchen"
