"""Which expert answers a request: the two levels put together. PURE but for what it remembers.

Coarse: the experts that keep the request's budgets, as an exactly solved planning problem with its certificate.
Fine: among them, the one that the gate thinks most likely to answer this very prompt well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from moe2.common.energy import Quality
from moe2.common.messages import ExpertState
from moe2.coordinator.appraisal import Appraisal, Appraiser
from moe2.coordinator.budgets import DEFAULT_CATEGORY, NO_BUDGETS, Budgets, Mode, Wish, budgets_for
from moe2.coordinator.coarse import Worth, problem_of, solve
from moe2.coordinator.planning.branch import Effort
from moe2.coordinator.planning.certificate import Cause, Offer, Plan
from moe2.coordinator.planning.frontier import FrontierPoint, frontier
from moe2.coordinator.predict import Demand, Prediction
from moe2.coordinator.promptlengths import PromptLengths
from moe2.coordinator.roster import Forecast, IntArray, Roster
from moe2.coordinator.table import Expert

ANY_MODEL = ("moe2", "auto")
"""Model names that leave the choice to the coordinator."""
SAME_SCORE = 0.005
"""Scores that differ by less are the same: the faster expert answers."""
MEMO_ENTRIES = 512
MOST_ROSTERS = 256
FRONTIER_POINTS = 12
FRONTIER_S = 0.06
"""All points together; a frontier is for people, and nobody else may wait for it longer."""


@dataclass(frozen=True)
class SelectionRequest:
    """What is asked for.

    model: a model's name, an expert's key, or one of `ANY_MODEL`. text: the prompt as the gate reads it.
    excluded: keys of experts that must not be chosen, because they have failed this request already.
    least_context_tokens: a context that was found too small; only larger ones are worth a try.
    budgets: defaults of the key that asks. elapsed_s, spent_j: what former attempts have used up of the budgets.
    """

    model: str
    demand: Demand
    text: str = ""
    wish: Wish = field(default_factory=Wish)
    budgets: Budgets = NO_BUDGETS
    excluded: frozenset[str] = frozenset()
    least_context_tokens: int = 0
    needs_chat_template: bool = False
    needs_tools: bool = False
    elapsed_s: float = 0.0
    spent_j: float = 0.0


@dataclass(frozen=True)
class Considered:
    """One expert of the fleet as it looked to the decision."""

    expert: Expert
    prediction: Prediction
    score: float
    trained: bool


@dataclass(frozen=True, eq=False)
class Outlook:
    """All experts that could serve a request, as they look for it. Details of one are made when asked for."""

    forecast: Forecast
    appraisal: Appraisal
    worth: Worth
    budgets: Budgets
    ruled_out: Mapping[str, str]

    def at(self, place: int) -> Considered:
        """One expert of the roster."""
        return Considered(
            self.forecast.roster.experts[place],
            self.forecast.prediction(place),
            float(self.appraisal.scores[place]),
            bool(self.appraisal.trained[place]),
        )

    @cached_property
    def considered(self) -> tuple[Considered, ...]:
        """Every expert, in the fleet's order."""
        return tuple(self.at(place) for place in range(len(self.forecast.roster)))


@dataclass(frozen=True)
class Member:
    """One expert of the panel that answers. weight: its share of the mixture; those of a panel sum to 1."""

    expert: Expert
    prediction: Prediction
    score: float
    weight: float = 1.0


@dataclass(frozen=True)
class Selection:
    """The chosen panel, in the order of its members' weights, and why.

    candidates: keys of the experts that the coarse level left to the fine one.
    """

    mode: Mode
    members: tuple[Member, ...]
    candidates: frozenset[str]
    category: str
    outlook: Outlook
    plan: Plan

    @property
    def first(self) -> Member:
        """Who answers, in a mode where one does."""
        return self.members[0]

    @property
    def considered(self) -> tuple[Considered, ...]:
        """In the fleet's order; `plan.members` are places in it."""
        return self.outlook.considered

    @property
    def budgets(self) -> Budgets:
        """The limits in force."""
        return self.outlook.budgets

    @property
    def kind(self) -> str | None:
        """What the gate takes the prompt for."""
        return self.outlook.appraisal.kind


@dataclass(frozen=True)
class NoExpert:
    """Nobody can take the request. `code` says which kind of answer the client gets.

    plan, outlook: set where the budgets rule everybody out. retry_after_s: when it may be different, if that is known.
    """

    code: str
    message: str
    plan: Plan | None = None
    outlook: Outlook | None = None
    retry_after_s: int | None = None

    @property
    def considered(self) -> tuple[Considered, ...]:
        """Every expert, where the budgets were the reason."""
        return self.outlook.considered if self.outlook else ()


