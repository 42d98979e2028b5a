"""An expert's speed, learned."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from statistics import median

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as replace_shape

from moe2.agent.learning.latency import LatencyModel, RequestTiming
from moe2.common.cost import LatencyProfile, RequestShape, Spread
from tests.common.predictions import LatencyPrediction, predicted_latency


class Host:
    """A host with a known law of speed, a few percent of noise and four slots."""

    def __init__(self, seed: int, *, pace: float = 1.0) -> None:
        self.random = Random(seed)
        self.pace = pace

    def serve(self) -> RequestTiming:
        """A random request and what it took."""
        prompt, tokens = self.random.randint(10, 800), self.random.randint(8, 200)
        occupancy = float(self.random.randint(1, 4))
        shape = RequestShape(prompt_tokens=prompt, decoded_tokens=tokens, occupancy=occupancy)
        prefill_s = 0.01 + prompt * 0.002 * (1 + 0.2 * (occupancy - 1)) + prompt * prompt * 2e-7
        step_s = 0.02 * (1 + 0.25 * (occupancy - 1)) + 0.004 * shape.mean_context_tokens / 1000
        return RequestTiming(
            shape=shape,
            prefill_s=self.pace * prefill_s * self.random.lognormvariate(0.0, 0.05),
            decode_s=self.pace * step_s * (tokens - 1) * self.random.lognormvariate(0.0, 0.05),
        )


def _total_s(timing: RequestTiming) -> float:
    assert timing.prefill_s is not None
    assert timing.decode_s is not None
    return timing.queue_s + timing.prefill_s + timing.decode_s


def _predict(model: LatencyModel, shape: RequestShape) -> LatencyPrediction:
    profile = model.profile
    assert profile is not None
    return predicted_latency(profile, shape)


def _trained(seed: int, count: int = 150) -> tuple[LatencyModel, Host]:
    model, host = LatencyModel(slots=4), Host(seed)
    for _ in range(count):
        model.observe(host.serve())
    return model, host


def test_nothing_measured_is_nothing_predicted() -> None:
    """An expert without measurements has no profile."""
    assert LatencyModel(slots=1).profile is None


def test_warm_up_gives_a_first_wide_prediction() -> None:
    """Rates of the warm-up run: the right size, with p95 at more than twice the median."""
    model = LatencyModel(slots=1)
    model.warmed_up(500.0, 50.0)
    predicted = _predict(model, RequestShape(prompt_tokens=500, decoded_tokens=101))
    assert predicted.ttft_s.p50 == pytest.approx(1.0)
    assert predicted.total_s.p50 == pytest.approx(3.0)
    assert predicted.total_s.p95 > 2 * predicted.total_s.p50
    assert model.profile is not None
    assert model.profile.n_requests == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_predictions_on_steady_load_are_calibrated(seed: int) -> None:
    """Mixed lengths and occupancies: median error below 10 %, p95 covers 93 to 97 % of totals and first tokens."""
    model, host = _trained(seed, 60)
    errors, below_total, below_first, count = [], 0, 0, 1500
    for _ in range(count):
        timing = host.serve()
        predicted = _predict(model, timing.shape)
        actual_s = _total_s(timing)
        errors.append(abs(predicted.total_s.p50 / actual_s - 1))
        below_total += actual_s <= predicted.total_s.p95
        below_first += (timing.prefill_s or 0.0) <= predicted.ttft_s.p95
        model.observe(timing)
    assert median(errors) <= 0.10
    assert 0.93 <= below_total / count <= 0.97
    assert 0.93 <= below_first / count <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_p95_holds_on_a_host_with_other_work(seed: int) -> None:
    """Pace that jumps every 50 requests and three slow outliers in a hundred: p95 still covers 92 to 98 %."""
    model, host = _trained(seed, 60)
    below, count = 0, 1500
    for _ in range(count):
        if host.random.random() < 0.02:
            host.pace = host.random.choice([1.0, 1.5, 2.5])
        usual_pace, host.pace = host.pace, host.pace * (4.0 if host.random.random() < 0.03 else 1.0)
        timing = host.serve()
        host.pace = usual_pace
        below += _total_s(timing) <= _predict(model, timing.shape).total_s.p95
        model.observe(timing)
    assert 0.92 <= below / count <= 0.98


@pytest.mark.parametrize("pace", [0.5, 1.5, 3.0])
def test_change_of_pace_is_learned_within_five_requests(pace: float) -> None:
    """A power mode of another speed: five requests later the error is below 15 % again."""
    model, host = _trained(1)
    host.pace = pace
    for _ in range(5):
        model.observe(host.serve())
    errors = []
    for _ in range(20):
        timing = host.serve()
        errors.append(abs(_predict(model, timing.shape).total_s.p50 / _total_s(timing) - 1))
    assert median(errors) < 0.15
    assert model.changes >= 1


def test_steady_load_is_no_change_of_pace() -> None:
    """Hundreds of ordinary requests raise no alarm."""
    model, _ = _trained(2, 600)
    assert model.changes == 0


def test_cached_tokens_cost_no_prefill() -> None:
    """The same conversation with its prefix in the cache has its first token earlier."""
    model, _ = _trained(3)
    cold = _predict(model, RequestShape(prompt_tokens=600, decoded_tokens=50))
    warm = _predict(model, RequestShape(prompt_tokens=100, cached_tokens=500, decoded_tokens=50))
    assert warm.ttft_s.p50 < 0.4 * cold.ttft_s.p50


def test_queue_adds_to_the_first_token() -> None:
    """Each request ahead in the queue adds a slot's turn."""
    model, _ = _trained(4)
    profile = model.profile
    assert profile is not None
    shape = RequestShape(prompt_tokens=100, decoded_tokens=50)
    waiting = RequestShape(prompt_tokens=100, decoded_tokens=50, queued_ahead=3)
    assert profile.queue_s(shape) == 0.0
    assert profile.queue_s(waiting) == pytest.approx(4 * profile.service_s / 4)
    assert _predict(model, waiting).ttft_s.p50 > _predict(model, shape).ttft_s.p50


