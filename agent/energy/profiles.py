"""Simulated hosts: named, documented power and speed profiles for trying a fleet without its hardware. PURE.

Every figure is either published (with its source) or marked as assumed, and whatever a simulated host reports has the
quality "simulated".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moe2.agent.energy.account import Activity
from moe2.agent.engine.protocol import Pace
from moe2.common.energy import Scope
from moe2.common.errors import ConfigError

_MAXPERF = "jetson-llm-maxperf, commit c19500d: AGX Orin 64 GB, JetPack 6.2.1, llama.cpp, Llama 3.1 8B Q4_K_M"
_GPU_BENCHMARK = "GPU_Power_Benchmark, trace 4090_TR (Yang et al., arXiv 2312.02741)"
_LLM_INFERENCE = "GPU-Benchmarks-on-LLM-Inference: RTX 4090, llama.cpp, LLaMA 3 8B Q4_K_M"


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and where it comes from. `assumed`: nobody has published a measurement of it."""

    value: float
    source: str
    assumed: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    """A host in one power mode, serving the 8B model that the sources measured.

    Powers in W over `scope`; speeds in tokens/s at one request. Requests in parallel do not raise the power: assumed.
    idle_w: with a model in memory. cold_w: without any.
    paced: the speed is simulated as well as the power.
    """

    profile_id: str
    board: str
    accelerator: str
    power_mode: str
    scope: Scope
    idle_w: Figure
    cold_w: Figure
    prefill_w: Figure
    decode_w: Figure
    prefill_tokens_per_s: Figure
    decode_tokens_per_s: Figure
    paced: bool = False

    @property
    def marked_power_mode(self) -> str:
        """The power mode as reported and learned for: never the same as a real host's."""
        return f"{self.power_mode} (simulated, paced)" if self.paced else f"{self.power_mode} (simulated)"

    @property
    def pace(self) -> Pace | None:
        """What engines are slowed down to; None where only the power is simulated."""
        if not self.paced:
            return None
        return Pace(
            prefill_tokens_per_s=self.prefill_tokens_per_s.value, decode_tokens_per_s=self.decode_tokens_per_s.value
        )

    def power_w(self, activity: Activity) -> float:
        """Return the power at this activity in W."""
        power_w = self.cold_w.value if activity.is_cold else self.idle_w.value
        if activity.prefilling:
            power_w = max(power_w, self.prefill_w.value)
        if activity.decoding:
            power_w = max(power_w, self.decode_w.value)
        return power_w


PROFILES = {
    profile.profile_id: profile
    for profile in (
        Profile(
            profile_id="agx-orin-maxn",
            board="NVIDIA Jetson AGX Orin 64 GB",
            accelerator="NVIDIA Ampere GPU, integrated",
            power_mode="MAXN",
            scope=Scope.MODULE_RAILS,
            idle_w=Figure(11.2, _MAXPERF),
            cold_w=Figure(9.0, "an integrated GPU without a context saves a little", assumed=True),
            prefill_w=Figure(44.4, _MAXPERF + ", 16k prompt"),
            decode_w=Figure(47.6, _MAXPERF),
            prefill_tokens_per_s=Figure(711.0, _MAXPERF + ", 16k prompt"),
            decode_tokens_per_s=Figure(22.0, _MAXPERF),
        ),
        Profile(
            profile_id="agx-orin-30w",
            board="NVIDIA Jetson AGX Orin 64 GB",
            accelerator="NVIDIA Ampere GPU, integrated",
            power_mode="MODE_30W",
            scope=Scope.MODULE_RAILS,
            idle_w=Figure(8.8, _MAXPERF),
            cold_w=Figure(7.0, "an integrated GPU without a context saves a little", assumed=True),
            prefill_w=Figure(14.4, _MAXPERF + ", 16k prompt"),
            decode_w=Figure(18.0, _MAXPERF),
            prefill_tokens_per_s=Figure(180.0, _MAXPERF + ", 16k prompt"),
            decode_tokens_per_s=Figure(6.6, _MAXPERF),
        ),
        Profile(
            profile_id="rtx-4090",
            board="PC with one RTX 4090",
            accelerator="NVIDIA GeForce RTX 4090",
            power_mode="default",
            scope=Scope.GPU_BOARD,
            idle_w=Figure(52.0, _GPU_BENCHMARK + ", idle with a CUDA context"),
            cold_w=Figure(
                22.0, "a context draws 5 to 40 W on consumer cards (llama.cpp#4598, ollama#8591)", assumed=True
            ),
            prefill_w=Figure(390.0, "full load of the same trace, taken for prefill", assumed=True),
            decode_w=Figure(275.0, "between 250 W and 300 W, from a vendor's claim for another model", assumed=True),
            prefill_tokens_per_s=Figure(6000.0, "published only for other models", assumed=True),
            decode_tokens_per_s=Figure(127.7, _LLM_INFERENCE),
        ),
    )
}


def find_profile(profile_id: str, *, paced: bool = False) -> Profile:
    """Return the profile of that name, with or without its pace. Raises ConfigError, which lists those that exist."""
    try:
        return replace(PROFILES[profile_id], paced=paced)
    except KeyError:
        known = ", ".join(sorted(PROFILES))
        raise ConfigError([f"profile: there is no simulated host {profile_id!r}; choose one of {known}"]) from None
