"""The default solver: best-first branch and bound on concave envelopes; exact, anytime, deterministic.

1. A `ValueTable` that lists every feasible panel answers at once.
2. Otherwise greedy panels give the first incumbent, and each node (experts held, experts still free) is bounded by its
   envelope's relaxation (`bounds`). Reduced costs fix experts that cannot (or must) be in a better panel.
3. A node with few free experts, or where few more can join, is solved by listing its panels (`lattice`, `listing`), as
   far as the reduced costs of their members leave any.
4. Any other node branches on a member of a *minimal infeasible subset* of its experts: every feasible panel lacks one
   of them.
5. An expert that is nowhere better and in no cost cheaper than another is held only together with that other, and one
   with as many such others as a panel has members is left out from the start (`dominance`).

`plan` is the solver, and `frontier` asks it once for each of several energy budgets; `_Search` is the tree of nodes;
`minimal_infeasible` serves its branching.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moe2.coordinator.planning import bounds, dominance, greedy, lattice, listing
from moe2.coordinator.planning.candidates import Candidates, Incumbent
from moe2.coordinator.planning.listing import UNBOUNDED, LinearBound
from moe2.coordinator.planning.problem import Problem
from moe2.coordinator.planning.proof import Plan, infeasible_plan, proven_plan
from moe2.coordinator.planning.value_table import ValueTable
from moe2.coordinator.planning.values import BoolArray, FloatArray, IntArray

_LISTED = {"coverage": 16, "best_of": 14}
_LISTED_OF_OTHERS = 12
"""Free experts whose subsets take about as long to list as a relaxation or two takes to solve."""
_STEPS = {"coverage": 1e6, "best_of": 4.4e6}
_STEPS_OF_OTHERS = 1e5
"""Elementwise steps up to which a listing pays before any relaxation; after one there is less to list."""
_WRAP_UP_S, _WRAP_UP_S_EACH, _WRAP_UP_SHARE = 0.00125, 2e-9, 0.3
"""Seconds of a time limit that are kept for thinning the panel and for the proof; seconds on top for each expert and
prompt; and the most that these may be, with what the longest step so far has taken, as a share of the limit."""
_BRANCHING_S_EACH = 1.2e-5
"""Seconds that branching takes for each free expert, during which nobody looks at the clock."""
_WIDE_GAP = 0.005
"""A gap of the first relaxation, as a share of the value, from which it pays to look for better panels at once."""
_MIN_RESTARTED = 48
"""Fewest free experts of which it does; the panels of fewer are better listed."""
_MAX_RESTARTS = 6
"""Most experts that panels are grown from then."""
_MAX_SLOW_ROWS = 8
"""Most experts whose limit on the panel's size is a row of the relaxation; branching deals with the others."""


@dataclass(frozen=True)
class Effort:
    """Limits on a search; without any it goes on until the best panel is proven."""

    time_limit_s: float | None = None
    """Seconds for the whole plan with its proof."""
    node_limit: int | None = None
    """Nodes that may be bounded."""
    gap_share: float = 0.0
    """A proven gap, as a share of the value, that is small enough to end the search."""
    list_up_to: int | None = None
    """Most free experts whose subsets are listed at once; None for what pays with the set value, 0 for no listing."""


@dataclass(frozen=True, eq=False)
class _Node:
    """The panels that hold all `held` candidates and any of the `free` ones."""

    held: tuple[int, ...]
    free: IntArray
    upper: float
    """No such panel is worth more."""
    linear: LinearBound = UNBOUNDED
    """A bound on each such panel by its members."""


