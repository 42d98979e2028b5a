"""What is known of how experts' answers agree: weights of votes, and recorded answers to judge sets by. PURE.

A vote adds up weights. Expert n's weight on one prompt is `base_n + slope * log-odds(p_n)`, with p_n its probability of
answering well; never below 0. The share of a vote's answer a, among the answers that were given and something else, is

    P(a | answers) = exp(sum of the weights for a) / (sum over given answers of exp(their sums) + exp(other))

This is a softmax regression on who said what. Base, slope and other are learned from outcomes with answers (the log
loss is convex in them), which makes the share a calibrated probability, and takes weight from experts that err
together: two that always agree get half of it each. Experts without such outcomes have the constants below.

What votes really reach is replayed: recorded answers are voted on again, by every set and rule (`VoteReplay`). A *plan*
is a set of experts in the order in which they are asked, and the probability of being right that ends the asking early.
A replay says how often each plan is right, how often each of its members is asked, and whose answer wins, by kind of
prompt. Where there are few recorded answers, made-up ones (`assumed_codes`) count beside them, and kinds are drawn
towards the mean over all kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from moe2.coordinator.gate.calibration import log_odds_of

FloatArray = npt.NDArray[np.float64]
CodeArray = npt.NDArray[np.int16]

RIGHT, NO_ANSWER, NOT_ASKED = 0, -1, -2
"""Codes of recorded answers; wrong answers to a prompt are numbered from 1, equal ones alike."""
PRIOR_BASE, PRIOR_SLOPE, PRIOR_OTHER = 0.8, 0.3, 1.0
"""Weights of experts without outcomes: rounded from what four models of 4 to 8 billion parameters learn on MMLU-Pro."""
ERROR_CORRELATION = 0.55
"""Tetrachoric correlation of two models' being right; ten of up to 8 billion parameters on MMLU-Pro have 0.56."""
SAME_ERROR = 0.6
"""How often two models that are both wrong say the same.

Of the same ten models it is 0.34 over all questions, and more on hard ones. With 0.6 for all, made-up votes of four
members gain what recorded ones do (4.3 points; 4.4 recorded)."""
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


@dataclass(frozen=True)
class VoteRecord:
    """What a gate's outcomes say of its N experts' votes. Raises ValueError where the arrays do not fit together."""

    base: FloatArray
    """(N,)"""
    slope: float
    other: float
    """What counts for an answer that nobody gave."""
    codes: CodeArray
    """(R, N) what each expert answered on R recorded prompts: RIGHT, NO_ANSWER, NOT_ASKED, or which wrong answer."""
    kinds: CodeArray
    """(R,) the place of each prompt's kind among the gate's kinds."""
    lengths: FloatArray | None = None
    """(R, N) length of each answer relative to the expert's mean on the kind, 1 where unknown; None where all are."""

    def __post_init__(self) -> None:
        rows, experts = self.codes.shape if self.codes.ndim == 2 else (-1, -1)
        if self.base.shape != (experts,) or self.kinds.shape != (rows,):
            raise ValueError(f"votes of shapes {self.base.shape}, {self.codes.shape} and {self.kinds.shape}")
        if not (np.isfinite(self.base).all() and np.isfinite(self.slope) and np.isfinite(self.other)):
            raise ValueError("weights of votes that are not finite")
        lengths = np.ones((rows, experts)) if self.lengths is None else self.lengths
        if lengths.shape != self.codes.shape or not np.isfinite(lengths).all() or (lengths < 0).any():
            raise ValueError("lengths of recorded answers that are no lengths, or not one for each answer")
        if self.codes.size and (self.codes.min() < NOT_ASKED or self.codes.max() > experts):
            raise ValueError("recorded answers that are out of range")

    @classmethod
    def empty(cls, experts: int) -> VoteRecord:
        """The record of experts of which no answers are known."""
        return cls(
            base=np.full(experts, PRIOR_BASE),
            slope=PRIOR_SLOPE,
            other=PRIOR_OTHER,
            codes=np.empty((0, experts), dtype=np.int16),
            kinds=np.empty(0, dtype=np.int16),
        )

    def weights(self, probabilities: FloatArray) -> FloatArray:
        """(..., N) the weights of the experts' votes, from their probabilities (..., N) of answering well."""
        return np.maximum(self.base + self.slope * log_odds_of(probabilities, 1e-3), 0.0)

    def of_fleet(self, columns: tuple[int | None, ...]) -> VoteRecord:
        """The record of a fleet's experts. columns: the place of each among the gate's; None without outcomes."""
        rows = self.codes.shape[0]
        base = [PRIOR_BASE if column is None else float(self.base[column]) for column in columns]
        unknown: CodeArray = np.full(rows, NOT_ASKED, dtype=np.int16)
        codes = [unknown if column is None else self.codes[:, column] for column in columns]
        lengths = None
        if self.lengths is not None:
            usual = np.ones(rows)
            own = [usual if column is None else self.lengths[:, column] for column in columns]
            lengths = np.stack(own, axis=1)
        return VoteRecord(
            base=np.array(base),
            slope=self.slope,
            other=self.other,
            codes=_renumbered(np.stack(codes, axis=1)),
            kinds=self.kinds,
            lengths=lengths,
        )


def _renumbered(codes: CodeArray) -> CodeArray:
    """(R, N) the same answers, with the wrong ones numbered by the first expert that gave them."""
    found = codes.copy()
    for n in range(codes.shape[1] - 1, -1, -1):
        same = (codes == codes[:, n : n + 1]) & (codes > RIGHT)
        found[same] = n + 1
    return found


def assumed_codes(probabilities: FloatArray, rows: int) -> CodeArray:
    """(rows, N) made-up answers of experts that are right with the given probabilities (N,), the same at every call.

    Being right correlates by `ERROR_CORRELATION`, as some prompts are harder for all, and wrong experts say the same
    wrong answer as often as `SAME_ERROR` says.
    """
    experts = probabilities.size
    hard = _normal_points(rows, 0)
    codes = np.empty((rows, experts), dtype=np.int16)
    agreeing = np.sqrt(SAME_ERROR)
    for n in range(experts):
        ability = np.sqrt(ERROR_CORRELATION) * hard + np.sqrt(1 - ERROR_CORRELATION) * _normal_points(rows, 2 * n + 1)
        right = ability < _threshold(ability, float(probabilities[n]))
        # The common wrong answer is number 1; whoever errs alone has a number of its own.
        codes[:, n] = np.where(right, RIGHT, np.where(_points(rows, 2 * n + 2) < agreeing, 1, min(n + 2, experts)))
    return codes


def _threshold(values: FloatArray, share: float) -> float:
    """The value below which the given share of the values lies."""
    return float(np.quantile(values, min(max(share, 0.0), 1.0)))


def _points(rows: int, dimension: int) -> FloatArray:
    """(rows,) evenly spread points of (0, 1), in another order for every dimension: a Weyl sequence."""
    step = np.sqrt(_PRIMES[dimension % len(_PRIMES)]) * (1 + dimension // len(_PRIMES))
    return np.asarray((0.5 + np.arange(rows) * step) % 1.0)


def _normal_points(rows: int, dimension: int) -> FloatArray:
    """(rows,) evenly spread points of a logistic distribution with variance 1, which is close to a normal one."""
    return np.asarray(log_odds_of(np.clip(_points(rows, dimension), 1e-6, 1 - 1e-6), 1e-6) * np.sqrt(3) / np.pi)


_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103)


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
