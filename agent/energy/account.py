"""The energy of a whole host, by request: its devices' accounts put together. PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from moe2.agent.energy.attribution import DeviceAccount, TokenWeight
from moe2.agent.energy.baseline import Condition
from moe2.common.energy import Attribution, Energy, Quality, Scope, total, unmeasured, worst_quality
from moe2.common.standby import Cause, IdlePower, StandingEnergy


@dataclass(frozen=True, slots=True)
class Activity:
    """What the host does now: how many requests are in prefill, how many decode, and whether no model is in memory."""

    prefilling: int = 0
    decoding: int = 0
    is_cold: bool = False


@dataclass(slots=True)
class _Running:
    """A job that holds a slot, and the accounts that know of it."""

    prompt_tokens: int
    weight: TokenWeight | None
    cause: Cause | None
    began_s: float
    model: str | None
    devices: list[DeviceAccount]
    unmeasured: tuple[str, ...]
    """Boards that the model is on and that nothing here measures."""
    first_token_s: float | None = None


class HostAccount:
    """Feeds every device's account and adds up what they answer.

    A metered plug measures the whole host, its other devices included, so it is never added to them: either the plug
    counts or all the others. What does not count is accounted for as well, to be compared.
    why_unmeasured: shown in every request's energy where the host has no usable sensor at all.
    by_wall: the plug is what counts.
    """

    def __init__(self, devices: Sequence[DeviceAccount], *, why_unmeasured: str, by_wall: bool = False) -> None:
        self._by_wall = by_wall
        self._devices: tuple[DeviceAccount, ...] = ()
        self._beside: tuple[DeviceAccount, ...] = ()
        self.why_unmeasured = why_unmeasured
        self.placement: Mapping[str, frozenset[str]] = {}
        """The boards that each model is on, by the names of their devices; of some models it is unknown."""
        self._condition: Condition | None = None
        self._running: dict[str, _Running] = {}
        self._awaited: dict[str, int] = {}
        """Of each job that has ended: how many devices that count tell its energy."""
        self._lacking: dict[str, tuple[str, ...]] = {}
        """Of jobs that have ended: the boards whose joules are missing in their energy."""
        self._prefilling: set[str] = set()
        self._decoding: set[str] = set()
        self._parts: dict[str, list[Energy]] = {}
        self._cause = Cause.IDLE
        self._is_cold = False
        self._own: dict[str, float] = {}
        """When each job of the host's own, which is no request, has started."""
        self.activity = Activity()
        for device in devices:
            self._take(device)

    def counts(self, device: DeviceAccount) -> bool:
        """Return whether the device's joules are part of the host's."""
        return (device.facts.scope is Scope.WALL) is self._by_wall

    def add_device(self, device: DeviceAccount, at_s: float) -> None:
        """Account for one more device from now on. Jobs that run already get a part of it, which says so."""
        self._take(device)
        if self._condition is not None:
            device.set_condition(self._condition)
        if self._cause is not Cause.IDLE:
            device.cause_changed(self._cause, at_s)
        for job_id, job in self._running.items():
            if self._concerns(device, job.model):
                device.request_started(job_id, job.prompt_tokens, at_s, job.weight, job.cause, began_s=job.began_s)
                if job.first_token_s is not None:
                    device.first_token(job_id, at_s)
                job.devices.append(device)

    def _take(self, device: DeviceAccount) -> None:
        if self.counts(device):
            self._devices = (*self._devices, device)
        else:
            self._beside = (*self._beside, device)

    def _concerns(self, device: DeviceAccount, model: str | None) -> bool:
        """Return whether the model uses the device: of several boards only those that it is known to be on."""
        boards = self.placement.get(model) if model is not None else None
        return boards is None or device.facts.scope is not Scope.GPU_BOARD or device.facts.device in boards

    def set_condition(self, power_mode: str | None, loaded_models: frozenset[str]) -> None:
        """Take in what the idle baseline depends on. Call it at the start and whenever either changes."""
        self._condition = (power_mode, loaded_models)
        for device in (*self._devices, *self._beside):
            device.set_condition(self._condition)
        self._is_cold = not loaded_models
        self._count()

    def model_changed(self, model: str) -> None:
        """Forget the idle power that was measured while another model of this name was loaded."""
        for device in (*self._devices, *self._beside):
            device.baseline.forget(model)

    def cause_is(self, cause: Cause, at_s: float) -> None:
        """Book whatever no request uses to this cause from now on."""
        if cause is not self._cause:
            self._cause = cause
            self._count()
            for device in (*self._devices, *self._beside):
                device.cause_changed(cause, at_s)

    def request_started(
        self,
        job_id: str,
        prompt_tokens: int,
        at_s: float,
        weight: TokenWeight | None = None,
        cause: Cause | None = None,
        *,
        model: str | None = None,
    ) -> None:
        """Begin the account of a job that holds a slot. `prompt_tokens` without those found in a cache.

        cause: of the host's own work, which is no request. model: its joules are those of the boards it is on.
        """
        concerned = [device for device in (*self._devices, *self._beside) if self._concerns(device, model)]
        for device in concerned:
            device.request_started(job_id, prompt_tokens, at_s, weight, cause)
        measured = {device.facts.device for device in self._devices}
        boards = self.placement.get(model, frozenset()) if model is not None and not self._by_wall else frozenset()
        lacking = tuple(sorted(boards - measured))
        self._running[job_id] = _Running(prompt_tokens, weight, cause, at_s, model, concerned, lacking)
        if cause is not None:
            self._own[job_id] = at_s
        self._prefilling.add(job_id)
        self._count()

    def first_token(self, job_id: str, at_s: float) -> None:
        """Take in that the job's prefill is done. A job that never started, or has ended, is ignored."""
        if job_id not in self._prefilling:
            return
        job = self._running[job_id]
        job.first_token_s = at_s
        for device in job.devices:
            device.first_token(job_id, at_s)
        self._prefilling.discard(job_id)
        self._decoding.add(job_id)
        self._count()

    def tokens_decoded(self, job_id: str, n: int, at_s: float) -> None:
        """Take in that the job has decoded `n` more tokens; the first ones imply the end of its prefill."""
        if job_id in self._prefilling:
            self.first_token(job_id, at_s)
        if job_id in self._decoding:
            for device in self._running[job_id].devices:
                device.tokens_decoded(job_id, n, at_s)

    def tokens_guessed(self, job_id: str, drafted: int, accepted: int, at_s: float) -> None:
        """Take in that `drafted` guesses of the job went through the model, of which `accepted` saved a step each."""
        if job_id in self._decoding:
            for device in self._running[job_id].devices:
                device.tokens_guessed(job_id, drafted, accepted, at_s)

    def request_ended(self, job_id: str, at_s: float) -> bool:
        """Ends the account of a job that has left its slot: finished, cancelled or failed.

        True if `settle` will hand out its energy; False if it never started: there is nothing to account for.
        """
        if job_id not in self._prefilling and job_id not in self._decoding:
            return False
        job = self._running.pop(job_id)
        for device in job.devices:
            device.request_ended(job_id, at_s)
        self._awaited[job_id] = sum(self.counts(device) for device in job.devices)
        if job.unmeasured and self._devices:
            self._lacking[job_id] = job.unmeasured
        self._own.pop(job_id, None)
        self._prefilling.discard(job_id)
        self._decoding.discard(job_id)
        self._count()
        return True

    @property
    def has_unsettled(self) -> bool:
        """True while an ended request's energy is not final."""
        return bool(self._awaited)

    def settle(self, now_s: float) -> dict[str, Energy]:
        """Return the requests whose energy became final by `now_s`, by job id.

        Each ended request is handed out exactly once, at the latest `max_settle_s` of its devices' accounts
        after its end (if `settle` is called that often), immediately on a host without sensors.
        """
        for device in self._beside:
            device.settle(now_s)
        for device in self._devices:
            for job_id, energy in device.settle(now_s).items():
                self._parts.setdefault(job_id, []).append(energy)
        settled = {
            job_id: _without(self._lacking.pop(job_id, ()), self._joined(self._parts.pop(job_id, [])))
            for job_id, awaited in sorted(self._awaited.items())
            if len(self._parts.get(job_id, ())) == awaited
        }
        for job_id in settled:
            del self._awaited[job_id]
        return settled

    def overhead(self) -> Energy:
        """Return the energy of the host that no request is answerable for, since the start."""
        return self._joined([device.overhead() for device in self._devices])

    def standing(self, epoch: str) -> StandingEnergy | None:
        """Return everything measured since the start, by cause and for requests; None on a host without a sensor."""
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
        """Return all energy of the host from `start_s` to `end_s`, whoever used it; None as long as it is not known."""
        parts = [device.between(start_s, end_s) for device in self._devices]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return self._joined(known)

    def own_work_j(self, now_s: float) -> float | None:
        """Return the host's joules since its own work that runs now began, by the latest readings; None without any."""
        if not self._own or not self._devices:
            return None
        began_s = min(self._own.values())
        return sum(device.known_j(began_s, now_s) for device in self._devices)

    def idle_powers(self, power_mode: str | None, now_s: float) -> tuple[IdlePower, ...]:
        """Return the measured idle power of each set of loaded models in this power mode, over all devices.

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
        """Return the idle power of all devices under the present condition in W; None if one is not known."""
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
            return unmeasured(self.why_unmeasured)
        if len(parts) == 1:
            return parts[0]
        known = [part for part in parts if part.joules is not None]
        reasons = list(dict.fromkeys(part.reason for part in parts if part.reason))
        if not known:
            return unmeasured("; ".join(reasons) or self.why_unmeasured)
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


def _without(boards: tuple[str, ...], energy: Energy) -> Energy:
    """Return the energy with a word on the boards that are missing in it."""
    if not boards:
        return energy
    told = f"the model is on {', '.join(boards)}, which this agent does not measure"
    if energy.joules is None:
        return unmeasured(told)
    reason = "; ".join(filter(None, (told, energy.reason)))
    quality = worst_quality((energy.quality, Quality.PARTIAL))
    # No share of the time can be told of a board that nothing measures.
    return msgspec.structs.replace(energy, quality=quality, coverage=None, reason=reason)


def _sum_if_all_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
