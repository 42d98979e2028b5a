"""The lengths of prompts and answers that are learned and predicted."""

from __future__ import annotations

import math
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.cost import EnergyProfile, LatencyProfile, RequestShape, Spread
from moe2.common.energy import Quality
from moe2.common.link.messages import JobUsage
from moe2.coordinator.choosing.forecast import Roster
from moe2.coordinator.choosing.lengths import (
    MAX_CLASSES,
    AnswerLengths,
    Lengths,
    LengthSums,
    PromptLengths,
    SavedLengths,
)
from moe2.coordinator.choosing.request import ASSUMED_ANSWER_TOKENS, Demand
from tests.coordinator.experts import expert

FREE = Demand(20, None)


def learned(median: float, sigma: float, *, n: int = 200, category: str = "chat", model: str = "m") -> AnswerLengths:
    """Lengths learned from answers of one category and model that are lognormal about their median."""
    lengths, random = AnswerLengths(), Random(1)
    for _ in range(n):
        lengths.ended(
            category, model, FREE, max(1, round(random.lognormvariate(math.log(median), sigma))), is_cut=False
        )
    return lengths


def predicted(lengths: AnswerLengths, category: str = "chat", model: str = "m") -> tuple[int, int]:
    """The p50 and the p95 of one category and model."""
    p50, p95 = lengths.of(category, [model])
    return int(p50[0]), int(p95[0])


def test_before_the_first_answer_a_length_is_assumed() -> None:
    """Nothing is known yet, and the documented length stands for both quantiles."""
    assert predicted(AnswerLengths()) == (ASSUMED_ANSWER_TOKENS, ASSUMED_ANSWER_TOKENS)


@pytest.mark.parametrize(("median", "sigma"), [(12, 0.3), (130, 0.8), (1500, 0.5)])
def test_both_quantiles_are_found(median: float, sigma: float) -> None:
    """After 200 answers the median is within a quarter, and the p95 holds 90 to 99 of 100 further answers."""
    lengths, random = learned(median, sigma), Random(2)
    p50, p95 = predicted(lengths)
    assert p50 == pytest.approx(median, rel=0.25)
    later = [random.lognormvariate(math.log(median), sigma) for _ in range(2000)]
    assert 0.90 <= sum(one <= p95 for one in later) / len(later) <= 0.99


def test_one_answer_moves_the_median_and_leaves_room_for_others() -> None:
    """A single short answer is no proof that all are short."""
    lengths = AnswerLengths()
    assert lengths.ended("chat", "m", FREE, 10, is_cut=False)
    p50, p95 = predicted(lengths)
    assert 10 < p50 < ASSUMED_ANSWER_TOKENS
    assert p95 > 4 * p50


def test_categories_and_models_are_told_apart() -> None:
    """Code of one model is long, chat of another short; each keeps its own length."""
    lengths, random = AnswerLengths(), Random(3)
    for _ in range(100):
        for category, model, median in (("code", "a", 900), ("chat", "a", 90), ("code", "b", 450), ("chat", "b", 45)):
            lengths.ended(category, model, FREE, round(random.lognormvariate(math.log(median), 0.3)), is_cut=False)
    assert predicted(lengths, "code", "a")[0] == pytest.approx(900, rel=0.2)
    assert predicted(lengths, "chat", "b")[0] == pytest.approx(45, rel=0.2)


def test_a_new_pair_takes_after_its_category_and_its_model() -> None:
    """A verbose model that has never written code is expected to write longer code than a terse one."""
    lengths = AnswerLengths()
    for _ in range(60):
        lengths.ended("chat", "verbose", FREE, 400, is_cut=False)
        lengths.ended("chat", "terse", FREE, 40, is_cut=False)
        lengths.ended("code", "terse", FREE, 160, is_cut=False)
    verbose, terse = predicted(lengths, "code", "verbose")[0], predicted(lengths, "code", "terse")[0]
    assert verbose > 1.5 * terse
    unknown = predicted(lengths, "poetry", "nobody's")
    assert predicted(lengths, "chat", "terse")[0] < unknown[0] < predicted(lengths, "chat", "verbose")[0]


@pytest.mark.parametrize(
    ("demand", "n_tokens", "is_cut"),
    [(Demand(20, 8), 8, True), (Demand(20, 8), 3, False), (Demand(20, 4096), 4096, True), (FREE, 0, False)],
)
def test_an_answer_that_a_limit_has_bent_teaches_nothing(demand: Demand, n_tokens: int, is_cut: bool) -> None:
    """Neither one that was cut, nor one that was short enough for a tight limit, nor an empty one."""
    lengths = AnswerLengths()
    assert not lengths.ended("chat", "m", demand, n_tokens, is_cut=is_cut)
    assert lengths.saved == ()


