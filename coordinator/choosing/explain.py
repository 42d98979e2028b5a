"""A decision as shown to people and programs: who was in, who was out and why, how good it provably is. PURE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from moe2.common.cost import Quantiles
from moe2.coordinator.choosing.forecast import Prediction
from moe2.coordinator.choosing.power_cap import FleetDraw
from moe2.coordinator.choosing.request import Budgets, Mode
from moe2.coordinator.choosing.result import NoExpert, Outlook, Selection
from moe2.coordinator.planning.frontier import FrontierPoint
from moe2.coordinator.planning.proof import Plan, Proof


class ExpertRow(msgspec.Struct, frozen=True, kw_only=True):
    """One expert in the decision.

    score: probability that it answers this prompt well; score_source: "gate", or "prior" where it has no training data.
    energy_j, ttft_s, total_s: predicted, None where it was never measured. energy_quality: of the measurements behind
    the joules. candidate: it keeps the budgets. weight: its share where a panel answers. reason: why it was not chosen.
    added_w: what it would add to its host's power, where the fleet's is capped; None where unknown.
    """

    expert: str
    agent: str
    model: str
    score: float
    score_source: str
    energy_j: Quantiles | None
    energy_quality: str | None
    ttft_s: Quantiles | None
    total_s: Quantiles | None
    candidate: bool
    chosen: bool
    reason: str | None
    weight: float | None = None
    added_w: float | None = None


class FleetPowerRow(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet's power against its cap. drawn_w: by all hosts that are known. simulated: some of it is.

    hosts_unmeasured: hosts that do not count, because nobody knows what they draw; they get no requests.
    """

    cap_w: float
    drawn_w: float
    simulated: bool
    hosts_unmeasured: int


class ProofRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner proves of the candidate set. None: nothing was feasible."""

    method: str
    status: str
    value: float | None
    upper_bound: float | None
    gap: float | None
    nodes: int
    elapsed_s: float | None


class FrontierRow(msgspec.Struct, frozen=True, kw_only=True):
    """The best that an energy budget can buy. value None: nothing is feasible."""

    energy_budget_j: float
    value: float | None
    experts: tuple[str, ...]


class Predicted(msgspec.Struct, frozen=True, kw_only=True):
    """What the choice was based on: of the expert that answers, or of the panel together. None: not measured.

    energy_quality: of the measurements behind the joules.
    """

    ttft_s: Quantiles | None
    total_s: Quantiles | None
    energy_j: Quantiles | None
    energy_quality: str | None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The two levels' answer. category: whose default budgets applied; kind: what the gate takes the prompt for.

    predicted: None where nobody is chosen. fleet_power: None where it is not capped.
    """

    mode: str
    category: str | None
    kind: str | None
    budgets: dict[str, Any]
    experts: tuple[ExpertRow, ...]
    proof: ProofRow = msgspec.field(name="certificate")
    predicted: Predicted | None = None
    fleet_power: FleetPowerRow | None = None


def decision_of(selection: Selection) -> Decision:
    """The decision behind a chosen expert or panel."""
    return Decision(
        mode=selection.mode,
        category=selection.category,
        kind=selection.kind,
        budgets=_limits(selection.budgets),
        experts=_rows(selection.outlook, selection.plan, selection),
        proof=_proof(selection.plan.proof),
        predicted=predicted_of(selection.predicted),
        fleet_power=_fleet_power(selection.outlook.draw),
    )


def predicted_of(prediction: Prediction) -> Predicted:
    """A prediction as shown."""
    return Predicted(
        ttft_s=prediction.ttft_s,
        total_s=prediction.total_s,
        energy_j=prediction.energy_j,
        energy_quality=prediction.energy_quality,
    )


def refusal_of(refused: NoExpert) -> Decision | None:
    """The decision behind budgets that nobody keeps; None where it was not a matter of budgets."""
    if refused.plan is None or refused.outlook is None:
        return None
    return Decision(
        mode=refused.outlook.work.mode if refused.outlook.work else Mode.ROUTE,
        category=None,
        kind=None,
        budgets=_limits(refused.outlook.budgets),
        experts=_rows(refused.outlook, refused.plan, None),
        proof=_proof(refused.plan.proof),
        fleet_power=_fleet_power(refused.outlook.draw),
    )


def offers_of(refused: NoExpert) -> dict[str, Any] | None:
    """The cheapest and the fastest expert, and what the budgets would have to be for each."""
    plan = refused.plan
    if plan is None:
        return None
    qualities = {other.expert.key: other.prediction.energy_quality for other in refused.considered}
    return {
        label: None
        if offer is None
        else {
            "expert": offer.name,
            "energy_j": offer.energy_j,
            "energy_quality": qualities.get(offer.name),
            "total_s": offer.delay_s,
            "ttft_s": offer.first_token_s,
            "needs": {breach.limit.value: breach.needed for breach in offer.breaches},
        }
        for label, offer in (("cheapest", plan.cheapest), ("fastest", plan.fastest))
    }


def frontier_rows(points: Sequence[FrontierPoint]) -> tuple[FrontierRow, ...]:
    """The frontier as shown."""
    return tuple(
        FrontierRow(
            energy_budget_j=point.energy_budget_j,
            value=point.plan.proof.value,
            experts=point.plan.names,
        )
        for point in points
    )


def _rows(outlook: Outlook, plan: Plan, selection: Selection | None) -> tuple[ExpertRow, ...]:
    candidates = selection.candidates if selection else frozenset()
    reasons = {exclusion.name: exclusion.detail for exclusion in plan.exclusions if exclusion.name not in candidates}
    weights = {member.expert.key: member.weight for member in selection.members} if selection else {}
    is_panel = selection is not None and selection.mode.is_panel
    rows = []
    for place, other in enumerate(outlook.considered):
        key = other.expert.key
        chosen = key in weights
        reason = reasons.get(key)
        if reason is None and not chosen and selection is not None:
            better = is_panel or selection.first.score > other.score
            reason = f"a candidate, but {'scores lower' if better else 'is predicted to end later'}"
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
                candidate=key in candidates,
                chosen=chosen,
                reason=None if chosen else reason,
                weight=weights.get(key) if is_panel else None,
                added_w=_known(outlook.forecast.added_w[place]) if outlook.draw else None,
            )
        )
    return tuple(rows)


def _known(figure: float) -> float | None:
    return None if math.isnan(figure) else float(figure)


def _fleet_power(draw: FleetDraw | None) -> FleetPowerRow | None:
    if draw is None:
        return None
    return FleetPowerRow(
        cap_w=draw.cap_w, drawn_w=draw.drawn_w, simulated=draw.simulated, hosts_unmeasured=len(draw.unmeasured)
    )


def _limits(budgets: Budgets) -> dict[str, Any]:
    """The limits in force; those that are not set are left out."""
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