class Selector:
    """Chooses. Remembers coarse plans by their exact inputs, so that equal requests are planned once.

    categories: default budgets by name. clock: monotonic seconds, for the planner's time limit.
    """

    def __init__(self, appraiser: Appraiser, categories: Mapping[str, Budgets], *, clock: Callable[[], float]) -> None:
        self.appraiser = appraiser
        self.categories = dict(categories)
        self._clock = clock
        self.prompts = PromptLengths()
        self._memo: OrderedDict[object, Plan] = OrderedDict()
        self._experts: Sequence[Expert] = ()
        self._rosters: dict[str, Roster | None] = {}

    def reconfigure(self, appraiser: Appraiser, categories: Mapping[str, Budgets]) -> None:
        """Decide by another gate and other budgets from now on. What was planned with the former ones is forgotten."""
        self.appraiser = appraiser
        self.categories = dict(categories)
        self._memo.clear()
        self._rosters.clear()
        self._experts = ()

    def select(
        self, request: SelectionRequest, experts: Sequence[Expert], in_flight: Mapping[str, int], epoch: int
    ) -> Selection | NoExpert:
        """Choose for one request. Ties go to the faster, then the less busy expert, then the smaller key.

        experts: must not change while `epoch` stays.
        """
        roster = self._roster(request.model, experts)
        if roster is None:
            return NoExpert("no_live_expert", "No expert is ready. See `moe2-coordinator status`.")
        busy = roster.busy(in_flight)
        ruled_out = _ruled_out(request, roster, busy)
        if len(ruled_out) == len(roster):
            return _nobody(request, roster, ruled_out)
        appraisal = self.appraiser.appraise(request.text, roster)
        category = request.wish.category or self._category_of(appraisal)
        budgets = budgets_for(request.wish, category, self.categories, request.budgets)
        budgets = budgets.after(request.elapsed_s, request.spent_j)
        worth = self.appraiser.on_the_whole(roster)
        forecast = roster.forecast(self._prompt_tokens(roster, request.demand), request.demand.answer_tokens, busy)
        outlook = Outlook(forecast, appraisal, worth, budgets, ruled_out)
        plan = self._plan(outlook, epoch)
        if not plan.is_feasible:
            return NoExpert("infeasible", _infeasible(plan, forecast), plan, outlook)
        candidates = _candidates(plan, budgets)
        chosen = outlook.at(_finest(outlook, candidates, busy))
        return Selection(
            mode=Mode.ROUTE,
            members=(Member(chosen.expert, chosen.prediction, chosen.score),),
            candidates=candidates,
            category=category,
            outlook=outlook,
            plan=plan,
        )

    def frontier(self, decided: Selection | NoExpert) -> tuple[FrontierPoint, ...]:
        """The best candidate set over a range of energy budgets, everything else as decided.

        Empty where no considered expert's energy is known.
        """
        outlook = decided.outlook
        if outlook is None:
            return ()
        joules = outlook.forecast.energy_j.p95
        known = joules[joules > 0]  # false for the unknown, too
        if known.size == 0:
            return ()
        bounded = outlook.budgets.model_copy(update={"energy_budget_j": float(known.max())})
        problem = problem_of(outlook.forecast, outlook.worth, bounded, outlook.ruled_out)
        steps = np.geomspace(0.5 * known.min(), 1.5 * known.sum(), FRONTIER_POINTS)
        effort = Effort(time_limit_s=FRONTIER_S / FRONTIER_POINTS)
        return frontier(problem, steps.tolist(), table=outlook.worth.table, effort=effort, clock=self._clock)

    def _roster(self, model: str, experts: Sequence[Expert]) -> Roster | None:
        """The experts that can serve `model`; the same object until the fleet changes. None where there is none."""
        if experts is not self._experts:
            self._experts = experts
            self._rosters.clear()
            self.appraiser.meet(experts)
        if model in ANY_MODEL:
            model = ANY_MODEL[0]
        elif model not in self._rosters and len(self._rosters) > MOST_ROSTERS:
            self._rosters.clear()
        if model not in self._rosters:
            wanted = [expert for expert in experts if wants(model, expert)]
            self._rosters[model] = Roster(wanted) if wanted else None
        return self._rosters[model]

    def _category_of(self, appraisal: Appraisal) -> str:
        """The gate's kind of prompt, where the configuration has budgets for it."""
        return appraisal.kind if appraisal.kind in self.categories and appraisal.kind else DEFAULT_CATEGORY

    def _prompt_tokens(self, roster: Roster, demand: Demand) -> IntArray:
        """(N,) how long the prompt will be to each expert's model."""
        lengths = {model: self.prompts.demand_on(model, demand).prompt_tokens for model in set(roster.models)}
        return np.array([lengths[model] for model in roster.models])

    def _plan(self, outlook: Outlook, epoch: int) -> Plan:
        forecast, worth = outlook.forecast, outlook.worth
        key = (
            epoch,
            worth,
            forecast.roster.keys,
            forecast.busy.tobytes(),
            forecast.prompt_tokens.tobytes(),
            forecast.answer_tokens,
            outlook.budgets,
            tuple(outlook.ruled_out.items()),
        )
        plan = self._memo.get(key)
        if plan is None:
            problem = problem_of(forecast, worth, outlook.budgets, outlook.ruled_out)
            plan = self._memo[key] = solve(problem, worth, clock=self._clock)
            if len(self._memo) > MEMO_ENTRIES:
                self._memo.popitem(last=False)
        else:
            self._memo.move_to_end(key)
        return plan


