"""Trouble with the dispatch, as warnings with their remedy."""

from __future__ import annotations

from moe2.common.health import Severity
from moe2.common.status import BreakerRow, DispatchStatus
from moe2.coordinator.observing.health import dispatch_warnings
from tests.coordinator.receipts import agent_row


def codes(dispatch: DispatchStatus, *, max_queued: int = 4) -> list[str]:
    return [warning.code for warning in dispatch_warnings(dispatch, (agent_row(),), max_queued=max_queued)]


def test_an_expert_without_traffic_is_named_with_its_agent() -> None:
    """And where to look; the same while it is being tried."""
    for state in ("open", "half_open"):
        dispatch = DispatchStatus(breakers=(BreakerRow(expert="id-1/tiny", state=state),))
        [warning] = dispatch_warnings(dispatch, (agent_row(),), max_queued=4)
        assert (warning.code, warning.severity) == ("breaker_open", Severity.DEGRADED)
        assert "tiny on orin" in warning.message
        assert "On orin" in warning.remedy


def test_a_closed_breaker_and_one_of_a_stranger_are_no_trouble() -> None:
    """An agent that was evicted is not there to be looked after."""
    rows = (BreakerRow(expert="id-1/tiny", state="closed"), BreakerRow(expert="gone/tiny", state="open"))
    assert codes(DispatchStatus(breakers=rows)) == []


def test_a_full_queue_is_trouble() -> None:
    """Where there is one."""
    assert codes(DispatchStatus(waiting=3)) == []
    assert codes(DispatchStatus(waiting=4)) == ["queue_full"]
    assert codes(DispatchStatus(), max_queued=0) == []
