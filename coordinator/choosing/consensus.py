"""The choice for a vote over final answers: who is asked, in which order, and when asking ends. PURE.

What a vote of a set of experts is worth is replayed from recorded answers (`moe2.coordinator.gate.votes`). Each
model is asked once, by the expert that takes the fewest joules, and those come first whose vote weighs most for its
joules. Members that gain less than `SAME_VALUE` are not asked. The set with the largest `value - price * joules` is
taken; its joules are those to expect, as most votes are settled before everybody was asked. Where nobody asked for a
vote, it has to lead the best expert alone by the standard error of what it gains. Where too few recorded answers say
what votes reach, a client that asks for a vote gets one: a second member is asked in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from moe2.common.cost import Quantiles
from moe2.coordinator.choosing.forecast import FloatArray, IntArray, Prediction
from moe2.coordinator.choosing.panel_cost import joint_prediction
from moe2.coordinator.choosing.quality import RosterVotes, VotedWorth
from moe2.coordinator.choosing.result import Outlook, VoteRule
from moe2.coordinator.gate.votes import MAX_VOTERS, VotePlans
from moe2.coordinator.planning.candidates import Candidates
from moe2.coordinator.planning.problem import Problem, exceeds
from moe2.coordinator.planning.values import Listed

MAX_MODELS = 8
"""Models among which voters are looked for."""
SAME_VALUE = 1e-4
"""Values, less the price of the joules, that differ by less count as equal, and the fewer joules win.

It tells apart sets of which one adds nothing, and no more: with 0.001 and no price, four small models on MMLU-Pro were
asked for 1.7 % fewer joules and lost 0.2 points, over five held-out fifths of the rows."""
MIN_RECORDED = 100
"""So many recorded prompts have to speak for a vote before it is preferred to one expert's answer."""
PRIOR_DOUBT = 0.1
"""A vote that is asked for is taken on priors alone where they say that it is behind one expert by at most so much.

It is what 1.5 doublings of the parameters make of a score of 0.5: models of about one size vote, and a large one is not
outvoted by two small ones."""
ALWAYS = 0.999
"""The share of prompts from which a member counts as asked in any case: shares are means of single precision."""


@dataclass(frozen=True)
class ChosenVote:
    """The voters, in the order in which they are asked, with the rule of their vote."""

    places: tuple[int, ...]
    """Places in the roster."""
    rule: VoteRule
    recorded: float
    """Recorded prompts that all voters have answered."""