class _Search:
    """One run of branch and bound over the candidates. spent: seconds since the start; None without a clock."""

    def __init__(self, candidates: Candidates, effort: Effort, spent: Callable[[], float] | None) -> None:
        self.candidates, self.effort, self.spent = candidates, effort, spent
        self.incumbent = Incumbent(candidates, [])
        self.looked_s: float | None = None
        self.longest_s = 0.0
        """Seconds of the longest stretch between two looks at the clock: what a step takes on this busy host."""
        self.nodes = 0
        self.heap: list[tuple[float, int, _Node]] = []
        self.pushed = 0
        usual = _LISTED.get(candidates.problem.value.kind, _LISTED_OF_OTHERS)
        self.list_up_to = usual if effort.list_up_to is None else effort.list_up_to

    def run(self, known: list[int]) -> float:
        """Search until done or out of effort, from a `known` panel where that is feasible; returns the proven bound."""
        if self.candidates.is_feasible(known):
            self.incumbent.offer(known)
        greedy.offer_greedy_panels(self.candidates, self.incumbent, self._late)
        everyone = np.arange(self.candidates.count)
        self._push(_Node((), everyone, self.candidates.problem.value.of_all))
        while self.heap:
            upper = -self.heap[0][0]
            if self._done(upper):
                return max(upper, self.incumbent.value)
            self._expand(heapq.heappop(self.heap)[2])
        return self.incumbent.value

    def _done(self, upper: float) -> bool:
        """True where the search can end: `upper` bounds every panel not yet looked at closely enough, or time is up."""
        value, limit = self.incumbent.value, self.effort.node_limit
        share = self.candidates.problem.value.share(upper - value, value)
        close = upper <= self.incumbent.target or share <= self.effort.gap_share
        return close or self._late() or (limit is not None and self.nodes >= limit)

    def _late(self, further_s: float = 0.0) -> bool:
        """True where only the time for finishing the plan is left, and `further_s` for something before that."""
        limit = self.effort.time_limit_s
        if limit is None or self.spent is None:
            return False
        spent_s = self.spent()
        if self.looked_s is not None:
            self.longest_s = max(self.longest_s, spent_s - self.looked_s)
        self.looked_s = spent_s
        figures = self.candidates.count * self.candidates.problem.value.prompts
        kept_s = min(_WRAP_UP_S + _WRAP_UP_S_EACH * figures + self.longest_s, _WRAP_UP_SHARE * limit)
        return spent_s >= limit - kept_s - further_s

    def _push(self, node: _Node) -> None:
        """Keep a node for later if its bound is worth a look."""
        if node.upper > self.incumbent.target:
            # Equal bounds are taken in the order they were made, so the search is the same every time.
            heapq.heappush(self.heap, (-node.upper, self.pushed, node))
            self.pushed += 1

    def _expand(self, node: _Node) -> None:
        """Bound one node, then solve it, drop it, or push its two children."""
        self.nodes += 1
        held, free = list(node.held), self._fitting(node)
        if held:
            self.incumbent.offer(held)
        if self._settled(
            _Node(node.held, free, node.upper, node.linear),
            _STEPS.get(self.candidates.problem.value.kind, _STEPS_OF_OTHERS),
        ):
            return
        base = self.candidates.problem.value.state_of(self.candidates.index[held])
        costs, room = self._relaxed_limits(held, free)
        bound = bounds.solve_by_columns(
            self.candidates.problem.value,
            self.candidates.index[free],
            base,
            costs,
            room,
            target=self.incumbent.target,
            precision=1e-5 * max(1.0, abs(self.incumbent.value)),
            stop=self._late,
        )
        if bound is None:
            self._push(node)
            return
        upper = min(bound.upper, node.upper)
        if upper <= self.incumbent.target:
            return
        if self._late():
            self._push(_Node(node.held, node.free, upper, node.linear))
            return
        self._round(held, free, bound.shares)
        gap = self.candidates.problem.value.share(upper - self.incumbent.value, upper)
        if self.nodes == 1 and len(free) >= _MIN_RESTARTED and gap > _WIDE_GAP:
            self._restart(free, bound.reduced)
        target = self.incumbent.target
        must = bound.upper - np.maximum(bound.reduced, 0.0) <= target
        cannot = bound.upper + np.minimum(bound.reduced, 0.0) <= target
        if (must & cannot).any() or upper <= target:
            return
        wish = np.zeros(self.candidates.count)
        wish[free] = bound.shares
        reduced = np.zeros(self.candidates.count)
        reduced[free] = bound.reduced
        joined = free[must].tolist()
        linear = LinearBound(bound.floor, reduced).after(joined)
        self._branch(_Node((*held, *joined), free[~must & ~cannot], upper, linear), wish)

    def _branch(self, node: _Node, wish: FloatArray) -> None:
        """Push the node's panels without a pivot expert, and those with it. wish: (n,) each candidate's share."""
        held, free = list(node.held), self._fitting(node)
        if held and not self.candidates.is_feasible(held):
            return
        if held:
            self.incumbent.offer(held)
        if self._settled(_Node(node.held, free, node.upper, node.linear)):
            return
        if self._late(_BRANCHING_S_EACH * len(free)):
            self._push(_Node(node.held, free, node.upper, node.linear))
            return
        cover = minimal_infeasible(self.candidates, held, free, wish)
        pivot = min(cover, key=lambda n: (abs(float(wish[n]) - 0.5), n))
        without = free[free != pivot]
        # Whoever is worse than the excluded expert in every way is excluded with it.
        inferior = dominance.inferiors(self.candidates, pivot, without)
        self._push(_Node(node.held, without[~inferior], node.upper, node.linear))
        superior = dominance.superiors(self.candidates, pivot)
        joining = [pivot, *(n for n in superior.tolist() if n not in held)]
        if set(joining) <= set(free.tolist()) and self.candidates.is_feasible([*held, *joining]):
            rest = free[~np.isin(free, joining)]
            self._push(_Node((*held, *joining), rest, node.upper, node.linear.after(joining)))

    def _fitting(self, node: _Node) -> IntArray:
        """The free candidates of a node that can still join its held ones."""
        pool: BoolArray = np.zeros(self.candidates.count, dtype=np.bool_)
        pool[node.free] = True
        return self.candidates.addable(list(node.held), pool)

    def _settled(self, node: _Node, max_steps: float = np.inf) -> bool:
        """Solve a node where all its experts fit together or its panels are few enough to list; True where it is done.

        Panels that a listing had no time for go back to the heap. max_steps: limit on the elementwise steps of a
        listing.
        """
        candidates, held, free = self.candidates, list(node.held), node.free
        if len(free) == 0:
            return True
        vertex = [*held, *free.tolist()]
        if candidates.is_feasible(vertex):
            self.incumbent.offer(vertex)
            return True
        if self._late():
            self._push(node)
            return True
        if len(free) <= self.list_up_to:
            value = candidates.problem.value
            base = value.state_of(candidates.index[held])
            worth = lattice.values_in_time(value, candidates.states_of(free), base, self._late)
            if worth is None:
                self._push(node)
            elif (found := lattice.best(candidates, held, free, worth)) is not None:
                self.incumbent.offer(found[0])
            return True
        if self.list_up_to == 0:
            return False
        most = candidates.max_joining(held, free)
        left = listing.list_panels(
            candidates, held, free, most, self.incumbent, self._late, max_steps=max_steps, linear=node.linear
        )
        if left is not None and left > -np.inf:
            self._push(replace(node, upper=min(left, node.upper)))
        return left is not None

    def _relaxed_limits(self, held: list[int], free: IntArray) -> tuple[FloatArray, FloatArray]:
        """The limits as linear rows over shares of the free experts (C, n), and what is left of each (C,).

        Aggregation that grows with the panel is replaced by the steepest line below it through the present size, and
        its slope is charged to every expert, which is never more than the true cost. An expert that is too slow for
        more than l others, where m could join, gives `sum x + (m - l) x_n <= m`.
        """
        candidates, size = self.candidates, len(held)
        most = candidates.max_joining(held, free)
        costs, room = [np.ones(len(free))], [float(most)]
        for row, ceiling in zip(candidates.sums, candidates.ceilings, strict=True):
            start = max(size, 1)
            drop = ceiling[start] - ceiling[start + 1 : size + most + 1]
            slope = float((drop / np.arange(1, len(drop) + 1)).min()) if len(drop) else 0.0
            left = float(ceiling[start] - row[held].sum()) + (slope if size == 0 else 0.0)
            charged = row[free] + slope
            if float(charged.sum()) > left:
                costs.append(charged)
                room.append(max(left, float(charged.max())))  # each fits alone, but for rounding
        short = most - (candidates.largest[free] - size)
        for place in np.flatnonzero(short > 0)[:_MAX_SLOW_ROWS]:
            row = np.ones(len(free))
            row[place] += short[place]
            costs.append(row)
            room.append(float(most))
        return np.array(costs), np.array(room)

    def _round(self, held: list[int], free: IntArray, shares: FloatArray) -> None:
        """Offer the panel that takes free experts by falling share as long as they fit."""
        candidates = self.candidates
        panel = [*held, *candidates.joining_in_turn(held, free[np.argsort(-shares, kind="stable")])]
        if self.nodes == 1 and panel:
            pool: BoolArray = np.zeros(candidates.count, dtype=np.bool_)
            pool[free] = True
            if candidates.value_of(panel) < self.incumbent.value:
                panel = self.incumbent.members
            panel = greedy.exchange(candidates, panel, pool, greedy.burden(candidates, max(1, len(panel))), self._late)
        if candidates.is_feasible(panel):
            self.incumbent.offer(panel)

    def _restart(self, free: IntArray, reduced: FloatArray) -> None:
        """Offer the panels that exchanges reach from some of the free experts of the largest `reduced` costs."""
        candidates = self.candidates
        pool: BoolArray = np.zeros(candidates.count, dtype=np.bool_)
        pool[free] = True
        starts = free[np.argsort(-reduced, kind="stable")]
        starts = starts[~np.isin(starts, self.incumbent.members)][:_MAX_RESTARTS]
        weight = greedy.burden(candidates, max(1, len(self.incumbent.members)))
        for start in starts.tolist():
            if self._late():
                return
            panel = greedy.grow(candidates, [start], pool, weight, self._late)
            panel = greedy.exchange(candidates, panel, pool, weight, self._late)
            if candidates.is_feasible(panel):
                self.incumbent.offer(panel)