def test_cancelled_request_teaches_only_what_it_finished() -> None:
    """Without a first token there is nothing to learn of speed."""
    model = LatencyModel(slots=1)
    model.observe(RequestTiming(shape=RequestShape(prompt_tokens=5000, decoded_tokens=0)))
    assert model.profile is None


def test_mean_occupancy_is_what_is_learned_from() -> None:
    """A request that arrived alone but ran among four teaches the speed among four."""
    model = LatencyModel(slots=4)
    for occupancy, step_s in ((1.0, 0.02), (4.0, 0.05)):
        for _ in range(40):
            shape = RequestShape(prompt_tokens=100, decoded_tokens=101)
            model.observe(RequestTiming(shape, prefill_s=0.1, decode_s=100 * step_s, mean_occupancy=occupancy))
    shape = RequestShape(prompt_tokens=100, decoded_tokens=101, occupancy=4.0)
    assert model.profile is not None
    assert model.profile.inter_token_s(shape) == pytest.approx(0.05, rel=0.1)


def _guessing(host: Host, random: Random) -> RequestTiming:
    """A request of a host whose guesses make it up to three times as fast, as its text allows."""
    timing = host.serve()
    assert timing.decode_s is not None
    decode_s = timing.decode_s / random.uniform(1.0, 3.0)
    return replace(timing, decode_s=decode_s, saved_s=timing.decode_s - decode_s)


def test_predictions_stay_calibrated_where_tokens_are_guessed() -> None:
    """Of texts that allow for more or less, 95 of 100 requests keep their 95 % quantile, and half the median."""
    model, host, random = LatencyModel(slots=4), Host(5), Random(6)
    kept = below = 0
    for at in range(400):
        timing = _guessing(host, random)
        if at >= 100:
            predicted = _predict(model, timing.shape).total_s
            kept += _total_s(timing) <= predicted.p95
            below += _total_s(timing) <= predicted.p50
        model.observe(timing)
    assert 0.92 <= kept / 300 <= 0.98
    assert 0.42 <= below / 300 <= 0.58


