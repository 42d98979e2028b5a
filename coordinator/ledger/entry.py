"""What the ledger keeps of a request: no prompt and no answer, only what it was and what it took. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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


class AttemptState(StrEnum):
    RUNNING = "running"
    STOPPING = "stopping"
    ANSWERED = "answered"
    OUTVOTED = "outvoted"
    """Done, and another expert's answer was preferred."""
    FAILED = "failed"
    BROKEN_OFF = "broken_off"
    """It failed or was lost in mid-answer, and its words are the beginning of an answer that was completed."""
    CANCELLED = "cancelled"
    HEDGED = "hedged"
    """Stopped, because another expert's first token came sooner."""
    LOST = "lost"
