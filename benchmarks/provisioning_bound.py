"""The clairvoyant: what a day would cost whoever knew all arrivals, as a proven lower bound.

Between two arrivals each kind of host stays awake, sleeps and is back in time, or changes, whichever costs least; a
host of each kind is enough, because nobody queues. What a day may lose in score, how many answers may be late and how
often hosts may change state are prices on top (Lagrange), and any prices give a bound that no schedule stays below.
The best prices are sought by subgradient steps, each a dynamic program over the arrivals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.provisioning_fleet import AGX_ORIN, DAY_S, HOSTS, MIDNIGHT_UNIX_S, RTX_4090, Arrival, Kind
from benchmarks.provisioning_policies import MAX_TRANSITIONS
from benchmarks.provisioning_sim import PATIENCE_S
from moe2.coordinator.planning.values import FloatArray

KINDS = (RTX_4090, AGX_ORIN)
STATES = ((True, False), (False, True), (True, True))
"""Which kinds have a host in memory when a request comes: at least one."""
STEPS = 150


@dataclass(frozen=True)
class _Arrivals:
    """A day's requests as arrays, one column for each kind of host."""

    at_s: FloatArray
    joules: FloatArray
    loss: FloatArray
    late: FloatArray
    service_s: FloatArray


def _arrivals(asked: Sequence[Arrival]) -> _Arrivals:
    score = np.array([[kind.scores.get(one.category, kind.scores[""]) for kind in KINDS] for one in asked])
    prompt = np.array([[one.prompt_tokens] for one in asked], dtype=float)
    answer = np.array([[one.answer_tokens] for one in asked], dtype=float)
    prefill, decode = (
        np.array([getattr(kind, f"{what}_tokens_per_s") for kind in KINDS]) for what in ("prefill", "decode")
    )
    first_s = 0.02 + prompt / prefill
    return _Arrivals(
        at_s=np.array([one.at_unix_s for one in asked]),
        joules=prompt * np.array([kind.prefill_j for kind in KINDS]) + answer * np.array([k.decode_j for k in KINDS]),
        loss=score.max(axis=1, keepdims=True) - score,
        late=(first_s > PATIENCE_S).astype(float),
        service_s=first_s + (answer - 1) / decode,
    )


def bound_j(asked: Sequence[Arrival], *, quality_loss: float, late_share: float) -> float:
    """Joules that no schedule of the day's hosts stays below, waiting, changes of state and answers included."""
    if not asked:
        return sum(kind.asleep_w for kind in HOSTS) * DAY_S
    day = _arrivals(asked)
    n = len(asked)
    allowed = np.array([quality_loss * n, late_share * n, *(MAX_TRANSITIONS * HOSTS.count(kind) for kind in KINDS)])
    asleep_j = sum(kind.asleep_w for kind in HOSTS) * DAY_S
    # Joules for a point of score, for a late answer, and for a change of state, to begin with.
    prices = np.array([2e4, 2e3, 100.0, 10.0])
    best = 0.0
    for step in range(STEPS):
        cost, used = _cheapest(day, prices)
        best = max(best, asleep_j + cost - float(prices @ allowed))
        # Relative steps, smaller and smaller: prices differ by orders of magnitude.
        relative = (used - allowed) / np.maximum(allowed, 1e-9)
        prices = prices * np.exp(np.clip(relative, -1.0, 1.0) * 1.5 / np.sqrt(step + 1.0))
    return best


