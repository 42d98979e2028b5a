"""How often the slow level decides, and keeps what it knows of the fleet."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.coordinator.provisioning.figures import Fleet
from moe2.coordinator.provisioning.keeper import pause_s
from moe2.coordinator.provisioning.state_files import KEEP_FLEET_EVERY_S, FleetFile
from tests.coordinator.provisioning.fleets import host


@pytest.mark.parametrize(("since_news_s", "expected_s"), [(None, 5.0), (0.0, 5.0), (59.0, 5.0), (60.0, 60.0)])
def test_it_decides_once_a_minute_but_soon_while_experts_are_new(since_news_s: float | None, expected_s: float) -> None:
    """Also where experts may not be moved, which is how agents are configured by default."""
    assert pause_s(since_news_s) == expected_s


def fleet(n_hosts: int, n_blind: int = 0) -> Fleet:
    hosts = [host(f"host-{n}", **({"awake_w": None} if n < n_blind else {})) for n in range(n_hosts)]
    return Fleet(tuple(hosts), ())


def test_the_fleet_is_kept_now_and_then_and_when_watts_become_known(tmp_path: Path) -> None:
    """At once where it never was; of a large fleet more seldom, and not for a single host."""
    file = FleetFile(tmp_path)
    for n_hosts, seldom in ((2, 1), (1000, 10)):
        file.write(fleet(n_hosts), (), 0.0)
        assert not file.is_due(fleet(n_hosts), seldom * KEEP_FLEET_EVERY_S - 1.0)
        assert file.is_due(fleet(n_hosts), seldom * KEEP_FLEET_EVERY_S)
        assert file.is_due(fleet(n_hosts), -1.0)
        assert file.is_due(fleet(n_hosts, n_blind=seldom), 1.0)
        assert not file.is_due(fleet(n_hosts, n_blind=seldom - 1), 1.0)
    assert FleetFile(tmp_path).is_due(fleet(2), 0.0)
