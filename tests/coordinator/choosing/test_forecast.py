"""Tests of forecasts: what a request takes on each expert."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.cost import EnergyProfile, LatencyProfile, Quantiles, RequestShape, Spread
from moe2.common.energy import Quality
from moe2.common.link.reports import ExpertState
from moe2.coordinator.choosing.forecast import FloatArray, Forecast, Prediction, Roster, WorkLeft
from moe2.coordinator.choosing.request import ASSUMED_ANSWER_TOKENS, Demand, estimate_prompt_tokens
from moe2.coordinator.fleet.table import Expert
from tests.common.predictions import expected_occupancy, predicted_energy, predicted_latency
from tests.coordinator.experts import EXACT, cost, expert, predict, speed


def test_a_prediction_is_prefill_plus_decode() -> None:
    """A prediction follows the expert's learned rates, and its first token comes with the prefill."""
    predicted = predict(expert(latency=speed(1000.0, 100.0)), Demand(500, 51), 0)
    assert predicted.ttft_s == Quantiles(0.5, 0.5)
    assert predicted.total_s == Quantiles(1.0, 1.0)


def test_quantiles_come_from_the_experts_own_spread() -> None:
    """The p95 lies above the p50 by the spread of the expert's own earlier errors."""
    spread = Spread(p50=0.0, p95=0.6931471805599453)
    predicted = predict(expert(latency=speed(1000.0, 100.0, spread=spread)), Demand(1000, 1), 0)
    assert predicted.ttft_s is not None
    assert (predicted.ttft_s.p50, predicted.ttft_s.p95) == pytest.approx((1.0, 2.0))


def test_a_request_without_a_slot_waits_for_those_before_it() -> None:
    """Slots fall free one by one, each after the mean time that a request holds it."""
    waits = [predict(expert(latency=speed(1000.0, 100.0)), Demand(500, 1), n).ttft_s for n in range(4)]
    assert [wait.p50 for wait in waits if wait] == pytest.approx([0.5, 0.5, 1.0, 1.5])


def test_the_round_trip_is_part_of_every_time() -> None:
    """The round trip to a host is added to the time of the first and of the last token."""
    near = expert(latency=speed(1000.0, 100.0))
    far = Expert(near.key, near.agent_id, near.agent_name, near.model, near.report, rtt_s=0.2)
    ttft_s = predict(far, Demand(500, 1), 0).ttft_s
    assert ttft_s is not None
    assert ttft_s.p50 == pytest.approx(0.7)


def varied(random: np.random.Generator, number: int) -> Expert:
    """An expert of agent `number` with figures of its own, some of them unknown."""
    own = expert(
        f"agent-{number}",
        f"m{number % 3}",
        latency=speed(*random.uniform(10.0, 900.0, 2)) if random.random() < 0.8 else None,
        energy=cost(float(random.uniform(0.1, 3.0))) if random.random() < 0.8 else None,
        slots=int(random.integers(1, 5)),
        max_queue=int(random.integers(0, 20)),
        context_tokens=int(random.integers(100, 9000)),
        vector_size=8 if random.random() < 0.2 else None,
    )
    return replace(own, rtt_s=float(random.uniform(0.0, 0.3)) if random.random() < 0.8 else None)


@given(st.integers(0, 10_000), st.sets(st.integers(0, 7)))
def test_a_roster_changed_in_places_is_one_made_anew(seed: int, places: set[int]) -> None:
    """Newer reports of some experts give the arrays that all reports give, and leave the former roster as it was."""
    random = np.random.default_rng(seed)
    old = [varied(random, number) for number in range(8)]
    new = [varied(random, number) if number in places else old[number] for number in range(8)]
    former = Roster(old, longest_queue_s=20.0)
    assert len(former.speed_known) == len(former.energy_known) == 8  # worked out once, and to be worked out again
    for changed, experts in ((former.updated(new), new), (former, old)):
        anew = Roster(experts, longest_queue_s=20.0)
        assert (changed.keys, changed.experts) == (anew.keys, anew.experts)
        assert changed.different_models == anew.different_models
        assert changed.largest_context_tokens == anew.largest_context_tokens
        for name, figures in vars(anew).items():
            if isinstance(figures, np.ndarray):
                np.testing.assert_array_equal(getattr(changed, name), figures, err_msg=name)
        np.testing.assert_array_equal(changed.speed_known, anew.speed_known)
        np.testing.assert_array_equal(changed.energy_known, anew.energy_known)


