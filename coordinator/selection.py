"""Which expert answers a request. PURE.

Today's policy: the least predicted completion time among live experts that fit. The two-level selection (coarse
planning, fine gating) takes its place behind the same interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moe2.coordinator.predict import Demand, Prediction, predict
from moe2.coordinator.table import Expert

ANY_MODEL = ("moe2", "auto")
"""Model names that leave the choice to the coordinator."""


@dataclass(frozen=True)
class SelectionRequest:
    """What is asked for.

    model: a model's name, an expert's key, or one of `ANY_MODEL`.
    excluded: keys of experts that must not be chosen, because they have failed this request already.
    least_context_tokens: a context that was found too small; only larger ones are worth a try.
    """

    model: str
    demand: Demand
    excluded: frozenset[str] = frozenset()
    least_context_tokens: int = 0
    needs_chat_template: bool = False


@dataclass(frozen=True)
class Selection:
    """The chosen expert and why.

    considered: how many experts could have been chosen.
    """

    expert: Expert
    prediction: Prediction
    considered: int
    policy: str = "least_predicted_completion"


@dataclass(frozen=True)
class NoExpert:
    """Nobody can take the request. `code` says which kind of answer the client gets."""

    code: str
    message: str


def wants(model: str, expert: Expert) -> bool:
    """True if a client that asked for `model` can be served by this expert."""
    return model in ANY_MODEL or model in (expert.model, expert.key)


def select(
    request: SelectionRequest, experts: tuple[Expert, ...], in_flight: Mapping[str, int]
) -> Selection | NoExpert:
    """Choose. Ties go to the expert with fewer requests in flight, then to the smaller key."""
    wanted = [expert for expert in experts if wants(request.model, expert)]
    if request.needs_chat_template:
        wanted = [expert for expert in wanted if expert.report.has_chat_template is not False]
    left = [expert for expert in wanted if expert.key not in request.excluded]
    if not left:
        return _nobody(request, experts, wanted)
    fitting = _fitting(request, left)
    if not fitting:
        most = max(expert.report.context_tokens for expert in left)
        return NoExpert("context_exceeded", f"The largest context among the experts is {most} tokens.")
    free = [expert for expert in fitting if _has_room(expert, in_flight)]
    if not free:
        return NoExpert("overloaded", f"All {len(fitting)} experts that could answer have full queues.")
    ranked = [(predict(expert, request.demand, in_flight.get(expert.key, 0)), expert) for expert in free]
    prediction, expert = min(ranked, key=lambda pair: _rank(pair[0], pair[1], in_flight))
    return Selection(expert=expert, prediction=prediction, considered=len(free))


def _fitting(request: SelectionRequest, experts: list[Expert]) -> list[Expert]:
    """Experts whose context holds the prompt.

    The prompt's length is an estimate, so where it rules out everybody the largest context still gets a try: the
    expert's own tokenizer has the last word.
    """
    largest = max(expert.report.context_tokens for expert in experts)
    if largest <= request.least_context_tokens:
        return []
    estimated = [
        expert
        for expert in experts
        if expert.report.context_tokens > max(request.demand.prompt_tokens, request.least_context_tokens)
    ]
    return estimated or [expert for expert in experts if expert.report.context_tokens == largest]


def _has_room(expert: Expert, in_flight: Mapping[str, int]) -> bool:
    return in_flight.get(expert.key, 0) < expert.report.slots + expert.report.max_queue


def _rank(prediction: Prediction, expert: Expert, in_flight: Mapping[str, int]) -> tuple[float, int, str]:
    # An unmeasured expert is tried first when idle, so that it gets measured, and last when busy.
    busy = in_flight.get(expert.key, 0)
    unmeasured_s = 0.0 if busy == 0 else float("inf")
    return (unmeasured_s if prediction.total_s is None else prediction.total_s, busy, expert.key)


def _nobody(request: SelectionRequest, experts: tuple[Expert, ...], wanted: list[Expert]) -> NoExpert:
    if wanted:
        return NoExpert("exhausted", f"All {len(wanted)} experts that could answer have failed this request.")
    if request.needs_chat_template and any(wants(request.model, expert) for expert in experts):
        return NoExpert("no_chat_template", f"{request.model!r} has no chat template; use /v1/completions.")
    return NoExpert("no_live_expert", "No expert is ready. See `moe2-coordinator status`.")