def test_what_guesses_save_is_expected_of_the_next_request() -> None:
    """Twenty requests at three times the speed are predicted; what a step takes is not forgotten for it."""
    model, host = _trained(7)
    plain, shape = model.profile, RequestShape(prompt_tokens=100, decoded_tokens=100)
    assert plain is not None
    for at in range(40):
        timing = host.serve()
        assert timing.decode_s is not None
        saved_s = timing.decode_s * 2 / 3 if at < 20 else 0.0
        model.observe(replace(timing, decode_s=timing.decode_s - saved_s, saved_s=saved_s))
        if at == 19:
            assert model.profile is not None
            assert model.profile.inter_token_s(shape) == pytest.approx(plain.inter_token_s(shape) / 3, rel=0.1)
    assert model.profile is not None
    assert model.profile.inter_token_s(shape) == pytest.approx(plain.inter_token_s(shape), rel=0.1)


@pytest.mark.slow
@given(
    prompt=st.integers(0, 5000),
    tokens=st.integers(1, 1000),
    occupancy=st.integers(1, 8),
    more=st.integers(0, 500),
)
def test_more_work_never_takes_less_time(prompt: int, tokens: int, occupancy: int, more: int) -> None:
    """Longer prompts, longer answers and fuller batches only add to the prediction."""
    shape = RequestShape(prompt_tokens=prompt, decoded_tokens=tokens, occupancy=float(occupancy))
    larger = RequestShape(
        prompt_tokens=prompt + more, decoded_tokens=tokens + more, occupancy=float(occupancy + more % 3)
    )
    assert _predict(_MODEL, larger).total_s.p95 >= _predict(_MODEL, shape).total_s.p95 - 1e-9


_MODEL, _ = _trained(9)


def test_what_attention_looks_back_on_is_learned_from_prompts_without_a_cache() -> None:
    """A prompt after 3000 cached tokens is predicted by a model that never saw one: the law is the attention's."""
    model, _ = _trained(0)
    shape = RequestShape(prompt_tokens=200, decoded_tokens=8, cached_tokens=3000)
    expected_s = 0.01 + 200 * 0.002 + 200 * (200 + 2 * 3000) * 2e-7
    without_s = _predict(model, replace_shape(shape, cached_tokens=0)).ttft_s.p50
    predicted_s = _predict(model, shape).ttft_s.p50
    assert predicted_s == pytest.approx(expected_s, rel=0.25)
    assert without_s < 0.7 * expected_s


def test_the_first_request_after_a_pause_costs_what_it_has_cost() -> None:
    """Found idle, a prefill took 0.3 s more than beside others; the spread of neither is widened by the other."""
    model, random = LatencyModel(slots=4), Random(3)
    for step in range(200):
        occupancy = float(1 + step % 3)
        prompt = random.randint(10, 200)
        prefill_s = 0.01 + prompt * 0.002 + (0.3 if occupancy == 1 else 0.0)
        shape = RequestShape(prompt_tokens=prompt, decoded_tokens=20, occupancy=occupancy)
        model.observe(RequestTiming(shape=shape, prefill_s=prefill_s, decode_s=0.4))
    profile = model.profile
    assert profile is not None
    assert profile.found_idle_s == pytest.approx(0.3, rel=0.1)
    idle, busy = (
        _predict(model, RequestShape(prompt_tokens=100, decoded_tokens=20, occupancy=occupancy)).ttft_s
        for occupancy in (1.0, 3.0)
    )
    assert (idle.p50, busy.p50) == pytest.approx((0.51, 0.21), rel=0.1)
    assert idle.p95 < 1.2 * idle.p50


