"""An expert's energy, learned."""

from __future__ import annotations

from random import Random
from statistics import median

import pytest

from moe2.agent.energy.attribution import DEFAULT_PREFILL_WEIGHT
from moe2.agent.learning.energy_law import EnergyModel
from moe2.common.cost import RequestShape
from moe2.common.energy import Attribution, Energy, Quality, Scope, unmeasured
from tests.common.predictions import predicted_energy


def _energy(joules: float, **changes: object) -> Energy:
    values: dict[str, object] = {
        "joules": joules,
        "marginal_joules": 0.8 * joules,
        "quality": Quality.MEASURED_INTEGRATED,
        "scope": Scope.MODULE_RAILS,
        "n_samples": 50,
        "idle_w": 8.8,
        "attribution": Attribution.EXCLUSIVE,
    }
    return Energy(**(values | changes))  # type: ignore[arg-type]


class Host:
    """A host with a known law of energy: 0.06 J per prompt token, 1 J own and 1.2 J shared per decoded token."""

    def __init__(self, seed: int, *, factor: float = 1.0) -> None:
        self.random = Random(seed)
        self.factor = factor

    def serve(self, occupancy: int | None = None) -> tuple[RequestShape, Energy]:
        """A random request and its energy."""
        shape = RequestShape(
            prompt_tokens=self.random.randint(10, 800),
            decoded_tokens=self.random.randint(8, 200),
            occupancy=float(occupancy or self.random.randint(1, 4)),
        )
        mean_j = 0.06 * shape.prompt_tokens + shape.decoded_tokens * (1.0 + 1.2 / shape.occupancy)
        return shape, _energy(self.factor * mean_j * self.random.lognormvariate(0.0, 0.06))


def _trained(seed: int, count: int = 150, occupancy: int | None = None) -> tuple[EnergyModel, Host]:
    model, host = EnergyModel(), Host(seed)
    for _ in range(count):
        model.observe(*host.serve(occupancy))
    return model, host


def test_nothing_measured_is_nothing_predicted() -> None:
    """No profile before the first measured request; never 0 J."""
    assert EnergyModel().profile is None


@pytest.mark.parametrize(
    "energy",
    [
        unmeasured("no sensor"),
        _energy(5.0, quality=Quality.PARTIAL),
        _energy(5.0, quality=Quality.ESTIMATED),
        _energy(5.0, n_samples=2),
        _energy(0.0),
    ],
)
def test_unusable_energy_teaches_nothing(energy: Energy) -> None:
    """Unknown, partial, estimated, too coarse or zero: passed over."""
    model = EnergyModel()
    model.observe(RequestShape(prompt_tokens=10, decoded_tokens=10), energy)
    assert model.profile is None


def test_one_request_gives_a_wide_prediction() -> None:
    """The right size, with honest doubt."""
    model = EnergyModel()
    shape = RequestShape(prompt_tokens=100, decoded_tokens=100)
    model.observe(shape, _energy(230.0))
    assert model.profile is not None
    predicted = predicted_energy(model.profile, shape)
    assert predicted.p50 == pytest.approx(230.0, rel=0.05)
    assert predicted.p95 > 2 * predicted.p50


@pytest.mark.parametrize("seed", range(3))
def test_predictions_on_steady_load_are_calibrated(seed: int) -> None:
    """Mixed lengths and occupancies: median error below 10 %, p95 covers 93 to 97 %."""
    model, host = _trained(seed, 60)
    errors, below, count = [], 0, 1500
    for _ in range(count):
        shape, energy = host.serve()
        assert model.profile is not None
        assert energy.joules is not None
        predicted = predicted_energy(model.profile, shape)
        errors.append(abs(predicted.p50 / energy.joules - 1))
        below += energy.joules <= predicted.p95
        model.observe(shape, energy)
    assert median(errors) <= 0.10
    assert 0.93 <= below / count <= 0.97


