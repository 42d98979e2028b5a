"""Which hosts an operator means, and which neighbour gives a file at which address."""

from __future__ import annotations

import msgspec
import pytest

from moe2.common.link.reports import HostFacts
from moe2.common.link.supply import ModelFile, ModelStore, SharePoint
from moe2.common.status import AgentRow
from moe2.coordinator.supply.hosts import MAX_TAKERS, HostError, address_between, check_takes_orders, giver_for, meant

SUM = "ab" * 32


def row(name: str, *, board: str | None = None, connected: bool = True) -> AgentRow:
    """An agent of this name; its id is agent-NAME."""
    host = HostFacts(hostname=name, system="Linux 6", architecture="aarch64", board=board)
    return AgentRow(
        agent_id=f"agent-{name}",
        agent_name=name,
        version="1",
        connected=connected,
        draining=False,
        report_age_s=0.0,
        rtt_s=None,
        host=host,
        experts=(),
        sensors=(),
        warnings=(),
    )


ROWS = (row("a", board="Jetson AGX Orin"), row("b", board="Jetson Orin Nano"), row("c"))


def test_names_ids_and_conditions_are_taken_together_each_host_once() -> None:
    """A value matches by any part of it, in whatever case."""
    assert [one.agent_name for one in meant(ROWS, ("c", "agent-a"), "board=ORIN, system=linux")] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("hosts", "matching"), [((), None), (("nobody",), None), (("agent-",), None), ((), "board=rtx"), ((), "shoe=9")]
)
def test_what_names_nobody_is_refused(hosts: tuple[str, ...], matching: str | None) -> None:
    """Every refusal has a remedy."""
    with pytest.raises(HostError) as refused:
        meant(ROWS, hosts, matching)
    assert refused.value.remedy


def test_an_agent_of_an_earlier_release_is_told_from_one_that_does_not_allow_it() -> None:
    """The first has to be upgraded."""
    with pytest.raises(HostError, match="Upgrade it"):
        check_takes_orders(ROWS[0])
    with pytest.raises(HostError, match="not connected"):
        check_takes_orders(row("d", connected=False))


def host(name: str, address: str, *, has: str | None = SUM, shares: bool = True, connected: bool = True) -> AgentRow:
    """An agent on this address with a network, which has a file with this checksum."""
    files = (ModelFile(name=f"{name}.gguf", size_bytes=1, sha256=has, origin="", added_unix_s=0.0),) if has else ()
    share = SharePoint(addresses=(address,), port=8083) if shares else None
    store = ModelStore(takes_orders=True, networks=(address,), share=share, files=files)
    return msgspec.structs.replace(row(name, connected=connected), models=store)


TAKER = host("taker", "10.0.0.9/24", has=None)


@pytest.mark.parametrize(
    ("taker", "giver", "same_host", "found"),
    [
        ("10.0.0.9/24", "10.0.0.5/24", False, "10.0.0.5"),
        ("10.0.0.9/24", "10.0.1.5/24", False, None),
        ("10.0.0.9/24", "10.0.0.5/16", False, None),
        ("172.17.0.1/16", "172.17.0.1/16", False, None),
        ("127.0.0.1/8", "127.0.0.1/8", False, None),
        ("127.0.0.1/8", "127.0.0.1/8", True, "127.0.0.1"),
        ("fd00::1/64", "fd00::2/64", False, "fd00::2"),
        ("nonsense", "10.0.0.5/24", False, None),
        ("10.0.0.9/24", "10.0.0.5/99", False, None),
        ("10.0.0.9/24", "", False, None),
    ],
)
def test_hosts_reach_each_other_on_a_network_that_both_are_on(
    taker: str, giver: str, same_host: bool, found: str | None
) -> None:
    """An address that both have leads a host to itself, and what is no address leads nowhere."""
    assert address_between([taker], [giver], is_same_host=same_host) == found


def test_the_neighbour_that_gives_to_the_fewest_is_asked() -> None:
    """It has the same bytes, under whatever name; one with as many takers as it may have is left out."""
    rows = (TAKER, host("a", "10.0.0.1/24"), host("b", "10.0.0.2/24"))
    first = giver_for(rows, "agent-taker", SUM, busy=(), shunned=())
    assert first is not None
    assert (first.name, first.address, first.port) == ("a", "10.0.0.1", 8083)
    second = giver_for(rows, "agent-taker", SUM, busy=["agent-a"], shunned=())
    assert second is not None
    assert second.name == "b"
    full = ["agent-a", "agent-b"] * MAX_TAKERS
    assert giver_for(rows, "agent-taker", SUM, busy=full, shunned=()) is None


@pytest.mark.parametrize(
    "other",
    [
        host("a", "10.0.0.1/24", has="cd" * 32),
        host("a", "10.0.0.1/24", has=None),
        host("a", "10.0.0.1/24", shares=False),
        host("a", "10.0.0.1/24", connected=False),
        host("a", "10.9.0.1/24"),
        row("a"),
    ],
)
def test_who_cannot_give_is_not_asked(other: AgentRow) -> None:
    """Another file, none, no listener, no connection, another network, an agent of an earlier release."""
    assert giver_for((TAKER, other), "agent-taker", SUM, busy=(), shunned=()) is None


def test_a_host_that_tells_no_networks_takes_from_nobody() -> None:
    """So does one that is not there, and one whose neighbours have all failed."""
    silent = msgspec.structs.replace(TAKER, models=ModelStore(takes_orders=True))
    giver = host("a", "10.0.0.1/24")
    assert giver_for((silent, giver), "agent-taker", SUM, busy=(), shunned=()) is None
    assert giver_for((giver,), "agent-taker", SUM, busy=(), shunned=()) is None
    assert giver_for((TAKER, giver), "agent-taker", SUM, busy=(), shunned={"agent-a"}) is None
