"""The ledger's entries: what a request was and what it took, without its prompt and its answer. PURE."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from moe2.common.standby import StandingEnergy


class AttemptEntry(msgspec.Struct, frozen=True):
    """The work of one expert for a request; the fields are the columns of the table `attempts`. None: not known."""

    request_id: str
    place: int
    """The number of the attempt within its request, from 0."""
    expert: str
    agent: str
    model: str
    outcome: str
    """An `AttemptState`, which is the cause that the attempt's joules are listed under."""
    prompt_tokens: int | None
    cached_tokens: int | None
    decoded_tokens: int | None
    seconds: float | None
    """Time on the agent, its queue included."""
    joules: float | None
    quality: str
    predicted_j_p50: float | None
    """The median of the joules that were predicted when the expert was chosen."""
    predicted_j_p95: float | None
    """The p95 of the joules that were predicted when the expert was chosen."""
    predicted_s_p50: float | None
    """The median of the seconds that were predicted when the expert was chosen."""
    predicted_s_p95: float | None
    """The p95 of the seconds that were predicted when the expert was chosen."""
    file_sha256: str | None = None
    """The checksum of the model's file when the expert was chosen."""


class RequestEntry(msgspec.Struct, frozen=True):
    """The entry of one request. None: not known.

    The fields but the last two are the columns of the table `requests`.
    """

    request_id: str
    at_unix_s: float
    """When the last byte of the request had been read."""
    day: str
    """The day of `at_unix_s` in UTC."""
    key_id: str | None
    key_name: str
    mode: str
    category: str | None
    model: str
    """The model that the client asked for."""
    outcome: str
    """The outcome: "completed", "failed", "cancelled" or "interrupted".

    A request is interrupted if the coordinator ended before it did.
    """
    code: str | None
    """The finish reason, or the error's code."""
    prompt_tokens: int | None
    cached_tokens: int | None
    decoded_tokens: int | None
    ttft_s: float | None
    total_s: float | None
    joules: float | None
    """Joules of all attempts together."""
    quality: str
    charged_j: float | None
    """Joules charged to the key's day; more than `joules` where a reservation stays charged."""
    charged_tokens: int | None
    was_reserved: bool = False
    attempts: tuple[AttemptEntry, ...] = ()


REQUEST_COLUMNS = tuple(name for name in RequestEntry.__struct_fields__ if name not in ("was_reserved", "attempts"))
ATTEMPT_COLUMNS = AttemptEntry.__struct_fields__


class ReservationEntry(msgspec.Struct, frozen=True):
    """The reservation of a request in progress; the fields are the columns of the table `reservations`."""

    request_id: str
    at_unix_s: float
    day: str
    key_id: str | None
    key_name: str
    model: str
    energy_j: float | None
    tokens: int | None


class StandingEntry(msgspec.Struct, frozen=True):
    """Joules of an agent's host that belong to no request, since the last such entry.

    by_cause: (cause, joules) pairs. hour_unix_s: the beginning of the hour that they are entered into. counters: the
    agent's, of which all has been booked with this entry.
    """

    agent: str
    agent_name: str
    hour_unix_s: int
    by_cause: tuple[tuple[str, float], ...]
    quality: str
    counters: StandingEnergy


class AttemptState(StrEnum):
    """The states of an expert's work for a request."""

    RUNNING = "running"
    STOPPING = "stopping"
    ANSWERED = "answered"
    OUTVOTED = "outvoted"
    """The work was done, but another expert's answer was preferred."""
    FAILED = "failed"
    BROKEN_OFF = "broken_off"
    """The attempt failed or was lost in mid-answer, and its words begin an answer that another one completed."""
    CANCELLED = "cancelled"
    HEDGED = "hedged"
    """The work was stopped because another expert's first token came sooner."""
    LOST = "lost"