def test_the_batch_in_progress_costs_whoever_finds_the_expert_at_work() -> None:
    """It took 0.1 s on average: first tokens and totals are then as likely above their p50 as below it, and few are
    above their p95; who finds the expert idle does not pay."""
    model, random = LatencyModel(slots=4), Random(4)
    first, whole = [], []
    for step in range(600):
        occupancy = float(1 + step % 3)
        prompt = random.randint(10, 200)
        wait_s = 0.0 if occupancy == 1 else random.uniform(0.05, 0.15)
        prefill_s = (0.01 + prompt * 0.002) * random.lognormvariate(0.0, 0.02)
        shape = RequestShape(prompt_tokens=prompt, decoded_tokens=20, occupancy=occupancy)
        if step >= 100:
            told = _predict(model, shape)
            actual_s = wait_s + prefill_s
            first.append((actual_s <= told.ttft_s.p50, actual_s <= told.ttft_s.p95))
            whole.append(actual_s + 0.4 <= told.total_s.p50)
        model.observe(RequestTiming(shape=shape, wait_s=wait_s, prefill_s=prefill_s, decode_s=0.4))
    profile = model.profile
    assert profile is not None
    assert profile.found_busy_s == pytest.approx(0.1, rel=0.15)
    assert profile.found_idle_s == 0.0
    assert 0.42 <= sum(half for half, _ in first) / len(first) <= 0.58
    assert 0.92 <= sum(most for _, most in first) / len(first) <= 0.98
    assert 0.42 <= sum(whole) / len(whole) <= 0.58
    idle = _predict(model, RequestShape(prompt_tokens=100, decoded_tokens=20)).ttft_s
    assert idle.p50 == pytest.approx(0.21, rel=0.1)


def test_a_profile_goes_on_from_what_it_said() -> None:
    """Taken over into another power mode, it predicts the same, for idle and for busy experts."""
    said = LatencyProfile(
        prefill=(0.02, 0.002, 0.0, 0.0),
        decode=(0.02, 0.0, 0.0),
        slots=4,
        service_s=1.0,
        ttft=Spread(0.0, 0.1),
        inter_token=Spread(0.0, 0.1),
        total=Spread(0.0, 0.1),
        found_busy_s=0.05,
        newcomer_s=0.0,
    )
    again = LatencyModel.starting_from(said).profile
    assert again is not None
    assert (again.prefill, again.found_idle_s) == (said.prefill, 0.0)
    assert again.found_busy_s == pytest.approx(0.05)


def test_a_request_that_waits_finds_nothing_idle() -> None:
    """With one slot the batch is always of one: who waits for it comes after somebody."""
    assert RequestShape(prompt_tokens=1, decoded_tokens=1).found_idle
    assert not RequestShape(prompt_tokens=1, decoded_tokens=1, queued_ahead=0).found_idle
    assert not RequestShape(prompt_tokens=1, decoded_tokens=1, occupancy=2).found_idle


def test_a_profile_of_an_earlier_release_costs_nothing_more_when_idle() -> None:
    """What it does not say is 0, of busy experts neither."""
    model, _ = _trained(0)
    profile = model.profile
    assert profile is not None
    old = msgspec.msgpack.encode({k: v for k, v in msgspec.to_builtins(profile).items() if not k.startswith("found")})
    known = msgspec.msgpack.decode(old, type=LatencyProfile)
    assert (known.found_idle_s, known.found_busy_s) == (0.0, 0.0)


