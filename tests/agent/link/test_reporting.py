"""When an agent reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.link.reporting import BEAT_S, until_report_s


@given(st.floats(0.0, 4e9), st.floats(0.01, 600.0))
def test_reports_keep_the_rate_that_the_coordinator_wants(now_unix_s: float, every_s: float) -> None:
    """To half a beat, and never at once, whatever the clock says."""
    found_s = until_report_s(every_s, now_unix_s)
    assert found_s == pytest.approx(every_s, abs=BEAT_S / 2 + 1e-6)
    assert found_s >= 0.74 * every_s


@given(st.floats(1.7e9, 1.8e9), st.floats(0.0, 5.0), st.floats(0.5, 60.0))
def test_hosts_whose_clocks_agree_report_together(now_unix_s: float, later_s: float, every_s: float) -> None:
    """On the same beats, whenever each has begun: a coordinator is woken once for all of one beat."""
    for begun_unix_s in (now_unix_s, now_unix_s + later_s):
        beats = (begun_unix_s + until_report_s(every_s, begun_unix_s)) / BEAT_S
        assert beats == pytest.approx(round(beats), abs=1e-3)