def plan(
    problem: Problem,
    *,
    table: ValueTable | None = None,
    effort: Effort | None = None,
    clock: Callable[[], float] | None = None,
    known: Sequence[int] = (),
) -> Plan:
    """The plan with the best feasible panel and its proof; without members but with offers where nothing is feasible.

    table: values computed before, used where it covers the problem. effort: limits of the search; a time limit needs
    `clock`, which gives monotonic seconds. Without a limit the answer is exact: its value is within 1e-9 of the best.
    known: a panel (places in the problem) to start the search from, ignored where it is not feasible.

    Ties (values within 1e-9) go to the fewest joules, then the least delay, then the fewest members, then names in
    alphabetical order. A table settles ties over all panels, a search over the panels that it meets.
    """
    started = clock() if clock else 0.0
    spent = (lambda: clock() - started) if clock else None
    candidates = Candidates.of(problem)
    if candidates.count == 0:
        return infeasible_plan(problem, "branch", spent() if spent else None)
    if table is not None and table.covers(candidates) and (found := table.best(candidates)) is not None:
        members, value, nodes = found
        method, bound = "table", value
    else:
        candidates, start = _without_dominated(candidates, known)
        search = _Search(candidates, effort or Effort(), spent)
        bound = search.run(start)
        search.incumbent.thin()
        members, value, nodes = search.incumbent.members, search.incumbent.value, search.nodes
        method = "branch"
    return proven_plan(
        problem,
        candidates.index[members].tolist(),
        method=method,
        value=value,
        upper_bound=bound,
        nodes=nodes,
        elapsed_s=spent() if spent else None,
    )


