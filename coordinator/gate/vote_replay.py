"""What votes of sets of experts really reach: recorded answers are voted on again, by every set and rule. PURE.

A *plan* is a set of experts in the order in which they are asked, and the probability of being right that ends the
asking early. A replay gives each plan's gain over its best member alone, and how often each of its members is asked, by
kind of prompt. Where there are few recorded answers, made-up ones (`votes.assumed_codes`) count beside them, and kinds
are drawn towards the mean over all kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import numpy.typing as npt

from moe2.coordinator.gate.votes import NOT_ASKED, RIGHT, CodeArray, FloatArray, VoteRecord, assumed_codes

MAX_VOTERS = 5
"""Largest set that is replayed: more members have not gained anything on recorded answers."""
WANTED = (0.4, 0.5, 0.6, 0.7, 0.85, np.inf)
"""Probabilities of being right that end a vote early; inf: only certainty about the outcome does."""
ASSUMED_ROWS = 420
ASSUMED_WEIGHT = 40.0
"""How many recorded prompts all made-up ones count as much as."""
KIND_WEIGHT = 150.0
"""How many prompts of a kind the mean over all kinds counts as much as."""
MAX_ORDERS = 8
"""Orders of asking of which the plans are remembered."""
EARLIER = 1e-5
"""Among equal sums the answer that was given first leads: each later one begins with so much less."""

BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class VotePlans:
    """T plans with what a replay says of them, over K kinds of prompts and N experts."""

    members: IntArray
    """(T, S) places of the members in the order in which they are asked; -1 after the last one."""
    wanted: FloatArray
    """(T,) probability of being right that ends the asking; inf where only certainty about the outcome does."""
    gain: FloatArray
    """(K, T) what the vote adds to the score of the plan's best member on the kind."""
    asked: FloatArray
    """(K, T, S) how often each member is asked."""
    recorded: FloatArray
    """(T,) recorded prompts that all members of the plan have answered."""

    @cached_property
    def is_member(self) -> BoolArray:
        """(T, N) the members of each plan."""
        experts = int(self.members.max(initial=0)) + 1
        found = np.zeros((len(self.members), experts + 1), dtype=np.bool_)
        # Places of -1 mark a last column, which is dropped.
        found[np.arange(len(self.members))[:, None], self.members] = True
        return np.asarray(found[:, :experts])

    def values(self, scores: FloatArray, kinds: FloatArray) -> FloatArray:
        """(T,) the probability that each plan answers a prompt well.

        scores: (N,) that of each expert alone. kinds: (K,) the probability of each kind.
        """
        best = np.where(self.members >= 0, scores[self.members], 0.0).max(axis=1)
        return np.asarray(np.clip(best + kinds @ self.gain, 0.0, 1.0))

    def expected(self, costs: FloatArray, kinds: FloatArray) -> FloatArray:
        """(T,) the sum of the members' costs (N,) to expect where each counts as often as it is asked."""
        shares = np.tensordot(kinds, self.asked, axes=1)
        return np.asarray(np.where(self.members >= 0, costs[self.members] * shares, 0.0).sum(axis=1))


