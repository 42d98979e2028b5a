"""The fine level of a choice: which of the experts that keep the limits answer this very prompt. PURE.

The most is worth what has the largest `value - price * joules`: of one expert the score for this prompt, of a panel the
chance that at least one member answers well. The price says how much score a joule has to bring (0 where joules count
only by the limits); joules are the median of the prediction, which is closer to what is spent on average than its p95.
Among equals fewer joules decide, then the sooner end.

In `auto` the modes are compared in the same way, each by its value less the price of its joules, whatever its name.
"""

from __future__ import annotations

import numpy as np

from moe2.common.link.reports import ExpertState
from moe2.coordinator.choosing.consensus import SAME_VALUE, voted_value
from moe2.coordinator.choosing.forecast import FloatArray, Forecast, IntArray
from moe2.coordinator.choosing.panel_cost import coverage
from moe2.coordinator.choosing.prefix_affinity import Affinity
from moe2.coordinator.choosing.quality import MAX_LISTED_EXPERTS, RosterVotes
from moe2.coordinator.choosing.result import NoExpert, Outlook, Selection
from moe2.coordinator.planning import dominance, lattice
from moe2.coordinator.planning.candidates import TIE, Candidates, by_name
from moe2.coordinator.planning.problem import Problem
from moe2.coordinator.planning.proof import Plan
from moe2.coordinator.planning.values import Coverage

SAME_SCORE = 0.005
"""Scores, less the price of the joules, that differ by less count as equal."""
MAX_STARTS = 64
"""Most candidates that a panel under a price is grown from."""
SAME_JOULES = 0.05
"""Predicted joules that differ by a smaller share count as equal: predictions are no better than that."""
AUTO_MIN_GAIN = 0.05
"""What a panel has to add to the chance of a good answer for several to vote, where nothing is recorded of votes."""


def net_value(outlook: Outlook, places: list[int]) -> float:
    """The chance that a panel answers well, less the price of the joules to expect of all its members."""
    joules = outlook.expected_j[places].sum()
    return coverage(outlook.prompt_scores.scores[places]) - outlook.price_per_j * float(joules)


def best_expert(outlook: Outlook, candidates: IntArray, affinity: Affinity | None) -> int:
    """The place of the candidate with the best score, less the price of its joules; candidates: places, at least one.

    Of equals those with the fewest joules are left, unless they would have the request wait longer in a queue than
    another one takes to answer; then the soonest end, a cached beginning, fewer requests and the smaller key decide.
    """
    return int(best_experts(outlook, candidates, affinity, 1)[0])


def best_experts(outlook: Outlook, candidates: IntArray, affinity: Affinity | None, most: int) -> IntArray:
    """The places of the candidates that are as good as the best one but for their end and load, the best first."""
    if len(candidates) == 1:
        return candidates
    forecast, net = outlook.forecast, outlook.net_scores
    worth = net[candidates]
    equals: IntArray = candidates[worth >= worth.max() - SAME_SCORE]
    if len(equals) == 1:
        return equals
    roster = forecast.roster
    places = _with_fewest_joules(forecast, equals)
    seconds, busy = forecast.total_s.p50[places], forecast.busy[places]
    for n in np.flatnonzero(np.isnan(seconds)):
        # An unmeasured expert is tried first when idle, so that it gets measured, and last when busy or not in memory.
        is_ready = roster.experts[places[n]].report.state is ExpertState.READY
        seconds[n] = 0.0 if busy[n] == 0 and is_ready else np.inf
    is_uncached = places != (-1 if affinity is None else roster.place.get(affinity.expert_key, -1))
    return places[np.lexsort([by_name(roster.keys)[places], busy, is_uncached, seconds])[:most]]


