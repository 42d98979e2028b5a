"""The evaluation of votes over final answers, against one expert alone, on rows that nothing was learnt from.

For each pool of experts and each target of mean joules per question, every policy is given the best it can be within
the target, by what the other rows say: a fixed expert, the best expert per known label, one expert by the gate's scores
at a price of joules, a fixed set of voters who are all asked or asked in turn, and moe2's own choice among all of these
at a price. Then each answers the held-out rows, as recorded. Prices are those at which the mean joules meet the target,
where the fleet's own pacing settles while it answers; what an answer is worth never enters them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe2.common.errors import Moe2Error
from moe2.coordinator.choosing.consensus import MAX_MODELS, best_plan
from moe2.coordinator.gate.fleet_gate import FleetGate
from moe2.coordinator.gate.prior import facts_from_name
from moe2.coordinator.gate.vote_replay import MAX_VOTERS, VoteCount, VoteReplay
from moe2.coordinator.gate.votes import RIGHT, CodeArray
from moe2.coordinator.training.config import TrainingConfig
from moe2.coordinator.training.evaluate.profiles import fleet_costs
from moe2.coordinator.training.evaluate.study import Parts, split_for_report
from moe2.coordinator.training.evaluate.vote_report import BehindBest, EarlyStop, PolicyFigures, VoteReport
from moe2.coordinator.training.outcomes import Outcomes
from moe2.coordinator.training.preparation import kinds_of
from moe2.coordinator.training.train import Progress, TrainedGate, train_gate
from moe2.coordinator.training.votes import answer_codes

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Answered = tuple[FloatArray, FloatArray, FloatArray]
"""(rows,) scores, joules and experts asked of each row."""

TARGETS_J = (150.0, 250.0, 400.0, 600.0, 800.0, 1000.0, 1500.0, 2500.0, None)
"""Mean joules per question that a policy may take; None: no limit."""
HOST = "agx-orin-maxn"
"""The host of every expert where none is named."""
SMALL_PARAMETERS = 9e9
"""Up to so many parameters an expert counts as small."""
SINGLE, LABEL, ROUTE = "best_single", "label_known", "priced_route"
ALL, EARLY = "consensus_all", "consensus_early_stop"
AUTO = "auto"
AUTO_LABEL = "auto_label_known"
"""`auto` where the client names the category: then it knows as much as `LABEL` does."""
ABOUT_EQUAL = 0.003
"""Values of fixed votes that differ by less are not told apart by a few thousand recorded prompts."""
_BISECTIONS = 20
_DEAREST = 1.0
"""The highest price of a joule that is tried: one joule for the whole score."""


class VoteEvaluationError(Moe2Error):
    """The file's answers cannot be evaluated."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of one pool: what was answered, and what the gate and the profiles say of it beforehand."""

    codes: CodeArray
    """(rows, N)"""
    right: FloatArray
    """(rows, N) recorded scores."""
    actual_j: FloatArray
    """(rows, N) joules by the recorded lengths."""
    predicted_j: FloatArray
    """(rows, N) joules by the lengths that the gate expects of answers to such prompts."""
    scores: FloatArray
    """(rows, N) the gate's probabilities."""
    kind_shares: FloatArray
    """(rows, K)"""
    label: IntArray
    """(rows,) the place of the known label among the gate's kinds, -1 for one that it does not know."""

    def take(self, rows: IntArray) -> _Rows:
        return _Rows(**{name: value[rows] for name, value in vars(self).items()})


def default_pools(table: Outcomes) -> dict[str, tuple[str, ...]]:
    """Pools of the experts in a file: the best four small ones, all small ones, and each with the large ones."""
    train = np.nan_to_num(np.nanmean(table.scores, axis=0), nan=-1.0)
    sizes = [facts_from_name(name).parameters for name in table.experts]
    small = [n for n, size in enumerate(sizes) if size is None or size <= SMALL_PARAMETERS]
    large = [n for n in range(len(sizes)) if n not in small]
    four = sorted(sorted(small, key=lambda n: -train[n])[:4])
    pools = {"four <= 9B": four, "all <= 9B": small, "four <= 9B and larger": [*four, *large], "all": [*small, *large]}
    named: dict[str, tuple[str, ...]] = {}
    for pool, places in pools.items():
        experts = tuple(table.experts[n] for n in places)
        if len(experts) > 1 and experts not in named.values():
            named[pool] = experts
    return named


