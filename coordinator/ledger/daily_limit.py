"""Choice of experts within a key's daily limits. PURE.

A request is planned as if there were no daily limit. Only where its p95 does not fit what is left is it planned again,
with what is left as its energy budget at p95. So a key near its limit gets a cheaper expert before it is refused, and
the plans of all other requests are still found in the planner's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime

import msgspec

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.choosing.forecast import Prediction
from moe2.coordinator.choosing.request import Demand, SelectionRequest
from moe2.coordinator.choosing.result import Member, NoExpert, Selection
from moe2.coordinator.keys.keys import Principal
from moe2.coordinator.ledger.accounts import Amount, Remaining, Statement, day_after
from moe2.coordinator.planning.problem import Quantile

SOON_S = 5
"""Seconds until a client may ask again where the requests in progress may give something back."""

Select = Callable[[SelectionRequest], Selection | NoExpert]


def is_limited(principal: Principal) -> bool:
    """Whether a key has any daily limit."""
    return principal.daily.energy_j is not None or principal.daily.tokens is not None


def select_within_limits(
    asked: SelectionRequest,
    select: Select,
    principal: Principal,
    left: Remaining,
    statement: Statement,
    *,
    burnt_j: float,
    now: datetime,
) -> Selection | NoExpert:
    """Returns the choice within a key's daily limits, or why there is none.

    left: what the key may still use, without this request's own reservation. burnt_j: what the request's former
    attempts may have taken of that.
    """
    demand = asked.demand
    # Without a limit of the client's own, the length depends on who answers; one token is the least there can be.
    least = demand.prompt_tokens + (1 if demand.max_tokens is None else demand.max_tokens)
    if left.tokens is not None and least > left.tokens:
        return _no_tokens(principal, statement, least, now)
    chosen = _within_energy(asked, select, principal, left, statement, burnt_j=burnt_j, now=now)
    if left.tokens is None or isinstance(chosen, NoExpert):
        return chosen
    needed = tokens_of(demand, (member.prediction for member in chosen.members))
    return chosen if needed <= left.tokens else _no_tokens(principal, statement, needed, now)


def _within_energy(
    asked: SelectionRequest,
    select: Select,
    principal: Principal,
    left: Remaining,
    statement: Statement,
    *,
    burnt_j: float,
    now: datetime,
) -> Selection | NoExpert:
    """The choice within a key's daily limit of energy, or why there is none."""
    chosen = select(asked)
    if left.energy_j is None or isinstance(chosen, NoExpert):
        return chosen
    left_j = max(0.0, left.energy_j - burnt_j)
    if fits(chosen, left_j):
        return chosen
    cheaper = select(_within(asked, chosen, left_j))
    if isinstance(cheaper, Selection):
        if fits(cheaper, left_j):
            return cheaper
        return _no_energy(principal, statement, p95_of(cheaper), now)
    if cheaper.code != ErrorCode.INFEASIBLE or cheaper.plan is None:
        return cheaper
    if cheaper.plan.cheapest is None:
        return NoExpert(
            ErrorCode.INFEASIBLE,
            f"The key {principal.name!r} has a daily energy limit, and no expert that could answer has had its energy "
            "measured: what was not measured cannot be promised. `moe2-agent bench` measures it.",
            cheaper.plan,
            cheaper.outlook,
        )
    refusal = _no_energy(principal, statement, cheaper.plan.cheapest.energy_j, now)
    return replace(refusal, plan=cheaper.plan, outlook=cheaper.outlook)


def with_elsewhere(statement: Statement, elsewhere: Amount) -> Statement:
    """Returns the statement with what other coordinators have drawn of the same limits counted as spent."""
    spent = msgspec.structs.replace(
        statement.spent,
        energy_j=statement.spent.energy_j + (elsewhere.energy_j or 0.0),
        tokens=statement.spent.tokens + (elsewhere.tokens or 0),
    )
    return replace(statement, spent=spent)


