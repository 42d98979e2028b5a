"""What a request asks the choice of experts for, at the beginning and after each attempt. PURE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe2.common.link.messages import ChatPrompt
from moe2.coordinator.choosing.request import Demand, SelectionRequest, Wish
from moe2.coordinator.serving.request import uses_tools

if TYPE_CHECKING:
    from moe2.coordinator.serving.life import Lifecycle


def asked_of(life: Lifecycle, now_s: float, *, excluded: frozenset[str]) -> SelectionRequest:
    """The question to the choice, with what is left of the budgets. excluded: keys of experts to leave out.

    Attempts that still run keep the joules that they may take.
    """
    request = life.request
    return SelectionRequest(
        model=request.model,
        demand=_demand(life),
        text=request.text,
        wish=_wish(life),
        budgets=request.principal.budgets,
        elapsed_s=elapsed_s(life, now_s),
        spent_j=sum(attempt.reserved_j for attempt in life.attempts),
        excluded=excluded,
        least_context_tokens=life.least_context_tokens,
        needs_chat_template=isinstance(request.prompt, ChatPrompt),
        needs_tools=uses_tools(request.prompt),
        modes=request.modes,
        choice_tokens=request.ballot.tokens if request.ballot else None,
    )


def elapsed_s(life: Lifecycle, now_s: float) -> float:
    """What counts against the budgets. The first choice is made within microseconds: counting them would make every
    request a new problem."""
    return now_s - life.request.arrived_s if life.attempts or life.waited_s else 0.0


def _demand(life: Lifecycle) -> Demand:
    """What is still to be done: the words that the client already has need not be written again."""
    demand = life.request.demand
    if not life.n_tokens_written:
        return demand
    return Demand(demand.prompt_tokens + life.n_tokens_written, life.n_tokens_left)


def _wish(life: Lifecycle) -> Wish:
    """Once the first token has come, its budget was kept or not; for who goes on it is no limit."""
    wish = life.request.wish
    if life.first_token_s is None or life.limits.first_token_by_s is None:
        return wish
    return wish.model_copy(update={"ttft_budget_s": life.request.deadline_s})
