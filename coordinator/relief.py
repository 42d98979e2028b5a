"""What less load would do for a request whose budgets nobody keeps now. PURE."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from moe2.coordinator.choice import Outlook
from moe2.coordinator.coarse import problem_of
from moe2.coordinator.planning.candidates import Candidates
from moe2.coordinator.roster import IntArray


@dataclass(frozen=True)
class Relief:
    """An expert that keeps the budgets once less is to do there.

    waits_s: for so long the request can wait for that; inf where its budgets do not shrink meanwhile. frees_in_s: until
    such an expert has a free slot, as predicted; None where no speed is known.
    """

    expert: str
    waits_s: float
    frees_in_s: float | None


def relief_in(lighter: Iterable[Outlook], busy: IntArray) -> Relief | None:
    """The expert that the request can wait for longest; None where less load is no help.

    lighter: the request as it would look with less load. busy: (N,) requests that are there now.
    """
    found = [relief for outlook in lighter for relief in _reliefs(outlook, busy)]
    if not found:
        return None
    longest = max(found, key=lambda relief: relief.waits_s)
    known_s = [relief.frees_in_s for relief in found if relief.frees_in_s is not None]
    return Relief(longest.expert, longest.waits_s, min(known_s, default=None))


def _reliefs(outlook: Outlook, busy: IntArray) -> Iterator[Relief]:
    roster = outlook.forecast.roster
    problem = problem_of(outlook.forecast, outlook.worth, outlook.budgets, outlook.ruled_out, outlook.work)
    limits, costs = problem.budgets, problem.costs
    frees_s = roster.frees_in_s(busy)
    # A panel is feasible only if each of its members is alone.
    for place in Candidates.of(problem).index.tolist():
        waits_s = min(
            math.inf if limits.delay_s is None else limits.delay_s - float(costs.delay_s[place]),
            math.inf if limits.first_token_s is None else limits.first_token_s - float(costs.first_token_s[place]),
        )
        free_s = float(frees_s[place])
        yield Relief(roster.keys[place], max(0.0, waits_s), None if math.isnan(free_s) else free_s)
