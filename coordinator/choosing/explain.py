"""Decisions as shown to people and programs: who was chosen, who was not and why, and how good that provably is. PURE.

The types come first; the API encodes them as they are. Below are the functions that make them of the choice's result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from moe2.common.cost import Quantiles
from moe2.coordinator.choosing.fine_level import why_not
from moe2.coordinator.choosing.forecast import BoolArray, IntArray, Prediction
from moe2.coordinator.choosing.power_cap import FleetDraw
from moe2.coordinator.choosing.request import Budgets, Explain, Mode
from moe2.coordinator.choosing.result import NoExpert, Outlook, Selection
from moe2.coordinator.planning.proof import Plan, Proof
from moe2.coordinator.planning.search import FrontierPoint

MAX_WHOLE_FLEET = 8
"""Decisions about so many experts show every one of them, whatever is asked for."""
NEAREST_CANDIDATES = 4
"""Experts shown beside the chosen that keep the budgets, too."""
NEAREST_OTHERS = 3
"""Experts shown that do not keep the budgets, those with the best scores."""


class ExpertRow(msgspec.Struct, frozen=True, kw_only=True):
    """One expert of the fleet as the decision saw it. Predictions are None where it was never measured."""

    expert: str
    """Key of the expert."""
    agent: str
    """Name of its agent."""
    model: str
    """Name of its model."""
    score: float
    """Probability, 0..1, that it answers this prompt well."""
    score_source: str
    """Where the score comes from: "gate", or "prior" where the gate has no training data of the model."""
    energy_j: Quantiles | None
    """Predicted joules of the request."""
    energy_quality: str | None
    """Quality of the measurements that the joules rest on."""
    ttft_s: Quantiles | None
    """Predicted seconds until the first token."""
    total_s: Quantiles | None
    """Predicted seconds until the last token."""
    candidate: bool
    """True where it keeps the budgets."""
    chosen: bool
    """True where it answers."""
    reason: str | None
    """Why it was not chosen."""
    weight: float | None = None
    """Its share of the answer where a panel answers."""
    added_w: float | None = None
    """Watts that the request would add to its host's power; None without a cap, or where unknown."""