def test_joules_per_token_are_found() -> None:
    """The law behind the requests, per token and batch."""
    model, _ = _trained(1, 400)
    profile = model.profile
    assert profile is not None
    assert profile.j_per_prefilled_token() == pytest.approx(0.06, rel=0.2)
    assert profile.j_per_decoded_token(occupancy=1) == pytest.approx(2.2, rel=0.1)
    assert profile.j_per_decoded_token(occupancy=4) == pytest.approx(1.3, rel=0.1)


def test_change_of_power_mode_is_learned_within_five_requests() -> None:
    """25 % more joules per token, as from MAXN to 30 W: below 15 % error five requests later."""
    model, host = _trained(2)
    host.factor = 1.6
    for _ in range(5):
        model.observe(*host.serve())
    errors = []
    for _ in range(20):
        shape, energy = host.serve()
        assert model.profile is not None
        assert energy.joules is not None
        errors.append(abs(predicted_energy(model.profile, shape).p50 / energy.joules - 1))
    assert median(errors) < 0.15


def test_predictions_stay_calibrated_where_tokens_are_guessed() -> None:
    """Where a token takes 0.4 to 1 of its joules, as the text allows, 95 of 100 requests keep their 95 % quantile."""
    model, host, random = EnergyModel(), Host(8), Random(9)
    kept = 0
    for at in range(400):
        shape, _ = host.serve()
        effort = random.uniform(0.4, 1.0)
        joules = 0.06 * shape.prompt_tokens + effort * shape.decoded_tokens * (1.0 + 1.2 / shape.occupancy)
        if at >= 100:
            assert model.profile is not None
            kept += joules <= predicted_energy(model.profile, shape).p95
        model.observe(shape, _energy(joules), effort=effort)
    assert 0.92 <= kept / 300 <= 0.98


def test_prefill_weight_is_learned_from_lone_requests() -> None:
    """0.06 J against 2.2 J: a prompt token weighs 1/37 of a decoded one."""
    model, _ = _trained(3, occupancy=1)
    assert model.token_weight().prefill == pytest.approx(0.06 / 2.2, rel=0.2)


def test_prefill_weight_is_the_default_at_first() -> None:
    """Nine requests are too few to depart from the published ratio."""
    model, _ = _trained(3, count=9, occupancy=1)
    assert model.token_weight(decode=2.0).prefill == pytest.approx(2.0 * DEFAULT_PREFILL_WEIGHT)


def test_shared_requests_do_not_teach_the_weight() -> None:
    """Joules that were split by a weight say nothing about it."""
    model, host = EnergyModel(), Host(4)
    for _ in range(50):
        shape, energy = host.serve()
        model.observe(shape, _energy(energy.joules or 0.0, attribution=Attribution.TOKEN_SHARE))
    assert model.token_weight().prefill == pytest.approx(DEFAULT_PREFILL_WEIGHT)


def test_another_scope_begins_anew() -> None:
    """Joules of a board and of a module are not the same joules."""
    model, host = _trained(5)
    shape, energy = host.serve()
    model.observe(shape, _energy(energy.joules or 0.0, scope=Scope.GPU_BOARD))
    assert model.profile is not None
    assert model.profile.scope is Scope.GPU_BOARD
    assert model.profile.n_requests == 1


def test_profile_carries_the_worst_quality() -> None:
    """One simulated figure among measured ones makes the profile simulated."""
    model, host = _trained(6, 10)
    shape, energy = host.serve()
    model.observe(shape, _energy(energy.joules or 0.0, quality=Quality.SIMULATED))
    assert model.profile is not None
    assert model.profile.quality is Quality.SIMULATED


@pytest.mark.parametrize(("coverage", "learned"), [(1.0, True), (0.6, False), (None, False)])
def test_joules_beside_other_programs_teach_if_the_time_is_covered(coverage: float | None, learned: bool) -> None:
    """Partial because of strangers is what a request costs there; because of a hole or a missing board it is not."""
    model = EnergyModel()
    energy = Energy(joules=10.0, quality=Quality.PARTIAL, coverage=coverage, n_samples=50)
    model.observe(RequestShape(prompt_tokens=50, decoded_tokens=20), energy)
    assert (model.profile is not None) is learned
