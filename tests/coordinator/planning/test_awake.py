"""The choice of who is awake equals brute force, keeps every limit and need, and says what it has proven."""

from __future__ import annotations

from dataclasses import replace
from time import process_time

import numpy as np
import pytest

from moe2.coordinator.planning.awake import AwakeProblem, Need, Room
from moe2.coordinator.planning.awake_search import AwakeSet, least_standing, most_valuable
from moe2.coordinator.planning.problem import ProblemError
from moe2.coordinator.planning.proof import Status
from moe2.coordinator.planning.search import Effort
from moe2.coordinator.planning.values import BestOf
from tests.oracles import awake as oracle


def fleet(rng: np.random.Generator, count: int, *, kinds: int = 0, twins: bool = False) -> AwakeProblem:
    """A random problem of `count` experts on fewer hosts; with `twins`, many experts are alike."""
    kinds = kinds or int(rng.integers(1, 6))
    hosts = int(rng.integers(1, count + 1))
    host = rng.integers(0, hosts, count)
    types = max(1, count // 3) if twins else count
    of_type = rng.integers(0, types, count) if twins else np.arange(count)
    if twins:
        host, hosts = np.arange(count), count
    worth = rng.uniform(0, 1, (kinds, types))[:, of_type]
    expert_w = rng.uniform(0, 30, types)[of_type]
    host_w = rng.uniform(0, 50, hosts) if not twins else rng.uniform(0, 50, types)[of_type]
    memory = rng.uniform(1, 8, types)[of_type]
    rooms = tuple(
        Room(f"memory of {h}", np.where(host == h, memory, 0.0), float(rng.uniform(4, 16)))
        for h in range(hosts)
        if rng.random() < 0.7
    )
    needs = []
    for number in range(int(rng.integers(0, 4))):
        share = np.where(rng.random(types) < 0.6, rng.uniform(0, 2, types), 0.0)[of_type]
        needs.append(Need(f"need {number}", share, float(share.sum() * rng.uniform(0, 0.9))))
    total_w = float(expert_w.sum() + host_w.sum())
    places = rng.permutation(count)
    return AwakeProblem(
        names=tuple(f"expert-{n:02d}" for n in range(count)),
        value=BestOf(worth),
        expert_w=expert_w,
        host=host,
        host_w=host_w,
        most_w=None if rng.random() < 0.15 else total_w * float(rng.uniform(0, 0.9)),
        rooms=rooms,
        needs=tuple(needs),
        pinned=frozenset(places[: int(rng.integers(0, 2))].tolist()),
        ruled_out=frozenset(places[2 : 2 + int(rng.integers(0, 2))].tolist()),
    )


def agrees(problem: AwakeProblem, found: AwakeSet) -> None:
    """Assert that a solver's set is feasible and worth as much as the best of all sets."""
    sets = oracle.feasible_sets(problem)
    if not sets:
        assert found.status is Status.INFEASIBLE
        assert found.value is None
        return
    best = max(value for value, _, _ in sets)
    assert found.status is Status.OPTIMAL
    assert found.value == pytest.approx(best, abs=2e-9)
    assert problem.is_feasible(problem.mask(found.members))
    assert problem.worth(problem.mask(found.members)) == pytest.approx(best, abs=2e-9)


def agrees_on_least(problem: AwakeProblem, floor: float) -> None:
    """Assert that no set worth the floor draws fewer watts than the solver's."""
    found = least_standing(problem, floor)
    watts = [w for value, w, _ in oracle.feasible_sets(problem) if value >= floor - 1e-9]
    if not watts:
        assert found.status is Status.INFEASIBLE
        return
    assert found.status is Status.OPTIMAL
    assert found.standing_w == pytest.approx(min(watts), rel=1e-5, abs=1e-6)
    assert found.least_w == found.standing_w
    assert problem.is_feasible(problem.mask(found.members))


@pytest.mark.parametrize("twins", [False, True])
def test_the_most_valuable_set_equals_brute_force_on_small_fleets(twins: bool) -> None:
    """On 150 random fleets of up to eight experts the solver finds what listing all sets finds."""
    rng = np.random.default_rng(5)
    for _ in range(150):
        problem = fleet(rng, int(rng.integers(1, 9)), twins=twins)
        agrees(problem, most_valuable(problem))


@pytest.mark.slow
@pytest.mark.parametrize("twins", [False, True])
def test_the_most_valuable_set_equals_brute_force_up_to_fourteen_experts(twins: bool) -> None:
    """On 2,000 random fleets, of which every fortieth has twelve to fourteen experts, the values are equal."""
    rng = np.random.default_rng(17)
    for case in range(1000):
        problem = fleet(rng, int(rng.integers(12, 15)) if case % 40 == 0 else int(rng.integers(1, 10)), twins=twins)
        agrees(problem, most_valuable(problem))


@pytest.mark.slow
@pytest.mark.parametrize("twins", [False, True])
def test_the_fewest_watts_equal_brute_force(twins: bool) -> None:
    """On 2,000 random fleets the solver finds the fewest watts at which a value can be had, or that it cannot."""
    rng = np.random.default_rng(23)
    for case in range(1000):
        problem = fleet(rng, int(rng.integers(12, 14)) if case % 50 == 0 else int(rng.integers(1, 9)), twins=twins)
        everyone = problem.worth(np.ones(len(problem.names), dtype=np.bool_))
        agrees_on_least(problem, everyone * float(rng.uniform(0.3, 1.02)))


def test_the_fewest_watts_equal_brute_force_on_small_fleets() -> None:
    """On 100 random fleets of up to seven experts no set worth the floor draws fewer watts."""
    rng = np.random.default_rng(29)
    for _ in range(100):
        problem = fleet(rng, int(rng.integers(1, 8)))
        everyone = problem.worth(np.ones(len(problem.names), dtype=np.bool_))
        agrees_on_least(problem, everyone * float(rng.uniform(0.3, 1.02)))


@pytest.mark.slow
@pytest.mark.parametrize("twins", [False, True])
def test_sixty_four_experts_have_a_gap_of_at_most_two_percent_in_a_second(twins: bool) -> None:
    """On 16 random fleets of 64 experts a search that ends after one second has proven a gap of 2 % or less.

    The limit on watts leaves room for at least a tenth more than the needs ask for.
    """
    rng = np.random.default_rng(31)
    gaps: list[float] = []
    while len(gaps) < 16:
        problem = replace(fleet(rng, 64, kinds=12, twins=twins), pinned=frozenset())
        needed = least_standing(replace(problem, most_w=None), 0.0, effort=Effort(node_limit=30))
        if needed.standing_w is None:
            continue
        if problem.most_w is not None:
            problem = replace(problem, most_w=max(problem.most_w, 1.1 * needed.standing_w))
        found = most_valuable(problem, effort=Effort(time_limit_s=1.0, gap_share=0.005), clock=process_time)
        assert found.gap_share is not None
        gaps.append(found.gap_share)
    assert max(gaps) <= 0.02


def test_more_watts_never_make_the_set_worth_less() -> None:
    """The value never falls as the limit on watts rises."""
    problem = replace(fleet(np.random.default_rng(3), 9), needs=(), pinned=frozenset())
    total_w = float(problem.expert_w.sum() + problem.host_w.sum())
    values = [most_valuable(replace(problem, most_w=total_w * share)).value for share in np.linspace(0, 1, 12)]
    known = [value for value in values if value is not None]
    assert known == sorted(known)
    assert len(known) == 12


def test_equal_worth_goes_to_fewer_watts() -> None:
    """Of two experts that are worth the same, the one that draws less is kept awake, and nobody besides."""
    problem = AwakeProblem(
        names=("thirsty", "frugal"),
        value=BestOf([[0.7, 0.7]]),
        expert_w=np.array([30.0, 5.0]),
        host=np.array([0, 1]),
        host_w=np.array([20.0, 6.0]),
    )
    found = least_standing(problem, 0.7)
    assert found.members == (1,)
    assert found.standing_w == 11.0


def test_a_host_is_paid_for_once() -> None:
    """Two experts on one host draw its watts once, so that they beat two experts on two hosts."""
    problem = AwakeProblem(
        names=("a", "b", "c"),
        value=BestOf([[0.9, 0.0, 0.0], [0.0, 0.8, 0.85]]),
        expert_w=np.array([5.0, 5.0, 5.0]),
        host=np.array([0, 0, 1]),
        host_w=np.array([50.0, 50.0]),
        most_w=100.0,
    )
    found = most_valuable(problem)
    assert found.members == (0, 1)
    assert found.standing_w == 60.0


def test_nobody_needs_to_be_awake_where_nothing_is_asked() -> None:
    """Without needs, pins and worth the best set is empty, which is an answer and not infeasible."""
    problem = AwakeProblem(
        names=("a",), value=BestOf([[0.0]]), expert_w=np.array([1.0]), host=np.array([0]), host_w=np.array([1.0])
    )
    found = least_standing(problem, 0.0)
    assert found.status is Status.OPTIMAL
    assert found.members == ()
    assert found.standing_w == 0.0


def test_pins_above_the_watts_are_infeasible() -> None:
    """A pinned expert that draws more than the limit leaves no feasible set."""
    problem = AwakeProblem(
        names=("a", "b"),
        value=BestOf([[0.5, 0.5]]),
        expert_w=np.array([10.0, 1.0]),
        host=np.array([0, 1]),
        host_w=np.array([10.0, 1.0]),
        most_w=15.0,
        pinned=frozenset({0}),
    )
    assert most_valuable(problem).status is Status.INFEASIBLE


@pytest.mark.parametrize(
    "change",
    [
        {"expert_w": np.array([1.0, np.nan])},
        {"host_w": np.array([-1.0])},
        {"host": np.array([0, 7])},
        {"names": ("same", "same")},
        {"most_w": float("nan")},
        {"pinned": frozenset({0}), "ruled_out": frozenset({0})},
        {"pinned": frozenset({9})},
        {"needs": (Need("x", np.array([1.0]), 1.0),)},
    ],
)
def test_inconsistent_problems_are_refused(change: dict[str, object]) -> None:
    """Shapes that differ, NaN, negative watts and unknown places are errors, not sets."""
    fields: dict[str, object] = {
        "names": ("a", "b"),
        "value": BestOf([[0.5, 0.5]]),
        "expert_w": np.array([1.0, 1.0]),
        "host": np.array([0, 0]),
        "host_w": np.array([1.0]),
    }
    with pytest.raises(ProblemError):
        AwakeProblem(**(fields | change))  # type: ignore[arg-type]


def test_a_search_without_time_says_what_it_has_proven() -> None:
    """A search that is cut short has a bound that is at least its value, and does not call itself optimal."""
    problem = replace(fleet(np.random.default_rng(31), 40, kinds=8), needs=(), pinned=frozenset(), rooms=())
    problem = replace(problem, most_w=0.2 * float(problem.expert_w.sum() + problem.host_w.sum()))
    found = most_valuable(problem, effort=Effort(node_limit=1))
    assert found.value is not None
    assert found.upper_bound is not None
    assert found.upper_bound >= found.value
    assert found.status is (Status.OPTIMAL if found.upper_bound <= found.value + 1e-9 else Status.BOUNDED)


def test_a_search_for_few_watts_that_was_cut_claims_no_more_than_it_has_proven() -> None:
    """Its `least_w` is below what any set draws, and below what its own draws where that was not proven."""
    cut = 0
    for seed in range(12):
        problem = fleet(np.random.default_rng(seed), 12)
        whole = least_standing(problem, 0.0)
        for nodes in range(1, 8):
            found = least_standing(problem, 0.0, effort=Effort(node_limit=nodes))
            assert found.standing_w is None or found.status is not Status.OPTIMAL or found.least_w == found.standing_w
            if found.status is Status.BOUNDED and found.standing_w is not None:
                assert found.least_w is not None
                assert whole.standing_w is not None
                assert found.least_w <= whole.standing_w
                assert found.least_w < found.standing_w
                cut += 1
    assert cut
