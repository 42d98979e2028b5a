"""The rings of ended requests and of energy over time."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from moe2.common.energy import Energy, Quality
from moe2.common.generation import Generation
from moe2.common.link.prompts import TextPrompt
from moe2.coordinator.choosing.explain import Counts, Decision, ExpertRow, ProofRow
from moe2.coordinator.choosing.request import Demand
from moe2.coordinator.fleet.table import FleetPower
from moe2.coordinator.observing.history import EndedRequest, EnergyHistory, RecentRequests, running
from moe2.coordinator.serving.effects import Cancelled, Completed, Failed, Outcome
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.request import Request
from tests.coordinator.receipts import UNMEASURED, receipt

STOPPED = Completed("stop")
SECRET = "the client's words"


def life(outcome: Outcome = STOPPED, *, arrived_s: float = 100.0) -> Lifecycle:
    request = Request(
        request_id="req-1",
        model="moe2",
        prompt=TextPrompt(text=SECRET),
        generation=Generation(),
        demand=Demand(prompt_tokens=1, max_tokens=None),
        arrived_s=arrived_s,
        deadline_s=arrived_s + 10,
    )
    return Lifecycle(request=request, modes={}, outcome=outcome)


def decision(n: int) -> Decision:
    """A decision that shows `n` experts, of which the middle one was chosen."""
    rows = tuple(
        ExpertRow(
            expert=f"a{place:04d}/m",
            agent=f"a{place:04d}",
            model="m",
            score=0.5,
            score_source="prior",
            energy_j=None,
            energy_quality=None,
            ttft_s=None,
            total_s=None,
            candidate=True,
            chosen=place == n // 2,
            reason=None,
        )
        for place in range(n)
    )
    proof = ProofRow(method="listing", status="optimal", value=0.5, upper_bound=0.5, gap=0.0, nodes=1, elapsed_s=0.001)
    counts = Counts(experts=n, candidates=n, ruled_out=0, shown=n)
    return Decision(mode="route", category=None, kind=None, budgets={}, experts=rows, proof=proof, counts=counts)


def only(ring: RecentRequests) -> EndedRequest:
    """The only request in a ring."""
    [entry] = ring.since(0)
    return msgspec.json.decode(entry.json, type=EndedRequest)


def test_numbers_go_on_while_old_requests_are_forgotten() -> None:
    """The ring keeps the newest three of five requests, with the numbers 3, 4 and 5."""
    ring = RecentRequests(3)
    for _ in range(5):
        ring.add(life(), receipt(), 0.0)
    assert [ended.seq for ended in ring.since(0)] == [3, 4, 5]


def test_since_gives_only_what_is_new() -> None:
    """A viewer that has seen number 2 gets 3, and one that has seen all gets nothing."""
    ring = RecentRequests(10)
    for _ in range(3):
        ring.add(life(), receipt(), 0.0)
    assert [ended.seq for ended in ring.since(2)] == [3]
    assert ring.since(3) == ()


def test_a_burst_is_cut_to_the_newest() -> None:
    """A viewer that cannot follow gets the latest; the gap in the numbers says how many it missed."""
    ring = RecentRequests(10)
    for _ in range(8):
        ring.add(life(), receipt(), 0.0)
    assert [ended.seq for ended in ring.since(1, most=2)] == [7, 8]


def test_the_ring_is_bounded_in_bytes() -> None:
    """As many requests are kept as fit, the newest; one that alone does not fit is not kept."""
    size = 0
    for most_bytes in (10**6, 1, None):
        ring = RecentRequests(10, 3 * size if most_bytes is None else most_bytes)
        for _ in range(8):
            ring.add(life(), receipt(), 0.0)
        kept = ring.since(0)
        size = max(size, *(len(bytes(one.json)) for one in kept)) if kept else size
        assert [one.seq for one in kept] == {10**6: list(range(1, 9)), 1: []}.get(most_bytes or 0, [6, 7, 8])


def test_a_whole_table_does_not_fill_the_ring() -> None:
    """Of a decision whose client has asked for all of a thousand experts, the history keeps the few that matter."""
    ring = RecentRequests(10)
    whole = decision(1000)
    ring.add(life(), replace(receipt(), decision=whole), 0.0)
    kept = only(ring).receipt.decision
    assert kept is not None
    assert kept.counts == Counts(experts=1000, candidates=1000, ruled_out=0, shown=8)
    assert [row.expert for row in kept.experts if row.chosen] == ["a0500/m"]


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Completed("length"), ("completed", "length", None)),
        (Failed("queue_full", "All are busy."), ("failed", "queue_full", "All are busy.")),
        (Cancelled(), ("cancelled", None, None)),
    ],
)
def test_outcomes_keep_their_reason(outcome: Outcome, said: tuple[str, str | None, str | None]) -> None:
    """An ended request keeps the outcome, reason and message that the client was told."""
    ring = RecentRequests(1)
    ring.add(life(outcome), receipt(), 0.0)
    ended = only(ring)
    assert (ended.outcome, ended.reason, ended.message) == said


def test_prompts_are_not_kept() -> None:
    """Neither ended nor running requests show what a client wrote."""
    ring = RecentRequests(1)
    ring.add(life(), receipt(), 0.0)
    assert SECRET not in repr(only(ring))
    assert SECRET not in repr(running((life(),), 101.0, most=1))


def test_running_requests_are_the_oldest_with_their_age() -> None:
    """Of three running requests the oldest two are returned, with their age."""
    lives = (life(arrived_s=90.0), life(arrived_s=95.0), life(arrived_s=99.0))
    assert [request.age_s for request in running(lives, 100.0, most=2)] == [10.0, 5.0]


def test_joules_fall_into_the_interval_of_their_end() -> None:
    """Joules and tokens are added to the interval in which their request ended."""
    history = EnergyHistory(bin_s=10.0, capacity=5)
    history.request_ended(receipt(), 1004.0)
    history.request_ended(receipt(Energy(joules=3.0, quality=Quality.SIMULATED)), 1009.9)
    history.request_ended(receipt(), 1010.0)
    first, second = history.bins()
    assert (first.start_unix_s, first.n_requests, first.tokens) == (1000.0, 2, 20)
    assert first.joules == {"measured_integrated": 12.5, "simulated": 3.0}
    assert (second.start_unix_s, second.joules) == (1010.0, {"measured_integrated": 12.5})


def test_unmeasured_requests_are_counted_and_add_no_joules() -> None:
    """Unmeasured requests are counted and add no joules."""
    history = EnergyHistory(bin_s=10.0, capacity=5)
    history.request_ended(receipt(UNMEASURED), 1000.0)
    (only,) = history.bins()
    assert (only.joules, only.n_unmeasured) == ({}, 1)


def test_power_is_the_mean_of_its_samples() -> None:
    """The power of an interval is the mean of its samples, and unknown without any."""
    history = EnergyHistory(bin_s=10.0, capacity=5)
    for power_w in (10.0, 20.0):
        history.power_sampled(FleetPower(power_w=power_w, n_known=1, n_unknown=0, simulated=False), 1000.0)
    history.power_sampled(FleetPower(power_w=None, n_known=0, n_unknown=1, simulated=False), 1010.0)
    first, second = history.bins()
    assert (first.power_w, first.n_hosts_unknown) == (15.0, 0)
    assert (second.power_w, second.n_hosts_unknown) == (None, 1)


def test_a_clock_set_back_makes_no_older_interval() -> None:
    """Intervals stay in order when the clock is set back."""
    history = EnergyHistory(bin_s=10.0, capacity=5)
    history.request_ended(receipt(), 1010.0)
    history.request_ended(receipt(), 900.0)
    assert [(one.start_unix_s, one.n_requests) for one in history.bins()] == [(1010.0, 2)]


def test_old_intervals_are_forgotten() -> None:
    """The ring of intervals forgets the oldest."""
    history = EnergyHistory(bin_s=10.0, capacity=2)
    for at_s in (1000.0, 1010.0, 1020.0):
        history.request_ended(receipt(), at_s)
    assert [one.start_unix_s for one in history.bins()] == [1010.0, 1020.0]