def evaluate_votes(
    table: Outcomes,
    *,
    pools: Mapping[str, Sequence[str]] | None = None,
    targets_j: Sequence[float | None] = TARGETS_J,
    hosts: Mapping[str, str] | None = None,
    training: TrainingConfig | None = None,
    trained: TrainedGate | None = None,
    progress: Progress | None = None,
    fifth: int = 0,
) -> VoteReport:
    """Compare votes of each pool with one expert alone, within each target of mean joules.

    pools: experts by the pool's name; None for `default_pools`. hosts: host profile by expert, `HOST` for the others.
    trained: a gate of exactly the learnt rows, if there is one already. fifth: as in `split_for_report`. Raises
    Moe2Error where the file holds no answers or too few rows.
    """
    if answer_codes(table) is None:
        raise VoteEvaluationError(
            "The file holds no answers, only scores.",
            remedy="Columns 'answer__NAME' hold them; `moe2-coordinator collect` writes them.",
        )
    parts = split_for_report(table, fifth)
    trained = trained or train_gate(parts.learn, config=training, progress=progress)
    named = {name: tuple(experts) for name, experts in (pools or default_pools(parts.learn)).items()}
    figures: list[PolicyFigures] = []
    stops: list[EarlyStop] = []
    behind: list[BehindBest] = []
    for pool, experts in named.items():
        study = _Study(pool, parts, experts, trained, dict.fromkeys(experts, HOST) | dict(hosts or {}))
        for target_j in targets_j:
            found = study.within(target_j)
            figures += found[0]
            behind += found[1]
        stops.append(study.early_stop())
    return VoteReport(
        pools=named,
        rows={**trained.manifest.rows, "reported": len(parts.report)},
        reported_on=parts.reported_on,
        host_marks="joules by answer lengths, four characters a token, scaled with the parameters: assumed",
        consensus=tuple(figures),
        early_stop=tuple(stops),
        behind_best=tuple(behind),
    )