class SharedHost:
    """A host whose requests find others' prompts unread, and are joined by newcomers who bring theirs."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def serve(self) -> RequestTiming:
        prompt, tokens, occupancy = (
            self.random.randint(20, 200),
            self.random.randint(20, 120),
            self.random.randint(1, 4),
        )
        unread = self.random.randint(50, 300) if occupancy > 1 and self.random.random() < 0.2 else 0
        lived, elders = self.random.uniform(1.0, 4.0), self.random.uniform(0.0, 1.0) * (occupancy - 1)
        newcomers = max(0.0, lived - 1 - elders)
        step_s = 0.015 + 0.002 * (lived - 1) + 0.008 * newcomers + 0.003 * max(0, unread - prompt) / (tokens - 1)
        return RequestTiming(
            shape=RequestShape(
                prompt_tokens=prompt,
                decoded_tokens=tokens,
                occupancy=occupancy,
                unread_tokens=unread,
                to_write_tokens=elders * (tokens - 1),
            ),
            prefill_s=0.003 * (prompt + min(unread, prompt)) * self.random.lognormvariate(0.0, 0.03),
            decode_s=step_s * (tokens - 1) * self.random.lognormvariate(0.0, 0.03),
            mean_occupancy=lived,
            newcomers=newcomers,
        )


def test_others_prompts_and_newcomers_are_learned_and_are_no_change_of_pace() -> None:
    """Both coefficients come out as they are, and who comes behind a prompt is not taken for a slower host."""
    model, host = LatencyModel(slots=4), SharedHost(1)
    for _ in range(300):
        model.observe(host.serve())
    profile = model.profile
    assert profile is not None
    assert model.changes == 0
    assert profile.newcomer_s == pytest.approx(0.008, rel=0.1)
    assert profile.prefill[1] == pytest.approx(0.003, rel=0.1)
    assert profile.ttft.p95 - profile.ttft.p50 < 0.12


def test_a_profile_of_an_earlier_release_goes_on_to_learn_newcomers() -> None:
    """An agent that was upgraded begins with what it knew, and learns what it did not tell apart before."""
    model, host = LatencyModel(slots=4), SharedHost(2)
    for _ in range(100):
        model.observe(host.serve())
    known = model.profile
    assert known is not None
    old = msgspec.msgpack.encode({k: v for k, v in msgspec.to_builtins(known).items() if k != "newcomer_s"})
    earlier = msgspec.msgpack.decode(old, type=LatencyProfile)
    assert earlier.newcomer_s is None
    assert earlier.inter_token_law[3] == 0.0
    upgraded = LatencyModel.starting_from(earlier)
    for _ in range(150):
        upgraded.observe(host.serve())
    assert upgraded.profile is not None
    assert upgraded.profile.newcomer_s == pytest.approx(0.008, rel=0.2)


_FIELDS_OF_BEFORE = (
    "a770726566696c6c94cb3fd0000000000000cb3fe0000000000000cb0000000000000000cb0000000000000000a66465636f"
    "646593cb3fc0000000000000cb0000000000000000cb0000000000000000a5736c6f747304a9736572766963655f73cb3ff0"
    "000000000000a47474667482a3703530cb0000000000000000a3703935cb3fe0000000000000ab696e7465725f746f6b656e"
    "82a3703530cb0000000000000000a3703935cb3fe0000000000000a5746f74616c82a3703530cb0000000000000000a37039"
    "35cb3fe0000000000000aa6e5f726571756573747309"
)
"""The fields of a profile, as the release before `newcomer_s` has sent them, behind the byte that counts them."""
_NEWCOMER_S = "aa6e6577636f6d65725f73cb0000000000000000"


def test_a_profiles_golden_bytes_hold_across_the_version_that_added_newcomers() -> None:
    """An earlier agent's bytes mean that it does not tell; ours are those, and one field more that it passes over."""
    earlier = msgspec.msgpack.decode(bytes.fromhex("88" + _FIELDS_OF_BEFORE), type=LatencyProfile)
    assert earlier.newcomer_s is None
    assert msgspec.msgpack.encode(earlier).hex() == "88" + _FIELDS_OF_BEFORE
    ours = msgspec.structs.replace(earlier, newcomer_s=0.0)
    assert msgspec.msgpack.encode(ours).hex() == "89" + _FIELDS_OF_BEFORE + _NEWCOMER_S

    class Earlier(msgspec.Struct, frozen=True, kw_only=True):
        prefill: tuple[float, float, float, float]
        decode: tuple[float, float, float]
        slots: int
        n_requests: int = 0

    read = msgspec.msgpack.decode(msgspec.msgpack.encode(ours), type=Earlier)
    assert (read.prefill, read.decode, read.slots, read.n_requests) == (ours.prefill, ours.decode, 4, 9)
