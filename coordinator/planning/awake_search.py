"""The exact solver of who is kept awake: best-first branch and bound over `AwakeProblem`; anytime and deterministic.

A node is a set of experts held and a set still free; it stands for all sets between the two. It is dropped where its
held experts break a limit (they are not in G, so nothing above them is), where all its experts miss a need (they are
not in H, so nothing below them is), or where its bound is no better than the best set found. Where all its experts
keep the limits they are its best set, because the value never falls. `most_valuable` finds the largest value;
`least_standing` the fewest watts at which a value can be had, as a series of such searches.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from moe2.coordinator.planning import bounds
from moe2.coordinator.planning.awake import AwakeProblem
from moe2.coordinator.planning.bounds import envelope
from moe2.coordinator.planning.candidates import tie_width
from moe2.coordinator.planning.problem import ROUNDING
from moe2.coordinator.planning.proof import Status
from moe2.coordinator.planning.search import Effort
from moe2.coordinator.planning.values import BoolArray, FloatArray, IntArray

_MOST_SWAPS = 400
"""Exchanges tried to improve the first sets; the search itself finds what they miss."""


@dataclass(frozen=True)
class AwakeSet:
    """The set of experts that a solver chose, with its proof."""

    members: tuple[int, ...]
    """Places of the members; empty where no set is feasible, or where nobody needs to be awake."""
    status: Status
    value: float | None
    """None where no set is feasible, or none was found in time."""
    upper_bound: float | None
    """No feasible set is worth more; None where none is feasible."""
    standing_w: float | None
    """Watts of the set; None where there is none."""
    least_w: float | None = None
    """No feasible set of the value that was asked for draws fewer watts; None where that was not asked."""
    nodes: int = 0
    elapsed_s: float | None = None

    @property
    def gap_share(self) -> float | None:
        """The proven gap as a share of the bound; None where there is no set."""
        if self.value is None or self.upper_bound is None:
            return None
        return max(0.0, self.upper_bound - self.value) / self.upper_bound if self.upper_bound > 0.0 else 0.0


def most_valuable(
    problem: AwakeProblem, *, effort: Effort | None = None, clock: Callable[[], float] | None = None
) -> AwakeSet:
    """The feasible set with the largest value; ties (within 1e-9) go to fewer watts among the sets that were met.

    effort: limits of the search; a time limit needs `clock`, which gives monotonic seconds. Without limits the answer
    is exact.
    """
    started = clock() if clock else 0.0
    search = _Search(problem, effort or Effort(), clock)
    bound = search.run()
    return search.answer(bound, clock() - started if clock else None)


def least_standing(
    problem: AwakeProblem, floor: float, *, effort: Effort | None = None, clock: Callable[[], float] | None = None
) -> AwakeSet:
    """The feasible set that draws the fewest watts of those worth at least `floor`; `least_w` is its proof.

    It asks again and again for a set within fewer watts: whether one is worth `floor` is what `most_valuable` proves
    or refutes. The series ends where nothing is left between what was found and what was refuted.
    """
    effort = effort or Effort()
    started = clock() if clock else 0.0
    best: BoolArray | None = None
    refuted_w, nodes, most_w = 0.0, 0, problem.most_w
    exact, halves = True, False
    while True:
        left_s = None
        if effort.time_limit_s is not None and clock:
            left_s = effort.time_limit_s - (clock() - started)
            if left_s <= 0.0:
                exact = False
                break
        search = _Search(replace(problem, most_w=most_w), replace(effort, time_limit_s=left_s, gap_share=0.0), clock)
        search.wanted = floor
        search.run()
        nodes += search.nodes
        if search.best is not None and search.best_value >= floor - tie_width(floor):
            best = search.slimmed(search.best, floor)
        elif search.was_cut:
            exact = False
            break
        elif best is None and most_w == problem.most_w:
            return AwakeSet((), Status.INFEASIBLE, None, None, None, None, nodes, clock() - started if clock else None)
        else:
            refuted_w = most_w if most_w is not None else 0.0
        if best is None:
            break
        found_w = problem.standing_w(best)
        if found_w - refuted_w <= 1e-6 * max(1.0, found_w):
            break
        # Just below what was found proves it at once where it is the least; half-way finds better ones sooner.
        halves = not halves
        most_w = (found_w + refuted_w) / 2 if halves and nodes > 1 else found_w * (1 - 1e-7) - 1e-9
        if most_w <= refuted_w:
            break
    spent_s = clock() - started if clock else None
    if best is None:
        return AwakeSet((), Status.BOUNDED, None, None, None, refuted_w, nodes, spent_s)
    value = problem.worth(best)
    return AwakeSet(
        members=tuple(np.flatnonzero(best).tolist()),
        status=Status.OPTIMAL if exact else Status.BOUNDED,
        value=value,
        upper_bound=None,
        standing_w=problem.standing_w(best),
        least_w=problem.standing_w(best) if exact else refuted_w,
        nodes=nodes,
        elapsed_s=spent_s,
    )


@dataclass(frozen=True, eq=False)
class _Node:
    """The sets that hold all of `held` and any of `free`, (N,) each."""

    held: BoolArray
    free: BoolArray
    upper: float
    """No such set is worth more."""


class _Search:
    """One run of branch and bound."""

    def __init__(self, problem: AwakeProblem, effort: Effort, clock: Callable[[], float] | None) -> None:
        self.problem, self.effort, self.clock = problem, effort, clock
        self.started = clock() if clock else 0.0
        self.best: BoolArray | None = None
        self.best_value = -np.inf
        self.wanted = np.inf
        """A value that is enough: the search ends when it has a set worth it, or knows that there is none."""
        self.nodes = 0
        self.was_cut = False
        self.heap: list[tuple[float, int, _Node]] = []
        self.pushed = 0
        self.order = np.array(sorted(range(len(problem.names)), key=problem.names.__getitem__))

    @cached_property
    def inferior(self) -> BoolArray:
        """(N, N) which experts leave with which; only a search that branches needs it."""
        return _inferior(self.problem)

    def run(self) -> float:
        """Search until done or out of effort; returns a bound on every feasible set, -inf where none is feasible."""
        problem = self.problem
        held = problem.mask(problem.pinned)
        free = ~held & ~problem.mask(problem.ruled_out)
        self._push(_Node(held, free, problem.worth(held | free)))
        while self.heap:
            upper = -self.heap[0][0]
            if self._done(upper):
                return max(upper, self.best_value)
            self._expand(heapq.heappop(self.heap)[2])
        return self.best_value

    def answer(self, bound: float, elapsed_s: float | None) -> AwakeSet:
        """The best set that was found, with the bound that `run` has proven."""
        if self.best is None:
            status = Status.BOUNDED if self.was_cut else Status.INFEASIBLE
            upper = bound if self.was_cut else None
            return AwakeSet((), status, None, upper, None, None, self.nodes, elapsed_s)
        best = self.slimmed(self.best, self.best_value)
        proven = bound <= self.best_value + tie_width(self.best_value)
        return AwakeSet(
            members=tuple(np.flatnonzero(best).tolist()),
            status=Status.OPTIMAL if proven else Status.BOUNDED,
            value=self.best_value,
            upper_bound=max(bound, self.best_value),
            standing_w=self.problem.standing_w(best),
            nodes=self.nodes,
            elapsed_s=elapsed_s,
        )

    def slimmed(self, best: BoolArray, floor: float) -> BoolArray:
        """The set `best` without members that neither the value `floor` nor a need asks for, costly ones first."""
        problem, members = self.problem, best.copy()
        costs = problem.expert_w + problem.host_w[problem.host]
        for place in sorted(np.flatnonzero(members).tolist(), key=lambda n: (-costs[n], problem.names[n])):
            members[place] = False
            lacks = place in problem.pinned or problem.worth(members) < floor - tie_width(floor)
            if lacks or problem.unmet(members):
                members[place] = True
        return members

    # --- The tree ---------------------------------------------------------------------------------------------------

    def _target(self) -> float:
        """The value above which a bound has to be for its node to be worth a look."""
        floor = self.wanted - 2 * tie_width(self.wanted) if np.isfinite(self.wanted) else -np.inf
        return max(self.best_value + tie_width(self.best_value), floor)

    def _done(self, upper: float) -> bool:
        """True where nothing better is left, the set is good enough, or the effort is spent (`was_cut`)."""
        if self.best_value >= self.wanted - tie_width(self.wanted):
            return True
        if self.best is not None and upper - self.best_value <= self.effort.gap_share * abs(upper):
            return True
        late = self.effort.node_limit is not None and self.nodes >= self.effort.node_limit
        if late or self._late():
            self.was_cut = True
            return True
        return False

    def _late(self) -> bool:
        """True where the time is up."""
        limit_s = self.effort.time_limit_s
        return limit_s is not None and self.clock is not None and self.clock() - self.started >= limit_s

    def _push(self, node: _Node) -> None:
        """Keep a node for later if its bound is worth a look."""
        if node.upper > self._target():
            heapq.heappush(self.heap, (-node.upper, self.pushed, node))
            self.pushed += 1

    def _expand(self, node: _Node) -> None:
        """Drop one node, solve it, or push its two children."""
        self.nodes += 1
        problem = self.problem
        fixed = self._fixed(node.held, node.free)
        if fixed is None:
            return
        held, free = fixed
        vertex = held | free
        upper = min(node.upper, problem.worth(vertex))
        if upper <= self._target():
            return
        if problem.keeps_limits(vertex):
            self._offer(vertex)
            return
        if not free.any():
            return
        places = np.flatnonzero(free)
        base = problem.value.state_of(np.flatnonzero(held))
        costs, room = self._relaxed_limits(held, places)
        bound = bounds.solve(
            envelope(problem.value, problem.value.states[places], base),
            costs,
            room,
            target=max(self._target(), 0.0),
            precision=1e-5 * max(1e-3, abs(upper)),
            stop=self._late,
        )
        upper = min(upper, bound.upper)
        if upper <= self._target():
            return
        self._grow(held, free, bound.shares, improve=self.nodes == 1)
        self._branch(_Node(held, free, upper), places, bound.shares)

    def _branch(self, node: _Node, places: IntArray, shares: FloatArray) -> None:
        """Push the node's sets with the expert whose share is least decided, and those without it."""
        pivot = int(places[np.lexsort((self.order[places], np.abs(shares - 0.5)))[0]])
        chosen = self.problem.mask([pivot])
        without = node.free & ~chosen & ~self.inferior[pivot]
        self._push(_Node(node.held, without, node.upper))
        self._push(_Node(node.held | chosen, node.free & ~chosen, node.upper))

    def _fixed(self, held: BoolArray, free: BoolArray) -> tuple[BoolArray, BoolArray] | None:
        """What is held and free after all that follows at once; None where no set of the node is feasible.

        Experts that do not fit beside the held ones leave, and those without whom a need is missed are held.
        """
        problem = self.problem
        while True:
            if not problem.keeps_limits(held):
                return None
            free = free & self._fitting(held)
            vertex = held | free
            must = np.zeros_like(held)
            for need in problem.needs:
                brought = float(need.share[vertex].sum())
                least = need.least - 1e-9 * max(1.0, abs(need.least))
                if brought < least:
                    return None
                must |= free & (brought - need.share < least)
            if not must.any():
                break
            held, free = held | must, free & ~must
        if problem.most_w is not None and self._least_w(held, free) > problem.most_w * (1 + 1e-9) + 1e-9:
            return None
        return held, free

    def _added_w(self, held: BoolArray) -> FloatArray:
        """(N,) watts that each expert alone adds to the held ones."""
        problem = self.problem
        awake = np.zeros(len(problem.host_w), dtype=np.bool_)
        awake[problem.host[held]] = True
        return np.asarray(problem.expert_w + np.where(awake, 0.0, problem.host_w)[problem.host])

    def _fitting(self, held: BoolArray) -> BoolArray:
        """(N,) True for each expert that fits beside the held ones alone."""
        problem, fits = self.problem, self._in_rooms(held)
        if problem.most_w is not None:
            fits &= problem.standing_w(held) + self._added_w(held) <= problem.most_w * (1 + ROUNDING) + ROUNDING
        return fits

    def _in_rooms(self, held: BoolArray) -> BoolArray:
        """(N,) True for each expert that has room beside the held ones, whatever it draws."""
        fits: BoolArray = np.ones(len(held), dtype=np.bool_)
        for room in self.problem.rooms:
            fits &= float(room.use[held].sum()) + room.use <= room.most * (1 + ROUNDING)
        return fits

    def _shared_w(self, held: BoolArray, free: BoolArray) -> FloatArray:
        """(N,) watts such that no set of free experts draws less than their sum: hosts are paid for in equal parts."""
        problem = self.problem
        count = np.bincount(problem.host[free], minlength=len(problem.host_w))
        awake = np.zeros(len(problem.host_w), dtype=np.bool_)
        awake[problem.host[held]] = True
        part = np.where(awake, 0.0, problem.host_w / np.maximum(count, 1))
        return np.asarray(problem.expert_w + part[problem.host])

    def _least_w(self, held: BoolArray, free: BoolArray) -> float:
        """Watts that no set of the node in H stays below: each need taken alone, experts taken in parts."""
        problem = self.problem
        drawn_w = problem.standing_w(held)
        shared_w = self._shared_w(held, free)
        most = 0.0
        for need in problem.needs:
            missing = need.least - float(need.share[held].sum())
            places = np.flatnonzero(free & (need.share > 0.0))
            if missing <= 1e-9 * max(1.0, abs(need.least)) or len(places) == 0:
                continue
            share, cost = need.share[places], shared_w[places]
            order = np.argsort(cost / share, kind="stable")
            before = np.concatenate([[0.0], np.cumsum(share[order])[:-1]])
            part = np.clip((missing - before) / share[order], 0.0, 1.0)
            most = max(most, float(part @ cost[order]))
        return drawn_w + most

    def _relaxed_limits(self, held: BoolArray, places: IntArray) -> tuple[FloatArray, FloatArray]:
        """The limits as linear rows over shares of the free experts (C, n), and what is left of each (C,)."""
        problem = self.problem
        free = problem.mask(places.tolist())
        rows, room = [np.ones(len(places))], [float(len(places)) + 1.0]
        if problem.most_w is not None:
            cost = self._shared_w(held, free)[places]
            left = problem.most_w - problem.standing_w(held)
            rows.append(cost)
            room.append(max(left, float(cost.max()), 1e-9))
            for need in problem.needs:
                missing = need.least - float(need.share[held].sum())
                if missing > 1e-9 * max(1.0, abs(need.least)):
                    rest, spare_w = _beside_need(cost, need.share[places], missing, left)
                    rows.append(rest)
                    room.append(max(spare_w, float(rest.max()), 1e-9))
        for limit in problem.rooms:
            use = limit.use[places]
            if float(use.sum()) > 0.0:
                rows.append(use)
                room.append(max(limit.most - float(limit.use[held].sum()), float(use.max()), 1e-9))
        return np.array(rows), np.array(room)

    # --- Sets ---------------------------------------------------------------------------------------------------------

    def _offer(self, members: BoolArray) -> None:
        """Take a set in G ∩ H if it is worth more than the best, or as much at fewer watts."""
        value = self.problem.worth(members)
        width = tie_width(value)
        if self.best is not None:
            if value < self.best_value - width:
                return
            if value <= self.best_value + width and not self._is_leaner(members, self.best):
                return
        self.best, self.best_value = members.copy(), value

    def _is_leaner(self, members: BoolArray, other: BoolArray) -> bool:
        """True where `members` draw fewer watts than `other`, or as many with fewer members."""
        own_w, other_w = self.problem.standing_w(members), self.problem.standing_w(other)
        if abs(own_w - other_w) > 1e-9 * max(1.0, other_w):
            return own_w < other_w
        return int(members.sum()) < int(other.sum())

    def _grow(self, held: BoolArray, free: BoolArray, shares: FloatArray, *, improve: bool) -> None:
        """Offer a set that grows from the held experts: first to meet the needs, then by shares, then by gain."""
        wish = np.zeros(len(held))
        wish[np.flatnonzero(free)] = shares
        members = self._meeting(held, free, 0.1 + wish)
        if members is None:
            members = self._meeting(held, free, np.ones(len(held)))
        if members is None:
            return
        for place in sorted(np.flatnonzero(free & (wish > 0.3)).tolist(), key=lambda n: (-wish[n], n)):
            if not members[place] and self._fitting(members)[place]:
                members[place] = True
        members = self._filled(members, free)
        self._offer(members)
        if improve:
            self._exchange(members, held, free)

    def _meeting(self, held: BoolArray, free: BoolArray, weight: FloatArray) -> BoolArray | None:
        """The held experts with free ones that meet the needs, of much share and `weight` (N,) for few watts.

        None where what was found draws too much. Watts are looked at in the end only, when nobody superfluous is left.
        """
        problem = self.problem
        members = held.copy()
        while lacking := problem.unmet(members):
            pool = free & ~members & self._in_rooms(members)
            brought = np.zeros(len(held))
            for need in lacking:
                brought += np.minimum(need.share / (need.least - need.share[members].sum()), 1.0)
            ratio = np.where(pool & (brought > 0.0), brought * weight / (self._added_w(members) + 1e-6), -1.0)
            place = int(ratio.argmax())
            if ratio[place] <= 0.0:
                return None
            members[place] = True
        for place in sorted(np.flatnonzero(members & ~held).tolist(), key=lambda n: (weight[n], n)):
            members[place] = False
            if problem.unmet(members):
                members[place] = True
        return members if problem.keeps_limits(members) else None

    def _filled(self, members: BoolArray, free: BoolArray) -> BoolArray:
        """The set grown by the free expert with the largest gain per watt, as long as one fits and gains."""
        problem = self.problem
        members = members.copy()
        while (choices := np.flatnonzero(free & ~members & self._fitting(members))).size:
            state = problem.value.state_of(np.flatnonzero(members))
            gains = problem.value.cross(state[None], problem.value.states[choices])[0] - problem.worth(members)
            if float(gains.max()) <= tie_width(1.0):
                break
            members[choices[int((gains / (self._added_w(members)[choices] + 1e-6)).argmax())]] = True
        return members

    def _exchange(self, members: BoolArray, held: BoolArray, free: BoolArray) -> None:
        """Offer sets in which one member has left its place to others, as long as that is worth more."""
        problem, tried = self.problem, 0
        better = True
        while better and not self._late():
            better = False
            for place in np.flatnonzero(members & ~held).tolist():
                tried += 1
                if tried > _MOST_SWAPS or self._late():
                    return
                without = members & ~problem.mask([place])
                other = self._filled(without, free & ~problem.mask([place]))
                if problem.worth(other) > problem.worth(members) + tie_width(1.0) and not problem.unmet(other):
                    self._offer(other)
                    members, better = other, True
                    break


