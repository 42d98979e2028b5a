"""A daemon's status as a value. `status --json` prints exactly this; every other view is drawn from it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from moe2.common.energy import Quality
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.reports import ExpertReport, HostFacts, SensorReport
from moe2.common.link.supply import ModelStore
from moe2.common.standby import Standby


class LinkState(StrEnum):
    CONNECTED = "connected"
    CONNECTING = "connecting"
    WAITING = "waiting"
    """Between two attempts."""


class LinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's link to its coordinator."""

    url: str
    state: LinkState
    connected_since_unix_s: float | None = None
    rtt_s: float | None = None
    protocol: int | None = None
    attempts: int = 0
    next_attempt_in_s: float | None = None
    last_error: str | None = None
    last_error_code: str | None = None
    """A `Refusal`, a `TlsFault`, or why the session was closed; None for any other trouble of the network."""
    last_error_remedy: str | None = None
    """What to do about it, where that is known; `last_error` ends with it."""
    last_error_at_unix_s: float | None = None


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `moe2-agent status` shows."""

    agent_id: str
    agent_name: str
    version: str
    pid: int
    uptime_s: float
    draining: bool
    host: HostFacts
    sensors: tuple[SensorReport, ...]
    experts: tuple[ExpertReport, ...]
    link: LinkStatus
    jobs_finished: int
    jobs_failed: int
    warnings: tuple[HealthWarning, ...]
    standby: Standby | None = None
    model_files: dict[str, str] = {}
    links: tuple[LinkStatus, ...] = ()
    """The links to all coordinators; `link` is the first of them that is open, or the first one."""
    """Paths by the models' names. They stay on this host: the coordinator has no use for them."""
    models: ModelStore | None = None
    """The files in the host's folder of models, and what they leave free."""


class ModelOrderRow(msgspec.Struct, frozen=True, kw_only=True):
    """An order about a model to one host. verb: "add", "set" or "remove". state: "running", "done", "refused" or
    "failed"; message: why not."""

    command_id: str
    verb: str
    model: str
    agent_id: str
    host: str
    state: str
    given_unix_s: float
    message: str | None = None


class PushRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model on its way from the coordinator to one host.

    state: "waiting" for its turn or for the host, "sending", "done", "refused" or "failed"; message: why.
    source: who gives it now, or gave it last: "coordinator", or a neighbour's name.
    """

    command_id: str
    file: str
    sha256: str
    agent_id: str
    host: str
    state: str
    done_bytes: int
    size_bytes: int
    given_unix_s: float
    message: str | None = None
    source: str = "coordinator"


class PullRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model that one host pulls because an operator has said so.

    source: without what may be secret in it. state: "waiting" for the host, "pulling", "done", "refused" or "failed";
    message: why. done_bytes, size_bytes: as the host has told; None until then.
    """

    command_id: str
    file: str
    source: str
    agent_id: str
    host: str
    state: str
    given_unix_s: float
    done_bytes: int | None = None
    size_bytes: int | None = None
    message: str | None = None


class AgentRow(msgspec.Struct, frozen=True, kw_only=True):
    """One agent as the coordinator sees it."""

    agent_id: str
    agent_name: str
    version: str
    connected: bool
    draining: bool
    report_age_s: float | None
    rtt_s: float | None
    host: HostFacts | None
    experts: tuple[ExpertReport, ...]
    sensors: tuple[SensorReport, ...]
    warnings: tuple[HealthWarning, ...]
    standby: Standby | None = None
    """How its host waits; None from an agent of an earlier release."""
    models: ModelStore | None = None
    """Its host's files and what they leave free; None from an agent of an earlier release."""
    asleep: bool = False
    """Its host sleeps: it said goodbye for that, and comes back when it is woken. Its other fields are of before."""


class BreakerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One expert's breaker. state: "closed", "half_open" or "open"."""

    expert: str
    state: str


class DispatchStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of dispatching: how hard it is to get requests answered.

    waiting: requests that wait for an expert with room now. queue_refused: those for which there was no place.
    internal_errors: those that ended because the coordinator could not handle what happened to them.
    hedges_won, hedges_lost: requests that a second expert was started for because the first was late, by whether the
    second one answered. resumed: answers that another expert went on with. breakers: of the experts that answered or
    failed.
    """

    waiting: int = 0
    queue_refused: int = 0
    internal_errors: int = 0
    hedges_won: int = 0
    hedges_lost: int = 0
    resumed: int = 0
    breakers: tuple[BreakerRow, ...] = ()


class EnergyBalance(msgspec.Struct, frozen=True, kw_only=True):
    """The joules of all hosts since the coordinator's start, as their agents have measured them.

    answers: completed requests. requests_j: of all requests, as far as they are known; unmeasured: the others. idle_j,
    loading_j, waking_j, other_j: of no request, by cause. All joules are None where no host has a sensor. j_per_answer:
    all of it together for each answer, a lower bound where requests are unmeasured; None before the first.
    """

    since_unix_s: float
    answers: int = 0
    unmeasured: int = 0
    requests_j: float | None = None
    idle_j: float | None = None
    loading_j: float | None = None
    waking_j: float | None = None
    other_j: float | None = None
    j_per_answer: float | None = None
    quality: Quality = Quality.UNMEASURED


class AverageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One average budget: of the fleet, of a category, of a key, or of what a key's daily limit leaves each answer.

    mean_j: joules per answer over about the last hundred; None before the first. price_per_j: score, 0..1, that one
    joule has to bring. n_unmeasured: requests that it could not count, as nobody knows their joules. saturated: the
    latest requests could not have been answered for less, so that a higher price would change nothing. simulated: the
    latest joules that were counted are a simulated host's. of_day: what is left of a key's daily limit for each answer
    until midnight UTC, which nobody has set.
    """

    scope: str
    average_energy_j: float
    price_per_j: float
    mean_j: float | None
    n_answers: int
    n_unmeasured: int = 0
    saturated: bool = False
    simulated: bool = False
    of_day: bool = False


