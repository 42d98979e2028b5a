"""What the ledger keeps of a request: no prompt and no answer, only what it was and what it took. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.common.cost import Quantiles
from moe2.common.energy import Energy, Quality
from moe2.common.messages import JobUsage
from moe2.coordinator.dispatch import Attempt, Lifecycle
from moe2.coordinator.ledger.accounts import Amount
from moe2.coordinator.receipt import ExpertLine, Receipt
from moe2.coordinator.recent import said_of

MOST_CHARACTERS = 200
"""Of a text that somebody else chose."""


@dataclass(frozen=True)
class AttemptEntry:
    """One expert's work; the fields are the columns of the table `attempts`. None: nobody can say.

    outcome: an `AttemptState`, which is the cause that its joules are listed under. seconds: on the agent, its queue
    included. predicted_*: what the choice was based on.
    """

    request_id: str
    place: int
    expert: str
    agent: str
    model: str
    outcome: str
    prompt_tokens: int | None
    cached_tokens: int | None
    decoded_tokens: int | None
    seconds: float | None
    joules: float | None
    quality: str
    predicted_j_p50: float | None
    predicted_j_p95: float | None
    predicted_s_p50: float | None
    predicted_s_p95: float | None


@dataclass(frozen=True)
class RequestEntry:
    """One request; the fields but the last two are the columns of the table `requests`. None: nobody can say.

    at_unix_s: when its last byte had been read. day: in UTC. model: what the client asked for. outcome: "completed",
    "failed", "cancelled" or "interrupted" (the coordinator ended before it did). code: finish reason or error code.
    joules: of all attempts. charged_*: to the key's day; more than is known where a reservation stays charged.
    """

    request_id: str
    at_unix_s: float
    day: str
    key_id: str | None
    key_name: str
    mode: str
    category: str | None
    model: str
    outcome: str
    code: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    decoded_tokens: int | None
    ttft_s: float | None
    total_s: float | None
    joules: float | None
    quality: str
    charged_j: float | None
    charged_tokens: int | None
    was_reserved: bool = False
    attempts: tuple[AttemptEntry, ...] = ()


@dataclass(frozen=True)
class ReservationEntry:
    """What a request in progress may come to; the fields are the columns of the table `reservations`."""

    request_id: str
    at_unix_s: float
    day: str
    key_id: str | None
    key_name: str
    model: str
    energy_j: float | None
    tokens: int | None


def request_entry(
    life: Lifecycle, receipt: Receipt, charged: Amount, *, at_unix_s: float, day: str, was_reserved: bool
) -> RequestEntry:
    """A request as it stands; final once it has retired."""
    request = life.request
    outcome, code, _ = said_of(life.outcome)
    return RequestEntry(
        request_id=request.request_id,
        at_unix_s=at_unix_s,
        day=day,
        key_id=request.principal.key_id,
        key_name=_text(request.principal.name),
        mode=receipt.mode,
        category=_category(life),
        model=_text(request.model),
        outcome=outcome,
        code=None if code is None else _text(code),
        prompt_tokens=receipt.tokens.prompt,
        cached_tokens=receipt.tokens.cached,
        decoded_tokens=receipt.tokens.decoded,
        ttft_s=receipt.seconds.ttft,
        total_s=receipt.seconds.total,
        joules=receipt.energy.joules,
        quality=_quality(receipt.energy),
        charged_j=charged.energy_j,
        charged_tokens=charged.tokens,
        was_reserved=was_reserved,
        attempts=tuple(
            _attempt_entry(request.request_id, place, attempt, line)
            for place, (attempt, line) in enumerate(zip(life.attempts, receipt.experts, strict=True))
        ),
    )


def reservation_entry(life: Lifecycle, amount: Amount, *, at_unix_s: float, day: str) -> ReservationEntry:
    """What is reserved for a request now."""
    request = life.request
    return ReservationEntry(
        request_id=request.request_id,
        at_unix_s=at_unix_s,
        day=day,
        key_id=request.principal.key_id,
        key_name=_text(request.principal.name),
        model=_text(request.model),
        energy_j=amount.energy_j,
        tokens=amount.tokens,
    )


def _attempt_entry(request_id: str, place: int, attempt: Attempt, line: ExpertLine) -> AttemptEntry:
    usage, prediction = attempt.usage, attempt.prediction
    predicted_j, predicted_s = prediction.energy_j, prediction.total_s
    return AttemptEntry(
        request_id=request_id,
        place=place,
        expert=_text(line.expert),
        agent=_text(line.agent),
        model=_text(line.model),
        outcome=str(line.outcome),
        prompt_tokens=usage.prompt_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        decoded_tokens=line.decoded_tokens,
        seconds=_seconds(usage),
        joules=line.energy.joules,
        quality=_quality(line.energy),
        predicted_j_p50=_p50(predicted_j),
        predicted_j_p95=_p95(predicted_j),
        predicted_s_p50=_p50(predicted_s),
        predicted_s_p95=_p95(predicted_s),
    )


def _category(life: Lifecycle) -> str | None:
    category = life.attempts[-1].selection.category if life.attempts else life.request.wish.category
    return None if category is None else _text(category)


def _quality(energy: Energy) -> str:
    return (energy.quality if energy.joules is not None else Quality.UNMEASURED).value


def _seconds(usage: JobUsage | None) -> float | None:
    if usage is None:
        return None
    phases = [seconds for seconds in (usage.queue_s, usage.prefill_s, usage.decode_s) if seconds is not None]
    return sum(phases) if phases else None


def _p50(quantiles: Quantiles | None) -> float | None:
    return quantiles.p50 if quantiles else None


def _p95(quantiles: Quantiles | None) -> float | None:
    return quantiles.p95 if quantiles else None


def _text(text: str) -> str:
    """What a database takes: no lone surrogates, and not too long."""
    return text[:MOST_CHARACTERS].encode("utf-8", "replace").decode()