class FleetPowerRow(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet's power against its cap, both in watts."""

    cap_w: float
    drawn_w: float
    """Power that all measured hosts draw now."""
    simulated: bool
    """True where some of that power is a simulated host's."""
    hosts_unmeasured: int
    """Hosts that do not count, because nobody knows what they draw; they get no requests."""


class ScopePriceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One average budget that the request stands under."""

    scope: str
    """Whose average it is, such as "fleet", "category coding", "key app" or "day of key app"."""
    average_energy_j: float
    """Joules that an answer may take on average; of a key's day what is left for each answer to come."""
    price_per_j: float
    """Score, 0..1, that one joule has to bring for it."""


class PriceRow(msgspec.Struct, frozen=True, kw_only=True):
    """The price of a joule that the choice went by."""

    price_per_j: float
    """Score, 0..1, that one joule has to bring: the sum over the scopes."""
    scopes: tuple[ScopePriceRow, ...]
    """The average budgets that the request stands under."""


class ProofRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner proves of the candidate set. Figures are None where no expert keeps the budgets."""

    method: str
    """Name of the solver."""
    status: str
    """What is proven: "optimal", "bounded" or "infeasible"."""
    value: float | None
    """Value of the candidate set."""
    upper_bound: float | None
    """No other candidate set within the budgets is worth more."""
    gap: float | None
    """`upper_bound` less `value`."""
    nodes: int
    """Candidate sets that were listed or bounded."""
    elapsed_s: float | None
    """Seconds that the planner took."""


class FrontierRow(msgspec.Struct, frozen=True, kw_only=True):
    """The best candidate set for one energy budget."""

    energy_budget_j: float
    value: float | None
    """Value of the candidate set; None where no expert keeps the budget."""
    experts: tuple[str, ...]
    """Keys of the candidates."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How many experts a decision was about, and how many of them it shows."""

    experts: int
    """Experts of the fleet that could serve the request."""
    candidates: int
    """Those that the planner left to choose from."""
    ruled_out: int
    """Those that were out whatever the budgets are, such as full ones."""
    shown: int
    """Those in the list `experts`."""


class Predicted(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer was predicted to take, of the one expert or of the whole panel. None is not measured."""

    ttft_s: Quantiles | None
    """Seconds until the first token."""
    total_s: Quantiles | None
    """Seconds until the last token."""
    energy_j: Quantiles | None
    """Joules of the request."""
    energy_quality: str | None
    """Quality of the measurements that the joules rest on."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A choice of experts with everything that it was based on."""

    mode: str
    """How the experts work together."""
    category: str | None
    """The category whose default budgets applied."""
    kind: str | None
    """The kind of prompt that the gate takes this one for."""
    budgets: dict[str, Any]
    """The limits in force, by name."""
    experts: tuple[ExpertRow, ...]
    """The experts that could serve the request. Of more than `MAX_WHOLE_FLEET` only those that were chosen and the
    nearest few are here, unless all were asked for."""
    proof: ProofRow = msgspec.field(name="certificate")
    """What the planner proves of the candidates."""
    predicted: Predicted | None = None
    """What the answer was predicted to take; None where nobody is chosen."""
    fleet_power: FleetPowerRow | None = None
    """The fleet's power against its cap; None where it is not capped."""
    price: PriceRow | None = None
    """The price of a joule; None where the request stands under no average budget."""
    counts: Counts | None = None
    """How many experts there were; None from a coordinator of an earlier release."""


def decision_of(selection: Selection, explain: Explain = Explain.ALL) -> Decision:
    """The decision that chose an expert or a panel, as shown."""
    experts = _rows(selection.outlook, selection.plan, selection, explain)
    return Decision(
        mode=selection.mode,
        category=selection.category,
        kind=selection.kind,
        budgets=_limits(selection.budgets),
        experts=experts,
        proof=_proof(selection.plan.proof),
        predicted=predicted_of(selection.predicted),
        fleet_power=_fleet_power(selection.outlook.draw),
        price=_price(selection.outlook),
        counts=_counts(selection.outlook, len(selection.candidate_places), len(experts)),
    )


def predicted_of(prediction: Prediction) -> Predicted:
    """The prediction of an expert or a panel, as shown."""
    return Predicted(
        ttft_s=prediction.ttft_s,
        total_s=prediction.total_s,
        energy_j=prediction.energy_j,
        energy_quality=prediction.energy_quality,
    )


def refusal_of(refused: NoExpert, explain: Explain = Explain.ALL) -> Decision | None:
    """The decision that found nobody within the budgets, as shown; None where budgets were not the reason."""
    if refused.plan is None or refused.outlook is None:
        return None
    experts = _rows(refused.outlook, refused.plan, None, explain)
    return Decision(
        mode=refused.outlook.work.mode if refused.outlook.work else Mode.ROUTE,
        category=None,
        kind=None,
        budgets=_limits(refused.outlook.budgets),
        experts=experts,
        proof=_proof(refused.plan.proof),
        fleet_power=_fleet_power(refused.outlook.draw),
        price=_price(refused.outlook),
        counts=_counts(refused.outlook, 0, len(experts)),
    )


def offers_of(refused: NoExpert) -> dict[str, Any] | None:
    """The cheapest and the fastest expert with the budgets that each would need; None where budgets were no reason."""
    plan, outlook = refused.plan, refused.outlook
    if plan is None or outlook is None:
        return None
    roster = outlook.forecast.roster

    def quality_of(key: str) -> str | None:
        energy = roster.experts[roster.place[key]].report.energy
        return energy.quality if energy else None

    return {
        label: None
        if offer is None
        else {
            "expert": offer.name,
            "energy_j": offer.energy_j,
            "energy_quality": quality_of(offer.name),
            "total_s": offer.delay_s,
            "ttft_s": offer.first_token_s,
            "needs": {breach.limit.value: breach.needed for breach in offer.breaches},
        }
        for label, offer in (("cheapest", plan.cheapest), ("fastest", plan.fastest))
    }


def frontier_rows(points: Sequence[FrontierPoint]) -> tuple[FrontierRow, ...]:
    """The best value over a range of energy budgets, as shown."""
    return tuple(
        FrontierRow(
            energy_budget_j=point.energy_budget_j,
            value=point.plan.proof.value,
            experts=point.plan.names,
        )
        for point in points
    )


def _rows(outlook: Outlook, plan: Plan, selection: Selection | None, explain: Explain) -> tuple[ExpertRow, ...]:
    """The considered experts that are shown, in the roster's order. selection: None where nobody was chosen."""
    keys = outlook.forecast.roster.keys
    is_candidate = np.zeros(len(keys), dtype=np.bool_)
    is_candidate[selection.candidate_places if selection else []] = True
    weights = {member.expert.key: member.weight for member in selection.members} if selection else {}
    chosen_places = selection.places if selection else ()
    places: Sequence[int] = range(len(keys))
    if explain is Explain.NEAREST and len(keys) > MAX_WHOLE_FLEET:
        places = _nearest(outlook, is_candidate, chosen_places)
    is_panel = selection is not None and selection.mode.is_panel
    late = frozenset(selection.late_places.tolist()) if selection else frozenset()
    rows = []
    for place in places:
        other = outlook.at(place)
        key = other.expert.key
        chosen = key in weights
        candidate = bool(is_candidate[place])
        reason = None if candidate else plan.exclusions.of(place).detail
        if place in late:
            reason = "beside what is at work there it would be late"
        if reason is None and not chosen and selection is not None:
            why = "scores lower" if is_panel else why_not(outlook, place, chosen_places[0])
            reason = f"it keeps the budgets, but {why}"
        rows.append(
            ExpertRow(
                expert=key,
                agent=other.expert.agent_name,
                model=other.expert.model,
                score=other.score,
                score_source="gate" if other.trained else "prior",
                energy_j=other.prediction.energy_j,
                energy_quality=other.prediction.energy_quality,
                ttft_s=other.prediction.ttft_s,
                total_s=other.prediction.total_s,
                candidate=candidate,
                chosen=chosen,
                reason=None if chosen else reason,
                weight=weights.get(key) if is_panel else None,
                added_w=_known(outlook.forecast.added_w[place]) if outlook.draw else None,
            )
        )
    return tuple(rows)


def shortened(decision: Decision) -> Decision:
    """The decision with the chosen experts and the few others that score best, where it shows more than that."""
    most = 1 + NEAREST_CANDIDATES + NEAREST_OTHERS
    if len(decision.experts) <= most:
        return decision
    best = sorted(decision.experts, key=lambda row: (not row.chosen, not row.candidate, -row.score, row.expert))
    n_chosen = sum(row.chosen for row in decision.experts)
    kept = {row.expert for row in best[: max(most, n_chosen)]}
    rows = tuple(row for row in decision.experts if row.expert in kept)
    counts = decision.counts and msgspec.structs.replace(decision.counts, shown=len(rows))
    return msgspec.structs.replace(decision, experts=rows, counts=counts)


def _nearest(outlook: Outlook, is_candidate: BoolArray, chosen: Sequence[int]) -> list[int]:
    """The places of the chosen experts and of those that came nearest to them, in the roster's order.

    is_candidate: (N,). chosen: places of the chosen experts. The nearest have the best score less the price of their
    joules, of equal ones those with the fewest joules: a few of the other candidates, and a few of those that are none.
    """
    near, others = is_candidate.copy(), ~is_candidate
    near[list(chosen)] = others[list(chosen)] = False
    places = set(chosen)
    for which, most in ((near, NEAREST_CANDIDATES), (others, NEAREST_OTHERS)):
        places.update(_best(which.nonzero()[0], outlook, most).tolist())
    return sorted(places)


def _best(places: IntArray, outlook: Outlook, most: int) -> IntArray:
    """The `most` of `places` with the best score less the price of their joules, of equal ones with the fewest joules.

    The best of a whole fleet are found before they are put in order: a sort of thousands takes longer.
    """
    if len(places) <= most:
        return places
    worth = outlook.net_scores[places]
    least = np.partition(worth, len(places) - most)[len(places) - most]
    best: IntArray = places[worth >= least]
    if len(best) > most:
        best = best[np.lexsort((outlook.expected_j[best], -outlook.net_scores[best]))[:most]]
    return best


def _counts(outlook: Outlook, n_candidates: int, n_shown: int) -> Counts:
    return Counts(
        experts=len(outlook.forecast.roster),
        candidates=n_candidates,
        ruled_out=len(outlook.ruled_out),
        shown=n_shown,
    )


def _known(figure: float) -> float | None:
    return None if math.isnan(figure) else float(figure)


def _fleet_power(draw: FleetDraw | None) -> FleetPowerRow | None:
    if draw is None:
        return None
    return FleetPowerRow(
        cap_w=draw.cap_w, drawn_w=draw.drawn_w, simulated=draw.simulated, hosts_unmeasured=len(draw.unmeasured)
    )


def _price(outlook: Outlook) -> PriceRow | None:
    if not outlook.prices and outlook.price_per_j == 0.0:
        return None
    scopes = tuple(
        ScopePriceRow(scope=found.scope, average_energy_j=found.average_energy_j, price_per_j=found.price_per_j)
        for found in outlook.prices
    )
    return PriceRow(price_per_j=outlook.price_per_j, scopes=scopes)


def _limits(budgets: Budgets) -> dict[str, Any]:
    """The limits in force by name, without those that are not set."""
    return budgets.model_dump(exclude_none=True, mode="json")


def _proof(proof: Proof) -> ProofRow:
    return ProofRow(
        method=proof.method,
        status=proof.status,
        value=proof.value,
        upper_bound=proof.upper_bound,
        gap=proof.gap,
        nodes=proof.nodes,
        elapsed_s=proof.elapsed_s,
    )
