"""Fleets with made-up but plausible figures, for tests of the slow level."""

from __future__ import annotations

from moe2.common.cost import EnergyProfile, LatencyProfile, Spread
from moe2.common.energy import Quality
from moe2.coordinator.provisioning.figures import ExpertFigures, Fleet, HostFigures, Readiness
from moe2.coordinator.provisioning.traffic import ClassForecast, Forecast

_NONE = Spread(p50=0.0, p95=0.0)


def host(key: str = "big", **changes: object) -> HostFigures:
    """A workstation that draws 27 W awake and 3 W asleep, and may do everything."""
    figures: dict[str, object] = {
        "name": key,
        "awake_w": 27.0,
        "asleep_w": 3.0,
        "wake_s": 14.0,
        "wake_j": 1120.0,
        "suspend_s": 6.0,
        "suspend_j": 180.0,
        "may_suspend": True,
        "may_unload": True,
    }
    return HostFigures(key=key, **(figures | changes))  # type: ignore[arg-type]


def expert(on: str = "big", model: str = "m", **changes: object) -> ExpertFigures:
    """A fast expert with a score of 0.7 whose model adds 25 W to its host."""
    prefill_tokens_per_s = changes.pop("prefill_tokens_per_s", 8000.0)
    decode_tokens_per_s = changes.pop("decode_tokens_per_s", 100.0)
    assert isinstance(prefill_tokens_per_s, float)
    assert isinstance(decode_tokens_per_s, float)
    figures: dict[str, object] = {
        "key": f"{on}/{model}",
        "readiness": Readiness.READY,
        "slots": 4,
        "latency": LatencyProfile(
            prefill=(0.02, 1.0 / prefill_tokens_per_s, 0.0, 0.0),
            decode=(1.0 / decode_tokens_per_s, 0.0, 0.0),
            slots=4,
            service_s=2.0,
            ttft=_NONE,
            inter_token=_NONE,
            total=_NONE,
        ),
        "energy": EnergyProfile(coefficients=(0.04, 2.2, 0.0, 0.0), spread=_NONE, quality=Quality.SIMULATED),
        "scores": {"": 0.7},
        "ready_w": 25.0,
        "load_s": 4.0,
        "load_j": 360.0,
        "unload_j": 0.0,
    }
    return ExpertFigures(host=on, model=model, **(figures | changes))  # type: ignore[arg-type]


def small(key: str = "small", *, score: float = 0.65, state: Readiness = Readiness.READY) -> Fleet:
    """A board that draws little, and its slower and slightly worse expert."""
    board = host(key, awake_w=11.0, asleep_w=0.5, wake_s=5.0, wake_j=75.0, suspend_s=3.0, suspend_j=34.0)
    slow = expert(
        key,
        "s",
        readiness=state,
        scores={"": score},
        ready_w=0.2,
        load_j=160.0,
        prefill_tokens_per_s=700.0,
        decode_tokens_per_s=22.0,
    )
    return Fleet((board,), (slow,))


def together(*fleets: Fleet) -> Fleet:
    """Several fleets as one, sorted by key as the product has them."""
    hosts = sorted((one for fleet in fleets for one in fleet.hosts), key=lambda one: one.key)
    experts = sorted((one for fleet in fleets for one in fleet.experts), key=lambda one: one.key)
    return Fleet(tuple(hosts), tuple(experts))


def big(key: str = "big", *, state: Readiness = Readiness.READY) -> Fleet:
    """A workstation with its expert."""
    return Fleet((host(key),), (expert(key, readiness=state),))


def traffic(per_hour: float, *, category: str = "chat", model: str | None = None, prompt: int = 1000) -> Forecast:
    """So many requests an hour, all alike."""
    rate = per_hour / 3600.0
    return (ClassForecast(category, model, rate, 1.3 * rate, ((prompt, 200),)),)
