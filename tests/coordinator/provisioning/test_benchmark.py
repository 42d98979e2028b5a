"""The provisioning benchmark counts every joule, its bounds are bounds, and the product's cores beat waiting."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.provisioning_bound import bound_j, hindsight_j
from benchmarks.provisioning_fleet import DAY_S, HOSTS, MIDNIGHT_UNIX_S, RTX_4090, Arrival, Trace, days, read_trace
from benchmarks.provisioning_policies import AlwaysOn, FixedTime, Ours
from benchmarks.provisioning_sim import Day
from moe2.coordinator.provisioning.decision import Tolerances
from moe2.coordinator.provisioning.traffic import Traffic

IDLE_W = sum(kind.ready_w for kind in HOSTS)


def made_up(n: int = 400) -> Trace:
    """An hour of short and long chats, evenly spread."""
    long = [3500 if k % 15 == 0 else 600 for k in range(n)]
    return Trace("conv", [3600.0 * k / n for k in range(n)], long, [150] * n)


def test_a_day_without_requests_costs_the_idle_watts() -> None:
    """Everybody awake for a day draws the idle watts, and nothing else."""
    day = Day([])
    result = day.run(AlwaysOn())
    assert sum(host.joules for host in day.hosts) == pytest.approx(IDLE_W * DAY_S)
    assert result.n == 0


def test_answers_take_the_place_of_waiting() -> None:
    """A host that answers draws its answers' joules in that time, in place of its idle watts."""
    asked = [Arrival(MIDNIGHT_UNIX_S + 100.0, "conv", None, 8414, 1278)]
    result = Day(asked).run(AlwaysOn())
    answer_j = 8414 * RTX_4090.prefill_j + 1278 * RTX_4090.decode_j
    busy_s = 0.02 + 1.0 + 1277 / 127.7
    assert result.j_per_answer == pytest.approx(IDLE_W * DAY_S + answer_j - RTX_4090.ready_w * busy_s, rel=1e-9)


def test_a_wake_makes_one_answer_late() -> None:
    """A request that finds everybody asleep is late, and the next one is not."""
    asked = [Arrival(MIDNIGHT_UNIX_S + 5000.0 + 60.0 * k, "conv", None, 100, 10) for k in range(2)]
    result = Day(asked).run(FixedTime(600.0, RTX_4090))
    assert result.late_share == 0.5


@pytest.mark.slow
def test_ours_draws_less_than_waiting_and_no_less_than_the_bounds() -> None:
    """Over a light day moe2 takes less than half of always on, and hindsight and the bound take no more than moe2."""
    *learned, day = days([made_up()], 60.0, 8, seed=5)
    traffic = Traffic()
    traffic.passed(MIDNIGHT_UNIX_S - 7 * DAY_S)
    for one in learned:
        traffic.note_all(one)
    on = Day(day).run(AlwaysOn())
    ours = Day(day).run(Ours(traffic, Tolerances()))
    total_j = ours.j_per_answer * len(day)
    assert ours.j_per_answer < 0.5 * on.j_per_answer
    assert ours.late_share <= 0.05
    assert ours.score >= on.score - 0.005
    assert ours.transitions_per_host_day <= 24
    known = hindsight_j(day, ours.takers)
    assert bound_j(day, quality_loss=0.005, late_share=0.05) <= known * (1 + 1e-9)
    assert known <= total_j * (1 + 1e-9)


def test_thinning_keeps_the_shape_of_the_day() -> None:
    """The busiest hour of many days has the rate that was asked for, and the quietest its share of it."""
    found = days([made_up(2000)], 60.0, 30, seed=3)
    by_hour = [0] * 24
    for number, day in enumerate(found):
        begins = MIDNIGHT_UNIX_S + (number - 29) * DAY_S
        for one in day:
            by_hour[int((one.at_unix_s - begins) // 3600.0)] += 1
    assert by_hour[14] / 30 == pytest.approx(60.0, rel=0.1)
    assert by_hour[7] / 30 == pytest.approx(60.0 * 0.085, rel=0.3)


@pytest.mark.parametrize("text", ["", "TIMESTAMP,ContextTokens\n", "TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,2\n"])
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    """An empty file, missing columns and unreadable rows end with what is wrong."""
    path = tmp_path / "trace_conv.csv"
    path.write_text(text)
    with pytest.raises(SystemExit, match=r"trace_conv\.csv"):
        read_trace(path)
