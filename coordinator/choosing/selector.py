"""The choice of the experts that answer a request, on two levels. PURE but for the plans that it remembers.

The coarse level finds the experts that keep the request's budgets, as an exactly solved planning problem with its
proof. The fine level chooses among them those that the gate thinks most likely to answer this very prompt well: one
expert, or a panel that works together (`moe2.coordinator.choosing.panel_cost`).
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec.structs import replace

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.choosing.candidates import best_first, solve
from moe2.coordinator.choosing.case import AskWorkLeft, Case, nobody_knows, stated_problem
from moe2.coordinator.choosing.consensus import Electorate, predicted_of_vote
from moe2.coordinator.choosing.fine_level import (
    best_expert,
    best_members,
    is_better_vote,
    is_worth_it,
    net_value,
)
from moe2.coordinator.choosing.forecast import IntArray, Roster
from moe2.coordinator.choosing.lengths import Lengths
from moe2.coordinator.choosing.mixture import renormalised
from moe2.coordinator.choosing.panel_cost import (
    DEFAULT_PANEL,
    Load,
    by_vocabulary,
    incapable_experts,
    joint_prediction,
    weighted_members,
)
from moe2.coordinator.choosing.power_cap import FleetDraw, cap_refusal, draw_of
from moe2.coordinator.choosing.quality import PromptScores, Scorer
from moe2.coordinator.choosing.refusal import (
    LessLoad,
    all_ruled_out,
    infeasible_message,
    less_load_in,
    less_load_message,
    ruled_out_by,
)
from moe2.coordinator.choosing.request import (
    DEFAULT_CATEGORY,
    Budgets,
    Demand,
    Mode,
    SelectionRequest,
    budgets_for,
)
from moe2.coordinator.choosing.result import Member, NoExpert, Outlook, Selection
from moe2.coordinator.fleet.table import Expert, HostPower
from moe2.coordinator.planning.proof import Plan
from moe2.coordinator.planning.search import Effort, FrontierPoint, frontier

ANY_MODEL = ("moe2", "auto")
"""Model names that leave the choice to the coordinator."""
MAX_PLANS = 512
"""Coarse plans that are remembered."""
MAX_PLANNED = 20_000
"""Experts in all remembered plans together: each plan holds what it has been made from."""
MAX_ROSTERS = 256
"""Rosters that are remembered, one for each model name that is asked for."""
FRONTIER_POINTS = 12
FRONTIER_S = 0.06
"""Time limit of all points together: a frontier is for people to look at, and delays other requests meanwhile."""


class Selector:
    """Chooses the experts for requests, and remembers coarse plans so that equal requests are planned once.

    categories: default budgets by name. clock: monotonic seconds, for the planner's time limit. longest_queue_s: most
    seconds until a request that is queued at an agent starts (see `Roster`). fleet_watts_cap_w: most watts that all
    hosts together may draw; None for no cap. lengths: what was learned of them; nothing if not given.
    """

    def __init__(
        self,
        scorer: Scorer,
        categories: Mapping[str, Budgets],
        *,
        clock: Callable[[], float],
        longest_queue_s: float = math.inf,
        fleet_watts_cap_w: float | None = None,
        sharers: int = 1,
        lengths: Lengths | None = None,
    ) -> None:
        self._sharers = sharers
        self.scorer = scorer
        self.categories = dict(categories)
        self.fleet_watts_cap_w = fleet_watts_cap_w
        self._clock = clock
        self._longest_queue_s = longest_queue_s
        self.lengths = lengths or Lengths()
        self._memo: OrderedDict[object, Plan] = OrderedDict()
        self._experts: Sequence[Expert] = ()
        self._rosters: dict[str, Roster | None] = {}
        self._former_rosters: dict[str, Roster | None] = {}
        """Rosters of the fleet as it was, of which most stays the same."""

    def reconfigure(
        self, scorer: Scorer, categories: Mapping[str, Budgets], fleet_watts_cap_w: float | None = None
    ) -> None:
        """Choose by another gate and other limits from now on, and forget what was planned with the former ones."""
        self.scorer = scorer
        self.categories = dict(categories)
        self.fleet_watts_cap_w = fleet_watts_cap_w
        self._memo.clear()
        self._rosters.clear()
        self._former_rosters.clear()
        self._experts = ()

    def select(
        self,
        request: SelectionRequest,
        experts: Sequence[Expert],
        in_flight: Mapping[str, int],
        epoch: int,
        hosts: Sequence[HostPower] = (),
        work_left: AskWorkLeft = nobody_knows,
    ) -> Selection | NoExpert:
        """Choose the experts for one request: among those that keep its limits, what is worth most for its joules.

        Ties go to fewer joules, then to the faster, then the less busy expert, then the smaller key.

        experts: all that are ready; they must not change while `epoch` stays the same. in_flight: requests in progress
        by expert key. hosts: the power that hosts draw, needed only where the fleet's power is capped. work_left: what
        those in progress on an expert have left.
        """
        roster = self._roster(request.model, experts)
        if roster is None:
            return NoExpert(ErrorCode.NO_LIVE_EXPERT, "No expert is ready. See `moe2-coordinator status`.")
        busy = roster.busy(in_flight) + roster.elsewhere
        ruled_out = ruled_out_by(request, roster, busy)
        if len(ruled_out) == len(roster):
            return all_ruled_out(request, roster, ruled_out)
        prompt_scores = self.scorer.score(request.text, roster, request.wish.category)
        category = request.wish.category or self._category_of(prompt_scores)
        whole = budgets_for(request.wish, category, self.categories, request.budgets)
        prices = request.prices_in(category)
        budgets = whole.after(request.elapsed_s, request.spent_j)
        prompt_tokens = self.lengths.prompt_tokens(roster, request.demand)
        cached_tokens: IntArray | int = 0
        affinity = request.affinity
        holder = None if affinity is None else roster.place.get(affinity.expert_key)
        if affinity is None or holder is None or not affinity.holds_on(roster.experts[holder]):
            affinity = None
        else:
            cached_tokens = affinity.cached(holder, prompt_tokens)
        answer_tokens, longest_tokens = self.lengths.answer_tokens(roster, request.demand, category, prompt_tokens)
        case = Case(
            roster=roster,
            load=Load(
                prompt_tokens=prompt_tokens - cached_tokens,
                cached_tokens=cached_tokens,
                answer_tokens=answer_tokens,
                longest_tokens=longest_tokens,
                max_tokens=request.demand.max_tokens,
                choice_tokens=request.choice_tokens or 0,
                busy=busy,
            ),
            prompt_scores=prompt_scores,
            worth=self.scorer.set_worth(roster),
            budgets=budgets,
            ruled_out=ruled_out,
            category=category,
            affinity=affinity,
            draw=self._draw(request.demand, experts, in_flight, hosts),
            price_per_j=request.price_per_j + sum([price.price_per_j for price in prices]),
            prices=prices,
            modes=request.modes,
            asks_final_answer=request.asks_final_answer,
            confidence=request.wish.confidence,
            work_left=work_left,
        )
        mode = _mode(request, budgets)
        decided = self._decide(mode, case, epoch)
        if isinstance(decided, NoExpert) and decided.code == ErrorCode.INFEASIBLE:
            return _or_infeasible_now(decided, request, case, mode, whole.after(0.0, request.spent_j))
        return decided

    def _decide(self, mode: Mode, case: Case, epoch: int) -> Selection | NoExpert:
        """Choose in the given mode; in `AUTO` by a vote where its gain is worth it."""
        if mode is Mode.CONSENSUS:
            return self._consensus(case, is_asked_for=True)
        if mode.is_panel:
            return self._panel(mode, case, epoch)
        if mode is Mode.AUTO:
            return self._auto(case, epoch)
        return self._route(case, epoch)

    def _auto(self, case: Case, epoch: int) -> Selection | NoExpert:
        """Choose the mode with the largest value less the price of its joules; of equal ones the first of these.

        To score choices is cheaper than to write one, so where a vote is possible even one expert votes.
        """
        single: Selection | NoExpert | None = None
        votes = self.scorer.votes(case.roster)
        if Mode.VOTE in case.modes:
            single = self._panel(Mode.VOTE, case, epoch)
            if isinstance(single, Selection) and not is_worth_it(single, votes):
                single = self._panel(Mode.VOTE, case.alone(), epoch)
        if not isinstance(single, Selection):
            single = self._route(case, epoch)
        if Mode.CONSENSUS not in case.modes or not case.asks_final_answer():
            return single
        together = self._consensus(case, is_asked_for=False)
        return together if is_better_vote(together, single, votes) else single

    def _consensus(self, case: Case, *, is_asked_for: bool) -> Selection | NoExpert:
        """Choose who is asked for a final answer, in which order. is_asked_for: the client itself names the mode."""
        mode, size = Mode.CONSENSUS, case.budgets.max_experts or DEFAULT_PANEL
        outlooks = case.outlooks(mode)
        if not outlooks:
            out = "; ".join(sorted(set(case.ruled_out.values())))
            return NoExpert(ErrorCode.OVERLOADED, f"No expert can take the request now: {out}.")
        [outlook] = outlooks
        electorate = Electorate(stated_problem(outlook), outlook, self.scorer.votes(case.roster))
        ruled_out = {**electorate.others, **outlook.ruled_out}
        outlook = replace(outlook, worth=electorate.worth(size), ruled_out=ruled_out)
        problem = stated_problem(outlook)
        plan = solve(problem, outlook.worth, clock=self._clock)
        if not plan.is_feasible:
            return self._infeasible(plan, outlook, epoch=-1)
        vote = electorate.best(problem, size, case.confidence, is_asked_for=is_asked_for)
        weights = renormalised(vote.rule.weights).tolist()
        return Selection(
            mode=mode,
            members=tuple(outlook.member(place, weight) for place, weight in zip(vote.places, weights, strict=True)),
            candidate_places=np.union1d(plan.members, vote.places),
            category=case.category,
            outlook=outlook,
            plan=plan,
            predicted=predicted_of_vote(outlook, vote),
            vote=vote.rule,
        )

    def _route(self, case: Case, epoch: int) -> Selection | NoExpert:
        """Choose one expert, of the first of the plan by what those at work have left, which a plan does not know."""
        [outlook] = case.outlooks(Mode.ROUTE)
        plan = self._route_plan(outlook, case, epoch)
        candidates = _candidates(plan, case.budgets)
        known, nearest, late = case.first_in_time(outlook, candidates)
        if candidates.size and not nearest.size:
            # Who is out already and would be late at best need not be asked.
            known = case.beside_work(known, np.union1d(case.in_time_at_best(outlook), candidates))
            plan = self._route_plan(known, case, epoch)
            nearest = candidates = _candidates(plan, case.budgets)
            late = nearest[:0]
        if not plan.is_feasible:
            return self._infeasible(plan, known, epoch)
        chosen = known.at(best_expert(known, nearest, case.affinity))
        return Selection(
            mode=Mode.ROUTE,
            members=(Member(chosen.expert, chosen.prediction, chosen.score),),
            candidate_places=np.setdiff1d(candidates, late) if late.size else candidates,
            category=case.category,
            outlook=known,
            plan=plan,
            predicted=chosen.prediction,
            late_places=late,
        )

    def _route_plan(self, outlook: Outlook, case: Case, epoch: int) -> Plan:
        """The plan where one expert answers; with `max_experts` the others are those to try if it fails."""
        if case.budgets.max_experts is None:
            return self._plan(outlook, epoch)
        return best_first(
            stated_problem(outlook), lambda places: best_expert(outlook, places, case.affinity), clock=self._clock
        )

    def _panel(self, mode: Mode, case: Case, epoch: int) -> Selection | NoExpert:
        """Choose a panel of up to `max_experts` (else `DEFAULT_PANEL`) experts that keep the budgets together."""
        roster, largest = case.roster, case.budgets.max_experts or DEFAULT_PANEL
        incapable = incapable_experts(mode, roster)
        if len(incapable) == len(roster):
            return _impossible(mode, "; ".join(sorted(set(incapable.values()))))
        if mode is Mode.MIX and largest > 1 and len(roster) > 1:
            groups = by_vocabulary(roster, incapable)
            if max(map(len, groups)) < 2:
                return _impossible(mode, f"none of the {len(roster)} experts share a vocabulary")
        plans = [(outlook, self._plan(outlook, epoch)) for outlook in case.outlooks(mode)]
        if not plans:
            out = {**incapable, **case.ruled_out}
            return NoExpert(
                ErrorCode.OVERLOADED, f"No expert can take the request now: {'; '.join(sorted(set(out.values())))}."
            )
        feasible = [
            (best_members(stated_problem(outlook), plan, outlook), outlook, plan)
            for outlook, plan in plans
            if plan.is_feasible
        ]
        if not feasible:
            outlook, plan = plans[0]
            return self._infeasible(plan, outlook, epoch)
        # Of equal values `max` takes the first plan, which is that of the smaller panel.
        places, outlook, plan = max(feasible, key=lambda found: net_value(found[1], found[0]))
        work = outlook.work
        assert work is not None  # noqa: S101 - a panel's outlook says what its members do
        members = weighted_members(places, outlook.prompt_scores.logits)
        return Selection(
            mode=mode,
            members=tuple(outlook.member(place, weight) for place, weight in members),
            candidate_places=np.union1d(plan.members, places),
            category=case.category,
            outlook=outlook,
            plan=plan,
            predicted=joint_prediction(work, [place for place, _ in members]),
        )

    def frontier(self, decided: Selection | NoExpert) -> tuple[FrontierPoint, ...]:
        """The best candidate set for each of a range of energy budgets, everything else as in the decision.

        It is empty where no considered expert's energy is known.
        """
        outlook = decided.outlook
        if outlook is None:
            return ()
        joules = outlook.forecast.energy_j.p95
        known = joules[joules > 0]  # false for the unknown, too
        if known.size == 0:
            return ()
        bounded = outlook.budgets.model_copy(update={"energy_budget_j": float(known.max())})
        problem = stated_problem(replace(outlook, budgets=bounded))
        steps = np.geomspace(0.5 * known.min(), 1.5 * known.sum(), FRONTIER_POINTS)
        effort = Effort(time_limit_s=FRONTIER_S / FRONTIER_POINTS)
        return frontier(problem, steps.tolist(), table=outlook.worth.table, effort=effort, clock=self._clock)

    def _infeasible(self, plan: Plan, outlook: Outlook, epoch: int) -> NoExpert:
        """The refusal for an infeasible plan, which names the request's budgets or the fleet's cap as the reason."""
        draw = outlook.draw
        if draw is not None and self._plan(replace(outlook, draw=None), epoch).is_feasible:
            code, message = cap_refusal(plan, draw)
            return NoExpert(code, message, plan, outlook)
        return NoExpert(ErrorCode.INFEASIBLE, infeasible_message(plan, outlook.forecast), plan, outlook)

    def _draw(
        self, demand: Demand, experts: Sequence[Expert], in_flight: Mapping[str, int], hosts: Sequence[HostPower]
    ) -> FleetDraw | None:
        """The power that the whole fleet draws now, whatever model is asked for; None without a cap."""
        everybody = None if self.fleet_watts_cap_w is None else self._roster(ANY_MODEL[0], experts)
        if self.fleet_watts_cap_w is None or everybody is None:
            return None
        prompt_tokens = self.lengths.prompt_tokens(everybody, demand)
        busy = everybody.busy(in_flight)
        # Requests in progress count as if they were like this one: a host's watts hardly depend on a request's length.
        running_w = everybody.host_w(prompt_tokens, demand.answer_tokens, busy)
        return draw_of(self.fleet_watts_cap_w, hosts, everybody, busy, running_w, sharers=self._sharers)

    def largest_context(self, model: str, experts: Sequence[Expert]) -> int | None:
        """The largest context in tokens among the `experts` that can serve `model`; None where there are none."""
        roster = self._roster(model, experts)
        return None if roster is None else roster.largest_context_tokens

    def _roster(self, model: str, experts: Sequence[Expert]) -> Roster | None:
        """The experts that can serve `model`, the same object until the fleet changes; None where there are none."""
        if experts is not self._experts:
            self._experts = experts
            former = self._former_rosters if len(self._former_rosters) < MAX_ROSTERS else {}
            self._former_rosters, self._rosters = {**former, **self._rosters}, {}
            self.scorer.fit(experts)
        if model in ANY_MODEL:
            model = ANY_MODEL[0]
        elif model not in self._rosters and len(self._rosters) > MAX_ROSTERS:
            self._rosters.clear()
            self._former_rosters.clear()
        if model not in self._rosters:
            wanted = experts if model in ANY_MODEL else [each for each in experts if can_serve(model, each)]
            self._rosters[model] = self._made_roster(self._former_rosters.pop(model, None), wanted)
        return self._rosters[model]

    def _made_roster(self, former: Roster | None, experts: Sequence[Expert]) -> Roster | None:
        """The roster of some experts, from a `former` one where there is one; None where there are no experts."""
        if not experts:
            return None
        return former.updated(experts) if former else Roster(experts, longest_queue_s=self._longest_queue_s)

    def _category_of(self, prompt_scores: PromptScores) -> str:
        """The gate's kind of prompt where the configuration has budgets for it, else the default category."""
        return prompt_scores.kind if prompt_scores.kind in self.categories and prompt_scores.kind else DEFAULT_CATEGORY

    def _plan(self, outlook: Outlook, epoch: int) -> Plan:
        """The coarse plan for an outlook, from memory where its inputs are the same."""
        forecast, worth, work = outlook.forecast, outlook.worth, outlook.work
        if forecast.unread_tokens is not None:
            # What is left changes with every step: nobody would ask for this plan again.
            return solve(stated_problem(outlook), worth, clock=self._clock)
        key = (
            epoch,
            # A panel's costs follow from the rest and these two.
            None if work is None else (work.mode, work.size),
            worth,
            forecast.roster.keys,
            forecast.busy.tobytes(),
            forecast.prompt_tokens.tobytes(),
            _hashed(forecast.answer_tokens),
            None if forecast.longest_tokens is None else forecast.longest_tokens.tobytes(),
            outlook.budgets,
            tuple(outlook.ruled_out.items()),
            outlook.draw,
        )
        plan = self._memo.get(key)
        if plan is None:
            plan = self._memo[key] = solve(stated_problem(outlook), worth, clock=self._clock)
            while len(self._memo) > min(MAX_PLANS, MAX_PLANNED // len(forecast.roster) + 1):
                self._memo.popitem(last=False)
        else:
            self._memo.move_to_end(key)
        return plan


def _hashed(tokens: int | IntArray) -> int | bytes:
    return tokens if isinstance(tokens, int) else tokens.tobytes()


def _mode(request: SelectionRequest, budgets: Budgets) -> Mode:
    """The mode that serves the request: the one in its budgets where that is possible, else `ROUTE`.

    Where no mode is set, a request with choices is served in `AUTO`.
    """
    mode = budgets.mode or (Mode.ROUTE if request.choice_tokens is None else Mode.AUTO)
    if mode is Mode.AUTO:
        return mode if request.modes & {Mode.VOTE, Mode.CONSENSUS} else Mode.ROUTE
    # A request that names an impossible mode itself was refused before; here the mode is its category's default.
    return mode if mode in request.modes else Mode.ROUTE


def _or_infeasible_now(
    refused: NoExpert, request: SelectionRequest, case: Case, mode: Mode, whole: Budgets
) -> NoExpert:
    """`refused` as it is, or as INFEASIBLE_NOW where an expert would keep the budgets but for load or a breaker.

    whole: the budgets before any time had passed. A request that has waited in vain has not asked for too much.
    """
    modes: tuple[Mode, ...] = (mode,)
    if mode is Mode.AUTO:
        modes = (Mode.VOTE, Mode.ROUTE) if Mode.VOTE in request.modes else (Mode.ROUTE,)

    def less_load(asked: SelectionRequest, budgets: Budgets) -> LessLoad | None:
        for busy in case.roster.less_busy(case.load.busy, bounds_joules=budgets.energy_budget_j is not None):
            lighter = case.with_busy(busy, asked, budgets)
            found = less_load_in((outlook for each in modes for outlook in lighter.outlooks(each)), case.load.busy)
            if found is not None:
                return found
        return None

    for budgets in (case.budgets, whole) if request.elapsed_s else (whole,):
        is_late = budgets is not case.budgets and request.elapsed_s > 0.0
        lenient = replace(request, barred={}, reserved={})
        for asked in (request, lenient) if request.barred or request.reserved else (request,):
            if (found := less_load(asked, budgets)) is not None:
                return dataclasses.replace(
                    refused,
                    code=ErrorCode.INFEASIBLE_NOW,
                    message=less_load_message(refused.message, found, request, is_late=is_late),
                    waits_s=0.0 if is_late else found.waits_s,
                    frees_in_s=found.frees_in_s,
                )
    return refused


def _impossible(mode: Mode, why: str) -> NoExpert:
    return NoExpert(ErrorCode.MODE_UNAVAILABLE, f"Mode {mode.value!r} is not possible here: {why}.")


def can_serve(model: str, expert: Expert) -> bool:
    """True where this expert can serve a client that asked for `model`."""
    return model in ANY_MODEL or model in (expert.model, expert.key)


def _candidates(plan: Plan, budgets: Budgets) -> IntArray:
    """Places of the experts that the fine level may choose from, ascending.

    Without `max_experts` that is every expert that keeps the budgets alone: one that adds nothing on average may still
    be the best for this prompt, or the first to be free.
    """
    return plan.within_limits if budgets.max_experts is None else np.sort(np.array(plan.members, dtype=np.intp))