class _Study:
    """One pool: policies are chosen on the learnt rows, and answer the others."""

    def __init__(
        self, pool: str, parts: Parts, experts: Sequence[str], trained: TrainedGate, hosts: Mapping[str, str]
    ) -> None:
        self.pool, self.experts = pool, tuple(experts)
        learn, report = parts.learn.with_experts(experts), parts.report.with_experts(experts)
        train = learn.take(learn.rows_of("train"))
        fleet = FleetGate(trained.gate, [facts_from_name(name) for name in experts])
        self._kinds = trained.manifest.kinds
        self._replay = VoteReplay(fleet.votes, fleet.by_kind())
        self._learn = self._rows(train, train, fleet, hosts, told=True)
        self._report = self._rows(report, train, fleet, hosts)
        self._told = self._rows(report, train, fleet, hosts, told=True)
        self._mean_j = self._learn.actual_j.mean(axis=0)
        weights = self._replay.record.weights(self._replay.mean_scores)
        best = sorted(range(len(experts)), key=lambda n: -self._replay.mean_scores[n])
        cheap = sorted(best, key=lambda n: -weights[n] / self._mean_j[n])[: MAX_MODELS // 2]
        kept = [*cheap, *(n for n in best if n not in cheap)][:MAX_MODELS]
        order = sorted(kept, key=lambda n: -weights[n] / self._mean_j[n])
        self._plans = self._replay.plans(order, min(MAX_VOTERS, len(order)))
        even = np.bincount(self._learn.label, minlength=len(self._kinds)) / len(self._learn.label)
        mean_scores = even @ self._plans.by_kind
        self._plan_value = self._plans.values(mean_scores[None], even[None])[0]
        self._plan_j = self._plans.expected(self._mean_j[None], even[None])[0]
        sizes = (self._plans.members >= 0).sum(axis=1)
        self._plan_all_j = np.where(self._plans.members >= 0, self._mean_j[self._plans.members], 0.0).sum(axis=1)
        self._is_certain = np.isinf(self._plans.wanted) & (sizes > 1)

    def within(self, target_j: float | None) -> tuple[list[PolicyFigures], list[BehindBest]]:
        """The figures of every policy within one target; none where not even the cheapest expert fits."""
        limit = np.inf if target_j is None else target_j
        fits = np.flatnonzero(self._mean_j <= limit)
        if fits.size == 0:
            return [], []
        single = int(fits[np.nanmean(self._learn.right, axis=0)[fits].argmax()])
        answered: dict[str, tuple[Answered, tuple[int, ...]]] = {
            SINGLE: (_alone(self._report, np.full(len(self._report.label), single)), (single,)),
            LABEL: (self._label_known(limit), ()),
            ROUTE: (self._priced_route(limit), ()),
        }
        for policy, joules in ((ALL, self._plan_all_j), (EARLY, self._plan_j)):
            plan = self._best_vote(joules, limit)
            if plan is not None:
                members = self._members(plan)
                ends = np.full(len(self._report.label), np.nan if policy == ALL else np.inf)
                answered[policy] = (_voted(self._report, self._replay, members, ends), members)
        answered[AUTO] = (self._auto(limit, self._report), ())
        base = answered[SINGLE][0][0]
        best = max((name for name in answered if name != AUTO), key=lambda name: answered[name][0][0].mean())
        answered[AUTO_LABEL] = (self._auto(limit, self._told), ())
        figures = [self._figures(target_j, name, *found, base) for name, found in answered.items()]
        behind = []
        for policy in (AUTO, AUTO_LABEL):
            gap = answered[best][0][0] - answered[policy][0][0]
            behind.append(
                BehindBest(
                    pool=self.pool,
                    target_j=target_j,
                    policy=policy,
                    best_policy=best,
                    behind_points=100 * float(gap.mean()),
                    behind_se=100 * _standard_error(gap),
                )
            )
        return figures, behind

    def early_stop(self) -> EarlyStop:
        """The best set of voters without a limit: asked in turn until the outcome is certain, against asking all."""
        plan = self._best_vote(self._plan_all_j, np.inf)
        members = tuple(range(len(self.experts)))[:MAX_VOTERS] if plan is None else self._members(plan)
        rows = len(self._report.label)
        everybody = _voted(self._report, self._replay, members, np.full(rows, np.nan))
        in_turn = _voted(self._report, self._replay, members, np.full(rows, np.inf))
        lost = everybody[0] - in_turn[0]
        return EarlyStop(
            pool=self.pool,
            members=self._names(members),
            lost_points=100 * float(lost.mean()),
            lost_se=100 * _standard_error(lost),
            joules_ratio=float(in_turn[1].mean() / everybody[1].mean()),
        )

    def _rows(
        self,
        table: Outcomes,
        train: Outcomes,
        fleet: FleetGate,
        hosts: Mapping[str, str],
        *,
        told: bool = False,
    ) -> _Rows:
        """The rows of a table. told: the gate is given each row's label, as far as it knows it."""
        codes = answer_codes(table)
        assert codes is not None  # noqa: S101 - the whole file has answers
        number = {name: place for place, name in enumerate(self._kinds)}
        labels = np.array([number.get(name, -1) for name in kinds_of(table)])
        predictions = [
            fleet.predict(prompt, int(label) if told and label >= 0 else None)
            for prompt, label in zip(table.prompts, labels, strict=True)
        ]
        even = np.full(len(self._kinds), 1 / len(self._kinds))
        unknown = np.full(len(table.experts), np.nan)
        lengths = [unknown if found.answer_tokens is None else found.answer_tokens for found in predictions]
        costs = fleet_costs(table, train, hosts, 128.0, np.stack(lengths))
        return _Rows(
            codes=codes,
            right=(codes == RIGHT).astype(np.float64),
            actual_j=costs.actual_energy_j,
            predicted_j=costs.predicted_energy_j,
            scores=np.stack([found.probabilities for found in predictions]),
            kind_shares=np.stack([even if found.kinds is None else found.kinds for found in predictions]),
            label=labels,
        )

    def _label_known(self, limit_j: float) -> Answered:
        """The best expert per known label, at the price at which the target is met."""
        known = self._learn.label
        score = np.stack([self._mean_of(self._learn.right, known == k) for k in range(len(self._kinds))])
        joules = np.stack([self._mean_of(self._learn.actual_j, known == k) for k in range(len(self._kinds))])

        def chosen(price: float, label: IntArray) -> IntArray:
            by_label = (score - price * joules).argmax(axis=1)
            everywhere = int((score.mean(axis=0) - price * self._mean_j).argmax())
            return np.where(label >= 0, by_label[label], everywhere)

        rows = self._report

        def answered(price: float) -> Answered:
            return _alone(rows, chosen(price, rows.label))

        return answered(_price(lambda price: float(answered(price)[1].mean()), limit_j))

    def _priced_route(self, limit_j: float) -> Answered:
        """One expert by the gate's scores, at the price at which the target is met."""
        rows = self._report

        def answered(price: float) -> Answered:
            return _alone(rows, (rows.scores - price * rows.predicted_j).argmax(axis=1))

        return answered(_price(lambda price: float(answered(price)[1].mean()), limit_j))

    def _auto(self, limit_j: float, rows: _Rows) -> Answered:
        """moe2's choice among one expert and every vote, at the price at which the target is met."""
        plans = self._plans
        values = plans.values(rows.scores, rows.kind_shares)
        joules = plans.expected(rows.predicted_j, rows.kind_shares)
        everything = np.ones(len(plans.wanted), dtype=np.bool_)

        def answered(price: float) -> Answered:
            return self._by_plan(rows, best_plan(plans, values, joules, price, everything))

        return answered(_price(lambda price: float(answered(price)[1].mean()), limit_j))

    def _by_plan(self, rows: _Rows, chosen: IntArray) -> Answered:
        """What rows are answered with where each is given its own plan."""
        count = len(chosen)
        out = np.zeros(count), np.zeros(count), np.zeros(count)
        for plan in np.unique(chosen).tolist():
            own = np.flatnonzero(chosen == plan)
            part = rows.take(own)
            found = _voted(part, self._replay, self._members(plan), np.full(own.size, self._plans.wanted[plan]))
            for whole, piece in zip(out, found, strict=True):
                whole[own] = piece
        return out

    def _best_vote(self, joules: FloatArray, limit_j: float) -> int | None:
        """The plan with the largest value among votes of several that keep the target; None where none does."""
        usable = self._is_certain & (joules <= limit_j)
        while usable.any():
            # Of sets that are about equally good the largest one: within the target there is nothing to save.
            worth = np.where(usable, self._plan_value, -np.inf)
            equals = np.flatnonzero(worth >= worth.max() - ABOUT_EQUAL).tolist()
            plan = max(equals, key=lambda plan: (len(self._members(plan)), worth[plan]))
            # Questions that take more members also take longer answers, which the expectation does not know.
            ends = np.full(len(self._learn.label), np.inf if joules is self._plan_j else np.nan)
            if _voted(self._learn, self._replay, self._members(plan), ends)[1].mean() <= limit_j:
                return plan
            usable[plan] = False
        return None

    def _members(self, plan: int) -> tuple[int, ...]:
        return tuple(int(n) for n in self._plans.members[plan] if n >= 0)

    def _names(self, members: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.experts[n] for n in members)

    @staticmethod
    def _mean_of(figures: FloatArray, rows: npt.NDArray[np.bool_]) -> FloatArray:
        return np.asarray(figures[rows].mean(axis=0) if rows.any() else figures.mean(axis=0))

    def _figures(
        self, target_j: float | None, policy: str, answered: Answered, members: tuple[int, ...], base: FloatArray
    ) -> PolicyFigures:
        score, joules, asked = answered
        gain = score - base
        return PolicyFigures(
            pool=self.pool,
            target_j=target_j,
            policy=policy,
            score=float(score.mean()),
            score_se=_standard_error(score),
            mean_j=float(joules.mean()),
            asked_mean=float(asked.mean()),
            gain_points=100 * float(gain.mean()),
            gain_se=100 * _standard_error(gain),
            members=self._names(members),
        )


def _alone(rows: _Rows, chosen: IntArray) -> Answered:
    """What rows are answered with where one expert answers each."""
    every = np.arange(len(chosen))
    return rows.right[every, chosen], rows.actual_j[every, chosen], np.ones(len(chosen))


def _voted(rows: _Rows, replay: VoteReplay, members: Sequence[int], wanted: FloatArray) -> Answered:
    """What rows are answered with where the members are asked in turn.

    wanted: (rows,) probability of being right that ends the asking; inf where only certainty does, NaN where nothing
    does.
    """
    weights = replay.record.weights(rows.scores).astype(np.float32)
    count = VoteCount.none(rows.codes)
    running = np.ones(len(rows.codes), dtype=np.bool_)
    score, joules, asked = (np.zeros(len(rows.codes)) for _ in range(3))
    for place, member in enumerate(members):
        joules += running * rows.actual_j[:, member]
        asked += running
        count = count.with_vote(rows.codes[:, member], weights[:, member], replay.record.other)
        stops = running.copy()
        if place + 1 < len(members):
            rest = weights[:, list(members[place + 1 :])].sum(axis=1)
            stops &= ((count.ahead > rest) & ~np.isnan(wanted)) | (count.share >= wanted)
        score[stops] = count.is_right[stops]
        running &= ~stops
    return score, joules, asked


def _price(spent: Callable[[float], float], limit_j: float) -> float:
    """The lowest price of a joule at which no more than the limit is spent on average; 0 where that is so anyway."""
    if spent(0.0) <= limit_j:
        return 0.0
    low, high = 1e-7, _DEAREST
    for _ in range(_BISECTIONS):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if spent(middle) <= limit_j else (middle, high)
    return high


def _standard_error(values: FloatArray) -> float:
    return float(values.std(ddof=1) / np.sqrt(values.size))
