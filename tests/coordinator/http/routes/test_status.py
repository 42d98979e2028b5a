"""The parameters that say which hosts are shown."""

from __future__ import annotations

import pytest

from moe2.coordinator.http.errors import ApiError
from moe2.coordinator.http.routes.status import fleet_query
from moe2.coordinator.observing.fleet_view import MAX_HOSTS, AgentState, FleetQuery


def test_nothing_asks_for_the_whole_fleet() -> None:
    """Without parameters, or with empty ones, everybody is shown, unless the caller has a limit of its own."""
    assert fleet_query({}) == FleetQuery()
    assert fleet_query({"limit": "", "q": "", "state": "", "model": ""}) == FleetQuery()
    assert fleet_query({}, limit=50) == FleetQuery(limit=50)


def test_every_parameter_counts() -> None:
    """All that can be asked together."""
    asked = {"limit": "5", "offset": "10", "q": "Orin", "state": "asleep", "model": "m"}
    assert fleet_query(asked, limit=50) == FleetQuery(
        limit=5, offset=10, text="Orin", state=AgentState.ASLEEP, model="m"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", "-1"),
        ("limit", "many"),
        ("limit", "9" * 5000),
        ("offset", str(MAX_HOSTS + 1)),
        ("offset", "１"),
        ("state", "gone"),
        ("q", "x" * 1000),
        ("model", "x" * 1000),
    ],
)
def test_what_means_nothing_is_refused_by_name(name: str, value: str) -> None:
    """Each is a 400 that names the parameter."""
    with pytest.raises(ApiError) as raised:
        fleet_query({name: value})
    assert (raised.value.status, raised.value.param) == (400, name)
