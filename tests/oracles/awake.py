"""Brute force over every set of experts that could be kept awake, by plain loops that share no code with the solver."""

from __future__ import annotations

from moe2.coordinator.planning.awake import AwakeProblem

SLACK = 1e-9


def feasible_sets(problem: AwakeProblem) -> list[tuple[float, float, tuple[int, ...]]]:
    """Value, watts and members of every feasible set; at most 2^14 of them are looked at."""
    count = len(problem.names)
    assert count <= 14
    states = problem.value.states.tolist()
    expert_w, host_w, host = problem.expert_w.tolist(), problem.host_w.tolist(), problem.host.tolist()
    rooms = [(room.use.tolist(), room.most) for room in problem.rooms]
    needs = [(need.share.tolist(), need.least) for need in problem.needs]
    found = []
    for mask in range(1 << count):
        members = tuple(n for n in range(count) if mask >> n & 1)
        if not problem.pinned <= set(members) or problem.ruled_out & set(members):
            continue
        watts = sum(expert_w[n] for n in members) + sum(host_w[h] for h in {host[n] for n in members})
        if problem.most_w is not None and watts > problem.most_w * (1 + SLACK):
            continue
        if any(sum(use[n] for n in members) > most * (1 + SLACK) for use, most in rooms):
            continue
        if any(sum(share[n] for n in members) < least - SLACK * max(1.0, least) for share, least in needs):
            continue
        value = 0.0
        if members:
            kinds = len(states[0])
            value = sum(max(states[n][m] for n in members) for m in range(kinds)) / kinds
        found.append((value, watts, members))
    return found