def test_a_limit_far_beyond_usual_answers_does_not_keep_from_learning() -> None:
    """Clients set generous limits by habit; an answer that ends by itself below one is an answer like others."""
    lengths = AnswerLengths()
    assert lengths.ended("chat", "m", Demand(20, 4096), 30, is_cut=False)


def test_a_context_that_is_full_counts_as_a_long_answer() -> None:
    """Without a limit of the client's, an answer that filled the context would have been longer still."""
    lengths = AnswerLengths()
    assert lengths.ended("chat", "m", FREE, 2000, is_cut=True)
    assert predicted(lengths)[0] > ASSUMED_ANSWER_TOKENS


def test_what_was_learned_is_the_same_after_a_restart() -> None:
    """Through JSON and back, in the same order."""
    lengths = learned(130, 0.8)
    saved = msgspec.json.decode(msgspec.json.encode(SavedLengths(answers=lengths.saved)), type=SavedLengths)
    assert predicted(AnswerLengths(saved.answers)) == predicted(lengths)


@pytest.mark.parametrize(
    "sums",
    [
        LengthSums(weight=-1.0, logs=1.0, squares=1.0),
        LengthSums(weight=1e300, logs=1e300, squares=1e300),
        LengthSums(weight=1.0, logs=-5.0, squares=1.0),
        LengthSums(weight=0.0),
    ],
)
def test_damaged_figures_are_left_out(sums: LengthSums) -> None:
    """A file that somebody has edited brings no absurd predictions."""
    assert predicted(AnswerLengths((sums,))) == (ASSUMED_ANSWER_TOKENS, ASSUMED_ANSWER_TOKENS)


def test_categories_that_clients_make_up_are_bounded() -> None:
    """The latest are remembered, and all of them together still say how long answers are."""
    lengths = AnswerLengths()
    for number in range(2 * MAX_CLASSES):
        lengths.ended(f"category {number}", "m", FREE, 40, is_cut=False)
    assert len(lengths.saved) <= MAX_CLASSES
    assert predicted(lengths, "another", "m")[0] == pytest.approx(40, rel=0.2)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 10**6)), max_size=40),
    st.sampled_from("abc"),
    st.sampled_from("xyz"),
)
def test_lengths_are_positive_and_in_order(seen: list[tuple[str, str, int]], category: str, model: str) -> None:
    """Whatever was seen, a long answer is at least as long as a usual one, which has a token."""
    lengths = AnswerLengths()
    for one, other, n_tokens in seen:
        lengths.ended(one, other, FREE, n_tokens, is_cut=False)
    p50, p95 = predicted(lengths, category, model)
    assert 1 <= p50 <= p95 <= 2**30


# --- What a roster makes of it ----------------------------------------------------------------------------------------

LATENCY = LatencyProfile(
    prefill=(0.0, 0.001, 0.0, 0.0),
    decode=(0.01, 0.0, 0.0),
    slots=4,
    service_s=1.0,
    ttft=Spread(0.0, 0.1),
    inter_token=Spread(0.0, 0.1),
    total=Spread(0.0, 0.1),
)
ENERGY = EnergyProfile(coefficients=(0.0, 1.0, 0.0, 0.0), spread=Spread(0.0, 0.1), quality=Quality.SIMULATED)


def test_no_answer_is_longer_than_its_context_has_room_for() -> None:
    """An expert with a small context is predicted by what it can write."""
    small, large = expert("a", context_tokens=100), expert("b", context_tokens=4096)
    roster = Roster((small, large))
    usual, longest = Lengths().answer_tokens(roster, FREE, "chat", np.array([60, 60]))
    assert longest is not None
    assert np.asarray(usual).tolist() == [40, ASSUMED_ANSWER_TOKENS]
    assert longest.tolist() == [40, ASSUMED_ANSWER_TOKENS]


def test_a_limit_of_the_clients_is_what_is_planned_for() -> None:
    """Nothing that was learned makes less of a limit: a budget holds for the longest answer that it allows."""
    lengths = Lengths()
    for _ in range(50):
        lengths.answers.ended("chat", "m", FREE, 5, is_cut=False)
    roster = Roster((expert("a"),))
    assert lengths.answer_tokens(roster, Demand(20, 400), "chat", np.array([20])) == (400, None)


