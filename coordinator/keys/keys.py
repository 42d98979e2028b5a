"""API keys: their records, the check of a presented key, and the principal who uses one. PURE.

A key is `moe2_ID_SECRET`. The record keeps only a digest of the secret. Random bytes and the time come in as arguments.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from moe2.common.clock import is_clock_wrong
from moe2.common.config import Settings
from moe2.common.link.enrolment import digest, is_same
from moe2.coordinator.choosing.request import NO_BUDGETS, Budgets


class Scope(StrEnum):
    """The rights that a key can have."""

    INFER = "infer"
    """The right to send prompts, ask for plans and give feedback."""
    OBSERVE = "observe"
    """The right to read the fleet, the metrics, the events and the page."""
    OPERATE = "operate"
    """The right to say which host serves which model, and to send files there."""


@dataclass(frozen=True)
class DailyLimits:
    """The limits of what one key may use up per day (UTC). None: no limit."""

    energy_j: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Principal:
    """The holder of a key, whom a request is charged to."""

    key_id: str | None = None
    """The key's id; None where the coordinator asks for no keys."""
    name: str = "anybody"
    scopes: frozenset[Scope] = frozenset(Scope)
    daily: DailyLimits = DailyLimits()
    budgets: Budgets = NO_BUDGETS
    """Defaults for requests that set no budgets of their own; they come before those of the request's category."""
    requests_per_minute: float | None = None
    """The highest rate of requests; None is no limit."""
    average_energy_j: float | None = None
    """Joules that an answer may take on average; None is no limit."""


ANYBODY = Principal()
"""The principal of all requests where no keys are required."""

PREFIX = "moe2"
ID_BYTES = 6
SECRET_BYTES = 32
ENTROPY_BYTES = ID_BYTES + SECRET_BYTES
MAX_KEYS = 10_000

Moment = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=64)]


class KeyState(StrEnum):
    """The states of a key."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"
    UNDECIDED = "undecided"
    """The key expires at some time, and the clock is too wrong to tell whether that has passed."""


class KeyOptions(Settings):
    """The options that are chosen when a key is made. None: no limit, or no end."""

    name: Name
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = (Scope.INFER,)
    expires_at_unix_s: Moment | None = None
    requests_per_minute: Positive | None = None
    daily_energy_j: Positive | None = None
    daily_tokens: Annotated[int, Field(gt=0)] | None = None
    average_energy_j: Positive | None = None
    """Joules that an answer may take on average."""
    budgets: Budgets = Budgets()
    """Defaults for requests that set no budgets of their own."""

    @model_validator(mode="after")
    def _average_is_below_the_limit(self) -> KeyOptions:
        most_j, average_j = self.budgets.energy_budget_j, self.average_energy_j
        if most_j is not None and average_j is not None and average_j >= most_j:
            raise ValueError(
                f"an average of {average_j:g} J has no effect where no answer may exceed {most_j:g} J; set a "
                "smaller average, or none"
            )
        return self

    @field_validator("name")
    @classmethod
    def _name_is_printable(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip():
            raise ValueError("a key's name must be printable and neither begin nor end with white space")
        return name


class KeyRecord(KeyOptions):
    """The stored record of a key. `secret_sha256` is the digest of the secret's text, in hexadecimal."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    secret_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    created_at_unix_s: Moment
    revoked_at_unix_s: Moment | None = None

    def state(self, now_unix_s: float) -> KeyState:
        """Returns the state of the key at a moment."""
        if self.revoked_at_unix_s is not None:
            return KeyState.REVOKED
        if self.expires_at_unix_s is not None:
            if is_clock_wrong(now_unix_s, written_unix_s=self.created_at_unix_s):
                return KeyState.UNDECIDED
            if now_unix_s >= self.expires_at_unix_s:
                return KeyState.EXPIRED
        return KeyState.ACTIVE

    @property
    def principal(self) -> Principal:
        """The principal who uses the key."""
        return Principal(
            key_id=self.id,
            name=self.name,
            scopes=frozenset(self.scopes),
            daily=DailyLimits(energy_j=self.daily_energy_j, tokens=self.daily_tokens),
            budgets=self.budgets,
            requests_per_minute=self.requests_per_minute,
            average_energy_j=self.average_energy_j,
        )


class KeySet(Settings):
    """All keys of a coordinator, in the order in which they were made; the content of its key file."""

    version: Literal[1] = 1
    keys: Annotated[tuple[KeyRecord, ...], Field(max_length=MAX_KEYS)] = ()

    @field_validator("keys")
    @classmethod
    def _ids_are_unique(cls, keys: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
        if len({key.id for key in keys}) < len(keys):
            raise ValueError("two keys have the same id")
        return keys

    def by_id(self) -> dict[str, KeyRecord]:
        """The records by their ids."""
        return {key.id: key for key in self.keys}

    def with_key(self, record: KeyRecord) -> KeySet:
        """Returns the same keys with one more record at the end."""
        return KeySet(keys=(*self.keys, record))

    def with_revoked(self, key_id: str, now_unix_s: float) -> KeySet:
        """Returns the keys with this one revoked; one that already was keeps the moment of the first time."""
        return KeySet(
            keys=tuple(
                key.model_copy(update={"revoked_at_unix_s": now_unix_s})
                if key.id == key_id and key.revoked_at_unix_s is None
                else key
                for key in self.keys
            )
        )


class Refusal(StrEnum):
    """The reasons why a presented key is not accepted.

    All but the first and the last are told only to holders of the right secret.
    """

    UNKNOWN = "unknown"
    EXPIRED = "expired"
    REVOKED = "revoked"
    CLOCK_WRONG = "clock_wrong"
    COPY_TOO_OLD = "copy_too_old"
    """Nobody can say whether the key is still good: the database that keeps the keys has not been reached for long."""


def mint(options: KeyOptions, *, entropy: bytes, now_unix_s: float) -> tuple[KeyRecord, str]:
    """Makes a key: returns the record to keep, and the key to hand out once. entropy: `ENTROPY_BYTES` random bytes."""
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"a key needs {ENTROPY_BYTES} random bytes, not {len(entropy)}")
    key_id = entropy[:ID_BYTES].hex()
    secret = urlsafe_b64encode(entropy[ID_BYTES:]).rstrip(b"=").decode()
    record = KeyRecord(
        **dict(options),
        id=key_id,
        secret_sha256=digest(secret),
        created_at_unix_s=now_unix_s,
    )
    return record, f"{PREFIX}_{key_id}_{secret}"


def check(presented: str, records: Mapping[str, KeyRecord], now_unix_s: float) -> KeyRecord | Refusal:
    """Returns the record of a presented key, or why it is refused.

    An unknown id costs as much time as a wrong secret, and both look the same.
    """
    prefix, _, rest = presented.partition("_")
    key_id, _, secret = rest.partition("_")
    record = records.get(key_id) if prefix == PREFIX else None
    kept = record.secret_sha256 if record else "0" * 64
    if not is_same(digest(secret), kept) or record is None:
        return Refusal.UNKNOWN
    match record.state(now_unix_s):
        case KeyState.ACTIVE:
            return record
        case KeyState.EXPIRED:
            return Refusal.EXPIRED
        case KeyState.REVOKED:
            return Refusal.REVOKED
        case KeyState.UNDECIDED:
            return Refusal.CLOCK_WRONG