def test_a_roster_of_others_is_made_anew() -> None:
    """Experts with other keys, or more of them, are taken whole."""
    one, two, three = (expert(f"agent-{number}") for number in range(3))
    for experts in ([one, three], [one], [one, two, three]):
        assert Roster([one, two]).updated(experts).keys == Roster(experts).keys


def test_a_cold_expert_is_loaded_first() -> None:
    """A cold expert's time includes its last loading time, and is unknown where none was measured."""
    cold = expert(latency=speed(1000.0, 100.0), state=ExpertState.COLD, load_s=3.0)
    ttft_s = predict(cold, Demand(500, 1), 0).ttft_s
    assert ttft_s is not None
    assert ttft_s.p50 == pytest.approx(3.5)
    warm = expert(latency=speed(1000.0, 100.0), load_s=3.0)
    assert predict(warm, Demand(500, 1), 0) == predict(expert(latency=speed(1000.0, 100.0)), Demand(500, 1), 0)
    assert predict(expert(latency=speed(1000.0, 100.0), state=ExpertState.COLD), Demand(500, 1), 0).ttft_s is None


def test_nothing_is_predicted_without_measurements() -> None:
    """Seconds or joules without a measurement are unknown, each apart from the other."""
    shape = RequestShape(prompt_tokens=1, decoded_tokens=1)
    assert predict(expert(latency=None), Demand(1, 1), 0) == Prediction(shape, None, None, None, None)
    assert predict(expert(latency=None, energy=cost(2.0)), Demand(1, 3), 0).energy_j == Quantiles(6.0, 6.0)


@pytest.mark.parametrize(("max_tokens", "planned"), [(None, ASSUMED_ANSWER_TOKENS), (5, 5), (4000, 4000)])
def test_the_longest_answer_is_planned_for(max_tokens: int | None, planned: int) -> None:
    """The planned answer is as long as the request's limit allows."""
    assert Demand(1, max_tokens).answer_tokens == planned


def test_prompts_are_estimated_by_their_bytes() -> None:
    """A prompt's estimate is a token per four bytes and a template's overhead for each message."""
    assert estimate_prompt_tokens(["x" * 40, "é" * 20]) == 20 + 16


def test_the_batch_is_expected_to_live_as_it_usually_does() -> None:
    """An expert whose lone requests are soon joined decodes at the pace of two, and shares its joules with two."""
    joined = msgspec.structs.replace(speed(1000.0, 100.0), decode=(0.01, 0.02, 0.0), occupancy=(1.0, 1.0))
    shared = EnergyProfile(coefficients=(0.0, 0.0, 4.0, 0.0), spread=EXACT, quality=Quality.MEASURED_COUNTER)
    predicted = predict(expert(latency=joined, energy=shared), Demand(500, 11), 0)
    assert predicted.per_token_s == Quantiles(0.03, 0.03)
    assert predicted.ttft_s == Quantiles(0.5, 0.5)
    assert predicted.energy_j == Quantiles(22.0, 22.0)


def test_the_expected_batch_is_one_that_fits() -> None:
    """The expected batch is at least the request itself and at most the expert's slots."""
    for occupancy, pace_s in (((-3.0, 1.0), 0.01), ((9.0, 1.0), 0.03)):
        bounded = msgspec.structs.replace(speed(1000.0, 100.0), decode=(0.01, 0.02, 0.0), occupancy=occupancy)
        assert predict(expert(latency=bounded), Demand(500, 11), 0).per_token_s == Quantiles(pace_s, pace_s)


PROFILES = st.none() | st.builds(
    speed,
    st.floats(10, 1e4),
    st.floats(1, 500),
    slots=st.integers(1, 4),
    spread=st.builds(Spread, st.floats(-0.5, 0), st.floats(0, 2)),
)
LIVED = st.tuples(st.floats(-2, 4), st.floats(0, 2))


