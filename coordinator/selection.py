"""Which expert answers a request: the two levels put together. PURE but for its memo.

Coarse: the experts that keep the request's budgets, as an exactly solved planning problem with its certificate.
Fine: among them, the one that the gate thinks most likely to answer this very prompt well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moe2.common.messages import ExpertState
from moe2.coordinator.appraisal import Appraisal, Appraiser
from moe2.coordinator.budgets import DEFAULT_CATEGORY, Budgets, Wish, budgets_for
from moe2.coordinator.coarse import problem_of, solve
from moe2.coordinator.planning.certificate import Cause, Offer, Plan
from moe2.coordinator.planning.frontier import FrontierPoint, frontier
from moe2.coordinator.predict import Demand, Prediction, predict
from moe2.coordinator.table import Expert

ANY_MODEL = ("moe2", "auto")
"""Model names that leave the choice to the coordinator."""
SAME_SCORE = 0.005
"""Scores that differ by less are the same: the faster expert answers."""
MEMO_ENTRIES = 512
FRONTIER_POINTS = 12


@dataclass(frozen=True)
class SelectionRequest:
    """What is asked for.

    model: a model's name, an expert's key, or one of `ANY_MODEL`. text: the prompt as the gate reads it.
    excluded: keys of experts that must not be chosen, because they have failed this request already.
    least_context_tokens: a context that was found too small; only larger ones are worth a try.
    elapsed_s, spent_j: what former attempts have used up of the budgets.
    """

    model: str
    demand: Demand
    text: str = ""
    wish: Wish = field(default_factory=Wish)
    excluded: frozenset[str] = frozenset()
    least_context_tokens: int = 0
    needs_chat_template: bool = False
    needs_tools: bool = False
    elapsed_s: float = 0.0
    spent_j: float = 0.0


@dataclass(frozen=True)
class Considered:
    """One expert of the fleet as it looked to the decision. score: None where it was out before the gate was asked."""

    expert: Expert
    prediction: Prediction
    score: float
    trained: bool


@dataclass(frozen=True)
class Selection:
    """The chosen expert and why.

    considered: in the fleet's order; `plan.members` are places in it. candidates: keys of the experts that the coarse
    level left to the fine one.
    """

    expert: Expert
    prediction: Prediction
    candidates: frozenset[str]
    category: str
    budgets: Budgets
    considered: tuple[Considered, ...]
    plan: Plan
    kind: str | None

    @property
    def score(self) -> float:
        """Probability that the chosen expert answers well."""
        return next(other.score for other in self.considered if other.expert is self.expert)


@dataclass(frozen=True)
class NoExpert:
    """Nobody can take the request. `code` says which kind of answer the client gets.

    plan, considered, budgets: set where the budgets rule everybody out.
    """

    code: str
    message: str
    plan: Plan | None = None
    considered: tuple[Considered, ...] = ()
    budgets: Budgets | None = None


class Selector:
    """Chooses. Remembers coarse plans by their exact inputs, so that equal requests are planned once.

    categories: default budgets by name. clock: monotonic seconds, for the planner's time limit.
    """

    def __init__(self, appraiser: Appraiser, categories: Mapping[str, Budgets], *, clock: Callable[[], float]) -> None:
        self.appraiser = appraiser
        self.categories = dict(categories)
        self._clock = clock
        self._memo: OrderedDict[object, Plan] = OrderedDict()

    def select(
        self, request: SelectionRequest, experts: Sequence[Expert], in_flight: Mapping[str, int], epoch: int
    ) -> Selection | NoExpert:
        """Choose for one request. Ties go to the faster, then the less busy expert, then the smaller key."""
        wanted = [expert for expert in experts if wants(request.model, expert)]
        if not wanted:
            return NoExpert("no_live_expert", "No expert is ready. See `moe2-coordinator status`.")
        ruled_out = _ruled_out(request, wanted, in_flight)
        if len(ruled_out) == len(wanted):
            return _nobody(request, wanted, ruled_out)
        appraisal = self.appraiser.appraise(request.text, wanted)
        category = request.wish.category or self._category_of(appraisal)
        budgets = budgets_for(request.wish, category, self.categories).after(request.elapsed_s, request.spent_j)
        predictions = [predict(expert, request.demand, in_flight.get(expert.key, 0)) for expert in wanted]
        plan = self._plan(request, wanted, predictions, budgets, ruled_out, in_flight, epoch)
        considered = tuple(
            Considered(expert, prediction, float(score), bool(trained))
            for expert, prediction, score, trained in zip(
                wanted, predictions, appraisal.scores, appraisal.trained, strict=True
            )
        )
        if not plan.is_feasible:
            return NoExpert("infeasible", _infeasible(plan), plan=plan, considered=considered, budgets=budgets)
        candidates = _candidates(plan, budgets)
        chosen = _finest([other for other in considered if other.expert.key in candidates], in_flight)
        return Selection(
            expert=chosen.expert,
            prediction=chosen.prediction,
            candidates=candidates,
            category=category,
            budgets=budgets,
            considered=considered,
            plan=plan,
            kind=appraisal.kind,
        )

    def frontier(
        self, decided: Selection | NoExpert, in_flight: Mapping[str, int], request: SelectionRequest
    ) -> tuple[FrontierPoint, ...]:
        """The best candidate set over a range of energy budgets, everything else as decided.

        Empty where no considered expert's energy is known.
        """
        considered, budgets = decided.considered, decided.budgets
        joules = [other.prediction.energy_j for other in considered]
        known = [quantiles.p95 for quantiles in joules if quantiles is not None and quantiles.p95 > 0]
        if not known or budgets is None:
            return ()
        experts = [other.expert for other in considered]
        bounded = budgets.model_copy(update={"energy_budget_j": max(known)})
        problem = problem_of(
            experts,
            [other.prediction for other in considered],
            self.appraiser.on_the_whole(experts),
            bounded,
            _ruled_out(request, experts, in_flight),
        )
        steps = np.geomspace(0.5 * min(known), 1.5 * sum(known), FRONTIER_POINTS)
        return frontier(problem, steps.tolist(), clock=self._clock)

    def _category_of(self, appraisal: Appraisal) -> str:
        """The gate's kind of prompt, where the configuration has budgets for it."""
        return appraisal.kind if appraisal.kind in self.categories and appraisal.kind else DEFAULT_CATEGORY

    def _plan(
        self,
        request: SelectionRequest,
        wanted: list[Expert],
        predictions: list[Prediction],
        budgets: Budgets,
        ruled_out: Mapping[str, str],
        in_flight: Mapping[str, int],
        epoch: int,
    ) -> Plan:
        key = (
            epoch,
            tuple(expert.key for expert in wanted),
            tuple(in_flight.get(expert.key, 0) for expert in wanted),
            request.demand,
            budgets,
            tuple(sorted(ruled_out.items())),
        )
        plan = self._memo.get(key)
        if plan is None:
            whole = self.appraiser.on_the_whole(wanted)
            plan = solve(problem_of(wanted, predictions, whole, budgets, ruled_out), clock=self._clock)
            self._memo[key] = plan
            if len(self._memo) > MEMO_ENTRIES:
                self._memo.popitem(last=False)
        else:
            self._memo.move_to_end(key)
        return plan


