"""Which rails of a Jetson make up the module's power. PURE.

Orin NX, Orin Nano, Xavier NX and older Nanos have a monitor at the module's input, and AGX Thor's kit has one at the
board's (`VIN`); either contains all other rails. An AGX Orin has none: its total is the sum of three rails and a lower
bound of the module's input. `VDDQ_VDD2_1V8AO` is already inside `VIN_SYS_5V0` (the 5 V rail that also feeds the DRAM
regulators, NVIDIA forum threads 217088 and 223111); adding it, as jetson-stats' total does, overstates by 9 to 13 % in
published llama.cpp traces. An AGX Xavier's six rails lie side by side and add up (NVIDIA forum thread 81016).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moe2.agent.energy.sensor import Limits, SensorBrokenError, SensorMissedError
from moe2.common.energy import Scope

MODULE_LIMITS = Limits(min_power_w=0.3, max_power_w=200.0, stuck_after_s=120.0)
"""A module that runs llama.cpp draws more than 0.3 W; no Jetson module exceeds 200 W. The sensor's noise of
several LSBs per rail makes two minutes of identical sums a stuck register, not a steady load."""

_INPUT_RAILS = ("VDD_IN", "VIN", "POM_5V_IN")
_AGX_ORIN = frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"})
_AGX_XAVIER = frozenset({"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"})
_AGX_THOR = frozenset({"VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"})
_SUMMED_RAILS = (_AGX_ORIN, _AGX_XAVIER, _AGX_THOR)
_MAY_REST = frozenset({"GPU", "CV", "VDD_GPU"})
"""Rails that the module switches off while nothing uses them; any other that reads 0 is dead."""


@dataclass(frozen=True, slots=True)
class ModuleRails:
    """The rails to add up and what their sum covers."""

    names: tuple[str, ...]
    scope: Scope

    def power_w(self, rails_w: Mapping[str, float]) -> float:
        """Return the module's power in W.

        Raises SensorBrokenError where one of the rails is missing, SensorMissedError where one reads nothing although
        a running module draws current there.
        """
        missing = [name for name in self.names if name not in rails_w]
        if missing:
            raise SensorBrokenError(
                f"rail {', '.join(missing)} gives no reading; without it the module's power is unknown."
            )
        dead = [name for name in self.names if rails_w[name] <= 0 and name not in _MAY_REST]
        if dead:
            raise SensorMissedError(
                f"rail {', '.join(dead)} reads 0 mA, which a module that runs cannot draw: its monitor is dead.",
                remedy="The agent goes on as soon as the rail reads again. If it stays at 0, this board's shunt or "
                "device tree is at fault; a metered plug ([[sensors.wall]]) can measure the host instead.",
            )
        return sum(rails_w[name] for name in self.names)


def module_rails(names: Iterable[str]) -> ModuleRails:
    """Return the rule for a board with rails of these names.

    Raises SensorBrokenError where the rails are known but incomplete, or not known at all: a sum over rails
    whose overlap is unknown would be an invented figure.
    """
    present = set(names)
    for name in _INPUT_RAILS:
        if name in present:
            return ModuleRails((name,), Scope.MODULE_INPUT)
    for summed in _SUMMED_RAILS:
        if summed <= present:
            return ModuleRails(tuple(sorted(summed)), Scope.MODULE_RAILS)
    nearest = max(_SUMMED_RAILS, key=lambda summed: len(summed & present))
    if nearest & present:
        missing = ", ".join(sorted(nearest - present))
        raise SensorBrokenError(
            f"rail {missing} is missing or disabled; without it the module's power is unknown.",
            remedy="Enable the channel (in<N>_enable of its ina3221) or check the board's device tree.",
        )
    raise SensorBrokenError(
        f"the rails {', '.join(sorted(present)) or '(none)'} belong to a board whose total is not known.",
        remedy="Report the board and its rail names, so that its rule can be added.",
    )
