"""The energy of a whole host, by request: its devices' accounts put together. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from moe2.agent.energy.attribution import DeviceAccount, TokenWeight
from moe2.common.energy import Attribution, Energy, Quality, Scope, total, unmeasured, worst_quality
from moe2.common.standby import Cause, IdlePower, StandingEnergy


@dataclass(frozen=True, slots=True)
class Activity:
    """What the host does now: how many requests are in prefill, how many decode, and whether no model is in memory."""

    prefilling: int = 0
    decoding: int = 0
    is_cold: bool = False


class HostAccount:
    """Feeds every device's account and adds up what they answer.

    why_unmeasured: shown in every request's energy where the host has no usable sensor at all.
    """

    def __init__(self, devices: Sequence[DeviceAccount], *, why_unmeasured: str) -> None:
        self._devices = tuple(devices)
        self._why_unmeasured = why_unmeasured
        self._prefilling: set[str] = set()
        self._decoding: set[str] = set()
        self._ended: set[str] = set()
        self._parts: dict[str, list[Energy]] = {}
        self._cause = Cause.IDLE
        self._is_cold = False
        self._own: dict[str, float] = {}
        """When each job of the host's own, which is no request, has started."""
        self.activity = Activity()

    def set_condition(self, power_mode: str | None, loaded_models: frozenset[str]) -> None:
        """What the idle baseline depends on. Call it at the start and whenever either changes."""
        for device in self._devices:
            device.set_condition((power_mode, loaded_models))
        self._is_cold = not loaded_models
        self._count()

    def cause_is(self, cause: Cause, at_s: float) -> None:
        """Whatever no request uses is used for this cause from now on."""
        if cause is not self._cause:
            self._cause = cause
            self._count()
            for device in self._devices:
                device.cause_changed(cause, at_s)

    def request_started(
        self,
        job_id: str,
        prompt_tokens: int,
        at_s: float,
        weight: TokenWeight | None = None,
        cause: Cause | None = None,
    ) -> None:
        """The job holds a slot and its prefill begins. `prompt_tokens` without those found in a cache.

        cause: of the host's own work, which is no request.
        """
        for device in self._devices:
            device.request_started(job_id, prompt_tokens, at_s, weight, cause)
        if cause is not None:
            self._own[job_id] = at_s
        self._prefilling.add(job_id)
        self._count()

    def first_token(self, job_id: str, at_s: float) -> None:
        """The job's prefill is done. A job that never started, or has ended, is ignored."""
        if job_id not in self._prefilling:
            return
        for device in self._devices:
            device.first_token(job_id, at_s)
        self._prefilling.discard(job_id)
        self._decoding.add(job_id)
        self._count()

    def tokens_decoded(self, job_id: str, n: int, at_s: float) -> None:
        """The job has decoded `n` more tokens; the first ones imply the end of its prefill."""
        if job_id in self._prefilling:
            self.first_token(job_id, at_s)
        if job_id in self._decoding:
            for device in self._devices:
                device.tokens_decoded(job_id, n, at_s)

    def request_ended(self, job_id: str, at_s: float) -> bool:
        """Ends the account of a job that has left its slot: finished, cancelled or failed.

        True if `settle` will hand out its energy; False if it never started: there is nothing to account for.
        """
        if job_id not in self._prefilling and job_id not in self._decoding:
            return False
        for device in self._devices:
            device.request_ended(job_id, at_s)
        self._own.pop(job_id, None)
        self._prefilling.discard(job_id)
        self._decoding.discard(job_id)
        self._ended.add(job_id)
        self._count()
        return True

    @property
    def has_unsettled(self) -> bool:
        """True while an ended request's energy is not final."""
        return bool(self._ended)

    def settle(self, now_s: float) -> dict[str, Energy]:
        """The requests whose energy became final by `now_s`, by job id.

        Each ended request is handed out exactly once, at the latest `max_settle_s` of its devices' accounts
        after its end (if `settle` is called that often), immediately on a host without sensors.
        """
        for device in self._devices:
            for job_id, energy in device.settle(now_s).items():
                self._parts.setdefault(job_id, []).append(energy)
        settled = {
            job_id: self._joined(self._parts.pop(job_id, []))
            for job_id in sorted(self._ended)
            if len(self._parts.get(job_id, ())) == len(self._devices)
        }
        self._ended.difference_update(settled)
        return settled

    def overhead(self) -> Energy:
        """Energy of the host that no request is answerable for, since the start."""
        return self._joined([device.overhead() for device in self._devices])

    def standing(self, epoch: str) -> StandingEnergy | None:
        """Everything measured since the start, by cause and for requests; None on a host without a sensor."""
        if not self._devices:
            return None
        by_cause = {cause: sum(device.by_cause[cause] for device in self._devices) for cause in Cause}
        covered_s = min(device.covered_s for device in self._devices)
        return StandingEnergy(
            epoch=epoch,
            idle_j=max(0.0, by_cause[Cause.IDLE]),
            loading_j=max(0.0, by_cause[Cause.LOADING]),
            waking_j=max(0.0, by_cause[Cause.WAKING]),
            other_j=max(0.0, by_cause[Cause.OTHER]),
            requests_j=max(0.0, sum(device.requests_j for device in self._devices)),
            measured_s=covered_s,
            quality=self._quality() if covered_s > 0 else Quality.UNMEASURED,
            scope=self._scope(),
        )

    def between(self, start_s: float, end_s: float) -> Energy | None:
        """All energy of the host from `start_s` to `end_s`, whoever used it; None as long as it is not known."""
        parts = [device.between(start_s, end_s) for device in self._devices]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return self._joined(known)

    def own_work_j(self, now_s: float) -> float | None:
        """Joules of the host since its own work that runs now began, by the sensors' latest readings; None without."""
        if not self._own or not self._devices:
            return None
        began_s = min(self._own.values())
        return sum(device.known_j(began_s, now_s) for device in self._devices)

    def idle_powers(self, power_mode: str | None, now_s: float) -> tuple[IdlePower, ...]:
        """The measured idle power of each set of loaded models in this power mode, over all devices that know theirs.

        A set that one device has not measured is left out: a sum without it would understate.
        """
        tables = [device.baseline.figures for device in self._devices]
        if not tables:
            return ()
        shared = [
            models
            for mode, models in tables[0]
            if mode == power_mode and all((power_mode, models) in table for table in tables)
        ]
        powers = []
        for models in sorted(shared, key=sorted):
            figures = [table[(power_mode, models)] for table in tables]
            spreads = [figure.spread_w for figure in figures]
            powers.append(
                IdlePower(
                    power_w=sum(figure.power_w for figure in figures),
                    models=tuple(sorted(models)),
                    spread_w=_sum_if_all_known(spreads),
                    measured_s=min(figure.measured_s for figure in figures),
                    age_s=max(0.0, now_s - min(figure.until_s for figure in figures)),
                    quality=self._quality(),
                    scope=self._scope(),
                )
            )
        return tuple(powers)

    def idle_w(self) -> float | None:
        """Idle power of all devices under the present condition in W; None if one is not known."""
        idle_w = [device.baseline.idle_w for device in self._devices]
        known = [power_w for power_w in idle_w if power_w is not None]
        return sum(known) if known and len(known) == len(idle_w) else None

    def _quality(self) -> Quality:
        """The quality of a fully covered window over all devices."""
        return worst_quality(device.full_quality for device in self._devices)

    def _scope(self) -> Scope | None:
        scopes = {device.facts.scope for device in self._devices}
        return scopes.pop() if len(scopes) == 1 else None

    def _count(self) -> None:
        # One assignment of an immutable value: a simulated sensor's thread reads it.
        # A model that is being loaded has its context already.
        is_cold = self._is_cold and self._cause is Cause.IDLE
        self.activity = Activity(prefilling=len(self._prefilling), decoding=len(self._decoding), is_cold=is_cold)

    def _joined(self, parts: Sequence[Energy]) -> Energy:
        if not parts:
            return unmeasured(self._why_unmeasured)
        if len(parts) == 1:
            return parts[0]
        known = [part for part in parts if part.joules is not None]
        reasons = list(dict.fromkeys(part.reason for part in parts if part.reason))
        if not known:
            return unmeasured("; ".join(reasons) or self._why_unmeasured)
        joined = total(known)
        if len(known) < len(parts):
            # The missing device makes the sum a lower bound, which is what "partial" says.
            joined = msgspec.structs.replace(
                joined,
                quality=Quality.PARTIAL,
                reason="; ".join(dict.fromkeys(filter(None, (*reasons, joined.reason)))),
            )
        conventions = [part.attribution for part in known if part.attribution]
        return msgspec.structs.replace(
            joined,
            coverage=min((part.coverage for part in parts if part.coverage is not None), default=None),
            n_samples=min((part.n_samples for part in known if part.n_samples is not None), default=None),
            max_gap_s=max((part.max_gap_s for part in known if part.max_gap_s is not None), default=None),
            idle_w=_sum_if_all_known([part.idle_w for part in parts]),
            attribution=max(conventions, key=list(Attribution).index, default=None),
        )


def _sum_if_all_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
