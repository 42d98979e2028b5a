"""Tests of what is learned about votes: weights, replayed sets, and the record in a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.coordinator.answers.vote import Settled, Vote
from moe2.coordinator.gate.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from moe2.coordinator.gate.votes import MAX_VOTERS, NO_ANSWER, NOT_ASKED, RIGHT, VoteRecord, VoteReplay, assumed_codes
from moe2.coordinator.planning.values import Listed
from moe2.coordinator.training.votes import fitted_weights
from tests.fakes.gates import write_gate

ROWS = 60


def record(codes: list[list[int]], base: list[float]) -> VoteRecord:
    """A record of prompts of one kind."""
    return VoteRecord(
        base=np.array(base),
        slope=0.3,
        other=1.0,
        codes=np.array(codes, dtype=np.int16).reshape(-1, len(base)),
        kinds=np.zeros(len(codes), dtype=np.int16),
    )


CODES = st.lists(st.lists(st.integers(-1, 3), min_size=3, max_size=3), min_size=1, max_size=8)


@pytest.mark.slow
@given(CODES, st.lists(st.floats(0.1, 3), min_size=3, max_size=3), st.permutations([0, 1, 2]))
@settings(max_examples=60, deadline=None)
def test_a_replay_is_the_vote_itself(codes: list[list[int]], base: list[float], order: list[int]) -> None:
    """Every plan of the replay ends as `Vote` does: the same answer, after the same members."""
    scores = np.full((1, 3), 0.5)
    known = record(codes, base)
    plans = VoteReplay(known, scores)._replayed(tuple(order), 3)
    replay = VoteReplay(known, scores)
    weights = {str(n): float(np.float32(weight)) for n, weight in enumerate(known.weights(scores[0]))}
    # Rows with the same answers end alike: each kind of row is voted on once.
    rows, row_of = np.unique(replay._codes, axis=0, return_inverse=True)
    share = np.bincount(row_of.ravel(), weights=replay._row_weight) / replay._row_weight.sum()
    for plan in range(len(plans.members)):
        members = [int(n) for n in plans.members[plan] if n >= 0]
        wanted = None if np.isinf(plans.wanted[plan]) else float(np.float32(plans.wanted[plan]))
        right, asked = [], []
        for row in rows.tolist():
            vote = Vote(weights, known.other)
            for place, member in enumerate(members):
                vote.add(str(member), None if row[member] == NO_ANSWER else str(row[member]))
                ended = vote.settled([str(n) for n in members[place + 1 :]], wanted)
                if ended in (Settled.CANNOT_LOSE, Settled.ALL_ASKED, Settled.PROBABLE):
                    break
            right.append(vote.leader == "0")
            asked.append(place + 1)
        best = rows[:, members[0]] == RIGHT
        assert plans.score[0, plan] - 0.5 == pytest.approx(float(share @ right) - float(share @ best), abs=2e-2)
        assert plans.asked[0, plan].sum() == pytest.approx(float(share @ asked), abs=2e-2)


def test_weights_are_split_among_members_that_err_together() -> None:
    """A twin adds nothing: both together weigh about as much as one alone, and a coin weighs next to nothing."""
    rng = np.random.default_rng(1)
    rows = 3000
    right = rng.random(rows) < 0.6
    wrong = rng.integers(1, 4, rows)
    twin = np.where(right, RIGHT, wrong)
    free = np.where(rng.random(rows) < 0.6, RIGHT, rng.integers(1, 4, rows))
    coin = rng.integers(0, 4, rows)
    log_odds = np.zeros((rows, 4))
    base, _, _ = fitted_weights(np.stack([twin, twin, free, coin], axis=1).astype(np.int16), log_odds)
    assert base[0] == pytest.approx(base[1], abs=1e-6)
    assert base[0] + base[1] == pytest.approx(base[2], rel=0.15)
    assert abs(base[3]) < 0.2


def test_learned_shares_are_calibrated() -> None:
    """Where a vote says 70 %, it is right about as often."""
    rng = np.random.default_rng(2)
    codes = assumed_codes(np.array([0.7, 0.55, 0.5]), 4000)[rng.permutation(4000)]
    base, slope, other = fitted_weights(codes[:2000], np.zeros((2000, 3)))
    shares, hits = [], []
    for row in codes[2000:].tolist():
        vote = Vote({str(n): max(float(base[n]), 0.0) for n in range(3)}, other)
        for n, code in enumerate(row):
            vote.add(str(n), str(code))
        shares.append(vote.probability)
        hits.append(vote.leader == "0")
    order = np.argsort(shares)
    for part in np.array_split(order, 4):
        assert np.array(shares)[part].mean() == pytest.approx(np.array(hits)[part].mean(), abs=0.06)
    assert slope > 0


def test_little_data_stays_with_the_prior() -> None:
    """Three prompts hardly move the weights."""
    base, slope, other = fitted_weights(np.array([[0, 1], [1, 0], [0, 0]], dtype=np.int16), np.zeros((3, 2)))
    assert base == pytest.approx(VoteRecord.empty(2).base, abs=0.1)
    assert (slope, other) == pytest.approx((VoteRecord.empty(2).slope, VoteRecord.empty(2).other), abs=0.2)


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.data())
def test_a_larger_panel_is_never_worth_less(worth: list[float], data: st.DataObject) -> None:
    """The planner's value of voters is monotone by construction: each set has the value of its best part."""
    value = Listed(5, (0, 2, 4), worth)
    members = data.draw(st.lists(st.integers(0, 4), unique=True))
    for part in range(len(members)):
        assert value.of(members[:part]) <= value.of(members)
    assert value.of([0, 2, 4]) == max(worth)


