"""The evaluation of votes over final answers, against one expert alone, on rows that nothing was learnt from.

For each pool of experts and each target of mean joules per question, every policy is given the best it can be within
the target, by what the other rows say: a fixed expert, the best expert per known label, one expert by the gate's scores
at a price of joules, a fixed set of voters who are all asked or asked in turn, and moe2's own choice among all of these
at a price. Then each answers the held-out rows, as recorded. Prices are those at which the mean joules meet the target,
where the fleet's own pacing settles while it answers; what an answer is worth never enters them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe2.common.errors import Moe2Error
from moe2.coordinator.choosing.consensus import MAX_MODELS, best_plan
from moe2.coordinator.gate.fleet_gate import FleetGate
from moe2.coordinator.gate.prior import facts_from_name
from moe2.coordinator.gate.votes import MAX_VOTERS, NOT_ASKED, RIGHT, CodeArray, VoteCount, VoteReplay
from moe2.coordinator.training.config import TrainingConfig
from moe2.coordinator.training.evaluate.profiles import fleet_costs
from moe2.coordinator.training.evaluate.report import BehindBest, EarlyStop, PolicyFigures, VoteReport
from moe2.coordinator.training.evaluate.study import Parts, split_for_report
from moe2.coordinator.training.network import kinds_of
from moe2.coordinator.training.outcomes import Outcomes
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
MIN_ROWS = 10
"""Fewest rows that a pool is judged by, and on."""
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
    progress: Progress | None = None,
    fifths: Sequence[int] = (0,),
) -> VoteReport:
    """Compare votes of each pool with one expert alone, within each target of mean joules.

    pools: experts by the pool's name; None for `default_pools`. hosts: host profile by expert, `HOST` for the others.
    fifths: each is held out in turn, as in `split_for_report`, and reported on by what the other rows say; figures are
    those of all reported rows together. A pool is judged on the rows that all of its experts were asked, and takes no
    expert without answers. Raises Moe2Error where the file holds too few answers or rows.
    """
    answered = _answered(table)
    _check(answered, pools or {})
    splits = [split_for_report(table, fifth) for fifth in fifths]
    # The same pools in every part: which experts are the best four is no outcome of the held-out rows of one.
    learned = (splits[0].learn if len(splits) == 1 else table.take(table.rows_of("train"))).with_experts(answered)
    named = {name: tuple(experts) for name, experts in (pools or default_pools(learned)).items()}
    placed = {name: dict.fromkeys(experts, HOST) | dict(hosts or {}) for name, experts in named.items()}
    reached: dict[tuple[str, float | None], list[dict[str, _Reached]]] = defaultdict(list)
    ends: dict[str, list[dict[str, _Reached]]] = defaultdict(list)
    trained_on: list[int] = []
    for place, parts in enumerate(splits):
        trained = train_gate(parts.learn, config=training, progress=_part_of(progress, place, len(splits)))
        trained_on.append(trained.manifest.rows["train"])
        for pool, experts in named.items():
            study = _Study(parts, experts, trained, placed[pool])
            for target_j in targets_j:
                reached[pool, target_j].append(study.within(target_j))
            ends[pool].append(study.until_certain())
    figures: list[PolicyFigures] = []
    behind: list[BehindBest] = []
    for (pool, target_j), found in reached.items():
        together = _together(found)
        if SINGLE in together:
            figures += [_figures(pool, target_j, policy, one, together) for policy, one in together.items()]
            behind += _behind_best(pool, target_j, together)
    reported = min((len(_together(found)[ALL].answered[0]) for found in ends.values()), default=0)
    return VoteReport(
        pools=named,
        rows={**trained.manifest.rows, "train": min(trained_on), "reported": reported},
        reported_on="; ".join(parts.reported_on for parts in splits),
        host_marks="joules by answer lengths, four characters a token, scaled with the parameters: assumed",
        consensus=tuple(figures),
        early_stop=tuple(_early_stop(pool, _together(found)) for pool, found in ends.items()),
        behind_best=tuple(behind),
        left_out=tuple(name for name in table.experts if name not in answered),
    )


def _answered(table: Outcomes) -> tuple[str, ...]:
    """The experts of which the file holds at least one answer."""
    answers = table.answers or ()
    return tuple(name for n, name in enumerate(table.experts) if any(row[n] for row in answers))


def _check(answered: Sequence[str], pools: Mapping[str, Sequence[str]]) -> None:
    """Raise VoteEvaluationError where there are answers of fewer than two, or where an expert of a pool has none."""
    remedy = "Columns 'answer__NAME' hold them; `moe2-coordinator collect` writes them."
    if not answered:
        raise VoteEvaluationError("The file holds no answers, only scores.", remedy=remedy)
    if len(answered) < 2:
        raise VoteEvaluationError(f"The file holds answers of {answered[0]} only; a vote takes two.", remedy=remedy)
    for pool, experts in pools.items():
        if lacking := [name for name in experts if name not in answered]:
            raise VoteEvaluationError(
                f"The file holds no answers of {', '.join(lacking)}, of the pool {pool!r}.", remedy=remedy
            )


def _asked_all(table: Outcomes) -> Outcomes:
    """The rows in which all experts of a table are known to have answered: whoever was not asked is not wrong.

    Raises VoteEvaluationError where too few are left.
    """
    codes = answer_codes(table)
    rows = np.flatnonzero((codes != NOT_ASKED).all(axis=1)) if codes is not None else np.empty(0, dtype=np.intp)
    if len(rows) < MIN_ROWS:
        raise VoteEvaluationError(
            f"Only {len(rows)} rows to report on or to learn from have the answers of all of "
            f"{', '.join(table.experts)}; at least {MIN_ROWS} are needed.",
            remedy="Collect more outcomes, or name a smaller pool (--pool).",
        )
    return table.take(rows)


def _part_of(progress: Progress | None, place: int, parts: int) -> Progress | None:
    """The progress of one of several trainings of equal length, as that of all together."""
    return None if progress is None else lambda done, total: progress(place * total + done, parts * total)


@dataclass(frozen=True, eq=False)
class _Reached:
    """What one policy reached on rows."""

    answered: Answered
    members: tuple[str, ...] = ()
    """The fixed expert or voters in the order in which they are asked; empty where they depend on the row."""


def _together(parts: Sequence[Mapping[str, _Reached]]) -> dict[str, _Reached]:
    """What the policies that were possible in every part reached on all rows. Members that differ are left out."""
    found = {}
    for policy in parts[0]:
        own = [part[policy] for part in parts if policy in part]
        if len(own) == len(parts):
            figures = zip(*(one.answered for one in own), strict=True)
            score, joules, asked = (np.concatenate(figure) for figure in figures)
            members = own[0].members if len({one.members for one in own}) == 1 else ()
            found[policy] = _Reached((score, joules, asked), members)
    return found


class _Study:
    """One pool: policies are chosen on the learnt rows, and answer the others."""

    def __init__(self, parts: Parts, experts: Sequence[str], trained: TrainedGate, hosts: Mapping[str, str]) -> None:
        self.experts = tuple(experts)
        learn = parts.learn.with_experts(experts)
        train = _asked_all(learn.take(learn.rows_of("train")))
        report = _asked_all(parts.report.with_experts(experts))
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

    def within(self, target_j: float | None) -> dict[str, _Reached]:
        """What every policy reaches within one target; none where not even the cheapest expert fits."""
        limit = np.inf if target_j is None else target_j
        fits = np.flatnonzero(self._mean_j <= limit)
        if fits.size == 0:
            return {}
        single = int(fits[np.nanmean(self._learn.right, axis=0)[fits].argmax()])
        found = {
            SINGLE: _Reached(_alone(self._report, np.full(len(self._report.label), single)), self._names([single])),
            LABEL: _Reached(self._label_known(limit)),
            ROUTE: _Reached(self._priced_route(limit)),
        }
        for policy, joules in ((ALL, self._plan_all_j), (EARLY, self._plan_j)):
            plan = self._best_vote(joules, limit)
            if plan is not None:
                found[policy] = self._asked(self._members(plan), np.nan if policy == ALL else np.inf)
        found[AUTO] = _Reached(self._auto(limit, self._report))
        found[AUTO_LABEL] = _Reached(self._auto(limit, self._told))
        return found

    def until_certain(self) -> dict[str, _Reached]:
        """The best set of voters without a limit: asked in turn until the outcome is certain, and all asked."""
        plan = self._best_vote(self._plan_all_j, np.inf)
        members = tuple(range(len(self.experts)))[:MAX_VOTERS] if plan is None else self._members(plan)
        return {ALL: self._asked(members, np.nan), EARLY: self._asked(members, np.inf)}

    def _asked(self, members: tuple[int, ...], wanted: float) -> _Reached:
        """A fixed vote. wanted: as in `_voted`, the same for all rows."""
        wanted_of_rows = np.full(len(self._report.label), wanted)
        return _Reached(_voted(self._report, self._replay, members, wanted_of_rows), self._names(members))

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
        everything, doubts = np.ones(len(plans.wanted), dtype=np.bool_), plans.doubts(rows.kind_shares)

        def answered(price: float) -> Answered:
            return self._by_plan(rows, best_plan(plans, values, joules, price, everything, doubts))

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
    pool: str, target_j: float | None, policy: str, reached: _Reached, together: Mapping[str, _Reached]
) -> PolicyFigures:
    score, joules, asked = reached.answered
    gain = score - together[SINGLE].answered[0]
    return PolicyFigures(
        pool=pool,
        target_j=target_j,
        policy=policy,
        score=float(score.mean()),
        score_se=_standard_error(score),
        mean_j=float(joules.mean()),
        asked_mean=float(asked.mean()),
        gain_points=100 * float(gain.mean()),
        gain_se=100 * _standard_error(gain),
        members=reached.members,
    )


def _behind_best(pool: str, target_j: float | None, together: Mapping[str, _Reached]) -> list[BehindBest]:
    """How far moe2's own choice is behind the best of the other policies."""
    scores = {policy: reached.answered[0] for policy, reached in together.items()}
    best = max((policy for policy in scores if policy not in (AUTO, AUTO_LABEL)), key=lambda name: scores[name].mean())
    found = []
    for policy in (AUTO, AUTO_LABEL):
        gap = scores[best] - scores[policy]
        found.append(
            BehindBest(
                pool=pool,
                target_j=target_j,
                policy=policy,
                best_policy=best,
                behind_points=100 * float(gap.mean()),
                behind_se=100 * _standard_error(gap),
            )
        )
    return found


def _early_stop(pool: str, together: Mapping[str, _Reached]) -> EarlyStop:
    """What asking in turn saves and costs against asking the same voters all."""
    everybody, in_turn = together[ALL].answered, together[EARLY].answered
    lost = everybody[0] - in_turn[0]
    return EarlyStop(
        pool=pool,
        members=together[ALL].members,
        lost_points=100 * float(lost.mean()),
        lost_se=100 * _standard_error(lost),
        joules_ratio=float(in_turn[1].mean() / everybody[1].mean()),
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