def _beside_need(cost: FloatArray, share: FloatArray, missing: float, left: float) -> tuple[FloatArray, float]:
    """What `cost @ x <= left` and `share @ x >= missing` say together: a cost (n,) beside the need, and its limit.

    The second times a price, taken from the first, is a valid limit whatever the price. Those who cost less than what
    they bring is worth are taken as members, as the need cannot be met for less. The price is that of the last expert
    who is needed where shares can be had in parts.
    """
    able = np.flatnonzero(share > 0.0)
    order = able[np.argsort(cost[able] / share[able], kind="stable")]
    last = min(int(np.searchsorted(np.cumsum(share[order]), missing)), len(order) - 1)
    price = float(cost[order[last]] / share[order[last]])
    rest = cost - price * share
    return np.maximum(rest, 0.0), left - price * missing + float(np.maximum(-rest, 0.0).sum())


def _inferior(problem: AwakeProblem) -> BoolArray:
    """(N, N); [n, k] is True where k is alone on its host, as n is, and in nothing better than n.

    Some best set that lacks n lacks k, too, as n could stand in for k. Of two that are equal the later one is inferior.
    """
    count = len(problem.names)
    alone = np.bincount(problem.host, minlength=len(problem.host_w))[problem.host] == 1
    watts = problem.expert_w + problem.host_w[problem.host]
    worse: BoolArray = watts[:, None] <= watts[None, :]
    for need in problem.needs:
        worse &= need.share[:, None] >= need.share[None, :]
    for room in problem.rooms:
        # Only n uses a room of its own host's, so that nobody else's leaving or staying matters to it there.
        own = (room.use > 0.0) & ((room.use > 0.0).sum() == 1) & (room.use <= room.most)
        worse &= (room.use[:, None] <= room.use[None, :]) | own[:, None]
    worse &= alone[:, None] & alone[None, :]
    free = np.array([n not in problem.pinned and n not in problem.ruled_out for n in range(count)])
    worse &= free[:, None] & free[None, :]
    better, other = np.nonzero(worse)
    worse[better, other] = problem.value.nowhere_worse(better, other)
    place = np.arange(count)
    worse &= ~(worse.T & (place[:, None] >= place[None, :]))
    np.fill_diagonal(worse, False)
    return np.asarray(worse)
