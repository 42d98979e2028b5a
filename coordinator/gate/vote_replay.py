"""What votes of sets of experts really reach: recorded answers are voted on again, by every set and rule. PURE.

A *plan* is a set of experts in the order in which they are asked, and the probability of being right that ends the
asking early. A replay says how often each plan is right, how often each of its members is asked, and whose answer wins,
by kind of prompt. Where there are few recorded answers, made-up ones (`votes.assumed_codes`) count beside them, and
kinds are drawn towards the mean over all kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from moe2.coordinator.gate.votes import NO_ANSWER, NOT_ASKED, RIGHT, CodeArray, FloatArray, VoteRecord, assumed_codes

MAX_VOTERS = 5
"""Largest set that is replayed: more members have not gained anything on recorded answers."""
WANTED = (0.4, 0.5, 0.6, 0.7, 0.85, np.inf)
"""Probabilities of being right that end a vote early; inf: only certainty about the outcome does."""
ASSUMED_ROWS = 420
ASSUMED_WEIGHT = 40.0
"""How many recorded prompts all made-up ones count as much as."""
KIND_WEIGHT = 300.0
"""How many prompts of a kind the mean over all kinds counts as much as."""
TRUST = 0.6
"""How much is believed of what a score for one prompt differs from its expert's mean on the kind.

Such differences are noisy, and the plan with the largest value is one where they err upwards. On MMLU-Pro, with a gate
whose scores have a residual, choices by 0.6 were within one standard error of the best policy at 32 of 36 targets, by
1.0 at 24 (`evaluate --answers`)."""
MAX_ORDERS = 64
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
    score: FloatArray
    """(K, T) how often the vote is right."""
    doubt: FloatArray
    """(K, T) the standard error of what the vote gains over its best member; 0 for one expert."""
    credit: FloatArray
    """(K, T, S) how often the winning answer is each member's, shared evenly among those that gave it."""
    asked: FloatArray
    """(K, T, S) how often each member is asked."""
    effort: FloatArray
    """(K, T, S) the same, each time counted with the length of the member's answer relative to its mean on the kind.

    A second member is asked on the harder prompts, where it also has more to say."""
    recorded: FloatArray
    """(T,) recorded prompts that all members of the plan have answered."""

    by_kind: FloatArray
    """(K, N) each expert's probability of answering well."""

    def values(self, scores: FloatArray, kinds: FloatArray) -> FloatArray:
        """(B, T) the probability that each plan answers each of B prompts well.

        It is what the plan reaches on the prompt's kind. As far as an answer is a member's, there is added what that
        member's score for this prompt differs from its mean on the kind, as far as that is to be trusted.

        scores: (B, N) that of each expert alone. kinds: (B, K) the probability of each kind.
        """
        found = kinds @ self.score
        above = TRUST * (scores - kinds @ self.by_kind)
        for place in range(self.members.shape[1]):
            members = self.members[:, place]
            found += np.where(members >= 0, above[:, members], 0.0) * (kinds @ self.credit[:, :, place])
        return np.asarray(np.clip(found, 0.0, 1.0))

    def doubts(self, kinds: FloatArray) -> FloatArray:
        """(B, T) the standard error of what each plan gains over its best member. kinds: (B, K), as in `values`.

        That of a mean over kinds is not taken for smaller than theirs: kinds of few prompts are drawn to one mean.
        """
        return np.asarray(kinds @ self.doubt)

    def expected(self, costs: FloatArray, kinds: FloatArray) -> FloatArray:
        """(B, T) the sum of the members' costs (B, N) to expect, each counted as often as the member is asked.

        Costs are those of answers of usual length; those to the prompts on which it is asked may be longer.
        """
        found = np.zeros((len(costs), len(self.members)))
        for place in range(self.members.shape[1]):
            members = self.members[:, place]
            found += np.where(members >= 0, costs[:, members], 0.0) * (kinds @ self.effort[:, :, place])
        return found


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
        lengths = np.ones(np.concatenate(codes).shape, dtype=np.float32)
        if record.lengths is not None:
            lengths[: len(record.lengths)] = record.lengths
        self._lengths: Float32Array = lengths[rows]
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
        nodes: dict[tuple[int, ...], VoteCount] = {(): VoteCount.none(self._codes)}
        for chosen in sets:
            for end in range(1, len(chosen) + 1):
                prefix, last = chosen[:end], chosen[end - 1]
                if prefix not in nodes:
                    former, other = nodes[prefix[:-1]], self.record.other
                    nodes[prefix] = former.with_vote(self._codes[:, last], self._weights[:, last], other)
        members, wanted, scores, doubt, recorded = [], [], [], [], []
        asked: list[Float32Array] = []
        effort: list[Float32Array] = []
        credit: list[Float32Array] = []
        for chosen in sets:
            rules = WANTED if len(chosen) > 1 else (np.inf,)
            known = (self._codes[:, list(chosen)] != NOT_ASKED).all(axis=1)
            right, reached, credited = self._run(chosen, rules, nodes)
            padding = (-1,) * (size - len(chosen))
            members += [chosen + padding] * len(rules)
            wanted += list(rules)
            recorded += [float((known & self._is_real).sum())] * len(rules)
            longer = [self._lengths[:, n] * asks for n, asks in zip(chosen, reached, strict=True)]
            gain, weights = right - self._best_alone(chosen)[None], self._row_weight * known
            figures = np.concatenate([gain, gain**2, *reached, *longer, *credited])
            means = self._by_kinds(figures, weights).reshape(-1, 3 * len(chosen) + 2, len(rules))
            scores.append(means[:, 0] + self._by_kind[:, list(chosen)].max(axis=1)[:, None])
            doubt.append(self._standard_errors(means[:, 1], weights))
            for shares, kept in zip(np.split(means[:, 2:], 3, axis=1), (asked, effort, credit), strict=True):
                kept.append(np.pad(shares.transpose(0, 2, 1), ((0, 0), (0, 0), (0, len(padding)))))
        return VotePlans(
            members=np.array(members, dtype=np.int64),
            wanted=np.array(wanted),
            score=np.concatenate(scores, axis=1).astype(np.float64),
            doubt=np.concatenate(doubt, axis=1).astype(np.float64),
            credit=np.concatenate(credit, axis=1).astype(np.float64),
            asked=np.concatenate(asked, axis=1).astype(np.float64),
            effort=np.concatenate(effort, axis=1).astype(np.float64),
            recorded=np.array(recorded),
            by_kind=self._by_kind,
        )

    def _is_useful(self, chosen: tuple[int, ...]) -> bool:
        """False for a set of several with a member whose vote never weighs anything."""
        return len(chosen) == 1 or bool((self._weights[:, list(chosen)] > 0).any(axis=0).all())

    def _run(
        self, chosen: tuple[int, ...], rules: Sequence[float], nodes: dict[tuple[int, ...], VoteCount]
    ) -> tuple[Float32Array, list[Float32Array], list[Float32Array]]:
        """(L, R) whether each of L rules is right; by member, (L, R) whether the rules ask it, and its credit."""
        limits = np.array(rules, dtype=np.float32)[:, None]
        running: BoolArray = np.ones((len(rules), len(self._codes)), dtype=np.bool_)
        right: BoolArray = np.zeros_like(running)
        reached: list[Float32Array] = []
        credited = [np.zeros(running.shape, dtype=np.float32) for _ in chosen]
        for end in range(1, len(chosen) + 1):
            reached.append(running.astype(np.float32))
            count = nodes[chosen[:end]]
            stops = running
            if end < len(chosen):
                rest = self._weights[:, list(chosen[end:])].sum(axis=1)
                stops = running & ((count.ahead > rest)[None] | (count.share[None] >= limits))
            right |= stops & count.is_right[None]
            gave = self._codes[:, list(chosen[:end])] == count.leader[:, None]
            shares = (gave / np.maximum(gave.sum(axis=1, keepdims=True), 1)).astype(np.float32)
            for place in range(end):
                credited[place] += stops * shares[:, place]
            running = running & ~stops
        return right.astype(np.float32), reached, credited

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

    def _standard_errors(self, squares: Float32Array, weights: Float32Array) -> Float32Array:
        """(K, L) the standard errors of means that `_by_kinds` made, by the means of squares (K, L).

        A kind's own prompts and the mean over all kinds, which counts as `KIND_WEIGHT` of them, each have their error.
        """
        totals = np.add.reduceat(weights, self._starts)[:, None] + KIND_WEIGHT
        of_mean = (KIND_WEIGHT / totals) ** 2 / weights.sum()
        return np.asarray(np.sqrt(squares * (1 / totals + of_mean)))