class Electorate:
    """The experts that may vote on one request: for each of a few models the one to ask.

    problem: states who keeps the limits; its value does not matter. votes: what is known of the roster's votes.
    """

    def __init__(self, problem: Problem, outlook: Outlook, votes: RosterVotes) -> None:
        self._problem, self._outlook, self._votes = problem, outlook, votes
        self._joules = outlook.expected_j
        self._scores = votes.by_model(outlook.prompt_scores.scores)
        self._weights = votes.replay.record.weights(self._scores)
        self._place_of = self._cheapest()
        """The place in the roster of the expert that votes for each model."""
        self._order = self._asked_first()
        """The models that are asked, in their order."""

    @property
    def others(self) -> dict[str, str]:
        """The reasons by key of the experts that are not asked."""
        keys, reasons = self._problem.names, {}
        for place, key in enumerate(keys):
            model = int(self._votes.columns[place])
            if key in self._problem.ruled_out or (model in self._order and self._place_of[model] == place):
                continue
            if model in self._order:
                reasons[key] = f"{keys[self._place_of[model]]} votes for its model"
            elif model in self._place_of:
                reasons[key] = "the votes of other models weigh more for their joules"
        return reasons

    def worth(self, size: int) -> VotedWorth:
        """The worth of sets of voters, averaged over the kinds of prompts."""
        if not self._order:
            return VotedWorth(Listed(len(self._problem.names), (), [0.0]))
        plans = self._plans(size)
        count = plans.score.shape[0]
        values = plans.values(self._votes.replay.mean_scores[None], np.full((1, count), 1 / count))[0]
        bit = {model: 1 << number for number, model in enumerate(self._order)}
        table = np.zeros(1 << len(self._order))
        for members, value in zip(plans.members.tolist(), values.tolist(), strict=True):
            mask = sum(bit[model] for model in members if model >= 0)
            table[mask] = max(table[mask], value)
        places = [self._place_of[model] for model in self._order]
        return VotedWorth(Listed(len(self._problem.names), places, table))

    def best(self, problem: Problem, size: int, wanted: float | None, *, is_asked_for: bool) -> ChosenVote:
        """The vote with the largest value less the price of its joules, among those that keep the limits.

        problem: has a voter that keeps them. wanted: probability of being right at which the client wants the asking
        to end; None leaves that to the price. is_asked_for: the client itself asks for a vote, so that several answer
        where little is recorded; else `MIN_RECORDED` prompts have to speak for a vote of several, and its lead over one
        has to be larger than its standard error.
        """
        plans, price_per_j = self._plans(size), self._outlook.price_per_j
        kinds = self._outlook.prompt_scores.kind_shares
        values = plans.values(self._scores[None], kinds[None])
        joules = plans.expected(self._of_voters(self._joules)[None], kinds[None])
        usable = _keeps_limits(problem, np.where(plans.members >= 0, self._of_voters_places()[plans.members], -1))
        if not is_asked_for:
            usable &= (plans.recorded >= MIN_RECORDED) | (plans.members[:, 1:] < 0).all(axis=1)
        if wanted is not None:
            usable &= np.isinf(plans.wanted)
        if is_asked_for:
            usable = _with_a_second_opinion(plans, values[0] - price_per_j * joules[0], usable, kinds)
        doubts = None if is_asked_for else plans.doubts(kinds[None])
        chosen = int(best_plan(plans, values, joules, price_per_j, usable, doubts)[0])
        models = [model for model in plans.members[chosen].tolist() if model >= 0]
        ends_at = float(plans.wanted[chosen]) if wanted is None else wanted
        why = _why_alone(plans, values[0], joules[0], usable, chosen) if is_asked_for and len(models) == 1 else None
        return ChosenVote(
            places=tuple(self._place_of[model] for model in models),
            rule=VoteRule(
                weights=tuple(float(self._weights[model]) for model in models),
                other=self._votes.replay.record.other,
                wanted=None if np.isinf(ends_at) else ends_at,
                value=float(values[0, chosen]),
                expected_j=float(joules[0, chosen]),
                asked=tuple(float(share) for share in (kinds @ plans.asked[:, chosen])[: len(models)]),
                note=why,
            ),
            recorded=float(plans.recorded[chosen]),
        )

    def _plans(self, size: int) -> VotePlans:
        return self._votes.replay.plans(self._order, min(size, MAX_VOTERS, len(self._order)))

    def _cheapest(self) -> dict[int, int]:
        """The place of each model's expert that keeps the limits with the fewest joules, then with the sooner end."""
        end_s = np.nan_to_num(self._outlook.forecast.total_s.p50, nan=np.inf)
        found: dict[int, int] = {}
        places = Candidates.of(self._problem).index.tolist()
        for place in sorted(places, key=lambda place: (self._joules[place], end_s[place], self._problem.names[place])):
            found.setdefault(int(self._votes.columns[place]), place)
        return found

    def _asked_first(self) -> tuple[int, ...]:
        """The models that are asked, those first whose vote weighs most for its joules.

        Of more than `MAX_MODELS` the likeliest to be right are kept, and among these the cheapest one in any case.
        """
        models = sorted(self._place_of, key=lambda model: (-self._scores[model], self._place_of[model]))

        def rank(model: int) -> tuple[float, int]:
            return -float(self._weights[model]) / max(float(self._joules[self._place_of[model]]), 1e-9), model

        cheap = sorted(models, key=rank)[: MAX_MODELS // 2]
        kept = [*cheap, *(model for model in models if model not in cheap)][:MAX_MODELS]
        return tuple(sorted(kept, key=rank))

    def _of_voters_places(self) -> IntArray:
        """(M,) the place of each model's voter; 0 for models without one, which are in no plan."""
        places: IntArray = np.zeros(self._scores.size, dtype=np.int64)
        for model, place in self._place_of.items():
            places[model] = place
        return places

    def _of_voters(self, figures: FloatArray) -> FloatArray:
        """(M,) the figure of each model's voter, from those of all experts (N,)."""
        return np.asarray(figures[self._of_voters_places()])


def best_plan(
    plans: VotePlans,
    values: FloatArray,
    joules: FloatArray,
    price_per_j: float,
    usable: npt.NDArray[np.bool_],
    doubts: FloatArray | None = None,
) -> npt.NDArray[np.intp]:
    """(B,) the number of the plan with the largest value less the price of its joules, for each of B prompts.

    values, joules: (B, T) of each plan. usable: (T,) False for plans that may not be taken; one at least may. Of plans
    that differ by less than `SAME_VALUE` the one with the fewest joules is taken.

    doubts: (B, T) by how much the best vote has to lead the best expert alone; None where any lead will do. The best of
    many votes is one that was lucky on the recorded prompts, so that small leads do not come.
    """
    if price_per_j == 0.0:
        # Where joules have no price, nothing speaks for an end before the outcome is certain.
        usable = usable & np.isinf(plans.wanted)
    net = np.where(usable, values - price_per_j * joules, -np.inf)
    if doubts is not None:
        every, is_vote = np.arange(len(net)), plans.members[:, 1:].max(axis=1, initial=-1) >= 0
        of_votes = np.where(is_vote, net, -np.inf)
        best = of_votes.argmax(axis=1)
        lead = of_votes[every, best] - np.where(is_vote, -np.inf, net).max(axis=1)
        net = np.where(is_vote & (lead < doubts[every, best])[:, None], -np.inf, net)
    equals = net >= net.max(axis=1, keepdims=True) - SAME_VALUE
    return np.asarray(np.where(equals, joules, np.inf).argmin(axis=1))


def voted_value(outlook: Outlook, votes: RosterVotes, places: Sequence[int]) -> float | None:
    """The probability that a vote of the experts at `places` is right; None where too few recorded answers say so."""
    models = tuple(sorted({int(votes.columns[place]) for place in places}))
    if len(models) > MAX_VOTERS or len(votes.replay.record.kinds) < MIN_RECORDED:
        return None
    plans = votes.replay.plans(models, len(models))
    chosen = np.flatnonzero((plans.members >= 0).sum(axis=1) == len(models))
    if not len(chosen) or plans.recorded[chosen[-1]] < MIN_RECORDED:
        return None
    scores = votes.by_model(outlook.prompt_scores.scores)
    # The last rule of a set is the one that ends only when the outcome is certain.
    return float(plans.values(scores[None], outlook.prompt_scores.kind_shares[None])[0, chosen[-1]])


def predicted_of_vote(outlook: Outlook, vote: ChosenVote) -> Prediction:
    """What a vote takes: at the median the joules to expect, at p95 those of all voters.

    Voters are asked one after the other, or at the same time where the limits on seconds leave no time for that.
    """
    assert outlook.work is not None  # noqa: S101 - a panel's outlook says what its members do
    together = joint_prediction(outlook.work, vote.places)
    energy_j = together.energy_j
    if energy_j is not None:
        # Usual answers may be longer than the planned ones that p95 stands for.
        energy_j = Quantiles(min(vote.rule.expected_j, energy_j.p95), energy_j.p95)
    parts = [outlook.forecast.total_s.at(place) for place in vote.places]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return replace(together, energy_j=energy_j)
    one_by_one = Quantiles(
        sum(part.p50 * share for part, share in zip(known, vote.rule.asked, strict=True)),
        sum(part.p95 for part in known),
    )
    end_s = outlook.budgets.soonest_end_s
    if end_s is not None and one_by_one.p95 > end_s:
        return replace(together, energy_j=energy_j)
    return replace(together, ttft_s=one_by_one, total_s=one_by_one, energy_j=energy_j)


def _with_a_second_opinion(
    plans: VotePlans, net: FloatArray, usable: npt.NDArray[np.bool_], kinds: FloatArray
) -> npt.NDArray[np.bool_]:
    """(T,) the usable plans that may be taken where the client asks for a vote.

    Where a usable set has been recorded often enough, values are to be believed, and all remain. Else priors cannot
    tell that one member knows better than several: those remain of which a second member is asked whatever the first
    one says, and that are at most `PRIOR_DOUBT` behind; without such a plan all remain. Of two members the second one
    never decides, so that three take part.

    net: (T,) value less the price of the joules. kinds: (K,) the share of each kind.
    """
    sizes = (plans.members >= 0).sum(axis=1)
    if (usable & (plans.recorded >= MIN_RECORDED) & (sizes > 1)).any() or sizes.max() <= 2:
        return usable
    together = usable & (sizes > 2) & (kinds @ plans.asked[:, :, 1] >= ALWAYS)
    together &= net >= net[usable].max(initial=-np.inf) - PRIOR_DOUBT
    return together if together.any() else usable


def _why_alone(
    plans: VotePlans, values: FloatArray, joules: FloatArray, usable: npt.NDArray[np.bool_], single: int
) -> str:
    """Why the best usable plan, number `single`, has one member, in a sentence for the client.

    values, joules: (T,) of each plan. usable: (T,) False for plans that may not be taken.
    """
    sizes = (plans.members >= 0).sum(axis=1)
    several = usable & (sizes > 1)
    if not several.any():
        if sizes.max() < plans.members.shape[1]:
            return "One member was chosen: no other model is right often enough for its vote to weigh anything."
        return "One member was chosen: no other model that is here may vote beside it within the request's limits."
    other = int(np.where(several, values, -np.inf).argmax())
    recorded = plans.recorded[other]
    source = f"By {recorded:.0f} recorded prompts"
    if recorded < MIN_RECORDED:
        source += " and what is assumed of such models"
    told = f"{source} it is right alone with probability {values[single]:.3f}, the best vote of several with "
    told += f"{values[other]:.3f}"
    if values[other] <= values[single] + SAME_VALUE:
        return f"One member was chosen. {told}."
    return (
        f"One member was chosen. {told}, which is not worth the price of {joules[other]:.3g} J instead of "
        f"{joules[single]:.3g} J."
    )


def _keeps_limits(problem: Problem, members: IntArray) -> npt.NDArray[np.bool_]:
    """(T,) True for the sets that keep all limits together. members: (T, S) places, -1 after the last one."""
    counted = members >= 0
    sizes = counted.sum(axis=1)
    fits = sizes <= problem.largest_panel
    for total in problem.sum_limits():
        sums = np.where(counted, total.cost[members], 0.0).sum(axis=1) + total.by_size[sizes]
        fits &= ~exceeds(sums, total.limit)
    for most in problem.max_limits():
        largest = np.where(counted, most.cost[members], 0.0).max(axis=1) + most.by_size[sizes]
        fits &= ~exceeds(largest, most.limit)
    return np.asarray(fits)
