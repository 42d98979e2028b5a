"""The recent past for the web page and its live feed: ended requests with their receipts, and energy over time. PURE.

Both are rings of bounded size that forget what is older. Prompts and answers are never kept.
"""

from __future__ import annotations

from collections import deque
from functools import cached_property
from itertools import islice

import msgspec
from msgspec.structs import replace

from moe2.coordinator.choosing.explain import shortened
from moe2.coordinator.fleet.table import FleetPower
from moe2.coordinator.serving.effects import said_of
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.receipt import Receipt

KEPT_REQUESTS = 200
SHOWN_BYTES = 256 * 1024
"""JSON of the ended requests that are shown, all together: the first thing that each viewer of the page gets."""
MAX_EXPERTS = 50
"""Experts in the decision of a request beyond which fewer of them are kept than its client has asked for."""
BIN_S = 10.0
KEPT_BINS = 360


class EndedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that has ended, as the page shows it."""

    seq: int
    """Number of the request among all that have ended since the start, from 1."""
    ended_at_unix_s: float
    asked_model: str
    """The model that the client named."""
    outcome: str
    """The outcome: "completed", "failed" or "cancelled"."""
    reason: str | None
    """The finish reason or the error's code; None for a cancelled request."""
    message: str | None
    """The error's text; None if there was no error."""
    receipt: Receipt


class RunningRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request in progress, as the page shows it."""

    request_id: str
    asked_model: str
    age_s: float
    agents: tuple[str, ...]
    """Names of the agents that have been tried so far, the present one last."""
    answering: bool


class EnergyBin(msgspec.Struct, kw_only=True):
    """The energy, tokens and power of one interval of the history."""

    start_unix_s: float
    joules: dict[str, float] = {}
    """Energy of the requests that ended in the interval, by quality."""
    n_requests: int = 0
    n_unmeasured: int = 0
    tokens: int = 0
    """Tokens that these requests decoded."""
    power_w: float | None = None
    """Mean power of the hosts that know theirs; None if none did."""
    n_hosts_unknown: int = 0
    """The largest number of connected hosts that `power_w` leaves out; where there are some, the fleet drew more."""
    simulated: bool = False


class Entry:
    """An ended request in the ring. Its JSON is made once, when somebody first looks: mostly nobody does."""

    def __init__(self, ended: EndedRequest) -> None:
        self._ended = ended

    @property
    def seq(self) -> int:
        """Number of the request, see `EndedRequest`."""
        return self._ended.seq

    @cached_property
    def json(self) -> msgspec.Raw:
        """The request as the page shows it."""
        return msgspec.Raw(msgspec.json.encode(self._ended))


class RecentRequests:
    """The ring of the last ended requests, of which at most `capacity`, and `most_bytes` of JSON, are shown."""

    def __init__(self, capacity: int, most_bytes: int = SHOWN_BYTES) -> None:
        self._ring: deque[Entry] = deque(maxlen=capacity)
        self._most_bytes = most_bytes
        self.last_seq = 0

    def add(self, life: Lifecycle, receipt: Receipt, ended_at_unix_s: float) -> None:
        """Adds a request that has ended."""
        self.last_seq += 1
        outcome, reason, message = said_of(life.outcome)
        if receipt.decision is not None and len(receipt.decision.experts) > MAX_EXPERTS:
            receipt = replace(receipt, decision=shortened(receipt.decision))
        ended = EndedRequest(
            seq=self.last_seq,
            ended_at_unix_s=ended_at_unix_s,
            asked_model=life.request.model,
            outcome=outcome,
            reason=reason,
            message=message,
            receipt=receipt,
        )
        self._ring.append(Entry(ended))

    def since(self, seq: int, *, most: int | None = None) -> tuple[Entry, ...]:
        """Returns the requests after number `seq`, oldest first, at most the newest `most` of them."""
        n_new = max(0, self.last_seq - seq)
        found: list[Entry] = []
        n_bytes = 0
        for entry in islice(reversed(self._ring), n_new if most is None else min(n_new, most)):
            n_bytes += len(bytes(entry.json))
            if n_bytes > self._most_bytes:
                break
            found.append(entry)
        return tuple(reversed(found))


class EnergyHistory:
    """The ring of the last `capacity` intervals of `bin_s` seconds, with their joules, tokens and power.

    Empty intervals are left out.
    """

    def __init__(self, *, bin_s: float, capacity: int) -> None:
        self.bin_s = bin_s
        self._bins: deque[EnergyBin] = deque(maxlen=capacity)
        self._power_sum_w = 0.0
        self._n_power = 0

    def request_ended(self, receipt: Receipt, now_unix_s: float) -> None:
        """Adds a request's joules and tokens to the present interval."""
        current = self._current(now_unix_s)
        current.n_requests += 1
        for line in receipt.experts:
            current.tokens += line.decoded_tokens or 0
        joules = receipt.energy.joules
        if joules is None:
            current.n_unmeasured += 1
        else:
            quality = receipt.energy.quality.value
            current.joules[quality] = current.joules.get(quality, 0.0) + joules

    def power_sampled(self, power: FleetPower, now_unix_s: float) -> None:
        """Adds a sample of the fleet's power to the present interval."""
        current = self._current(now_unix_s)
        current.n_hosts_unknown = max(current.n_hosts_unknown, power.n_unknown)
        if power.power_w is None:
            return
        self._power_sum_w += power.power_w
        self._n_power += 1
        current.power_w = self._power_sum_w / self._n_power
        current.simulated = current.simulated or power.simulated

    def bins(self) -> tuple[EnergyBin, ...]:
        """Returns the intervals, oldest first; the last one is still being filled."""
        return tuple(self._bins)

    def latest(self) -> EnergyBin | None:
        """Returns the newest interval, or None where there is none."""
        return self._bins[-1] if self._bins else None

    def _current(self, now_unix_s: float) -> EnergyBin:
        start_unix_s = now_unix_s - now_unix_s % self.bin_s
        # The wall clock may be set back: what follows then still belongs to the newest interval.
        if not self._bins or start_unix_s > self._bins[-1].start_unix_s:
            self._bins.append(EnergyBin(start_unix_s=start_unix_s))
            self._power_sum_w, self._n_power = 0.0, 0
        return self._bins[-1]


class RecentPast:
    """The ended requests and the energy history, both fed by the daemon."""

    def __init__(self) -> None:
        self.requests = RecentRequests(KEPT_REQUESTS)
        self.energy = EnergyHistory(bin_s=BIN_S, capacity=KEPT_BINS)

    def request_ended(self, life: Lifecycle, receipt: Receipt, now_unix_s: float) -> None:
        """Adds a request that has ended to both rings."""
        self.requests.add(life, receipt, now_unix_s)
        self.energy.request_ended(receipt, now_unix_s)


def running(lives: tuple[Lifecycle, ...], now_s: float, *, most: int) -> tuple[RunningRequest, ...]:
    """Returns the oldest `most` requests in progress."""
    return tuple(
        RunningRequest(
            request_id=life.request.request_id,
            asked_model=life.request.model,
            age_s=now_s - life.request.arrived_s,
            agents=tuple(attempt.expert.agent_name for attempt in life.attempts),
            answering=life.first_token_s is not None,
        )
        for life in lives[:most]
    )