FLEETS = st.lists(
    st.tuples(
        PROFILES,
        st.none() | st.floats(0, 5),
        st.none() | st.floats(0, 1),
        LIVED,
        st.integers(0, 9000),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=4,
)
Drawn = tuple[LatencyProfile | None, float | None, float | None, tuple[float, float], int, int]


def _experts(fleet: list[Drawn]) -> list[Expert]:
    """Experts of which every second one is cold."""
    experts = []
    for place, (latency, joules, rtt_s, lived, *_) in enumerate(fleet):
        changed = {"occupancy": lived, "found_idle_s": 0.1 * place, "found_busy_s": 0.03 * place}
        profile = None if latency is None else msgspec.structs.replace(latency, **changed)
        energy = None if joules is None else _energy(joules)
        load: dict[str, Any] = {} if place % 2 else {"state": ExpertState.COLD, "load_s": rtt_s}
        experts.append(replace(expert(f"agent-{place}", latency=profile, energy=energy, **load), rtt_s=rtt_s))
    return experts


@given(FLEETS, st.none() | st.integers(1, 5000), st.integers(0, 5000))
def test_a_forecast_is_what_the_formulas_say_of_each_expert(
    fleet: list[Drawn], max_tokens: int | None, cached: int
) -> None:
    """All experts at once cost what each one's profile says for it alone, the unknown included."""
    experts = _experts(fleet)
    prompt_tokens, busy = (np.array([drawn[column] for drawn in fleet]) for column in (4, 5))
    demand = Demand(0, max_tokens)
    cached_tokens = cached * (np.arange(len(fleet)) % 2)
    forecast = Roster(experts).forecast(prompt_tokens, demand.answer_tokens, busy, cached_tokens)
    for place, one in enumerate(experts):
        predicted = forecast.prediction(place)
        asked = Demand(int(prompt_tokens[place]), max_tokens)
        alone = _written_out(one, asked, int(busy[place]), int(cached_tokens[place]))
        assert predicted.shape == alone.shape
        assert _figures(predicted) == pytest.approx(_figures(alone), nan_ok=True)


@given(FLEETS, st.lists(st.integers(0, 5000), min_size=4, max_size=4))
def test_answers_of_several_lengths_are_forecast_at_once(fleet: list[Drawn], lengths: list[int]) -> None:
    """A forecast with an answer length for each expert equals the forecasts of each length alone."""
    experts = _experts(fleet)
    prompt_tokens, busy = (np.array([drawn[column] for drawn in fleet]) for column in (4, 5))
    roster, answer_tokens = Roster(experts), np.array(lengths[: len(experts)])
    together = roster.forecast(prompt_tokens, answer_tokens, busy)
    for place, length in enumerate(answer_tokens.tolist()):
        alone = roster.forecast(prompt_tokens, length, busy)
        assert together.prediction(place) == alone.prediction(place)
        assert together.added_w[place] == pytest.approx(alone.added_w[place], nan_ok=True)


@given(
    FLEETS,
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=4, max_size=4),
    st.none() | st.lists(st.tuples(st.floats(0, 900), st.just(math.nan) | st.floats(0, 200)), min_size=4, max_size=4),
    st.booleans(),
)
def test_few_experts_are_forecast_as_many_are(
    fleet: list[Drawn], lengths: list[tuple[int, int]], left: list[tuple[float, float]] | None, is_given: bool
) -> None:
    """Each expert for itself costs what all at once do, whatever is known of lengths and of those at work."""
    roster, n = Roster(_experts(fleet)), len(fleet)
    prompt_tokens, busy = (np.array([drawn[column] for drawn in fleet]) for column in (4, 5))
    usual, longest = np.array(lengths[:n]).T
    unread, to_write = (None, None) if left is None else np.array(left[:n]).T
    most = None if is_given else np.maximum(usual, longest)
    asked = (prompt_tokens, usual, busy, np.arange(n), most, unread, to_write)
    few = roster.forecast(*asked)
    with mock.patch("moe2.coordinator.choosing.forecast.FEW", 0):
        many = roster.forecast(*asked)
    for one, other in zip(_ranges(few), _ranges(many), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def _ranges(found: Forecast) -> list[FloatArray]:
    costs = (found.ttft_s, found.per_token_s, found.total_s, found.energy_j)
    return [quantile for figures in costs for quantile in (figures.p50, figures.p95)]


def _written_out(one: Expert, demand: Demand, busy: int, cached_tokens: int) -> Prediction:
    """The prediction for one request on one expert, written out formula by formula."""
    report = one.report
    shape = RequestShape(
        prompt_tokens=demand.prompt_tokens,
        decoded_tokens=demand.answer_tokens,
        cached_tokens=cached_tokens,
        occupancy=min(busy + 1, report.slots),
        queued_ahead=busy - report.slots if busy >= report.slots else None,
    )
    lived = expected_occupancy(report.latency, shape) if report.latency else shape.occupancy
    energy_j = predicted_energy(report.energy, shape, lived) if report.energy else None
    quality = report.energy.quality if report.energy else None
    if report.latency is None:
        return Prediction(shape, None, None, None, energy_j, quality)
    latency, transmit_s = predicted_latency(report.latency, shape), one.rtt_s or 0.0
    load_s = 0.0 if report.state is ExpertState.READY else report.load_s
    return Prediction(
        shape=shape,
        ttft_s=_later(latency.ttft_s, transmit_s, load_s),
        per_token_s=latency.inter_token_s,
        total_s=_later(latency.total_s, transmit_s, load_s),
        energy_j=energy_j,
        energy_quality=quality,
        transmit_s=transmit_s,
    )


def _later(seconds: Quantiles, transmit_s: float, load_s: float | None) -> Quantiles | None:
    if load_s is None:
        return None
    return Quantiles(seconds.p50 + transmit_s + load_s, seconds.p95 + transmit_s + load_s)


def _figures(prediction: Prediction) -> list[float]:
    ranges = (prediction.ttft_s, prediction.per_token_s, prediction.total_s, prediction.energy_j)
    quantiles = [figure for found in ranges for figure in ((found.p50, found.p95) if found else (math.nan, math.nan))]
    return [*quantiles, prediction.transmit_s]


def _energy(joules: float) -> EnergyProfile:
    """An energy profile in which every kind of work costs something."""
    return EnergyProfile(coefficients=(joules,) * 4, spread=EXACT, quality=Quality.SIMULATED)


def test_what_those_at_work_have_left_is_part_of_a_prediction() -> None:
    """Of three places only the one that was asked differs, and that by the law written out."""
    law = msgspec.structs.replace(speed(1000.0, 100.0, slots=4), newcomer_s=0.02, occupancy=(1.5, 0.5))
    roster = Roster([expert(f"agent-{n}", latency=law, slots=4) for n in range(3)])
    alone = roster.forecast(np.full(3, 200), 51, np.array([0, 2, 2]))
    known = alone.beside({2: WorkLeft(unread_tokens=500.0, to_write_tokens=30.0)})
    shape = known.prediction(2).shape
    assert (shape.unread_tokens, shape.to_write_tokens) == (500.0, 30.0)
    assert known.ttft_s.p50[2] == pytest.approx(0.4)
    predicted = predicted_latency(law, shape)
    for seconds, written_out in ((known.ttft_s, predicted.ttft_s), (known.total_s, predicted.total_s)):
        assert seconds.p95[2] == pytest.approx(written_out.p95)
    for place in (0, 1):
        assert known.total_s.at(place) == alone.total_s.at(place)
        assert known.prediction(place).shape.to_write_tokens is None
    # Those that soon have written all make room for others, who bring prompts.
    busy_for_long = alone.beside({2: WorkLeft(unread_tokens=500.0, to_write_tokens=100.0)})
    assert busy_for_long.total_s.p50[2] < known.total_s.p50[2]


@pytest.mark.parametrize("few", [0, 8])
@given(st.lists(st.tuples(st.floats(0, 900), st.floats(0, 200)), min_size=1, max_size=5), st.booleans())
def test_who_is_asked_one_after_the_other_is_forecast_as_if_all_had_been_at_once(
    few: int, left: list[tuple[float, float]], one_by_one: bool
) -> None:
    """What a few have left changes their figures as it would in a forecast of the whole fleet, and nobody else's."""
    law = msgspec.structs.replace(speed(900.0, 60.0, slots=4), newcomer_s=0.01, occupancy=(0.5, 0.7))
    roster = Roster([expert(f"agent-{n}", latency=law, energy=cost(0.1 + n)) for n in range(len(left) + 2)])
    busy = np.arange(len(roster)) % 3
    asked = {n + 1: WorkLeft(*each) for n, each in enumerate(left)}
    unread, to_write = np.zeros(len(roster)), np.full(len(roster), np.nan)
    for place, work in asked.items():
        unread[place], to_write[place] = work
    with mock.patch("moe2.coordinator.choosing.forecast.FEW", few):
        found = alone = roster.forecast(np.full(len(roster), 300), 40, busy)
        for some in [{place: work} for place, work in asked.items()] if one_by_one else [asked]:
            found = found.beside(some)
        whole = roster.forecast(alone.prompt_tokens, 40, busy, unread_tokens=unread, to_write_tokens=to_write)
    for place in range(len(roster)):
        assert found.prediction(place) == whole.prediction(place) or place not in asked
        assert _figures(found.prediction(place)) == _figures((whole if place in asked else alone).prediction(place))