def test_made_up_answers_are_right_as_often_as_they_should_be() -> None:
    """They say the same at every call, and right ones come together more often than by chance."""
    p = np.array([0.2, 0.5, 0.9])
    codes = assumed_codes(p, 1000)
    assert (codes == RIGHT).mean(axis=0) == pytest.approx(p, abs=0.01)
    assert np.array_equal(codes, assumed_codes(p, 1000))
    both = ((codes[:, 0] == RIGHT) & (codes[:, 1] == RIGHT)).mean()
    assert both > 0.13


def test_an_expert_without_answers_has_the_prior() -> None:
    """A fleet's record keeps the columns that the gate knows, and knows nothing of the others."""
    known = record([[0, 1], [1, 0]], [2.0, 0.5]).of_fleet((1, None))
    assert known.base.tolist() == [0.5, VoteRecord.empty(1).base[0]]
    assert known.codes.tolist() == [[1, NOT_ASKED], [0, NOT_ASKED]]


def test_sets_have_bounded_sizes() -> None:
    """However many experts there are, no plan has more than `MAX_VOTERS` members."""
    plans = VoteReplay(VoteRecord.empty(7), np.full((1, 7), 0.5)).plans(range(7), 64)
    assert int((plans.members >= 0).sum(axis=1).max()) == MAX_VOTERS


def test_no_data_and_no_chance_break_nothing() -> None:
    """Experts that are always or never right have plans, too."""
    plans = VoteReplay(VoteRecord.empty(2), np.array([[0.0, 1.0]])).plans((0, 1), 2)
    assert np.isfinite(plans.score).all()
    assert plans.values(np.array([[0.0, 1.0]]), np.ones((1, 1))).max() == pytest.approx(1.0)


def test_joules_follow_the_lengths_of_the_prompts_on_which_a_member_is_asked() -> None:
    """The third one is asked where two disagree, and has twice as much to say there: it costs twice its share."""
    codes = [[0, 0, 0]] * 500 + [[0, 2, 0]] * 500
    lengths = np.array([[1.0, 1.0, 2 / 3]] * 500 + [[1.0, 1.0, 4 / 3]] * 500)
    by_kind, costs, kinds = np.full((1, 3), 0.8), np.array([[10.0, 10.0, 30.0]]), np.ones((1, 1))
    known = record(codes, [1.0, 1.0, 1.0])
    plain = VoteReplay(known, by_kind).plans((0, 1, 2), 3)
    longer = VoteReplay(replace(known, lengths=lengths), by_kind).plans((0, 1, 2), 3)
    of_three = int(np.flatnonzero((plain.members[:, 2] >= 0) & np.isinf(plain.wanted))[0])
    assert (plain.asked == longer.asked).all()
    assert (plain.score == longer.score).all()
    share = float(plain.asked[0, of_three, 2])
    assert share == pytest.approx(0.5, abs=0.02)
    assert plain.expected(costs, kinds)[0, of_three] == pytest.approx(20 + 30 * share)
    assert longer.expected(costs, kinds)[0, of_three] == pytest.approx(20 + 30 * share * 4 / 3, rel=0.02)


