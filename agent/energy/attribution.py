"""Whose joules: one device's energy split among the requests that it served. PURE.

Time is cut at every request's start, first token and end (and at least once a second). Of a slice's energy E
over the covered time dt, the dynamic part max(0, E - P_idle dt) is split by w_i = decode weight x decoded
tokens + prefill weight x prefilled tokens of request i in the slice, the idle part in equal shares among the
active requests. Where tokens are guessed, those that were right shared the step of the token before them: w_i has
the prefill weight for every guess, right or wrong, and the decode weight only for tokens with a step of their own. With
nobody active, all of it goes to the overhead, by the cause that holds then (waiting, loading a model, waking). A model
that is loaded beside requests counts as one more of them, with an equal share. So, at any time,

    sum over requests + overhead of all causes = energy of the device up to `settled_s`        (the invariant)

Token shares are a convention, not physics (a long context makes a token more expensive), hence the record says which
rule was used. The prefill weight of 1/35 is the ratio of 17.3 to 602 Wh per million tokens measured on an AGX
Orin (jetson-llm-maxperf, Llama 3.1 8B Q4_K_M); experts replace it with their own once they have learned it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from moe2.agent.energy.baseline import Condition, IdleBaseline
from moe2.agent.energy.meter import EnergyTrack, WindowEnergy
from moe2.agent.energy.sensor import SensorFacts
from moe2.common.energy import Attribution, Energy, Quality, worst_quality
from moe2.common.standby import Cause

DEFAULT_PREFILL_WEIGHT = 1 / 35
_MAX_SLICE_S = 1.0
_FULL_COVERAGE = 0.98
_LOW_RESOLUTION_S = 2.0
_MAX_STRANGER_SPANS = 900
_CONVENTIONS = tuple(Attribution)


@dataclass(frozen=True, slots=True)
class TokenWeight:
    """What one token counts in a split. Only ratios matter.

    decode: per decoded token; larger for the larger of two models on one device (such as its parameter
    count).
    prefill: per prefilled token, in the same unit.
    """

    decode: float = 1.0
    prefill: float = DEFAULT_PREFILL_WEIGHT


@dataclass(slots=True)
class _Job:
    job_id: str
    prompt_tokens: int
    weight: TokenWeight
    started_s: float
    prefill_end_s: float | None = None
    ended_s: float | None = None
    slice_tokens: int = 0
    slice_guesses: int = 0
    joules: float = 0.0
    marginal_j: float | None = 0.0
    covered_s: float = 0.0
    began_s: float | None = None
    """When it began, where that was before the account knew of it."""
    convention: Attribution = Attribution.EXCLUSIVE
    cause: Cause | None = None
    """What its joules are booked to in the end, where it is the host's own work and no request."""

    def prefilled_tokens(self, start_s: float, end_s: float) -> float:
        """Return the prompt tokens prefilled in the slice, at an even pace from the start to the first token."""
        if self.prefill_end_s is None or self.prefill_end_s <= self.started_s:
            return 0.0
        overlap_s = min(end_s, self.prefill_end_s) - max(start_s, self.started_s)
        return self.prompt_tokens * max(0.0, overlap_s) / (self.prefill_end_s - self.started_s)


@dataclass(frozen=True, slots=True)
class _Cut:
    """At `at_s` the job starts, ends, has decoded `tokens`, or (none of these) got its first token.

    job: None where the cause of what no request uses changes, to `cause`.
    """

    at_s: float
    job: _Job | None
    cause: Cause = Cause.IDLE
    starts: bool = False
    ends: bool = False
    tokens: int = 0
    guesses: int = 0