def best_members(problem: Problem, plan: Plan, outlook: Outlook) -> list[int]:
    """The places of the experts of a panel that answers this very prompt, and keeps the limits together.

    Without a price they are the best by the prompt's own scores, or the coarse level's panel where that is likelier to
    hold an expert that answers well; of equal scores those with fewer joules, then with the sooner end come first.
    With a price members join while their gain is worth their joules.
    """
    scores, joules = outlook.prompt_scores.scores, outlook.expected_j
    if outlook.price_per_j > 0.0:
        found = [_priced_panel(Candidates.of(problem), scores, outlook.price_per_j * joules)]
        return max([*found, list(plan.members)], key=lambda places: net_value(outlook, places))
    end_s = np.nan_to_num(outlook.forecast.total_s.p50, nan=np.inf)
    candidates = Candidates.of(problem)
    index = candidates.index
    # Candidates are in the order of their names, which a stable sort keeps among equals.
    order = np.lexsort([end_s[index], joules[index], -scores[index]])
    rank = np.argsort(order)
    members: list[int] = []
    joining = np.arange(candidates.count)
    while joining.size:
        members.append(int(joining[rank[joining].argmin()]))
        later = rank > rank[members[-1]]
        joining = candidates.addable(members, later)
    own = index[members].tolist()
    return own if coverage(scores[own]) >= coverage(scores[list(plan.members)]) else list(plan.members)


def why_not(outlook: Outlook, place: int, chosen: int) -> str:
    """The reason in words why the expert at `place`, which keeps the limits, answers less well than the chosen one."""
    net, scores = outlook.net_scores, outlook.prompt_scores.scores
    if net[chosen] > net[place] + SAME_SCORE:
        if scores[chosen] > scores[place]:
            return "scores lower"
        return "its score is not worth its joules at their present price"
    joules = outlook.expected_j
    if joules[place] > joules[chosen] * (1 + SAME_JOULES):
        return "takes more joules"
    return "scores lower" if net[chosen] > net[place] else "is predicted to finish later"


def is_cheapest(selection: Selection) -> bool:
    """True where no candidate could have answered for fewer joules than the selection is expected to take."""
    joules = selection.outlook.expected_j
    return bool(joules[list(selection.places)].sum() <= joules[selection.candidate_places].min())


def saving_j(selection: Selection) -> float | None:
    """Joules between the dearest and the cheapest candidate whose joules are known; None where there are not two."""
    places = selection.candidate_places
    is_known = ~np.isnan(selection.outlook.forecast.energy_j.p50[places])
    known = selection.outlook.expected_j[places][is_known]
    return float(known.max() - known.min()) if len(known) > 1 else None


def enough_per_j(selection: Selection) -> float | None:
    """The price of a joule from which on the cheapest candidate answers; None for panels, and where all cost alike."""
    outlook, places = selection.outlook, selection.candidate_places
    return None if outlook.work else price_of_thrift(outlook.prompt_scores.scores[places], outlook.expected_j[places])


def price_of_thrift(scores: FloatArray, joules: FloatArray) -> float | None:
    """The price of a joule from which on the cheapest of several answers; None where none takes notably more joules.

    scores, joules: (N,), N at least 1. It is the most that another one's score is ahead for each joule that it takes
    more, and 0 where none is ahead. Joules that are not finite are left out.
    """
    known = np.isfinite(joules)
    if not known.any():
        return None
    cheapest = int(np.where(known, joules, np.inf).argmin())
    is_dearer = known & (joules > joules[cheapest] * (1 + SAME_JOULES))
    if not is_dearer.any():
        return None
    ahead = (scores[is_dearer] - scores[cheapest]) / (joules[is_dearer] - joules[cheapest])
    return max(0.0, float(ahead.max()))


def _with_fewest_joules(forecast: Forecast, places: IntArray) -> IntArray:
    """Those of the places where the request takes the fewest joules, and those whose joules are unknown.

    An expert with a queue is left out where one without a queue ends sooner: thrift must not pile up requests.
    """
    joules, end_s = forecast.energy_j.p50[places], forecast.total_s.p50[places]
    has_room = forecast.busy[places] < forecast.roster.slots[places]
    # Whatever is unknown is never larger.
    prompt = has_room | ~(end_s > np.fmin.reduce(end_s[has_room], initial=np.inf))
    most = np.fmin.reduce(joules[prompt], initial=np.inf) * (1 + SAME_JOULES)
    return np.asarray(places[prompt & ~(joules > most)])


