"""The receipt: who answered, what it took, what it cost. PURE. The `moe2` object of every response."""

from __future__ import annotations

from typing import Any

import msgspec

from moe2.common.cost import Quantiles
from moe2.common.energy import NEVER_RAN, Energy, total, unmeasured
from moe2.common.messages import JobUsage
from moe2.coordinator.decision import Decision, decision_of, refusal_of
from moe2.coordinator.dispatch import Attempt, AttemptState, Lifecycle
from moe2.coordinator.predict import Prediction


class ExpertLine(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt. outcome: an `AttemptState`; decoded_tokens None where nobody can say."""

    expert: str
    agent: str
    model: str
    outcome: str
    decoded_tokens: int | None
    energy: dict[str, Any]
    error: str | None


class TokenCounts(msgspec.Struct, frozen=True, kw_only=True):
    prompt: int | None
    cached: int | None
    decoded: int | None


class Seconds(msgspec.Struct, frozen=True, kw_only=True):
    """Durations of the request's phases.

    queue, prefill, decode: on the agent, as measured there. overhead: in the coordinator, from the request's last byte
    to its dispatch. ttft, total: from the request's last byte, as seen by the coordinator.
    simulated: an expert was held to the speed of a host that is not there.
    """

    overhead: float | None
    queue: float | None
    prefill: float | None
    decode: float | None
    ttft: float | None
    total: float | None
    simulated: bool | None = None


class Predicted(msgspec.Struct, frozen=True, kw_only=True):
    """What the choice was based on. None: the expert had not been measured.

    energy_quality: of the measurements behind the joules.
    """

    ttft_s: Quantiles | None
    total_s: Quantiles | None
    energy_j: Quantiles | None
    energy_quality: str | None


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """energy: the sum over all attempts, those that failed included. decision: of the last attempt."""

    request_id: str
    mode: str
    experts: tuple[ExpertLine, ...]
    tokens: TokenCounts
    seconds: Seconds
    predicted: Predicted | None
    energy: dict[str, Any]
    decision: Decision | None


def receipt_of(life: Lifecycle) -> Receipt:
    """The receipt of a request, complete once it has ended."""
    first = life.attempts[0] if life.attempts else None
    last = life.attempts[-1] if life.attempts else None
    usage = last.usage if last else None
    arrived_s = life.request.arrived_s
    return Receipt(
        request_id=life.request.request_id,
        mode="route",
        experts=tuple(_line(attempt) for attempt in life.attempts),
        tokens=TokenCounts(
            prompt=usage.prompt_tokens if usage else None,
            cached=usage.cached_tokens if usage else None,
            decoded=usage.decoded_tokens if usage else None,
        ),
        seconds=Seconds(
            overhead=first.submitted_s - arrived_s if first else None,
            queue=usage.queue_s if usage else None,
            prefill=usage.prefill_s if usage else None,
            decode=usage.decode_s if usage else None,
            ttft=None if life.first_token_s is None else life.first_token_s - arrived_s,
            total=None if life.concluded_s is None else life.concluded_s - arrived_s,
            simulated=any(attempt.expert.report.paced for attempt in life.attempts) if life.attempts else None,
        ),
        predicted=_predicted(last.prediction) if last else None,
        energy=_shown(energy_of(life)),
        decision=_decision(life),
    )


def energy_of(life: Lifecycle) -> Energy:
    """What the request has cost so far, attempts that failed or were cancelled included."""
    if life.outcome and not life.attempts:
        return NEVER_RAN
    return total(_energy(attempt) for attempt in life.attempts)


def _decision(life: Lifecycle) -> Decision | None:
    if life.attempts:
        return decision_of(life.attempts[-1].selection)
    return refusal_of(life.refused) if life.refused else None


def _predicted(prediction: Prediction) -> Predicted:
    return Predicted(
        ttft_s=prediction.ttft_s,
        total_s=prediction.total_s,
        energy_j=prediction.energy_j,
        energy_quality=prediction.energy_quality,
    )


def _line(attempt: Attempt) -> ExpertLine:
    expert = attempt.expert
    return ExpertLine(
        expert=expert.key,
        agent=expert.agent_name,
        model=expert.model,
        outcome=attempt.state,
        decoded_tokens=attempt.usage.decoded_tokens if attempt.usage else None,
        energy=_shown(_energy(attempt)),
        error=attempt.error,
    )


def _energy(attempt: Attempt) -> Energy:
    usage: JobUsage | None = attempt.usage
    if usage is not None:
        return usage.energy
    if attempt.state is AttemptState.FAILED:
        return NEVER_RAN
    return unmeasured(attempt.error or "not reported yet")


def _shown(energy: Energy) -> dict[str, Any]:
    """All keys, unknown ones as null: a reader must not have to guess what a missing key means."""
    return msgspec.structs.asdict(energy)
