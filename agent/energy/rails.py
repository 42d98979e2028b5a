"""Which rails of a Jetson make up the module's power. PURE.

Orin NX, Orin Nano and older Nanos have a sensor at the module's input, which contains all other rails. AGX
Orin has
none: its total is the sum of three rails and a lower bound of the module's input. `VDDQ_VDD2_1V8AO` is
already inside `VIN_SYS_5V0` (the 5 V rail that also feeds the DRAM regulators, NVIDIA forum threads 217088
and 223111); adding it, as jetson-stats' total does, overstates by 9 to 13 % in published llama.cpp traces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moe2.agent.energy.sensor import Limits, SensorBrokenError
from moe2.common.energy import Scope

MODULE_LIMITS = Limits(min_power_w=0.3, max_power_w=200.0, stuck_after_s=120.0)
"""A module that runs llama.cpp draws more than 0.3 W; no Jetson module exceeds 200 W. The sensor's noise of
several LSBs per rail makes two minutes of identical sums a stuck register, not a steady load."""

_INPUT_RAILS = ("VDD_IN", "POM_5V_IN")
_SUMMED_RAILS = (frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}),)


@dataclass(frozen=True, slots=True)
class ModuleRails:
    """The rails to add up and what their sum covers."""

    names: tuple[str, ...]
    scope: Scope

    def power_w(self, rails_w: Mapping[str, float]) -> float:
        """The module's power in W. Raises SensorBrokenError where one of the rails is missing."""
        missing = [name for name in self.names if name not in rails_w]
        if missing:
            raise SensorBrokenError(
                f"rail {', '.join(missing)} gives no reading; without it the module's power is unknown."
            )
        return sum(rails_w[name] for name in self.names)


def module_rails(names: Iterable[str]) -> ModuleRails:
    """The rule for a board with rails of these names.

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
        if summed & present:
            missing = ", ".join(sorted(summed - present))
            raise SensorBrokenError(
                f"rail {missing} is missing or disabled; without it the module's power is unknown.",
                remedy="Enable the channel (in<N>_enable of its ina3221) or check the board's device tree.",
            )
    raise SensorBrokenError(
        f"the rails {', '.join(sorted(present)) or '(none)'} belong to a board whose total is not known.",
        remedy="Report the board and its rail names, so that its rule can be added.",
    )