def _priced_panel(candidates: Candidates, scores: FloatArray, dues: FloatArray) -> list[int]:
    """The places of the feasible panel with the largest coverage less dues; ties go to fewer joules, then less delay.

    scores, dues: (N,) by place in the problem. A panel has at least one member, however dear it is. It is exact up to
    `MAX_LISTED_EXPERTS` candidates; of more, the best is taken that adding and exchanging members finds. Candidates
    that others can replace at no higher dues are not needed.
    """
    everyone = np.arange(candidates.count)
    panels = candidates.valued(Coverage(scores[None]))
    most = panels.max_joining([], everyone)
    candidates = panels.only(dominance.undominated(panels, most, everyone[:0], dues[panels.index]))
    p, owed = scores[candidates.index], dues[candidates.index]
    if candidates.count <= MAX_LISTED_EXPERTS:
        value = Coverage(p[None])
        worth = lattice.values(value, value.states, value.empty_state()) - lattice.sums(owed)
        found = lattice.best(candidates, [], np.arange(candidates.count), worth)
        members = found[0] if found else []
    else:
        members = _exchanged(candidates, p, owed)
    return [int(place) for place in candidates.index[members]]


def _exchanged(candidates: Candidates, p: FloatArray, owed: FloatArray) -> list[int]:
    """A panel of many candidates that neither another member, nor one fewer, nor one in place of one makes better.

    p, owed: (n,) scores and dues of the candidates. It is the best that is found from each candidate in turn, or of
    many from the `MAX_STARTS` that are worth most alone.
    """
    everybody = np.ones(candidates.count, dtype=np.bool_)

    def worth(members: list[int]) -> float:
        return coverage(p[members]) - float(owed[members].sum())

    def extended(members: list[int]) -> list[int]:
        """The panel with every member whose gain exceeds its dues, the largest gain first."""
        while True:
            joining = candidates.addable(members, everybody)
            gains = float(np.prod(1 - p[members])) * p[joining] - owed[joining]
            if joining.size == 0 or gains.max() <= 0.0:
                return members
            members = [*members, int(joining[gains.argmax()])]

    def improved(members: list[int]) -> list[int]:
        shorter = ([other for other in members if other != member] for member in members)
        return max((extended(rest) for rest in shorter if rest), key=worth, default=members)

    starts = np.sort(np.argsort(owed - p, kind="stable")[:MAX_STARTS]).tolist()
    best = max((extended([start]) for start in starts), key=worth)
    while worth(better := improved(best)) > worth(best) + TIE:
        best = better
    return best


def is_worth_it(panel: Selection, votes: RosterVotes) -> bool:
    """True where a panel that scores choices is worth more than its best member, less the price of its joules.

    Its value is what recorded votes of its members reach. Where there are none it is the chance that any member answers
    well, which promises too much and so has to gain `AUTO_MIN_GAIN`; and as a prior from a model's size says nothing of
    what several models know together, the gate must know every member then.
    """
    places, outlook = _places(panel), panel.outlook
    if len(places) < 2:
        return False
    if voted_value(outlook, votes, places) is not None:
        return _net(panel, places, votes) >= max(_net(panel, [place], votes) for place in places) + SAME_VALUE
    alone = max(net_value(outlook, [place]) for place in places)
    is_known = bool(outlook.prompt_scores.trained[places].all())
    return is_known and net_value(outlook, places) - alone >= AUTO_MIN_GAIN


def is_better_vote(together: Selection | NoExpert, single: Selection | NoExpert, votes: RosterVotes) -> bool:
    """True where a vote over final answers of several has more value, less the price of its joules, than `single`."""
    if not isinstance(together, Selection) or together.vote is None or len(together.members) < 2:
        return False
    if not isinstance(single, Selection):
        return True
    net = together.vote.value - together.outlook.price_per_j * together.vote.expected_j
    return net >= _net(single, _places(single), votes) + SAME_VALUE


def _net(decided: Selection, places: list[int], votes: RosterVotes) -> float:
    """The value of the experts at `places` less the price of the joules to expect of them all."""
    outlook = decided.outlook
    value = voted_value(outlook, votes, places)
    if value is None:
        value = float(outlook.prompt_scores.scores[places].max())
    return value - outlook.price_per_j * float(outlook.expected_j[places].sum())


def _places(decided: Selection) -> list[int]:
    """The members' places in the roster."""
    keys = decided.outlook.forecast.roster.keys
    return [keys.index(member.expert.key) for member in decided.members]