def wants(model: str, expert: Expert) -> bool:
    """True if a client that asked for `model` can be served by this expert."""
    return model in ANY_MODEL or model in (expert.model, expert.key)


def _ruled_out(request: SelectionRequest, roster: Roster, busy: IntArray) -> dict[str, str]:
    """Experts that the request or their own state excludes, with the reason; in the roster's order."""
    needed = max(request.demand.prompt_tokens, request.least_context_tokens)
    largest = int(roster.context_tokens.max())
    # The prompt's length is an estimate. Where it rules out everybody, the largest context still gets a try: the
    # expert's own tokenizer has the last word.
    if largest > request.least_context_tokens:
        needed = min(needed, largest - 1)
    out = (roster.context_tokens <= needed) | (busy >= roster.room)
    if request.needs_chat_template:
        out |= roster.bare
    if request.needs_tools:
        out |= roster.toolless
    if request.excluded:
        out |= np.array([key in request.excluded for key in roster.keys])
    reasons: dict[str, str] = {}
    for place in np.flatnonzero(out).tolist():
        expert = roster.experts[place]
        report = expert.report
        if expert.key in request.excluded:
            reason = "it has already failed this request"
        elif request.needs_chat_template and roster.bare[place]:
            reason = "its model has no chat template"
        elif request.needs_tools and roster.toolless[place]:
            reason = "its model's template has no tools"
        elif report.context_tokens <= needed:
            reason = f"its context of {report.context_tokens} tokens is too small"
        else:
            reason = f"its {report.slots} slots and {report.max_queue} queue places are taken"
        reasons[expert.key] = reason
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


def _finest(outlook: Outlook, candidates: frozenset[str], busy: IntArray) -> int:
    """The fine level for one answering expert: the place of the best score, among the same scores the soonest end."""
    forecast, scores = outlook.forecast, outlook.appraisal.scores
    keys, total_s = forecast.roster.keys, forecast.total_s.p50
    places = [place for place, key in enumerate(keys) if key in candidates]
    best = scores[places].max()

    def rank(place: int) -> tuple[float, int, str]:
        # An unmeasured expert is tried first when idle, so that it gets measured, and last when busy or not in memory.
        is_ready = forecast.roster.experts[place].report.state is ExpertState.READY
        unmeasured_s = 0.0 if busy[place] == 0 and is_ready else np.inf
        end_s = float(total_s[place])
        return (unmeasured_s if np.isnan(end_s) else end_s, int(busy[place]), keys[place])

    return min((place for place in places if scores[place] >= best - SAME_SCORE), key=rank)


def _nobody(request: SelectionRequest, roster: Roster, ruled_out: Mapping[str, str]) -> NoExpert:
    """Why every wanted expert is out, in the words that help most."""
    if request.needs_chat_template and roster.bare.all():
        return NoExpert("no_chat_template", f"{request.model!r} has no chat template; use /v1/completions.")
    if request.needs_tools and roster.toolless.all():
        return NoExpert("no_tools", f"{request.model!r} cannot use tools: this model's template has no tools.")
    left = [expert for expert in roster.experts if expert.key not in request.excluded]
    if not left:
        return NoExpert("exhausted", f"All {len(roster)} experts that could answer have failed this request.")
    largest = max(expert.report.context_tokens for expert in left)
    if largest <= request.least_context_tokens:
        return NoExpert("context_exceeded", f"The largest context among the experts is {largest} tokens.")
    reasons = "; ".join(sorted({ruled_out[expert.key] for expert in left}))
    return NoExpert("overloaded", f"None of {len(left)} experts can take the request now: {reasons}.")


def _infeasible(plan: Plan, forecast: Forecast) -> str:
    """What the budgets would have to be."""
    reports = [(expert.key, expert.report.energy) for expert in forecast.roster.experts]
    simulated = {key for key, energy in reports if energy is not None and energy.quality is Quality.SIMULATED}
    offers = [
        f"the {label} offer is {offer.name} ({_needs(offer)}{'; joules simulated' if offer.name in simulated else ''})"
        for label, offer in (("cheapest", plan.cheapest), ("fastest", plan.fastest))
        if offer is not None
    ]
    told = "; ".join(offers) or "; ".join(sorted({exclusion.detail for exclusion in plan.exclusions}))
    return f"No expert keeps the request's budgets: {told}."


def _needs(offer: Offer) -> str:
    return ", ".join(str(breach) for breach in offer.breaches) or "keeps them"