def wants(model: str, expert: Expert) -> bool:
    """True if a client that asked for `model` can be served by this expert."""
    return model in ANY_MODEL or model in (expert.model, expert.key)


def _ruled_out(request: SelectionRequest, wanted: Sequence[Expert], in_flight: Mapping[str, int]) -> dict[str, str]:
    """Experts that the request or their own state excludes, with the reason."""
    needed = max(request.demand.prompt_tokens, request.least_context_tokens)
    largest = max(expert.report.context_tokens for expert in wanted)
    # The prompt's length is an estimate. Where it rules out everybody, the largest context still gets a try: the
    # expert's own tokenizer has the last word.
    if largest > request.least_context_tokens:
        needed = min(needed, largest - 1)
    reasons: dict[str, str] = {}
    for expert in wanted:
        report = expert.report
        if expert.key in request.excluded:
            reasons[expert.key] = "it has already failed this request"
        elif request.needs_chat_template and report.has_chat_template is False:
            reasons[expert.key] = "its model has no chat template"
        elif request.needs_tools and report.supports_tools is False:
            reasons[expert.key] = "its model's template has no tools"
        elif report.context_tokens <= needed:
            reasons[expert.key] = f"its context of {report.context_tokens} tokens is too small"
        elif in_flight.get(expert.key, 0) >= report.slots + report.max_queue:
            reasons[expert.key] = f"its {report.slots} slots and {report.max_queue} queue places are taken"
    return reasons