def tokens_of(demand: Demand, predictions: Iterable[Prediction]) -> int:
    """Returns the tokens that a request may come to: its prompt and its longest planned answer.

    predictions: of the experts that are asked. Where the client sets no limit, the answer counts with the length that
    95 of 100 answers of the longest writer keep below, and with an assumed one where nothing has been learned yet.
    """
    if demand.max_tokens is not None:
        return demand.prompt_tokens + demand.max_tokens
    learned = (one.longest_tokens for one in predictions if one.longest_tokens is not None)
    return demand.prompt_tokens + max(learned, default=demand.answer_tokens)


def fits(chosen: Selection, left_j: float) -> bool:
    """Whether a choice is predicted to keep within what is left; an unknown cost does not."""
    needed_j = p95_of(chosen)
    return needed_j is not None and needed_j <= left_j


def p95_of(chosen: Selection) -> float | None:
    """Returns the predicted joules of the whole panel at p95, the sum over its members; None if one is unknown."""
    parts = [member_p95_of(member) for member in chosen.members]
    return None if None in parts else sum(part for part in parts if part is not None)


def member_p95_of(member: Member) -> float | None:
    """Returns the predicted joules of one expert's part at p95; None if the expert was never measured."""
    predicted = member.prediction.energy_j
    return None if predicted is None else predicted.p95


def _within(asked: SelectionRequest, chosen: Selection, left_j: float) -> SelectionRequest:
    """Returns the request with what is left as its energy budget, unless its own budget is tighter."""
    own_j = chosen.budgets.energy_budget_j
    most_j = left_j if own_j is None else min(own_j, left_j)
    # The limits in force are those after the former attempts; the planner takes these off once more.
    wish = asked.wish.model_copy(update={"energy_budget_j": most_j + asked.spent_j, "quantile": Quantile.P95})
    return msgspec.structs.replace(asked, wish=wish)


def _no_energy(principal: Principal, statement: Statement, needed_j: float | None, now: datetime) -> NoExpert:
    limit_j = statement.limits.energy_j or 0.0
    spent = statement.spent
    unsure = f" ({spent.n_unmeasured} requests could not be measured)" if spent.n_unmeasured else ""
    needs = "an unknown amount" if needed_j is None else f"{needed_j:.4g} J (p95)"
    facts = (
        f"The daily energy limit of key {principal.name!r} leaves no room for this request: limit {limit_j:.4g} J, "
        f"spent {spent.energy_j:.4g} J{unsure}, reserved by running requests {statement.reserved_j:.4g} J; the "
        f"cheapest way to answer needs {needs}."
    )
    too_much = needed_j is not None and needed_j > limit_j
    soon = needed_j is not None and spent.energy_j + needed_j <= limit_j
    return _refusal(facts, statement, now, never=too_much, soon=soon)


def _no_tokens(principal: Principal, statement: Statement, needed: int, now: datetime) -> NoExpert:
    limit, spent = statement.limits.tokens or 0, statement.spent
    facts = (
        f"The daily token limit of key {principal.name!r} leaves no room for this request: limit {limit}, spent "
        f"{spent.tokens}, reserved by running requests {statement.reserved_tokens}; prompt and longest answer need "
        f"{needed}. A smaller max_tokens needs less."
    )
    return _refusal(facts, statement, now, never=needed > limit, soon=spent.tokens + needed <= limit)


def _refusal(facts: str, statement: Statement, now: datetime, *, never: bool, soon: bool) -> NoExpert:
    if never:
        return NoExpert(ErrorCode.INFEASIBLE, f"{facts} That is more than a whole day's limit.")
    midnight = day_after(statement.day)
    if soon:
        return NoExpert(
            ErrorCode.BUDGET_EXHAUSTED, f"{facts} It may fit when running requests have ended.", retry_after_s=SOON_S
        )
    until_s = max(1, round((midnight - now).total_seconds()))
    return NoExpert(
        ErrorCode.BUDGET_EXHAUSTED, f"{facts} The day ends at {midnight:%Y-%m-%dT%H:%M:%SZ}.", retry_after_s=until_s
    )
