"""A part of the fleet: who is found, what is counted, and what of it has changed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from moe2.common.health import HealthWarning, Severity
from moe2.common.link.reports import HostFacts
from moe2.common.status import AgentRow, BreakerRow, CoordinatorStatus, DispatchStatus, FleetCounts, ProvisioningStatus
from moe2.coordinator.observing.fleet_view import (
    MAX_SHOWN_NAMES,
    MAX_SHOWN_WARNINGS,
    AgentState,
    FleetFeed,
    FleetQuery,
    page_of,
)
from tests.common.samples import SMALL_EXPERT
from tests.coordinator.receipts import agent_row, status

ORIN = HostFacts(hostname="h", system="Linux", architecture="aarch64", board="Jetson AGX Orin")
NOTICE = HealthWarning(code="n", severity=Severity.NOTICE, message="m", remedy="r")
DEGRADED = HealthWarning(code="d", severity=Severity.DEGRADED, message="m", remedy="r")


def row(number: int, **fields: Any) -> AgentRow:
    return agent_row(agent_id=f"id-{number:03d}", agent_name=f"host-{number:03d}", **fields)


def fleet(n: int) -> CoordinatorStatus:
    return status(*(row(number) for number in range(n)))


def names(shown: CoordinatorStatus) -> list[str]:
    return [one.agent_name for one in shown.agents]


def test_a_page_is_a_part_of_the_hosts_and_counts_all() -> None:
    """Ten hosts from the twentieth on are shown, and the numbers are those of fifty."""
    shown = page_of(fleet(50), FleetQuery(limit=10, offset=20))
    assert names(shown) == [f"host-{number:03d}" for number in range(20, 30)]
    counts = shown.counts
    assert counts is not None
    assert (counts.agents, counts.connected, counts.experts_ready, counts.slots, counts.slots_active) == (
        50,
        50,
        50,
        200,
        50,
    )
    assert (counts.queued, counts.matching, counts.offset, counts.models) == (100, 50, 20, ("tiny",))


def test_a_page_beyond_the_end_is_empty() -> None:
    """Whoever turns too far sees nobody, and how many there are."""
    shown = page_of(fleet(3), FleetQuery(limit=10, offset=20))
    assert names(shown) == []
    assert shown.counts is not None
    assert shown.counts.matching == 3


def test_the_whole_status_is_shown_as_it_is() -> None:
    """Without a question nothing is left out or cut short."""
    whole = replace(fleet(3), warnings=(NOTICE,) * 100)
    assert replace(page_of(whole, FleetQuery()), counts=None) == whole


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (FleetQuery(text="HOST-00"), [0, 1, 2, 3, 4]),
        (FleetQuery(text="id-003"), [3]),
        (FleetQuery(text="agx orin"), [1]),
        (FleetQuery(state=AgentState.CONNECTED), [0, 1, 4]),
        (FleetQuery(state=AgentState.DRAINING), [1]),
        (FleetQuery(state=AgentState.ASLEEP), [2]),
        (FleetQuery(state=AgentState.DISCONNECTED), [3]),
        (FleetQuery(state=AgentState.WARNING), [4]),
        (FleetQuery(model="small-q4"), [4]),
        (FleetQuery(text="host", state=AgentState.CONNECTED, model="tiny", limit=1, offset=1), [1]),
        (FleetQuery(text="nobody"), []),
    ],
)
def test_hosts_are_found_by_name_state_and_model(query: FleetQuery, found: list[int]) -> None:
    """Names, ids and boards are found in any case; several questions hold together."""
    whole = status(
        row(0),
        row(1, host=ORIN, draining=True),
        row(2, connected=False, asleep=True),
        row(3, connected=False, host=None, draining=True),
        row(4, warnings=(NOTICE,), experts=(SMALL_EXPERT,)),
    )
    assert names(page_of(whole, query)) == [f"host-{number:03d}" for number in found]


def test_what_comes_with_a_page_is_cut_short() -> None:
    """The gravest warnings come first; of what the slow level thinks there are the first names and the numbers."""
    keys = tuple(f"id-{number:03d}/m" for number in range(100))
    whole = replace(
        fleet(3),
        warnings=(NOTICE,) * 100 + (DEGRADED,),
        provisioning=ProvisioningStatus(mode="observe", awake=keys, stays=dict.fromkeys(keys, "it is pinned")),
        dispatch=DispatchStatus(breakers=tuple(BreakerRow(expert=key, state="closed") for key in keys)),
    )
    shown = page_of(whole, FleetQuery(limit=1))
    assert len(shown.warnings) == MAX_SHOWN_WARNINGS
    assert shown.warnings[0] == DEGRADED
    assert shown.counts is not None
    assert shown.counts.warnings == 101
    assert shown.provisioning is not None
    assert (len(shown.provisioning.awake), shown.provisioning.n_awake) == (MAX_SHOWN_NAMES, 100)
    assert (len(shown.provisioning.stays), shown.provisioning.n_stays) == (MAX_SHOWN_NAMES, 100)
    assert shown.dispatch.breakers == ()


def told(feed: FleetFeed, now: CoordinatorStatus) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(feed.news(now)))
    return found


def test_a_feed_tells_everything_once() -> None:
    """The first news are the whole status; where nothing but ages has changed there are none after it."""
    feed, now = FleetFeed(FleetQuery(limit=2)), fleet(3)
    first = told(feed, now)
    assert first["agent_ids"] == ["id-000", "id-001"]
    assert [one["agent_name"] for one in first["agents"]] == ["host-000", "host-001"]
    assert first["version"] == "1"
    older = replace(now, agents=tuple(replace(one, report_age_s=9.0) for one in now.agents))
    assert told(feed, older) == {}


def test_a_feed_tells_of_hosts_that_have_changed() -> None:
    """Of one host that draws other watts only that host is told, and of one that is not shown nothing."""
    feed, now = FleetFeed(FleetQuery(limit=2)), fleet(3)
    told(feed, now)
    now = replace(now, agents=(now.agents[0], replace(now.agents[1], draining=True), now.agents[2]))
    news = told(feed, now)
    assert [one["agent_id"] for one in news["agents"]] == ["id-001"]
    assert "agent_ids" not in news
    assert told(feed, replace(now, agents=(*now.agents[:2], replace(now.agents[2], draining=True)))) == {}


def test_a_feed_tells_who_has_come_and_gone() -> None:
    """The order of those who are shown comes with each change of them."""
    feed, now = FleetFeed(FleetQuery(limit=2)), fleet(3)
    told(feed, now)
    news = told(feed, replace(now, agents=now.agents[1:]))
    assert news["agent_ids"] == ["id-001", "id-002"]
    assert [one["agent_id"] for one in news["agents"]] == ["id-002"]


AGENTS = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), max_size=5, unique_by=lambda one: one[0])


@given(steps=st.lists(AGENTS, min_size=1, max_size=6), limit=st.integers(0, 4), offset=st.integers(0, 3))
def test_whoever_adds_up_the_news_sees_the_page(
    steps: list[list[tuple[int, bool, bool]]], limit: int, offset: int
) -> None:
    """A viewer that keeps what it was told has, after each news, exactly the page as it is."""
    query = FleetQuery(limit=limit, offset=offset)
    feed, known, fields = FleetFeed(query), dict[str, Any](), dict[str, Any]()
    for step in steps:
        rows = sorted(step)
        now = status(*(row(number, connected=up, draining=leaves) for number, up, leaves in rows))
        news = told(feed, now)
        known |= {one["agent_id"]: one for one in news.pop("agents", [])}
        fields |= news
        page = page_of(now, query)
        assert fields["agent_ids"] == [one.agent_id for one in page.agents]
        shown = [known[agent_id] for agent_id in fields["agent_ids"]]
        assert [(one["connected"], one["draining"]) for one in shown] == [
            (one.connected, one.draining) for one in page.agents
        ]
        assert msgspec.convert(fields["counts"], FleetCounts) == page.counts
