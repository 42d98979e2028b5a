"""Tickets: once, soon, and by nobody else."""

from __future__ import annotations

from moe2.common.filestream import Pace
from moe2.common.tickets import TICKET_S, Admission, TicketFault, Tickets


def test_a_ticket_opens_once() -> None:
    """The second attempt finds nothing."""
    tickets = Tickets()
    tickets.issue("s", "agent-1", "c", 2, 10.0)
    assert isinstance(tickets.redeem("s", "agent-1", 11.0), Admission)
    assert tickets.redeem("s", "agent-1", 11.0) is TicketFault.UNKNOWN


def test_another_agent_opens_nothing_and_takes_nothing_away() -> None:
    """Its owner can still use it."""
    tickets = Tickets()
    tickets.issue("s", "agent-1", "c", 0, 10.0)
    assert tickets.redeem("s", "agent-2", 11.0) is TicketFault.SOMEBODY_ELSES
    assert tickets.redeem("", "agent-1", 11.0) is TicketFault.UNKNOWN
    assert isinstance(tickets.redeem("s", "agent-1", 11.0), Admission)


def test_an_old_ticket_opens_nothing() -> None:
    """It is good for a minute."""
    tickets = Tickets()
    tickets.issue("s", "agent-1", "c", 0, 10.0)
    assert tickets.redeem("s", "agent-1", 10.0 + TICKET_S) is TicketFault.EXPIRED


def test_a_new_ticket_of_an_order_ends_the_former_one() -> None:
    """So does a withdrawal; those of other orders stay."""
    tickets = Tickets()
    tickets.issue("a", "agent-1", "c", 0, 10.0)
    tickets.issue("other", "agent-1", "d", 0, 10.0)
    tickets.issue("b", "agent-1", "c", 1, 10.0)
    assert tickets.redeem("a", "agent-1", 11.0) is TicketFault.UNKNOWN
    tickets.withdraw("agent-1", "c")
    assert tickets.redeem("b", "agent-1", 11.0) is TicketFault.UNKNOWN
    assert isinstance(tickets.redeem("other", "agent-1", 11.0), Admission)


def test_all_connections_share_one_rate() -> None:
    """Two that take a chunk at the same moment wait for each other; a pause is not saved up."""
    pace = Pace(1000)
    assert pace.wait_s(500, 0.0) == 0.5
    assert pace.wait_s(500, 0.0) == 1.0
    assert pace.wait_s(500, 10.0) == 0.5
    assert Pace(None).wait_s(10**9, 0.0) == 0.0
