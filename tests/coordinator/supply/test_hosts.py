"""Which hosts an operator means."""

from __future__ import annotations

import pytest

from moe2.common.link.reports import HostFacts
from moe2.common.status import AgentRow
from moe2.coordinator.supply.hosts import HostError, check_takes_orders, meant


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