def test_what_a_vote_gains_has_its_error() -> None:
    """It falls with the root of the recorded prompts, and counts only those on which the vote ends otherwise."""

    def doubt(rows: int, otherwise: int) -> float:
        # Of `rows` prompts the first one, the best, is right on all but these, on which the two others agree rightly.
        codes = [[0, 0, 0]] * (rows - otherwise) + [[1, 0, 0]] * otherwise
        plans = VoteReplay(record(codes, [1.0, 1.0, 1.0]), np.array([[0.8, 0.7, 0.7]])).plans((0, 1, 2), 3)
        of_one = int(np.flatnonzero((plans.members[:, 1:] < 0).all(axis=1))[0])
        of_three = int(np.flatnonzero((plans.members[:, 2] >= 0) & np.isinf(plans.wanted))[0])
        found = plans.doubts(np.ones((1, 1)))[0]
        assert found[of_one] == 0.0
        return float(found[of_three])

    assert doubt(4000, 400) == pytest.approx((0.1 / 4000) ** 0.5, rel=0.05)
    assert doubt(4000, 400) == pytest.approx(2 * doubt(16000, 1600), rel=0.05)
    assert doubt(4000, 400) > 2 * doubt(4000, 40)


def test_a_kind_of_few_prompts_is_no_surer_than_the_mean_it_is_drawn_to() -> None:
    """The error of a kind's mean is between that of its own prompts and that of all."""
    codes = np.array([[0, 0, 0], [1, 0, 0]] * 520, dtype=np.int16)
    kinds = np.array([0] * 1000 + [1] * 40, dtype=np.int16)
    known = replace(record([[0, 0, 0]], [1.0, 1.0, 1.0]), codes=codes, kinds=kinds)
    plans = VoteReplay(known, np.full((2, 3), 0.7)).plans((0, 1, 2), 3)
    of_three = int(np.flatnonzero((plans.members[:, 2] >= 0) & np.isinf(plans.wanted))[0])
    many, few = plans.doubt[:, of_three]
    every = float(plans.doubts(np.array([[0.5, 0.5]]))[0, of_three])
    assert many < every < few < (0.5 / 40) ** 0.5


def test_lengths_go_with_their_experts_and_survive_the_file(tmp_path: Path) -> None:
    """In another order of experts each has its own, and one without outcomes has usual ones."""
    known = replace(record([[0, 1], [1, 0]], [1.0, 1.0]), lengths=np.array([[0.5, 1.25], [1.5, 0.75]]))
    found = known.of_fleet((1, None, 0)).lengths
    assert found is not None
    assert found.tolist() == [[1.25, 1.0, 0.5], [0.75, 1.0, 1.5]]
    path = write_gate(tmp_path / "gate.safetensors", ["one", "two"], ["any"])
    gate, manifest = load_checkpoint(path)
    save_checkpoint(path, gate.parameters, manifest, known)
    kept = load_checkpoint(path)[0].votes
    assert kept is not None
    assert kept.lengths is not None
    assert kept.lengths.tolist() == [[0.5, 1.25], [1.5, 0.75]]


@pytest.mark.parametrize("lengths", [[[1.0]], [[-1.0, 1.0]], [[float("nan"), 1.0]], [[float("inf"), 1.0]]])
def test_impossible_lengths_are_refused(lengths: list[list[float]]) -> None:
    """A length is a number for each recorded answer, and not below 0."""
    with pytest.raises(ValueError, match="lengths"):
        replace(record([[0, 1]], [1.0, 1.0]), lengths=np.array(lengths))


def test_a_checkpoint_keeps_the_record(tmp_path: Path) -> None:
    """What is known of votes is read back as it was written; a checkpoint without it is read as before."""
    path = write_gate(tmp_path / "gate.safetensors", ["one", "two"], ["any"])
    gate, manifest = load_checkpoint(path)
    assert gate.votes is None
    known = record([[0, 1], [-1, -2]], [1.5, 0.25])
    save_checkpoint(path, gate.parameters, manifest, known)
    found = load_checkpoint(path)[0].votes
    assert found is not None
    assert found.codes.tolist() == known.codes.tolist()
    assert (found.base.tolist(), found.other) == ([1.5, 0.25], 1.0)
    save_checkpoint(path, gate.parameters, manifest, record([[0, 1, 2]], [1.0, 1.0, 1.0]))
    with pytest.raises(CheckpointError, match="votes of 3 experts"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("codes", "base"), [([[5, 0]], [1.0, 1.0]), ([[0, -3]], [1.0, 1.0]), ([[0, 1]], [1.0, float("nan")])]
)
def test_a_broken_record_is_refused(codes: list[list[int]], base: list[float]) -> None:
    """Codes that cannot be, and weights that are not finite, are refused."""
    with pytest.raises(ValueError, match=r"range|finite"):
        record(codes, base)
