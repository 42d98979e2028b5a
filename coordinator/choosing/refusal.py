"""Reasons in words why experts cannot take a request, and whether less load would change that. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moe2.common.energy import Quality
from moe2.common.error_codes import ErrorCode
from moe2.common.link.reports import ExpertReport
from moe2.coordinator.choosing.candidates import problem_of
from moe2.coordinator.choosing.forecast import Forecast, IntArray, Roster
from moe2.coordinator.choosing.request import SelectionRequest
from moe2.coordinator.choosing.result import NoExpert, Outlook
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.planning.candidates import Candidates
from moe2.coordinator.planning.proof import Offer, Plan


def ruled_out_by(request: SelectionRequest, roster: Roster, busy: IntArray) -> dict[str, str]:
    """Experts that the request or their own state excludes, with the reason by their key, in the roster's order.

    busy: (N,) requests in progress on each.
    """
    needed = max(request.demand.context_tokens, request.least_context_tokens)
    largest = roster.largest_context_tokens
    # The prompt's length is an estimate. Where it rules out everybody, the largest context still gets a try: the
    # expert's own tokenizer has the last word.
    if largest > request.least_context_tokens:
        needed = min(needed, largest - 1)
    # An answer needs room in the context beside its prompt, a vector does not.
    out = (roster.context_tokens < needed + (not request.needs_vectors)) | (busy >= roster.room)
    out |= roster.vectorless if request.needs_vectors else roster.mute
    if request.vector_size is not None:
        out |= np.array([not makes_vectors_of(expert.report, request.vector_size) for expert in roster.experts])
    if request.needs_chat_template:
        out |= roster.bare
    if request.needs_tools:
        out |= roster.toolless
    if request.needs_infill:
        out |= roster.gapless
    if request.excluded:
        out |= np.array([key in request.excluded for key in roster.keys])
    if request.barred:
        out |= np.array([key in request.barred for key in roster.keys])
    if request.reserved:
        out |= np.array([key in request.reserved for key in roster.keys])
    reasons: dict[str, str] = {}
    for place in out.nonzero()[0].tolist():
        reasons[roster.keys[place]] = _reason(request, roster, place, needed)
    return reasons


def if_loading(refused: NoExpert, request: SelectionRequest, loading: Sequence[Expert]) -> NoExpert:
    """Returns a refusal for want of an expert, or that one is being loaded, which is worth waiting for.

    loading: the experts that could serve the request once they are ready.
    """
    coming = [expert for expert in loading if expert.key not in request.excluded]
    if not coming:
        return refused
    names = ", ".join(sorted({expert.model for expert in coming}))
    return NoExpert(ErrorCode.MODEL_LOADING, f"No expert is ready yet: {names} is being loaded.")


def _reason(request: SelectionRequest, roster: Roster, place: int, needed_tokens: int) -> str:
    """The first reason that rules out the expert at `place`."""
    key, report = roster.keys[place], roster.experts[place].report
    if key in request.excluded:
        return "it has already failed this request"
    if key in request.barred:
        return request.barred[key]
    if key in request.reserved:
        return request.reserved[key]
    if request.needs_vectors and roster.vectorless[place]:
        return "its model writes text and yields no vectors"
    if roster.mute[place] and not request.needs_vectors:
        return "its model yields vectors and writes no text"
    if request.vector_size is not None and not makes_vectors_of(report, request.vector_size):
        return f"its model makes no vectors of {request.vector_size} numbers"
    if request.needs_chat_template and roster.bare[place]:
        return "its model has no chat template"
    if request.needs_tools and roster.toolless[place]:
        return "its model's chat template does not support tools"
    if request.needs_infill and roster.gapless[place]:
        return "its model cannot fill a gap between two texts"
    if report.context_tokens < needed_tokens + (not request.needs_vectors):
        return f"its context of {report.context_tokens} tokens is too small for the prompt"
    queued = int(roster.room[place]) - report.slots
    return f"its {report.slots} slots and {queued} queue places are taken"


def makes_vectors_of(report: ExpertReport, vector_size: int) -> bool:
    """True where the expert's vectors have this length, or may be cut to it; before it is loaded nobody knows."""
    if report.vector_size is None:
        return report.architecture is None
    return report.vector_size == vector_size or vector_size in report.vector_sizes


def infeasible_message(plan: Plan, forecast: Forecast) -> str:
    """The message of a refusal because of budgets, with what the budgets would have to be for the nearest offers."""

    def is_simulated(key: str) -> bool:
        energy = forecast.roster.experts[forecast.roster.place[key]].report.energy
        return energy is not None and energy.quality is Quality.SIMULATED

    offers = [
        f"the {label} offer is {offer.name} ({_needs(offer)}{'; joules simulated' if is_simulated(offer.name) else ''})"
        for label, offer in (("cheapest", plan.cheapest), ("fastest", plan.fastest))
        if offer is not None
    ]
    reasons = "; ".join(offers) or "; ".join(sorted({exclusion.detail for exclusion in plan.exclusions}))
    return f"No expert keeps the request's budgets: {reasons}."