def _cheapest(day: _Arrivals, prices: FloatArray) -> tuple[float, FloatArray]:
    """The least cost of a schedule at these prices, above all hosts asleep, and what it uses of each limit (4,)."""
    of_loss, of_late, of_change = prices[0], prices[1], prices[2:]
    paid = day.joules + of_loss * day.loss + of_late * day.late
    answers = np.stack([np.where(np.array(state), paid, np.inf).min(axis=1) for state in STATES], axis=1)
    takers = np.stack([np.where(np.array(state), paid, np.inf).argmin(axis=1) for state in STATES], axis=1)
    n = len(day.at_s)
    between = np.zeros((n - 1, len(STATES), len(STATES)))
    uses = np.zeros((n - 1, len(STATES), len(STATES), len(KINDS)))
    for k, kind in enumerate(KINDS):
        stay, sleep, leave, come = _gaps(kind, np.diff(day.at_s), day.service_s[:-1, k])
        naps = sleep + 2 * of_change[k] < stay
        for a, before in enumerate(STATES):
            for b, after in enumerate(STATES):
                if before[k] and after[k]:
                    between[:, a, b] += np.minimum(stay, sleep + 2 * of_change[k])
                    uses[:, a, b, k] += 2.0 * naps
                elif before[k]:
                    between[:, a, b] += leave + of_change[k]
                    uses[:, a, b, k] += 1.0
                elif after[k]:
                    between[:, a, b] += come + of_change[k]
                    uses[:, a, b, k] += 1.0
    cost = answers[0].copy()
    came_from = np.zeros((n, len(STATES)), dtype=int)
    for i in range(1, n):
        total = cost[:, None] + between[i - 1]
        came_from[i] = total.argmin(axis=0)
        cost = total.min(axis=0) + answers[i]
    state = int(cost.argmin())
    used = np.zeros(2 + len(KINDS))
    for i in range(n - 1, -1, -1):
        taker = takers[i, state]
        used[0] += day.loss[i, taker]
        used[1] += day.late[i, taker]
        if i:
            former = int(came_from[i, state])
            used[2:] += uses[i - 1, former, state]
            state = former
    return float(cost.min()), used


def _gaps(kind: Kind, gap_s: FloatArray, service_s: FloatArray) -> tuple[FloatArray, ...]:
    """Joules above sleep of a gap: staying awake, sleeping and coming back, going to sleep, and waking up (n,) each."""
    above_w = kind.ready_w - kind.asleep_w
    idle_s = np.maximum(0.0, gap_s - service_s)
    takes_s = kind.suspend_s + kind.wake_s + kind.load_s
    asleep_w = kind.asleep_w
    leave = np.full_like(gap_s, kind.suspend_j - asleep_w * kind.suspend_s)
    come = np.full_like(gap_s, kind.wake_j + kind.load_j - asleep_w * (kind.wake_s + kind.load_s))
    sleep = np.where(idle_s > takes_s, leave + come, np.inf)
    return above_w * idle_s, sleep, np.maximum(leave, 0.0), np.maximum(come, 0.0)


def hindsight_j(asked: Sequence[Arrival], takers: Sequence[int]) -> float:
    """Joules of a day whose requests go to these hosts, each idle gap of each host decided with hindsight.

    takers: the place of the host that answers each request. A host sleeps through those gaps that save most, as many
    as its changes of state allow, and is back in time for the next request.
    """
    joules = 0.0
    for place, kind in enumerate(HOSTS):
        own = [one for one, taker in zip(asked, takers, strict=True) if taker == place]
        above_w = kind.ready_w - kind.asleep_w
        leave_j = max(0.0, kind.suspend_j - kind.asleep_w * kind.suspend_s)
        come_j = max(0.0, kind.wake_j + kind.load_j - kind.asleep_w * (kind.wake_s + kind.load_s))
        free_s, idle_s = MIDNIGHT_UNIX_S, []
        for one in own:
            joules += one.prompt_tokens * kind.prefill_j + one.answer_tokens * kind.decode_j
            idle_s.append(max(0.0, one.at_unix_s - free_s))
            takes_s = one.prompt_tokens / kind.prefill_tokens_per_s + one.answer_tokens / kind.decode_tokens_per_s
            free_s = max(free_s, one.at_unix_s) + takes_s
        idle_s.append(max(0.0, MIDNIGHT_UNIX_S + DAY_S - free_s))
        takes_s = kind.suspend_s + kind.wake_s + kind.load_s
        # What sleep saves, and how many changes it takes: nobody has to come back after the last request.
        saves = [
            (above_w * gap_s - leave_j - (0.0 if last else come_j), 1 if last else 2)
            for last, gap_s in zip([False] * len(own) + [True], idle_s, strict=True)
            if gap_s > takes_s
        ]
        joules += kind.asleep_w * DAY_S + above_w * sum(idle_s)
        left = MAX_TRANSITIONS
        for saved_j, changes in sorted(saves, reverse=True):
            if saved_j > 0.0 and changes <= left:
                joules -= saved_j
                left -= changes
    return joules
