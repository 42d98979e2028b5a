"""What one expert costs, per power mode: its latency and energy models put together. PURE."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

import msgspec

from moe2.agent.energy.attribution import TokenWeight
from moe2.agent.learning.energy_law import EnergyModel
from moe2.agent.learning.latency import LatencyModel, RequestTiming
from moe2.common.cost import EnergyProfile, LatencyProfile
from moe2.common.energy import Energy
from moe2.common.link.reports import Performance

_TTFT_MEMORY = 20
_BYTES_PER_UNIT = 2**30


@dataclass(slots=True)
class _Models:
    latency: LatencyModel
    energy: EnergyModel


class ExpertCosts:
    """Learns from the expert's requests; what was learned in one power mode is kept while another one rules.

    A mode that is entered for the first time begins with the law of the one before, at the uncertainty of no request at
    all: `n_requests` of its profiles is 0.
    """

    def __init__(self, slots: int, power_mode: str | None = None) -> None:
        self._power_mode = power_mode
        self._models = {power_mode: _Models(LatencyModel(slots), EnergyModel())}
        self._ttft_s: deque[float] = deque(maxlen=_TTFT_MEMORY)

    @property
    def latency(self) -> LatencyProfile | None:
        """Speed in the present power mode; None before anything was measured."""
        return self._present.latency.profile

    @property
    def energy(self) -> EnergyProfile | None:
        """Energy in the present power mode; None before any request's energy was measured."""
        return self._present.energy.profile

    def token_weight(self, file_bytes: int | None) -> TokenWeight:
        """What a token of this expert counts when a device's energy is split among experts.

        For a decoded token all weights are read once: their size stands for its cost.
        """
        return self._present.energy.token_weight(1.0 if file_bytes is None else file_bytes / _BYTES_PER_UNIT)

    @property
    def performance(self) -> Performance:
        """The figures that people look at: one request alone, without context."""
        latency, energy = self.latency, self.energy
        return Performance(
            prefill_tokens_per_s=_rate(latency.prefill[1]) if latency else None,
            decode_tokens_per_s=_rate(latency.decode[0]) if latency else None,
            ttft_s=median(self._ttft_s) if self._ttft_s else None,
            j_per_decoded_token=energy.j_per_decoded_token() if energy else None,
            idle_w=energy.idle_w if energy else None,
            n_requests=latency.n_requests if latency else 0,
        )

    def set_power_mode(self, power_mode: str | None) -> None:
        """Takes in the host's power mode; what is learned from now on belongs to it."""
        if power_mode == self._power_mode:
            return
        before = self._present
        self._power_mode = power_mode
        self._ttft_s.clear()
        if power_mode not in self._models:
            speed, energy = before.latency.profile, before.energy.profile
            self._models[power_mode] = _Models(
                LatencyModel.starting_from(speed) if speed else LatencyModel(before.latency.slots),
                EnergyModel.starting_from(energy) if energy else EnergyModel(),
            )

    def warmed_up(self, prefill_tokens_per_s: float | None, decode_tokens_per_s: float | None) -> None:
        """The rates of the run after loading."""
        self._present.latency.warmed_up(prefill_tokens_per_s, decode_tokens_per_s)

    def restore(self, latency: LatencyProfile | None, energy: EnergyProfile | None) -> None:
        """Take over stored profiles (`moe2-agent bench`) as a beginning."""
        if latency is not None:
            slots = self._present.latency.slots
            self._present.latency = LatencyModel.starting_from(msgspec.structs.replace(latency, slots=slots))
        if energy is not None:
            self._present.energy = EnergyModel.starting_from(energy)

    def request_finished(self, timing: RequestTiming) -> None:
        """Learn from a request's times, as soon as it has ended."""
        self._present.latency.observe(timing)
        if timing.prefill_s is not None:
            self._ttft_s.append(timing.queue_s + timing.wait_s + timing.prefill_s)

    def energy_settled(self, timing: RequestTiming, energy: Energy) -> None:
        """Learn from a request's energy, once it is known."""
        latency = self.latency
        shape = latency.lived(timing.shape) if latency else timing.shape
        self._present.energy.observe(shape, energy, timing.mean_occupancy, effort=timing.effort)

    @property
    def _present(self) -> _Models:
        return self._models[self._power_mode]


def _rate(token_s: float) -> float | None:
    return 1 / token_s if token_s > 0 else None