def less_load_message(why: str, less_load: LessLoad, request: SelectionRequest, *, is_late: bool) -> str:
    """The message of a refusal because of budgets that an expert would keep with less load.

    why: the message of `infeasible_message`. is_late: True where waiting has used up the time that the expert needs.
    """
    if less_load.expert in request.barred:
        what = f"{less_load.expert} would keep them, but {request.barred[less_load.expert]}"
    elif is_late:
        what = f"{less_load.expert} would have kept them with less load when the request came: load is the cause"
    else:
        what = f"{less_load.expert} would keep them with less load: load is the cause"
    return f"{why.removesuffix('.')}. {what}."


def _needs(offer: Offer) -> str:
    """What the budgets would have to be for an offer, in words."""
    return ", ".join(str(breach) for breach in offer.breaches) or "it keeps the budgets"


@dataclass(frozen=True)
class LessLoad:
    """An expert that would keep the request's budgets with fewer other requests."""

    expert: str
    """Key of the expert."""
    waits_s: float
    """Seconds that the request can wait for less load; inf where its budgets do not shrink meanwhile."""
    frees_in_s: float | None
    """Predicted seconds until such an expert has a free slot; None where no speed is known."""


def less_load_in(lighter: Iterable[Outlook], busy: IntArray) -> LessLoad | None:
    """The expert that the request can wait for longest; None where less load is no help.

    lighter: the experts as they would look with less load. busy: (N,) requests in progress now.
    """
    found = [less_load for outlook in lighter if (less_load := _expert_with_less_load(outlook, busy)) is not None]
    if not found:
        return None
    longest = max(found, key=lambda less_load: less_load.waits_s)
    known_s = [less_load.frees_in_s for less_load in found if less_load.frees_in_s is not None]
    return replace(longest, frees_in_s=min(known_s, default=None))


def _expert_with_less_load(outlook: Outlook, busy: IntArray) -> LessLoad | None:
    """The expert that the request can wait for longest in an outlook with less load than `busy` (N,); None for none."""
    roster = outlook.forecast.roster
    problem = problem_of(outlook.forecast, outlook.worth, outlook.budgets, outlook.ruled_out, outlook.work)
    limits, costs = problem.budgets, problem.costs
    # A panel is feasible only if each of its members is alone.
    index = Candidates.of(problem).index
    if len(index) == 0:
        return None
    waits_s = np.full(len(index), np.inf)
    if limits.delay_s is not None:
        waits_s = limits.delay_s - costs.delay_s[index]
    if limits.first_token_s is not None:
        waits_s = np.minimum(waits_s, limits.first_token_s - costs.first_token_s[index])
    longest = int(np.maximum(waits_s, 0.0).argmax())
    frees_s = roster.frees_in_s(busy)[index]
    known_s = frees_s[~np.isnan(frees_s)]
    return LessLoad(
        roster.keys[index[longest]],
        max(0.0, float(waits_s[longest])),
        float(known_s.min()) if len(known_s) else None,
    )


def all_ruled_out(request: SelectionRequest, roster: Roster, ruled_out: Mapping[str, str]) -> NoExpert:
    """The refusal where every expert that could answer is ruled out, with the reason that helps the client most."""
    if request.needs_vectors and roster.vectorless.all():
        return NoExpert(
            ErrorCode.NO_VECTORS, f"{request.model!r} is no embedding model: what answers for it writes text."
        )
    size = request.vector_size
    if size is not None and not any(makes_vectors_of(expert.report, size) for expert in roster.experts):
        text = f"No expert for {request.model!r} makes vectors of {size} numbers, or may cut its own to that length."
        return NoExpert(ErrorCode.NO_VECTORS, text)
    if not request.needs_vectors and roster.mute.all():
        return NoExpert(ErrorCode.ONLY_VECTORS, f"{request.model!r} yields vectors and writes no text.")
    if request.needs_chat_template and roster.bare.all():
        return NoExpert(ErrorCode.NO_CHAT_TEMPLATE, f"{request.model!r} has no chat template; use /v1/completions.")
    if request.needs_tools and roster.toolless.all():
        return NoExpert(ErrorCode.NO_TOOLS, f"{request.model!r} cannot use tools: this model's template has no tools.")
    if request.needs_infill and roster.gapless.all():
        text = f"{request.model!r} cannot fill a gap ('suffix'): this model's vocabulary has no marks for one."
        return NoExpert(ErrorCode.NO_INFILL, text)
    left = [expert for expert in roster.experts if expert.key not in request.excluded]
    if not left:
        verb = "has" if len(roster) == 1 else "have"
        return NoExpert(ErrorCode.EXHAUSTED, f"{_all_experts(len(roster))} {verb} failed this request.")
    largest = max(expert.report.context_tokens for expert in left)
    if largest <= request.least_context_tokens:
        return NoExpert(ErrorCode.CONTEXT_EXCEEDED, f"The largest context among the experts is {largest} tokens.")
    if all(expert.key in request.barred for expert in left):
        verb = "keeps" if len(left) == 1 else "keep"
        return NoExpert(ErrorCode.NO_LIVE_EXPERT, f"{_all_experts(len(left))} {verb} failing; try again later.")
    reasons = "; ".join(sorted({ruled_out[expert.key] for expert in left}))
    who = "The only expert cannot" if len(left) == 1 else f"None of {len(left)} experts can"
    return NoExpert(ErrorCode.OVERLOADED, f"{who} take the request now: {reasons}.")


def _all_experts(n: int) -> str:
    return "The only expert that could answer" if n == 1 else f"All {n} experts that could answer"