def _candidates(plan: Plan, budgets: Budgets) -> frozenset[str]:
    """Keys of the experts that the fine level may choose from.

    Without `max_experts` that is every expert that keeps the budgets alone: one that adds nothing on the whole may
    still be the best for this prompt, or the first to be free.
    """
    keys = set(plan.names)
    if budgets.max_experts is None:
        keys |= {exclusion.name for exclusion in plan.exclusions if exclusion.cause is Cause.NO_GAIN}
    return frozenset(keys)


def _finest(candidates: Sequence[Considered], in_flight: Mapping[str, int]) -> Considered:
    """The fine level for one answering expert: the best score, and among the same scores the soonest end."""
    best = max(candidate.score for candidate in candidates)
    good = [candidate for candidate in candidates if candidate.score >= best - SAME_SCORE]

    def rank(candidate: Considered) -> tuple[float, int, str]:
        busy = in_flight.get(candidate.expert.key, 0)
        total_s = candidate.prediction.total_s
        # An unmeasured expert is tried first when idle, so that it gets measured, and last when busy or not in memory.
        idle = busy == 0 and candidate.expert.report.state is ExpertState.READY
        unmeasured_s = 0.0 if idle else np.inf
        return (unmeasured_s if total_s is None else total_s.p50, busy, candidate.expert.key)

    return min(good, key=rank)


def _nobody(request: SelectionRequest, wanted: Sequence[Expert], ruled_out: Mapping[str, str]) -> NoExpert:
    """Why every wanted expert is out, in the words that help most."""
    if request.needs_chat_template and all(expert.report.has_chat_template is False for expert in wanted):
        return NoExpert("no_chat_template", f"{request.model!r} has no chat template; use /v1/completions.")
    if request.needs_tools and all(expert.report.supports_tools is False for expert in wanted):
        return NoExpert("no_tools", f"{request.model!r} cannot use tools: this model's template has no tools.")
    left = [expert for expert in wanted if expert.key not in request.excluded]
    if not left:
        return NoExpert("exhausted", f"All {len(wanted)} experts that could answer have failed this request.")
    largest = max(expert.report.context_tokens for expert in left)
    if largest <= request.least_context_tokens:
        return NoExpert("context_exceeded", f"The largest context among the experts is {largest} tokens.")
    reasons = "; ".join(sorted({ruled_out[expert.key] for expert in left}))
    return NoExpert("overloaded", f"None of {len(left)} experts can take the request now: {reasons}.")


def _infeasible(plan: Plan) -> str:
    """What the budgets would have to be."""
    offers = [
        f"the {label} offer is {offer.name} ({_needs(offer)})"
        for label, offer in (("cheapest", plan.cheapest), ("fastest", plan.fastest))
        if offer is not None
    ]
    told = "; ".join(offers) or "; ".join(sorted({exclusion.detail for exclusion in plan.exclusions}))
    return f"No expert keeps the request's budgets: {told}."


def _needs(offer: Offer) -> str:
    return ", ".join(str(breach) for breach in offer.breaches) or "keeps them"