@dataclass(frozen=True, eq=False)
class VoteCount:
    """A vote over R prompts in which the same experts have answered. C is the number of codes of answers."""

    sums: Float32Array
    """(R, C) the weights for each answer, -inf for answers that nobody gave."""
    voters: int
    leader: IntArray
    """(R,) the code of the leading answer; -1 where there is none."""
    ahead: Float32Array
    """(R,) the leader's sum less that of the next answer, or less 0 where there is none; -inf without a leader."""
    share: Float32Array
    """(R,) the leader's probability of being right; 0 without a leader."""

    @classmethod
    def none(cls, codes: CodeArray) -> VoteCount:
        rows, answers = len(codes), int(codes.max(initial=0)) + 1
        nothing = np.zeros(rows, dtype=np.float32)
        nobody = np.full(rows, NO_ANSWER, dtype=np.int64)
        return cls(np.full((rows, answers), -np.inf, dtype=np.float32), 0, nobody, nothing, nothing)

    @property
    def is_right(self) -> BoolArray:
        """(R,) whether the leading answer is right."""
        return np.asarray(self.leader == RIGHT)

    def with_vote(self, codes: CodeArray, weights: Float32Array, other: float) -> VoteCount:
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
        return VoteCount(
            sums=sums,
            voters=self.voters + 1,
            leader=np.where(has_answer, leader, NO_ANSWER),
            ahead=np.where(has_answer, top - np.maximum(others.max(axis=1), 0.0), -np.inf),
            share=np.where(has_answer, share, 0.0),
        )