def test_the_p95_of_a_cost_is_as_wide_as_lengths_and_predictions_together() -> None:
    """Where lengths alone spread by a factor of 4, joules do; a prediction's own error adds as in a right angle."""
    roster = Roster((expert("a", latency=LATENCY, energy=ENERGY),))
    one = np.array([1])
    forecast = roster.forecast(one, 100 * one, 0 * one, longest_tokens=400 * one)
    joules = forecast.energy_j.at(0)
    assert joules is not None
    assert joules.p50 == pytest.approx(100.0)
    assert joules.p95 == pytest.approx(100.0 * math.exp(math.hypot(math.log(4.0), 0.1)))
    assert forecast.prediction(0).longest_tokens == 400
    total_s = forecast.total_s.at(0)
    assert total_s is not None
    assert total_s.p95 > 3.9 * total_s.p50


def learned_line(count: int, *, slope: float, offset: float, seed: int = 1) -> PromptLengths:
    """Prompt lengths learned from requests of 20 to 500 estimated tokens with a few percent of noise."""
    lengths, random = PromptLengths(), Random(seed)
    for _ in range(count):
        estimated = random.randint(20, 500)
        lengths.observe("m", estimated, round((offset + slope * estimated) * random.lognormvariate(0.0, 0.03)))
    return lengths


def test_nothing_learned_leaves_the_estimate() -> None:
    """A model that never ran leaves the estimate as it is."""
    assert learned_line(10, slope=2.0, offset=0.0).demand_on("other", Demand(100, 7)) == Demand(100, 7)


@pytest.mark.parametrize(("slope", "offset"), [(0.65, 0.0), (1.0, 30.0), (1.4, -10.0)])
def test_the_line_is_found(slope: float, offset: float) -> None:
    """The tokens to prefill are predicted within 5 % after 40 requests, for three kinds of lines."""
    lengths = learned_line(40, slope=slope, offset=offset)
    for estimated in (50, 200, 400):
        demand = lengths.demand_on("m", Demand(estimated, 7))
        assert demand.prompt_tokens == pytest.approx(offset + slope * estimated, rel=0.05)
        assert demand.max_tokens == 7


def test_one_odd_prompt_does_not_overthrow_the_estimate() -> None:
    """One prompt that was wholly cached hardly changes the prediction for the next."""
    lengths = PromptLengths()
    lengths.observe("m", 500, 1)
    assert lengths.demand_on("m", Demand(500, None)).prompt_tokens > 200


@given(
    seen=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), min_size=1, max_size=20),
    estimated=st.integers(0, 10_000),
)
def test_a_longer_prompt_is_never_shorter(seen: list[tuple[int, int]], estimated: int) -> None:
    """The prediction never falls with the estimate, and is at least one token."""
    lengths = PromptLengths()
    for one in seen:
        lengths.observe("m", *one)
    shorter, longer = (lengths.demand_on("m", Demand(n, None)).prompt_tokens for n in (estimated, estimated + 100))
    assert 1 <= shorter <= longer


def test_what_was_foreseen_in_the_cache_is_not_learned_away() -> None:
    """Turns of 1000 tokens with 900 cached as foreseen: a prompt is predicted whole, and the cache taken off once."""
    lengths = PromptLengths()
    foreseen = RequestShape(prompt_tokens=100, decoded_tokens=1, cached_tokens=900)
    for _ in range(30):
        usage = JobUsage(prompt_tokens=1000, cached_tokens=905, decoded_tokens=10)
        lengths.ran("m", Demand(1000, 10), usage, foreseen)
    assert lengths.demand_on("m", Demand(1000, 10)).prompt_tokens == pytest.approx(995, abs=3)


def test_what_nobody_foresaw_in_the_cache_is_learned() -> None:
    """A template that all prompts begin with is never read again."""
    lengths = PromptLengths()
    foreseen = RequestShape(prompt_tokens=100, decoded_tokens=1)
    for _ in range(30):
        usage = JobUsage(prompt_tokens=100, cached_tokens=40, decoded_tokens=10)
        lengths.ran("m", Demand(100, 10), usage, foreseen)
    assert lengths.demand_on("m", Demand(100, 10)).prompt_tokens == pytest.approx(60, abs=3)


def test_a_job_of_unknown_length_teaches_nothing() -> None:
    """It may have failed before its prompt was read."""
    lengths = PromptLengths()
    lengths.ran("m", Demand(100, 10), JobUsage(decoded_tokens=1), RequestShape(prompt_tokens=1, decoded_tokens=1))
    assert lengths.demand_on("m", Demand(100, 10)).prompt_tokens == 100