@dataclass(frozen=True)
class FrontierPoint:
    """The plan for one energy budget, all other limits as in the problem: what more joules would buy."""

    energy_budget_j: float
    plan: Plan


def frontier(
    problem: Problem,
    energy_budgets_j: Sequence[float],
    *,
    table: ValueTable | None = None,
    effort: Effort | None = None,
    clock: Callable[[], float] | None = None,
) -> tuple[FrontierPoint, ...]:
    """The plans for several energy budgets, by rising budget; the value never falls, even where searches are cut short.

    table: values computed before, as in `plan`. effort: limits of the search for each budget. clock: monotonic
    seconds. Raises ProblemError for a budget that is negative or not finite.
    """
    points: list[FrontierPoint] = []
    known: tuple[int, ...] = ()
    for budget in sorted(energy_budgets_j):
        priced = replace(problem, budgets=replace(problem.budgets, energy_j=float(budget)))
        found = plan(priced, table=table, effort=effort, clock=clock, known=known)
        known = found.members
        points.append(FrontierPoint(float(budget), found))
    return tuple(points)


def _without_dominated(candidates: Candidates, known: Sequence[int]) -> tuple[Candidates, list[int]]:
    """The candidates that a search has to look at, and the `known` panel (places in the problem) among them.

    The panel is empty where some of it are no candidates.
    """
    most = candidates.max_joining([], np.arange(candidates.count))
    start = np.flatnonzero(np.isin(candidates.index, list(known)))
    left = candidates.only(dominance.undominated(candidates, most, start))
    members = np.flatnonzero(np.isin(left.index, list(known))).tolist()
    return left, members if len(members) == len(set(known)) else []


def minimal_infeasible(candidates: Candidates, held: list[int], free: IntArray, wish: FloatArray) -> list[int]:
    """A minimal subset C of the `free` candidates such that the `held` ones and C together break a limit.

    All held and free candidates together must be infeasible. Any feasible panel with all the held ones lacks a member
    of C, so it is enough to branch on C. wish: (n,) each candidate's share in a relaxation; those with the least share
    leave C first, so that the relaxation violates C most.
    """
    limits = [
        (row[free].tolist(), float(row[held].sum() + row[free].sum()), ceiling.tolist())
        for row, ceiling in zip(candidates.sums, candidates.ceilings, strict=True)
    ]
    totals = [total for _, total, _ in limits]
    size = len(held) + len(free)
    largest = candidates.largest[free].tolist()
    caps = Counter([*largest, *candidates.largest[held].tolist()])
    wanted = wish[free].tolist()
    kept = []
    for place in sorted(range(len(free)), key=lambda place: (wanted[place], place)):
        left = [total - cost[place] for total, (cost, _, _) in zip(totals, limits, strict=True)]
        caps[largest[place]] -= 1
        cap = min((cap for cap, count in caps.items() if count), default=size)
        broken = size - 1 > cap or any(
            total > ceiling[size - 1] for total, (_, _, ceiling) in zip(left, limits, strict=True)
        )
        if broken:
            totals, size = left, size - 1
        else:
            caps[largest[place]] += 1
            kept.append(int(free[place]))
    return kept