class VoteReplay:
    """Recorded answers of N experts, ready to be voted on again.

    record: of these experts. by_kind: (K, N) their probabilities of answering well, by kind of prompt.
    """

    def __init__(self, record: VoteRecord, by_kind: FloatArray) -> None:
        self.record = record
        self._by_kind = by_kind
        kinds = by_kind.shape[0]
        # Made-up prompts are spread evenly over the kinds, each with its kind's probabilities.
        each = -(-ASSUMED_ROWS // kinds)
        codes = [record.codes, *(assumed_codes(by_kind[kind], each) for kind in range(kinds))]
        kind_of = np.concatenate([record.kinds, np.repeat(np.arange(kinds), each)]).astype(np.int64)
        is_real = np.arange(kind_of.size) < record.kinds.size
        usable = np.flatnonzero(kind_of < kinds)
        rows = usable[np.argsort(kind_of[usable], kind="stable")]
        self._codes: CodeArray = np.concatenate(codes)[rows]
        self._kinds: IntArray = kind_of[rows]
        self._starts: IntArray = np.searchsorted(self._kinds, np.arange(kinds))
        """(K,) the first row of each kind; every kind has made-up rows."""
        self._is_real: BoolArray = is_real[rows]
        self._row_weight = np.where(self._is_real, 1.0, ASSUMED_WEIGHT / (each * kinds)).astype(np.float32)
        self._weights = record.weights(by_kind).astype(np.float32)[self._kinds]
        self._plans: dict[tuple[tuple[int, ...], int], VotePlans] = {}

    @property
    def experts(self) -> int:
        """N, the number of experts."""
        return int(self._by_kind.shape[1])

    @property
    def mean_scores(self) -> FloatArray:
        """(N,) each expert's probability of answering well, averaged over the kinds of prompts."""
        return np.asarray(self._by_kind.mean(axis=0))

    def plans(self, order: Sequence[int], size: int) -> VotePlans:
        """The plans of all sets of up to `size` experts, which are asked in the given order; those left out never are.

        Equal questions are answered from memory.
        """
        key = tuple(order), min(size, MAX_VOTERS)
        if key not in self._plans:
            if len(self._plans) >= MAX_ORDERS:
                self._plans.clear()
            self._plans[key] = self._replayed(*key)
        return self._plans[key]

    def _replayed(self, order: tuple[int, ...], size: int) -> VotePlans:
        sets = [chosen for k in range(1, size + 1) for chosen in combinations(order, k) if self._is_useful(chosen)]
        nodes: dict[tuple[int, ...], _Count] = {(): _Count.none(self._codes)}
        for chosen in sets:
            for end in range(1, len(chosen) + 1):
                prefix, last = chosen[:end], chosen[end - 1]
                if prefix not in nodes:
                    former, other = nodes[prefix[:-1]], self.record.other
                    nodes[prefix] = former.with_vote(self._codes[:, last], self._weights[:, last], other)
        members, wanted, gains, asked, recorded = [], [], [], [], []
        for chosen in sets:
            rules = WANTED if len(chosen) > 1 else (np.inf,)
            known = (self._codes[:, list(chosen)] != NOT_ASKED).all(axis=1)
            right, reached = self._run(chosen, rules, nodes)
            padding = (-1,) * (size - len(chosen))
            members += [chosen + padding] * len(rules)
            wanted += list(rules)
            recorded += [float((known & self._is_real).sum())] * len(rules)
            figures = np.concatenate([right - self._best_alone(chosen)[None], *reached])
            means = self._by_kinds(figures, self._row_weight * known).reshape(-1, len(chosen) + 1, len(rules))
            gains.append(means[:, 0])
            asked.append(np.pad(means[:, 1:].transpose(0, 2, 1), ((0, 0), (0, 0), (0, len(padding)))))
        return VotePlans(
            members=np.array(members, dtype=np.int64),
            wanted=np.array(wanted),
            gain=np.concatenate(gains, axis=1).astype(np.float64),
            asked=np.concatenate(asked, axis=1).astype(np.float64),
            recorded=np.array(recorded),
        )

    def _is_useful(self, chosen: tuple[int, ...]) -> bool:
        """False for a set of several with a member whose vote never weighs anything."""
        return len(chosen) == 1 or bool((self._weights[:, list(chosen)] > 0).any(axis=0).all())

    def _run(
        self, chosen: tuple[int, ...], rules: Sequence[float], nodes: dict[tuple[int, ...], _Count]
    ) -> tuple[Float32Array, list[Float32Array]]:
        """(L, R) whether each of L rules ends with the right answer; and by member, (L, R), whether it is asked."""
        limits = np.array(rules, dtype=np.float32)[:, None]
        running: BoolArray = np.ones((len(rules), len(self._codes)), dtype=np.bool_)
        right: BoolArray = np.zeros_like(running)
        reached: list[Float32Array] = []
        for end in range(1, len(chosen) + 1):
            reached.append(running.astype(np.float32))
            count = nodes[chosen[:end]]
            stops = running
            if end < len(chosen):
                rest = self._weights[:, list(chosen[end:])].sum(axis=1)
                stops = running & ((count.ahead > rest)[None] | (count.share[None] >= limits))
            right |= stops & count.is_right[None]
            running = running & ~stops
        return right.astype(np.float32), reached

    def _best_alone(self, chosen: tuple[int, ...]) -> Float32Array:
        """(R,) whether that member of a set is right alone that is the best one on the prompt's kind."""
        places = np.array(chosen)[self._by_kind[:, list(chosen)].argmax(axis=1)]
        found = self._codes[np.arange(len(self._codes)), places[self._kinds]]
        return np.asarray(found == RIGHT, dtype=np.float32)

    def _by_kinds(self, figures: Float32Array, weights: Float32Array) -> Float32Array:
        """(K, L) weighted means of figures (L, R) by kind, drawn to the mean over all kinds."""
        sums = np.add.reduceat(figures * weights[None], self._starts, axis=1)
        totals = np.add.reduceat(weights, self._starts)
        overall = sums.sum(axis=1) / totals.sum()
        return np.asarray(((sums + KIND_WEIGHT * overall[:, None]) / (totals + KIND_WEIGHT)).T)


@dataclass(frozen=True, eq=False)
class _Count:
    """A vote over R prompts in which the same experts have answered. C is the number of codes of answers."""

    sums: Float32Array
    """(R, C) the weights for each answer, -inf for answers that nobody gave."""
    voters: int
    is_right: BoolArray
    """(R,) whether the leading answer is right."""
    ahead: Float32Array
    """(R,) the leader's sum less that of the next answer, or less 0 where there is none; -inf without a leader."""
    share: Float32Array
    """(R,) the leader's probability of being right; 0 without a leader."""

    @classmethod
    def none(cls, codes: CodeArray) -> _Count:
        rows, answers = len(codes), int(codes.max(initial=0)) + 1
        nothing = np.zeros(rows, dtype=np.float32)
        return cls(np.full((rows, answers), -np.inf, dtype=np.float32), 0, nothing.astype(np.bool_), nothing, nothing)

    def with_vote(self, codes: CodeArray, weights: Float32Array, other: float) -> _Count:
        """The count with one more expert's answers (R,) of the given weights (R,)."""
        sums, every = self.sums.copy(), np.arange(len(codes))
        gave = np.flatnonzero(codes >= 0)
        before = sums[gave, codes[gave]]
        sums[gave, codes[gave]] = np.where(np.isinf(before), -EARLIER * self.voters, before) + weights[gave]
        leader = sums.argmax(axis=1)
        most = sums[every, leader]
        has_answer = np.isfinite(most)
        top = np.where(has_answer, most, 0.0)
        share = np.exp(top) / (np.exp(sums).sum(axis=1) + np.exp(np.float32(other)))
        others = sums.copy()
        others[every, leader] = -np.inf
        return _Count(
            sums=sums,
            voters=self.voters + 1,
            is_right=has_answer & (leader == RIGHT),
            ahead=np.where(has_answer, top - np.maximum(others.max(axis=1), 0.0), -np.inf),
            share=np.where(has_answer, share, 0.0),
        )