class ChangeRow(msgspec.Struct, frozen=True, kw_only=True):
    """A change of state of a host: wake, suspend, load or unload. saves_w, costs_j: None where unmeasured or none."""

    change: str
    host: str
    expert: str | None
    reason: str
    saves_w: float | None = None
    costs_j: float | None = None


class ProvisioningStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the slow level thinks of who is awake.

    mode: "observe", "act" or "off". status: of its latest proof, "optimal", "bounded" or "infeasible"; None before the
    first. awake: keys of the experts that it wants in memory. standing_w: watts of the fleet that waits so; least_w: no
    such set draws fewer, as is proven. loss, late: score given up, and share of late first tokens, in this hour.
    price_per_j: score that a joule of waiting has to bring. stays: experts that are left as they are, with the reason.
    correction: what contradicts, and the cheapest change that mends it. changes: what it does, or would do. In mode
    observe, of today: saved_j: joules that this would have saved; waited_j: joules of waiting that it would have
    spared; returns: wakes and reloads in place of that waiting; would_sleep: the experts that would have slept.
    """

    mode: str
    status: str | None = None
    awake: tuple[str, ...] = ()
    standing_w: float | None = None
    least_w: float | None = None
    loss: float | None = None
    late: float | None = None
    requests_per_hour: float | None = None
    price_per_j: float | None = None
    solve_s: float | None = None
    stays: dict[str, str] = {}
    correction: str | None = None
    changes: tuple[ChangeRow, ...] = ()
    pinned: tuple[str, ...] = ()
    kept_asleep: tuple[str, ...] = ()
    saved_j: float | None = None
    waited_j: float | None = None
    returns: int = 0
    would_sleep: tuple[str, ...] = ()
    returning: tuple[str, ...] = ()
    """Hosts and models that mode act has put to sleep and that are being brought back, now that it is over."""
    n_awake: int | None = None
    n_stays: int | None = None
    """How many there are, where `awake` and `stays` were cut short; None where they were not."""


class PairStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A coordinator's part in a group that shares a database, mostly a pair."""

    name: str
    """What it is called there."""
    preferred: bool
    """It does the chores of all, and a balancer that keeps the others in reserve should prefer it."""
    reached: bool
    """The database has answered within the last few seconds."""
    unshipped: int
    """Entries of this coordinator's ledger that are not in the database yet."""
    others: tuple[str, ...]
    """The other coordinators that the database had heard of in the minute before it was last asked."""


class FleetCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of the whole fleet, however many of its hosts are shown.

    agents: all that are known. connected, asleep: of them. experts, experts_ready, slots, slots_active, queued, models:
    of those that are connected. matching: agents that were looked for; those that are shown begin at `offset` among
    them. warnings: all there are.
    """

    agents: int
    connected: int
    asleep: int
    experts: int
    experts_ready: int
    slots: int
    slots_active: int
    queued: int
    models: tuple[str, ...]
    matching: int
    warnings: int
    offset: int = 0


class CoordinatorStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `moe2-coordinator status` and `GET /v1/moe2/fleet` show."""

    coordinator_id: str
    version: str
    pid: int
    uptime_s: float
    draining: bool
    epoch: int
    api_url: str
    agents_url: str
    agents: tuple[AgentRow, ...]
    requests_active: int
    requests_finished: int
    requests_failed: int
    requests_cancelled: int
    warnings: tuple[HealthWarning, ...]
    dispatch: DispatchStatus = DispatchStatus()
    energy: EnergyBalance | None = None
    averages: tuple[AverageRow, ...] = ()
    """Average budgets with the price of a joule that each has learned."""
    pushes: tuple[PushRow, ...] = ()
    """Models that were sent to hosts of late, the newest last."""
    pulls: tuple[PullRow, ...] = ()
    """Models that hosts were told to pull of late, the newest last."""
    model_orders: tuple[ModelOrderRow, ...] = ()
    """Orders of late about which host serves what, the newest last."""
    provisioning: ProvisioningStatus | None = None
    """What the slow level thinks of who is awake; None from a coordinator of an earlier release."""
    counts: FleetCounts | None = None
    """The numbers of the whole fleet; None from a coordinator of an earlier release."""
    pair: PairStatus | None = None
    """Its part among coordinators that share a database; None where it shares none, or is of an earlier release."""
    gate_sha256: str | None = None
    """SHA-256 of the gate's file that experts are chosen by; None with priors alone, or of an earlier release."""


def exit_code(warnings: tuple[HealthWarning, ...]) -> int:
    """0 healthy, 1 degraded. (2, not running, is for a daemon that does not answer.)"""
    return 1 if any(warning.severity is Severity.DEGRADED for warning in warnings) else 0
