"""How often the slow level decides."""

from __future__ import annotations

import pytest

from moe2.coordinator.provisioning.keeper import pause_s


@pytest.mark.parametrize(("since_news_s", "expected_s"), [(None, 5.0), (0.0, 5.0), (59.0, 5.0), (60.0, 60.0)])
def test_it_decides_once_a_minute_but_soon_while_experts_are_new(since_news_s: float | None, expected_s: float) -> None:
    """Also where experts may not be moved, which is how agents are configured by default."""
    assert pause_s(since_news_s) == expected_s
