"""What decides on a host's speed and idle power: its power mode, and whether heat or supply hold it back.

Jetson: nvpmodel leaves its choice in a file that anyone may read; throttling for heat is a cooling device that is on;
`hot-surface-alert`, from 70 °C, is one too, but tells people not to touch and slows nothing down; the over-current
counters oc1 (under-voltage) and oc2 (average over-current) stand still on a healthy board, while oc3 (instantaneous)
rises under any load and means nothing here. NVIDIA, Jetson Linux developer guide, "Platform power and performance".
PC: the firmware's platform profile, and the processor's package throttle counters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moe2.agent.energy.sysfs import integer_or_none, text_or_none
from moe2.common.health import HealthWarning, Severity

_OFFLINE_C = -200.0
_REMEMBER_CHANGE_S = 600.0
_REMEMBER_THROTTLE_S = 10.0
_REMEMBER_HOT_S = 600.0
"""A surface that hovers about its limit changes state many times an hour; that is one fact, not hundreds."""
_HOT_SURFACE = "hot-surface-alert"
_THROTTLING = re.compile(r".*-throttle-alert|thermal-throttling.*")
_SUPPLY_COUNTERS = {"oc1_event_cnt": "under-voltage", "oc2_event_cnt": "average over-current"}


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions that power depends on, at one look at the host.

    power_mode: such as "MODE_30W" or "performance"; None if unknown. temperature_c: of the hottest zone; None if
    unknown. alerts: what is being held back now. hot_surface: the board's surface is too hot to be touched.
    event_counts: cumulative counts of events, by their name.
    """

    power_mode: str | None = None
    temperature_c: float | None = None
    alerts: tuple[str, ...] = ()
    hot_surface: bool = False
    event_counts: Mapping[str, int] = field(default_factory=dict)


def read_conditions(root: Path = Path("/")) -> Conditions:
    """Look at the host below `root`. Quick, but it reads files: call it from a thread."""
    alerts = _active_cooling(root)
    return Conditions(
        power_mode=read_power_mode(root),
        temperature_c=max(_temperatures_c(root).values(), default=None),
        alerts=tuple(sorted(name for name in alerts if _THROTTLING.fullmatch(name))),
        hot_surface=_HOT_SURFACE in alerts,
        event_counts=_event_counts(root),
    )


def read_power_mode(root: Path = Path("/")) -> str | None:
    """Return the power mode's name: nvpmodel's on a Jetson, the platform profile on a PC; None if there is none."""
    chosen = re.search(r"pmode:0*(\d+)", text_or_none(root / "var/lib/nvpmodel/status") or "")
    if chosen:
        return _nvpmodel_name(root, chosen[1])
    return text_or_none(root / "sys/firmware/acpi/platform_profile")


def _nvpmodel_name(root: Path, mode_id: str) -> str:
    catalogue = text_or_none(root / "etc/nvpmodel.conf") or ""
    named = re.search(rf"^\s*<\s*POWER_MODEL\s+ID={mode_id}\s+NAME=([^\s>]+)", catalogue, re.MULTILINE)
    return named[1] if named else f"nvpmodel {mode_id}"


def _temperatures_c(root: Path) -> dict[str, float]:
    """Temperature by zone; zones that are switched off (-256 °C) are left out."""
    temperatures = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        milli = integer_or_none(zone / "temp")
        if milli is not None and milli * 1e-3 > _OFFLINE_C:
            temperatures[text_or_none(zone / "type") or zone.name] = milli * 1e-3
    return temperatures


def _active_cooling(root: Path) -> set[str]:
    """Return the kinds of all cooling devices that are at work, alerts among them."""
    return {
        text_or_none(device / "type") or ""
        for device in (root / "sys/class/thermal").glob("cooling_device*")
        if (integer_or_none(device / "cur_state") or 0) > 0
    }


def _event_counts(root: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for monitor in (root / "sys/class/hwmon").glob("hwmon*"):
        for file, event in _SUPPLY_COUNTERS.items():
            count = integer_or_none(monitor / file)
            if count is not None:
                counts[event] = counts.get(event, 0) + count
    packages = [
        count
        for cpu in (root / "sys/devices/system/cpu").glob("cpu[0-9]*")
        if (count := integer_or_none(cpu / "thermal_throttle/package_throttle_count")) is not None
    ]
    if packages:
        # Every core of a package shows the package's count.
        counts["package thermal throttling"] = max(packages)
    return counts


class ConditionLog:
    """Compares successive looks and keeps what an operator should know. PURE: takes the time, reads nothing.

    on_power_mode: called with the new mode when it changed, so that the idle baseline changes with it.
    """

    def __init__(self, first: Conditions, *, on_power_mode: Callable[[str | None], None] | None = None) -> None:
        self._latest = first
        self._on_power_mode = on_power_mode
        self._mode_change: tuple[float, str] | None = None
        self._throttle: tuple[float, str] | None = None
        self._hot_at_s: float | None = None

    @property
    def latest(self) -> Conditions:
        """What the host looked like at the last look."""
        return self._latest

    def update(self, seen: Conditions, now_s: float, gpu_throttling: str | None = None) -> None:
        """Take in a new look at the host. gpu_throttling: what the GPU's own sensor says holds it back."""
        previous, self._latest = self._latest, seen
        if seen.power_mode != previous.power_mode:
            self._mode_change = (now_s, f"from {previous.power_mode or 'unknown'} to {seen.power_mode or 'unknown'}")
            if self._on_power_mode:
                self._on_power_mode(seen.power_mode)
        events = [
            event for event, count in seen.event_counts.items() if count > previous.event_counts.get(event, count)
        ]
        reasons = [*seen.alerts, *events, *([gpu_throttling] if gpu_throttling else [])]
        if seen.hot_surface:
            self._hot_at_s = now_s
        if reasons:
            self._throttle = (now_s, ", ".join(reasons))

    def warnings(self, now_s: float) -> tuple[HealthWarning, ...]:
        """Return warnings of throttling in the last seconds, and of a hot surface or a new mode in the last minutes."""
        warnings = []
        if self._throttle and now_s - self._throttle[0] <= _REMEMBER_THROTTLE_S:
            heat = self._latest.temperature_c
            warnings.append(
                HealthWarning(
                    code="throttled",
                    severity=Severity.DEGRADED,
                    message=f"The host is held back: {self._throttle[1]}"
                    + (f" (hottest zone {heat:.0f} °C)." if heat is not None else "."),
                    remedy="Improve cooling or supply, or choose a lower power mode; speeds are being relearned.",
                )
            )
        if self._hot_at_s is not None and now_s - self._hot_at_s <= _REMEMBER_HOT_S:
            warnings.append(
                HealthWarning(
                    code="hot_surface",
                    severity=Severity.NOTICE,
                    message="The board's surface is, or has been in the last ten minutes, above 70 °C.",
                    remedy="Do not touch it, and let air pass. Nothing is slowed down by this.",
                )
            )
        if self._mode_change and now_s - self._mode_change[0] <= _REMEMBER_CHANGE_S:
            warnings.append(
                HealthWarning(
                    code="power_mode_changed",
                    severity=Severity.NOTICE,
                    message=f"The power mode changed {self._mode_change[1]}.",
                    remedy="None needed: idle power, speed and energy are measured anew for this mode.",
                )
            )
        return tuple(warnings)