class DeviceAccount:
    """The energy of one device, by request.

    Events are told in the order in which they happened. A request's energy is known once the sensor has
    covered its last moment, usually one sampling interval after its end; `settle` hands it out, at the latest
    `patience_s` after the end, then with what is known. `max_settle_s`: how long it waits for the end of another
    request's prefill. An event earlier than `settled_s` counts as if it
    had happened at `settled_s`.
    """

    def __init__(self, facts: SensorFacts, track: EnergyTrack, *, start_s: float, max_settle_s: float = 2.0) -> None:
        self.facts = facts
        self.baseline = IdleBaseline()
        self._track = track
        self._max_settle_s = max_settle_s
        self.patience_s = max_settle_s
        """How long an ended request waits for a reading that covers its end. Its owner may change it: a sensor that is
        merely late is worth more of a wait than one that is known to be out of order."""
        self._settled_s = start_s
        self._latest_s = start_s
        self._first_j = track.cumulative_j(start_s)
        self._counted_j = self._first_j
        self._cause = Cause.IDLE
        self._by_cause = dict.fromkeys(Cause, 0.0)
        self._requests_j = 0.0
        self._overhead_s = 0.0
        self._covered_s = 0.0
        self._cuts: deque[_Cut] = deque()
        self._open: dict[str, _Job] = {}
        self._active: list[_Job] = []
        self.suspicion: str | None = None
        """Why the device's figures are doubtful; set by the account's owner."""
        self._strangers: deque[tuple[float, float, str]] = deque(maxlen=_MAX_STRANGER_SPANS)
        self._strangers_since_s: float | None = None
        self._looked_s: float | None = None
        self._stranger_names = ""

    @property
    def settled_s(self) -> float:
        """The time up to which all energy has been given to a request or to the overhead."""
        return self._settled_s

    def set_condition(self, condition: Condition) -> None:
        """Take in that the power mode or the set of loaded models changed."""
        self.baseline.set_condition(condition)

    def cause_changed(self, cause: Cause, at_s: float) -> None:
        """Book whatever no request uses to this cause from now on."""
        self._cuts.append(_Cut(self._in_order(at_s), None, cause=cause))

    def request_started(
        self,
        job_id: str,
        prompt_tokens: int,
        at_s: float,
        weight: TokenWeight | None = None,
        cause: Cause | None = None,
        *,
        began_s: float | None = None,
    ) -> None:
        """Begin the account of a job that holds a slot. `prompt_tokens` without those found in a cache.

        cause: of the host's own work, which is no request; its joules are handed out and booked to that.
        began_s: when it began, of a job that runs already as the device is found: its energy is a part then.
        """
        if job_id in self._open:
            raise ValueError(f"job {job_id!r} has already started")
        at_s = self._in_order(at_s)
        job = _Job(job_id, prompt_tokens, weight or TokenWeight(), at_s, cause=cause, began_s=began_s)
        self._open[job_id] = job
        self._cuts.append(_Cut(at_s, job, starts=True))

    def first_token(self, job_id: str, at_s: float) -> None:
        """Take in that the job's prefill is done."""
        job = self._open[job_id]
        if job.prefill_end_s is None:
            job.prefill_end_s = self._in_order(at_s)
            self._cuts.append(_Cut(job.prefill_end_s, job))

    def tokens_decoded(self, job_id: str, n: int, at_s: float) -> None:
        """Take in that the job has decoded `n` more tokens."""
        self._cuts.append(_Cut(self._in_order(at_s), self._open[job_id], tokens=n))

    def tokens_guessed(self, job_id: str, drafted: int, accepted: int, at_s: float) -> None:
        """Take in that `accepted` of the tokens decoded now had no step of their own, for `drafted` guesses."""
        self._cuts.append(_Cut(self._in_order(at_s), self._open[job_id], tokens=-accepted, guesses=drafted))

    def request_ended(self, job_id: str, at_s: float) -> None:
        """End the job's account as it leaves its slot, for whatever reason: cancelled work keeps its joules."""
        job = self._open.pop(job_id)
        job.ended_s = self._in_order(at_s)
        if job.prefill_end_s is None:
            job.prefill_end_s = job.ended_s
        self._cuts.append(_Cut(job.ended_s, job, ends=True))

    def settle(self, now_s: float) -> dict[str, Energy]:
        """Account for all energy that is known by `now_s`; return the requests that became final, by job id."""
        self._count_latecomers()
        frontier_s = self._track.frontier_s
        overdue_s = now_s - self._max_settle_s
        silent_s = now_s - self.patience_s
        limit_s = silent_s if frontier_s is None else max(silent_s, min(frontier_s, now_s))
        settled: dict[str, Energy] = {}
        while self._cuts and self._cuts[0].at_s <= limit_s:
            cut = self._cuts[0]
            if not self._close_slice(cut, overdue_s):
                return settled
            self._cuts.popleft()
            if cut.job is None:
                self._cause = cut.cause
            elif cut.starts:
                self._active.append(cut.job)
            elif cut.ends:
                self._active.remove(cut.job)
                settled[cut.job.job_id] = self._energy(cut.job)
                if cut.job.cause is None:
                    self._requests_j += cut.job.joules
                else:
                    self._by_cause[cut.job.cause] += cut.job.joules
        if limit_s - self._settled_s >= _MAX_SLICE_S and (limit_s <= overdue_s or not self._undecided()):
            self._account(limit_s)
        return settled

    def overhead(self) -> Energy:
        """Return the energy that no request is answerable for, from the account's start up to `settled_s`."""
        return Energy(
            joules=sum(self._by_cause.values()) if self._overhead_s > 0 else None,
            quality=self._quality(1.0) if self._overhead_s > 0 else Quality.UNMEASURED,
            scope=self.facts.scope,
            source=self.facts.source,
            idle_w=self.baseline.idle_w,
            reason=None if self._overhead_s > 0 else "no idle time was measured yet",
        )

    @property
    def by_cause(self) -> dict[Cause, float]:
        """The overhead up to `settled_s` in J, by cause."""
        return dict(self._by_cause)

    @property
    def requests_j(self) -> float:
        """The energy of all requests that have ended, in J. It only grows."""
        return self._requests_j

    @property
    def full_quality(self) -> Quality:
        """The quality of a window that the sensor has covered."""
        return self._quality(1.0)

    @property
    def covered_s(self) -> float:
        """Seconds up to `settled_s` that the sensor has covered."""
        return self._covered_s

    def between(self, start_s: float, end_s: float) -> Energy | None:
        """Return all energy of the device in this time, whoever used it; None as long as its end is not known."""
        frontier_s = self._track.frontier_s
        if frontier_s is None or frontier_s < end_s:
            return None
        window = self._track.between(start_s, end_s)
        return Energy(
            joules=window.joules,
            quality=self._quality(window.coverage),
            scope=self.facts.scope,
            source=self.facts.source,
            coverage=window.coverage,
        )

    def known_j(self, start_s: float, end_s: float) -> float:
        """Return the device's joules from `start_s` to `end_s` as far as its readings reach."""
        return self._track.between(start_s, end_s).joules or 0.0

    @property
    def counted_j(self) -> float:
        """All energy given away so far, to requests and overhead together, in J. A lower bound: holes add
        nothing."""
        return self._counted_j - self._first_j

    def _in_order(self, at_s: float) -> float:
        self._latest_s = max(at_s, self._latest_s, self._settled_s)
        return self._latest_s

    def _count_latecomers(self) -> None:
        """Energy that became known after its time had been settled as unknown has no owner any more."""
        late_j = self._track.cumulative_j(self._settled_s) - self._counted_j
        self._by_cause[Cause.OTHER] += late_j
        self._counted_j += late_j

    def _close_slice(self, cut: _Cut, overdue_s: float) -> bool:
        """Make `cut` take effect; False if the slice before it cannot be split yet."""
        if cut.job is not None and (cut.tokens or cut.guesses):
            cut.job.slice_tokens += cut.tokens
            cut.job.slice_guesses += cut.guesses
            return True
        if cut.at_s > overdue_s and self._undecided():
            return False
        self._account(cut.at_s)
        return True

    def _undecided(self) -> bool:
        """The split needs the end of a prefill that has not come yet."""
        return len(self._active) > 1 and any(job.prefill_end_s is None for job in self._active)

    def _account(self, end_s: float) -> None:
        """Give away the energy from `settled_s` to `end_s`."""
        start_s, self._settled_s = self._settled_s, end_s
        if end_s <= start_s:
            return
        window = self._track.between(start_s, end_s)
        joules = window.joules or 0.0
        self._counted_j += joules
        self._covered_s += window.covered_s
        if not self._active:
            self._by_cause[self._cause] += joules
            self._overhead_s += window.covered_s
            if self._cause is not Cause.IDLE:
                self.baseline.was_busy()
            elif window.coverage >= _FULL_COVERAGE:
                self.baseline.was_idle(start_s, end_s, joules / window.coverage)
            return
        self.baseline.was_busy()
        shares, convention = self._shares(start_s, end_s)
        if self._cause is not Cause.IDLE:
            # What is loaded beside requests leaves no trace of its own in the device's power: an equal share is fair.
            parties = len(self._active) + 1
            self._by_cause[self._cause] += joules / parties
            joules *= 1 - 1 / parties
            convention = Attribution.SLOT_SHARE
        self._split(joules, window.covered_s, shares, convention)
        for job in self._active:
            job.slice_tokens = job.slice_guesses = 0

    def _split(self, joules: float, covered_s: float, shares: list[float], convention: Attribution) -> None:
        idle_w = self.baseline.idle_w
        dynamic_j = joules if idle_w is None else max(0.0, joules - idle_w * covered_s)
        idle_j = (joules - dynamic_j) / len(self._active)
        for job, share in zip(self._active, shares, strict=True):
            job.joules += share * dynamic_j + idle_j
            job.covered_s += covered_s
            if idle_w is None:
                job.marginal_j = None
            elif job.marginal_j is not None:
                job.marginal_j += share * dynamic_j
            job.convention = _looser(job.convention, convention)

    def _shares(self, start_s: float, end_s: float) -> tuple[list[float], Attribution]:
        """Each active job's fraction of the dynamic energy, and the rule that gave it."""
        count = len(self._active)
        if count == 1:
            return [1.0], Attribution.EXCLUSIVE
        weights = [
            job.weight.decode * max(0, job.slice_tokens)
            + job.weight.prefill * (job.slice_guesses + job.prefilled_tokens(start_s, end_s))
            for job in self._active
        ]
        total = sum(weights)
        if self._undecided() or total <= 0:
            return [1 / count] * count, Attribution.SLOT_SHARE
        return [weight / total for weight in weights], Attribution.TOKEN_SHARE

    def _energy(self, job: _Job) -> Energy:
        assert job.ended_s is not None  # noqa: S101 - only ended jobs are settled
        began_s = job.started_s if job.began_s is None else job.began_s
        window = self._track.between(began_s, job.ended_s)
        length_s = job.ended_s - began_s
        strangers = self._strangers_between(began_s, job.ended_s)
        coverage = min(1.0, job.covered_s / length_s) if length_s > 0 else 0.0
        known = coverage > 0
        return Energy(
            joules=job.joules if known else None,
            marginal_joules=job.marginal_j if known else None,
            quality=worst_quality((self._quality(coverage), Quality.PARTIAL)) if strangers else self._quality(coverage),
            scope=self.facts.scope,
            source=self.facts.source,
            coverage=coverage,
            n_samples=window.n_samples,
            max_gap_s=window.max_gap_s,
            idle_w=self.baseline.idle_w,
            attribution=job.convention if known else None,
            reason=self._reason(coverage, length_s, window, strangers),
        )

    def _quality(self, coverage: float) -> Quality:
        if coverage <= 0:
            return Quality.UNMEASURED
        if self.facts.simulated:
            return Quality.SIMULATED
        if coverage < _FULL_COVERAGE:
            return Quality.PARTIAL
        return Quality.MEASURED_COUNTER if self.facts.has_counter else Quality.MEASURED_INTEGRATED

    def strangers_seen(self, at_s: float, names: str | None) -> None:
        """Take in which other programs use the device at this moment, in words; None for none.

        From the look before the first one that sees them, until the next one that does not, every joule may be theirs.
        """
        if self._strangers_since_s is not None:
            self._strangers.append((self._strangers_since_s, at_s, self._stranger_names))
            self._strangers_since_s = at_s
        if names is None:
            self._strangers_since_s = None
        elif self._strangers_since_s is None:
            self._strangers_since_s = self._looked_s if self._looked_s is not None else at_s
        self._looked_s = at_s
        self._stranger_names = names or ""

    def _strangers_between(self, start_s: float, end_s: float) -> str | None:
        if self._strangers_since_s is not None and self._strangers_since_s <= end_s:
            return self._stranger_names
        return next(
            (names for since_s, until_s, names in self._strangers if since_s <= end_s and until_s >= start_s), None
        )

    def _reason(self, coverage: float, length_s: float, window: WindowEnergy, strangers: str | None) -> str | None:
        reasons = [f"other programs were on {self.facts.device}: {strangers}"] if strangers else []
        if coverage <= 0:
            reasons.append(f"{self.facts.name} gave no usable reading during the request's {length_s:.2f} s")
        elif coverage < _FULL_COVERAGE:
            reasons.append(f"{self.facts.name} covered {coverage:.0%} of the request")
        samples = f"{window.n_samples} sample{'' if window.n_samples == 1 else 's'} in {length_s:.2f} s"
        if coverage > 0 and window.n_samples < 3:
            reasons.append(f"resolution too low for a single request: {samples}")
        elif coverage > 0 and length_s < _LOW_RESOLUTION_S:
            reasons.append(f"low resolution: {samples}")
        if self.suspicion:
            reasons.append(self.suspicion)
        return "; ".join(reasons) or None


def _looser(one: Attribution, other: Attribution) -> Attribution:
    """Of two conventions, the one further from a plain measurement."""
    return max(one, other, key=_CONVENTIONS.index)
